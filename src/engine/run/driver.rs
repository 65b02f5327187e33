//! Runs a pipeline: computes the stale rows of its tables, one table after another or several side by side, and
//! publishes each table when it is complete.

use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Mutex, MutexGuard, PoisonError, mpsc},
    time::Instant,
};

use super::{
    compute::{Computation, Preview},
    executor::Executor,
    log::Log,
    options::{Options, Summary},
};
use crate::engine::{
    Error, Result,
    pipeline::{OnError, Pipeline, Table, is_called},
    plan::{Cause, Found, Overrides, Planner, TableState, TableStates, TableWork, explain, published},
    source::Sources,
    store::{Current, Event, Inventory, Manifest, Store, state_name, stored_schema},
};

/// The maximum number of times that a run goes over its tables again because a part was found damaged.
const MAX_REPAIRS: usize = 100;

/// The maximum number of damaged rows that are named per table.
const MAX_LOST_SHOWN: usize = 4;

/// The maximum number of failed rows that an error names.
const MAX_FAILURES_SHOWN: usize = 10;

/// Bytes of stack of a thread that makes a table: as many as a main thread has, since predicates of any depth are
/// evaluated.
const STACK: usize = 8 << 20;

/// Brings tables of a pipeline up to date.
pub fn run(
    pipeline: &Pipeline,
    store: &Store,
    sources: &Sources,
    options: &Options,
    workers: &dyn Executor,
    listener: &mut (dyn FnMut(&Event) + Send),
) -> Result<Summary> {
    let started = Instant::now();
    let log = Log::begin(store, &pipeline.secrets, listener, |run| Event::RunStarted {
        run,
        pipeline: pipeline.name.clone(),
        store: store.url.clone(),
        pipeline_digest: pipeline.digest.to_string(),
        git_commit: options.git_commit.clone(),
        host: options.host.clone(),
        device: options.device.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        judges_by: options.judges_by.clone(),
    })?;
    let mut overrides = options.overrides.clone();
    // Forced tables are listed by their full names, so that each instance of a swept table is forced once.
    let forced = |table: &&Table| options.overrides.force.iter().any(|name| is_called(table, name));
    overrides.force = pipeline.tables.iter().filter(forced).map(|table| table.name.clone()).collect();
    let driver = Driver {
        pipeline,
        store,
        sources,
        options,
        overrides: Mutex::new(overrides),
        workers,
        inventory: Inventory::default(),
        run: log.run.clone(),
        log: &log,
    };
    let result = driver.retire().and_then(|()| driver.repair());
    log.add(Event::RunFinished {
        seconds: started.elapsed().as_secs_f64(),
        error: result.as_ref().err().map(ToString::to_string),
        interrupted: matches!(result, Err(Error::Interrupted)),
    });
    log.save()?;
    Ok(Summary { run: driver.run, errors: result.map_err(|error| error.without(&pipeline.secrets))? })
}

struct Driver<'a, 'l> {
    pipeline: &'a Pipeline,
    store: &'a Store,
    sources: &'a Sources,
    options: &'a Options,
    /// Tables and parts that are computed again: tables that the user forces, parts that were found damaged.
    overrides: Mutex<Overrides>,
    workers: &'a dyn Executor,
    inventory: Inventory,
    run: String,
    log: &'a Log<'l>,
}

impl Driver<'_, '_> {
    fn overrides(&self) -> MutexGuard<'_, Overrides> {
        self.overrides.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hides tables from SQL that the pipeline no longer declares.
    fn retire(&self) -> Result<()> {
        let pipeline = &self.pipeline.name;
        for slot in self.store.versions(pipeline)?.keys().filter(|slot| !self.pipeline.declares(slot)) {
            let Some(manifest) = self.last_whole(slot)?.filter(|manifest| !manifest.retired) else { continue };
            let name = manifest.variant.name(&manifest.table);
            let now = self.pipeline.tables.iter().find(|table| table.declared == manifest.table);
            let why = match now.map(|table| &table.variant) {
                None => "the pipeline no longer declares it".to_owned(),
                Some(now) if manifest.variant.is_empty() => {
                    let axes: Vec<&str> = now.0.iter().map(|(axis, _)| axis.as_str()).collect();
                    format!("swept by {} now", axes.join(" and "))
                }
                Some(now) if now.is_empty() => "no longer swept".to_owned(),
                Some(_) => "the sweep no longer has this combination".to_owned(),
            };
            self.log.say(&name, format!("{why}; its rows are kept for when that changes back"));
            self.store.publish(pipeline, &Manifest { retired: true, run: self.run.clone(), ..manifest })?;
        }
        Ok(())
    }

    /// Returns the newest version of a table whose manifest is undamaged. Later versions, whose manifests cannot be
    /// read, are removed.
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

    /// Goes over the tables until no damaged part is found. Returns the number of rows that failed.
    fn repair(&self) -> Result<u64> {
        if self.options.verify {
            for message in self.store.verify()? {
                self.log.say("store", message);
            }
        }
        for _ in 0..MAX_REPAIRS {
            match self.tables() {
                Err(error @ Error::Lost { .. }) => self.discard(error)?,
                result => return result,
            }
        }
        Err(Error::Damaged(format!(
            "{MAX_REPAIRS} parts were damaged one after another; look at the disk below {}",
            self.store.url
        )))
    }

    /// Removes a damaged part, so that the tables that contain it are no longer fresh.
    fn discard(&self, lost: Error) -> Result<()> {
        let Error::Lost { digest, message } = lost else { return Err(lost) };
        self.log.say("store", format!("{message}: it is computed again"));
        self.overrides().lost.insert(digest);
        self.store.discard(digest)
    }

    /// Brings the chosen tables up to date, in the order of the file and as many side by side as there are workers.
    /// After an error no further tables are started, and those that are running are finished.
    fn tables(&self) -> Result<u64> {
        let Found { views: mut states, damaged } = published(self.pipeline, self.store)?;
        let chosen = self.pipeline.tables.iter().filter(|table| self.options.tables.contains(&table.name));
        let mut waiting: Vec<&Table> = chosen.collect();
        let mut unmade: BTreeSet<&str> = waiting.iter().map(|table| table.name.as_str()).collect();
        let limit = self.workers.slots().max(1);
        let (say, ended) = mpsc::channel();
        std::thread::scope(|scope| {
            let (mut running, mut errors, mut failure) = (0, 0, None);
            loop {
                while failure.is_none() && running < limit {
                    let is_ready =
                        |table: &Table| table.inputs.iter().all(|input| !unmade.contains(input.table.as_str()));
                    let Some(at) = waiting.iter().position(|table| is_ready(table)) else { break };
                    let table = waiting.remove(at);
                    let seen = seen_by(table, &states);
                    let (say, damaged) = (say.clone(), damaged.get(&table.name));
                    running += 1;
                    let make = move || {
                        let made = catch_unwind(AssertUnwindSafe(|| self.bring_up_to_date(table, &seen, damaged)));
                        _ = say.send((table, made));
                    };
                    // A table that nothing runs beside needs no thread of its own, which would cost a run in which
                    // nothing changed half a millisecond a table.
                    if running == 1 && !waiting.iter().any(|table| is_ready(table)) {
                        make();
                        break;
                    }
                    if let Err(error) = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, make) {
                        running -= 1;
                        failure = Some(error.into());
                    }
                }
                let next = if running > 0 { ended.recv().ok() } else { None };
                let Some((table, made)) = next else { return failure.map_or(Ok(errors), Err) };
                running -= 1;
                match made.unwrap_or_else(|panic| resume_unwind(panic)) {
                    Ok(state) => {
                        errors += state.manifest.errors.len() as u64;
                        TableState::replace(&mut states, &table.name, state);
                        unmade.remove(table.name.as_str());
                    }
                    Err(error) => {
                        if running > 0 && !matches!(error, Error::Interrupted) {
                            self.log.say(&table.name, format!("{error}; waiting for the tables under way"));
                        }
                        let is_first = matches!(failure, None | Some(Error::Interrupted));
                        failure = if is_first { Some(error) } else { failure };
                    }
                }
            }
        })
    }

    /// Makes a table if it is not fresh, and logs its notes. `damaged` is the published version and the defect of
    /// its manifest, if that is damaged.
    fn bring_up_to_date(
        &self,
        table: &Table,
        states: &TableStates,
        damaged: Option<&(u64, String)>,
    ) -> Result<TableState> {
        if let Some((_, message)) = damaged {
            self.log.say(&table.name, format!("{message}: it is published again"));
        }
        let state = self.table(table, states, damaged.is_some())?;
        if let Some((version, _)) = damaged {
            self.store.delete_version(&self.pipeline.name, &table.slot(), *version)?;
        }
        for note in &state.manifest.notes {
            self.log.add(Event::Note { table: table.name.clone(), message: note.to_string() });
        }
        // If the tables are gone over again, this table is no longer forced or lost.
        let mut overrides = self.overrides();
        overrides.force.retain(|name| *name != table.name);
        state.manifest.objects().for_each(|digest| {
            overrides.lost.remove(&digest);
        });
        Ok(state)
    }

    /// Brings one table up to date.
    fn table(&self, table: &Table, states: &TableStates, damaged: bool) -> Result<TableState> {
        let overrides = self.overrides().clone();
        let planner =
            Planner { store: self.store, sources: self.sources, overrides: &overrides, inventory: &self.inventory };
        let fresh = |state: &TableState| Event::TableFresh {
            table: table.name.clone(),
            stage: table.kind.name.to_owned(),
            slot: table.slot(),
            version: state.version,
            rows: state.manifest.rows,
        };
        let Some(identified) = planner.identify(table, states)? else {
            let state = states[&table.name].clone();
            self.log.add(fresh(&state));
            return Ok(state);
        };
        let wait = &mut || self.log.say(&table.name, "another run computes it; waiting for that");
        let _lock = self.store.lock(identified.stage_key, wait)?;
        // Another run may have published the same table meanwhile.
        if let Current::Whole(version, manifest) = self.store.published(&self.pipeline.name, &table.slot())? {
            let state = TableState::new(version, *manifest);
            let is_new = states.get(&table.name).is_none_or(|before| before.version != version);
            if is_new && identified.is(&state.manifest) && planner.trusts(table, &state.manifest)? {
                self.log.add(fresh(&state));
                return Ok(state);
            }
        }
        let work = identified.complete(&planner, states)?;
        let causes = if damaged { vec![Cause::Damaged] } else { explain(&work, &planner, states)? };
        self.make(work, &causes, states)
    }

    /// Computes the stale rows of a table and publishes it. The caller holds the lock on the stage's results.
    fn make(&self, mut work: TableWork<'_>, causes: &[Cause], states: &TableStates) -> Result<TableState> {
        let started = Instant::now();
        let table = work.table;
        let (name, stage, slot) = (table.name.clone(), table.kind.name.to_owned(), table.slot());
        self.log.add(Event::TableStarted {
            table: name.clone(),
            stage: stage.clone(),
            slot: slot.clone(),
            stale: work.stale.len() as u64,
            rows: work.total(),
            reasons: causes.iter().map(ToString::to_string).collect(),
        });
        for lost in work.lost.iter().take(MAX_LOST_SHOWN) {
            self.log.say(&name, format!("{lost} is damaged or missing: it is computed again"));
        }
        for record in &work.damaged {
            self.log.say(&name, format!("{record} does not match its digest: its rows are computed again"));
            self.store.delete(record)?;
        }
        // The log is saved first, so that a clean-up that begins now finds the versions that this run uses.
        self.log.save()?;
        if work.forced {
            self.store.delete(&state_name(work.stage_key))?;
        }
        let (mut computed, mut bytes) = (0, 0);
        let mut preview = Preview::new(self.store, &self.pipeline.name, &slot);
        if !work.stale.is_empty() {
            let Self { store, options, workers, log, .. } = *self;
            let computation = Computation { store, options, workers, run: &self.run, log };
            let entries = computation.compute(&work, states, &mut preview).map_err(|e| e.in_table(&name))?;
            computed = entries.iter().map(|entry| entry.contents.len() as u64).sum();
            bytes = entries.iter().map(|entry| entry.bytes).sum();
            let failures: Vec<_> = entries.iter().flat_map(|entry| &entry.errors).collect();
            if table.on_error == OnError::Fail && !failures.is_empty() {
                let errors = failures.iter().take(MAX_FAILURES_SHOWN);
                let errors = errors.map(|e| (e.id.clone(), e.message.clone())).collect();
                return Err(Error::Rows { table: name, errors, total: failures.len() });
            }
            work.known.extend(entries);
        }
        self.compact(&mut work)?;
        let mut manifest = work.manifest(&self.run);
        let review = table.stage.review(&work.sample(self.store, states, &manifest));
        manifest.notes.extend(review.map_err(|e| e.in_table(&name))?);
        let version = self.store.publish(&self.pipeline.name, &manifest)?;
        self.log.add(Event::TablePublished {
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
        self.log.save()?;
        Ok(TableState::new(version, manifest))
    }

    /// Rewrites the small parts of a table that has many. What is not known of its rows' results stays as it is.
    fn compact(&self, work: &mut TableWork<'_>) -> Result<()> {
        if !work.table.is_keyed() {
            return Ok(());
        }
        let (parts, schema) = (work.parts(), stored_schema(&work.table.output, true));
        let compacted = self.store.compact(work.stage_key, &work.known, &parts, &schema)?;
        work.take_over(&compacted);
        Ok(())
    }
}

/// Returns the states that are needed to plan a table: its own, those of its inputs and of its model.
fn seen_by(table: &Table, states: &TableStates) -> TableStates {
    let names = table.inputs.iter().map(|input| &input.table).chain(&table.model).chain([&table.name]);
    names.filter_map(|name| Some((name.clone(), states.get(name)?.clone()))).collect()
}
