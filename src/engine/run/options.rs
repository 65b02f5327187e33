//! Options of a run.

use std::{collections::BTreeSet, time::Duration};

use super::executor::Settings;
use crate::engine::{Stop, plan::Overrides};

/// Options of a run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Settings of the tasks that run in the driver.
    pub settings: Settings,
    /// Rows per task. `None`: 256, and 4,096 where a row takes microseconds.
    pub task_rows: Option<usize>,
    /// The interval at which training saves its state.
    pub save_every: Duration,
    /// The tables to bring up to date, by name.
    pub tables: BTreeSet<String>,
    /// Tables and parts that do not count as fresh.
    pub overrides: Overrides,
    /// Asks the run to stop.
    pub stop: Stop,
    /// True if every published part and blob is checked against its digest.
    pub verify: bool,
    /// The commit of the folder that the run was started in.
    pub git_commit: Option<String>,
    /// The machine.
    pub host: String,
    /// The devices of networks, for the log.
    pub device: String,
    /// The pipeline by which new photographs are judged, for the log; `None` for a run of a pipeline file.
    pub judges_by: Option<String>,
}

/// The result of a run.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// The run's id.
    pub run: String,
    /// Rows left out because they failed, over all tables.
    pub errors: u64,
}
