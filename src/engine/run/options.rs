//! What to run and how.

use std::{collections::BTreeSet, time::Duration};

use crate::engine::{
    Result, Stop,
    plan::Overrides,
    stage::{Report, Task},
    store::Entry,
};

/// Computes tasks of stages that the driver cannot open.
pub trait Remote {
    /// Runs one task to its end.
    fn run(&mut self, task: Task, report: &mut dyn FnMut(Report)) -> Result<Vec<Entry>>;
}

/// What to run and how.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where operators compute: `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// Rows that a network sees at once; absent: what the stage takes.
    pub batch_size: Option<usize>,
    /// Rows per task.
    pub task_rows: usize,
    /// How often training saves its state.
    pub save_every: Duration,
    /// The tables to bring up to date, by name.
    pub tables: BTreeSet<String>,
    /// What not to take for fresh.
    pub overrides: Overrides,
    /// Asks the run to stop.
    pub stop: Stop,
    /// Check every published part and blob against its digest.
    pub verify: bool,
    /// The commit of the folder that the run was started in.
    pub git_commit: Option<String>,
    /// The machine.
    pub host: String,
}

/// What a run did.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// The run's id.
    pub run: String,
    /// Rows left out because they failed, over all tables.
    pub errors: u64,
}
