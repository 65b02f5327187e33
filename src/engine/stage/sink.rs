//! The sink of an operator's results.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::{
    array::{ArrayRef, AsArray, RecordBatch, StringArray},
    datatypes::SchemaRef,
};
use bytes::Bytes;

use super::{
    port::Output,
    rows::Batch,
    task::{Report, Task, Unit},
};
use crate::engine::{
    Digest, Error, Result, Stop,
    arrow_schema::decode_schema,
    clock::now_ms,
    store::{Encoder, Entry, EntryNote, NAMED, PartRef, RowError, Store, encode_part, state_name, to_stored},
};

/// The time after which a running task commits the rows so far, unless the operator asks for another.
const COMMIT_EVERY: Duration = Duration::from_secs(30);

/// The interval at which the rows so far of a table that is made as a whole are shown.
const SHOW_EVERY: Duration = Duration::from_secs(2);

/// Receives the results of an operator.
pub struct Sink<'a> {
    task: &'a Task,
    store: &'a Store,
    declared: SchemaRef,
    position: HashMap<&'a str, usize>,
    written: Vec<bool>,
    done: u64,
    /// The ids of a table that has its own.
    ids: HashSet<String>,
    /// The rows since the last commit.
    pending: Option<Encoder>,
    entry: Entry,
    /// Notes by text, each with the ids of rows that are not committed yet.
    notes: BTreeMap<String, Vec<String>>,
    entries: Vec<Entry>,
    committed: Instant,
    commit_every: Duration,
    shown: Option<Instant>,
    stop: &'a Stop,
    report: &'a mut dyn FnMut(Report),
}

fn empty_entry() -> Entry {
    Entry {
        part: None,
        bytes: 0,
        keys: Vec::new(),
        contents: Vec::new(),
        errors: Vec::new(),
        blobs: Vec::new(),
        notes: Vec::new(),
        replaces: Vec::new(),
        recorded_ms: 0,
    }
}

impl<'a> Sink<'a> {
    pub(in crate::engine) fn new(
        task: &'a Task,
        store: &'a Store,
        stop: &'a Stop,
        report: &'a mut dyn FnMut(Report),
    ) -> Result<Self> {
        Ok(Self {
            task,
            store,
            declared: decode_schema(&task.job.output)?,
            position: task.ids.iter().enumerate().map(|(i, id)| (id.as_str(), i)).collect(),
            written: vec![false; task.ids.len()],
            done: 0,
            ids: HashSet::new(),
            pending: None,
            entry: empty_entry(),
            notes: BTreeMap::new(),
            entries: Vec::new(),
            committed: Instant::now(),
            commit_every: COMMIT_EVERY,
            shown: None,
            stop,
            report,
        })
    }

    fn keyed(&self) -> bool {
        self.task.job.makes == Output::RowPerRow
    }

    fn claim(&mut self, id: &str) -> Result<Digest> {
        let at = *self
            .position
            .get(id)
            .ok_or_else(|| Error::Stage(format!("the stage wrote a row `{id}` that it did not read")))?;
        if std::mem::replace(&mut self.written[at], true) {
            return Err(Error::Stage(format!("the stage wrote the row `{id}` twice")));
        }
        self.done += 1;
        Ok(self.task.keys[at])
    }

    /// Writes rows of the declared schema. In a row-per-row stage the first column holds ids of rows that were read;
    /// in a table with its own ids each id occurs once.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        if self.keyed() && batch.num_rows() == 0 {
            return Ok(());
        }
        let mut keys = self.keyed().then(Vec::new);
        if self.task.job.makes.has_ids() {
            let ids = batch
                .column(0)
                .as_string_opt::<i32>()
                .ok_or_else(|| Error::Stage("the first column holds the ids, as text".into()))?;
            for id in ids {
                let id = id.ok_or_else(|| Error::Stage("a row has no id; the first column identifies a row".into()))?;
                match &mut keys {
                    Some(keys) => keys.push(self.claim(id)?),
                    None if !self.ids.insert(id.to_owned()) => {
                        return Err(Error::Stage(format!(
                            "the id `{id}` stands in two rows; the first column identifies a row"
                        )));
                    }
                    None => {}
                }
            }
        }
        let (stored, contents) = to_stored(&self.declared, batch, keys.as_deref())?;
        self.pend(stored);
        self.entry.keys.extend(keys.unwrap_or_default());
        self.entry.contents.extend(contents);
        if self.keyed() { self.advance() } else { Ok(()) }
    }

    /// Returns the declared schema.
    pub fn schema(&self) -> &SchemaRef {
        &self.declared
    }

    /// Writes columns, in the order of the schema, as [`Sink::write`] does.
    pub fn write_columns(&mut self, columns: Vec<ArrayRef>) -> Result<()> {
        self.write(&RecordBatch::try_new(self.declared.clone(), columns)?)
    }

    /// Writes the results of a row-per-row stage for the rows of a batch, below their ids, as [`Sink::write_columns`]
    /// does.
    pub fn write_rows(&mut self, batch: &Batch, columns: Vec<ArrayRef>) -> Result<()> {
        let ids: ArrayRef = Arc::new(StringArray::from_iter_values(&batch.ids));
        self.write_columns(std::iter::once(ids).chain(columns).collect())
    }

    /// Commits the rows so far after this time, if a row takes so long that few of them should be lost in a crash.
    pub fn commit_every(&mut self, time: Duration) {
        self.commit_every = time;
    }

    /// Reports the progress of a row-per-row stage, commits from time to time, and returns an error after a request
    /// to stop.
    fn advance(&mut self) -> Result<()> {
        self.progress_rows();
        let is_interrupted = self.is_interrupted() && self.written.contains(&false);
        if is_interrupted || self.committed.elapsed() > self.commit_every {
            self.commit()?;
        }
        if is_interrupted { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Records that a row failed, with the causes behind the error.
    pub fn fail(&mut self, id: &str, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Result<()> {
        self.fail_at(id, None, error)
    }

    /// Does as [`Sink::fail`] for an error about a file or URL, which its message names.
    pub fn fail_at(
        &mut self,
        id: &str,
        place: Option<String>,
        error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Result<()> {
        let error = error.into();
        if !self.keyed() {
            return Err(Error::Stage(format!("{id}: {error}")));
        }
        let key = self.claim(id)?;
        let hide = |text: String| self.task.job.secrets.hide(text);
        let chain = std::iter::successors(error.source(), |e| e.source()).map(|e| hide(e.to_string())).collect();
        let (id, message, run) = (id.to_owned(), hide(error.to_string()), self.task.run.clone());
        let place = place.map(hide);
        self.entry.errors.push(RowError { id, key, message, place, chain, run });
        self.advance()
    }

    /// Records a note on a row that succeeded. `what` is the same text for all rows of a kind. Notes are counted
    /// over the table, kept with it, and shown once with the first ids.
    pub fn note(&mut self, what: &str, id: &str) {
        self.notes.entry(self.task.job.secrets.hide(what.to_owned())).or_default().push(id.to_owned());
    }

    /// Records a note on a table that is made as a whole.
    pub fn warn(&mut self, what: &str) {
        self.notes.entry(what.to_owned()).or_default();
    }

    /// Returns the notes on rows that are committed now. Notes on rows that are not yet written are kept until
    /// they are.
    fn due_notes(&mut self) -> Vec<EntryNote> {
        let is_keyed = self.keyed();
        let (position, written, keys) = (&self.position, &self.written, &self.task.keys);
        let mut due = Vec::new();
        self.notes.retain(|what, ids| {
            let mut note = EntryNote { what: what.clone(), keys: Vec::new(), count: 0, names: Vec::new() };
            ids.retain(|id| {
                let at = position.get(id.as_str()).copied().filter(|at| is_keyed && written[*at]);
                if is_keyed && at.is_none() {
                    return true;
                }
                match at {
                    Some(at) => note.keys.push(keys[at]),
                    None => note.count += 1,
                }
                if note.names.len() < NAMED {
                    note.names.push(id.clone());
                }
                false
            });
            if !is_keyed || !note.keys.is_empty() {
                due.push(note);
            }
            !ids.is_empty()
        });
        due
    }

    fn progress_rows(&mut self) {
        self.progress(self.done, self.task.ids.len() as u64, Unit::Rows);
    }

    /// Reports that `done` of `total` units are done. The rows of a row-per-row stage are counted without this.
    pub fn progress(&mut self, done: u64, total: u64, unit: Unit) {
        (self.report)(Report::Progress { done, total, unit });
    }

    /// Sends a message to the user who runs the pipeline.
    pub fn log(&mut self, message: impl ToString) {
        (self.report)(Report::Log { message: message.to_string() });
    }

    /// Returns [`Error::Interrupted`] if a stop was requested, after a commit of the rows so far. For a row-per-row
    /// stage whose rows take long.
    pub fn check_interrupted(&mut self) -> Result<()> {
        if !self.is_interrupted() {
            return Ok(());
        }
        self.commit()?;
        Err(Error::Interrupted)
    }

    /// Reports a number that tells how the work goes, such as `41 tokens/s` or `loss 0.031`.
    pub fn figure(&mut self, figure: impl ToString) {
        (self.report)(Report::Figure { figure: figure.to_string() });
    }

    /// Returns true if a stop was requested. The operator must then save its work and return [`Error::Interrupted`].
    /// A row-per-row stage need not call it.
    pub fn is_interrupted(&self) -> bool {
        self.stop.is_requested()
    }

    /// Shows the rows so far of a table that is made as a whole, at most once every few seconds.
    pub fn preview(&mut self, rows: impl FnOnce() -> Result<RecordBatch>) -> Result<()> {
        if self.shown.is_some_and(|at| at.elapsed() < SHOW_EVERY) {
            return Ok(());
        }
        let rows = rows()?;
        let bytes = encode_part(&to_stored(&self.declared, &rows, None)?.0)?;
        let (size, count) = (bytes.len() as u64, rows.num_rows() as u64);
        let part = PartRef { part: self.store.put_part(bytes)?, bytes: size, rows: count, chosen: None };
        (self.report)(Report::Unfinished { part });
        self.shown = Some(Instant::now());
        Ok(())
    }

    /// Adopts blobs that rows of a saved state name. Returns true if all of them still exist, and adopts none
    /// otherwise.
    pub fn adopt_blobs(&mut self, blobs: &[Digest]) -> Result<bool> {
        for blob in blobs {
            if !self.store.has_blob(*blob)? {
                return Ok(false);
            }
        }
        self.entry.blobs.extend(blobs);
        Ok(true)
    }

    /// Stores bytes as a blob, which a row names by the returned digest.
    pub fn put_blob(&mut self, bytes: Vec<u8>) -> Result<Digest> {
        let digest = self.store.put_blob(bytes)?;
        self.entry.blobs.push(digest);
        Ok(digest)
    }

    /// Returns the time between two saved states.
    pub fn save_every(&self) -> Duration {
        self.task.job.save_every
    }

    /// Saves the state of unfinished work and replaces the one saved before.
    pub fn save(&mut self, state: Vec<u8>) -> Result<()> {
        let digest = Bytes::copy_from_slice(Digest::of(&state).as_bytes());
        self.store.put_pieces(&state_name(self.task.stage_key), [digest, state.into()])
    }

    /// Returns the state that an earlier, interrupted run of the same work saved.
    pub fn saved(&self) -> Result<Option<Bytes>> {
        let saved = self.store.get(&state_name(self.task.stage_key))?.filter(|bytes| bytes.len() >= Digest::LEN);
        // A state that does not match its digest is ignored: the work starts over.
        let whole = |saved: Bytes| {
            let state = saved.slice(Digest::LEN..);
            (Digest::of(&state).as_bytes().as_slice() == &saved[..Digest::LEN]).then_some(state)
        };
        Ok(saved.and_then(whole))
    }

    fn pend(&mut self, stored: RecordBatch) {
        self.pending.get_or_insert_with(|| Encoder::start(self.store, stored.schema())).write(stored);
    }

    /// Commits the rows written so far as a part.
    fn commit(&mut self) -> Result<()> {
        self.committed = Instant::now();
        self.entry.notes = self.due_notes();
        let mut entry = std::mem::replace(&mut self.entry, empty_entry());
        if let Some(encoder) = self.pending.take() {
            let bytes = encoder.finish()?;
            entry.bytes = bytes.len() as u64;
            entry.part = Some(self.store.put_part(bytes)?);
        }
        if entry.part.is_some() || !entry.errors.is_empty() {
            entry.recorded_ms = now_ms().max(self.task.after + 1);
            self.store.record(self.task.stage_key, &entry)?;
            (self.report)(Report::Committed { rows: entry.contents.len() as u64, bytes: entry.bytes });
            self.entries.push(entry);
        }
        Ok(())
    }

    pub(in crate::engine) fn finish(mut self) -> Result<Vec<Entry>> {
        if let Some(at) = self.written.iter().position(|written| !written).filter(|_| self.keyed()) {
            return Err(Error::Stage(format!(
                "the stage `{}` wrote no row for `{}`",
                self.task.job.stage, self.task.ids[at]
            )));
        }
        if !self.keyed() && self.pending.is_none() {
            let empty = RecordBatch::new_empty(self.declared.clone());
            self.pend(to_stored(&self.declared, &empty, None)?.0);
        }
        self.commit()?;
        if !self.keyed() {
            self.store.delete(&state_name(self.task.stage_key))?;
        }
        Ok(self.entries)
    }
}
