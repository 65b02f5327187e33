//! The messages between the driver and a worker process, as lines of JSON. The worker reads tasks and requests to
//! stop, and writes reports followed by the answer.

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
    /// The progress of the task.
    Report(Report),
    /// The task is done.
    Done(Vec<Entry>),
    /// The task failed.
    Failed(TaskError),
}
