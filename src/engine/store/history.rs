//! The history of runs, read from the events that they left in the store.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    event::{Event, Logged},
    objects::Store,
    published::version_name,
    sealed,
};
use crate::engine::{Error, Result};

/// A run, from its events.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Run {
    /// Its id; ids sort by time.
    pub run: String,
    /// The pipeline's name.
    pub pipeline: String,
    /// The digest of the pipeline.
    pub pipeline_digest: String,
    /// The git commit of the folder it was started in.
    pub git_commit: Option<String>,
    /// The machine.
    pub host: String,
    /// The devices of its networks; empty if its log does not say.
    pub device: String,
    /// The version of vlmdiff.
    pub version: String,
    /// The time of its beginning, in milliseconds since 1970.
    pub started_ms: u64,
    /// Its duration in seconds; `None` if it was killed or still runs.
    pub seconds: Option<f64>,
    /// The error that ended it.
    pub error: Option<String>,
    /// The tags that name it.
    pub tags: Vec<String>,
    /// Its tables, in the order in which it handled them.
    pub tables: Vec<TableRun>,
    /// Rows that failed.
    pub failures: Vec<Failure>,
    /// True if its log is damaged, so that only its id is known.
    pub damaged: bool,
    /// True if it was asked to stop.
    #[serde(skip)]
    interrupted: bool,
    /// The time at which each of its tables was started, in milliseconds since 1970.
    #[serde(skip)]
    started: BTreeMap<String, u64>,
}

/// A row that failed.
#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    /// The table, with its swept values.
    pub table: String,
    /// The row's id.
    pub id: String,
    /// The error.
    pub message: String,
    /// The causes behind it, outermost first.
    pub chain: Vec<String>,
}

/// The part of a run that concerns one table.
#[derive(Clone, Debug, Default, Serialize)]
pub struct TableRun {
    /// The table, with its swept values.
    pub table: String,
    /// The stage that makes it.
    pub stage: String,
    /// The name under which the store keeps its versions.
    pub slot: String,
    /// The version that the run found or published; 0 if it was not reached.
    pub version: u64,
    /// Rows of the table.
    pub rows: u64,
    /// Rows computed.
    pub computed: u64,
    /// Rows left out because they failed.
    pub errors: u64,
    /// Bytes of the parts written.
    pub bytes: u64,
    /// The duration in seconds.
    pub seconds: f64,
    /// The causes why it was not fresh.
    pub reasons: Vec<String>,
}

impl Run {
    /// Returns `done`, `failed`, `interrupted`, `unfinished` for a run that was killed or still runs, or `damaged` if
    /// the log is.
    pub fn status(&self) -> &'static str {
        match (&self.error, self.seconds) {
            _ if self.damaged => "damaged",
            (Some(_), _) if self.interrupted => "interrupted",
            (Some(_), _) => "failed",
            (None, Some(_)) => "done",
            (None, None) => "unfinished",
        }
    }

    /// Returns the version of each table that the run found or published, by slot.
    pub fn versions(&self) -> BTreeMap<String, u64> {
        self.tables.iter().filter(|t| t.version > 0).map(|t| (t.slot.clone(), t.version)).collect()
    }

    /// Returns the names of the manifests of these versions.
    pub fn manifests(&self) -> Vec<String> {
        self.versions().iter().map(|(slot, version)| version_name(&self.pipeline, slot, *version)).collect()
    }

    fn add(&mut self, Logged { at_ms, event }: Logged) {
        match event {
            Event::RunStarted { pipeline, pipeline_digest, git_commit, host, device, version, .. } => {
                *self = Self {
                    run: std::mem::take(&mut self.run),
                    pipeline,
                    pipeline_digest,
                    git_commit,
                    host,
                    device,
                    version,
                    started_ms: at_ms,
                    ..Self::default()
                };
            }
            Event::TableFresh { table, stage, slot, version, rows } => {
                let fresh = TableRun { table: table.clone(), stage, slot, version, rows, ..TableRun::default() };
                *self.table(&table) = fresh;
            }
            Event::TableStarted { table, stage, slot, reasons, .. } => {
                self.started.insert(table.clone(), at_ms);
                let started = TableRun { table: table.clone(), stage, slot, reasons, ..TableRun::default() };
                *self.table(&table) = started;
            }
            Event::PartCommitted { table, rows, bytes } => {
                let table = self.table(&table);
                table.computed += rows;
                table.bytes += bytes;
            }
            Event::TablePublished { table, stage, slot, version, rows, computed, bytes, errors, seconds } => {
                let entry = self.table(&table);
                let reasons = std::mem::take(&mut entry.reasons);
                *entry = TableRun { table, stage, slot, version, rows, computed, errors, bytes, seconds, reasons };
            }
            Event::RowFailed { table, id, message, chain } => {
                self.table(&table).errors += 1;
                self.failures.push(Failure { table, id, message, chain });
            }
            Event::RunFinished { seconds, error, interrupted } => {
                // Tables without a version are those at which the run stopped.
                for table in self.tables.iter_mut().filter(|table| table.version == 0) {
                    let since = self.started.get(&table.table).map(|since| at_ms.saturating_sub(*since));
                    table.seconds = since.unwrap_or_default() as f64 / 1000.;
                }
                self.seconds = Some(seconds);
                self.error = error;
                self.interrupted = interrupted;
            }
            Event::Progress { .. }
            | Event::Figure { .. }
            | Event::TaskStarted { .. }
            | Event::TaskFinished { .. }
            | Event::Log { .. }
            | Event::Note { .. } => {}
        }
    }

    fn table(&mut self, name: &str) -> &mut TableRun {
        let at = self.tables.iter().position(|t| t.table == name).unwrap_or_else(|| {
            self.tables.push(TableRun { table: name.to_owned(), ..TableRun::default() });
            self.tables.len() - 1
        });
        &mut self.tables[at]
    }
}

/// A tag: a name for a run.
#[derive(Debug, Serialize, Deserialize)]
struct Tag {
    run: String,
}

/// Returns the name of the pipeline of the latest run whose log is undamaged; an error if a later log is damaged. Runs that
/// judged new photographs do not count: after `predict`, bare names still mean the tables of the pipeline that it judged by.
pub fn last_pipeline(store: &Store, is_meant: impl Fn(&str) -> bool) -> Result<Option<String>> {
    for run in store.list("runs")?.iter().rev() {
        let name = format!("runs/{run}");
        let Some(log) = store.get(&name)? else { continue };
        let first = sealed::open_lines(&name, &log)?.split(|byte| *byte == b'\n').next().unwrap_or_default();
        match serde_json::from_slice(first) {
            Ok(Logged { event: Event::RunStarted { pipeline, judges_by: None, .. }, .. }) if is_meant(&pipeline) => {
                return Ok(Some(pipeline));
            }
            _ => {}
        }
    }
    Ok(None)
}

/// Stores the first lines of the log of a run, unless another run has its id. Returns true if they were stored.
pub(in crate::engine) fn begin_log(store: &Store, run: &str, lines: &str) -> Result<bool> {
    store.put_if_absent(&log_name(run), sealed::seal_lines(lines))
}

/// Stores the log of a run, one event per line.
pub(in crate::engine) fn save_log(store: &Store, run: &str, lines: &str) -> Result<()> {
    store.put(&log_name(run), sealed::seal_lines(lines))
}

/// Returns the name of the log of a run.
pub(in crate::engine) fn log_name(run: &str) -> String {
    format!("runs/{run}.jsonl")
}

/// Returns all runs in the store, oldest first.
pub fn runs(store: &Store) -> Result<Vec<Run>> {
    recent(store, usize::MAX)
}

/// Returns the last `count` runs in the store, oldest first.
pub fn recent(store: &Store, count: usize) -> Result<Vec<Run>> {
    let tags = tags(store)?;
    let all = store.list("runs")?;
    let last = &all[all.len().saturating_sub(count)..];
    let names: Vec<String> = last.iter().map(|name| format!("runs/{name}")).collect();
    let logs = store.get_all(&names)?;
    let read = |(name, log): (&String, bytes::Bytes)| {
        let mut run = Run { run: run_of(name).to_owned(), ..Run::default() };
        match sealed::open_lines(name, &log) {
            Ok(lines) => {
                let events = lines.split(|byte| *byte == b'\n').map_while(|line| serde_json::from_slice(line).ok());
                events.for_each(|event| run.add(event));
            }
            Err(_) => run.damaged = true,
        }
        run.tags = tags.iter().filter(|(_, tagged)| **tagged == run.run).map(|(tag, _)| tag.clone()).collect();
        run
    };
    Ok(names.iter().zip(logs).filter_map(|(name, log)| Some(read((name, log?)))).collect())
}

fn run_of(name: &str) -> &str {
    name.trim_start_matches("runs/").trim_end_matches(".jsonl")
}

fn tag_of(name: &str) -> &str {
    name.trim_start_matches("tags/").trim_end_matches(".json")
}

/// Returns the tags of a store with their runs.
pub fn tags(store: &Store) -> Result<BTreeMap<String, String>> {
    let names: Vec<String> = store.list("tags")?.iter().map(|name| format!("tags/{name}")).collect();
    let tag = |(name, bytes): (&String, Option<bytes::Bytes>)| {
        let tag = tag_of(name);
        let opened = sealed::open::<Tag>(name, &bytes?).map_err(|error| match error {
            Error::Damaged(what) => Error::Damaged(format!("{what}; `vlmdiff runs tag {tag} RUN` writes it again")),
            other => other,
        });
        Some(opened.map(|Tag { run }| (tag.to_owned(), run)))
    };
    names.iter().zip(store.get_all(&names)?).filter_map(tag).collect()
}

/// Returns the id of the run that a name refers to, by the rules of [`find`]. Tags are read only if the name is
/// neither `last~N` nor an id, so that a damaged tag can be replaced.
pub fn id_of(store: &Store, name: &str) -> Result<String> {
    let runs: Vec<String> = store.list("runs")?.iter().map(|run| run_of(run).to_owned()).collect();
    match back(name) {
        Some(back) => runs.into_iter().rev().nth(back),
        None => runs.into_iter().find(|run| run == name),
    }
    .map_or_else(|| Ok(find(store, name)?.run), Ok)
}

/// Returns the number of runs before the last one that a name refers to: 0 for `last`, 1 for `last~1`.
fn back(name: &str) -> Option<usize> {
    if name == "last" { Some(0) } else { name.strip_prefix("last~")?.parse().ok() }
}

/// Returns the run that a name refers to: a tag, an id or the beginning of one, `last` for the newest or `last~1` for
/// the one before.
pub fn find(store: &Store, name: &str) -> Result<Run> {
    let mut runs = runs(store)?;
    let named = |run: &Run| run.run == name || run.tags.iter().any(|tag| tag == name);
    let at = match back(name) {
        Some(back) => back.checked_add(1).and_then(|back| runs.len().checked_sub(back)),
        None => runs.iter().position(named).map_or_else(|| begins_with(&runs, name), |at| Ok(Some(at)))?,
    };
    match at {
        Some(at) => Ok(runs.swap_remove(at)),
        None => {
            let tags: Vec<String> = tags(store)?.into_keys().collect();
            let tags = if tags.is_empty() { "no tags".into() } else { format!("the tags {}", tags.join(", ")) };
            let s = if runs.len() == 1 { "" } else { "s" };
            Err(Error::Input(format!(
                "the store has no run `{name}`; it has {tags} and {} run{s} (vlmdiff runs)",
                runs.len()
            )))
        }
    }
}

/// Returns the run whose id begins with `start`, if there is one. Several are an error.
fn begins_with(runs: &[Run], start: &str) -> Result<Option<usize>> {
    let all: Vec<usize> = (0..runs.len()).filter(|at| !start.is_empty() && runs[*at].run.starts_with(start)).collect();
    if all.len() > 1 {
        return Err(Error::Input(format!("the ids of {} runs begin with `{start}`; write more of it", all.len())));
    }
    Ok(all.first().copied())
}

/// Checks that a text is a valid tag, and returns it.
pub fn check_tag(tag: &str) -> Result<String> {
    let good = tag.starts_with(|c: char| c.is_ascii_alphabetic())
        && tag.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
        && tag != "last";
    if good {
        return Ok(tag.to_owned());
    }
    Err(Error::Input(format!(
        "`{tag}` is no tag; tags are letters, digits, `_`, `-` and `.`, a letter first, and not `last`"
    )))
}

/// Gives a run a tag, so that its tables are kept and can be read as `TABLE@TAG`. Returns the run that had the tag
/// before.
pub fn tag(store: &Store, tag: &str, run: &str) -> Result<Option<String>> {
    check_tag(tag)?;
    let name = format!("tags/{tag}.json");
    // A damaged tag has no known run and is replaced.
    let before = store.get(&name)?.and_then(|bytes| sealed::open::<Tag>(&name, &bytes).ok());
    store.put(&name, sealed::seal(&Tag { run: run.to_owned() })?)?;
    Ok(before.map(|tag| tag.run))
}

/// Removes a tag.
pub fn untag(store: &Store, tag: &str) -> Result<()> {
    if store.listed_size(&format!("tags/{tag}.json"))?.is_none() {
        return Err(Error::Input(format!("the store has no tag `{tag}`")));
    }
    store.delete(&format!("tags/{tag}.json"))
}
