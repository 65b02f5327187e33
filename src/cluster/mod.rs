//! Runs over several machines, by Ballista.
//!
//! A driver cuts a table into tasks as it does for its own workers, writes them to the store as a *job*, and submits a plan to
//! the scheduler in which each task is a partition. Ballista decides which executor takes which task, and again which one does
//! if an executor is lost. An executor reads its task from the store, commits rows there as a local worker does, and writes an
//! answer beside the task. The driver takes the answers from the store and never from the plan's result: rows that were
//! committed are kept whatever happens to the job, and tasks without an answer are lost, as those of a dead worker are.
//!
//! | file | what it knows |
//! |---|---|
//! | `job.rs` | a job in the store: tasks, answers, the driver's sign of life |
//! | `node.rs` | the plan: a node over a scan of tickets, and how it travels |
//! | `driver.rs`, `submitted.rs`, `client.rs` | the executor of tasks that a run uses; what it knows of a job; the scheduler as its client sees it |
//! | `scheduler.rs`, `executor.rs` | the two programs |
//! | `slot.rs`, `files.rs` | what an executor does with a ticket; weights that its machine lacks |
//! | `security.rs`, `build_id.rs` | TLS and the token; which build a program is |

mod build_id;
mod client;
mod driver;
mod executor;
mod files;
mod job;
mod node;
mod scheduler;
mod security;
mod slot;
mod submitted;

pub use build_id::build_id;
pub use driver::Cluster;
pub use executor::{ExecutorOptions, execute};
pub use scheduler::{SchedulerOptions, schedule};
pub use security::Security;
