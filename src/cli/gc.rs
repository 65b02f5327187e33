//! `vlmdiff gc`

use anyhow::Result;
use clap::Args;
use indicatif::HumanBytes;

use super::{
    EXIT_DONE, StoreArgs,
    text::{count, print},
};
use crate::engine::store::{Garbage, Heap, collect};

/// Delete stored objects that no published table, no tag and none of the last runs reaches.
#[derive(Args)]
#[command(after_help = "Examples:\n  vlmdiff gc --dry-run\n  vlmdiff gc --keep 3")]
pub(super) struct Gc {
    /// Keep the tables of each pipeline's last N runs. Published tables and tagged runs are always kept.
    #[arg(long, default_value_t = 10, value_name = "N")]
    keep: usize,
    /// Print what would be deleted, and delete nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    store: StoreArgs,
}

impl Gc {
    pub(super) fn run(self) -> Result<u8> {
        let store = self.store.open()?;
        let garbage = collect(&store, self.keep, self.dry_run)?;
        let Garbage { versions, records, parts, blobs, states, half_written, jobs, in_use, young, unfinished } =
            garbage;
        let heaps = [
            (versions, "version"),
            (records, "record"),
            (parts, "part"),
            (blobs, "blob"),
            (states, "saved state"),
            (half_written, "half-written file"),
            (jobs, "job object"),
        ];
        let bytes: u64 = heaps.iter().map(|(Heap { bytes, .. }, _)| bytes).sum();
        let what: Vec<String> =
            heaps.iter().filter(|(heap, _)| heap.count > 0).map(|(heap, what)| count(heap.count, what)).collect();
        print(match (what.is_empty(), self.dry_run) {
            (true, _) => "nothing to delete".into(),
            (false, true) => format!("would delete {}: {}", what.join(", "), HumanBytes(bytes)),
            (false, false) => format!("deleted {}: {}", what.join(", "), HumanBytes(bytes)),
        })?;
        if in_use > 0 {
            print(format!("kept the results that other runs work on ({})", count(in_use as u64, "stage")))?;
        }
        if young > 0 {
            let why = match (unfinished, store.has_locks()) {
                (Some(run), _) => format!(
                    "the run {run} is not done, and the next one may continue from them; `vlmdiff gc --keep N` with a \
                     smaller N gives it up"
                ),
                (None, true) => {
                    "other runs are at work, and what was written in the last ten minutes is kept".to_owned()
                }
                (None, false) => {
                    "a remote store does not show which runs are at work, so objects of the last day are kept"
                        .to_owned()
                }
            };
            print(format!("kept {} that nothing reaches: {why}", count(young, "object")))?;
        }
        Ok(EXIT_DONE)
    }
}
