//! `vlmdiff data`

use anyhow::Result;
use clap::{Args, Subcommand};

use super::{
    EXIT_DONE, EXIT_INPUT, PipelineArgs,
    text::{count, print},
};
use crate::{
    datasets::{Fault, published::Stated},
    engine::source::Sources,
    stages::ingest::{
        Ingest,
        check::{Checked, Counts},
    },
};

/// Look at the data sets of a pipeline.
#[derive(Args)]
#[command(after_help = "Example:\n  vlmdiff data check pipelines/folder.yaml --set images.root=photographs")]
pub(super) struct Data {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Count the images, and list all files that are missing, broken or contradict each other.
    Check(Check),
}

#[derive(Args)]
struct Check {
    #[command(flatten)]
    pipeline: PipelineArgs,
    /// Do not decode masks, so that none is found to be empty.
    #[arg(long)]
    quick: bool,
}

impl Data {
    pub(super) fn run(self) -> Result<u8> {
        match self.action {
            Action::Check(command) => command.run(),
        }
    }
}

impl Check {
    fn run(self) -> Result<u8> {
        let pipeline = self.pipeline.load()?;
        let sources = Sources::default();
        let mut faults = 0;
        for table in pipeline.tables.iter().filter(|table| table.kind.name == "ingest") {
            let ingest: Ingest = serde_json::from_value(table.stage.params())?;
            let checked = ingest.check_files(&sources, !self.quick)?;
            let root = ingest.root.as_deref().map(|root| format!(", {root}")).unwrap_or_default();
            print(format!("{}: {}{root}", table.name, ingest.dataset.name()))?;
            show(&checked, ingest.stated())?;
            faults += checked.faults.len();
        }
        Ok(if faults == 0 { EXIT_DONE } else { EXIT_INPUT })
    }
}

/// Prints what was found beside what the paper states.
fn show(Checked { counts, notes, faults }: &Checked, stated: Option<Stated>) -> Result<()> {
    let Counts { classes, train, calibration, normal, anomalous, unlabelled } = *counts;
    let rows = [
        ("classes", classes, stated.and_then(|stated| stated.classes)),
        ("train, normal", train, stated.map(|stated| stated.train)),
        ("calibration, normal", calibration, None),
        ("test, normal", normal, stated.map(|stated| stated.normal)),
        ("test, anomalous", anomalous, stated.map(|stated| stated.anomalous)),
        ("test, without label", unlabelled, None),
    ];
    let head = if stated.is_some() { "the paper" } else { "" };
    print(format!("  {:<20} {:>8} {head:>10}", "", "found").trim_end())?;
    for (what, found, stated) in rows.into_iter().filter(|(_, found, stated)| *found > 0 || stated.is_some()) {
        let stated = stated.map(|stated| stated.to_string()).unwrap_or_default();
        print(format!("  {what:<20} {found:>8} {stated:>10}").trim_end())?;
    }
    if stated.is_some_and(|stated| stated.swapped) {
        print(
            "  the paper prints the two numbers of test images of this data set in each other's place; these are right",
        )?;
    }
    notes.iter().try_for_each(|note| print(format!("  note: {note}")))?;
    faults.iter().try_for_each(|Fault { path, what }| print(format!("  {path}: {what}")))?;
    print(format!("  {}", if faults.is_empty() { "no fault".into() } else { count(faults.len() as u64, "fault") }))?;
    Ok(())
}
