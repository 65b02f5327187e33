//! A table as the tables below it see it while a pipeline is planned.

use std::{collections::BTreeMap, sync::Arc};

use arrow::array::RecordBatch;

use crate::engine::{
    Digest, Hasher, Result,
    pipeline::{Pipeline, Table},
    store::{Current, Manifest, Store},
};

/// A table as the tables below it see it.
#[derive(Clone, Debug)]
pub struct TableState {
    /// The version that is published; 0 before the first.
    pub version: u64,
    /// Its rows and what they were made from.
    pub manifest: Arc<Manifest>,
    /// The rows that are still to be computed.
    pub pending: Pending,
    /// Columns of the pending rows whose values are known before they are computed, in the order of the rows.
    pub known: Option<RecordBatch>,
    /// The manifest that was published when the run or plan began, if the table was made again since. Tables below may
    /// still be made from that version.
    pub before: Option<Arc<Manifest>>,
}

impl TableState {
    /// Makes the state of a published table.
    pub fn new(version: u64, manifest: Manifest) -> Self {
        Self { version, manifest: Arc::new(manifest), pending: Pending::Nothing, known: None, before: None }
    }

    /// Replaces the state of a table, and remembers the manifest that was published before.
    pub fn replace(views: &mut TableStates, name: &str, view: Self) {
        let before = views.remove(name).map(|old| old.before.unwrap_or(old.manifest));
        views.insert(name.to_owned(), Self { before, ..view });
    }

    /// Returns the manifest that was published when the run or plan began.
    pub(in crate::engine) fn before(&self) -> &Manifest {
        self.before.as_deref().unwrap_or(&self.manifest)
    }
}

/// The part of a table that is still to be computed, as far as a plan can tell.
#[derive(Clone, Debug, PartialEq)]
pub enum Pending {
    /// Nothing: it is published.
    Nothing,
    /// The rows with these ids.
    Rows(Vec<String>),
    /// The whole table; its rows are not known.
    Everything,
}

/// The tables of a pipeline, by name.
pub type TableStates = BTreeMap<String, TableState>;

/// The published tables of a pipeline.
#[derive(Debug, Default)]
pub struct Found {
    /// The tables whose manifests are undamaged.
    pub views: TableStates,
    /// The version of each other table, and the damage of its manifest. These tables count as not published and are
    /// published again.
    pub damaged: BTreeMap<String, (u64, String)>,
}

/// Reads the published versions of a pipeline's tables.
pub fn published(pipeline: &Pipeline, store: &Store) -> Result<Found> {
    let slots: Vec<String> = pipeline.tables.iter().map(Table::slot).collect();
    let mut found = Found::default();
    for (table, current) in pipeline.tables.iter().zip(store.current(&pipeline.name, &slots)?) {
        match current {
            Current::Absent => {}
            Current::Damaged { version, message } => {
                found.damaged.insert(table.name.clone(), (version, message));
            }
            Current::Whole(version, manifest) => {
                found.views.insert(table.name.clone(), TableState::new(version, *manifest));
            }
        }
    }
    Ok(found)
}

/// The content whose digest stands for rows that are not computed yet. No computed row has a key that is made of it.
pub(in crate::engine) const PENDING: &[u8] = b"pending";

impl TableState {
    /// Returns the number of rows that it will have, as far as that is known.
    pub(in crate::engine) fn rows(&self) -> u64 {
        let pending = if let Pending::Rows(rows) = &self.pending { rows.len() as u64 } else { 0 };
        self.manifest.rows + pending
    }

    /// Returns the digest of everything that a stage can read of the table: its rows, and the names and types of its
    /// columns. It differs while rows are pending.
    pub fn content(&self) -> Digest {
        content_of(&self.manifest, self.pending != Pending::Nothing)
    }

    /// Returns the table as a part of the [model](crate::engine::identity::model) of others: its declared name and its content.
    pub fn part_of_model(&self) -> (&str, Digest) {
        (&self.manifest.table, self.content())
    }

    /// Returns [`TableState::content`] of the manifest that [`TableState::before`] returns.
    pub(in crate::engine) fn content_before(&self) -> Digest {
        content_of(self.before(), false)
    }
}

fn content_of(manifest: &Manifest, is_pending: bool) -> Digest {
    let mut hasher = Hasher::new("view");
    hasher.field(manifest.content.as_bytes()).field(manifest.schema.as_bytes());
    if is_pending {
        hasher.field(PENDING);
    }
    hasher.finish()
}
