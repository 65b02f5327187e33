//! Checks all objects of a store against their digests and repairs damage.
//!
//! A damaged part, blob or record is removed; the next run of its pipeline computes the affected rows again. A
//! damaged manifest of a current version stays for that run, which publishes the table again; an older one is
//! removed. The log of a run and a saved state cannot be made again and are removed.

use rayon::prelude::*;

use super::{
    checked::GROUPS,
    groups::Groups,
    history,
    objects::{Object, Store},
    published::{parse_version, version_name},
    sealed,
};
use crate::engine::{Digest, Error, Result};

impl Store {
    /// Checks every object and repairs what is damaged. Returns one line per finding.
    pub fn verify(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for folder in ["parts", "blobs", "computed", "state", "runs", "unfinished"] {
            let objects = self.objects_in(folder)?;
            let checked: Vec<_> = objects.par_iter().map(|object| self.check(folder, object)).collect();
            for (object, checked) in objects.iter().zip(checked) {
                if let Some((what, then)) = checked? {
                    self.delete(&object.name)?;
                    found.push(format!("{} {what}: {then}", object.name));
                }
            }
        }
        self.verify_versions(&mut found)?;
        if let Err(error) = history::tags(self) {
            found.push(error.to_string());
        }
        Ok(found)
    }

    /// Returns the damage of an object and its handling; `None` if it is undamaged.
    fn check(&self, folder: &str, object: &Object) -> Result<Option<(&'static str, &'static str)>> {
        let changed = "does not match its digest";
        let read = match self.get(&object.name) {
            Ok(Some(bytes)) => Ok(bytes),
            // Another process has just removed it.
            Ok(None) => return Ok(None),
            Err(Error::Lost { .. }) => Err(()),
            Err(error) => return Err(error),
        };
        Ok(match folder {
            "parts" if object.name.ends_with(GROUPS) => {
                let digest = object.digest().unwrap_or(Digest::of(b""));
                let part = self.part(digest).ok();
                let is_right = part.and_then(|part| Groups::of(&part).1).is_some_and(|groups| {
                    read.as_ref().is_ok_and(|bytes| Groups::from_bytes(bytes, groups.size(), digest) == Some(groups))
                });
                (!is_right).then_some((changed, "it is made again"))
            }
            "parts" | "blobs" => read.is_err().then_some((changed, "it is computed again")),
            "computed" => read.is_err().then_some((changed, "its rows are computed again")),
            "state" => {
                let is_right = read.is_ok_and(|bytes| {
                    let state = bytes.split_at_checked(Digest::LEN);
                    state.is_some_and(|(digest, state)| Digest::of(state).as_bytes() == digest)
                });
                (!is_right).then_some((changed, "the training that saved it starts over"))
            }
            "runs" => {
                let is_right = read.is_ok_and(|bytes| sealed::open_lines(&object.name, &bytes).is_ok());
                (!is_right).then_some((changed, "what that run did is no longer known"))
            }
            _ => {
                let is_right = read.is_ok_and(|bytes| sealed::open::<serde_json::Value>(&object.name, &bytes).is_ok());
                (!is_right).then_some((changed, "the run that makes the table shows its rows again"))
            }
        })
    }

    fn verify_versions(&self, found: &mut Vec<String>) -> Result<()> {
        let names = self.objects_in("published")?;
        let mut slots: Vec<(&str, &str)> =
            names.iter().filter_map(|object| parse_version(&object.name)).map(|(p, slot, _)| (p, slot)).collect();
        slots.dedup();
        for (pipeline, slot) in slots {
            let versions = self.versions(pipeline)?.remove(slot).unwrap_or_default();
            let newest = versions.last().copied();
            for (version, manifest) in self.manifests(pipeline, slot, &versions) {
                let name = version_name(pipeline, slot, version);
                match manifest {
                    Ok(_) => {}
                    Err(Error::Damaged(_)) if Some(version) == newest => {
                        found
                            .push(format!("{name} is damaged: the next run of `{pipeline}` publishes the table again"));
                    }
                    Err(Error::Damaged(_)) => {
                        self.delete_version(pipeline, slot, version)?;
                        found.push(format!("{name} is damaged: this old version is removed"));
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }
}
