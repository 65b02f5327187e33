//! `vlmdiff run`

use std::{path::PathBuf, time::Duration};

use anyhow::Result;
use clap::Args;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{
    EXIT_DONE, EXIT_INTERRUPTED, EXIT_SKIPPED, PipelineArgs, SelectionArgs,
    json_log::JsonLog,
    plan,
    text::{LogArgs, LogFormat, lines, log_format, say},
};
use crate::{
    driver::{Execution, Progress, device},
    engine::{
        Stop,
        pipeline::Pipeline,
        run,
        run::Executor,
        signals::ignores_hangup,
        source::Sources,
        store::{Store, history},
    },
    telemetry::{Lineage, Listeners, RunFigures, RunTraces},
};

/// Compute what is stale, table by table.
#[derive(Args)]
#[command(after_help = "\
Examples:
  vlmdiff run pipelines/folder.yaml --set images.root=photos --tag baseline
  vlmdiff run pipelines/quickstart.yaml --target latents --dry-run
  vlmdiff run pipelines/quickstart.yaml --store s3://bucket/store --cluster http://HOST:50050")]
pub(super) struct Run {
    #[command(flatten)]
    pipeline: PipelineArgs,
    #[command(flatten)]
    selection: SelectionArgs,
    /// The device to compute on: auto, cpu, cuda or cuda:N. Several, separated by commas, have a worker each. Results
    /// of different devices differ in the last digits.
    #[arg(long, default_value = "auto", value_delimiter = ',', value_parser = device)]
    device: Vec<String>,
    /// The number of worker processes, which run independent tables, and tasks of one table, at the same time. Default:
    /// one for each device.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    workers: Option<u16>,
    /// Compute on the executors of this scheduler in place of workers on this machine, which plans and publishes.
    #[cfg(feature = "cluster")]
    #[arg(long, value_name = "URL", conflicts_with_all = ["workers", "device"])]
    cluster: Option<String>,
    #[cfg(feature = "cluster")]
    #[command(flatten)]
    security: super::security::SecurityArgs,
    /// The number of threads, which the workers share and which stages without a worker use. Default: OMP_NUM_THREADS if
    /// it is set, else as many as the machine has.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// The number of images that a network sees at once outside of training. Smaller batches need less memory. A change
    /// makes nothing stale.
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: Option<u32>,
    /// The number of rows in a task. Tasks that a crash interrupts are computed again. Default: 256, or 16384 in `sql`
    /// and `read` without images or tensors.
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u32).range(1..))]
    task_rows: Option<u32>,
    /// The seconds between two saved states of a training, or more if saving takes long. At most this time is trained
    /// again after a crash.
    #[arg(long, default_value_t = 20, value_name = "SECONDS")]
    save_every: u64,
    /// Hash every source file, even if its size, times and inode have not changed, and check every stored part (with
    /// --dry-run, only hash).
    #[arg(long)]
    verify: bool,
    /// Print what would be computed, and why, and stop.
    #[arg(long)]
    dry_run: bool,
    /// With --dry-run: print one JSON object per table.
    #[arg(long, requires = "dry_run")]
    json: bool,
    /// Name the run, so that its tables can be read later: select * from metrics@TAG
    #[arg(long, value_parser = history::check_tag)]
    tag: Option<String>,
    /// Print only errors.
    #[arg(short, long)]
    quiet: bool,
    /// Write figures of the run to this file, for the textfile collector of Prometheus' node exporter.
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
    /// Add the lineage of the tables to this file as JSON lines, or send it to this server, as OpenLineage events.
    #[arg(long, value_name = "FILE|URL", env = "OPENLINEAGE_URL")]
    lineage: Option<String>,
    #[command(flatten)]
    log: LogArgs,
}

impl Run {
    pub(super) fn run(self) -> Result<u8> {
        self.log.choose();
        let (pipeline, store) = self.pipeline.open()?;
        let (tables, overrides) = self.selection.resolve(&pipeline)?;
        let sources = Sources::new(self.verify);
        if self.dry_run {
            return plan::show(&pipeline, &store, &sources, &tables, &overrides, self.json);
        }
        let stop = Stop::default();
        let execution = self.execution();
        execution.make_pool();
        let executor = self.executor(&store, &execution, &stop)?;
        let progress = Progress::new(&tables, lines(self.quiet));
        stop_at_signals(&store, &stop, SAVED, progress.speaker())?;
        let mut listeners = self.listeners(&pipeline, &store)?;
        match log_format() {
            LogFormat::Text => listeners.add(progress),
            LogFormat::Json if self.quiet => {}
            LogFormat::Json => listeners.add(JsonLog::default()),
        }
        let options = execution.options(&self.pipeline.pipeline, tables, overrides, stop);
        let options = run::Options { device: self.where_to(), ..options };
        let done = run::run(&pipeline, &store, &sources, &options, &*executor, &mut |event| listeners.tell(event));
        listeners.finish().into_iter().for_each(say);
        let summary = done?;
        if let Some(tag) = &self.tag {
            let before = history::tag(&store, tag, &summary.run)?.filter(|before| *before != summary.run);
            if let Some(before) = before.filter(|_| !self.quiet) {
                say(format!(
                    "{tag} names this run now; before it was {before} (`vlmdiff runs tag NAME {before}` names that again)"
                ));
            }
        }
        Ok(if summary.errors > 0 { EXIT_SKIPPED } else { EXIT_DONE })
    }

    /// Returns the listeners that tell other programs about the run.
    fn listeners(&self, pipeline: &Pipeline, store: &Store) -> Result<Listeners<'static>> {
        let mut listeners = Listeners::default();
        RunTraces::begin().into_iter().for_each(|traces| listeners.add(traces));
        if let Some(path) = &self.metrics {
            listeners.add(RunFigures::create(path)?);
        }
        if let Some(to) = self.lineage.as_deref().filter(|to| !to.is_empty()) {
            listeners.add(Lineage::begin(to, pipeline, &store.url)?);
        }
        Ok(listeners)
    }

    fn execution(&self) -> Execution {
        Execution {
            devices: self.device.clone(),
            workers: self.workers,
            threads: self.threads,
            batch_size: self.batch_size,
            task_rows: self.task_rows,
            save_every: Duration::from_secs(self.save_every),
            verify: self.verify,
        }
    }

    /// Returns what runs the tasks: workers on this machine, or a cluster.
    fn executor(&self, store: &Store, execution: &Execution, stop: &Stop) -> Result<Box<dyn Executor>> {
        #[cfg(feature = "cluster")]
        if let Some(url) = &self.cluster {
            let settings = execution.settings().into_iter().next().unwrap_or_default();
            let security = self.security.read()?;
            let cluster = crate::cluster::Cluster::connect(store, url, &security, &worker_program()?, settings, stop)?;
            return Ok(Box::new(cluster));
        }
        Ok(Box::new(execution.workers(store, worker_program()?, stop)))
    }

    /// Returns the place of the tasks, for the log: the devices, or the cluster.
    fn where_to(&self) -> String {
        #[cfg(feature = "cluster")]
        if let Some(url) = &self.cluster {
            return url.clone();
        }
        self.device.join(",")
    }
}

/// The message at the first signal to a command that makes tables. It stops in a state from which the next run continues.
pub(super) const SAVED: &str = "stopping: work in progress is saved; a second signal ends the run at once";

/// Handles Ctrl-C, a request to terminate, or the end of the terminal. The first signal requests a stop, of which `say` is told,
/// the second ends the process at once.
pub(super) fn stop_at_signals(
    store: &Store,
    stop: &Stop,
    message: &'static str,
    say: impl Fn(&str) + Send + 'static,
) -> Result<()> {
    let _in_runtime = store.runtime().enter();
    let mut signals = signals()?;
    let stop = stop.clone();
    store.runtime().spawn(async move {
        next(&mut signals).await;
        say(message);
        // Callbacks of the request may block, so it runs on a thread of its own.
        tokio::task::spawn_blocking(move || stop.request());
        next(&mut signals).await;
        std::process::exit(EXIT_INTERRUPTED.into());
    });
    Ok(())
}

/// Returns the signals that ask a program to end. A runtime has been entered.
pub(super) fn signals() -> Result<Vec<Signal>> {
    let kinds = [SignalKind::interrupt(), SignalKind::terminate()];
    let hangup = (!ignores_hangup()).then(SignalKind::hangup);
    Ok(kinds.into_iter().chain(hangup).map(signal).collect::<std::io::Result<_>>()?)
}

/// Waits for any of the signals.
pub(super) async fn next(signals: &mut [Signal]) {
    futures::future::select_all(signals.iter_mut().map(|signal| Box::pin(signal.recv()))).await;
}

/// Returns the path of the worker, which is built beside the driver.
pub(super) fn worker_program() -> Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name(format!("vlmdiff-worker{}", std::env::consts::EXE_SUFFIX)))
}
