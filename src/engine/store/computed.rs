//! What a stage has computed before, by key, and the tables that are made of it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::manifest::{Entry, NAMED, Note, PartRef, RowError, runs};
use super::parquet::Addresses;
use crate::engine::{Digest, digest::DigestMap, identity::content};

/// What a stage has computed before, by key. Of two results for one key the later counts.
#[derive(Default)]
pub struct ComputedRows {
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
    /// Remarks on the rows.
    pub notes: Vec<Note>,
    /// The content of all rows.
    pub content: Digest,
}

impl ComputedRows {
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

    /// Where the rows with these keys lie: parts, and `(part, row)` of each. Keys that are not known are passed over.
    pub fn places<'k>(&self, keys: impl Iterator<Item = &'k Digest>) -> Addresses {
        let mut numbers = HashMap::new();
        let (mut parts, mut places) = (Vec::new(), Vec::new());
        for key in keys {
            let Some((entry, row)) = self.rows.get(key) else { continue };
            let Some(part) = self.entries[*entry as usize].part else { continue };
            let number = *numbers.entry(part).or_insert_with(|| {
                parts.push(part);
                parts.len() as u32 - 1
            });
            places.push((number, u64::from(*row)));
        }
        (parts, places)
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
        let notes = self.notes(keys);
        Chosen { parts, errors, blobs: blobs.into_iter().collect(), notes, content: content(&contents) }
    }

    /// The remarks on the rows with these keys, by text.
    fn notes(&self, keys: &[Digest]) -> Vec<Note> {
        let noted = self.entries.iter().zip(0u32..).filter(|(entry, _)| !entry.notes.is_empty());
        let noted: Vec<(&Entry, u32)> = noted.collect();
        if noted.is_empty() {
            return Vec::new();
        }
        let chosen: HashSet<&Digest> = keys.iter().collect();
        let mut notes: BTreeMap<&str, Note> = BTreeMap::new();
        for (entry, at) in noted {
            for note in &entry.notes {
                // Of two results for one key the later counts, and so do its remarks.
                let counts = |key: &Digest| chosen.contains(key) && self.rows.get(key).is_some_and(|row| row.0 == at);
                for (i, _) in note.keys.iter().enumerate().filter(|(_, key)| counts(key)) {
                    let all = notes.entry(&note.what).or_insert_with(|| Note::new(note.what.clone()));
                    all.count += 1;
                    all.names.extend(note.names.get(i).filter(|_| all.names.len() < NAMED).cloned());
                }
            }
        }
        notes.into_values().map(|note| Note { of: Some(keys.len() as u64), ..note }).collect()
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
            notes: self.entries.last().map(whole_notes).unwrap_or_default(),
            content: content(contents),
        }
    }
}

/// The remarks on a table that was made as a whole.
fn whole_notes(entry: &Entry) -> Vec<Note> {
    let note = |note: &super::manifest::EntryNote| Note {
        what: note.what.clone(),
        count: note.count,
        of: None,
        names: note.names.clone(),
    };
    entry.notes.iter().map(note).collect()
}
