//! `vlmdiff gc`

use anyhow::Result;
use clap::Args;
use indicatif::HumanBytes;

use super::{EXIT_DONE, StoreArgs, progress::count};
use crate::engine::gc::{Garbage, Heap, collect};

/// Delete what no published table, no tag and none of the last runs reaches.
#[derive(Args)]
#[command(after_help = "Example:\n  vlmdiff gc --dry-run\n  vlmdiff gc --keep 3")]
pub(super) struct Gc {
    /// Keep the tables of so many last runs of each pipeline. Published tables and tagged runs are always kept.
    #[arg(long, default_value_t = 10, value_name = "N")]
    keep: usize,
    /// Only say what would be deleted.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    store: StoreArgs,
}

impl Gc {
    pub(super) fn run(self) -> Result<u8> {
        let garbage = collect(&self.store.open()?, self.keep, self.dry_run)?;
        let Garbage { versions, records, parts, blobs, states, in_use } = garbage;
        let heaps =
            [(versions, "version"), (records, "record"), (parts, "part"), (blobs, "blob"), (states, "saved state")];
        let bytes: u64 = heaps.iter().map(|(Heap { bytes, .. }, _)| bytes).sum();
        let what: Vec<String> =
            heaps.iter().filter(|(heap, _)| heap.count > 0).map(|(heap, what)| count(heap.count, what)).collect();
        match (what.is_empty(), self.dry_run) {
            (true, _) => println!("nothing to delete"),
            (false, true) => println!("would delete {}: {}", what.join(", "), HumanBytes(bytes)),
            (false, false) => println!("deleted {}: {}", what.join(", "), HumanBytes(bytes)),
        }
        if in_use > 0 {
            println!("kept what running runs work on ({})", count(in_use as u64, "stage"));
        }
        Ok(EXIT_DONE)
    }
}
