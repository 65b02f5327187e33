//! The limits of statements: time, memory, and how many run at once.

use std::time::Duration;

use crate::query::Bounds;

/// The limits of statements.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Memory and disk of each.
    pub bounds: Bounds,
    /// The time for which the client of each waits, all together. The time in which it takes no rows does not count, but may not
    /// be longer.
    pub time: Duration,
    /// The bytes of light columns that were read and are kept in memory for later statements; 0 for none.
    pub kept: usize,
    /// The number that may run at once. More wait for as long as `time`.
    pub at_once: usize,
}
