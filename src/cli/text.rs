//! What the commands share in what they print.

use std::{
    fmt::Display,
    io::{self, Write},
};

use crate::query::output::printable;

/// Names longer than this do not push the other columns to the right.
const WIDEST: usize = 48;

/// Prints a line for people: what a terminal would obey in names and values of others is escaped. Where nobody reads on, that is an
/// error, which ends the command quietly, and not a panic.
pub(super) fn print(line: impl Display) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{}", printable(&line.to_string()))
}

/// Prints a line for programs, such as JSON, as it is.
pub(super) fn print_exactly(line: impl Display) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{line}")
}

/// Says a line beside the output, escaped as `print` does it. Where nobody listens, the work goes on.
pub(super) fn say(line: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{}", printable(&line.to_string()));
}

/// The width of a column of names.
pub(super) fn width<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> usize {
    names.into_iter().map(|name| name.as_ref().chars().count()).max().unwrap_or_default().min(WIDEST)
}

/// `1 row`, `12 rows`.
pub(super) fn count(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_is_as_wide_as_its_longest_name_within_reason() {
        assert_eq!(width(["images", "captions[default=ü]"]), 19);
        assert_eq!(width(["x".repeat(100)]), WIDEST);
        assert_eq!(width([""; 0]), 0);
    }
}
