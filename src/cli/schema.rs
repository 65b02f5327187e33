//! `vlmdiff schema`

use std::{fs, path::PathBuf};

use anyhow::Result;
use clap::Args;

use super::{EXIT_DONE, text::cannot_write};
use crate::{
    engine::pipeline::{self, Example},
    stages,
};

/// The pipeline whose tables show the columns that stages write.
const EXAMPLE: Example<'_> =
    Example { path: "pipelines/quickstart.yaml", text: include_str!("../../pipelines/quickstart.yaml") };

/// Write the JSON Schema of pipelines and the Arrow schemas of the tables.
#[derive(Args)]
#[command(
    after_help = "Example:\n  vlmdiff schema -o schemas\n\nThe first line of a pipeline makes editors complete and check it:\n  # yaml-language-server: $schema=../schemas/pipeline.schema.json"
)]
pub(super) struct SchemaCommand {
    /// The folder to write.
    #[arg(short, long, default_value = "schemas")]
    output: PathBuf,
}

impl SchemaCommand {
    pub(super) fn run(self) -> Result<u8> {
        fs::create_dir_all(&self.output).map_err(cannot_write(&self.output))?;
        for (name, text) in pipeline::files(stages::KINDS, EXAMPLE)? {
            let path = self.output.join(name);
            fs::write(&path, text).map_err(cannot_write(&path))?;
        }
        Ok(EXIT_DONE)
    }
}
