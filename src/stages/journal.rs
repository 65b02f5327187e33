//! The journal of a training in a table: its state lies in the store, and its log is the table's rows.

use std::{sync::Arc, time::Duration};

use arrow::{
    array::{ArrayRef, Float32Array, Int64Array, RecordBatch, StringArray},
    datatypes::SchemaRef,
};
use bytes::Bytes;

use super::tensors::checkpoint;
use crate::{
    engine::{
        Digest, Error, Result,
        source::scratch_folder,
        stage::{Sink, Unit},
    },
    training::{Journal, LogRow, LoggedLoss, MicroBatch, Training, TrainingError, TrainingRows, TrainingRun},
};

impl From<TrainingError> for Error {
    fn from(error: TrainingError) -> Self {
        match error {
            TrainingError::NoRows => Self::Input(error.to_string()),
            TrainingError::Diverged { .. } | TrainingError::Shape { .. } => Self::Stage(error.to_string()),
            TrainingError::Interrupted => Self::Interrupted,
            TrainingError::Damaged(_) => Self::Damaged(error.to_string()),
            TrainingError::Rows { ref source, .. } => Self::Io(std::io::Error::new(source.kind(), error.to_string())),
            TrainingError::Torch(error) => error.into(),
            TrainingError::Checkpoint(error) => checkpoint(error),
        }
    }
}

impl Journal for Sink<'_> {
    type Error = Error;

    fn saved(&mut self) -> Result<Option<Bytes>> {
        Sink::saved(self)
    }

    fn save(&mut self, state: Vec<u8>) -> Result<()> {
        Sink::save(self, state)
    }

    fn save_every(&self) -> Duration {
        Sink::save_every(self)
    }

    fn is_interrupted(&self) -> bool {
        Sink::is_interrupted(self)
    }

    fn keep(&mut self, weights: Vec<u8>) -> Result<String> {
        Ok(self.put_blob(weights)?.to_string())
    }

    fn take_over(&mut self, names: &[&str]) -> Result<bool> {
        match names.iter().map(|name| name.parse()).collect::<Result<Vec<Digest>, _>>() {
            Ok(blobs) => Sink::adopt_blobs(self, &blobs),
            Err(_) => Ok(false),
        }
    }

    fn progress(&mut self, step: u64, steps: u64) {
        Sink::progress(self, step, steps, Unit::Steps);
    }

    fn show(&mut self, log: &[LogRow]) -> Result<()> {
        if let Some(last) = log.last() {
            self.figure(format!("loss {:.4}", last.loss));
        }
        let schema = self.schema().clone();
        Sink::preview(self, || batch(log, &schema))
    }

    fn say(&mut self, message: String) {
        self.log(message);
    }

    fn warn(&mut self, note: &str) {
        Sink::warn(self, note);
    }
}

/// Trains, and writes the log as the rows of the table.
pub(super) fn train<'a, L, W>(training: &Training, subject: TrainingRun<L, W>, out: &mut Sink<'_>) -> Result<()>
where
    L: FnMut(usize, &MicroBatch) -> Result<LoggedLoss<'a>>,
    W: Fn() -> Result<Vec<u8>>,
{
    let log = training.run(subject, out)?;
    out.write(&batch(&log, out.schema())?)
}

/// The number of rows that a training reads from its inputs at a time, because each step of that makes a copy.
pub(super) const READ_ROWS: usize = 32;

/// Makes an empty column for the rows of a training, whose file lies below the user's cache folder.
pub(super) fn training_rows() -> Result<TrainingRows> {
    Ok(TrainingRows::new(&scratch_folder()?)?)
}

/// Returns the log in the columns of [`training_log`](crate::tables::training_log).
fn batch(log: &[LogRow], schema: &SchemaRef) -> Result<RecordBatch> {
    Ok(RecordBatch::try_new(schema.clone(), log_columns(log))?)
}

/// Returns the columns of a log.
pub(super) fn log_columns(log: &[LogRow]) -> Vec<ArrayRef> {
    let float = |f: fn(&LogRow) -> f32| Arc::new(Float32Array::from_iter_values(log.iter().map(f))) as ArrayRef;
    let part = |i: usize| Arc::new(Float32Array::from_iter(log.iter().map(|row| row.parts[i]))) as ArrayRef;
    let int =
        |f: fn(&LogRow) -> u64| Arc::new(Int64Array::from_iter_values(log.iter().map(|row| f(row) as i64))) as ArrayRef;
    let parts = log.first().map_or(0, |row| row.parts.len());
    let mut columns = vec![int(|row| row.step), int(|row| row.epoch), float(|row| row.loss)];
    columns.extend((0..parts).map(part));
    columns.extend([float(|row| row.lr), float(|row| row.grad_norm), float(|row| row.rows_per_s)]);
    columns.push(Arc::new(StringArray::from_iter(log.iter().map(|row| row.weights.as_deref()))));
    columns
}
