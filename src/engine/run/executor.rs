//! Executors: where the tasks of a table run.

use serde::{Deserialize, Serialize};

use crate::engine::{
    Result,
    stage::{Report, Task},
    store::Entry,
};

/// How tasks compute, which is no part of their results but for the last digits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Where networks compute: `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// Rows that a network sees at once; absent: what the stage takes.
    pub batch_size: Option<usize>,
    /// Hash every file outside the store, also those that seem unchanged.
    pub verify: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { device: "cpu".into(), batch_size: None, verify: false }
    }
}

/// What becomes of a task, which is numbered by its place among the tasks of one call of [`Executor::run`].
#[derive(Debug)]
pub enum Update {
    /// It says how far it is.
    Report {
        /// The task.
        task: usize,
        /// What it says.
        report: Report,
    },
    /// It is done, and these are the descriptions of what it wrote.
    Done {
        /// The task.
        task: usize,
        /// The parts that it committed, and rows that failed.
        entries: Vec<Entry>,
    },
    /// Its answer is lost, as the process that ran it died. The store tells what of it was computed.
    Lost {
        /// The task.
        task: usize,
        /// How the process ended.
        death: Death,
    },
}

/// How a worker process ended that was not asked to.
#[derive(Clone, Debug)]
pub struct Death {
    /// The status in words, such as `signal: 9 (SIGKILL)`.
    pub status: String,
    /// Whether the system killed it, as it does where memory runs out.
    pub is_killed: bool,
}

/// Runs the tasks of tables, several at once.
///
/// # Contract
/// - Each task that is taken from `tasks` ends in one [`Update::Done`], one [`Update::Lost`], or the error of the call.
/// - `on` is called on the thread of the caller. Updates of one task come in order; those of several may come in any.
/// - After an error, of a task, of `tasks` or of `on`, no more tasks are taken; those that run are waited for, and the first error
///   is returned. What they committed stays in the store.
/// - Calls from several threads share the slots.
pub trait Executor: Sync {
    /// The number of tasks that run at once.
    fn slots(&self) -> usize;

    /// Runs tasks to their ends.
    fn run(
        &self,
        tasks: &mut dyn Iterator<Item = Result<Task>>,
        on: &mut dyn FnMut(Update) -> Result<()>,
    ) -> Result<()>;
}
