//! Facts about contents that take long to find, such as the size of a picture, remembered between runs.

use std::{collections::BTreeMap, io, path::PathBuf};

use serde::{Serialize, de::DeserializeOwned};

use super::{sources::Sources, temporary::Temporary};
use crate::engine::{Digest, address::absolute};

impl Sources {
    /// Returns the facts of a kind that are remembered about contents below a root. A file that is missing or damaged
    /// counts as empty.
    pub fn recall<T: DeserializeOwned>(&self, kind: &str, root: &str) -> BTreeMap<Digest, T> {
        let bytes = std::fs::read(self.facts(kind, root)).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    /// Remembers facts in place of those that were remembered before. If the cache cannot be written, they are found
    /// again next time.
    pub fn remember<T: Serialize>(&self, kind: &str, root: &str, facts: &BTreeMap<Digest, T>) {
        let write = || -> io::Result<()> {
            let file = self.facts(kind, root);
            let mut temporary = Temporary::beside(&file)?;
            serde_json::to_writer(&mut temporary, facts)?;
            temporary.keep_as(&file)
        };
        write().unwrap_or(());
    }

    fn facts(&self, kind: &str, root: &str) -> PathBuf {
        self.cache.join(kind).join(Digest::of(absolute(root).as_bytes()).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_remembered_by_content_below_a_root() {
        let folder = tempfile::tempdir().unwrap();
        let sources = Sources { cache: folder.path().to_owned(), ..Sources::default() };
        let facts = BTreeMap::from([(Digest::of(b"a"), (8000, 2000)), (Digest::of(b"b"), (1, 2))]);
        sources.remember("sizes", "photographs", &facts);
        assert_eq!(sources.recall("sizes", "photographs"), facts);
        assert_eq!(sources.recall::<(u32, u32)>("sizes", "others"), BTreeMap::new());
        std::fs::write(sources.facts("sizes", "photographs"), "{").unwrap();
        assert_eq!(sources.recall::<(u32, u32)>("sizes", "photographs"), BTreeMap::new());
    }
}
