//! The events of a run. Progress bars, logs, run history and tests all read them.

use serde::{Deserialize, Serialize};

use crate::engine::Secrets;

/// Something that happened in a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A run began.
    RunStarted {
        /// The run's id.
        run: String,
        /// The pipeline's name.
        pipeline: String,
        /// The store's address.
        store: String,
        /// The digest of the pipeline: its tables with all parameters.
        pipeline_digest: String,
        /// The commit of the folder that the run was started in, if it is a git checkout.
        #[serde(default)]
        git_commit: Option<String>,
        /// The machine.
        host: String,
        /// The devices of its networks.
        #[serde(default)]
        device: String,
        /// The version of vlmdiff.
        #[serde(default)]
        version: String,
        /// The pipeline by which new photographs are judged; `None` for a run of a pipeline file.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        judges_by: Option<String>,
    },
    /// A table is fresh.
    TableFresh {
        /// The table.
        table: String,
        /// The stage that makes it.
        stage: String,
        /// The name under which the store keeps its versions.
        slot: String,
        /// The version that the run found.
        version: u64,
        /// Its rows.
        rows: u64,
    },
    /// A table is about to be computed.
    TableStarted {
        /// The table.
        table: String,
        /// The stage that makes it.
        stage: String,
        /// The name under which the store keeps its versions.
        slot: String,
        /// Rows to compute.
        stale: u64,
        /// Rows that the table will have.
        rows: u64,
        /// The causes, in words.
        reasons: Vec<String>,
    },
    /// Some of a table's work is done: rows, or training steps.
    Progress {
        /// The table.
        table: String,
        /// Units done so far in this run.
        done: u64,
        /// Units in all.
        total: u64,
        /// The unit: `rows` or `steps`.
        unit: String,
    },
    /// A task of a table was taken by a worker.
    TaskStarted {
        /// The table.
        table: String,
        /// The task, by its place among those of the table.
        task: u64,
        /// Its rows.
        rows: u64,
    },
    /// A task of a table ended. One that an error of the table cut short has no such event.
    TaskFinished {
        /// The table.
        table: String,
        /// The task.
        task: u64,
        /// Rows that it computed.
        rows: u64,
        /// Rows that failed.
        errors: u64,
        /// True if its worker died.
        lost: bool,
    },
    /// A number that tells how a table's work goes, beside its progress.
    Figure {
        /// The table.
        table: String,
        /// The number in words, such as `41 tokens/s` or `loss 0.031`.
        figure: String,
    },
    /// A part is stored; its rows need not be computed again.
    PartCommitted {
        /// The table.
        table: String,
        /// Rows in the part.
        rows: u64,
        /// Bytes of the part.
        bytes: u64,
    },
    /// A row failed.
    RowFailed {
        /// The table.
        table: String,
        /// The row's id.
        id: String,
        /// The error.
        message: String,
        /// The causes behind it, outermost first.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        chain: Vec<String>,
    },
    /// A stage sends a message.
    Log {
        /// The table.
        table: String,
        /// The message.
        message: String,
    },
    /// A note on a table.
    Note {
        /// The table.
        table: String,
        /// The note.
        message: String,
    },
    /// A new version of a table is published, which SQL now reads.
    TablePublished {
        /// The table.
        table: String,
        /// The stage that makes it.
        stage: String,
        /// The name under which the store keeps its versions.
        slot: String,
        /// Its version.
        version: u64,
        /// Its rows.
        rows: u64,
        /// Rows computed in this run; the others were already stored.
        computed: u64,
        /// Bytes of the parts written in this run.
        bytes: u64,
        /// Rows left out because they failed.
        errors: u64,
        /// Seconds since the table was started.
        seconds: f64,
    },
    /// A run ended.
    RunFinished {
        /// Seconds since it began.
        seconds: f64,
        /// The error that ended it, if any.
        error: Option<String>,
        /// True if it was asked to stop.
        #[serde(default)]
        interrupted: bool,
    },
}

impl Event {
    /// Returns the table that the event is about; `None` for one about the run.
    pub fn table(&self) -> Option<&str> {
        match self {
            Self::RunStarted { .. } | Self::RunFinished { .. } => None,
            Self::TableFresh { table, .. }
            | Self::TableStarted { table, .. }
            | Self::Progress { table, .. }
            | Self::TaskStarted { table, .. }
            | Self::TaskFinished { table, .. }
            | Self::Figure { table, .. }
            | Self::PartCommitted { table, .. }
            | Self::RowFailed { table, .. }
            | Self::Log { table, .. }
            | Self::Note { table, .. }
            | Self::TablePublished { table, .. } => Some(table),
        }
    }

    /// Returns true if the event is shown and not stored, because such events would fill the log of a run.
    pub(in crate::engine) fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Progress { .. } | Self::Figure { .. } | Self::TaskStarted { .. } | Self::TaskFinished { .. }
        )
    }

    /// Returns the event without secrets, as [`Secrets::hide`] hides them.
    pub(in crate::engine) fn without(self, secrets: &Secrets) -> Self {
        let hidden = serde_json::to_value(&self).map(|value| {
            let kind = value["event"].clone();
            let mut hidden = secrets.hide_in(value);
            hidden["event"] = kind;
            hidden
        });
        // Only texts are replaced, so the result is read as an event of the same kind.
        hidden.and_then(serde_json::from_value).unwrap_or(self)
    }
}

/// An event with its time; a line of a run's log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Logged {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// The event.
    #[serde(flatten)]
    pub event: Event,
}
