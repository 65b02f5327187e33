//! The command line: arguments, dispatch and exit code. No other module prints.

mod caption;
#[cfg(feature = "cluster")]
mod cluster;
mod completions;
mod data;
mod diff;
mod export;
mod figures;
mod flight;
mod gc;
mod graph;
mod json_log;
mod man;
mod models;
mod plan;
mod predict;
mod report;
mod run;
mod runs;
mod schema;
#[cfg(feature = "cluster")]
mod security;
mod serve;
mod sql;
mod status;
mod synth;
mod text;

use std::{collections::BTreeSet, path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::{
    driver::{self, DEFAULT_STORE, NamedPipeline},
    engine::{
        Error,
        pipeline::{Pipeline, Selection},
        plan::Overrides,
        signals,
        store::Store,
    },
    telemetry,
};

/// Exit code if everything is done.
pub const EXIT_DONE: u8 = 0;
/// Exit code if a stage failed.
pub const EXIT_FAILED: u8 = 1;
/// Exit code if the user's input is wrong: arguments, YAML, data, weights.
pub const EXIT_INPUT: u8 = 2;
/// Exit code if some rows failed and were left out.
pub const EXIT_SKIPPED: u8 = 3;
/// Exit code if a photograph is anomalous.
pub const EXIT_ANOMALOUS: u8 = 4;
/// Exit code if the run was asked to stop. It is the one that shells report for a program that Ctrl-C ended.
pub const EXIT_INTERRUPTED: u8 = 130;

/// The exit code of a Rust program that panicked.
const PANICKED: u8 = 101;
/// Bytes of the stack that commands run on. Unused parts take no memory.
const STACK: usize = 256 << 20;

/// A dataflow engine for visual anomaly detection.
#[derive(Parser)]
#[command(
    version,
    propagate_version = true,
    after_help = "\
Start with:
  vlmdiff run pipelines/quickstart.yaml --tag baseline
  vlmdiff sql \"select class, protocol, pixel_auroc from metrics\"
  vlmdiff report -o report.html

Then change something and see what it does:
  vlmdiff plan pipelines/quickstart.yaml --set anomaly_maps.sigma=3
  vlmdiff run pipelines/quickstart.yaml --set anomaly_maps.sigma=3
  vlmdiff diff baseline

Exit codes: 0 done, 1 a stage failed, 2 the input is wrong (arguments, YAML, data), 3 some rows failed and were skipped,
130 interrupted (what is done is kept)."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compute what is stale, table by table.
    Run(run::Run),
    /// Say what a run would compute, and why.
    Plan(plan::Plan),
    /// List the published tables and what the store holds.
    Status(status::Status),
    /// Judge new photographs by a pipeline that has run.
    Predict(predict::Predict),
    /// Judge photographs over HTTP by a pipeline that has run, and show them on a page.
    Serve(serve::Serve),
    /// Start the programs of a cluster, on which `run --cluster` computes.
    #[cfg(feature = "cluster")]
    Cluster(cluster::Cluster),
    /// Describe photographs by a vision-language model.
    Caption(caption::Caption),
    /// Query the published tables.
    Sql(sql::Sql),
    /// Answer SQL of other programs over the published tables, by Arrow Flight SQL.
    Flight(flight::Flight),
    /// Write an HTML page of metrics, curves and pictures, or the tables of metrics as text.
    Report(report::Report),
    /// Write a table for other programs, or maps, verdicts and regions as pictures.
    Export(export::Export),
    /// Write pictures of images beside their ground truth and their maps by several tables.
    Figures(figures::Figures),
    /// List what runs did, and name runs.
    Runs(runs::Runs),
    /// Say what changed from one run to another.
    Diff(diff::Diff),
    /// Delete stored objects that nothing reaches any more.
    Gc(gc::Gc),
    /// Draw the tables of a pipeline and what they are made from.
    Graph(graph::Graph),
    /// Write the JSON Schema of pipelines and the Arrow schemas of the tables.
    Schema(schema::SchemaCommand),
    /// Generate a dataset of pictures in MVTec layout.
    Synth(synth::Synth),
    /// Check the files of a pipeline's data sets.
    Data(data::Data),
    /// List, fetch and look into published checkpoints.
    Models(models::Models),
    /// Print a script by which a shell completes commands and options.
    Completions(completions::Completions),
    /// Write a manual page for each command.
    Man(man::Man),
}

/// A pipeline and its store.
#[derive(Args)]
struct PipelineArgs {
    /// The pipeline file.
    pipeline: PathBuf,
    /// Set a parameter: TABLE.PARAMETER=VALUE, such as images.root=photos. May be given several times.
    #[arg(long = "set", value_name = "TABLE.PARAMETER=VALUE")]
    sets: Vec<String>,
    /// Run only the combinations of a sweep with this value, such as extractor=dinov2. Given several times, a
    /// combination needs one of the values of each axis.
    #[arg(long, value_name = "AXIS=VALUE")]
    only: Vec<String>,
    /// The store, a folder or a URL. Default: the pipeline's `store:`, else .vlmdiff
    #[arg(long, env = "VLMDIFF_STORE")]
    store: Option<String>,
}

impl PipelineArgs {
    fn named(&self) -> NamedPipeline {
        let Self { pipeline, sets, only, store } = self;
        NamedPipeline { file: pipeline.clone(), sets: sets.clone(), only: only.clone(), store: store.clone() }
    }

    fn load(&self) -> Result<Pipeline> {
        Ok(self.named().load()?)
    }

    fn open(&self) -> Result<(Pipeline, Store)> {
        Ok(self.named().open()?)
    }
}

/// The selection of tables, and results that are computed again.
#[derive(Args)]
struct SelectionArgs {
    /// Select only this table and the tables it is made from. May be given several times.
    #[arg(long = "target", value_name = "TABLE")]
    targets: Vec<String>,
    /// Select only the tables from the top of the pipeline down to this one.
    #[arg(long, value_name = "TABLE")]
    until: Option<String>,
    /// Compute this table again although it is fresh. May be given several times.
    #[arg(long, value_name = "TABLE")]
    force: Vec<String>,
    /// Compute rows again that failed and were left out (`on_error: skip`).
    #[arg(long)]
    retry_errors: bool,
}

impl SelectionArgs {
    fn resolve(&self, pipeline: &Pipeline) -> Result<(BTreeSet<String>, Overrides)> {
        let selection = Selection { targets: self.targets.clone(), until: self.until.iter().cloned().collect() };
        Ok(driver::select(pipeline, &selection, &self.force, self.retry_errors)?)
    }
}

/// A store that exists.
#[derive(Args)]
struct StoreArgs {
    /// The store, a folder or a URL.
    #[arg(long, global = true, env = "VLMDIFF_STORE", default_value = DEFAULT_STORE)]
    store: String,
}

impl StoreArgs {
    fn open(&self) -> Result<Store> {
        Ok(driver::open_store(&self.store, "with --store")?)
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    signals::outlive_file_size_limit();
    // An expression of some thousand terms is a tree of that depth, which SQL's planner walks by recursion.
    let thread = std::thread::Builder::new().name("main".into()).stack_size(STACK);
    match thread.spawn(command).map(std::thread::JoinHandle::join) {
        Ok(Ok(code)) => code,
        // The thread has panicked and printed the reason.
        Ok(Err(_)) => PANICKED.into(),
        // The system refuses such a stack. Most expressions need none, so the command runs on the default one.
        Err(_) => command(),
    }
}

fn command() -> ExitCode {
    let cli = Cli::parse();
    telemetry::begin();
    let result = match cli.command {
        Command::Run(command) => command.run(),
        Command::Predict(command) => command.run(),
        Command::Serve(command) => command.run(),
        #[cfg(feature = "cluster")]
        Command::Cluster(command) => command.run(),
        Command::Caption(command) => command.run(),
        Command::Plan(command) => command.run(),
        Command::Status(command) => command.run(),
        Command::Sql(command) => command.run(),
        Command::Flight(command) => command.run(),
        Command::Runs(command) => command.run(),
        Command::Diff(command) => command.run(),
        Command::Gc(command) => command.run(),
        Command::Report(command) => command.run(),
        Command::Export(command) => command.run(),
        Command::Figures(command) => command.run(),
        Command::Graph(command) => command.run(),
        Command::Schema(command) => command.run(),
        Command::Synth(command) => command.run(),
        Command::Data(command) => command.run(),
        Command::Models(command) => command.run(),
        Command::Completions(command) => command.run(),
        Command::Man(command) => command.run(),
    };
    if let Some(failure) = telemetry::end() {
        text::say(failure);
    }
    match result {
        Ok(code) => code.into(),
        Err(error) => {
            let closed = |e: &std::io::Error| e.kind() == std::io::ErrorKind::BrokenPipe;
            if error.chain().any(|cause| cause.downcast_ref().is_some_and(closed)) {
                return EXIT_DONE.into();
            }
            // The engine's messages include their causes; other errors are chains of causes.
            match error.downcast_ref::<Error>() {
                Some(error) => text::say_error(error),
                None => text::say_error(format!("{error:#}")),
            }
            match error.downcast_ref::<Error>() {
                Some(Error::Interrupted) => EXIT_INTERRUPTED,
                Some(error) if error.is_input() => EXIT_INPUT,
                _ => EXIT_FAILED,
            }
            .into()
        }
    }
}
