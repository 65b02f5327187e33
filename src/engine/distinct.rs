//! Values without repetitions.

/// Returns each value once, in the order of its first occurrence.
pub fn distinct<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut once = Vec::new();
    values.for_each(|value| once.extend((!once.contains(&value)).then_some(value)));
    once
}
