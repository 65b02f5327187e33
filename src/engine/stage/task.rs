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
    /// The stage and its inputs that are read whole: an operator opened for an equal job serves this task too.
    pub job: Job,
    /// Where the results are recorded: the stage's fingerprint, or the key of a whole table.
    pub stage_key: Digest,
    /// The run that it belongs to.
    pub run: String,
    /// When the stage's last result was recorded: this one is recorded later.
    pub after: u64,
    /// The rows' ids.
    pub ids: Vec<String>,
    /// The rows' keys; empty for a whole table.
    pub keys: Vec<Digest>,
    /// Where the rows lie in each input, aligned with `ids`.
    pub rows: Vec<PortRows>,
    /// The rows themselves where they were listed outside the store.
    pub listed: Option<Listed>,
}

/// What an operator is opened for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// The stage kind.
    pub stage: String,
    /// Its parameters.
    pub params: Value,
    /// What it makes.
    pub makes: Output,
    /// The schema of its rows, as text.
    pub output: String,
    /// The declared schema of every input, by port.
    pub inputs: Vec<(String, String)>,
    /// The columns to read of the inputs read row by row, by port.
    pub schemas: Vec<(String, String)>,
    /// Inputs read whole.
    pub tables: Vec<TableInput>,
    /// Files that parameters name, and their digests.
    pub files: Vec<(String, Digest)>,
    /// How often work that takes long saves its state.
    pub save_every: Duration,
    /// Values that no message may hold.
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
    /// Whether the rows are cached one by one and so lie in no order.
    pub keyed: bool,
}

/// Where a task's rows lie in one input.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PortRows {
    /// The port.
    pub port: String,
    /// Parts that `places` counts in.
    pub parts: Vec<Digest>,
    /// `(part, row)` of each row.
    pub places: Vec<(u32, u64)>,
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

    /// The batch again.
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

/// Why a task failed, as one process tells another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskError {
    /// The user's input is wrong.
    Input(String),
    /// Memory ran out.
    Memory(String),
    /// A part or blob that the task reads is damaged or missing.
    Lost {
        /// Which.
        digest: Digest,
        /// What is wrong with it.
        message: String,
    },
    /// The task was asked to stop, and has saved what was done.
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

/// What a task counts its progress in.
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

/// What a running task reports.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "snake_case")]
pub enum Report {
    /// Units done, of how many, of what.
    Progress {
        /// Done so far in this task.
        done: u64,
        /// In all.
        total: u64,
        /// What is counted.
        unit: Unit,
    },
    /// A part was committed.
    Committed {
        /// Its rows.
        rows: u64,
        /// Its bytes.
        bytes: u64,
    },
    /// A table that is made as a whole has these rows so far.
    Unfinished {
        /// They, as a part that is no result.
        part: PartRef,
    },
    /// The operator has something to say.
    Log {
        /// What it says.
        message: String,
    },
}
