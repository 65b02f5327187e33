//! `vlmdiff status`

use anyhow::Result;
use clap::Args;
use indicatif::HumanBytes;

use super::{EXIT_DONE, StoreArgs, progress::count};
use crate::{engine::store::PartRef, query};

/// List the published tables and what the store holds.
#[derive(Args)]
#[command(after_help = "Example:\n  vlmdiff status --store .vlmdiff")]
pub(super) struct Status {
    #[command(flatten)]
    store: StoreArgs,
}

impl Status {
    pub(super) fn run(self) -> Result<u8> {
        let store = self.store.open()?;
        println!("store {}", store.url);
        let mut last = String::new();
        for (pipeline, manifest) in query::manifests(&store)? {
            if pipeline != last {
                println!("\n{pipeline}");
                last = pipeline;
            }
            let bytes = manifest.parts.iter().map(|part: &PartRef| part.bytes).sum();
            let errors =
                if manifest.errors.is_empty() { String::new() } else { format!(", {} failed", manifest.errors.len()) };
            println!(
                "  {:<16} {:<18} {:>10} {:>10} in {}{errors}",
                manifest.table,
                manifest.stage,
                count(manifest.rows, "row"),
                HumanBytes(bytes).to_string(),
                count(manifest.parts.len() as u64, "part")
            );
        }
        println!(
            "\nparts {}, blobs {}, saved states {}",
            HumanBytes(store.size("parts")?),
            HumanBytes(store.size("blobs")?),
            HumanBytes(store.size("state")?)
        );
        Ok(EXIT_DONE)
    }
}
