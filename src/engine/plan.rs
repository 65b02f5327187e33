//! What a table needs: nothing, some rows, or tables above it first. Planning reads light columns only, never a tensor.

use std::collections::{BTreeMap, BTreeSet};

use arrow::{
    array::{Array, RecordBatch, UInt32Array},
    compute::take_record_batch,
};
use rayon::prelude::*;

use super::{
    Current, Digest, Error, Result, Sources, Store,
    columns::{row_digests, stored_schema},
    encode_schema,
    event::now_ms,
    identity::{self, InputRead, fingerprint},
    join::{Joined, join, sort_by_id, table_content},
    known::Known,
    manifest::{Entry, Made, Manifest, Note, PartRef},
    parts::project,
    pipeline::{OnError, Pipeline, Table},
    reason::{self, Cause},
    select::is_called,
    stage::{Listing, Reads},
    store::{Inventory, Recorded, blob_name, part_name},
    task::SOURCE,
};

/// Where planning distrusts what the store says is fresh.
#[derive(Clone, Debug, Default)]
pub struct Doubts {
    /// Tables to compute again.
    pub force: Vec<String>,
    /// Compute rows again that failed and were left out.
    pub retry_errors: bool,
    /// Parts and blobs that turned out to be damaged or missing.
    pub lost: BTreeSet<Digest>,
}

/// A table's state and why.
#[derive(Clone, Debug, serde::Serialize)]
pub struct TablePlan {
    /// The table.
    pub table: String,
    /// The stage.
    pub stage: &'static str,
    /// Fresh, stale or blocked.
    #[serde(flatten)]
    pub state: State,
    /// Remarks on the table, as far as its rows are known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<Note>,
}

/// Whether a table can be used as it is.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum State {
    /// Published and up to date.
    Fresh {
        /// Its rows.
        rows: u64,
    },
    /// Rows must be computed, or only chosen and published.
    Stale {
        /// Rows to compute; of a table that is made as a whole 1.
        stale: u64,
        /// Rows it will have; 0 where they come out only when it is computed.
        rows: u64,
        /// A table above is stale: where its new rows come out equal to the old ones, fewer need computing.
        at_most: bool,
        /// Why, the first cause first.
        causes: Vec<Cause>,
    },
    /// Which rows a table above will have is not known yet.
    Blocked {
        /// That table.
        on: String,
    },
}

/// A table as the tables below it see it.
#[derive(Clone, Debug)]
pub struct View {
    /// The version that is published; 0 before the first.
    pub version: u64,
    /// Its rows and what they were made from.
    pub manifest: Manifest,
    /// What of it is still to be computed.
    pub pending: Pending,
    /// Columns of the pending rows whose values are known before they are computed, in the order of the rows.
    pub known: Option<RecordBatch>,
}

impl View {
    /// A published table.
    pub fn new(version: u64, manifest: Manifest) -> Self {
        Self { version, manifest, pending: Pending::Nothing, known: None }
    }
}

/// What of a table is still to be computed, as far as a plan knows.
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
pub type Views = BTreeMap<String, View>;

/// The published tables of a pipeline.
#[derive(Debug, Default)]
pub struct Found {
    /// Those whose manifests are whole.
    pub views: Views,
    /// The version of others and what is wrong with its manifest: they count as not published, and are published again.
    pub damaged: BTreeMap<String, (u64, String)>,
}

/// What is published of a pipeline's tables.
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
                found.views.insert(table.name.clone(), View::new(version, *manifest));
            }
        }
    }
    Ok(found)
}

/// The plan of the tables that `chosen` names, from top to bottom.
pub fn plan(planner: &Planner<'_>, pipeline: &Pipeline, chosen: &BTreeSet<String>) -> Result<Vec<TablePlan>> {
    let Found { mut views, damaged } = published(pipeline, planner.store)?;
    let mut plans = Vec::new();
    // What is not chosen is not looked at: no chosen table is made from it.
    for table in pipeline.tables.iter().filter(|table| chosen.contains(&table.name)) {
        let reads_rows_of = |input: &&super::pipeline::Input| match views.get(&input.table) {
            Some(view) => input.reads == Reads::Rows && view.pending == Pending::Everything,
            None => true,
        };
        let state = if let Some(input) = table.inputs.iter().find(reads_rows_of) {
            views.remove(&table.name);
            State::Blocked { on: input.table.clone() }
        } else {
            match planner.identify(table, &views)? {
                None => State::Fresh { rows: views[&table.name].manifest.rows },
                Some(draft) => {
                    let mut work = draft.complete(planner, views.get(&table.name))?;
                    work.causes.splice(0..0, damaged.get(&table.name).map(|_| Cause::Damaged));
                    let pending = work.pending();
                    let state = State::Stale {
                        stale: work.stale.len() as u64,
                        rows: work.total(),
                        at_most: table.inputs.iter().any(|input| views[&input.table].pending != Pending::Nothing),
                        causes: work.causes.clone(),
                    };
                    let version = views.get(&table.name).map_or(0, |view| view.version);
                    let manifest = work.manifest("");
                    views.insert(table.name.clone(), View { version, manifest, pending, known: work.known_columns()? });
                    state
                }
            }
        };
        let known = views.get(&table.name).filter(|_| !matches!(state, State::Blocked { .. }));
        let notes = known.map(|view| view.manifest.notes.clone()).unwrap_or_default();
        plans.push(TablePlan { table: table.name.clone(), stage: table.kind.name, state, notes });
    }
    Ok(plans)
}

/// Looks at tables.
#[derive(Clone, Debug)]
pub struct Planner<'a> {
    /// Where tables are.
    pub store: &'a Store,
    /// Where their sources are.
    pub sources: &'a Sources,
    /// What not to take for fresh.
    pub doubts: &'a Doubts,
    /// Which parts and blobs the store has.
    pub inventory: &'a Inventory,
}

/// A table that is not fresh: who it is and which rows it has.
pub struct Draft<'a> {
    table: &'a Table,
    /// Where its results are recorded: the fingerprint, or the key of a whole table.
    pub stage_key: Digest,
    made: Made,
    files: Vec<(String, Digest)>,
    joined: Joined,
    listed: Option<Listing>,
    keys: Vec<Digest>,
    pending: Vec<Cause>,
}

/// The rows of a table and which of them must be computed.
pub struct Work<'a> {
    /// The table.
    pub table: &'a Table,
    /// Where results are recorded.
    pub stage_key: Digest,
    /// What it is made from.
    pub made: Made,
    /// Files that parameters name, and their digests.
    pub files: Vec<(String, Digest)>,
    /// The joined rows, by id.
    pub joined: Joined,
    /// The listed rows of a stage without inputs, by id, and remarks on them.
    pub listed: Option<Listing>,
    /// The rows' keys; empty for a whole table.
    pub keys: Vec<Digest>,
    /// What the store already has.
    pub known: Known,
    /// When the last of it was recorded, in milliseconds since 1970, by whatever clock.
    pub after: u64,
    /// Whether it is computed again although it is known.
    pub forced: bool,
    /// Parts and blobs of earlier results that are damaged or missing: their rows count as not computed.
    pub lost: BTreeSet<Digest>,
    /// The names of records that are damaged: their rows count as not computed.
    pub damaged: Vec<String>,
    /// Positions of the rows that must be computed; of a whole table one position, or none.
    pub stale: Vec<usize>,
    /// Why the table is not fresh.
    pub causes: Vec<Cause>,
}

impl<'a> Planner<'a> {
    /// What a table is made from, or `None` where it is published and up to date. `views` holds every table above it.
    pub fn identify(&self, table: &'a Table, views: &Views) -> Result<Option<Draft<'a>>> {
        let named = |error: Error| error.in_table(&table.name);
        let digest = |address: String| Ok((address.clone(), self.sources.digest(&address)?));
        let files = table.stage.files().map_err(|e| named(Error::Input(e)))?;
        let files: Vec<_> = files.into_iter().map(digest).collect::<Result<_>>().map_err(named)?;
        let params = table.kind.identity(&*table.stage);
        let fingerprint = fingerprint(&table.kind, &params, &files, &table.output);
        let listed = table.stage.list(self.sources).map_err(named)?;
        let sorted = |Listing { rows, notes }| Ok::<_, Error>(Listing { rows: sort_by_id(rows)?, notes });
        let listed = listed.map(sorted).transpose()?;
        let listed_rows = listed.as_ref().map(|listed| row_digests(&listed.rows)).transpose()?;
        let mut inputs: Vec<(String, Digest)> = Vec::new();
        if let (Some(listed), Some(rows)) = (&listed, &listed_rows) {
            inputs.push((SOURCE.to_owned(), identity::listing(rows, &listed.notes)));
        }
        for input in &table.inputs {
            let content = views[&input.table].content();
            inputs.push((input.table.clone(), identity::read(&input.port, input.reads, content)));
        }
        let (stage, revision) = (table.kind.name.to_owned(), table.kind.revision);
        // What is kept with the table tells secrets apart, and shows none.
        let secrets = &table.secrets;
        let filter = table.filter.as_ref().map(|filter| secrets.identify(filter.text.clone()));
        let params = secrets.identify_in(params);
        let shown = files.iter().map(|(path, digest)| (secrets.hide(path.clone()), *digest)).collect();
        let made = Made { stage, revision, params, files: shown, fingerprint, inputs, filter };
        if let Some(View { manifest, .. }) = views.get(&table.name)
            && made.makes_the_same(manifest)
            && self.trusts(table, manifest)?
        {
            return Ok(None);
        }
        let joined = match (&listed, listed_rows) {
            (Some(listed), Some(digests)) => Joined::listed(&listed.rows, digests).map_err(named)?,
            _ => join(table, self.store, views)?,
        };
        let base = self.base(table, fingerprint, listed.as_ref(), views)?;
        let row_keys: Vec<Digest> = (0..joined.ids.len()).into_par_iter().map(|row| joined.key(base, row)).collect();
        let (stage_key, keys) =
            if table.is_keyed() { (fingerprint, row_keys) } else { (identity::whole_key(base, &row_keys), Vec::new()) };
        let pending = reason::pending(table, views);
        Ok(Some(Draft { table, stage_key, made, files, joined, listed, keys, pending }))
    }

    /// What the rows of a table have in common: see [`identity::base`].
    fn base(&self, table: &Table, fingerprint: Digest, listed: Option<&Listing>, views: &Views) -> Result<Digest> {
        let schemas = table.inputs.iter().map(|input| {
            let stored = views[&input.table].manifest.schema()?;
            project(&stored, &input.columns)
        });
        let schemas = schemas.collect::<Result<Vec<_>>>()?;
        let read = table.inputs.iter().zip(&schemas).map(|(input, schema)| {
            let content = match input.reads {
                Reads::Rows => None,
                Reads::Table => Some(table_content(self.store, &views[&input.table], &input.columns)?),
            };
            Ok(InputRead { port: &input.port, schema, content })
        });
        let read = read.collect::<Result<Vec<_>>>()?;
        Ok(identity::base(fingerprint, listed.map(|listed| listed.rows.schema_ref().as_ref()), &read))
    }

    /// Whether a table that is made from the right things may be taken as it is.
    pub fn trusts(&self, table: &Table, previous: &Manifest) -> Result<bool> {
        let settled = previous.errors.is_empty() || (table.on_error == OnError::Skip && !self.doubts.retry_errors);
        Ok(settled && !self.forces(table) && !self.has_lost(previous)?)
    }

    /// Whether a table holds a part or a blob that is damaged or missing.
    pub fn has_lost(&self, manifest: &Manifest) -> Result<bool> {
        for part in &manifest.parts {
            if self.is_lost(part.part, Some(part.bytes))? {
                return Ok(true);
            }
        }
        manifest
            .blobs
            .iter()
            .map(|blob| self.is_lost(*blob, None))
            .find(|lost| !matches!(lost, Ok(false)))
            .unwrap_or(Ok(false))
    }

    /// Whether a part, of so many bytes, or a blob is known to be damaged, or is not there.
    fn is_lost(&self, digest: Digest, part: Option<u64>) -> Result<bool> {
        let is_there = || match part {
            Some(bytes) => self.inventory.has(self.store, &part_name(digest), Some(bytes)),
            None => self.inventory.has(self.store, &blob_name(digest), None),
        };
        Ok(self.doubts.lost.contains(&digest) || !is_there()?)
    }

    /// The parts and blobs of these results that are damaged or missing.
    fn lost(&self, recorded: &[Entry]) -> Result<BTreeSet<Digest>> {
        let parts = recorded.iter().filter_map(|entry| Some((entry.part?, Some(entry.bytes))));
        let blobs = recorded.iter().flat_map(|entry| &entry.blobs).map(|blob| (*blob, None));
        let mut lost = BTreeSet::new();
        for (digest, bytes) in parts.chain(blobs) {
            if self.is_lost(digest, bytes)? {
                lost.insert(digest);
            }
        }
        Ok(lost)
    }

    fn forces(&self, table: &Table) -> bool {
        self.doubts.force.iter().any(|name| is_called(table, name))
    }
}

impl Made {
    /// Whether a published table is what would be made. Where a file lies is no part of what is made from it.
    fn makes_the_same(&self, published: &Manifest) -> bool {
        let old = &published.made;
        !published.retired
            && old.fingerprint == self.fingerprint
            && old.inputs == self.inputs
            && old.filter == self.filter
    }
}

impl<'a> Draft<'a> {
    /// Whether another run has published the very table meanwhile.
    pub fn is(&self, manifest: &Manifest) -> bool {
        self.made.makes_the_same(manifest)
    }

    /// Looks up what the store already has.
    pub fn complete(self, planner: &Planner<'_>, previous: Option<&View>) -> Result<Work<'a>> {
        let Self { table, stage_key, made, files, joined, listed, keys, pending } = self;
        let forced = planner.forces(table);
        let Recorded { entries, damaged } = planner.store.computed(stage_key)?;
        let after = entries.iter().map(|entry| entry.recorded_ms).max().unwrap_or(0);
        let mut known = Known::default();
        let mut lost = BTreeSet::new();
        if !forced {
            lost = planner.lost(&entries)?;
            known.extend(entries.into_iter().filter(|entry| !entry.objects().any(|digest| lost.contains(&digest))));
        }
        let skips = table.on_error == OnError::Skip && !planner.doubts.retry_errors;
        let stale = if table.is_keyed() {
            let settled = |key: &Digest| known.has(key) || (skips && known.failure(key).is_some());
            (0..keys.len()).filter(|row| !settled(&keys[*row])).collect()
        } else if known.is_empty() {
            vec![0]
        } else {
            Vec::new()
        };
        let causes = Vec::new();
        let mut work = Work {
            table,
            stage_key,
            made,
            files,
            joined,
            listed,
            keys,
            known,
            after,
            forced,
            lost,
            damaged,
            stale,
            causes,
        };
        work.causes = if forced { vec![Cause::Forced] } else { reason::causes(&work, planner, previous, pending)? };
        Ok(work)
    }
}

impl Work<'_> {
    /// Rows that the table will have, as far as known: those of a whole table come out when it is computed.
    pub fn total(&self) -> u64 {
        if self.table.is_keyed() {
            self.keys.len() as u64
        } else {
            self.known.whole().parts.iter().map(PartRef::len).sum()
        }
    }

    /// What is still to be computed.
    pub fn pending(&self) -> Pending {
        match (self.stale.as_slice(), self.table.is_keyed()) {
            ([], _) => Pending::Nothing,
            (_, false) => Pending::Everything,
            (rows, true) => Pending::Rows(rows.iter().map(|row| self.joined.ids.value(*row).to_owned()).collect()),
        }
    }

    /// The columns of the rows to compute that the listing knows: those that the stage writes as they are listed.
    pub fn known_columns(&self) -> Result<Option<RecordBatch>> {
        let Some(listed) = self.listed.as_ref().filter(|_| self.table.is_keyed()) else { return Ok(None) };
        let rows: UInt32Array = self.stale.iter().map(|row| *row as u32).collect();
        let is_written = |at: &usize| {
            let field = listed.rows.schema_ref().field(*at);
            self.table.output.field_with_name(field.name()).is_ok_and(|out| out.data_type() == field.data_type())
        };
        let written: Vec<usize> = (0..listed.rows.num_columns()).filter(is_written).collect();
        Ok(Some(take_record_batch(&listed.rows.project(&written)?, &rows)?))
    }

    /// What is published of the rows that are known.
    pub fn manifest(&self, run: &str) -> Manifest {
        let Self { table, .. } = self;
        let chosen = if table.is_keyed() { self.known.choose(&self.keys) } else { self.known.whole() };
        let listed = self.listed.iter().flat_map(|listed| listed.notes.clone());
        Manifest {
            table: table.declared.clone(),
            variant: table.variant.clone(),
            made: self.made.clone(),
            schema: encode_schema(&stored_schema(&table.output, table.is_keyed())),
            keyed: table.is_keyed(),
            rows: chosen.parts.iter().map(PartRef::len).sum(),
            parts: chosen.parts,
            content: chosen.content,
            errors: chosen.errors,
            blobs: chosen.blobs,
            notes: listed.chain(self.joined.none_chosen.clone()).chain(chosen.notes).collect(),
            retired: false,
            run: run.to_owned(),
            published_ms: now_ms(),
        }
    }
}
