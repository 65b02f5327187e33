//! Runs single tasks, in this process or in a worker process, for a program that is handed tasks one by one.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
};

use super::{
    executor::{Death, Settings},
    in_process::Runner,
    worker::Worker,
};
use crate::engine::{
    Error, Result, Stop,
    stage::{OpenFn, Report, StageKind, Task},
    store::{Entry, Store},
};

/// Runs one task after the other. Stages that need libtorch run in a worker process, so that its crash ends a task and not
/// this program; the others run here.
pub struct Single {
    here: Runner,
    worker: Worker,
    kinds: &'static [StageKind],
}

impl Single {
    /// Makes a runner on a store. `program` is the path of `vlmdiff-worker`, which is started at its first task and may use so
    /// many threads. After a request to stop, tasks end early; another runner is then needed.
    pub fn new(
        store: &Store,
        program: PathBuf,
        settings: &Settings,
        threads: usize,
        kinds: &'static [StageKind],
        stop: &Stop,
    ) -> Self {
        Self {
            here: Runner::new(store.clone(), stop.clone(), settings.clone()),
            worker: Worker::new(store, program, settings.clone(), threads, stop),
            kinds,
        }
    }

    /// Runs a task to its end. The outer error is the death of the worker.
    pub fn run(&mut self, task: Task, report: &mut dyn FnMut(Report)) -> Result<Result<Vec<Entry>>, Death> {
        let open = match self.opened_here(&task) {
            Ok(Some(open)) => open,
            Ok(None) => return self.worker.run(&task, report),
            Err(error) => return Ok(Err(error)),
        };
        // The operator is dropped after a panic, as its state may be inconsistent.
        let run = AssertUnwindSafe(|| self.here.run(task, open, report));
        Ok(catch_unwind(run).unwrap_or_else(|_| {
            self.here.close();
            Err(Error::Stage("the stage panicked; its trace is in the output of the executor".into()))
        }))
    }

    /// Returns the function that opens the stage of a task in this process; `None` if a worker has to.
    fn opened_here(&self, task: &Task) -> Result<Option<OpenFn>> {
        let name = &task.job.stage;
        let kind = self.kinds.iter().find(|kind| kind.name == name);
        let kind = kind.ok_or_else(|| Error::Worker(format!("this program has no stage `{name}`")))?;
        if kind.open_here.is_none() {
            return Ok(None);
        }
        let stage = (kind.parse)(&task.job.params)
            .map_err(|error| Error::Worker(format!("parameters of `{name}` that cannot be read: {}", error.message)))?;
        Ok(kind.opened_here(&*stage))
    }
}
