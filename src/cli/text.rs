//! Text output that the commands share.

use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
};

pub(super) use crate::driver::{count, width};
use crate::{driver::Lines, query::output::printable};

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

/// Returns the width of the terminal that standard output is, in characters; `None` if it is none.
pub(super) fn columns() -> Option<usize> {
    terminal_size::terminal_size_of(io::stdout()).map(|(width, _)| usize::from(width.0))
}

/// Returns the way in which a run's progress is shown: on standard error, or not at all.
pub(super) fn lines(quiet: bool) -> Lines {
    if quiet { Lines::none() } else { Lines::new(io::stderr().is_terminal(), |line| say(line)) }
}
