//! What runs did, read from the events that they left in the store.

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
    /// Names what the pipeline said.
    pub pipeline_digest: String,
    /// The git commit of the folder it was started in.
    pub git_commit: Option<String>,
    /// The machine.
    pub host: String,
    /// When it began, in milliseconds since 1970.
    pub started_ms: u64,
    /// How long it took; `None` where it was killed or still runs.
    pub seconds: Option<f64>,
    /// What stopped it.
    pub error: Option<String>,
    /// The tags that name it.
    pub tags: Vec<String>,
    /// Its tables, in the order it looked at them.
    pub tables: Vec<TableRun>,
    /// Rows that failed.
    pub failures: Vec<Failure>,
    /// Its log is not the one that was written, so that nothing but its id is known.
    pub damaged: bool,
    /// Whether somebody asked it to stop.
    #[serde(skip)]
    interrupted: bool,
    /// When its tables were started, in milliseconds since 1970.
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
    /// Why.
    pub message: String,
    /// The causes behind it, outermost first.
    pub chain: Vec<String>,
}

/// What a run did with one table.
#[derive(Clone, Debug, Default, Serialize)]
pub struct TableRun {
    /// The table, with its swept values.
    pub table: String,
    /// The stage that makes it.
    pub stage: String,
    /// Where the store keeps its versions.
    pub slot: String,
    /// The version that the run found or published; 0 where it got no further.
    pub version: u64,
    /// Rows of the table.
    pub rows: u64,
    /// Rows computed.
    pub computed: u64,
    /// Rows left out because they failed.
    pub errors: u64,
    /// Bytes of the parts written.
    pub bytes: u64,
    /// How long it took.
    pub seconds: f64,
    /// Why it was not fresh.
    pub reasons: Vec<String>,
}

impl Run {
    /// `done`, `failed`, `interrupted`, `unfinished` for a run that was killed or is not over, or `damaged` where the log is.
    pub fn status(&self) -> &'static str {
        match (&self.error, self.seconds) {
            _ if self.damaged => "damaged",
            (Some(_), _) if self.interrupted => "interrupted",
            (Some(_), _) => "failed",
            (None, Some(_)) => "done",
            (None, None) => "unfinished",
        }
    }

    /// The version of each table that the run found or published, by slot.
    pub fn versions(&self) -> BTreeMap<String, u64> {
        self.tables.iter().filter(|t| t.version > 0).map(|t| (t.slot.clone(), t.version)).collect()
    }

    /// The names of the manifests of these versions.
    pub fn manifests(&self) -> Vec<String> {
        self.versions().iter().map(|(slot, version)| version_name(&self.pipeline, slot, *version)).collect()
    }

    fn add(&mut self, Logged { at_ms, event }: Logged) {
        match event {
            Event::RunStarted { pipeline, pipeline_digest, git_commit, host, .. } => {
                *self = Self {
                    run: std::mem::take(&mut self.run),
                    pipeline,
                    pipeline_digest,
                    git_commit,
                    host,
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
                // The tables that the run stopped at.
                for table in self.tables.iter_mut().filter(|table| table.version == 0) {
                    let since = self.started.get(&table.table).map(|since| at_ms.saturating_sub(*since));
                    table.seconds = since.unwrap_or_default() as f64 / 1000.;
                }
                self.seconds = Some(seconds);
                self.error = error;
                self.interrupted = interrupted;
            }
            Event::Progress { .. } | Event::Log { .. } | Event::Note { .. } => {}
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

/// The name of the pipeline of the run that began last and whose log is whole; an error where a later log is damaged.
pub fn last_pipeline(store: &Store, is_meant: impl Fn(&str) -> bool) -> Result<Option<String>> {
    for run in store.list("runs")?.iter().rev() {
        let name = format!("runs/{run}");
        let Some(log) = store.get(&name)? else { continue };
        let first = sealed::open_lines(&name, &log)?.split(|byte| *byte == b'\n').next().unwrap_or_default();
        match serde_json::from_slice(first) {
            Ok(Logged { event: Event::RunStarted { pipeline, .. }, .. }) if is_meant(&pipeline) => {
                return Ok(Some(pipeline));
            }
            _ => {}
        }
    }
    Ok(None)
}

/// Keeps the log of a run, one event a line.
pub(in crate::engine) fn save_log(store: &Store, run: &str, lines: &str) -> Result<()> {
    store.put(&log_name(run), sealed::seal_lines(lines))
}

/// The name of the log of a run.
pub(in crate::engine) fn log_name(run: &str) -> String {
    format!("runs/{run}.jsonl")
}

/// Every run that the store remembers, oldest first.
pub fn runs(store: &Store) -> Result<Vec<Run>> {
    let tags = tags(store)?;
    let names: Vec<String> = store.list("runs")?.iter().map(|name| format!("runs/{name}")).collect();
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

/// The tags of a store: tag -> run.
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

/// The id of the run that a name means, as [`find`] knows it. Where no tag is asked for, none is read: one that is damaged can so
/// be written again.
pub fn id_of(store: &Store, name: &str) -> Result<String> {
    let runs: Vec<String> = store.list("runs")?.iter().map(|run| run_of(run).to_owned()).collect();
    match back(name) {
        Some(back) => runs.into_iter().rev().nth(back),
        None => runs.into_iter().find(|run| run == name),
    }
    .map_or_else(|| Ok(find(store, name)?.run), Ok)
}

/// How many runs before the last one a name means: `last`, `last~1`.
fn back(name: &str) -> Option<usize> {
    if name == "last" { Some(0) } else { name.strip_prefix("last~")?.parse().ok() }
}

/// The run that a name means: a tag, an id or the beginning of one, `last` for the newest or `last~1` for the one before.
pub fn find(store: &Store, name: &str) -> Result<Run> {
    let mut runs = runs(store)?;
    let named = |run: &Run| run.run == name || run.tags.iter().any(|tag| tag == name);
    let at = match back(name) {
        Some(back) => runs.len().checked_sub(back + 1),
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

/// The only run whose id begins so, if one does.
fn begins_with(runs: &[Run], start: &str) -> Result<Option<usize>> {
    let all: Vec<usize> = (0..runs.len()).filter(|at| !start.is_empty() && runs[*at].run.starts_with(start)).collect();
    if all.len() > 1 {
        return Err(Error::Input(format!("the ids of {} runs begin with `{start}`; write more of it", all.len())));
    }
    Ok(all.first().copied())
}

/// A tag, if it may be one.
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

/// Names a run, so that its tables stay and can be read as `TABLE@TAG`. Returns the run that had the tag before.
pub fn tag(store: &Store, tag: &str, run: &str) -> Result<Option<String>> {
    check_tag(tag)?;
    let name = format!("tags/{tag}.json");
    // A damaged tag says nothing, and is replaced.
    let before = store.get(&name)?.and_then(|bytes| sealed::open::<Tag>(&name, &bytes).ok());
    store.put(&name, sealed::seal(&Tag { run: run.to_owned() })?)?;
    Ok(before.map(|tag| tag.run))
}

/// Forgets a tag.
pub fn untag(store: &Store, tag: &str) -> Result<()> {
    if store.listed_size(&format!("tags/{tag}.json"))?.is_none() {
        return Err(Error::Input(format!("the store has no tag `{tag}`")));
    }
    store.delete(&format!("tags/{tag}.json"))
}
