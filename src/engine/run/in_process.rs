//! Runs tasks in this process.

use std::{collections::BTreeMap, sync::Arc};

use arrow::datatypes::SchemaRef;

use super::executor::{Executor, Settings, Update};
use crate::engine::{
    Error, Result, Stop,
    arrow_schema::decode_schema,
    source::Sources,
    stage::{Context, Job, OpenFn, Operator, Report, Rows, Schemas, Sink, Task},
    store::{Entry, Store, in_order, read_table},
};

/// Opens operators and runs tasks, keeping the last opened operator.
pub(super) struct Runner {
    store: Store,
    stop: Stop,
    settings: Settings,
    opened: Option<(Job, Box<dyn Operator>)>,
}

impl Runner {
    /// Makes a runner on a store. A request to stop ends its task early.
    pub(super) fn new(store: Store, stop: Stop, settings: Settings) -> Self {
        Self { store, stop, settings, opened: None }
    }

    /// Runs one task to its end. The rows that it committed before an error stay in the store.
    pub(super) fn run(&mut self, task: Task, open: OpenFn, report: &mut dyn FnMut(Report)) -> Result<Vec<Entry>> {
        if self.opened.as_ref().is_none_or(|(job, _)| *job != task.job) {
            self.opened = None;
            let context = self.context(&task.job)?;
            let operator = open(&task.job.params, &context)?;
            for (address, digest) in &task.job.files {
                if context.sources.digest(address)? != *digest {
                    return Err(Error::Input(format!("{address} has changed since the run began; run again")));
                }
            }
            self.opened = Some((task.job.clone(), operator));
        }
        let Some((_, operator)) = &mut self.opened else { return Ok(Vec::new()) };
        let task = Arc::new(task);
        let mut sink = Sink::new(&task, &self.store, &self.stop, report)?;
        let mut rows = Rows::start(task.clone(), self.store.clone())?;
        operator.run(&mut rows, &mut sink)?;
        sink.finish()
    }

    /// Drops the operator.
    pub(super) fn close(&mut self) {
        self.opened = None;
    }

    fn context(&self, job: &Job) -> Result<Context> {
        let all = job.input_schemas.iter().map(|(port, schema)| Ok((port.clone(), decode_schema(schema)?)));
        let all: BTreeMap<String, SchemaRef> = all.collect::<Result<_>>()?;
        let tables = job.tables.iter().map(|input| {
            let schema = decode_schema(&input.schema)?;
            let columns: Vec<String> = schema.fields().iter().map(|f| f.name().clone()).collect();
            let declared = all.get(&input.port).unwrap_or(&schema);
            let read = |columns: &[String], schema: &SchemaRef| read_table(&self.store, &input.parts, columns, schema);
            Ok((input.port.clone(), in_order(input.keyed, declared, &columns, read)?))
        });
        let by_row = job.row_schemas.iter().map(|(port, _)| port.clone()).collect();
        Ok(Context {
            device: self.settings.device.clone(),
            batch_size: self.settings.batch_size,
            output: decode_schema(&job.output)?,
            tables: tables.collect::<Result<_>>()?,
            model: job.model,
            schemas: Schemas { all, by_row },
            store: self.store.clone(),
            sources: Sources::new(self.settings.verify),
        })
    }
}

/// Runs the tasks of one table in this process, one after the other.
pub struct InProcess {
    store: Store,
    stop: Stop,
    settings: Settings,
    open: OpenFn,
}

impl InProcess {
    /// Makes an executor for the stage that `open` opens.
    pub fn new(store: Store, stop: Stop, settings: Settings, open: OpenFn) -> Self {
        Self { store, stop, settings, open }
    }
}

impl Executor for InProcess {
    fn slots(&self) -> usize {
        1
    }

    fn run(
        &self,
        tasks: &mut dyn Iterator<Item = Result<Task>>,
        on: &mut dyn FnMut(Update) -> Result<()>,
    ) -> Result<()> {
        let mut runner = Runner::new(self.store.clone(), self.stop.clone(), self.settings.clone());
        for (number, task) in tasks.enumerate() {
            let mut said = Ok(());
            let entries = runner.run(task?, self.open, &mut |report| {
                if said.is_ok() {
                    said = on(Update::Report { task: number, report });
                }
            })?;
            said?;
            on(Update::Done { task: number, entries })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use arrow::datatypes::{DataType, Field, Schema};
    use serde_json::Value;

    use super::*;
    use crate::engine::{
        Digest, Secrets, encode_schema,
        stage::{Output, Rows, Sink},
    };

    /// An operator that writes its rows one by one and requests a stop at the second.
    struct Slow(Stop);

    impl Operator for Slow {
        fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
            while let Some(batch) = rows.next(1)? {
                if batch.ids == ["b"] {
                    self.0.request();
                }
                out.write_rows(&batch, Vec::new())?;
            }
            Ok(())
        }
    }

    fn keys(task: &Task, store: &Store) -> Vec<Digest> {
        store.computed(task.stage_key).unwrap().entries.into_iter().flat_map(|entry| entry.keys).collect()
    }

    #[test]
    fn interrupted_task_keeps_the_rows_that_are_done() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().to_str().unwrap()).unwrap();
        let schema = Arc::new(Schema::new(vec![Field::new("id", DataType::Utf8, false)]));
        let ids: Vec<String> = ["a", "b", "c"].map(str::to_owned).into();
        let job = Job {
            stage: "slow".into(),
            params: Value::Null,
            makes: Output::RowPerRow,
            output: encode_schema(&schema),
            input_schemas: Vec::new(),
            row_schemas: Vec::new(),
            tables: Vec::new(),
            model: None,
            files: Vec::new(),
            save_every: Duration::ZERO,
            secrets: Secrets::default(),
        };
        let task = |ids: &[String]| Task {
            job: job.clone(),
            stage_key: Digest::of(b"stage"),
            run: "run".into(),
            after: 0,
            keys: ids.iter().map(|id| Digest::of(id.as_bytes())).collect(),
            ids: ids.to_vec(),
            rows: Vec::new(),
            pieces: None,
            listed: None,
        };
        let stop = Stop::default();
        let mut runner = Runner::new(store.clone(), stop.clone(), Settings::default());
        runner.opened = Some((job.clone(), Box::new(Slow(stop))));
        let whole = task(&ids);
        let open: OpenFn = |_, _| unreachable!("it is open");
        let interrupted = runner.run(whole.clone(), open, &mut |_| {});
        assert!(matches!(interrupted, Err(Error::Interrupted)));
        assert_eq!(keys(&whole, &store), whole.keys[..2]);
        // The rest is one task of one row. It is done after that row and is therefore not interrupted.
        runner.run(task(&ids[2..]), open, &mut |_| {}).unwrap();
        assert_eq!(keys(&whole, &store), whole.keys);
    }
}
