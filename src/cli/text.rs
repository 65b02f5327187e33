//! Text output that the commands share.

use std::{
    fmt::Display,
    io::{self, Write},
};

use crate::query::output::printable;

/// The maximum width of a column of names. Longer names do not move the other columns.
const WIDEST: usize = 48;

/// Prints a line for people. Control characters, which names and values of others may contain, are escaped. A closed
/// output is an error, which ends the command quietly, instead of a panic.
pub(super) fn print(line: impl Display) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{}", printable(&line.to_string()))
}

/// Prints a line for programs, such as JSON, without changes.
pub(super) fn print_exactly(line: impl Display) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{line}")
}

/// Prints a line on standard error, escaped as by [`print()`]. If standard error is closed, the work continues.
pub(super) fn say(line: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{}", printable(&line.to_string()));
}

/// Returns the width of a column of names.
pub(super) fn width<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> usize {
    names.into_iter().map(|name| name.as_ref().chars().count()).max().unwrap_or_default().min(WIDEST)
}

/// Returns the width of the terminal that standard output is, in characters; `None` if it is none.
pub(super) fn columns() -> Option<usize> {
    terminal_size::terminal_size_of(io::stdout()).map(|(width, _)| usize::from(width.0))
}

/// Formats a count with its noun: `1 row`, `12 rows`.
pub(super) fn count(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
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
