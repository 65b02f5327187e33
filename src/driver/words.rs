//! Plans and counts in words.

use crate::{
    engine::plan::{Cause, State, TablePlan},
    models::memory::{free, in_words},
};

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

/// Says how much memory it takes at most to make a table, and whether that is free on this machine; `None` where the plan does
/// not know.
pub fn describe_memory(plan: &TablePlan) -> Option<String> {
    let memory = plan.memory?;
    let of = match plan.state {
        State::Blocked { .. } => format!(" for {}", count(memory.rows, "row")),
        _ => String::new(),
    };
    let lacks = free().filter(|free| *free < memory.bytes);
    let lacks = lacks.map_or_else(String::new, |free| format!(", and {} are free here", in_words(free)));
    Some(format!("takes up to {} of memory{of}{lacks}", in_words(memory.bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::plan::Memory;

    #[test]
    fn memory_that_is_not_free_is_said_and_so_are_unknown_rows() {
        let describe = |state: State, bytes: u64, rows: u64| {
            let (table, notes, memory) = ("bank".to_owned(), Vec::new(), Some(Memory { bytes, rows }));
            describe_memory(&TablePlan { table, stage: "fit", state, notes, memory }).unwrap()
        };
        let stale = || State::Stale { stale: 1, rows: 0, at_most: true, causes: Vec::new() };
        assert_eq!(describe(stale(), 5 << 20, 8), "takes up to 5 MiB of memory");
        let blocked = State::Blocked { on: "features".to_owned() };
        assert_eq!(describe(blocked, 5 << 20, 1000), "takes up to 5 MiB of memory for 1000 rows");
        let much = describe(stale(), 1 << 60, 8);
        assert!(
            much.starts_with("takes up to 1073741824.0 GiB of memory, and ") && much.ends_with(" are free here"),
            "{much}"
        );
    }

    #[test]
    fn column_is_as_wide_as_its_longest_name_up_to_a_maximum() {
        assert_eq!(width(["images", "captions[default=ü]"]), 19);
        assert_eq!(width(["x".repeat(100)]), WIDEST);
        assert_eq!(width([""; 0]), 0);
    }
}
