//! A task: some rows of one table. It reads its rows from the store, writes its own parts there, and returns their
//! descriptions, never data. It runs in the driver or in a worker alike.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use arrow::{
    array::{ArrayRef, AsArray, RecordBatch, StringArray},
    compute::concat_batches,
    datatypes::SchemaRef,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Digest, Error, Result, Sources, Stop, Store,
    columns::seal,
    event::now_ms,
    join::in_order,
    manifest::{Entry, EntryNote, NAMED, PartRef, RowError, decode_schema},
    parts::{self, Encoder},
    secrets::Secrets,
    stage::{Context, OpenFn, Operator, Output, Schemas},
    store::state_name,
};

/// Rows read from the store at a time.
const READ_ROWS: usize = 256;
/// A task that runs longer commits what it has.
const COMMIT_EVERY: Duration = Duration::from_secs(30);
/// How often the rows so far of a table that is made as a whole are shown.
const SHOW_EVERY: Duration = Duration::from_secs(2);
/// The port of rows that a stage without inputs listed.
pub const SOURCE: &str = "source";

/// A piece of work that can be sent to another process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    /// The stage and its inputs that are read whole: an operator opened for an equal job serves this task too.
    pub job: Job,
    /// Where the results are recorded: the stage's fingerprint, or the key of a whole table.
    pub stage_key: Digest,
    /// The run that it belongs to.
    pub run: String,
    /// When the stage's last result was recorded: this one is recorded later.
    pub after: u64,
    /// The rows' ids.
    pub ids: Vec<String>,
    /// The rows' keys; empty for a whole table.
    pub keys: Vec<Digest>,
    /// Where the rows lie in each input, aligned with `ids`.
    pub rows: Vec<PortRows>,
    /// The rows themselves where they were listed outside the store.
    pub listed: Option<Listed>,
}

/// What an operator is opened for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// The stage kind.
    pub stage: String,
    /// Its parameters.
    pub params: Value,
    /// What it makes.
    pub makes: Output,
    /// The schema of its rows, as text.
    pub output: String,
    /// The declared schema of every input, by port.
    pub inputs: Vec<(String, String)>,
    /// The columns to read of the inputs read row by row, by port.
    pub schemas: Vec<(String, String)>,
    /// Inputs read whole.
    pub tables: Vec<TableInput>,
    /// Files that parameters name, and their digests.
    pub files: Vec<(String, Digest)>,
    /// Where to compute.
    pub device: String,
    /// Rows at once.
    pub batch_size: Option<usize>,
    /// How often work that takes long saves its state.
    pub save_every: Duration,
    /// Values that no message may hold.
    #[serde(default)]
    pub secrets: Secrets,
}

/// An input read whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TableInput {
    /// The port.
    pub port: String,
    /// The columns to read, as a schema in text.
    pub schema: String,
    /// The rows.
    pub parts: Vec<PartRef>,
    /// Whether the rows are cached one by one and so lie in no order.
    pub keyed: bool,
}

/// Where a task's rows lie in one input.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PortRows {
    /// The port.
    pub port: String,
    /// Parts that `places` counts in.
    pub parts: Vec<Digest>,
    /// `(part, row)` of each row.
    pub places: Vec<(u32, u64)>,
}

/// Rows listed outside the store, as an Arrow IPC stream in base64.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Listed(String);

impl Listed {
    /// Packs a batch.
    pub fn pack(batch: &RecordBatch) -> Result<Self> {
        use base64::Engine;
        let mut writer = arrow::ipc::writer::StreamWriter::try_new(Vec::new(), batch.schema_ref())?;
        writer.write(batch)?;
        Ok(Self(base64::engine::general_purpose::STANDARD.encode(writer.into_inner()?)))
    }

    /// The batch again.
    pub fn unpack(&self) -> Result<RecordBatch> {
        use base64::Engine;
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(&self.0)
            .map_err(|e| Error::Worker(format!("listed rows: {e}")))?;
        let reader = arrow::ipc::reader::StreamReader::try_new(bytes.as_slice(), None)?;
        let schema = reader.schema();
        Ok(concat_batches(&schema, &reader.collect::<Result<Vec<_>, _>>()?)?)
    }
}

/// What a running task reports.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "snake_case")]
pub enum Report {
    /// Units done, of how many, of what.
    Progress {
        /// Done so far in this task.
        done: u64,
        /// In all.
        total: u64,
        /// `rows` or `steps`.
        unit: String,
    },
    /// A part was committed.
    Committed {
        /// Its rows.
        rows: u64,
        /// Its bytes.
        bytes: u64,
    },
    /// A table that is made as a whole has these rows so far.
    Unfinished {
        /// They, as a part that is no result.
        part: PartRef,
    },
    /// The operator has something to say.
    Log {
        /// What it says.
        message: String,
    },
}

/// Runs tasks, keeping the last opened operator.
pub struct Executor {
    store: Store,
    stop: Stop,
    opened: Option<(Job, Box<dyn Operator>)>,
}

impl Executor {
    /// An executor on a store, which ends its task early at a request.
    pub fn new(store: Store, stop: Stop) -> Self {
        Self { store, stop, opened: None }
    }

    /// Runs one task to its end. What it committed before an error stays in the store.
    pub fn run(&mut self, task: Task, open: OpenFn, report: &mut dyn FnMut(Report)) -> Result<Vec<Entry>> {
        if self.opened.as_ref().is_none_or(|(job, _)| *job != task.job) {
            self.opened = None;
            let context = self.context(&task.job)?;
            let operator = open(&task.job.params, &context)?;
            for (address, digest) in &task.job.files {
                if context.sources.digest(address)? != *digest {
                    return Err(Error::Input(format!("{address} has changed since the run began; run again")));
                }
            }
            self.opened = Some((task.job.clone(), operator));
        }
        let Some((_, operator)) = &mut self.opened else { return Ok(Vec::new()) };
        let task = Arc::new(task);
        let mut sink = Sink::new(&task, &self.store, &self.stop, report)?;
        let mut rows = Rows::start(task.clone(), self.store.clone())?;
        operator.run(&mut rows, &mut sink)?;
        sink.finish()
    }

    fn context(&self, job: &Job) -> Result<Context> {
        let all = job.inputs.iter().map(|(port, schema)| Ok((port.clone(), decode_schema(schema)?)));
        let all: BTreeMap<String, SchemaRef> = all.collect::<Result<_>>()?;
        let tables = job.tables.iter().map(|input| {
            let schema = decode_schema(&input.schema)?;
            let columns: Vec<String> = schema.fields().iter().map(|f| f.name().clone()).collect();
            let declared = all.get(&input.port).unwrap_or(&schema);
            let read =
                |columns: &[String], schema: &SchemaRef| parts::read_table(&self.store, &input.parts, columns, schema);
            Ok((input.port.clone(), in_order(input.keyed, declared, &columns, read)?))
        });
        let by_row = job.schemas.iter().map(|(port, _)| port.clone()).collect();
        Ok(Context {
            device: job.device.clone(),
            batch_size: job.batch_size,
            output: decode_schema(&job.output)?,
            tables: tables.collect::<Result<_>>()?,
            schemas: Schemas { all, by_row },
            store: self.store.clone(),
            sources: Sources::default(),
        })
    }
}

/// A task's input rows, read ahead of the operator.
pub struct Rows {
    total: usize,
    given: usize,
    chunks: mpsc::Receiver<Result<Batch>>,
    current: Option<Batch>,
}

/// Some rows of every input, aligned.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The rows' ids.
    pub ids: Vec<String>,
    ports: Vec<(String, RecordBatch)>,
}

impl Batch {
    /// Rows with these ids, of inputs by port.
    pub fn new(ids: Vec<String>, ports: Vec<(String, RecordBatch)>) -> Self {
        Self { ids, ports }
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The rows of one input, or `None` where `from:` leaves it out.
    pub fn port(&self, port: &str) -> Option<&RecordBatch> {
        self.ports.iter().find(|(name, _)| name == port).map(|(_, batch)| batch)
    }

    /// The rows of one input that `from:` names.
    pub fn rows(&self, port: &str) -> Result<&RecordBatch> {
        self.port(port).ok_or_else(|| Error::Stage(format!("the stage was given no rows of `{port}`")))
    }

    /// A declared column of an input.
    pub fn column(&self, port: &str, column: &str) -> Result<&ArrayRef> {
        self.rows(port)?
            .column_by_name(column)
            .ok_or_else(|| Error::Stage(format!("`{port}` was read without its column `{column}`")))
    }

    /// Rows `offset..offset + len`, without a copy.
    pub fn slice(&self, offset: usize, len: usize) -> Self {
        let ports = self.ports.iter().map(|(name, batch)| (name.clone(), batch.slice(offset, len))).collect();
        Self::new(self.ids[offset..offset + len].to_vec(), ports)
    }
}

impl Rows {
    fn start(task: Arc<Task>, store: Store) -> Result<Self> {
        let schemas = task
            .job
            .schemas
            .iter()
            .map(|(port, schema)| Ok((port.clone(), decode_schema(schema)?)))
            .collect::<Result<HashMap<_, _>>>()?;
        let listed = task.listed.as_ref().map(Listed::unpack).transpose()?;
        let (send, chunks) = mpsc::sync_channel(1);
        let total = task.ids.len();
        std::thread::spawn(move || {
            for start in (0..total).step_by(READ_ROWS) {
                let end = (start + READ_ROWS).min(total);
                let read = || -> Result<Batch> {
                    let mut ports = Vec::new();
                    for rows in &task.rows {
                        let schema = schemas
                            .get(&rows.port)
                            .ok_or_else(|| Error::Worker(format!("no schema for `{}`", rows.port)))?;
                        let columns: Vec<String> = schema.fields().iter().map(|f| f.name().clone()).collect();
                        ports.push((
                            rows.port.clone(),
                            parts::gather(&store, &rows.parts, &rows.places[start..end], &columns, schema)?,
                        ));
                    }
                    ports.extend(listed.iter().map(|batch| (SOURCE.to_owned(), batch.slice(start, end - start))));
                    Ok(Batch::new(task.ids[start..end].to_vec(), ports))
                };
                // The operator stopped early: nobody waits for more.
                if send.send(read()).is_err() {
                    break;
                }
            }
        });
        Ok(Self { total, given: 0, chunks, current: None })
    }

    /// Rows in the task.
    pub fn len(&self) -> usize {
        self.total
    }

    /// Whether the task has no rows.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// The next rows, at most `max`; `None` at the end.
    pub fn next(&mut self, max: usize) -> Result<Option<Batch>> {
        let batch = match self.current.take() {
            Some(batch) => batch,
            None => match self.chunks.recv() {
                Ok(batch) => batch?,
                Err(mpsc::RecvError) if self.given == self.total => return Ok(None),
                // An end that is none must not look like one: the rows so far would count as all.
                Err(mpsc::RecvError) => return Err(Error::Worker("the rows could not be read to their end".into())),
            },
        };
        let take = max.clamp(1, batch.len());
        if take < batch.len() {
            self.current = Some(batch.slice(take, batch.len() - take));
        }
        self.given += take;
        Ok(Some(batch.slice(0, take)))
    }
}

/// Where an operator writes.
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
    /// Remarks by text, each with the ids of rows that are not committed yet.
    notes: BTreeMap<String, Vec<String>>,
    entries: Vec<Entry>,
    committed: Instant,
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
        recorded_ms: 0,
    }
}

impl<'a> Sink<'a> {
    fn new(task: &'a Task, store: &'a Store, stop: &'a Stop, report: &'a mut dyn FnMut(Report)) -> Result<Self> {
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

    /// Writes rows of the declared schema. Of a row-per-row stage the first column holds the ids of rows that were read, of a
    /// table with ids each id once.
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
        let (stored, contents) = seal(&self.declared, batch, keys.as_deref())?;
        self.pend(stored);
        self.entry.keys.extend(keys.unwrap_or_default());
        self.entry.contents.extend(contents);
        if self.keyed() { self.advance() } else { Ok(()) }
    }

    /// The declared schema.
    pub fn schema(&self) -> &SchemaRef {
        &self.declared
    }

    /// [`Sink::write`] of columns in the order of the schema.
    pub fn columns(&mut self, columns: Vec<ArrayRef>) -> Result<()> {
        self.write(&RecordBatch::try_new(self.declared.clone(), columns)?)
    }

    /// [`Sink::columns`] of a row-per-row stage: what it made of the rows of a batch, below their ids.
    pub fn rows(&mut self, batch: &Batch, columns: Vec<ArrayRef>) -> Result<()> {
        let ids: ArrayRef = Arc::new(StringArray::from_iter_values(&batch.ids));
        self.columns(std::iter::once(ids).chain(columns).collect())
    }

    /// Says how far a row-per-row stage is, commits now and then, and ends where somebody asked for it.
    fn advance(&mut self) -> Result<()> {
        self.progress_rows();
        let is_interrupted = self.is_interrupted() && self.written.contains(&false);
        if is_interrupted || self.committed.elapsed() > COMMIT_EVERY {
            self.commit()?;
        }
        if is_interrupted { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Records that a row failed, with the causes behind the error.
    pub fn fail(&mut self, id: &str, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Result<()> {
        let error = error.into();
        if !self.keyed() {
            return Err(Error::Stage(format!("{id}: {error}")));
        }
        let key = self.claim(id)?;
        let hide = |text: String| self.task.job.secrets.hide(text);
        let chain = std::iter::successors(error.source(), |e| e.source()).map(|e| hide(e.to_string())).collect();
        let (id, message, run) = (id.to_owned(), hide(error.to_string()), self.task.run.clone());
        self.entry.errors.push(RowError { id, key, message, chain, run });
        self.advance()
    }

    /// Remarks on a row that succeeded something that a person should know. `what` is the same text for all rows of a kind; it
    /// is counted over the table, kept with it, and said once with the first ids.
    pub fn note(&mut self, what: &str, id: &str) {
        self.notes.entry(self.task.job.secrets.hide(what.to_owned())).or_default().push(id.to_owned());
    }

    /// Remarks on a table that is made as a whole something that a person should know.
    pub fn warn(&mut self, what: &str) {
        self.notes.entry(what.to_owned()).or_default();
    }

    /// The remarks on rows that are committed now. Those on rows that are still to be written wait for them.
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
        self.progress(self.done, self.task.ids.len() as u64, "rows");
    }

    /// Reports units done of a total; of a row-per-row stage rows are counted without this.
    pub fn progress(&mut self, done: u64, total: u64, unit: &str) {
        (self.report)(Report::Progress { done, total, unit: unit.to_owned() });
    }

    /// Says something to the person who runs the pipeline.
    pub fn log(&mut self, message: impl ToString) {
        (self.report)(Report::Log { message: message.to_string() });
    }

    /// Whether somebody asked to stop: the work is then saved and ends with [`Error::Interrupted`]. A row-per-row stage need not
    /// ask.
    pub fn is_interrupted(&self) -> bool {
        self.stop.is_requested()
    }

    /// Shows the rows so far of a table that is made as a whole, but no more than every few seconds.
    pub fn show(&mut self, rows: impl FnOnce() -> Result<RecordBatch>) -> Result<()> {
        if self.shown.is_some_and(|at| at.elapsed() < SHOW_EVERY) {
            return Ok(());
        }
        let rows = rows()?;
        let bytes = parts::encode(&seal(&self.declared, &rows, None)?.0)?;
        let (size, count) = (bytes.len() as u64, rows.num_rows() as u64);
        let part = PartRef { part: self.store.put_part(bytes)?, bytes: size, rows: count, chosen: None };
        (self.report)(Report::Unfinished { part });
        self.shown = Some(Instant::now());
        Ok(())
    }

    /// Keeps blobs that rows of a saved state name; says whether they are all still there, and keeps none if not.
    pub fn keep(&mut self, blobs: &[Digest]) -> Result<bool> {
        for blob in blobs {
            if !self.store.has_blob(*blob)? {
                return Ok(false);
            }
        }
        self.entry.blobs.extend(blobs);
        Ok(true)
    }

    /// Keeps bytes that a row names by their digest.
    pub fn blob(&mut self, bytes: Vec<u8>) -> Result<Digest> {
        let digest = self.store.put_blob(bytes)?;
        self.entry.blobs.push(digest);
        Ok(digest)
    }

    /// How long to work between two saved states.
    pub fn save_every(&self) -> Duration {
        self.task.job.save_every
    }

    /// Saves the state of work that is not done, replacing what was saved before.
    pub fn save(&mut self, state: Vec<u8>) -> Result<()> {
        let digest = Bytes::copy_from_slice(Digest::of(&state).as_bytes());
        self.store.put_pieces(&state_name(self.task.stage_key), [digest, state.into()])
    }

    /// The state that an earlier, interrupted run of the same work saved.
    pub fn saved(&self) -> Result<Option<Bytes>> {
        let saved = self.store.get(&state_name(self.task.stage_key))?.filter(|bytes| bytes.len() >= Digest::LEN);
        // A state that does not match its digest is as good as none: the work starts over.
        let whole = |saved: Bytes| {
            let state = saved.slice(Digest::LEN..);
            (Digest::of(&state).as_bytes().as_slice() == &saved[..Digest::LEN]).then_some(state)
        };
        Ok(saved.and_then(whole))
    }

    fn pend(&mut self, stored: RecordBatch) {
        self.pending.get_or_insert_with(|| Encoder::start(stored.schema())).write(stored);
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

    fn finish(mut self) -> Result<Vec<Entry>> {
        if let Some(at) = self.written.iter().position(|written| !written).filter(|_| self.keyed()) {
            return Err(Error::Stage(format!(
                "the stage `{}` wrote no row for `{}`",
                self.task.job.stage, self.task.ids[at]
            )));
        }
        if !self.keyed() && self.pending.is_none() {
            let empty = RecordBatch::new_empty(self.declared.clone());
            self.pend(seal(&self.declared, &empty, None)?.0);
        }
        self.commit()?;
        if !self.keyed() {
            self.store.delete(&state_name(self.task.stage_key))?;
        }
        Ok(self.entries)
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;
    use crate::engine::encode_schema;

    /// Writes its rows one by one, and is asked to stop at the second.
    struct Slow(Stop);

    impl Operator for Slow {
        fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
            while let Some(batch) = rows.next(1)? {
                if batch.ids == ["b"] {
                    self.0.request();
                }
                out.rows(&batch, Vec::new())?;
            }
            Ok(())
        }
    }

    fn keys(task: &Task, store: &Store) -> Vec<Digest> {
        store.computed(task.stage_key).unwrap().entries.into_iter().flat_map(|entry| entry.keys).collect()
    }

    #[test]
    fn an_interrupted_task_keeps_the_rows_that_are_done() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().to_str().unwrap()).unwrap();
        let schema = Arc::new(Schema::new(vec![Field::new("id", DataType::Utf8, false)]));
        let ids: Vec<String> = ["a", "b", "c"].map(str::to_owned).into();
        let job = Job {
            stage: "slow".into(),
            params: Value::Null,
            makes: Output::RowPerRow,
            output: encode_schema(&schema),
            inputs: Vec::new(),
            schemas: Vec::new(),
            tables: Vec::new(),
            files: Vec::new(),
            device: "cpu".into(),
            batch_size: None,
            save_every: Duration::ZERO,
            secrets: Secrets::default(),
        };
        let task = |ids: &[String]| Task {
            job: job.clone(),
            stage_key: Digest::of(b"stage"),
            run: "run".into(),
            after: 0,
            keys: ids.iter().map(|id| Digest::of(id.as_bytes())).collect(),
            ids: ids.to_vec(),
            rows: Vec::new(),
            listed: None,
        };
        let stop = Stop::default();
        let mut executor = Executor { store: store.clone(), stop: stop.clone(), opened: None };
        executor.opened = Some((job.clone(), Box::new(Slow(stop))));
        let whole = task(&ids);
        let open: OpenFn = |_, _| unreachable!("it is open");
        let interrupted = executor.run(whole.clone(), open, &mut |_| {});
        assert!(matches!(interrupted, Err(Error::Interrupted)));
        assert_eq!(keys(&whole, &store), whole.keys[..2]);
        // What is left is one task, and its last row is no interruption.
        executor.run(task(&ids[2..]), open, &mut |_| {}).unwrap();
        assert_eq!(keys(&whole, &store), whole.keys);
    }
}
