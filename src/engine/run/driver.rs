//! Runs a pipeline: table by table, only what is stale, publishing each table when it is whole.

use std::time::Instant;

use super::{
    in_process::Executor,
    options::{Options, Remote, Summary},
    tasks::Tasks,
};
use crate::engine::{
    Digest, Error, Result, Secrets,
    clock::now_ms,
    pipeline::{OnError, Pipeline, Table, is_called},
    plan::{Cause, Found, Overrides, Planner, TableState, TableStates, TableWork, explain, published},
    source::Sources,
    stage::Report,
    store::{Current, Entry, Event, Inventory, Logged, Manifest, PartRef, Store, save_log, state_name},
};

/// How often a run goes over its tables again because a part was found damaged.
const MAX_REPAIRS: usize = 100;

/// A table says this many causes.
const MAX_CAUSES_SHOWN: usize = 4;

/// An error of failed rows names this many.
const MAX_FAILURES_SHOWN: usize = 10;

/// Brings tables of a pipeline up to date.
pub fn run(
    pipeline: &Pipeline,
    store: &Store,
    sources: &Sources,
    options: &Options,
    remote: &mut dyn Remote,
    listener: &mut dyn FnMut(&Event),
) -> Result<Summary> {
    let run = new_id(store)?;
    let started = Instant::now();
    let mut log = Log { store, run: run.clone(), secrets: &pipeline.secrets, lines: String::new(), listener };
    log.add(Event::RunStarted {
        run: run.clone(),
        pipeline: pipeline.name.clone(),
        store: store.url.clone(),
        pipeline_digest: pipeline.digest.to_string(),
        git_commit: options.git_commit.clone(),
        host: options.host.clone(),
    });
    log.save()?;
    let mut overrides = options.overrides.clone();
    // By their full names: of a swept table each instance is forced once.
    let forced = |table: &&Table| options.overrides.force.iter().any(|name| is_called(table, name));
    overrides.force = pipeline.tables.iter().filter(forced).map(|table| table.name.clone()).collect();
    let mut driver = Driver {
        pipeline,
        store,
        sources,
        options,
        overrides,
        remote,
        executor: Executor::new(store.clone(), options.stop.clone()),
        inventory: Inventory::default(),
        run: run.clone(),
    };
    let result = driver.retire(&mut log).and_then(|()| driver.mend(&mut log));
    log.add(Event::RunFinished {
        seconds: started.elapsed().as_secs_f64(),
        error: result.as_ref().err().map(ToString::to_string),
    });
    log.save()?;
    Ok(Summary { run, errors: result.map_err(|error| error.without(&pipeline.secrets))? })
}

/// An id that is later than all in the store, also where the clock was set back or another machine's goes ahead of this one's.
fn new_id(store: &Store) -> Result<String> {
    let time_of = |name: &String| name.split('-').next()?.parse::<u64>().ok();
    let last = store.list("runs")?.iter().filter_map(time_of).max();
    let time = last.map_or_else(now_ms, |last| now_ms().max(last + 1));
    Ok(format!("{time:013}-{}", std::process::id()))
}

/// The events of a run, shown as they come and kept in the store.
struct Log<'a> {
    store: &'a Store,
    run: String,
    secrets: &'a Secrets,
    lines: String,
    listener: &'a mut dyn FnMut(&Event),
}

impl Log<'_> {
    fn add(&mut self, event: Event) {
        let event = event.without(self.secrets);
        (self.listener)(&event);
        // What a bar shows is no history.
        if !matches!(event, Event::Progress { .. }) {
            let line = serde_json::to_string(&Logged { at_ms: now_ms(), event }).unwrap_or_default();
            self.lines += &(line + "\n");
        }
    }

    /// Keeps what was added so far: also a killed run has a history.
    fn save(&self) -> Result<()> {
        save_log(self.store, &self.run, &self.lines)
    }
}

struct Driver<'a> {
    pipeline: &'a Pipeline,
    store: &'a Store,
    sources: &'a Sources,
    options: &'a Options,
    overrides: Overrides,
    remote: &'a mut dyn Remote,
    executor: Executor,
    inventory: Inventory,
    run: String,
}

impl Driver<'_> {
    /// Takes tables out of SQL's view that the pipeline no longer declares.
    fn retire(&self, log: &mut Log<'_>) -> Result<()> {
        let pipeline = &self.pipeline.name;
        for slot in self.store.versions(pipeline)?.keys().filter(|slot| !self.pipeline.declares(slot)) {
            let Some(manifest) = self.last_whole(slot)?.filter(|manifest| !manifest.retired) else { continue };
            let message = "the pipeline no longer declares it; its rows are kept for when it does".into();
            log.add(Event::Log { table: manifest.variant.name(&manifest.table), message });
            self.store.publish(pipeline, &Manifest { retired: true, run: self.run.clone(), ..manifest })?;
        }
        Ok(())
    }

    /// The newest version of a table whose manifest is whole; later ones, of which nothing is known, are removed.
    fn last_whole(&self, slot: &str) -> Result<Option<Manifest>> {
        let pipeline = &self.pipeline.name;
        let versions = self.store.versions(pipeline)?.remove(slot).unwrap_or_default();
        for (version, manifest) in self.store.manifests(pipeline, slot, &versions).into_iter().rev() {
            match manifest {
                Ok(manifest) => return Ok(Some(manifest)),
                Err(Error::Damaged(_)) => self.store.delete_version(pipeline, slot, version)?,
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Goes over the tables until none is found to rest on a damaged part. Returns the number of rows that failed.
    fn mend(&mut self, log: &mut Log<'_>) -> Result<u64> {
        if self.options.verify {
            for message in self.store.verify()? {
                log.add(Event::Log { table: "store".into(), message });
            }
        }
        for _ in 0..MAX_REPAIRS {
            match self.tables(log) {
                Err(error @ Error::Lost { .. }) => self.discard(error, log)?,
                result => return result,
            }
        }
        Err(Error::Damaged(format!(
            "{MAX_REPAIRS} parts were damaged one after another; look at the disk below {}",
            self.store.url
        )))
    }

    /// Removes a damaged part, so that the tables that hold it are no longer fresh.
    fn discard(&mut self, lost: Error, log: &mut Log<'_>) -> Result<()> {
        let Error::Lost { digest, message } = lost else { return Err(lost) };
        log.add(Event::Log { table: "store".into(), message: format!("{message}: it is computed again") });
        self.overrides.lost.insert(digest);
        self.store.discard(digest)
    }

    fn tables(&mut self, log: &mut Log<'_>) -> Result<u64> {
        let pipeline = self.pipeline;
        let Found { mut views, damaged } = published(pipeline, self.store)?;
        let mut errors = 0;
        for table in pipeline.tables.iter().filter(|table| self.options.tables.contains(&table.name)) {
            let damaged = damaged.get(&table.name);
            if let Some((_, message)) = damaged {
                log.add(Event::Log { table: table.name.clone(), message: format!("{message}: it is published again") });
            }
            let view = self.table(table, &views, damaged.is_some(), log)?;
            if let Some((version, _)) = damaged {
                self.store.delete_version(&pipeline.name, &table.slot(), *version)?;
            }
            for note in &view.manifest.notes {
                log.add(Event::Note { table: table.name.clone(), message: note.to_string() });
            }
            errors += view.manifest.errors.len() as u64;
            // What is made now is neither forced nor lost any more.
            self.overrides.force.retain(|name| *name != table.name);
            view.manifest.objects().for_each(|digest| {
                self.overrides.lost.remove(&digest);
            });
            views.insert(table.name.clone(), view);
        }
        Ok(errors)
    }

    /// Brings one table up to date.
    fn table(&mut self, table: &Table, views: &TableStates, damaged: bool, log: &mut Log<'_>) -> Result<TableState> {
        let overrides = self.overrides.clone();
        let inventory = self.inventory.clone();
        let planner =
            Planner { store: self.store, sources: self.sources, overrides: &overrides, inventory: &inventory };
        let fresh = |view: &TableState| Event::TableFresh {
            table: table.name.clone(),
            stage: table.kind.name.to_owned(),
            slot: table.slot(),
            version: view.version,
            rows: view.manifest.rows,
        };
        let Some(draft) = planner.identify(table, views)? else {
            let view = views[&table.name].clone();
            log.add(fresh(&view));
            return Ok(view);
        };
        let wait = &mut || {
            let message = "another run computes it; waiting for that".into();
            log.add(Event::Log { table: table.name.clone(), message });
        };
        let _lock = self.store.lock(draft.stage_key, wait)?;
        // Another run may have published the same meanwhile.
        if let Current::Whole(version, manifest) = self.store.published(&self.pipeline.name, &table.slot())? {
            let view = TableState::new(version, *manifest);
            let is_new = views.get(&table.name).is_none_or(|before| before.version != version);
            if is_new && draft.is(&view.manifest) && planner.trusts(table, &view.manifest)? {
                log.add(fresh(&view));
                return Ok(view);
            }
        }
        let work = draft.complete(&planner)?;
        let causes = if damaged { vec![Cause::Damaged] } else { explain(&work, &planner, views)? };
        self.make(work, &causes, views, log)
    }

    /// Computes what is stale of a table and publishes it. The caller holds the lock on the stage's results.
    fn make(
        &mut self,
        mut work: TableWork<'_>,
        causes: &[Cause],
        views: &TableStates,
        log: &mut Log<'_>,
    ) -> Result<TableState> {
        let started = Instant::now();
        let table = work.table;
        let (name, stage, slot) = (table.name.clone(), table.kind.name.to_owned(), table.slot());
        log.add(Event::TableStarted {
            table: name.clone(),
            stage: stage.clone(),
            slot: slot.clone(),
            stale: work.stale.len() as u64,
            rows: work.total(),
            reasons: causes.iter().take(MAX_CAUSES_SHOWN).map(ToString::to_string).collect(),
        });
        for lost in work.lost.iter().take(MAX_CAUSES_SHOWN) {
            let message = format!("{lost} is damaged or missing: it is computed again");
            log.add(Event::Log { table: name.clone(), message });
        }
        for record in &work.damaged {
            let message = format!("{record} does not match its digest: its rows are computed again");
            log.add(Event::Log { table: name.clone(), message });
            self.store.delete(record)?;
        }
        // A clean-up that begins now sees what this run has found.
        log.save()?;
        if work.forced {
            self.store.delete(&state_name(work.stage_key))?;
        }
        let mut shown =
            Preview { store: self.store, pipeline: &self.pipeline.name, parts: Vec::new(), slot: slot.clone() };
        let (mut computed, mut bytes) = (0, 0);
        if !work.stale.is_empty() {
            let entries = self.compute(&work, views, &mut shown, log).map_err(|e| e.in_table(&name))?;
            computed = entries.iter().map(|entry| entry.contents.len() as u64).sum();
            bytes = entries.iter().map(|entry| entry.bytes).sum();
            let failures: Vec<_> = entries.iter().flat_map(|entry| &entry.errors).collect();
            if table.on_error == OnError::Fail && !failures.is_empty() {
                let errors =
                    failures.iter().take(MAX_FAILURES_SHOWN).map(|e| (e.id.clone(), e.message.clone())).collect();
                return Err(Error::Rows { table: name, errors, total: failures.len() });
            }
            work.known.extend(entries);
        }
        let mut manifest = work.manifest(&self.run);
        let review = work.sample(self.store, views, &manifest).and_then(|sample| table.stage.review(&sample));
        manifest.notes.extend(review.map_err(|e| e.in_table(&name))?);
        let version = self.store.publish(&self.pipeline.name, &manifest)?;
        log.add(Event::TablePublished {
            table: name,
            stage,
            slot,
            version,
            rows: manifest.rows,
            computed,
            bytes,
            errors: manifest.errors.len() as u64,
            seconds: started.elapsed().as_secs_f64(),
        });
        log.save()?;
        Ok(TableState::new(version, manifest))
    }

    /// Computes the stale rows, task by task.
    fn compute(
        &mut self,
        work: &TableWork<'_>,
        views: &TableStates,
        shown: &mut Preview<'_>,
        log: &mut Log<'_>,
    ) -> Result<Vec<Entry>> {
        let stop = &self.options.stop;
        let table = work.table;
        let total = work.stale.len() as u64;
        let mut entries = Vec::new();
        let mut before = 0;
        for task in Tasks::new(work, views, self.options, &self.run)? {
            if stop.is_requested() {
                return Err(Error::Interrupted);
            }
            let task = task?;
            let rows = task.ids.len() as u64;
            let mut unseen = Ok(());
            let mut report = |report: Report| {
                let table = table.name.clone();
                log.add(match report {
                    Report::Unfinished { part } => {
                        unseen = shown.show(work, &self.run, part);
                        return;
                    }
                    Report::Progress { done, unit, .. } if unit == "rows" => {
                        Event::Progress { table, done: before + done, total, unit }
                    }
                    Report::Progress { done, total, unit } => Event::Progress { table, done, total, unit },
                    Report::Committed { rows, bytes } => Event::PartCommitted { table, rows, bytes },
                    Report::Log { message } => Event::Log { table, message },
                });
            };
            let new = match table.kind.opened_here(&*table.stage) {
                Some(open) => self.executor.run(task, open, &mut report),
                None => self.remote.run(task, &mut report),
            };
            unseen?;
            let new = match new {
                // A program of the user's may have heard the signal too, and failed.
                Err(error) if stop.is_requested() => {
                    if !matches!(error, Error::Interrupted) {
                        log.add(Event::Log { table: table.name.clone(), message: error.to_string() });
                    }
                    return Err(Error::Interrupted);
                }
                new => new.map_err(|error| error.advised(table.stage.memory_advice()))?,
            };
            for error in new.iter().flat_map(|entry| &entry.errors) {
                log.add(Event::RowFailed {
                    table: table.name.clone(),
                    id: error.id.clone(),
                    message: error.message.clone(),
                    chain: error.chain.clone(),
                });
            }
            entries.extend(new);
            before += rows;
        }
        Ok(entries)
    }
}

/// What SQL sees of a table while it is being made; forgotten when the table is published, or is not to be.
struct Preview<'a> {
    store: &'a Store,
    pipeline: &'a str,
    slot: String,
    /// The rows so far, the newest last. The one before stays for whoever reads it now.
    parts: Vec<Digest>,
}

impl Preview<'_> {
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
        // What cannot be removed now means nothing without the lock, and a clean-up finds it.
        if !self.parts.is_empty() {
            let _ = self.store.forget_unfinished(self.pipeline, &self.slot);
        }
    }
}
