//! What a stage has computed before, by key, and the tables that are made of it.

use std::collections::BTreeSet;

use super::{
    Digest, Hasher,
    digest::DigestMap,
    manifest::{Entry, PartRef, RowError, runs},
};

/// What a stage has computed before, by key. Of two results for one key the later counts.
#[derive(Default)]
pub struct Known {
    entries: Vec<Entry>,
    rows: DigestMap<(u32, u32)>,
    failed: DigestMap<(u32, u32)>,
}

/// The rows that make a table: what a manifest says of them.
pub struct Chosen {
    /// Its parts.
    pub parts: Vec<PartRef>,
    /// Rows that failed.
    pub errors: Vec<RowError>,
    /// Blobs that the rows name.
    pub blobs: Vec<Digest>,
    /// The content of all rows.
    pub content: Digest,
}

impl Known {
    /// Adds what was computed, later results last.
    pub fn extend(&mut self, entries: impl IntoIterator<Item = Entry>) {
        for entry in entries {
            let at = self.entries.len() as u32;
            self.rows.extend(entry.keys.iter().zip(0..).map(|(key, row)| (*key, (at, row))));
            for (error, i) in entry.errors.iter().zip(0..) {
                self.rows.remove(&error.key);
                self.failed.insert(error.key, (at, i));
            }
            self.entries.push(entry);
        }
    }

    /// What remains when parts are lost.
    pub fn without(self, lost: &BTreeSet<Digest>) -> Self {
        if lost.is_empty() {
            return self;
        }
        let is_lost = |entry: &Entry| entry.part.iter().chain(&entry.blobs).any(|digest| lost.contains(digest));
        let mut known = Self::default();
        known.extend(self.entries.into_iter().filter(|entry| !is_lost(entry)));
        known
    }

    /// Whether nothing was computed.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether the row with this key is there.
    pub fn has(&self, key: &Digest) -> bool {
        self.rows.contains_key(key)
    }

    /// How the row with this key failed.
    pub fn failure(&self, key: &Digest) -> Option<&RowError> {
        self.failed.get(key).map(|(entry, i)| &self.entries[*entry as usize].errors[*i as usize])
    }

    /// The table made of the rows with these keys, the failures among the keys beside it.
    pub fn choose(&self, keys: &[Digest]) -> Chosen {
        let mut rows: Vec<Vec<u64>> = vec![Vec::new(); self.entries.len()];
        let mut contents = Vec::with_capacity(keys.len());
        let mut errors = Vec::new();
        for key in keys {
            if let Some((entry, row)) = self.rows.get(key) {
                rows[*entry as usize].push(u64::from(*row));
                contents.push(self.entries[*entry as usize].contents[*row as usize]);
            } else if let Some(error) = self.failure(key) {
                errors.push(error.clone());
            }
        }
        contents.sort_unstable();
        let mut blobs = BTreeSet::new();
        let chosen = self.entries.iter().zip(rows).filter(|(_, rows)| !rows.is_empty());
        let parts = chosen.filter_map(|(entry, mut rows)| {
            blobs.extend(&entry.blobs);
            rows.sort_unstable();
            let total = entry.contents.len() as u64;
            let chosen = (rows.len() as u64 != total).then(|| runs(&rows));
            Some(PartRef { part: entry.part?, bytes: entry.bytes, rows: total, chosen })
        });
        let parts = parts.collect();
        Chosen { parts, errors, blobs: blobs.into_iter().collect(), content: content(&contents) }
    }

    /// The table that was made as a whole; empty before it was.
    pub fn whole(&self) -> Chosen {
        let contents = self.entries.last().map_or(&[][..], |entry| &entry.contents);
        let part = |entry: &Entry| {
            Some(PartRef { part: entry.part?, bytes: entry.bytes, rows: entry.contents.len() as u64, chosen: None })
        };
        Chosen {
            parts: self.entries.last().and_then(part).into_iter().collect(),
            errors: Vec::new(),
            blobs: self.entries.last().map(|entry| entry.blobs.clone()).unwrap_or_default(),
            content: content(contents),
        }
    }
}

/// The digest of rows' digests.
pub(super) fn content(rows: &[Digest]) -> Digest {
    let mut hasher = Hasher::new("table");
    rows.iter().for_each(|row| {
        hasher.field(row.as_bytes());
    });
    hasher.finish()
}
