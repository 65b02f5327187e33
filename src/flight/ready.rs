//! Statements that were planned to tell a client their schema, kept until it fetches their rows.
//!
//! A client asks twice for a result: for its schema and a ticket, and with the ticket for the rows. Planning takes about as long
//! as the first rows, so the second request takes over the plan of the first. Its rows are those that were published at the first.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::query::Rows;

/// The time for which a plan is kept. After that its rows are planned again, so that no statement sees tables of long ago.
const KEPT: Duration = Duration::from_secs(10);
/// The number of plans that are kept at most. Each names the parts of its tables.
const MOST: usize = 64;

/// Names a statement with the values of its parameters. Nobody can guess it.
pub(super) type Key = u128;

/// Returns a new key.
pub(super) fn new_key() -> Key {
    rand::random()
}

/// Planned statements, by key.
#[derive(Debug, Default)]
pub(super) struct Ready(Mutex<HashMap<Key, (Instant, Rows)>>);

impl Ready {
    fn plans(&self) -> MutexGuard<'_, HashMap<Key, (Instant, Rows)>> {
        let mut plans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        plans.retain(|_, (since, _)| since.elapsed() < KEPT);
        plans
    }

    /// Keeps the planned rows of a statement. If there are many, the oldest ones are dropped.
    pub(super) fn keep(&self, key: Key, rows: Rows) {
        let mut plans = self.plans();
        if plans.len() >= MOST {
            let oldest = plans.iter().min_by_key(|(_, (since, _))| *since).map(|(key, _)| *key);
            oldest.and_then(|oldest| plans.remove(&oldest));
        }
        plans.insert(key, (Instant::now(), rows));
    }

    /// Takes the planned rows of a statement; `None` if they were taken before, or are too old.
    pub(super) fn take(&self, key: Key) -> Option<Rows> {
        self.plans().remove(&key).map(|(_, rows)| rows)
    }
}
