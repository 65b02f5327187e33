//! The log of a run: its events, shown as they happen and kept in the store.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::engine::{
    Result, Secrets,
    clock::now_ms,
    store::{Event, Logged, Store, begin_log, save_log},
};

/// The events of a run. Threads that make tables side by side share it.
pub(super) struct Log<'a> {
    store: &'a Store,
    /// The id of the run.
    pub(super) run: String,
    secrets: &'a Secrets,
    written: Mutex<Written<'a>>,
}

struct Written<'a> {
    lines: String,
    listener: &'a mut (dyn FnMut(&Event) + Send),
}

impl<'a> Log<'a> {
    /// Begins the log of a run with the event that `started` makes of the run's id, stores it and shows it. `listener` is
    /// called with each event.
    pub(super) fn begin(
        store: &'a Store,
        secrets: &'a Secrets,
        listener: &'a mut (dyn FnMut(&Event) + Send),
        started: impl Fn(String) -> Event,
    ) -> Result<Self> {
        let mut time = next_time(store)?;
        loop {
            // Another run that began at this time may have the same number, as the processes of containers do.
            let run = format!("{time:013}-{}", std::process::id());
            let event = started(run.clone()).without(secrets);
            let lines = line(event.clone());
            if begin_log(store, &run, &lines)? {
                listener(&event);
                return Ok(Self { store, run, secrets, written: Mutex::new(Written { lines, listener }) });
            }
            time += 1;
        }
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
            written.lines += &line(event);
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

/// Returns an event of this moment as a line of a log.
fn line(event: Event) -> String {
    serde_json::to_string(&Logged { at_ms: now_ms(), event }).unwrap_or_default() + "\n"
}

/// Returns a time in milliseconds since 1970 that is later than those in all ids of the store, even if the clock was set
/// back or another machine's clock is ahead.
fn next_time(store: &Store) -> Result<u64> {
    let time_of = |name: &String| name.split('-').next()?.parse::<u64>().ok();
    let last = store.list("runs")?.iter().filter_map(time_of).max();
    Ok(last.map_or_else(now_ms, |last| now_ms().max(last + 1)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn runs_that_begin_at_once_have_ids_and_logs_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().to_string_lossy()).unwrap();
        let begin = || {
            let started = |run: String| Event::Log { table: run, message: "begins".into() };
            Log::begin(&store, &Secrets::default(), &mut |_| {}, started).unwrap().run
        };
        let ids: BTreeSet<String> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(begin)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(ids.len(), 8);
        let logs: Vec<String> = ids.iter().map(|id| format!("{id}.jsonl")).collect();
        assert_eq!(store.list("runs").unwrap(), logs);
    }
}
