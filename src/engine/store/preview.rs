//! The rows so far of tables that are made as a whole, which SQL sees during a training.
//!
//! Such a table is not a version: plans ignore it, and it is invalid once its run is over, in whatever way that
//! ended. A run that works on a table holds the lock on its results, which is released when the run ends. In stores
//! without locks an unfinished table is valid until it has not grown for `OLD`.

use serde::{Deserialize, Serialize};

use super::{manifest::Manifest, objects::Store, sealed};
use crate::engine::{Digest, Result, clock::now_ms};

const FOLDER: &str = "unfinished";

/// Milliseconds without additions after which an unfinished table is ignored in a store without locks.
const OLD: u64 = 600_000;

/// An unfinished table: the run that makes it, and its rows.
#[derive(Debug, Serialize, Deserialize)]
struct Unfinished {
    stage_key: Digest,
    #[serde(flatten)]
    manifest: Manifest,
}

fn name(pipeline: &str, slot: &str) -> String {
    format!("{FOLDER}/{pipeline}/{slot}.json")
}

/// Parses a [`name`] into pipeline and slot.
fn parse(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix(FOLDER)?.strip_prefix('/')?.strip_suffix(".json")?.split_once('/')
}

impl Store {
    /// Returns pipeline and slot of the tables that are being made, or were when a run was killed.
    pub fn unfinished_tables(&self) -> Result<Vec<(String, String)>> {
        let objects = self.objects_in(FOLDER)?;
        let names = objects.iter().filter_map(|object| parse(&object.name));
        Ok(names.map(|(pipeline, slot)| (pipeline.to_owned(), slot.to_owned())).collect())
    }

    /// Returns the rows so far of a table that is being made.
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

    /// Removes an unfinished table. Its parts stay for current readers, and a clean-up deletes them.
    pub(in crate::engine) fn forget_unfinished(&self, pipeline: &str, slot: &str) -> Result<()> {
        self.delete(&name(pipeline, slot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_of_an_unfinished_table_is_parsed_as_it_is_written() {
        assert_eq!(parse(&name("p", "t.0a")), Some(("p", "t.0a")));
        assert_eq!(parse("published/p/t.json"), None);
    }
}
