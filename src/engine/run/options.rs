//! What to run and how.

use std::{collections::BTreeSet, time::Duration};

use super::executor::Settings;
use crate::engine::{Stop, plan::Overrides};

/// What to run and how.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// How tasks compute that run in the driver.
    pub settings: Settings,
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
