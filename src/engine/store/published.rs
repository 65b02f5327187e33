//! Published tables: the versions of a table, of which the highest is current.
//!
//! A version is a sealed manifest, and beside it an empty marker that is written after it. If a manifest is lost, its
//! marker still shows that the version existed, so that the version before it is not taken for the current one.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use object_store::{ObjectStore, path::Path};

use super::{manifest::Manifest, objects::Store, sealed};
use crate::engine::{Error, Result};

const FOLDER: &str = "published";

/// Returns the name of the manifest of a version.
pub(in crate::engine) fn version_name(pipeline: &str, slot: &str, version: u64) -> String {
    format!("{FOLDER}/{pipeline}/{slot}/{version:010}.json")
}

/// Returns the name of the marker of a version.
pub(in crate::engine) fn marker_name(pipeline: &str, slot: &str, version: u64) -> String {
    format!("{FOLDER}/{pipeline}/{slot}/{version:010}.made")
}

/// Returns the pipeline, slot and version in a name that [`version_name`] or [`marker_name`] has made.
pub(in crate::engine) fn parse_version(name: &str) -> Option<(&str, &str, u64)> {
    let (folder, file) = name.strip_prefix(FOLDER)?.strip_prefix('/')?.rsplit_once('/')?;
    let (pipeline, slot) = folder.split_once('/')?;
    let number = file.strip_suffix(".json").or_else(|| file.strip_suffix(".made"))?;
    Some((pipeline, slot, number.parse().ok()?))
}

/// The current version of a table.
#[derive(Clone, Debug)]
pub enum Current {
    /// It was never published.
    Absent,
    /// Its manifest is damaged or missing.
    Damaged {
        /// Its number.
        version: u64,
        /// The damage.
        message: String,
    },
    /// Its number and manifest.
    Whole(u64, Box<Manifest>),
}

impl Current {
    /// Returns the version. A damaged one is an error, because an older version must not be taken for it.
    pub fn whole(self) -> Result<Option<(u64, Manifest)>> {
        match self {
            Self::Absent => Ok(None),
            Self::Damaged { message, .. } => {
                Err(Error::Damaged(format!("{message}; `vlmdiff run` of its pipeline publishes it again")))
            }
            Self::Whole(version, manifest) => Ok(Some((version, *manifest))),
        }
    }
}

/// Opens the manifest that was read under a name.
fn manifest(name: &str, read: Result<Option<Bytes>>) -> Result<Manifest> {
    match read? {
        Some(bytes) => sealed::open(name, &bytes),
        None => Err(Error::Damaged(format!("{name} is missing"))),
    }
}

impl Store {
    /// Returns a version of a published table; `None` if it no longer exists.
    pub fn version(&self, pipeline: &str, slot: &str, version: u64) -> Result<Option<Manifest>> {
        let name = version_name(pipeline, slot, version);
        self.get(&name)?.map(|bytes| sealed::open(&name, &bytes)).transpose()
    }

    /// Returns the versions of a pipeline's published tables, ascending, by slot.
    pub fn versions(&self, pipeline: &str) -> Result<BTreeMap<String, BTreeSet<u64>>> {
        let mut versions: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
        for object in self.objects_in(&format!("{FOLDER}/{pipeline}"))? {
            if let Some((_, slot, version)) = parse_version(&object.name) {
                versions.entry(slot.to_owned()).or_default().insert(version);
            }
        }
        Ok(versions)
    }

    /// Returns the versions of one table.
    fn versions_of(&self, pipeline: &str, slot: &str) -> Result<BTreeSet<u64>> {
        let objects = self.objects_in(&format!("{FOLDER}/{pipeline}/{slot}"))?;
        let versions = objects.iter().filter_map(|object| parse_version(&object.name));
        Ok(versions.filter(|(_, of, _)| *of == slot).map(|(.., version)| version).collect())
    }

    /// Returns the pipelines that have published tables.
    pub fn pipelines(&self) -> Result<Vec<String>> {
        let listed = self.runtime().block_on(self.objects.list_with_delimiter(Some(&self.path(FOLDER))))?;
        let name = |path: &Path| path.filename().map(str::to_owned);
        Ok(listed.common_prefixes.iter().filter_map(name).collect())
    }

    /// Returns pipeline and slot of every published table.
    pub fn tables(&self) -> Result<Vec<(String, String)>> {
        let objects = self.objects_in(FOLDER)?;
        let slots = objects.iter().filter_map(|object| parse_version(&object.name));
        let mut tables: Vec<_> = slots.map(|(pipeline, slot, _)| (pipeline.to_owned(), slot.to_owned())).collect();
        tables.dedup();
        Ok(tables)
    }

    /// Reads versions of a table concurrently, and returns each with its number.
    pub fn manifests(&self, pipeline: &str, slot: &str, versions: &BTreeSet<u64>) -> Vec<(u64, Result<Manifest>)> {
        let names: Vec<String> = versions.iter().map(|version| version_name(pipeline, slot, *version)).collect();
        let read = names.iter().zip(self.get_each(&names)).map(|(name, read)| manifest(name, read));
        versions.iter().copied().zip(read).collect()
    }

    /// Reads the current versions of several tables concurrently.
    pub fn current(&self, pipeline: &str, slots: &[String]) -> Result<Vec<Current>> {
        let versions = self.versions(pipeline)?;
        let newest: Vec<Option<u64>> = slots.iter().map(|slot| versions.get(slot)?.last().copied()).collect();
        let name = |(slot, version): (&String, &Option<u64>)| Some(version_name(pipeline, slot, (*version)?));
        let names: Vec<String> = slots.iter().zip(&newest).filter_map(name).collect();
        let mut read = names.iter().zip(self.get_each(&names)).map(|(name, read)| manifest(name, read));
        let current = |version: &Option<u64>| match version.and_then(|version| Some((version, read.next()?))) {
            None => Ok(Current::Absent),
            Some((version, Ok(manifest))) => Ok(Current::Whole(version, Box::new(manifest))),
            Some((version, Err(Error::Damaged(message)))) => Ok(Current::Damaged { version, message }),
            Some((_, Err(error))) => Err(error),
        };
        newest.iter().map(current).collect()
    }

    /// Reads the current version of a published table.
    pub fn published(&self, pipeline: &str, slot: &str) -> Result<Current> {
        Ok(self.current(pipeline, &[slot.to_owned()])?.pop().unwrap_or(Current::Absent))
    }

    /// Publishes a table as a new version, atomically, and returns its number. If two runs publish at once, each makes
    /// a version of its own, one after the other.
    pub(in crate::engine) fn publish(&self, pipeline: &str, manifest: &Manifest) -> Result<u64> {
        let json = sealed::seal(manifest)?;
        let slot = manifest.variant.slot(&manifest.table);
        let mut version = self.versions_of(pipeline, &slot)?.last().copied().unwrap_or(0);
        loop {
            version += 1;
            if self.put_if_absent(&version_name(pipeline, &slot, version), json.clone())? {
                self.put(&marker_name(pipeline, &slot, version), Bytes::new())?;
                return Ok(version);
            }
        }
    }

    /// Publishes the current version of a pipeline's table for another pipeline as well, unless that has it already.
    /// Returns its manifest; `None` if it was never published.
    pub fn share(&self, from: &str, to: &str, slot: &str) -> Result<Option<Manifest>> {
        let Some((_, manifest)) = self.published(from, slot)?.whole()? else { return Ok(None) };
        let has = |shared: &Manifest| shared.content == manifest.content && shared.made == manifest.made;
        if !matches!(self.published(to, slot)?, Current::Whole(_, shared) if has(&shared)) {
            self.publish(to, &manifest)?;
        }
        Ok(Some(manifest))
    }

    /// Removes a version. The marker is removed first, because a marker without a manifest would count as damage.
    pub(in crate::engine) fn delete_version(&self, pipeline: &str, slot: &str, version: u64) -> Result<()> {
        self.delete(&marker_name(pipeline, slot, version))?;
        self.delete(&version_name(pipeline, slot, version))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_version_is_read_as_it_is_written() {
        assert_eq!(parse_version(&version_name("p", "t.0a", 12)), Some(("p", "t.0a", 12)));
        assert_eq!(parse_version(&marker_name("p", "t.0a", 12)), Some(("p", "t.0a", 12)));
        for other in ["published/p/t/x.json", "published/p/t/1", "published/t/1.json", "runs/p/t/1.json"] {
            assert_eq!(parse_version(other), None, "{other}");
        }
    }
}
