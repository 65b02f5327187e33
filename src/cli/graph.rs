//! `vlmdiff graph`

use anyhow::Result;
use clap::{Args, ValueEnum};

use super::{EXIT_DONE, PipelineArgs};
use crate::engine::{pipeline::Pipeline, stage::Reads};

/// Draw the tables of a pipeline and what they are made from.
#[derive(Args)]
#[command(after_help = "Example:\n  vlmdiff graph pipelines/quickstart.yaml --format dot | dot -Tsvg > graph.svg")]
pub(super) struct Graph {
    #[command(flatten)]
    pipeline: PipelineArgs,
    /// The language of the drawing.
    #[arg(long, value_enum, default_value_t = Language::Mermaid)]
    format: Language,
}

#[derive(Clone, Copy, ValueEnum)]
enum Language {
    /// For Markdown.
    Mermaid,
    /// For Graphviz.
    Dot,
}

impl Graph {
    pub(super) fn run(self) -> Result<u8> {
        let pipeline = self.pipeline.load()?;
        print!(
            "{}",
            match self.format {
                Language::Mermaid => mermaid(&pipeline),
                Language::Dot => dot(&pipeline),
            }
        );
        Ok(EXIT_DONE)
    }
}

/// Solid arrows carry rows, dotted ones whole tables.
fn mermaid(pipeline: &Pipeline) -> String {
    let mut text = String::from("flowchart LR\n");
    for table in &pipeline.tables {
        text += &format!("  {0}[\"<b>{0}</b><br/>{1}\"]\n", table.name, table.kind.name);
        for input in &table.inputs {
            text += &format!(
                "  {} {} {}\n",
                input.table,
                if input.reads == Reads::Rows { "-->" } else { "-.->" },
                table.name
            );
        }
    }
    text
}

fn dot(pipeline: &Pipeline) -> String {
    let mut text = format!("digraph \"{}\" {{\n  rankdir=LR;\n  node [shape=box];\n", pipeline.name);
    for table in &pipeline.tables {
        text += &format!("  \"{0}\" [label=\"{0}\\n{1}\"];\n", table.name, table.kind.name);
        for input in &table.inputs {
            let style = if input.reads == Reads::Rows { "" } else { " [style=dashed]" };
            text += &format!("  \"{}\" -> \"{}\"{style};\n", input.table, table.name);
        }
    }
    text + "}\n"
}
