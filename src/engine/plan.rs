//! What a table needs: nothing, some rows, or tables above it first. Planning reads light columns only, never a tensor.

use std::collections::{BTreeMap, HashMap};

use arrow::{
    array::{Array, AsArray, RecordBatch, StringArray, UInt32Array},
    compute::take_record_batch,
};
use serde_json::Value;

use super::{
    Digest, Error, Hasher, Result, Sources, Store,
    columns::{light_names, row_digests},
    parts::{project, read_table},
    pipeline::{Input, OnError, Pipeline, Table},
    stage::{Reads, fingerprint},
    store::{Entry, Manifest, PartRef, RowError},
    task::SOURCE,
};

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
        /// Rows to compute.
        stale: u64,
        /// Rows it will have.
        rows: u64,
        /// Why, in words.
        reasons: Vec<String>,
    },
    /// A table above is stale, so its rows are not known yet.
    Blocked {
        /// That table.
        on: String,
    },
}

/// The published tables of a pipeline, by name.
pub type Published = BTreeMap<String, Manifest>;

/// The plan of every table, from top to bottom.
pub fn plan(pipeline: &Pipeline, store: &Store, sources: &Sources) -> Result<Vec<TablePlan>> {
    let mut published = published(pipeline, store)?;
    let mut plans = Vec::new();
    for table in &pipeline.tables {
        let blocked = table.inputs.iter().find(|input| !published.contains_key(&input.table));
        let state = match blocked {
            Some(input) => State::Blocked { on: input.table.clone() },
            None => match examine(table, store, sources, &published)? {
                Need::Nothing => State::Fresh { rows: published[&table.name].rows },
                Need::Work(work) => {
                    State::Stale { stale: work.stale.len() as u64, rows: work.total(), reasons: work.reasons.clone() }
                }
            },
        };
        if !matches!(state, State::Fresh { .. }) {
            published.remove(&table.name);
        }
        plans.push(TablePlan { table: table.name.clone(), stage: table.kind.name, state });
    }
    Ok(plans)
}

/// What is published of a pipeline's tables.
pub fn published(pipeline: &Pipeline, store: &Store) -> Result<Published> {
    let find = |table: &Table| {
        Ok(store.published(&pipeline.name, &table.slot())?.map(|(_, manifest)| (table.name.clone(), manifest)))
    };
    pipeline.tables.iter().filter_map(|table| find(table).transpose()).collect()
}

/// What a table needs.
pub enum Need {
    /// It is published and up to date.
    Nothing,
    /// It must be computed or published.
    Work(Box<Work>),
}

/// The rows of a table and which of them must be computed.
pub struct Work {
    /// All but the inputs that can change the output.
    pub fingerprint: Digest,
    /// Where results are recorded: the fingerprint, or the key of a whole table.
    pub stage_key: Digest,
    /// Files that parameters name.
    pub files: Vec<(String, Digest)>,
    /// Content of each input.
    pub inputs: Vec<(String, Digest)>,
    /// Ids of the joined rows, ascending.
    pub ids: Vec<String>,
    /// Their keys; empty for a whole table.
    pub keys: Vec<Digest>,
    /// Where they lie in each input read row by row.
    pub places: Vec<Places>,
    /// The listed rows of a stage without inputs, in the order of `ids`.
    pub listed: Option<RecordBatch>,
    /// What the store already has.
    pub known: Known,
    /// Positions in `ids` that must be computed; of a whole table one position, or none.
    pub stale: Vec<usize>,
    /// Why the table is not fresh.
    pub reasons: Vec<String>,
}

impl Work {
    /// Rows that the table will have, as far as known: those of a whole table come out when it is computed.
    pub fn total(&self) -> u64 {
        if self.keys.is_empty() {
            self.known.entries.iter().map(|e| e.contents.len() as u64).sum()
        } else {
            self.ids.len() as u64
        }
    }
}

/// Where joined rows lie in one input.
pub struct Places {
    /// The port.
    pub port: String,
    /// Parts that places count in.
    pub parts: Vec<Digest>,
    /// `(part, row)` of each joined row.
    pub at: Vec<(u32, u64)>,
}

/// What a stage has computed before, by key.
#[derive(Default)]
pub struct Known {
    /// The recorded parts.
    pub entries: Vec<Entry>,
    rows: HashMap<Digest, (usize, usize)>,
    failed: HashMap<Digest, (usize, usize)>,
}

impl Known {
    /// Adds what was computed.
    pub fn extend(&mut self, entries: impl IntoIterator<Item = Entry>) {
        for entry in entries {
            let at = self.entries.len();
            self.rows.extend(entry.keys.iter().enumerate().map(|(row, key)| (*key, (at, row))));
            self.failed.extend(entry.errors.iter().enumerate().map(|(i, error)| (error.key, (at, i))));
            self.entries.push(entry);
        }
    }

    fn failure(&self, key: &Digest) -> Option<&RowError> {
        self.failed.get(key).map(|(entry, i)| &self.entries[*entry].errors[*i])
    }

    /// The table made of the rows with these keys: its parts, the failures among the keys, and the digest of the content.
    pub fn choose(&self, keys: &[Digest]) -> (Vec<PartRef>, Vec<RowError>, Digest) {
        let mut rows: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
        let mut contents = Vec::with_capacity(keys.len());
        let mut errors = Vec::new();
        for key in keys {
            if let Some((entry, row)) = self.rows.get(key) {
                rows.entry(*entry).or_default().push(*row as u64);
                contents.push(self.entries[*entry].contents[*row]);
            } else if let Some(error) = self.failure(key) {
                errors.push(error.clone());
            }
        }
        contents.sort_unstable();
        let parts = rows.into_iter().filter_map(|(entry, mut rows)| {
            let entry = &self.entries[entry];
            rows.sort_unstable();
            let total = entry.contents.len() as u64;
            let chosen = (rows.len() as u64 != total).then(|| runs(&rows));
            Some(PartRef { part: entry.part?, bytes: entry.bytes, rows: total, chosen })
        });
        (parts.collect(), errors, content(&contents))
    }

    /// The whole table that an entry holds.
    pub fn whole(&self) -> (Vec<PartRef>, Digest) {
        let Some(entry) = self.entries.first() else { return (Vec::new(), content(&[])) };
        let part = entry.part.map(|part| PartRef {
            part,
            bytes: entry.bytes,
            rows: entry.contents.len() as u64,
            chosen: None,
        });
        (part.into_iter().collect(), content(&entry.contents))
    }
}

fn content(rows: &[Digest]) -> Digest {
    let mut hasher = Hasher::new("table");
    rows.iter().for_each(|row| {
        hasher.field(row.as_bytes());
    });
    hasher.finish()
}

fn runs(rows: &[u64]) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for &row in rows {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == row => *count += 1,
            _ => runs.push((row, 1)),
        }
    }
    runs
}

/// Looks at one table whose inputs are all published.
pub fn examine(table: &Table, store: &Store, sources: &Sources, published: &Published) -> Result<Need> {
    let files = files(table, sources)?;
    let params = table.kind.identity(&*table.stage);
    let fingerprint = fingerprint(&table.kind, &params, &files, &table.output);
    let listed = table.stage.list(sources).map_err(|e| in_table(table, e))?.map(sort_by_id).transpose()?;
    let mut inputs: Vec<(String, Digest)> = Vec::new();
    let listed_rows = listed.as_ref().map(row_digests).transpose()?;
    inputs.extend(listed_rows.iter().map(|rows| (SOURCE.to_owned(), content(rows))));
    inputs.extend(table.inputs.iter().map(|input| (input.table.clone(), published[&input.table].content)));
    let previous = published.get(&table.name);
    let filter = table.filter.as_ref().map(|f| f.text.clone());
    if let Some(previous) = previous {
        let unchanged = previous.fingerprint == fingerprint && previous.inputs == inputs && previous.filter == filter;
        if unchanged && (previous.errors.is_empty() || table.on_error == OnError::Skip) {
            return Ok(Need::Nothing);
        }
    }
    let joined = match (&listed, listed_rows) {
        (Some(batch), Some(digests)) => {
            let ids = ids_of(batch)?;
            if let Some(pair) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
                return Err(Error::Input(format!("table `{}`: the id `{}` is listed twice", table.name, pair[0])));
            }
            Joined { ids, digests: vec![digests], places: Vec::new() }
        }
        _ => join(table, store, published)?,
    };
    let mut base = Hasher::new("key");
    base.field(fingerprint.as_bytes());
    for input in table.inputs.iter().filter(|input| input.reads == Reads::Table) {
        base.field(input.port.as_bytes())
            .field(table_content(store, &published[&input.table], &input.columns)?.as_bytes());
    }
    let base = base.finish();
    let key_of = |i: usize| {
        let mut hasher = Hasher::new("row key");
        // The id is part of the row that is written, and of its randomness.
        hasher.field(base.as_bytes()).field(joined.ids[i].as_bytes());
        joined.digests.iter().for_each(|digests| {
            hasher.field(digests[i].as_bytes());
        });
        hasher.finish()
    };
    let row_keys: Vec<Digest> = (0..joined.ids.len()).map(key_of).collect();
    let mut known = Known::default();
    let (stage_key, keys, stale) = if table.is_keyed() {
        known.extend(store.computed(fingerprint)?);
        let failed = |key: &Digest| table.on_error == OnError::Skip && known.failed.contains_key(key);
        let stale =
            (0..row_keys.len()).filter(|i| !known.rows.contains_key(&row_keys[*i]) && !failed(&row_keys[*i])).collect();
        (fingerprint, row_keys, stale)
    } else {
        let mut hasher = Hasher::new("whole");
        hasher.field(base.as_bytes()).field(content(&row_keys).as_bytes());
        let key = hasher.finish();
        known.extend(store.computed(key)?);
        let stale = if known.entries.is_empty() { vec![0] } else { Vec::new() };
        (key, Vec::new(), stale)
    };
    let reasons = reasons(table, previous, &params, &files, &inputs, &stale, joined.ids.len());
    Ok(Need::Work(Box::new(Work {
        fingerprint,
        stage_key,
        files,
        inputs,
        ids: joined.ids,
        keys,
        places: joined.places,
        listed,
        known,
        stale,
        reasons,
    })))
}

fn in_table(table: &Table, error: Error) -> Error {
    match error {
        Error::Input(message) => Error::Input(format!("table `{}`: {message}", table.name)),
        other => other,
    }
}

fn files(table: &Table, sources: &Sources) -> Result<Vec<(String, Digest)>> {
    let digest = |address: String| Ok((address.clone(), sources.digest(&address).map_err(|e| in_table(table, e))?));
    table.stage.files().into_iter().map(digest).collect()
}

struct Joined {
    ids: Vec<String>,
    digests: Vec<Vec<Digest>>,
    places: Vec<Places>,
}

/// Joins the inputs read row by row on their ids, ascending, after `where:`.
fn join(table: &Table, store: &Store, published: &Published) -> Result<Joined> {
    let inputs: Vec<&Input> = table.inputs.iter().filter(|input| input.reads == Reads::Rows).collect();
    let Some((first, others)) = inputs.split_first() else {
        return Ok(Joined { ids: Vec::new(), digests: Vec::new(), places: Vec::new() });
    };
    let first = Light::read(store, &published[&first.table], first, table.filter.as_ref())?;
    let others = others
        .iter()
        .map(|input| Light::read(store, &published[&input.table], input, None))
        .collect::<Result<Vec<_>>>()?;
    let lookups: Vec<HashMap<&str, usize>> =
        others.iter().map(|light| light.ids.iter().enumerate().map(|(i, id)| (id.as_str(), i)).collect()).collect();
    let mut order: Vec<usize> = (0..first.ids.len())
        .filter(|i| lookups.iter().all(|lookup| lookup.contains_key(first.ids[*i].as_str())))
        .collect();
    order.sort_by(|a, b| first.ids[*a].cmp(&first.ids[*b]));
    let ids: Vec<String> = order.iter().map(|i| first.ids[*i].clone()).collect();
    let positions: Vec<Vec<usize>> =
        lookups.iter().map(|lookup| ids.iter().map(|id| lookup[id.as_str()]).collect()).collect();
    let (mut digests, mut places) = (Vec::new(), Vec::new());
    for (light, order) in std::iter::once((first, order)).chain(others.into_iter().zip(positions)) {
        digests.push(order.iter().map(|i| light.digests[*i]).collect());
        places.push(Places {
            port: light.port,
            parts: light.parts,
            at: order.iter().map(|i| light.places[*i]).collect(),
        });
    }
    Ok(Joined { ids, digests, places })
}

/// The light columns of one input.
struct Light {
    port: String,
    ids: Vec<String>,
    digests: Vec<Digest>,
    parts: Vec<Digest>,
    places: Vec<(u32, u64)>,
}

impl Light {
    fn read(store: &Store, manifest: &Manifest, input: &Input, filter: Option<&super::filter::Filter>) -> Result<Self> {
        let stored = manifest.schema()?;
        let id = stored.field(0).name().clone();
        let declared = light_names(&stored, &input.columns);
        let mut columns = vec![id];
        let wanted = declared.iter().chain(filter.iter().flat_map(|f| &f.columns));
        wanted.for_each(|name| {
            if !columns.contains(name) {
                columns.push(name.clone())
            }
        });
        let schema = project(&stored, &columns)?;
        let places: Vec<(u32, u64)> = manifest
            .parts
            .iter()
            .enumerate()
            .flat_map(|(i, part)| part.row_numbers().into_iter().map(move |row| (i as u32, row)))
            .collect();
        let mut batch = read_table(store, &manifest.parts, &columns, &schema)?;
        let mut chosen: Vec<u32> = (0..batch.num_rows() as u32).collect();
        if let Some(filter) = filter {
            let kept = filter.evaluate(&batch)?;
            chosen.retain(|row| kept.is_valid(*row as usize) && kept.value(*row as usize));
            batch = take_record_batch(&batch, &UInt32Array::from(chosen.clone()))?;
        }
        let indices = declared.iter().map(|name| schema.index_of(name)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            port: input.port.clone(),
            ids: ids_of(&batch)?,
            digests: row_digests(&batch.project(&indices)?)?,
            parts: manifest.parts.iter().map(|part| part.part).collect(),
            places: chosen.into_iter().map(|row| places[row as usize]).collect(),
        })
    }
}

fn ids_of(batch: &RecordBatch) -> Result<Vec<String>> {
    let ids: &StringArray = batch
        .column(0)
        .as_string_opt()
        .ok_or_else(|| Error::Damaged("the first column of a row-wise table is not text".into()))?;
    Ok(ids.iter().map(|id| id.unwrap_or_default().to_owned()).collect())
}

fn sort_by_id(batch: RecordBatch) -> Result<RecordBatch> {
    let order = arrow::compute::sort_to_indices(batch.column(0), None, None)?;
    Ok(take_record_batch(&batch, &order)?)
}

/// The content of chosen columns of a table. Rows that are cached one by one lie in the order in which they were computed, which
/// says nothing; of a table made as a whole the order counts.
fn table_content(store: &Store, manifest: &Manifest, columns: &[String]) -> Result<Digest> {
    let stored = manifest.schema()?;
    let columns = light_names(&stored, columns);
    let schema = project(&stored, &columns)?;
    let mut rows = row_digests(&read_table(store, &manifest.parts, &columns, &schema)?)?;
    if manifest.keyed {
        rows.sort_unstable();
    }
    Ok(content(&rows))
}

/// Why a table is not fresh, the first cause first.
fn reasons(
    table: &Table,
    previous: Option<&Manifest>,
    params: &Value,
    files: &[(String, Digest)],
    inputs: &[(String, Digest)],
    stale: &[usize],
    of: usize,
) -> Vec<String> {
    let Some(previous) = previous else {
        return vec![if stale.is_empty() {
            "not published yet; all rows are known".into()
        } else {
            "not computed yet".into()
        }];
    };
    let mut reasons = Vec::new();
    if previous.stage != table.kind.name {
        reasons.push(format!("stage: {} -> {}", previous.stage, table.kind.name));
    } else if previous.revision != table.kind.revision {
        reasons.push(format!(
            "stage `{}` has a new revision: {} -> {}",
            table.kind.name, previous.revision, table.kind.revision
        ));
    }
    differences("", &previous.params, params, &mut reasons);
    for (path, digest) in files {
        match previous.files.iter().find(|(p, _)| p == path) {
            Some((_, old)) if old != digest => reasons.push(format!("{path} has changed")),
            Some(_) => {}
            None => reasons.push(format!("reads {path} now")),
        }
    }
    let text = |filter: Option<&String>| filter.map_or("all rows".to_owned(), |f| format!("`{f}`"));
    if previous.filter.as_ref() != table.filter.as_ref().map(|f| &f.text) {
        reasons.push(format!(
            "where: {} -> {}",
            text(previous.filter.as_ref()),
            text(table.filter.as_ref().map(|f| &f.text))
        ));
    }
    for (name, digest) in inputs {
        match previous.inputs.iter().find(|(n, _)| n == name) {
            Some((_, old)) if old == digest => {}
            Some(_) if name == SOURCE => {
                reasons.push(format!("the source has changed ({} of {of} rows new or different)", stale.len()))
            }
            Some(_) if table.is_keyed() => {
                reasons.push(format!("{name} has changed ({} of {of} rows new or different)", stale.len()))
            }
            Some(_) => reasons.push(format!("{name} has changed")),
            None => reasons.push(format!("reads {name} now")),
        }
    }
    if reasons.is_empty() {
        reasons.push(match previous.errors.len() {
            0 => "the output schema has changed".into(),
            errors => format!("{errors} rows failed before"),
        });
    }
    reasons
}

fn differences(path: &str, old: &Value, new: &Value, out: &mut Vec<String>) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            let keys: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            for key in keys {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                differences(&path, old.get(key).unwrap_or(&Value::Null), new.get(key).unwrap_or(&Value::Null), out);
            }
        }
        _ if old != new => out.push(format!("{path}: {old} -> {new}")),
        _ => {}
    }
}
