//! Training: the loop that all trained networks share, its optimisers, and the rows that it reads.
//!
//! A training is a function of its parameters, its rows and a loss. All that outlives a step goes to a [`Journal`]: the
//! saved state from which an interrupted training continues bit for bit, the log, and the weights.

mod config;
mod error;
mod journal;
mod learned;
mod log;
pub mod optim;
mod rows;
mod run;
mod state;
mod step;

pub use config::{LrScheduler, MEMORY, MicroBatch, Training, TrainingChanges};
pub use error::TrainingError;
pub use journal::Journal;
pub use learned::Judge;
pub use log::LogRow;
pub use rows::TrainingRows;
pub use run::{LoggedLoss, TrainingRun};
pub use step::{Gradients, Loss, Trainer, step};
