//! `vlmdiff graph`

use anyhow::Result;
use clap::{Args, ValueEnum};

use super::{EXIT_DONE, PipelineArgs, text::print_exactly};
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
        let drawing = match self.format {
            Language::Mermaid => mermaid(&pipeline),
            Language::Dot => dot(&pipeline),
        };
        print_exactly(drawing.trim_end())?;
        Ok(EXIT_DONE)
    }
}

/// Draws the graph for Mermaid. Solid arrows stand for inputs read row by row, dotted ones for inputs read whole.
fn mermaid(pipeline: &Pipeline) -> String {
    // Mermaid's ids must be words, so the instances of a swept table are numbered.
    let id = |name: &str| {
        let at = pipeline.tables.iter().position(|table| table.name == name).unwrap_or_default();
        let table = &pipeline.tables[at];
        if table.variant.is_empty() { name.to_owned() } else { format!("{}__{at}", table.declared) }
    };
    let mut text = String::from("flowchart LR\n");
    for table in &pipeline.tables {
        let label = table.name.replace('"', "#quot;");
        text += &format!("  {}[\"<b>{label}</b><br/>{}\"]\n", id(&table.name), table.kind.name);
        for input in &table.inputs {
            let arrow = if input.reads == Reads::Table { "-.->" } else { "-->" };
            text += &format!("  {} {arrow} {}\n", id(&input.table), id(&table.name));
        }
    }
    text
}

fn dot(pipeline: &Pipeline) -> String {
    let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
    let mut text = format!("digraph \"{}\" {{\n  rankdir=LR;\n  node [shape=box];\n", pipeline.name);
    for table in &pipeline.tables {
        let name = quoted(&table.name);
        text += &format!("  \"{name}\" [label=\"{name}\\n{}\"];\n", table.kind.name);
        for input in &table.inputs {
            let style = if input.reads == Reads::Table { " [style=dashed]" } else { "" };
            text += &format!("  \"{}\" -> \"{name}\"{style};\n", quoted(&input.table));
        }
    }
    text + "}\n"
}
