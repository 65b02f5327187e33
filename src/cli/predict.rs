//! `vlmdiff predict`

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::Result;
use clap::Args;
use serde_json::json;

use super::{
    EXIT_ANOMALOUS, EXIT_DONE, EXIT_SKIPPED, PipelineArgs,
    progress::Progress,
    run::{default_threads, device, stop_at_signals, worker_program},
    text::{print, say},
};
use crate::{
    engine::{
        Error, Stop,
        pipeline::Pipeline,
        run::{Settings, Workers},
        source::Sources,
        store::{Event, Store},
    },
    inspect::{Inspector, Named, Photograph, Surroundings, Verdict, named, pictures},
};

/// Judge new photographs by a pipeline that has run.
///
/// The photographs go through the tables of the pipeline, from its photographs down to its decisions. What was fitted,
/// trained or calibrated is taken as the last run left it. A photograph that was judged before costs nothing.
#[derive(Args)]
#[command(after_help = "\
Examples:
  vlmdiff predict pipelines/inspect.yaml new.png
  vlmdiff predict pipelines/inspect.yaml today/ --class gear --json
  vlmdiff predict pipelines/inspect.yaml s3://BUCKET/today/ photographs.csv
  vlmdiff predict pipelines/inspect.yaml --watch incoming/

Exit codes:
  0 no photograph is anomalous, 3 a photograph could not be read, 4 a photograph is anomalous")]
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
    /// The device to compute on: auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto", value_parser = device)]
    device: String,
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
        let (pipeline, store) = self.pipeline.open()?;
        let stop = Stop::default();
        let name = format!("{}_predict", pipeline.name);
        let inspector = inspector(&self.pipeline, &store, &pipeline, name, &self.device, &stop)?;
        stop_at_signals(&store, &stop, &Progress::new(&BTreeSet::new(), true))?;
        let folder = tempfile::tempdir()?;
        let class = |listed: Option<&str>| inspector.class(listed.or(self.class.as_deref()), "--class");
        let named = named(&self.photographs, &class, folder.path(), &Sources::default())?;
        let mut worst = self.judge(&inspector, &named)?;
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
            let photographs = new.into_iter().map(photograph).collect::<Result<_>>()?;
            worst = worst.max(self.judge(&inspector, &Named { photographs, failed: Vec::new() })?);
            if stop.is_requested() {
                return Err(Error::Interrupted.into());
            }
            std::thread::sleep(WATCH_EVERY);
        }
        Ok(worst)
    }

    /// Judges photographs, and prints the verdicts and those that failed. Returns the exit code.
    fn judge(&self, inspector: &Inspector, named: &Named) -> Result<u8> {
        let mut worst = EXIT_DONE;
        let mut failed = named.failed.clone();
        if !named.photographs.is_empty() {
            let judged = inspector.judge(&named.photographs, &mut |event| {
                if let Event::Note { table, message } = event {
                    say(format!("{table}: {message}"));
                }
            })?;
            let mut regions = judged.regions()?;
            let mut nearest = judged.nearest()?;
            for decision in &judged.decisions {
                if decision.anomalous == Some(true) {
                    worst = EXIT_ANOMALOUS;
                }
                let regions = regions.as_mut().map(|found| found.remove(&decision.image_id).unwrap_or_default());
                let nearest = nearest.remove(&decision.image_id);
                let verdict = Verdict::new(decision, inspector.model(), regions, nearest);
                print(if self.json { serde_json::to_string(&verdict)? } else { line(&verdict) })?;
            }
            failed.extend(judged.failed.iter().map(|error| (error.id.clone(), error.about_id())));
        }
        for (id, message) in failed {
            worst = worst.max(EXIT_SKIPPED);
            if self.json {
                print(json!({ "image_id": id, "error": message, "model": inspector.model() }))?;
            } else {
                say(format!("{id}: {message}"));
            }
        }
        Ok(worst)
    }
}

/// Prepares a pipeline to judge new photographs, whose tables are published under a name.
pub(super) fn inspector(
    arguments: &PipelineArgs,
    store: &Store,
    pipeline: &Pipeline,
    name: String,
    device: &str,
    stop: &Stop,
) -> Result<Inspector> {
    let settings = Settings { device: device.to_owned(), ..Settings::default() };
    let workers = Workers::new(store, worker_program()?, vec![settings.clone()], default_threads(), stop);
    let surroundings = Surroundings { name, workers, settings, stop: stop.clone() };
    Ok(Inspector::open(store, pipeline, |values| arguments.load_with(values), surroundings)?)
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
