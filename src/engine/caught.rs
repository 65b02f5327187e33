//! Panics of libraries, as values.

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook},
    sync::Once,
};

thread_local! {
    /// True while a panic of this thread is caught, and therefore not printed.
    static IS_CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// Runs code of a library that panics on some damaged files; `None` if it panics, which is not printed.
///
/// The library may leave inconsistent what it was given, so that this is not used again after a panic.
pub fn caught<T>(run: impl FnOnce() -> T) -> Option<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let print = take_hook();
        set_hook(Box::new(move |panic| {
            if !IS_CAUGHT.get() {
                print(panic);
            }
        }));
    });
    let before = IS_CAUGHT.replace(true);
    let ran = catch_unwind(AssertUnwindSafe(run));
    IS_CAUGHT.set(before);
    ran.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panic_is_none_and_the_next_one_is_printed_again() {
        assert_eq!(caught(|| 1), Some(1));
        assert_eq!(caught(|| Vec::<u8>::new()[0]), None);
        assert!(!IS_CAUGHT.get());
        assert_eq!(caught(|| (caught(|| panic!("inner")), IS_CAUGHT.get())), Some((None::<()>, true)));
    }
}
