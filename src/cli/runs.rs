//! `vlmdiff runs`

use anyhow::Result;
use chrono::{DateTime, Local};
use clap::{Args, Subcommand};
use indicatif::HumanBytes;

use super::{EXIT_DONE, StoreArgs, progress::count};
use crate::engine::{
    Store,
    history::{self, Run},
};

/// List what runs did, and name runs.
#[derive(Args)]
#[command(after_help = "\
Examples:
  vlmdiff runs
  vlmdiff runs tag baseline          names the last run
  vlmdiff sql \"select * from metrics@baseline\"
  vlmdiff sql \"select * from stage_runs where computed > 0\"")]
pub(super) struct Runs {
    #[command(subcommand)]
    command: Option<Command>,
    /// Show so many runs.
    #[arg(short, long, default_value_t = 20, value_name = "N")]
    number: usize,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Name a run, so that its tables stay and can be read as TABLE@TAG.
    Tag {
        /// The name.
        tag: String,
        /// The run, by id or tag.
        #[arg(default_value = "last")]
        run: String,
    },
    /// Forget a tag.
    Untag {
        /// The tag.
        tag: String,
    },
    /// Say what one run did with each table.
    Show {
        /// The run, by id or tag.
        #[arg(default_value = "last")]
        run: String,
    },
}

impl Runs {
    pub(super) fn run(self) -> Result<u8> {
        let store = self.store.open()?;
        match self.command {
            None => list(&store, self.number)?,
            Some(Command::Show { run }) => show(&history::find(&store, &run)?),
            Some(Command::Tag { tag, run }) => {
                let run = history::find(&store, &run)?.run;
                match history::tag(&store, &tag, &run)?.filter(|before| *before != run) {
                    Some(before) => println!("{tag}: {run} (before: {before})"),
                    None => println!("{tag}: {run}"),
                }
            }
            Some(Command::Untag { tag }) => history::untag(&store, &tag)?,
        }
        Ok(EXIT_DONE)
    }
}

fn list(store: &Store, number: usize) -> Result<()> {
    let runs = history::runs(store)?;
    println!(
        "{:<22} {:<16} {:<16} {:<10} {:>9} {:>9}  {}",
        "run", "began", "pipeline", "status", "computed", "seconds", "tags"
    );
    for run in runs.iter().rev().take(number).rev() {
        let computed: u64 = run.tables.iter().map(|table| table.computed).sum();
        let seconds = run.seconds.map_or_else(String::new, |seconds| format!("{seconds:.1}"));
        let line = format!(
            "{:<22} {:<16} {:<16} {:<10} {computed:>9} {seconds:>9}  {}",
            run.run,
            when(run.started_ms),
            run.pipeline,
            run.status(),
            run.tags.join(" ")
        );
        println!("{}", line.trim_end());
    }
    Ok(())
}

fn show(run: &Run) {
    println!("run       {}", run.run);
    println!("began     {} on {}", when(run.started_ms), run.host);
    println!("pipeline  {} ({})", run.pipeline, run.pipeline_digest);
    let more = [
        ("commit", run.git_commit.clone()),
        ("error", run.error.clone()),
        ("tags", (!run.tags.is_empty()).then(|| run.tags.join(" "))),
    ];
    more.iter().for_each(|(name, text)| {
        if let Some(text) = text {
            println!("{name:<9} {text}");
        }
    });
    println!("status    {}\n", run.status());
    for table in &run.tables {
        let what = if table.reasons.is_empty() {
            "fresh".to_owned()
        } else {
            let written = if table.bytes > 0 { format!(", {}", HumanBytes(table.bytes)) } else { String::new() };
            let failed = if table.errors > 0 { format!(", {} failed", table.errors) } else { String::new() };
            format!(
                "{} computed in {:.1} s{written}{failed}: {}",
                table.computed,
                table.seconds,
                table.reasons.join("; ")
            )
        };
        println!("{:<16} {:>12}, {what}", table.table, count(table.rows, "row"));
    }
}

/// A time in the zone of this machine.
fn when(ms: u64) -> String {
    let time = DateTime::from_timestamp_millis(ms as i64).unwrap_or_default().with_timezone(&Local);
    time.format("%Y-%m-%d %H:%M").to_string()
}
