//! The figures of a run in a file, as the textfile collector of Prometheus' node exporter reads it.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    Listener,
    prometheus::{Exposition, label},
};
use crate::engine::{Error, Result, store::Event};

/// The interval at which the file is written while tables are made.
const EVERY: Duration = Duration::from_secs(5);

/// Writes the figures of a run to a file, again and again, each time as a whole.
#[derive(Debug)]
pub struct RunFigures {
    path: PathBuf,
    written: Instant,
    run: Run,
    tables: BTreeMap<String, Table>,
    failure: Option<String>,
}

/// The figures of a run as a whole.
#[derive(Debug, Default)]
struct Run {
    id: String,
    pipeline: String,
    version: String,
    device: String,
    started_ms: u64,
    seconds: f64,
    state: State,
}

/// The state of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum State {
    #[default]
    Running,
    Done,
    Failed,
    Interrupted,
}

impl State {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Running, "running"),
        (Self::Done, "done"),
        (Self::Failed, "failed"),
        (Self::Interrupted, "interrupted"),
    ];
}

/// The figures of a table.
#[derive(Debug, Default)]
struct Table {
    stage: String,
    version: u64,
    rows: u64,
    computed: u64,
    errors: u64,
    bytes: u64,
    seconds: f64,
    /// Units of work that are done, and all of them, with the name of the unit.
    progress: Option<(u64, u64, String)>,
}

impl RunFigures {
    /// Begins a file.
    ///
    /// # Errors
    /// [`Error::Input`] if it cannot be written.
    pub fn create(path: &Path) -> Result<Self> {
        let path = path.to_owned();
        let (run, tables) = (Run::default(), BTreeMap::new());
        let figures = Self { path, written: Instant::now(), run, tables, failure: None };
        figures.write().map_err(|e| Error::Input(format!("cannot write {}: {e}", figures.path.display())))?;
        Ok(figures)
    }

    /// Writes the file beside its place and renames it, so that no reader sees a part of it.
    fn write(&self) -> io::Result<()> {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.unfinished", std::process::id()));
        let unfinished = self.path.with_file_name(name);
        fs::write(&unfinished, self.text())?;
        fs::rename(&unfinished, &self.path).inspect_err(|_| drop(fs::remove_file(&unfinished)))
    }

    fn text(&self) -> String {
        let mut text = Exposition::default();
        let Run { id, pipeline, version, device, started_ms, seconds, state } = &self.run;
        if id.is_empty() {
            return text.text();
        }
        let of_run = || label([("pipeline", pipeline.as_str())]);
        let about = [
            ("pipeline", pipeline.as_str()),
            ("run", id.as_str()),
            ("version", version.as_str()),
            ("device", device.as_str()),
        ];
        text.family("run_info", "gauge", "The run that wrote this file.", [(label(about), 1)]);
        let started = *started_ms as f64 / 1e3;
        text.family("run_start_time_seconds", "gauge", "The time at which the run began.", [(of_run(), started)]);
        text.family("run_seconds", "gauge", "Seconds since the run began, or that it took.", [(of_run(), seconds)]);
        let states = State::ALL.map(|(known, name)| {
            (label([("pipeline", pipeline.as_str()), ("state", name)]), u8::from(known == *state))
        });
        text.family("run_state", "gauge", "The state of the run: 1 for the one that it is in.", states);
        let mut table = |name: &str, help: &str, of: &dyn Fn(&Table) -> f64| {
            let samples = self.tables.iter().map(|(table, figures)| {
                let labels =
                    [("pipeline", pipeline.as_str()), ("table", table.as_str()), ("stage", figures.stage.as_str())];
                (label(labels), of(figures))
            });
            text.family(name, "gauge", help, samples);
        };
        table("table_version", "The version of the table that the run found or published.", &|t| t.version as f64);
        table("table_rows", "Rows of the table.", &|t| t.rows as f64);
        table("table_computed_rows", "Rows that the run computed.", &|t| t.computed as f64);
        table("table_failed_rows", "Rows that were left out because they failed.", &|t| t.errors as f64);
        table("table_bytes", "Bytes of the parts that the run wrote.", &|t| t.bytes as f64);
        table("table_seconds", "Seconds that the run took for the table.", &|t| t.seconds);
        let progress = |of: fn(&(u64, u64, String)) -> u64| {
            let samples = self.tables.iter().filter_map(move |(table, figures)| {
                let progress = figures.progress.as_ref()?;
                let labels =
                    [("pipeline", pipeline.as_str()), ("table", table.as_str()), ("unit", progress.2.as_str())];
                Some((label(labels), of(progress)))
            });
            samples.collect::<Vec<_>>()
        };
        text.family("table_work_done", "gauge", "Units of work that are done.", progress(|(done, ..)| *done));
        text.family("table_work", "gauge", "Units of work in all.", progress(|(_, total, _)| *total));
        text.text()
    }
}

/// Returns the figures of a table.
fn of<'t>(tables: &'t mut BTreeMap<String, Table>, name: &str) -> &'t mut Table {
    tables.entry(name.to_owned()).or_default()
}

impl Listener for RunFigures {
    fn hear(&mut self, at_ms: u64, event: &Event) {
        let run = &mut self.run;
        run.seconds = at_ms.saturating_sub(run.started_ms) as f64 / 1e3;
        let tables = &mut self.tables;
        match event {
            Event::RunStarted { run: id, pipeline, version, device, .. } => {
                *run = Run {
                    id: id.clone(),
                    pipeline: pipeline.clone(),
                    version: version.clone(),
                    device: device.clone(),
                    started_ms: at_ms,
                    ..Run::default()
                };
            }
            Event::TableFresh { table: name, stage, version, rows, .. } => {
                *of(tables, name) = Table { stage: stage.clone(), version: *version, rows: *rows, ..Table::default() };
            }
            Event::TableStarted { table: name, stage, .. } => of(tables, name).stage.clone_from(stage),
            Event::Progress { table: name, done, total, unit } => {
                of(tables, name).progress = Some((*done, *total, unit.clone()));
            }
            Event::TablePublished { table: name, version, rows, computed, bytes, errors, seconds, .. } => {
                let table = of(tables, name);
                (table.version, table.rows, table.computed) = (*version, *rows, *computed);
                (table.errors, table.bytes, table.seconds) = (*errors, *bytes, *seconds);
            }
            Event::RunFinished { seconds, error, interrupted } => {
                run.seconds = *seconds;
                run.state = match error {
                    None => State::Done,
                    Some(_) if *interrupted => State::Interrupted,
                    Some(_) => State::Failed,
                };
            }
            _ => {}
        }
        // Many tables may be fresh within milliseconds, and progress is frequent.
        let is_mark =
            matches!(event, Event::RunStarted { .. } | Event::TablePublished { .. } | Event::RunFinished { .. });
        if is_mark || self.written.elapsed() >= EVERY {
            self.written = Instant::now();
            if let Err(error) = self.write() {
                self.failure
                    .get_or_insert_with(|| format!("the figures are not written to {}: {error}", self.path.display()));
            }
        }
    }

    fn finish(&mut self) -> Option<String> {
        self.failure.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_has_the_figures_of_the_last_event() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.prom");
        let mut figures = RunFigures::create(&path).unwrap();
        let started = serde_json::json!({
            "event": "run_started", "run": "r", "pipeline": "p", "store": "s", "pipeline_digest": "d", "host": "h",
            "version": "1", "device": "cpu",
        });
        figures.hear(5_000, &serde_json::from_value(started).unwrap());
        let (table, stage, slot) = ("t".to_owned(), "sql".to_owned(), "t".to_owned());
        figures.hear(5_500, &Event::TableFresh { table, stage, slot, version: 7, rows: 3 });
        figures.hear(7_000, &Event::RunFinished { seconds: 2., error: Some("x".into()), interrupted: false });
        assert_eq!(figures.finish(), None);
        let text = fs::read_to_string(&path).unwrap();
        for line in [
            "vlmdiff_run_info{pipeline=\"p\",run=\"r\",version=\"1\",device=\"cpu\"} 1",
            "vlmdiff_run_start_time_seconds{pipeline=\"p\"} 5",
            "vlmdiff_run_seconds{pipeline=\"p\"} 2",
            "vlmdiff_run_state{pipeline=\"p\",state=\"failed\"} 1",
            "vlmdiff_run_state{pipeline=\"p\",state=\"done\"} 0",
            "vlmdiff_table_version{pipeline=\"p\",table=\"t\",stage=\"sql\"} 7",
            "vlmdiff_table_rows{pipeline=\"p\",table=\"t\",stage=\"sql\"} 3",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}\n{text}");
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let error = RunFigures::create(&folder.path().join("none/run.prom")).unwrap_err().to_string();
        assert!(error.starts_with("cannot write "), "{error}");
    }
}
