//! Published tables: the versions of a table, of which the highest is current.

use std::collections::BTreeMap;

use bytes::Bytes;
use object_store::{ObjectStore, path::Path};

use super::{Error, Result, Store, manifest::Manifest};

const FOLDER: &str = "published";

/// The name of a version of a published table.
pub(super) fn version_name(pipeline: &str, slot: &str, version: u64) -> String {
    format!("{FOLDER}/{pipeline}/{slot}/{version:010}.json")
}

/// The pipeline, slot and version that [`version_name`] names.
fn parse_version(name: &str) -> Option<(&str, &str, u64)> {
    let (folder, file) = name.strip_prefix(FOLDER)?.strip_prefix('/')?.rsplit_once('/')?;
    let (pipeline, slot) = folder.split_once('/')?;
    Some((pipeline, slot, file.strip_suffix(".json")?.parse().ok()?))
}

impl Store {
    /// A version of a published table.
    pub fn version(&self, pipeline: &str, slot: &str, version: u64) -> Result<Option<Manifest>> {
        self.get_json(&version_name(pipeline, slot, version))
    }

    /// The versions of a pipeline's published tables, ascending, by slot.
    pub fn versions(&self, pipeline: &str) -> Result<BTreeMap<String, Vec<u64>>> {
        let mut versions: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for object in self.objects_in(&format!("{FOLDER}/{pipeline}"))? {
            if let Some((_, slot, version)) = parse_version(&object.name) {
                versions.entry(slot.to_owned()).or_default().push(version);
            }
        }
        Ok(versions)
    }

    /// The versions of one table, ascending.
    fn versions_of(&self, pipeline: &str, slot: &str) -> Result<Vec<u64>> {
        let objects = self.objects_in(&format!("{FOLDER}/{pipeline}/{slot}"))?;
        let versions = objects.iter().filter_map(|object| parse_version(&object.name));
        Ok(versions.filter(|(_, of, _)| *of == slot).map(|(.., version)| version).collect())
    }

    /// The pipelines that have published something.
    pub fn pipelines(&self) -> Result<Vec<String>> {
        let listed = self.runtime().block_on(self.objects.list_with_delimiter(Some(&self.path(FOLDER))))?;
        let name = |path: &Path| path.filename().map(str::to_owned);
        Ok(listed.common_prefixes.iter().filter_map(name).collect())
    }

    /// The published tables of every pipeline: pipeline and slot.
    pub fn tables(&self) -> Result<Vec<(String, String)>> {
        let objects = self.objects_in(FOLDER)?;
        let slots = objects.iter().filter_map(|object| parse_version(&object.name));
        let mut tables: Vec<_> = slots.map(|(pipeline, slot, _)| (pipeline.to_owned(), slot.to_owned())).collect();
        tables.dedup();
        Ok(tables)
    }

    /// Versions of a table, read side by side; those that cannot be read are left out.
    pub fn manifests(&self, pipeline: &str, slot: &str, versions: &[u64]) -> Result<Vec<Manifest>> {
        let names: Vec<String> = versions.iter().map(|version| version_name(pipeline, slot, *version)).collect();
        Ok(self.get_all(&names)?.into_iter().filter_map(readable).collect())
    }

    /// The current versions of several tables, read side by side.
    pub fn current(&self, pipeline: &str, slots: &[String]) -> Result<Vec<Option<(u64, Manifest)>>> {
        let versions = self.versions(pipeline)?;
        let newest: Vec<Option<u64>> = slots.iter().map(|slot| versions.get(slot)?.last().copied()).collect();
        let name = |(slot, version): (&String, &Option<u64>)| Some(version_name(pipeline, slot, (*version)?));
        let names: Vec<String> = slots.iter().zip(&newest).filter_map(name).collect();
        let mut manifests = self.get_all(&names)?.into_iter().map(readable);
        let current = |(slot, version): (&String, Option<u64>)| {
            let Some(version) = version else { return Ok(None) };
            match manifests.next().flatten() {
                Some(manifest) => Ok(Some((version, manifest))),
                // It cannot be read: there may be one before it that can.
                None => self.published(pipeline, slot),
            }
        };
        slots.iter().zip(newest).map(current).collect()
    }

    /// The current version of a published table, with its number: the last one that can be read.
    pub fn published(&self, pipeline: &str, slot: &str) -> Result<Option<(u64, Manifest)>> {
        for version in self.versions_of(pipeline, slot)?.into_iter().rev() {
            match self.version(pipeline, slot, version) {
                Ok(Some(manifest)) => return Ok(Some((version, manifest))),
                // A manifest that a failing disk cut short: the version before it is still whole.
                Ok(None) | Err(Error::Damaged(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Publishes a table as a new version, atomically: of two racing runs both versions stand, in turn. Returns its number.
    pub(super) fn publish(&self, pipeline: &str, manifest: &Manifest) -> Result<u64> {
        let json = Bytes::from(serde_json::to_vec(manifest).map_err(std::io::Error::from)?);
        let slot = manifest.variant.slot(&manifest.table);
        let mut version = self.versions_of(pipeline, &slot)?.last().copied().unwrap_or(0);
        loop {
            version += 1;
            if self.put_if_absent(&version_name(pipeline, &slot, version), json.clone())? {
                return Ok(version);
            }
        }
    }
}

fn readable(bytes: Option<Bytes>) -> Option<Manifest> {
    serde_json::from_slice(&bytes?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_version_is_read_as_it_is_written() {
        assert_eq!(parse_version(&version_name("p", "t.0a", 12)), Some(("p", "t.0a", 12)));
        for other in ["published/p/t/x.json", "published/p/t/1", "published/t/1.json", "runs/p/t/1.json"] {
            assert_eq!(parse_version(other), None, "{other}");
        }
    }
}
