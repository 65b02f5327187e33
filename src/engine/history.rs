//! What runs did, read from the events that they left in the store.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    Error, Result, Store,
    event::{Event, Logged},
    store::from_json,
    versions::version_name,
};

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
    /// Rows that failed: table, id, message and chain.
    pub failures: Vec<(String, String, String, Vec<String>)>,
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
    /// `done`, `failed`, or `unfinished` for a run that was killed or is not over.
    pub fn status(&self) -> &'static str {
        match (&self.error, self.seconds) {
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
            Event::TableStarted { table, reasons, .. } => self.table(&table).reasons = reasons,
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
            Event::RowFailed { table, id, message, chain } => self.failures.push((table, id, message, chain)),
            Event::RunFinished { seconds, error } => {
                self.seconds = Some(seconds);
                self.error = error;
            }
            Event::Progress { .. } | Event::Log { .. } => {}
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

/// Every run that the store remembers, oldest first.
pub fn runs(store: &Store) -> Result<Vec<Run>> {
    let tags = tags(store)?;
    let names: Vec<String> = store.list("runs")?.iter().map(|name| format!("runs/{name}")).collect();
    let logs = store.get_all(&names)?;
    let read = |(name, log): (&String, bytes::Bytes)| {
        let mut run = Run { run: run_of(name).to_owned(), ..Run::default() };
        // A line cut short by a full disk or a killed writer ends the log.
        let events = log.split(|byte| *byte == b'\n').map_while(|line| serde_json::from_slice(line).ok());
        events.for_each(|event| run.add(event));
        run.tags = tags.iter().filter(|(_, tagged)| **tagged == run.run).map(|(tag, _)| tag.clone()).collect();
        run
    };
    Ok(names.iter().zip(logs).filter_map(|(name, log)| Some(read((name, log?)))).collect())
}

fn run_of(name: &str) -> &str {
    name.trim_start_matches("runs/").trim_end_matches(".jsonl")
}

/// The tags of a store: tag -> run.
pub fn tags(store: &Store) -> Result<BTreeMap<String, String>> {
    let names: Vec<String> = store.list("tags")?.iter().map(|name| format!("tags/{name}")).collect();
    let tag = |(name, bytes): (&String, Option<bytes::Bytes>)| {
        let run = from_json::<Tag>(name, &bytes?).map(|tag| tag.run);
        Some(run.map(|run| (name.trim_start_matches("tags/").trim_end_matches(".json").to_owned(), run)))
    };
    names.iter().zip(store.get_all(&names)?).filter_map(tag).collect()
}

/// The run that a tag or an id names; `last` is the newest.
pub fn find(store: &Store, name: &str) -> Result<Run> {
    let mut runs = runs(store)?;
    let named = |run: &Run| run.run == name || run.tags.iter().any(|tag| tag == name);
    let at = if name == "last" { runs.len().checked_sub(1) } else { runs.iter().position(named) };
    match at {
        Some(at) => Ok(runs.swap_remove(at)),
        None => {
            let tags: Vec<String> = tags(store)?.into_keys().collect();
            let tags = if tags.is_empty() { "no tags".into() } else { format!("the tags {}", tags.join(", ")) };
            Err(Error::Input(format!(
                "the store has no run `{name}`; it has {tags} and {} runs (vlmdiff runs)",
                runs.len()
            )))
        }
    }
}

/// Names a run, so that its tables stay and can be read as `TABLE@TAG`. Returns the run that had the tag before.
pub fn tag(store: &Store, tag: &str, run: &str) -> Result<Option<String>> {
    let good = tag.starts_with(|c: char| c.is_ascii_alphabetic())
        && tag.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
        && tag != "last";
    if !good {
        return Err(Error::Input(format!(
            "`{tag}` is no tag; tags are letters, digits, `_`, `-` and `.`, a letter first, and not `last`"
        )));
    }
    let before = tags(store)?.remove(tag);
    let json = serde_json::to_vec(&Tag { run: run.to_owned() }).map_err(std::io::Error::from)?;
    store.put(&format!("tags/{tag}.json"), json)?;
    Ok(before)
}

/// Forgets a tag.
pub fn untag(store: &Store, tag: &str) -> Result<()> {
    if !tags(store)?.contains_key(tag) {
        return Err(Error::Input(format!("the store has no tag `{tag}`")));
    }
    store.delete(&format!("tags/{tag}.json"))
}
