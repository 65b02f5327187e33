//! The results that a stage has recorded, by key, and the tables that are made of them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use rayon::prelude::*;

use super::manifest::{Entry, EntryNote, NAMED, Note, PartRef, RowError, runs};
use super::parquet::Addresses;
use crate::engine::{Digest, Result, digest::DigestMap, identity::content};

/// The results that a stage has recorded, by key. The later of two results for one key counts.
#[derive(Clone, Default)]
pub struct ComputedRows {
    entries: Vec<Entry>,
    /// The keys that are looked up, if they are few; `None` means all.
    only: Option<DigestMap<()>>,
    rows: DigestMap<(u32, u32)>,
    failed: DigestMap<(u32, u32)>,
}

/// The rows that make a table, in the terms of a manifest.
pub struct Chosen {
    /// Its parts.
    pub parts: Vec<PartRef>,
    /// Rows that failed.
    pub errors: Vec<RowError>,
    /// Blobs that the rows name.
    pub blobs: Vec<Digest>,
    /// Notes on the rows.
    pub notes: Vec<Note>,
    /// The digest of the contents of all rows.
    pub content: Digest,
}

impl ComputedRows {
    /// Makes an empty set of results in which only these keys are looked up, so that no other key is indexed.
    pub fn only(keys: &[Digest]) -> Self {
        Self { only: Some(keys.iter().map(|key| (*key, ())).collect()), ..Self::default() }
    }

    /// Returns the same results with an index of every key.
    pub fn unrestricted(self) -> Self {
        let mut all = Self::default();
        all.extend(self.entries);
        all
    }

    /// Adds results, the latest last.
    pub fn extend(&mut self, entries: impl IntoIterator<Item = Entry>) {
        let Self { entries: known, only, rows, failed } = self;
        for entry in entries {
            let at = known.len() as u32;
            let new = entry.keys.iter().zip(0..).map(|(key, row)| (*key, (at, row)));
            match only {
                None => rows.extend(new),
                Some(only) => rows.extend(new.filter(|(key, _)| only.contains_key(key))),
            }
            for (error, i) in entry.errors.iter().zip(0..) {
                rows.remove(&error.key);
                failed.insert(error.key, (at, i));
            }
            known.push(entry);
        }
    }

    /// Returns true if there are no results.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns true if the row with this key was computed.
    pub fn has(&self, key: &Digest) -> bool {
        self.rows.contains_key(key)
    }

    /// Returns the failure of the row with this key, if it has failed.
    pub fn failure(&self, key: &Digest) -> Option<&RowError> {
        self.failed.get(key).map(|(entry, i)| &self.entries[*entry as usize].errors[*i as usize])
    }

    /// Returns the addresses of the rows with these keys: the parts, and `(part, row)` of each row. Unknown keys are
    /// skipped.
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

    /// Returns the numbers of the rows that these parts choose, by entry; `None` if a part is unknown, or if its number
    /// of rows is not that of its entry.
    fn rows_of(&self, parts: &[PartRef]) -> Option<Vec<Vec<u64>>> {
        let numbers: HashMap<Digest, usize> =
            self.entries.iter().enumerate().filter_map(|(at, entry)| Some((entry.part?, at))).collect();
        let mut rows = vec![Vec::new(); self.entries.len()];
        for part in parts {
            let at = *numbers.get(&part.part)?;
            rows[at] = part.row_numbers();
            let total = self.entries[at].keys.len().min(self.entries[at].contents.len()) as u64;
            if part.rows != total || rows[at].last().is_some_and(|last| *last >= total) {
                return None;
            }
        }
        Some(rows)
    }

    /// Returns true if [`ComputedRows::choose`] would choose these very parts for the keys of their rows: all rows are
    /// known, and none has a later result.
    pub fn holds(&self, parts: &[PartRef]) -> bool {
        let Some(rows) = self.rows_of(parts) else { return false };
        let mut later: DigestMap<usize> = DigestMap::default();
        for (at, entry) in self.entries.iter().enumerate() {
            let others = if rows[at].is_empty() { &entry.keys[..] } else { &[] };
            later.extend(others.iter().chain(entry.errors.iter().map(|error| &error.key)).map(|key| (*key, at)));
        }
        let is_last = |at: usize, key: &Digest| later.get(key).is_none_or(|later| *later < at);
        later.is_empty()
            || rows
                .iter()
                .enumerate()
                .all(|(at, rows)| rows.iter().all(|row| is_last(at, &self.entries[at].keys[*row as usize])))
    }

    /// Returns the table of the rows with these keys and of the rows of some parts, which must be
    /// [held](ComputedRows::holds). Keys of failed rows become its errors. `of` is the number of rows that the table
    /// should have, which notes state.
    pub fn choose(&self, parts: &[PartRef], keys: &[Digest], of: u64) -> Chosen {
        let rows = self.select(parts, keys);
        let mut contents = Vec::new();
        for (entry, rows) in self.entries.iter().zip(&rows) {
            contents.extend(rows.iter().map(|row| entry.contents[*row as usize]));
        }
        contents.par_sort_unstable();
        Chosen { content: content(&contents), ..self.outlined(rows, keys, of) }
    }

    /// Does as [`ComputedRows::choose`], but without the digest of the contents, which takes long to compute.
    pub fn outline(&self, parts: &[PartRef], keys: &[Digest], of: u64) -> Chosen {
        self.outlined(self.select(parts, keys), keys, of)
    }

    /// Returns the rows of some parts and of some keys, by entry, as ascending row numbers.
    fn select(&self, parts: &[PartRef], keys: &[Digest]) -> Vec<Vec<u64>> {
        let mut rows = self.rows_of(parts).unwrap_or_else(|| vec![Vec::new(); self.entries.len()]);
        for (entry, row) in keys.iter().filter_map(|key| self.rows.get(key)) {
            rows[*entry as usize].push(u64::from(*row));
        }
        rows.iter_mut().for_each(|rows| {
            rows.sort_unstable();
            rows.dedup();
        });
        rows
    }

    fn outlined(&self, rows: Vec<Vec<u64>>, keys: &[Digest], of: u64) -> Chosen {
        let failed = keys.iter().filter(|_| !self.failed.is_empty());
        let errors = failed.filter(|key| !self.has(key)).filter_map(|key| self.failure(key).cloned()).collect();
        let notes = self.notes(&rows, of);
        let mut blobs = BTreeSet::new();
        let chosen = self.entries.iter().zip(rows).filter(|(_, rows)| !rows.is_empty());
        let parts = chosen.filter_map(|(entry, rows)| {
            blobs.extend(&entry.blobs);
            let total = entry.contents.len() as u64;
            let chosen = (rows.len() as u64 != total).then(|| runs(&rows));
            Some(PartRef { part: entry.part?, bytes: entry.bytes, rows: total, chosen })
        });
        let parts = parts.collect();
        Chosen { parts, errors, blobs: blobs.into_iter().collect(), notes, content: content(&[]) }
    }

    /// Returns the notes on chosen rows, sorted by text. `rows` has the row numbers by entry, `of` is the number of
    /// rows that the table should have.
    fn notes(&self, rows: &[Vec<u64>], of: u64) -> Vec<Note> {
        let mut notes: BTreeMap<&str, Note> = BTreeMap::new();
        for (entry, rows) in self.entries.iter().zip(rows).filter(|(entry, _)| !entry.notes.is_empty()) {
            // If a key has two results, only the notes of the chosen one count.
            let chosen: HashSet<&Digest> = rows.iter().map(|row| &entry.keys[*row as usize]).collect();
            for note in &entry.notes {
                for (i, _) in note.keys.iter().enumerate().filter(|(_, key)| chosen.contains(key)) {
                    let all = notes.entry(&note.what).or_insert_with(|| Note::new(note.what.clone()));
                    all.count += 1;
                    all.names.extend(note.names.get(i).filter(|_| all.names.len() < NAMED).cloned());
                }
            }
        }
        notes.into_values().map(|note| Note { of: Some(of), ..note }).collect()
    }

    /// Returns one entry for the rows of these parts, in the order in which the parts name them, but without the part
    /// that will hold them. `None` if a part is unknown.
    pub(in crate::engine) fn merged(&self, parts: &[PartRef]) -> Result<Option<Entry>> {
        let Some(rows) = self.rows_of(parts) else { return Ok(None) };
        let by_part: HashMap<Digest, usize> =
            self.entries.iter().enumerate().filter_map(|(at, entry)| Some((entry.part?, at))).collect();
        let (mut keys, mut contents, mut blobs) = (Vec::new(), Vec::new(), BTreeSet::new());
        // The rows of each text: those with a name, then the others, because names belong to the first keys of a
        // note.
        let mut noted: BTreeMap<&str, [Vec<(Digest, Option<&String>)>; 2]> = BTreeMap::new();
        for part in parts {
            let at = by_part[&part.part];
            let (entry, rows) = (&self.entries[at], &rows[at]);
            let first = keys.len();
            keys.extend(rows.iter().map(|row| entry.keys[*row as usize]));
            contents.extend(rows.iter().map(|row| entry.contents[*row as usize]));
            blobs.extend(entry.blobs.iter().copied());
            if entry.notes.is_empty() {
                continue;
            }
            let chosen: HashSet<&Digest> = keys[first..].iter().collect();
            for note in &entry.notes {
                for (i, key) in note.keys.iter().enumerate().filter(|(_, key)| chosen.contains(key)) {
                    let name = note.names.get(i);
                    noted.entry(&note.what).or_default()[usize::from(name.is_none())].push((*key, name));
                }
            }
        }
        let notes = noted.into_iter().map(|(what, [named, others])| EntryNote {
            what: what.to_owned(),
            keys: named.iter().chain(&others).map(|(key, _)| *key).collect(),
            count: 0,
            names: named.iter().filter_map(|(_, name)| name.cloned()).collect(),
        });
        let (notes, blobs) = (notes.collect(), blobs.into_iter().collect());
        let recorded_ms = self.entries.iter().map(|entry| entry.recorded_ms).max().unwrap_or(0) + 1;
        let replaces = self.covered(&keys)?;
        Ok(Some(Entry {
            part: None,
            bytes: 0,
            keys,
            contents,
            errors: Vec::new(),
            blobs,
            notes,
            replaces,
            recorded_ms,
        }))
    }

    /// Returns the records whose rows are all among these keys, and the records that those replace.
    fn covered(&self, keys: &[Digest]) -> Result<Vec<Digest>> {
        let keys: HashSet<&Digest> = keys.iter().collect();
        let mut covered = Vec::new();
        for entry in self.entries.iter().filter(|entry| entry.errors.is_empty() && !entry.keys.is_empty()) {
            if entry.keys.iter().all(|key| keys.contains(key)) {
                covered.extend(entry.names()?.iter().chain(&entry.replaces));
            }
        }
        Ok(covered)
    }

    /// Returns the table of a stage that makes it as a whole; it is empty if it was not made yet.
    pub fn whole(&self) -> Chosen {
        let contents = self.entries.last().map_or(&[][..], |entry| &entry.contents);
        Chosen {
            parts: self.entries.last().and_then(PartRef::of).into_iter().collect(),
            errors: Vec::new(),
            blobs: self.entries.last().map(|entry| entry.blobs.clone()).unwrap_or_default(),
            notes: self.entries.last().map(whole_notes).unwrap_or_default(),
            content: content(contents),
        }
    }
}

/// Returns the notes on a table that was made as a whole.
fn whole_notes(entry: &Entry) -> Vec<Note> {
    let note =
        |note: &EntryNote| Note { what: note.what.clone(), count: note.count, of: None, names: note.names.clone() };
    entry.notes.iter().map(note).collect()
}
