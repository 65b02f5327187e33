//! The settings of running a pipeline: its tables, devices, workers and threads.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    engine::{
        Result, Stop,
        pipeline::{self, Pipeline, Selection},
        plan::Overrides,
        run::{self, Settings, Workers},
        store::Store,
    },
    models::device::{self, DeviceError},
};

/// The settings of computing the stale rows of a pipeline.
#[derive(Clone, Debug, PartialEq)]
pub struct Execution {
    /// The devices, as [`device()`](super::device()) returns them. Workers take them in turn.
    pub devices: Vec<String>,
    /// The number of workers; by default one for each device.
    pub workers: Option<u16>,
    /// The number of threads, which the workers share; by default [`default_threads`].
    pub threads: Option<u16>,
    /// The number of images that a network sees at once outside of training; by default that of each stage.
    pub batch_size: Option<u32>,
    /// The number of rows in a task; by default that of each stage.
    pub task_rows: Option<u32>,
    /// The time between two saved states of a training.
    pub save_every: Duration,
    /// True if every file and every stored part is read and checked.
    pub verify: bool,
}

impl Execution {
    /// Makes the pool of threads for the stages that need no worker. If this process has one already, it is used instead.
    pub fn make_pool(&self) {
        _ = rayon::ThreadPoolBuilder::new().num_threads(self.threads()).build_global();
    }

    /// Makes the workers, each of which is started at its first task. `program` is the path of `vlmdiff-worker`.
    pub fn workers(&self, store: &Store, program: PathBuf, stop: &Stop) -> Workers {
        Workers::new(store, program, self.settings(), self.threads(), stop)
    }

    /// Returns the options of a run of these tables; `file` is that of the pipeline.
    pub fn options(&self, file: &Path, tables: BTreeSet<String>, overrides: Overrides, stop: Stop) -> run::Options {
        run::Options {
            settings: self.settings().into_iter().next().unwrap_or_default(),
            task_rows: self.task_rows.map(|rows| rows as usize),
            save_every: self.save_every,
            tables,
            overrides,
            stop,
            verify: self.verify,
            git_commit: git_commit(file),
            host: gethostname::gethostname().to_string_lossy().into_owned(),
            device: self.devices.join(","),
            judges_by: None,
        }
    }

    fn threads(&self) -> usize {
        self.threads.map_or_else(default_threads, usize::from)
    }

    /// Returns the settings of each worker, taking the devices in turn.
    pub fn settings(&self) -> Vec<Settings> {
        let count = self.workers.map_or(self.devices.len(), usize::from);
        let batch_size = self.batch_size.map(|rows| rows as usize);
        let of = |device: &String| Settings { device: device.clone(), batch_size, verify: self.verify };
        self.devices.iter().cycle().take(count).map(of).collect()
    }
}

/// Returns the names of the selected tables, and what does not count as fresh: the tables of `force`, and with
/// `retry_errors` rows that failed and were left out.
pub fn select(
    pipeline: &Pipeline,
    selection: &Selection,
    force: &[String],
    retry_errors: bool,
) -> Result<(BTreeSet<String>, Overrides)> {
    pipeline::check(pipeline, force.iter())?;
    let overrides = Overrides { force: force.to_vec(), retry_errors, lost: BTreeSet::new() };
    Ok((selection.of(pipeline)?, overrides))
}

/// Checks the name of a device, and that the machine has a driver for it. Returns the device that it stands for.
pub fn device(name: &str) -> Result<String, DeviceError> {
    device::check(name).map(|()| device::on_this_machine(name).to_owned())
}

/// Returns the number of threads that libraries of numbers are told to use, or else that of the machine.
pub fn default_threads() -> usize {
    let told = std::env::var("OMP_NUM_THREADS").ok();
    // The variable may hold a number for each level of nested loops.
    let outermost = told.as_deref().and_then(|told| told.split(',').next()).and_then(|told| told.trim().parse().ok());
    outermost
        .filter(|threads| *threads > 0)
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// Returns the commit of the checkout with the pipeline file; `None` if there is none or git is not installed.
fn git_commit(pipeline: &Path) -> Option<String> {
    let folder = pipeline.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let output = std::process::Command::new("git").arg("-C").arg(folder).args(["rev-parse", "HEAD"]).output().ok()?;
    let commit = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !commit.is_empty()).then_some(commit)
}
