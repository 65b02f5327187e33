//! Plans and counts in words.

use crate::engine::plan::{Cause, State};

/// The maximum width of a column of names. Longer names do not move the other columns.
const WIDEST: usize = 48;

/// Returns the width of a column of names.
pub fn width<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> usize {
    names.into_iter().map(|name| name.as_ref().chars().count()).max().unwrap_or_default().min(WIDEST)
}

/// Formats a count with its noun: `1 row`, `12 rows`.
pub fn count(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Says what a run would do with a table, and why.
pub fn describe(state: &State) -> String {
    let why = |causes: &[Cause]| causes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    match state {
        State::Fresh { rows } => format!("fresh, {}", count(*rows, "row")),
        State::Blocked { on } => format!("waits for {on}"),
        State::Stale { stale: 0, causes, .. } => format!("to publish: {}", why(causes)),
        State::Stale { rows: 0, causes, .. } => format!("to compute: {}", why(causes)),
        State::Stale { stale, rows, at_most, causes } => {
            let at_most = if *at_most { "at most " } else { "" };
            format!("{at_most}{stale} of {} to compute: {}", count(*rows, "row"), why(causes))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn column_is_as_wide_as_its_longest_name_up_to_a_maximum() {
        assert_eq!(width(["images", "captions[default=ü]"]), 19);
        assert_eq!(width(["x".repeat(100)]), WIDEST);
        assert_eq!(width([""; 0]), 0);
    }
}
