//! `vlmdiff models list`

use anyhow::Result;
use clap::Args;
use serde_json::json;

use super::{Format, size};
use crate::{
    cli::{
        EXIT_DONE,
        text::{print, print_exactly, width},
    },
    models::catalogue::{self, NotHere, PublishedCheckpoint, Source},
};

/// List the checkpoints that have a name.
#[derive(Args)]
#[command(after_help = "Example:\n  vlmdiff models list --format json")]
pub(super) struct List {
    /// The output format.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

impl List {
    pub(super) fn run(self) -> Result<u8> {
        if self.format == Format::Json {
            let all: Vec<_> = catalogue::ALL.iter().map(object).collect();
            print_exactly(serde_json::to_string_pretty(&all)?)?;
            return Ok(EXIT_DONE);
        }
        let names = width(catalogue::ALL.iter().map(|known| &known.name));
        for known in catalogue::ALL.iter() {
            let size = known.bytes.map(size).unwrap_or_default();
            print(format!("{:names$}  {size:>8}  {:5}  {}", known.name, here(known), known.about))?;
            print(format!("{:names$}  {:8}  {:5}  {}; {}", "", "", "", origin(known), known.licence))?;
        }
        print("\n`vlmdiff models fetch NAME` downloads one, or ORG/NAME of the Hugging Face hub")?;
        Ok(EXIT_DONE)
    }
}

/// Returns `here`, `part` or nothing for a checkpoint whose files are on this machine, partly, or not.
fn here(known: &PublishedCheckpoint) -> &'static str {
    match known.locate() {
        Ok(_) => "here",
        Err(NotHere::Partial { .. }) => "part",
        Err(_) => "",
    }
}

fn origin(known: &PublishedCheckpoint) -> String {
    match &known.source {
        Source::Hub { repo, .. } => repo.clone(),
        Source::Url { url, .. } => url.split('/').nth(2).unwrap_or(url).to_owned(),
        Source::Package { package, version, .. } => format!("Python package {package} {version}"),
    }
}

fn object(known: &PublishedCheckpoint) -> serde_json::Value {
    let source = match &known.source {
        Source::Hub { repo, revision, files } => json!({ "hub": repo, "revision": revision, "files": files }),
        Source::Url { url, file, sha256, .. } => json!({ "url": url, "file": file, "sha256": sha256 }),
        Source::Package { package, version, wheel, file, sha256 } => {
            json!({ "package": package, "version": version, "wheel": wheel, "file": file, "sha256": sha256 })
        }
    };
    json!({
        "name": known.name,
        "about": known.about,
        "source": source,
        "layout": known.layout,
        "licence": known.licence,
        "bytes": known.bytes,
        "path": known.locate().ok(),
    })
}
