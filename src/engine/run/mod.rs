//! Runs: what is stale is computed, task by task, and published.

mod driver;
mod in_process;
mod options;
mod tasks;
mod worker;

pub use driver::run;
pub use in_process::Executor;
pub use options::{Options, Remote, Summary};
pub use worker::{Worker, serve};
