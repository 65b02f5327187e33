//! What statements may take.

use std::time::Duration;

use crate::query::Bounds;

/// The limits of statements.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Memory and disk of each.
    pub bounds: Bounds,
    /// The time in which each is computed. Waiting for its client does not count, but a client may not let it wait for longer.
    pub time: Duration,
    /// The number that may run at once. More wait for as long as `time`.
    pub at_once: usize,
}
