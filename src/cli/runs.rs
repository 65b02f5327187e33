//! `vlmdiff runs`

use anyhow::Result;
use chrono::{DateTime, Local};
use clap::{Args, Subcommand};
use indicatif::HumanBytes;

use super::{
    EXIT_DONE, StoreArgs,
    text::{count, print, width},
};
use crate::engine::store::{Run, Store, TableRun, history};

/// List what runs did, and name runs.
#[derive(Args)]
#[command(after_help = "\
Examples:
  vlmdiff runs
  vlmdiff runs tag baseline          names the last run
  vlmdiff runs show last~1           what the run before it did with each table
  vlmdiff runs show last --parameters
  vlmdiff sql \"select * from metrics@baseline\"
  vlmdiff sql \"select * from stage_runs where computed > 0\"

A run is named by a tag, its id or the beginning of one, `last`, or `last~1` for the one before.")]
pub(super) struct Runs {
    #[command(subcommand)]
    command: Option<Command>,
    /// The number of runs to show.
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
        #[arg(value_parser = history::check_tag)]
        tag: String,
        /// The run.
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
        /// The run.
        #[arg(default_value = "last")]
        run: String,
        /// Show the parameters with which each table was made.
        #[arg(long)]
        parameters: bool,
    },
}

impl Runs {
    pub(super) fn run(self) -> Result<u8> {
        let store = self.store.open()?;
        match self.command {
            None => list(&store, self.number)?,
            Some(Command::Show { run, parameters }) => show(&store, &history::find(&store, &run)?, parameters)?,
            Some(Command::Tag { tag, run }) => {
                let run = history::id_of(&store, &run)?;
                match history::tag(&store, &tag, &run)?.filter(|before| *before != run) {
                    Some(before) => print(format!("{tag}: {run} (before: {before})"))?,
                    None => print(format!("{tag}: {run}"))?,
                }
            }
            Some(Command::Untag { tag }) => history::untag(&store, &tag)?,
        }
        Ok(EXIT_DONE)
    }
}

fn list(store: &Store, number: usize) -> Result<()> {
    let all = history::runs(store)?;
    let runs = &all[all.len().saturating_sub(number)..];
    let runs_width = width(runs.iter().map(|run| run.run.as_str()).chain(["run"]));
    let pipelines = width(runs.iter().map(|run| run.pipeline.as_str()).chain(["pipeline"]));
    let line = |[run, started, pipeline, status, computed, seconds, tags]: [&str; 7]| {
        let line = format!(
            "{run:<runs_width$}  {started:<16}  {pipeline:<pipelines$}  {status:<10} {computed:>9} {seconds:>9}  {tags}"
        );
        print(line.trim_end())
    };
    line(["run", "started", "pipeline", "status", "computed", "seconds", "tags"])?;
    for run in runs {
        let computed: u64 = run.tables.iter().map(|table| table.computed).sum();
        let seconds = run.seconds.map_or_else(String::new, |seconds| format!("{seconds:.1}"));
        let (started, computed, tags) = (when(run.started_ms), computed.to_string(), run.tags.join(" "));
        line([&run.run, &started, &run.pipeline, run.status(), &computed, &seconds, &tags])?;
    }
    Ok(())
}

fn show(store: &Store, run: &Run, parameters: bool) -> Result<()> {
    let facts = [
        ("run", Some(run.run.clone())),
        ("status", Some(run.status().to_owned())),
        ("started", Some(format!("{} on {}", when(run.started_ms), run.host))),
        ("device", (!run.device.is_empty()).then(|| run.device.clone())),
        ("vlmdiff", (!run.version.is_empty()).then(|| run.version.clone())),
        ("pipeline", Some(format!("{} ({})", run.pipeline, run.pipeline_digest))),
        ("commit", run.git_commit.clone()),
        ("tags", (!run.tags.is_empty()).then(|| run.tags.join(" "))),
        ("error", run.error.as_ref().map(|error| error.replace('\n', "\n          "))),
    ];
    for (name, text) in facts {
        text.map_or(Ok(()), |text| print(format!("{name:<8}  {text}")))?;
    }
    print("")?;
    let names = width(run.tables.iter().map(|table| &table.table));
    for table in &run.tables {
        print(format!("{:<names$}  {:>12}, {}", table.table, count(table.rows, "row"), done(table)))?;
        if parameters && table.version > 0 {
            match store.version(&run.pipeline, &table.slot, table.version)? {
                Some(manifest) => {
                    manifest.made.parameters().lines().try_for_each(|line| print(format!("    {line}")))?
                }
                None => print("    its parameters are no longer in the store")?,
            }
        }
    }
    Ok(())
}

/// Describes what a run did with a table.
fn done(table: &TableRun) -> String {
    if table.reasons.is_empty() {
        return "fresh".into();
    }
    let written = if table.bytes > 0 { format!(", {}", HumanBytes(table.bytes)) } else { String::new() };
    let failed = if table.errors > 0 { format!(", {} failed", table.errors) } else { String::new() };
    let why = table.reasons.join("; ");
    format!("{} computed in {:.1} s{written}{failed}: {why}", table.computed, table.seconds)
}

/// Formats a time in the zone of this machine.
fn when(ms: u64) -> String {
    let time = DateTime::from_timestamp_millis(ms as i64).unwrap_or_default().with_timezone(&Local);
    time.format("%Y-%m-%d %H:%M").to_string()
}
