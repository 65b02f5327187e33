//! A task: some rows of one table. It reads its rows from the store, writes its own parts there, and returns their
//! descriptions, never data. It runs in the driver or in a worker alike.

use std::{fmt, time::Duration};

use arrow::{array::RecordBatch, compute::concat_batches};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::port::Output;
use crate::engine::{Digest, Error, Result, Secrets, store::PartRef};

/// A piece of work that can be sent to another process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    /// The stage and its inputs that are read whole. An operator that was opened for an equal job serves this task
    /// too.
    pub job: Job,
    /// The key under which the results are recorded: the stage's fingerprint, or the key of a whole table.
    pub stage_key: Digest,
    /// The run that it belongs to.
    pub run: String,
    /// The time of the stage's last record, in milliseconds since 1970. The record of this task gets a later time.
    pub after: u64,
    /// The rows' ids.
    pub ids: Vec<String>,
    /// The rows' keys; empty for a whole table.
    pub keys: Vec<Digest>,
    /// The addresses of the rows in each input, aligned with `ids`.
    pub rows: Vec<PortRows>,
    /// The pieces of the rows, if an input is read by pieces.
    #[serde(default)]
    pub pieces: Option<Pieces>,
    /// The rows themselves if they were listed outside the store.
    pub listed: Option<Listed>,
}

/// The parameters and inputs that an operator is opened with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// The stage kind.
    pub stage: String,
    /// Its parameters.
    pub params: Value,
    /// The kind of output that it makes.
    pub makes: Output,
    /// The schema of its rows, as text.
    pub output: String,
    /// The declared schema of every input, by port.
    pub input_schemas: Vec<(String, String)>,
    /// The columns to read of the inputs read row by row, by port.
    pub row_schemas: Vec<(String, String)>,
    /// Inputs read whole.
    pub tables: Vec<TableInput>,
    /// The digest of the model, if rows state it.
    #[serde(default)]
    pub model: Option<Digest>,
    /// Files that parameters name, and their digests.
    pub files: Vec<(String, Digest)>,
    /// The interval at which long work saves its state.
    pub save_every: Duration,
    /// Values that messages must not contain.
    #[serde(default)]
    pub secrets: Secrets,
}

/// An input read whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TableInput {
    /// The port.
    pub port: String,
    /// The columns to read, as a schema in text.
    pub schema: String,
    /// The rows.
    pub parts: Vec<PartRef>,
    /// True if the rows are cached one by one, so that their order in the parts is arbitrary.
    pub keyed: bool,
}

/// The addresses of a task's rows in one input.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PortRows {
    /// The port.
    pub port: String,
    /// The parts that `places` indexes.
    pub parts: Vec<Digest>,
    /// `(part, row)` of each row, where `part` is an index into `parts`.
    pub places: Vec<(u32, u64)>,
}

/// The pieces of a task's rows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pieces {
    /// The end of the pieces of each row among all pieces, which lie one row after another.
    pub ends: Vec<usize>,
    /// The ids of the pieces.
    pub ids: Vec<String>,
    /// The addresses of the pieces in each input, aligned with `ids`.
    pub rows: Vec<PortRows>,
}

impl Pieces {
    /// Returns the place of the first piece of a row among all pieces.
    pub(super) fn start_of(&self, row: usize) -> usize {
        row.checked_sub(1).map_or(0, |before| self.ends[before])
    }
}

/// Rows listed outside the store, as an Arrow IPC stream in base64.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Listed(String);

impl Listed {
    /// Packs a batch.
    pub fn pack(batch: &RecordBatch) -> Result<Self> {
        use base64::Engine;
        let mut writer = arrow::ipc::writer::StreamWriter::try_new(Vec::new(), batch.schema_ref())?;
        writer.write(batch)?;
        Ok(Self(base64::engine::general_purpose::STANDARD.encode(writer.into_inner()?)))
    }

    /// Unpacks the batch.
    pub fn unpack(&self) -> Result<RecordBatch> {
        use base64::Engine;
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(&self.0)
            .map_err(|e| Error::Worker(format!("listed rows: {e}")))?;
        let reader = arrow::ipc::reader::StreamReader::try_new(bytes.as_slice(), None)?;
        let schema = reader.schema();
        Ok(concat_batches(&schema, &reader.collect::<Result<Vec<_>, _>>()?)?)
    }
}

/// The failure of a task, as it is sent from one process to another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskError {
    /// The user's input is wrong.
    Input(String),
    /// Memory ran out.
    Memory(String),
    /// A part or blob that the task reads is damaged or missing.
    Lost {
        /// The digest of the part or blob.
        digest: Digest,
        /// The defect.
        message: String,
    },
    /// The task was asked to stop and has saved its work.
    Interrupted,
    /// The stage failed.
    Stage(String),
}

impl From<Error> for TaskError {
    fn from(error: Error) -> Self {
        match error {
            Error::Lost { digest, message } => Self::Lost { digest, message },
            Error::Interrupted => Self::Interrupted,
            Error::Memory(message) => Self::Memory(message),
            error if error.is_input() => Self::Input(error.to_string()),
            error => Self::Stage(error.to_string()),
        }
    }
}

impl From<TaskError> for Error {
    fn from(error: TaskError) -> Self {
        match error {
            TaskError::Input(message) => Self::Input(message),
            TaskError::Memory(message) => Self::Memory(message),
            TaskError::Lost { digest, message } => Self::Lost { digest, message },
            TaskError::Interrupted => Self::Interrupted,
            TaskError::Stage(message) => Self::Stage(message),
        }
    }
}

/// The unit of a task's progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Rows of the table.
    Rows,
    /// Steps of a training.
    Steps,
    /// Images that an aggregate has read.
    Images,
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rows => "rows",
            Self::Steps => "steps",
            Self::Images => "images",
        })
    }
}

/// A report of a running task.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "snake_case")]
pub enum Report {
    /// The progress of the task.
    Progress {
        /// Units done so far in this task.
        done: u64,
        /// Units in total.
        total: u64,
        /// The unit.
        unit: Unit,
    },
    /// A number that tells how the work goes, beside its progress.
    Figure {
        /// The number in words, such as `41 tokens/s` or `loss 0.031`.
        figure: String,
    },
    /// A part was committed.
    Committed {
        /// The number of its rows.
        rows: u64,
        /// The number of its bytes.
        bytes: u64,
    },
    /// The rows so far of a table that is made as a whole.
    Unfinished {
        /// The rows, as a part that is not a result.
        part: PartRef,
    },
    /// The operator sends a message.
    Log {
        /// The message.
        message: String,
    },
}
