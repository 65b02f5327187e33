//! Runs a pipeline: table by table, only what is stale, publishing each table when it is whole.

use std::{collections::BTreeMap, time::Instant};

use arrow::{array::UInt32Array, compute::take_record_batch};

use super::{
    Error, Result, Sources, Store,
    columns::stored_schema,
    encode_schema,
    event::{Event, Logged, now_ms},
    parts::project,
    pipeline::{OnError, Pipeline, Table},
    plan::{Need, Published, Work, examine, published},
    stage::Reads,
    store::{Entry, Manifest},
    task::{Executor, Job, Listed, PortRows, Report, SOURCE, TableInput, Task},
};

/// Computes tasks of stages that the driver cannot open.
pub trait Remote {
    /// Runs one task to its end.
    fn run(&mut self, task: Task, report: &mut dyn FnMut(Report)) -> Result<Vec<Entry>>;
}

/// How to run; none of it changes a result.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where operators compute: `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// Rows per task.
    pub task_rows: usize,
}

/// What a run did.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// The run's id.
    pub run: String,
    /// Rows computed, by table that was not fresh.
    pub computed: BTreeMap<String, u64>,
    /// Rows left out because they failed, over all tables.
    pub errors: u64,
}

/// Runs all stale tables of a pipeline.
pub fn run(
    pipeline: &Pipeline,
    store: &Store,
    sources: &Sources,
    options: &Options,
    remote: &mut dyn Remote,
    listener: &mut dyn FnMut(&Event),
) -> Result<Summary> {
    let run = format!("{:013}-{}", now_ms(), std::process::id());
    let mut log = Vec::new();
    let started = Instant::now();
    let mut emit = |event: Event| {
        listener(&event);
        // A run that computes nothing leaves no log of its bars.
        if !matches!(event, Event::Progress { .. }) {
            log.push(Logged { at_ms: now_ms(), event });
        }
    };
    emit(Event::RunStarted {
        run: run.clone(),
        pipeline: pipeline.name.clone(),
        store: store.url.clone(),
        pipeline_digest: String::new(),
        git_commit: None,
        host: String::new(),
    });
    let mut driver =
        Driver { pipeline, store, sources, options, remote, executor: Executor::new(store.clone()), run: run.clone() };
    let result = driver.tables(&mut emit);
    emit(Event::RunFinished {
        seconds: started.elapsed().as_secs_f64(),
        error: result.as_ref().err().map(ToString::to_string),
    });
    let lines: Vec<String> = log.iter().filter_map(|logged| serde_json::to_string(logged).ok()).collect();
    store.put(&format!("runs/{run}.jsonl"), lines.join("\n") + "\n")?;
    result.map(|summary| Summary { run, ..summary })
}

struct Driver<'a> {
    pipeline: &'a Pipeline,
    store: &'a Store,
    sources: &'a Sources,
    options: &'a Options,
    remote: &'a mut dyn Remote,
    executor: Executor,
    run: String,
}

impl Driver<'_> {
    fn tables(&mut self, emit: &mut dyn FnMut(Event)) -> Result<Summary> {
        let mut published = published(self.pipeline, self.store)?;
        let mut summary = Summary::default();
        for table in &self.pipeline.tables {
            match examine(table, self.store, self.sources, &published)? {
                Need::Nothing => {
                    let manifest = &published[&table.name];
                    summary.errors += manifest.errors.len() as u64;
                    emit(Event::TableFresh {
                        table: table.name.clone(),
                        slot: table.slot(),
                        version: 0,
                        rows: manifest.rows,
                    });
                }
                Need::Work(work) => {
                    let manifest = self.table(table, *work, &published, &mut summary, emit)?;
                    summary.errors += manifest.errors.len() as u64;
                    published.insert(table.name.clone(), manifest);
                }
            }
        }
        Ok(summary)
    }

    fn table(
        &mut self,
        table: &Table,
        mut work: Work,
        published: &Published,
        summary: &mut Summary,
        emit: &mut dyn FnMut(Event),
    ) -> Result<Manifest> {
        let started = Instant::now();
        let name = &table.name;
        emit(Event::TableStarted {
            table: name.clone(),
            stale: work.stale.len() as u64,
            rows: work.total(),
            reasons: work.reasons.clone(),
        });
        let mut computed = 0;
        if !work.stale.is_empty() {
            let entries = self.compute(table, &work, published, emit).map_err(|e| in_table(name, e))?;
            computed = entries.iter().map(|entry| entry.contents.len() as u64).sum();
            let failures: Vec<_> = entries.iter().flat_map(|entry| &entry.errors).collect();
            if table.on_error == OnError::Fail && !failures.is_empty() {
                let errors = failures.iter().take(10).map(|e| (e.id.clone(), e.message.clone())).collect();
                return Err(Error::Rows { table: name.clone(), errors, total: failures.len() });
            }
            work.known.extend(entries);
        }
        let (parts, errors, content) = if table.is_keyed() {
            work.known.choose(&work.keys)
        } else {
            let (parts, content) = work.known.whole();
            (parts, Vec::new(), content)
        };
        let manifest = Manifest {
            table: table.declared.clone(),
            variant: table.variant.clone(),
            blobs: Vec::new(),
            retired: false,
            stage: table.kind.name.to_owned(),
            revision: table.kind.revision,
            params: table.kind.identity(&*table.stage),
            files: work.files,
            fingerprint: work.fingerprint,
            inputs: work.inputs,
            filter: table.filter.as_ref().map(|f| f.text.clone()),
            schema: encode_schema(&stored_schema(&table.output, table.is_keyed())),
            keyed: table.is_keyed(),
            rows: parts.iter().map(super::store::PartRef::len).sum(),
            parts,
            content,
            errors,
            run: self.run.clone(),
            published_ms: now_ms(),
        };
        self.store.publish(&self.pipeline.name, &manifest)?;
        summary.computed.insert(name.clone(), computed);
        let seconds = started.elapsed().as_secs_f64();
        emit(Event::TablePublished {
            table: name.clone(),
            slot: table.slot(),
            version: 0,
            bytes: 0,
            rows: manifest.rows,
            computed,
            errors: manifest.errors.len() as u64,
            seconds,
        });
        Ok(manifest)
    }

    fn compute(
        &mut self,
        table: &Table,
        work: &Work,
        published: &Published,
        emit: &mut dyn FnMut(Event),
    ) -> Result<Vec<Entry>> {
        let job = self.job(table, work, published)?;
        let all: Vec<usize> = (0..work.ids.len()).collect();
        // A whole table is one task over all rows; else as many rows a task as asked for.
        let (rows, size) =
            if table.is_keyed() { (&work.stale, self.options.task_rows.max(1)) } else { (&all, all.len().max(1)) };
        let total = work.stale.len() as u64;
        let mut entries = Vec::new();
        let mut before = 0;
        let chunks: Vec<&[usize]> = if rows.is_empty() { vec![&[]] } else { rows.chunks(size).collect() };
        for chunk in chunks {
            let task = task(&job, work, chunk)?;
            let mut report = |report: Report| {
                let table = table.name.clone();
                emit(match report {
                    Report::Progress { done, unit, .. } if unit == "rows" && total > 0 => {
                        Event::Progress { table, done: before + done, total, unit }
                    }
                    Report::Progress { done, total, unit } => Event::Progress { table, done, total, unit },
                    Report::Committed { rows, bytes } => Event::PartCommitted { table, rows, bytes },
                    Report::Log { message } => Event::Log { table, message },
                });
            };
            let new = match table.kind.open_here {
                Some(open) => self.executor.run(task, open, &mut report)?,
                None => self.remote.run(task, &mut report)?,
            };
            for error in new.iter().flat_map(|entry| &entry.errors) {
                emit(Event::RowFailed {
                    table: table.name.clone(),
                    id: error.id.clone(),
                    message: error.message.clone(),
                    chain: Vec::new(),
                });
            }
            entries.extend(new);
            before += chunk.len() as u64;
        }
        Ok(entries)
    }

    fn job(&self, table: &Table, work: &Work, published: &Published) -> Result<Job> {
        let mut inputs = Vec::new();
        let mut schemas = Vec::new();
        let mut tables = Vec::new();
        for input in &table.inputs {
            let declared = self.pipeline.tables.iter().find(|above| above.name == input.table);
            inputs.extend(declared.map(|above| (input.port.clone(), encode_schema(&above.output))));
            let stored = published[&input.table].schema()?;
            let read = project(&stored, &input.columns)?;
            let schema = encode_schema(&read);
            match input.reads {
                Reads::Rows => schemas.push((input.port.clone(), schema)),
                Reads::Table => tables.push(TableInput {
                    port: input.port.clone(),
                    schema,
                    parts: published[&input.table].parts.clone(),
                }),
            }
        }
        schemas.extend(work.listed.as_ref().map(|batch| (SOURCE.to_owned(), encode_schema(batch.schema_ref()))));
        Ok(Job {
            stage: table.kind.name.to_owned(),
            params: table.stage.params(),
            makes: table.makes(),
            output: encode_schema(&table.output),
            inputs,
            schemas,
            tables,
            device: self.options.device.clone(),
        })
    }
}

fn task(job: &Job, work: &Work, chunk: &[usize]) -> Result<Task> {
    let rows = work.places.iter().map(|places| {
        // Only the parts that the chunk touches travel with it.
        let mut parts = Vec::new();
        let mut numbers = BTreeMap::new();
        let at = chunk.iter().map(|i| {
            let (part, row) = places.at[*i];
            let number = *numbers.entry(part).or_insert_with(|| {
                parts.push(places.parts[part as usize]);
                parts.len() as u32 - 1
            });
            (number, row)
        });
        let at = at.collect();
        PortRows { port: places.port.clone(), parts, places: at }
    });
    let listed = match &work.listed {
        Some(batch) => {
            let indices = UInt32Array::from_iter_values(chunk.iter().map(|i| *i as u32));
            Some(Listed::pack(&take_record_batch(batch, &indices)?)?)
        }
        None => None,
    };
    Ok(Task {
        job: job.clone(),
        stage_key: work.stage_key,
        ids: chunk.iter().map(|i| work.ids[*i].clone()).collect(),
        keys: if work.keys.is_empty() { Vec::new() } else { chunk.iter().map(|i| work.keys[*i]).collect() },
        rows: rows.collect(),
        listed,
    })
}

fn in_table(table: &str, error: Error) -> Error {
    match error {
        Error::Input(message) => Error::Input(format!("table `{table}`: {message}")),
        Error::Stage(message) => Error::Stage(format!("table `{table}`: {message}")),
        Error::Worker(message) => Error::Worker(format!("table `{table}`: {message}")),
        other => other,
    }
}
