//! `vlmdiff run`

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::{EXIT_DONE, EXIT_SKIPPED, PipelineArgs, progress::Progress};
use crate::engine::{Sources, run, worker::Worker};

/// Compute what is stale, table by table.
#[derive(Args)]
#[command(after_help = "Example:\n  vlmdiff run pipelines/folder.yaml --set images.root=photos")]
pub(super) struct Run {
    #[command(flatten)]
    pipeline: PipelineArgs,
    /// Where to compute: auto, cpu, cuda or cuda:N. Results of different devices differ in the last digits.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Rows per task: what is computed again, at most, after a crash.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    task_rows: u32,
    /// Print only errors.
    #[arg(short, long)]
    quiet: bool,
}

impl Run {
    pub(super) fn run(self) -> Result<u8> {
        let (pipeline, store) = self.pipeline.open()?;
        let options = run::Options { device: self.device, task_rows: self.task_rows as usize };
        let mut worker = Worker::new(&store, worker_program()?);
        let mut progress = Progress::new(self.quiet);
        let summary =
            run::run(&pipeline, &store, &Sources::default(), &options, &mut worker, &mut |event| progress.show(event))?;
        Ok(if summary.errors > 0 { EXIT_SKIPPED } else { EXIT_DONE })
    }
}

/// The worker is built beside the driver.
fn worker_program() -> Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name(format!("vlmdiff-worker{}", std::env::consts::EXE_SUFFIX)))
}
