//! `vlmdiff predict`

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::Result;
use clap::Args;

use super::{
    EXIT_ANOMALOUS, EXIT_DONE, EXIT_SKIPPED, PipelineArgs,
    json_log::JsonLog,
    run::{SAVED, stop_at_signals, worker_program},
    text::{LogArgs, LogFormat, lines, log_format, print, print_exactly, say},
};
use crate::{
    driver::{Predicted, Progress, device, inspector, judge, predict},
    engine::{Error, Stop, store::Event},
    inspect::{Photograph, Verdict, pictures},
    telemetry::{Listener, Listeners, RunTraces},
};

/// Judge new photographs by a pipeline that has run.
///
/// The photographs go through the tables of the pipeline, from its photographs down to its decisions. Models,
/// banks and thresholds are taken as the last run left them. A photograph that was judged before costs nothing.
#[derive(Args)]
#[command(after_help = "\
Examples:
  vlmdiff predict pipelines/inspect.yaml new.png
  vlmdiff predict pipelines/inspect.yaml today/ --class gear --json
  vlmdiff predict pipelines/inspect.yaml s3://BUCKET/today/ photographs.csv
  vlmdiff predict pipelines/inspect.yaml --watch incoming/

Exit codes:
  0 no photograph is anomalous, 3 a photograph could not be judged, 4 a photograph is anomalous,
  130 the command was interrupted, as --watch always is")]
pub(super) struct Predict {
    #[command(flatten)]
    pipeline: PipelineArgs,
    /// Photographs, folders of them, their URLs, and manifests (CSV, JSON lines, Parquet).
    #[arg(required_unless_present = "watch")]
    photographs: Vec<PathBuf>,
    /// The class of the photographs, where a manifest does not say. Default: the class of the pipeline's photographs, if
    /// there is one alone; none is needed if the class changes no verdict.
    #[arg(long)]
    class: Option<String>,
    /// Judge photographs as they appear in this folder, until the command is interrupted.
    #[arg(long, value_name = "FOLDER")]
    watch: Option<PathBuf>,
    /// Print a JSON object for each photograph.
    #[arg(long)]
    json: bool,
    /// The table of decisions by which photographs are judged. Default: the only one of the pipeline.
    #[arg(long, value_name = "TABLE")]
    decisions: Option<String>,
    /// The device to compute on: auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto", value_parser = device)]
    device: String,
    #[command(flatten)]
    log: LogArgs,
}

/// The interval at which a watched folder is listed.
const WATCH_EVERY: Duration = Duration::from_millis(200);

/// Size and time of a file in a watched folder, by which a change is noticed.
#[derive(Clone, Copy, PartialEq)]
struct FileState {
    bytes: u64,
    modified: Option<SystemTime>,
}

impl FileState {
    /// Returns the state of a file; `None` if it has vanished since it was listed.
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self { bytes: metadata.len(), modified: metadata.modified().ok() })
    }
}

impl Predict {
    pub(super) fn run(self) -> Result<u8> {
        self.log.choose();
        let (pipeline, store) = self.pipeline.open()?;
        let stop = Stop::default();
        let name = format!("{}_predict", pipeline.name);
        let (arguments, program) = (self.pipeline.named(), worker_program()?);
        let inspector =
            inspector(&arguments, (&pipeline, &store), name, self.decisions.clone(), &self.device, program, &stop)?;
        stop_at_signals(&store, &stop, SAVED, Progress::new(&BTreeSet::new(), lines(true)).speaker())?;
        let class = |listed: Option<&str>| inspector.class(listed.or(self.class.as_deref()), "--class");
        let predicted = predict(&inspector, &self.photographs, &class, &mut listener())?;
        let code = self.show(&predicted, inspector.model())?;
        // A file that is still being copied is judged again when it has changed.
        let mut judged: HashMap<PathBuf, FileState> = HashMap::new();
        while let Some(watched) = &self.watch {
            let mut new = pictures(std::slice::from_ref(watched))?;
            new.retain(|path| {
                let state = FileState::of(path);
                state.is_some_and(|state| judged.insert(path.clone(), state) != Some(state))
            });
            let photograph =
                |file: PathBuf| Ok(Photograph { id: file.to_string_lossy().into_owned(), class: class(None)?, file });
            let photographs = new.into_iter().map(photograph).collect::<Result<Vec<_>>>()?;
            let predicted = judge(&inspector, &photographs, &mut listener())?;
            self.show(&predicted, inspector.model())?;
            if stop.is_requested() {
                return Err(Error::Interrupted.into());
            }
            std::thread::sleep(WATCH_EVERY);
        }
        Ok(code)
    }

    /// Prints the verdicts, and the photographs that failed. Returns the exit code.
    fn show(&self, predicted: &Predicted, model: &str) -> Result<u8> {
        if self.json {
            predicted.json(model)?.iter().try_for_each(print_exactly)?;
        } else {
            predicted.verdicts.iter().try_for_each(|verdict| print(line(verdict)))?;
            predicted.failed.iter().for_each(|(id, message)| say(format!("{id}: {message}")));
        }
        let is_anomalous = predicted.verdicts.iter().any(|verdict| verdict.anomalous == Some(true));
        Ok(match (is_anomalous, predicted.failed.is_empty()) {
            (true, _) => EXIT_ANOMALOUS,
            (false, false) => EXIT_SKIPPED,
            (false, true) => EXIT_DONE,
        })
    }
}

/// Returns what hears the events of a run: it traces the run, and prints its notes or, as JSON, all events.
fn listener() -> impl FnMut(&Event) + Send {
    let mut listeners = Listeners::default();
    RunTraces::begin().into_iter().for_each(|traces| listeners.add(traces));
    match log_format() {
        LogFormat::Text => listeners.add(Notes),
        LogFormat::Json => listeners.add(JsonLog::default()),
    }
    move |event| listeners.tell(event)
}

/// Prints what a run notes on a table.
struct Notes;

impl Listener for Notes {
    fn hear(&mut self, _: u64, event: &Event) {
        if let Event::Note { table, message } = event {
            say(format!("{table}: {message}"));
        }
    }
}

/// Returns a verdict in words.
fn line(verdict: &Verdict) -> String {
    let word = match verdict.anomalous {
        Some(true) => "anomalous",
        Some(false) => "good",
        None => "no threshold",
    };
    let number = |name: &str, value: Option<f64>| value.map_or(String::new(), |value| format!("  {name} {value:.4}"));
    let numbers = [("score", verdict.score), ("threshold", verdict.threshold), ("p", verdict.p_value)];
    let numbers: String = numbers.into_iter().map(|(name, value)| number(name, value)).collect();
    format!("{word:<12}  {}{numbers}", verdict.image_id)
}
