//! `vlmdiff cluster`

use std::{future::Future, net::SocketAddr};

use anyhow::Result;
use clap::{Args, Subcommand};

use super::{
    EXIT_DONE, EXIT_INTERRUPTED,
    run::{next, signals, worker_program},
    security::SecurityArgs,
    text::{listen_address, print, say},
};
use crate::{
    cluster::{ExecutorOptions, SchedulerOptions, execute, schedule},
    driver::{default_threads, device},
    stages::KINDS,
};

/// Start the programs of a cluster, on which `run --cluster` computes.
#[derive(Args)]
#[command(after_help = "\
Examples:
  vlmdiff cluster scheduler --bind 0.0.0.0:50050 --token-file token
  vlmdiff cluster executor --scheduler http://HOST:50050 --token-file token --device cuda:0
  vlmdiff run pipelines/quickstart.yaml --store s3://bucket/store --cluster http://HOST:50050 --token-file token

All of them have to be of one build, and to reach the store: a folder that all mount at one path, or an object store, whose
credentials each takes from its own environment.")]
pub(super) struct Cluster {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Hand out the tasks of runs to executors.
    Scheduler(Scheduler),
    /// Take tasks from a scheduler, and run one at a time.
    Executor(Executor),
}

#[derive(Args)]
struct Scheduler {
    /// The address and port to listen on; port 0 stands for any free one.
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = listen_address, default_value = "127.0.0.1:50050")]
    bind: SocketAddr,
    /// The seconds of silence after which an executor counts as lost, and its tasks go to others.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(6..=86_400))]
    lost_after: u64,
    #[command(flatten)]
    security: SecurityArgs,
}

#[derive(Args)]
struct Executor {
    /// The URL of the scheduler.
    #[arg(long, value_name = "URL")]
    scheduler: String,
    /// The device of networks: auto, cpu, cuda or cuda:N. A machine with several has an executor for each.
    #[arg(long, default_value = "auto", value_parser = device)]
    device: String,
    /// The number of threads. Default: OMP_NUM_THREADS if it is set, else as many as the machine has.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    #[command(flatten)]
    security: SecurityArgs,
}

impl Cluster {
    pub(super) fn run(self) -> Result<u8> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        match self.command {
            Command::Scheduler(command) => runtime.block_on(command.run())?,
            Command::Executor(command) => runtime.block_on(command.run())?,
        }
        // Tasks of the libraries that still wait have nothing to finish.
        runtime.shutdown_background();
        Ok(EXIT_DONE)
    }
}

/// Returns what ends at the first request to end; the second ends the program at once.
fn asked_to_end(first: &'static str) -> Result<impl Future<Output = ()>> {
    let mut signals = signals()?;
    Ok(async move {
        next(&mut signals).await;
        say(first);
        tokio::spawn(async move {
            next(&mut signals).await;
            std::process::exit(EXIT_INTERRUPTED.into());
        });
    })
}

impl Scheduler {
    async fn run(self) -> Result<()> {
        let security = self.security.read()?;
        if !security.is_closed() && !self.bind.ip().is_loopback() {
            say(format!(
                "anybody who reaches {} can have executors compute; --token-file asks for a token, and TLS keeps it secret",
                self.bind
            ));
        }
        let stop = asked_to_end("stopping: runs that wait for tasks go on with another scheduler at this address")?;
        let options = SchedulerOptions { bind: self.bind, lost_after: self.lost_after, security };
        // A closed output does not end the scheduler.
        Ok(schedule(options, stop, |url| _ = print(format!("listening on {url}"))).await?)
    }
}

impl Executor {
    async fn run(self) -> Result<()> {
        let threads = self.threads.map_or_else(default_threads, usize::from);
        // This fails if a thread pool already exists, which is then used.
        _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
        let options = ExecutorOptions {
            scheduler: self.scheduler,
            device: self.device,
            threads,
            worker: worker_program()?,
            kinds: KINDS,
            host: gethostname::gethostname().to_string_lossy().into_owned(),
            security: self.security.read()?,
        };
        let stop = asked_to_end("stopping: what the task at hand has is saved, and its rest goes to another executor")?;
        Ok(execute(options, stop, |line| say(line)).await?)
    }
}
