//! The place where a training keeps what outlives a step.

use std::time::Duration;

use bytes::Bytes;
use tch::TchError;

use super::{error::TrainingError, log::LogRow};

/// Keeps the state, the weights and the log of a training, and tells it when to stop.
pub trait Journal {
    /// The error of an operation, and of the loss on a batch.
    type Error: From<TrainingError> + From<TchError>;

    /// Returns the state that an interrupted training of the same work saved.
    fn saved(&mut self) -> Result<Option<Bytes>, Self::Error>;

    /// Saves the state, which replaces the one saved before.
    fn save(&mut self, state: Vec<u8>) -> Result<(), Self::Error>;

    /// Returns the time between two saved states.
    fn save_every(&self) -> Duration;

    /// Returns true if a stop was requested. The training then saves its state and returns
    /// [`TrainingError::Interrupted`].
    fn is_interrupted(&self) -> bool;

    /// Keeps a file of weights. Returns its name.
    fn keep(&mut self, weights: Vec<u8>) -> Result<String, Self::Error>;

    /// Takes over weights that an interrupted training kept. Returns true if all of them still exist.
    fn take_over(&mut self, names: &[&str]) -> Result<bool, Self::Error>;

    /// Reports that `step` of `steps` is done; the first report is that of the step from which the training goes on.
    fn progress(&mut self, step: u64, steps: u64);

    /// Shows the log so far.
    fn show(&mut self, log: &[LogRow]) -> Result<(), Self::Error>;

    /// Sends a message to the user.
    fn say(&mut self, message: String);

    /// Records a note on the training, which stays with its result.
    fn warn(&mut self, note: &str);
}
