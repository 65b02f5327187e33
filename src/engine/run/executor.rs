//! Executors: where the tasks of a table run.

use serde::{Deserialize, Serialize};

use crate::engine::{
    Result,
    plan::TableWork,
    stage::{Report, Task},
    store::Entry,
};

/// Settings of the computation that change results in the last digits at most.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The device of networks: `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// Rows per batch of a network; if absent, the default of the stage.
    pub batch_size: Option<usize>,
    /// True if every file outside the store is hashed, including those that seem unchanged.
    pub verify: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { device: "cpu".into(), batch_size: None, verify: false }
    }
}

/// News of a task, which is numbered by its place among the tasks of one call of [`Executor::run`].
#[derive(Debug)]
pub enum Update {
    /// The task reports its progress.
    Report {
        /// The task.
        task: usize,
        /// The report.
        report: Report,
    },
    /// The task is done.
    Done {
        /// The task.
        task: usize,
        /// The parts that it committed, and rows that failed.
        entries: Vec<Entry>,
    },
    /// The answer of the task is lost, because its process died. The store has the rows that it committed.
    Lost {
        /// The task.
        task: usize,
        /// The way the process ended.
        death: Death,
    },
}

/// The unexpected end of a worker process.
#[derive(Clone, Debug)]
pub struct Death {
    /// The status in words, such as `signal: 9 (SIGKILL)`.
    pub status: String,
    /// True if the operating system killed it, as it does when memory runs out.
    pub is_killed: bool,
}

/// Runs the tasks of tables, several at once.
///
/// # Contract
/// - Each task that is taken from `tasks` ends in one [`Update::Done`], one [`Update::Lost`], or the error of the call.
/// - `on` is called on the thread of the caller. Updates of one task come in order; those of several may come in any.
/// - After an error, of a task, of `tasks` or of `on`, no more tasks are taken; those that run are waited for, and
///   the first error is returned. The rows that they committed stay in the store.
/// - Calls from several threads share the slots.
pub trait Executor: Sync {
    /// Returns the number of tasks that run at once.
    fn slots(&self) -> usize;

    /// Returns true if the executor takes this work although the driver could do it too. By default the driver does what it
    /// can.
    fn takes(&self, _work: &TableWork<'_>) -> bool {
        false
    }

    /// Runs tasks to their ends.
    fn run(
        &self,
        tasks: &mut dyn Iterator<Item = Result<Task>>,
        on: &mut dyn FnMut(Update) -> Result<()>,
    ) -> Result<()>;
}
