//! The events of a run as lines of JSON.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::text::say_event;
use crate::{engine::store::Event, telemetry::Listener};

/// The interval at which the progress of a table is printed.
const EVERY: Duration = Duration::from_secs(1);

/// Prints events on standard error.
#[derive(Default)]
pub(super) struct JsonLog {
    /// The time at which the progress of each table was last printed.
    told: BTreeMap<String, Instant>,
}

impl Listener for JsonLog {
    /// Prints an event. Progress that comes within a second of other progress of the table is left out, unless it is the
    /// end of the work.
    fn hear(&mut self, _: u64, event: &Event) {
        let (table, is_end) = match event {
            Event::TaskStarted { .. } | Event::TaskFinished { .. } => return,
            Event::Progress { table, done, total, .. } => (table, done == total),
            Event::Figure { table, .. } => (table, false),
            _ => return say_event(event),
        };
        if is_end || self.told.get(table).is_none_or(|told| told.elapsed() >= EVERY) {
            self.told.insert(table.clone(), Instant::now());
            say_event(event);
        }
    }
}
