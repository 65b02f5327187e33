//! `vlmdiff status`

use std::collections::BTreeMap;

use anyhow::Result;
use clap::Args;
use indicatif::HumanBytes;

use super::{
    EXIT_DONE, StoreArgs,
    text::{count, print, say, width},
};
use crate::engine::store::Manifest;

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
        print(format!("store {}", store.url))?;
        for pipeline in store.pipelines()? {
            print(format!("\n{pipeline}"))?;
            let mut tables = Vec::new();
            for (slot, versions) in store.versions(&pipeline)? {
                let newest = versions.last().copied();
                let mut whole = Vec::new();
                for (version, manifest) in store.manifests(&pipeline, &slot, &versions) {
                    match manifest {
                        Ok(manifest) => whole.push(manifest),
                        Err(error) => {
                            say(format!("{error}"));
                            if Some(version) == newest {
                                whole.clear();
                            }
                        }
                    }
                }
                tables.push(whole);
            }
            list(tables)?;
        }
        let size = |folder| Ok::<_, anyhow::Error>(HumanBytes(store.size(folder)?));
        print(format!("\nparts {}, blobs {}, saved states {}", size("parts")?, size("blobs")?, size("state")?))?;
        print("`vlmdiff gc --dry-run` says how much of this is no longer needed")?;
        Ok(EXIT_DONE)
    }
}

/// Lists the tables of a pipeline from the versions of each, of which the newest is last.
fn list(tables: Vec<Vec<Manifest>>) -> Result<()> {
    let current = |versions: Vec<Manifest>| Some((versions.last().filter(|now| !now.retired)?.clone(), versions));
    let mut tables: Vec<(Manifest, Vec<Manifest>)> = tables.into_iter().filter_map(current).collect();
    tables.sort_by(|(a, _), (b, _)| a.table.cmp(&b.table).then_with(|| a.variant.by_values(&b.variant)));
    let names = || tables.iter().map(|(now, _)| now.variant.name(&now.table));
    let widths = [width(names()), width(tables.iter().map(|(now, _)| &now.made.stage))];
    tables.iter().zip(names()).try_for_each(|((now, versions), name)| {
        print(format!("  {}", describe(&name, now, versions, widths)))?;
        Ok(())
    })
}

fn describe(name: &str, current: &Manifest, versions: &[Manifest], [names, stages]: [usize; 2]) -> String {
    let bytes = |manifests: &[Manifest]| {
        let parts = manifests.iter().flat_map(|manifest| &manifest.parts).map(|part| (part.part, part.bytes));
        parts.collect::<BTreeMap<_, _>>().values().sum::<u64>()
    };
    let (now, all) = (bytes(std::slice::from_ref(current)), bytes(versions));
    let mut text = format!(
        "{name:<names$}  {:<stages$} {:>12} {:>12} in {}",
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
