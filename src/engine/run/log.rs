//! The log of a run: its events, shown as they happen and kept in the store.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::engine::{
    Result, Secrets,
    clock::now_ms,
    store::{Event, Logged, Store, save_log},
};

/// The events of a run. Threads that make tables side by side share it.
pub(super) struct Log<'a> {
    store: &'a Store,
    run: String,
    secrets: &'a Secrets,
    written: Mutex<Written<'a>>,
}

struct Written<'a> {
    lines: String,
    listener: &'a mut (dyn FnMut(&Event) + Send),
}

impl<'a> Log<'a> {
    /// Makes the log of a run. `listener` is called with each event.
    pub(super) fn new(
        store: &'a Store,
        run: String,
        secrets: &'a Secrets,
        listener: &'a mut (dyn FnMut(&Event) + Send),
    ) -> Self {
        Self { store, run, secrets, written: Mutex::new(Written { lines: String::new(), listener }) }
    }

    fn written(&self) -> MutexGuard<'_, Written<'a>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows an event and adds it to the lines, if it is one that is stored.
    pub(super) fn add(&self, event: Event) {
        let event = event.without(self.secrets);
        let mut written = self.written();
        (written.listener)(&event);
        if !event.is_passing() {
            let line = serde_json::to_string(&Logged { at_ms: now_ms(), event }).unwrap_or_default();
            written.lines += &(line + "\n");
        }
    }

    /// Adds a message about a table.
    pub(super) fn say(&self, table: &str, message: impl Into<String>) {
        self.add(Event::Log { table: table.to_owned(), message: message.into() });
    }

    /// Stores the events so far, so that the history includes a run that is killed later.
    pub(super) fn save(&self) -> Result<()> {
        save_log(self.store, &self.run, &self.written().lines)
    }
}
