//! `vlmdiff status`

use std::collections::BTreeMap;

use anyhow::Result;
use clap::Args;
use indicatif::HumanBytes;

use super::{EXIT_DONE, StoreArgs, progress::count};
use crate::engine::manifest::Manifest;

/// List the published tables and what the store holds for each.
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
        for pipeline in store.pipelines()? {
            println!("\n{pipeline}");
            for (slot, versions) in store.versions(&pipeline)? {
                let manifests = store.manifests(&pipeline, &slot, &versions)?;
                if let Some(current) = manifests.last().filter(|manifest| !manifest.retired) {
                    println!("  {}", describe(current, &manifests));
                }
            }
        }
        let size = |folder| Ok::<_, anyhow::Error>(HumanBytes(store.size(folder)?));
        println!("\nparts {}, blobs {}, saved states {}", size("parts")?, size("blobs")?, size("state")?);
        println!("`vlmdiff gc --dry-run` says how much of it nothing needs");
        Ok(EXIT_DONE)
    }
}

fn describe(current: &Manifest, versions: &[Manifest]) -> String {
    let bytes = |manifests: &[Manifest]| {
        let parts = manifests.iter().flat_map(|manifest| &manifest.parts).map(|part| (part.part, part.bytes));
        parts.collect::<BTreeMap<_, _>>().values().sum::<u64>()
    };
    let (now, all) = (bytes(std::slice::from_ref(current)), bytes(versions));
    let mut text = format!(
        "{:<24} {:<18} {:>12} {:>12} in {}",
        current.variant.name(&current.table),
        current.made.stage,
        count(current.rows, "row"),
        HumanBytes(now).to_string(),
        count(current.parts.len() as u64, "part"),
    );
    if all > now {
        let older = count(versions.len() as u64 - 1, "older version");
        text += &format!(", {} more in {older}", HumanBytes(all - now));
    }
    if !current.errors.is_empty() {
        text += &format!(", {} failed", current.errors.len());
    }
    text
}
