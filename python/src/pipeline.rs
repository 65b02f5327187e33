//! Pipelines: their plans, their runs, and verdicts by them.

use std::{
    collections::BTreeSet,
    num::NonZero,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use pyo3::{prelude::*, pybacked::PyBackedBytes};
use vlmdiff::{
    driver::{self, Execution, Lines, NamedPipeline, Predicted, Progress},
    engine::{
        self, Error, Stop,
        pipeline::Selection,
        plan::Overrides,
        source::Sources,
        store::{Event, Store, history},
    },
    inspect::{self, Pixels},
    query::output::printable,
};

use crate::{
    errors::{InputError, exception},
    threads::{quietly, work},
};

/// The tables that are chosen, and results that do not count as fresh.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Chosen {
    targets: Vec<String>,
    until: Option<String>,
    force: Vec<String>,
    retry_errors: bool,
}

impl Chosen {
    fn tables(&self, pipeline: &engine::pipeline::Pipeline) -> engine::Result<(BTreeSet<String>, Overrides)> {
        let selection = Selection { targets: self.targets.clone(), until: self.until.iter().cloned().collect() };
        driver::select(pipeline, &selection, &self.force, self.retry_errors)
    }
}

/// The way in which a pipeline is run.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct How {
    devices: Vec<String>,
    workers: Option<NonZero<u16>>,
    threads: Option<NonZero<u16>>,
    batch_size: Option<NonZero<u32>>,
    task_rows: Option<NonZero<u32>>,
    save_every: f64,
    verify: bool,
    tag: Option<String>,
    worker: PathBuf,
}

impl How {
    fn execution(&self) -> engine::Result<Execution> {
        let no_time = |_| {
            Error::Input(format!("`save_every` is {}; a number of seconds, 0 or more, would work", self.save_every))
        };
        Ok(Execution {
            devices: self.devices.iter().map(|name| device(name)).collect::<Result<_, _>>()?,
            workers: self.workers.map(NonZero::get),
            threads: self.threads.map(NonZero::get),
            batch_size: self.batch_size.map(NonZero::get),
            task_rows: self.task_rows.map(NonZero::get),
            save_every: Duration::try_from_secs_f64(self.save_every).map_err(no_time)?,
            verify: self.verify,
        })
    }
}

fn device(name: &str) -> engine::Result<String> {
    driver::device(name).map_err(|error| Error::Input(error.to_string()))
}

/// A pipeline with its store.
#[pyclass(frozen, module = "vlmdiff._vlmdiff")]
pub(crate) struct Pipeline {
    named: NamedPipeline,
    pipeline: engine::pipeline::Pipeline,
    store: Store,
}

#[pymethods]
impl Pipeline {
    #[new]
    fn new(
        py: Python<'_>,
        file: PathBuf,
        sets: Vec<String>,
        only: Vec<String>,
        store: Option<String>,
    ) -> PyResult<Self> {
        let named = NamedPipeline { file, sets, only, store };
        let (pipeline, store) = quietly(py, &Stop::default(), || named.open())?;
        Ok(Self { named, pipeline, store })
    }

    /// The name.
    #[getter]
    fn name(&self) -> &str {
        &self.pipeline.name
    }

    /// The address of the store.
    #[getter]
    fn store(&self) -> &str {
        &self.store.url
    }

    /// The names of the tables, from top to bottom.
    #[getter]
    fn tables(&self) -> Vec<&str> {
        self.pipeline.tables.iter().map(|table| table.name.as_str()).collect()
    }

    /// Returns for each chosen table its plan as JSON, and the same in words.
    fn plan(&self, py: Python<'_>, chosen: Chosen, verify: bool) -> PyResult<Vec<(String, String)>> {
        quietly(py, &Stop::default(), || {
            let (tables, overrides) = chosen.tables(&self.pipeline)?;
            let sources = Sources::new(verify);
            let plans = driver::plan(&self.pipeline, &self.store, &sources, (&tables, &overrides))?;
            plans.iter().map(|plan| Ok((json(plan)?, driver::describe(&plan.state)))).collect()
        })
    }

    /// Brings the chosen tables up to date. Returns the run's id. `say` is called with lines about its progress if it is
    /// given, and `hear` with each event as JSON; `terminal` is true if standard error is a terminal.
    fn run(
        &self,
        py: Python<'_>,
        chosen: Chosen,
        how: How,
        say: Option<Py<PyAny>>,
        terminal: bool,
        hear: Py<PyAny>,
    ) -> PyResult<String> {
        let prepared = || -> engine::Result<_> {
            how.tag.as_deref().map(history::check_tag).transpose()?;
            Ok((chosen.tables(&self.pipeline)?, how.execution()?))
        };
        let ((tables, overrides), execution) = prepared().map_err(exception)?;
        let mut progress = Progress::new(&tables, say.map_or_else(Lines::none, |say| lines(say, terminal)));
        let stop = Stop::default();
        let show = |py: Python<'_>, event: Event| {
            progress.show(&event);
            hear.call1(py, (json(&event).map_err(exception)?,)).map(drop)
        };
        work(py, &stop, show, |said| {
            execution.make_pool();
            let workers = execution.workers(&self.store, how.worker.clone(), &stop);
            let options = execution.options(&self.named.file, tables, overrides, stop.clone());
            let sources = Sources::new(how.verify);
            let tell = &mut |event: &Event| _ = said.send(event.clone());
            let summary = engine::run::run(&self.pipeline, &self.store, &sources, &options, &workers, tell)?;
            if let Some(tag) = &how.tag {
                history::tag(&self.store, tag, &summary.run)?;
            }
            Ok(summary.run)
        })
    }

    /// Prepares the pipeline to judge new photographs.
    fn inspector(
        &self,
        py: Python<'_>,
        decisions: Option<String>,
        device_name: &str,
        worker: PathBuf,
    ) -> PyResult<Inspector> {
        let (stop, name) = (Stop::default(), format!("{}_predict", self.pipeline.name));
        let inspector = quietly(py, &stop, || {
            let device = device(device_name)?;
            driver::inspector(&self.named, (&self.pipeline, &self.store), name, decisions, &device, worker, &stop)
        })?;
        Ok(Inspector { inspector: Mutex::new(inspector), stop })
    }
}

/// Returns lines that a function of Python shows.
fn lines(say: Py<PyAny>, terminal: bool) -> Lines {
    // A line that cannot be shown, as on a closed output, does not end the work.
    Lines::new(terminal, move |line| _ = Python::attach(|py| say.call1(py, (&*printable(line),))))
}

fn json(value: &impl serde::Serialize) -> engine::Result<String> {
    serde_json::to_string(value).map_err(|error| Error::Io(error.into()))
}

/// The argument that gives the class of photographs, for messages.
const CLASS_NAME: &str = "`class_name=`";

/// A pipeline that judges new photographs; its worker stays loaded.
#[pyclass(frozen, module = "vlmdiff._vlmdiff")]
pub(crate) struct Inspector {
    inspector: Mutex<inspect::Inspector>,
    stop: Stop,
}

#[pymethods]
impl Inspector {
    /// Returns a JSON object for each photograph.
    fn predict(&self, py: Python<'_>, photographs: Vec<PathBuf>, class_name: Option<String>) -> PyResult<Vec<String>> {
        self.judge(py, |inspector| {
            let class = |listed: Option<&str>| inspector.class(listed.or(class_name.as_deref()), CLASS_NAME);
            driver::predict(inspector, &photographs, &class, &mut |_| {})
        })
    }

    /// Returns a JSON object for each picture in memory, of which width, height and bytes are given.
    fn predict_pixels(
        &self,
        py: Python<'_>,
        pictures: Vec<(u32, u32, PyBackedBytes)>,
        class_name: Option<String>,
    ) -> PyResult<Vec<String>> {
        self.judge(py, |inspector| {
            let class = inspector.class(class_name.as_deref(), CLASS_NAME)?;
            let pixels = pictures.iter().map(|(width, height, bytes)| Pixels { width: *width, height: *height, bytes });
            driver::predict_pixels(inspector, &pixels.collect::<Vec<_>>(), &class, &mut |_| {})
        })
    }
}

impl Inspector {
    /// Returns verdicts as JSON objects.
    fn judge(
        &self,
        py: Python<'_>,
        judge: impl FnOnce(&inspect::Inspector) -> engine::Result<Predicted> + Send,
    ) -> PyResult<Vec<String>> {
        if self.stop.is_requested() {
            return Err(InputError::new_err(
                "this inspector was interrupted; make another one by `pipeline.inspector()`",
            ));
        }
        quietly(py, &self.stop, || {
            let inspector = self.inspector.lock().unwrap_or_else(PoisonError::into_inner);
            judge(&inspector)?.json(inspector.model())
        })
    }
}
