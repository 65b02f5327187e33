//! The one observability channel: progress bars, logs, run history and tests read the same events.

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
        /// Names what the pipeline says: its tables with all parameters.
        pipeline_digest: String,
        /// The commit of the folder that the run was started in, if it is a git checkout.
        #[serde(default)]
        git_commit: Option<String>,
        /// The machine.
        host: String,
    },
    /// A table needs nothing.
    TableFresh {
        /// The table.
        table: String,
        /// The stage that makes it.
        stage: String,
        /// Where the store keeps its versions.
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
        /// Where the store keeps its versions.
        slot: String,
        /// Rows to compute.
        stale: u64,
        /// Rows it will have.
        rows: u64,
        /// Why, in words.
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
        /// What is counted: `rows` or `steps`.
        unit: String,
    },
    /// A part is in the store; its rows need not be computed again.
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
        /// Why.
        message: String,
        /// The causes behind it, outermost first.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        chain: Vec<String>,
    },
    /// A stage has something to say.
    Log {
        /// The table.
        table: String,
        /// What it says.
        message: String,
    },
    /// A remark on a table that a run has looked at.
    Note {
        /// The table.
        table: String,
        /// The remark.
        message: String,
    },
    /// A table's new version is what SQL sees.
    TablePublished {
        /// The table.
        table: String,
        /// The stage that makes it.
        stage: String,
        /// Where the store keeps its versions.
        slot: String,
        /// Its version.
        version: u64,
        /// Its rows.
        rows: u64,
        /// Rows computed in this run; the others were known.
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
        /// What stopped it, if anything.
        error: Option<String>,
        /// Whether somebody asked it to stop.
        #[serde(default)]
        interrupted: bool,
    },
}

impl Event {
    /// The event with the names of secrets in their places.
    pub(in crate::engine) fn without(self, secrets: &Secrets) -> Self {
        if secrets.is_empty() {
            return self;
        }
        let hidden = serde_json::to_value(&self).map(|value| {
            let kind = value["event"].clone();
            let mut hidden = secrets.hide_in(value);
            hidden["event"] = kind;
            hidden
        });
        // Texts alone are replaced, so what is read again is an event of the same kind.
        hidden.and_then(serde_json::from_value).unwrap_or(self)
    }
}

/// An event and when it happened, a line of a run's log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Logged {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}
