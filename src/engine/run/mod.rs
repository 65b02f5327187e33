//! Runs: stale rows are computed, task by task, and the tables are published.

mod compute;
mod driver;
mod executor;
mod in_process;
mod log;
mod message;
mod options;
mod serve;
mod single;
mod tasks;
#[cfg(test)]
pub(in crate::engine) mod toys;
mod worker;
mod workers;

pub use driver::run;
pub use executor::{Death, Executor, Settings, Update};
pub use in_process::InProcess;
pub use options::{Options, Summary};
pub use serve::serve;
pub use single::Single;
pub use workers::Workers;
