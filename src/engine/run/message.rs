//! What the driver and a worker process say to each other, in lines of JSON: a task, or the word to stop, in; reports, then the
//! answer, out.

use serde::{Deserialize, Serialize};

use crate::engine::{
    stage::{Report, TaskError},
    store::Entry,
};

/// The line that asks a worker to stop.
pub(super) const STOP: &str = "stop";

/// A line of a worker.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    /// How far the task is.
    Report(Report),
    /// The task is done.
    Done(Vec<Entry>),
    /// The task failed.
    Failed(TaskError),
}
