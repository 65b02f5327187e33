//! Computes the stale rows of one table in tasks, and reports their progress.

use std::{
    cell::Cell,
    collections::{BTreeMap, HashSet},
};

use super::{
    executor::{Death, Executor, Update},
    in_process::InProcess,
    log::Log,
    options::Options,
    tasks::Tasks,
};
use crate::engine::{
    Digest, Error, Result,
    pipeline::Table,
    plan::{TableStates, TableWork},
    stage::{Report, Task, Unit},
    store::{Entry, Event, Manifest, PartRef, Store},
};

/// A table fails after so many deaths of workers in a row between which no row was computed.
const MAX_DEATHS: usize = 3;

/// Computes rows for a run.
pub(super) struct Computation<'a, 'l> {
    pub(super) store: &'a Store,
    pub(super) options: &'a Options,
    pub(super) workers: &'a dyn Executor,
    pub(super) run: &'a str,
    pub(super) log: &'a Log<'l>,
}

impl Computation<'_, '_> {
    /// Computes the stale rows, in tasks. Where the answer of a task is lost, the store tells which rows were computed,
    /// and the others are computed again.
    pub(super) fn compute(
        &self,
        work: &TableWork<'_>,
        states: &TableStates,
        preview: &mut Preview<'_>,
    ) -> Result<Vec<Entry>> {
        let table = work.table;
        let in_driver;
        let open = table.kind.opened_here(&*table.stage).filter(|_| !self.workers.takes(work));
        let executor: &dyn Executor = match open {
            Some(open) => {
                let settings = self.options.settings.clone();
                in_driver = InProcess::new(self.store.clone(), self.options.stop.clone(), settings, open);
                &in_driver
            }
            None => self.workers,
        };
        let total = work.stale.len() as u64;
        let mut progress = Progress { log: self.log, work, preview, run: self.run, total, failed: HashSet::new() };
        let mut entries = Vec::new();
        let mut rows = work.stale.clone();
        let mut deaths = 0;
        let taken = Cell::new(0);
        loop {
            let mut death = None;
            let mut before = Rows { done: BTreeMap::new(), before: work.stale.len() - rows.len() };
            let tasks = Tasks::new(work, &rows, states, self.options, self.run)?;
            let first = taken.get();
            let mut tasks = tasks.map(|task| {
                let task = self.unless_stopped(task)?;
                let (table, rows) = (table.name.clone(), task.ids.len() as u64);
                self.log.add(Event::TaskStarted { table, task: taken.replace(taken.get() + 1), rows });
                Ok(task)
            });
            let ended = executor.run(&mut tasks, &mut |update| match update {
                Update::Report { task, report } => progress.report(&mut before, task, report),
                Update::Done { task, entries: new } => {
                    progress.failures(&new);
                    self.finished(table, first + task as u64, &new, false);
                    entries.extend(new);
                    Ok(())
                }
                Update::Lost { task, death: how } => {
                    self.finished(table, first + task as u64, &[], true);
                    if death.as_ref().is_none_or(|before: &Death| before.status != how.status) {
                        self.log.say(&table.name, format!("the worker died ({}); its rows go to another", how.status));
                    }
                    death = Some(how);
                    Ok(())
                }
            });
            self.checked(table, ended)?;
            let Some(death) = death else { return Ok(entries) };
            let recorded = self.store.computed(work.stage_key)?.entries;
            entries = recorded.into_iter().filter(|entry| entry.recorded_ms > work.after).collect();
            progress.failures(&entries);
            let left = left(work, &rows, &entries);
            deaths = if left.len() < rows.len() { 1 } else { deaths + 1 };
            if left.is_empty() {
                return Ok(entries);
            }
            if deaths == MAX_DEATHS {
                return Err(died(&death).advised(table.stage.memory_advice()));
            }
            rows = left;
        }
    }

    /// Logs the end of a task.
    fn finished(&self, table: &Table, task: u64, entries: &[Entry], lost: bool) {
        let rows = entries.iter().map(|entry| entry.contents.len() as u64).sum();
        let errors = entries.iter().map(|entry| entry.errors.len() as u64).sum();
        self.log.add(Event::TaskFinished { table: table.name.clone(), task, rows, errors, lost });
    }

    fn unless_stopped(&self, task: Result<Task>) -> Result<Task> {
        if self.options.stop.is_requested() { Err(Error::Interrupted) } else { task }
    }

    /// Checks how the tasks of a table ended. After a request to stop, every error counts as an interruption, because
    /// a program of the user may have received the same signal and failed.
    fn checked(&self, table: &Table, ended: Result<()>) -> Result<()> {
        match ended {
            Err(error) if self.options.stop.is_requested() => {
                if !matches!(error, Error::Interrupted) {
                    self.log.say(&table.name, error.to_string());
                }
                Err(Error::Interrupted)
            }
            ended => ended.map_err(|error| error.advised(table.stage.memory_advice())),
        }
    }
}

/// Returns the rows without a result in these entries.
fn left(work: &TableWork<'_>, rows: &[usize], entries: &[Entry]) -> Vec<usize> {
    if !work.table.is_keyed() {
        return if entries.is_empty() { rows.to_vec() } else { Vec::new() };
    }
    let failed = entries.iter().flat_map(|entry| &entry.errors).map(|error| error.key);
    let done: HashSet<Digest> = entries.iter().flat_map(|entry| entry.keys.iter().copied()).chain(failed).collect();
    rows.iter().copied().filter(|row| !done.contains(&work.keys[*row])).collect()
}

/// Makes the error about rows on which one worker after another died.
fn died(death: &Death) -> Error {
    let message = format!("the worker died {MAX_DEATHS} times on the same rows ({})", death.status);
    if death.is_killed { Error::Killed(message) } else { Error::Worker(message) }
}

/// The rows done by the tasks that run side by side.
struct Rows {
    done: BTreeMap<usize, u64>,
    /// The number of rows that were done before the tasks started.
    before: usize,
}

/// Events of the tasks of one table.
struct Progress<'a, 'l, 'w, 'p> {
    log: &'a Log<'l>,
    work: &'a TableWork<'w>,
    preview: &'a mut Preview<'p>,
    run: &'a str,
    /// Rows to compute.
    total: u64,
    /// The keys of the failed rows that are already in the log.
    failed: HashSet<Digest>,
}

impl Progress<'_, '_, '_, '_> {
    fn report(&mut self, rows: &mut Rows, task: usize, report: Report) -> Result<()> {
        let table = self.work.table.name.clone();
        self.log.add(match report {
            Report::Unfinished { part } => return self.preview.show(self.work, self.run, part),
            Report::Progress { done, unit: unit @ Unit::Rows, .. } => {
                rows.done.insert(task, done);
                let done = rows.before as u64 + rows.done.values().sum::<u64>();
                Event::Progress { table, done, total: self.total, unit: unit.to_string() }
            }
            Report::Progress { done, total, unit } => Event::Progress { table, done, total, unit: unit.to_string() },
            Report::Figure { figure } => Event::Figure { table, figure },
            Report::Committed { rows, bytes } => Event::PartCommitted { table, rows, bytes },
            Report::Log { message } => Event::Log { table, message },
        });
        Ok(())
    }

    fn failures(&mut self, entries: &[Entry]) {
        for error in entries.iter().flat_map(|entry| &entry.errors) {
            if !self.failed.insert(error.key) {
                continue;
            }
            self.log.add(Event::RowFailed {
                table: self.work.table.name.clone(),
                id: error.id.clone(),
                message: error.message.clone(),
                chain: error.chain.clone(),
            });
        }
    }
}

/// The rows of an unfinished table as SQL sees them. They are removed when the table is published or given up.
pub(super) struct Preview<'a> {
    store: &'a Store,
    pipeline: &'a str,
    slot: String,
    /// Parts with the rows so far, the newest last. The previous one is kept for readers that are using it.
    parts: Vec<Digest>,
}

impl<'a> Preview<'a> {
    pub(super) fn new(store: &'a Store, pipeline: &'a str, slot: &str) -> Self {
        Self { store, pipeline, slot: slot.to_owned(), parts: Vec::new() }
    }

    fn show(&mut self, work: &TableWork<'_>, run: &str, part: PartRef) -> Result<()> {
        self.parts.push(part.part);
        let manifest = Manifest { rows: part.rows, parts: vec![part], ..work.manifest(run) };
        self.store.show_unfinished(self.pipeline, work.stage_key, manifest)?;
        if self.parts.len() > 2 {
            self.store.delete_part(self.parts.remove(0))?;
        }
        Ok(())
    }
}

impl Drop for Preview<'_> {
    fn drop(&mut self) {
        // A preview that cannot be removed now is ignored once the lock is released, and a clean-up removes it.
        if !self.parts.is_empty() {
            let _ = self.store.forget_unfinished(self.pipeline, &self.slot);
        }
    }
}
