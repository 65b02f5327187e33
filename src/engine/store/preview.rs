//! Tables that are being made as a whole, with the rows so far: SQL sees them while a training goes on.
//!
//! Such a table is no version: a plan does not know it, and it means nothing once its run is over, however that ended. A run
//! that works on a table holds the lock on its results, which dies with it; where there are no locks, an unfinished table
//! counts until it has grown old.

use serde::{Deserialize, Serialize};

use super::{manifest::Manifest, objects::Store, sealed};
use crate::engine::{Digest, Result, clock::now_ms};

const FOLDER: &str = "unfinished";

/// Where no lock tells, an unfinished table that nobody has added to for so long is forgotten, in milliseconds.
const OLD: u64 = 600_000;

/// An unfinished table: who makes it, and what it holds.
#[derive(Debug, Serialize, Deserialize)]
struct Unfinished {
    stage_key: Digest,
    #[serde(flatten)]
    manifest: Manifest,
}

fn name(pipeline: &str, slot: &str) -> String {
    format!("{FOLDER}/{pipeline}/{slot}.json")
}

/// The pipeline and slot that [`name`] names.
fn parse(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix(FOLDER)?.strip_prefix('/')?.strip_suffix(".json")?.split_once('/')
}

impl Store {
    /// The tables that are being made, or were when a run was killed: pipeline and slot.
    pub fn unfinished_tables(&self) -> Result<Vec<(String, String)>> {
        let objects = self.objects_in(FOLDER)?;
        let names = objects.iter().filter_map(|object| parse(&object.name));
        Ok(names.map(|(pipeline, slot)| (pipeline.to_owned(), slot.to_owned())).collect())
    }

    /// The rows so far of a table that is being made.
    pub fn unfinished(&self, pipeline: &str, slot: &str) -> Result<Option<Manifest>> {
        let name = name(pipeline, slot);
        let Some(bytes) = self.get(&name)? else { return Ok(None) };
        let Unfinished { stage_key, manifest } = sealed::open(&name, &bytes)?;
        let is_made = if self.has_locks() {
            self.is_locked(stage_key)?
        } else {
            self.modified_ms(&name)?.is_some_and(|written| now_ms().saturating_sub(written) < OLD)
        };
        Ok(is_made.then_some(manifest))
    }

    /// Shows the rows so far of a table.
    pub(in crate::engine) fn show_unfinished(
        &self,
        pipeline: &str,
        stage_key: Digest,
        manifest: Manifest,
    ) -> Result<()> {
        let name = name(pipeline, &manifest.variant.slot(&manifest.table));
        self.put(&name, sealed::seal(&Unfinished { stage_key, manifest })?)
    }

    /// Forgets an unfinished table. What it held stays for whoever reads it now, and a clean-up takes it.
    pub(in crate::engine) fn forget_unfinished(&self, pipeline: &str, slot: &str) -> Result<()> {
        self.delete(&name(pipeline, slot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_an_unfinished_table_is_read_as_it_is_written() {
        assert_eq!(parse(&name("p", "t.0a")), Some(("p", "t.0a")));
        assert_eq!(parse("published/p/t.json"), None);
    }
}
