//! The work that a table needs: none, some rows, or tables above it first. Planning reads only light columns and never
//! a tensor.

use std::{borrow::Cow, collections::BTreeSet};

use arrow::{
    array::{Array, RecordBatch, UInt32Array},
    compute::take_record_batch,
};

use super::{
    added::join_added,
    rows::{Joined, RowAddresses, join, table_content},
    state::{PENDING, Pending, TableState, TableStates},
};
use crate::engine::{
    Digest, Error, Result,
    arrow_schema::encode_schema,
    clock::now_ms,
    identity::{self, InputRead, fingerprint},
    pipeline::{Input, OnError, Table, is_called},
    source::Sources,
    stage::{At, Listing, Reads, SOURCE, Sample, SampledInput, SampledRows},
    store::{
        Chosen, Compacted, ComputedRows, Entry, Inventory, Manifest, PartRef, Provenance, Recorded, Store, blob_name,
        part_name, project, row_digests, sort_by_id, stored_schema,
    },
};

/// Results in the store that planning must not use, although they seem fresh.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// Tables to compute again.
    pub force: Vec<String>,
    /// True if rows are computed again that failed and were left out.
    pub retry_errors: bool,
    /// Parts and blobs that turned out to be damaged or missing.
    pub lost: BTreeSet<Digest>,
}

/// Finds the work that tables need.
#[derive(Clone, Debug)]
pub struct Planner<'a> {
    /// The store of the tables.
    pub store: &'a Store,
    /// The access to files and URLs outside the store.
    pub sources: &'a Sources,
    /// Results that must not be used.
    pub overrides: &'a Overrides,
    /// The parts and blobs that the store has.
    pub inventory: &'a Inventory,
}

/// A table that is not fresh: its identity and its rows, before its results are looked up.
pub struct Identified<'a> {
    table: &'a Table,
    /// The key under which its results are recorded: the fingerprint, or the key of a table that is made as a whole.
    pub stage_key: Digest,
    made: Provenance,
    files: Vec<(String, Digest)>,
    joined: Joined,
    listed: Option<Listing>,
    base: Digest,
    keys: Vec<Digest>,
    /// True if the published rows stay, and `joined` has only the rows that are added to them.
    is_added: bool,
}

/// Rows of a published table that stay as they are.
pub struct Kept {
    /// Their parts.
    parts: Vec<PartRef>,
    /// The number of the rows.
    rows: u64,
}

/// The rows of a table and which of them must be computed.
pub struct TableWork<'a> {
    /// The table.
    pub table: &'a Table,
    /// The key under which its results are recorded.
    pub stage_key: Digest,
    /// Its origin, as its manifest will state it.
    pub made: Provenance,
    /// Files that parameters name, and their digests.
    pub files: Vec<(String, Digest)>,
    /// The joined rows without those of `kept`, by id.
    pub joined: Joined,
    /// The rows of the published table, if they stay and others are added to them.
    pub kept: Option<Kept>,
    /// The listed rows of a stage without inputs, by id, and notes on them.
    pub listed: Option<Listing>,
    /// The digest of what all rows have in common; see [`identity::base`].
    base: Digest,
    /// The joined rows' keys; empty for a table that is made as a whole.
    pub keys: Vec<Digest>,
    /// The results that the store already has.
    pub known: ComputedRows,
    /// The time of the latest of these records, in milliseconds since 1970, by the clock of the machine that wrote it.
    pub after: u64,
    /// True if it is computed again although its results are known.
    pub forced: bool,
    /// Parts and blobs of earlier results that are damaged or missing: their rows count as not computed.
    pub lost: BTreeSet<Digest>,
    /// The names of records that are damaged: their rows count as not computed.
    pub damaged: Vec<String>,
    /// The positions in `joined` of the rows that must be computed. For a table that is made as a whole it is `[0]` or
    /// empty.
    pub stale: Vec<usize>,
}

impl<'a> Planner<'a> {
    /// Finds the identity of a table; `None` if it is published and up to date. `views` holds every table above it.
    pub fn identify(&self, table: &'a Table, views: &TableStates) -> Result<Option<Identified<'a>>> {
        let files = table.stage.files().map_err(|misfit| Error::from(misfit).in_table(&table.name))?;
        let digest = |address: String| Ok((address.clone(), self.sources.digest(&address)?));
        let files = files.into_iter().map(digest).collect::<Result<_>>();
        self.identify_with(table, views, files.map_err(|error| error.in_table(&table.name))?)
    }

    /// Does as [`identify`](Self::identify) for a table whose files are not all here, which counts as one with files that
    /// no other has. Returns it with the reason; `None` if all are here.
    pub fn identify_absent(
        &self,
        table: &'a Table,
        views: &TableStates,
    ) -> Result<Option<(Option<Identified<'a>>, String)>> {
        match table.stage.files() {
            Err(misfit) if matches!(misfit.at, At::Absent(_)) => {
                let message = misfit.to_string();
                let files = vec![(message.clone(), Digest::of(PENDING))];
                Ok(Some((self.identify_with(table, views, files)?, message)))
            }
            _ => Ok(None),
        }
    }

    fn identify_with(
        &self,
        table: &'a Table,
        views: &TableStates,
        files: Vec<(String, Digest)>,
    ) -> Result<Option<Identified<'a>>> {
        let named = |error: Error| error.in_table(&table.name);
        let params = table.stage.identity();
        let fingerprint = fingerprint(table.kind.name, table.stage.revision(), &params, &files, &table.output);
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
            inputs.push((input.table.clone(), identity::read(&input.port, input.reads == Reads::Table, content)));
        }
        let (stage, revision) = (table.kind.name.to_owned(), table.stage.revision());
        // The manifest has a digest in place of each secret, which distinguishes secrets and shows none.
        let secrets = &table.secrets;
        let filter = table.filter.as_ref().map(|filter| secrets.identify(filter.text.clone()));
        let params = secrets.identify_in(params);
        let shown = files.iter().map(|(path, digest)| (secrets.hide(path.clone()), *digest)).collect();
        let model = if table.stage.states_model() { Some(model(table, views)?) } else { None };
        let made = Provenance { stage, revision, params, files: shown, fingerprint, inputs, model, filter };
        if let Some(TableState { manifest, .. }) = views.get(&table.name)
            && made.makes_the_same(manifest)
            && self.trusts(table, manifest)?
        {
            return Ok(None);
        }
        let added = self.added(table, &made, views)?;
        let is_added = added.is_some();
        let joined = match (&listed, listed_rows) {
            (Some(listed), Some(digests)) => Joined::listed(&listed.rows, digests).map_err(named)?,
            _ => added.map_or_else(|| join(table, self.store, views), Ok)?,
        };
        let base = self.base(table, &made, listed.as_ref(), views)?;
        let row_keys = joined.keys(base);
        let (stage_key, keys) =
            if table.is_keyed() { (fingerprint, row_keys) } else { (identity::whole_key(base, &row_keys), Vec::new()) };
        Ok(Some(Identified { table, stage_key, made, files, joined, listed, base, keys, is_added }))
    }

    /// Returns the rows that are added to the published rows of a table; `None` if anything else changes.
    fn added(&self, table: &Table, made: &Provenance, views: &TableStates) -> Result<Option<Joined>> {
        let Some(TableState { manifest: published, .. }) = views.get(&table.name) else { return Ok(None) };
        let is_whole = |input: &Input| input.reads == Reads::Table;
        let inputs = table.inputs.iter().map(|input| {
            let content = views[&input.table].content_before();
            (input.table.clone(), identity::read(&input.port, is_whole(input), content))
        });
        let before = Provenance { inputs: inputs.collect(), ..made.clone() };
        let is_settled = published.errors.is_empty() && published.rows > 0 && !self.forces(table);
        let stays = |input: &Input| views[&input.table].content() == views[&input.table].content_before();
        let may_stay = table.is_keyed()
            && table.inputs.iter().any(|input| !is_whole(input))
            && table.inputs.iter().all(|input| input.reads != Reads::Pieces)
            && table.inputs.iter().all(|input| !is_whole(input) || stays(input))
            && is_settled
            && before.makes_the_same(published);
        if may_stay { join_added(table, self.store, views) } else { Ok(None) }
    }

    /// Returns the digest of what all rows of a table have in common; see [`identity::base`].
    fn base(&self, table: &Table, made: &Provenance, listed: Option<&Listing>, views: &TableStates) -> Result<Digest> {
        let schemas = table.inputs.iter().map(|input| {
            let stored = views[&input.table].manifest.schema()?;
            project(&stored, &input.columns)
        });
        let schemas = schemas.collect::<Result<Vec<_>>>()?;
        let read = table.inputs.iter().zip(&schemas).map(|(input, schema)| {
            let content = match input.reads {
                Reads::Rows | Reads::Pieces => None,
                Reads::Table => Some(table_content(self.store, &views[&input.table], &input.columns)?),
            };
            Ok(InputRead { port: &input.port, schema, content })
        });
        let read = read.collect::<Result<Vec<_>>>()?;
        let listed = listed.map(|listed| listed.rows.schema_ref().as_ref());
        Ok(identity::base(made.fingerprint, listed, &read, made.model))
    }

    /// Returns true if a published table with the right origin may be used as it is: none of its rows has to be tried
    /// again, it is not forced, and no object of it is lost.
    pub fn trusts(&self, table: &Table, previous: &Manifest) -> Result<bool> {
        let settled = previous.errors.is_empty() || (table.on_error == OnError::Skip && !self.overrides.retry_errors);
        Ok(settled && !self.forces(table) && !self.has_lost(previous)?)
    }

    /// Returns true if a table holds a part or a blob that is damaged or missing.
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

    /// Returns true if an object is known to be damaged, or is missing. `part` is the size of a part in bytes; `None`
    /// means a blob.
    fn is_lost(&self, digest: Digest, part: Option<u64>) -> Result<bool> {
        let is_there = || match part {
            Some(bytes) => self.inventory.has(self.store, &part_name(digest), Some(bytes)),
            None => self.inventory.has(self.store, &blob_name(digest), None),
        };
        Ok(self.overrides.lost.contains(&digest) || !is_there()?)
    }

    /// Returns the parts and blobs of these results that are damaged or missing.
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
        self.overrides.force.iter().any(|name| is_called(table, name))
    }
}

/// Returns the digest of a table's model. `views` holds the tables that it consists of.
fn model(table: &Table, views: &TableStates) -> Result<Digest> {
    let part = |name: &String| {
        let gone = || Error::Input(format!("table `{}` follows from `{name}`, which is not computed yet", table.name));
        views.get(name).map(TableState::part_of_model).ok_or_else(gone)
    };
    Ok(identity::model(table.model.iter().map(part).collect::<Result<_>>()?))
}

impl Provenance {
    /// Returns true if a published table equals the one that would be made. Files are compared by content and not by
    /// path.
    fn makes_the_same(&self, published: &Manifest) -> bool {
        let old = &published.made;
        !published.retired
            && old.fingerprint == self.fingerprint
            && old.inputs == self.inputs
            && old.model == self.model
            && old.filter == self.filter
    }
}

impl<'a> Identified<'a> {
    /// Returns true if a manifest is that of this very table, which another run may have published meanwhile.
    pub fn is(&self, manifest: &Manifest) -> bool {
        self.made.makes_the_same(manifest)
    }

    /// Looks up the results that the store already has, and finds the rows that must be computed.
    pub fn complete(self, planner: &Planner<'_>, views: &TableStates) -> Result<TableWork<'a>> {
        let Self { table, stage_key, made, files, mut joined, listed, base, mut keys, is_added } = self;
        let forced = planner.forces(table);
        let Recorded { entries, damaged } = planner.store.computed(stage_key)?;
        let after = entries.iter().map(|entry| entry.recorded_ms).max().unwrap_or(0);
        let mut known = if is_added { ComputedRows::only(&keys) } else { ComputedRows::default() };
        let mut lost = BTreeSet::new();
        if !forced {
            lost = planner.lost(&entries)?;
            known.extend(entries.into_iter().filter(|entry| !entry.objects().any(|digest| lost.contains(&digest))));
        }
        let published = views.get(&table.name).map(|view| &view.manifest).filter(|_| is_added);
        let kept = published.filter(|published| known.holds(&published.parts));
        let kept = kept.map(|published| Kept { parts: published.parts.clone(), rows: published.rows });
        if is_added && kept.is_none() {
            joined = join(table, planner.store, views)?;
            keys = joined.keys(base);
            known = known.unrestricted();
        }
        let skips = table.on_error == OnError::Skip && !planner.overrides.retry_errors;
        let stale = if table.is_keyed() {
            let settled = |key: &Digest| known.has(key) || (skips && known.failure(key).is_some());
            (0..keys.len()).filter(|row| !settled(&keys[*row])).collect()
        } else if known.is_empty() {
            vec![0]
        } else {
            Vec::new()
        };
        Ok(TableWork {
            table,
            stage_key,
            made,
            files,
            joined,
            kept,
            listed,
            base,
            keys,
            known,
            after,
            forced,
            lost,
            damaged,
            stale,
        })
    }
}

impl TableWork<'_> {
    /// Returns the number of rows that the table will have; 0 for a table that is made as a whole and not computed yet.
    pub fn total(&self) -> u64 {
        if self.table.is_keyed() {
            self.kept.as_ref().map_or(0, |kept| kept.rows) + self.keys.len() as u64
        } else {
            self.known.whole().parts.iter().map(PartRef::len).sum()
        }
    }

    /// Returns the number of rows that the table is made from.
    pub fn read_rows(&self) -> u64 {
        self.kept.as_ref().map_or(0, |kept| kept.rows) + self.joined.ids.len() as u64
    }

    /// Returns the part of the table that is still to be computed.
    pub fn pending(&self) -> Pending {
        match (self.stale.as_slice(), self.table.is_keyed()) {
            ([], _) => Pending::Nothing,
            (_, false) => Pending::Everything,
            (rows, true) => Pending::Rows(rows.iter().map(|row| self.joined.ids.value(*row).to_owned()).collect()),
        }
    }

    /// Returns the columns of the rows to compute that the stage writes as they are listed, so that their values are
    /// known.
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

    fn kept_parts(&self) -> &[PartRef] {
        self.kept.as_ref().map_or(&[], |kept| &kept.parts)
    }

    /// Returns the parts with the rows that are already computed.
    pub fn parts(&self) -> Vec<PartRef> {
        self.known.outline(self.kept_parts(), &self.keys, self.total()).parts
    }

    /// Takes rows from the entries into which they were rewritten.
    pub fn take_over(&mut self, Compacted { entries, replaced }: &Compacted) {
        if let Some(kept) = &mut self.kept {
            kept.parts.retain(|part| !replaced.contains(&part.part));
            kept.parts.extend(entries.iter().filter_map(PartRef::of));
        }
        self.known.extend(entries.iter().cloned());
    }

    /// Returns the manifest of the rows that are known.
    pub fn manifest(&self, run: &str) -> Manifest {
        let chosen = match self.table.is_keyed() {
            true => self.known.choose(self.kept_parts(), &self.keys, self.total()),
            false => self.known.whole(),
        };
        self.manifest_of(chosen, run)
    }

    /// Returns the manifest as far as a plan needs it. While rows are still to be computed, it lacks the content
    /// digest, which takes long to compute and which no plan reads.
    pub fn outline(&self) -> Manifest {
        if self.stale.is_empty() || !self.table.is_keyed() {
            return self.manifest("");
        }
        self.manifest_of(self.known.outline(self.kept_parts(), &self.keys, self.total()), "")
    }

    fn manifest_of(&self, chosen: Chosen, run: &str) -> Manifest {
        let Self { table, .. } = self;
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

    /// Returns the table in the form in which its stage reviews it. `manifest` is that of its rows, `views` holds the
    /// tables that it is made from.
    pub fn sample<'s>(&'s self, store: &'s Store, views: &'s TableStates, manifest: &'s Manifest) -> Sample<'s> {
        let whole = self.table.inputs.iter().filter(|input| input.reads == Reads::Table);
        let whole = whole.filter_map(|input| Some((input.port.as_str(), &*views.get(&input.table)?.manifest)));
        Sample { store, manifest, whole: whole.collect(), all: Box::new(move || self.all(store, views)) }
    }

    /// Returns all rows of the table, including those that are kept.
    fn all<'s>(&'s self, store: &'s Store, views: &TableStates) -> Result<SampledRows<'s>> {
        let mut inputs = Vec::new();
        let mut add = |port: &str, parts, at| {
            let input = self.table.inputs.iter().find(|input| input.port == port);
            let input = input.ok_or_else(|| Error::Stage(format!("no input at port `{port}`")))?;
            let schema = views[&input.table].manifest.schema()?;
            inputs.push(SampledInput { port: port.to_owned(), schema, parts, at });
            Ok::<_, Error>(())
        };
        if self.kept.is_none() {
            for RowAddresses { port, parts, at } in &self.joined.places {
                add(port, Cow::Borrowed(&parts[..]), Cow::Borrowed(&at[..]))?;
            }
            let (keys, known) = (Cow::Borrowed(&self.keys[..]), Cow::Borrowed(&self.known));
            return Ok(SampledRows { ids: self.joined.ids.clone(), keys, known, inputs });
        }
        let joined = join(self.table, store, views)?;
        let keys = Cow::Owned(joined.keys(self.base));
        for RowAddresses { port, parts, at } in joined.places {
            add(&port, Cow::Owned(parts), Cow::Owned(at))?;
        }
        let known = Cow::Owned(self.known.clone().unrestricted());
        Ok(SampledRows { ids: joined.ids, keys, known, inputs })
    }
}
