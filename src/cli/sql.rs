//! `vlmdiff sql`

use std::{
    fs::File,
    io::{BufWriter, IsTerminal, Read, Write},
    path::PathBuf,
};

use anyhow::{Context, Result};
use clap::Args;
use rustyline::{DefaultEditor, error::ReadlineError};

use super::{
    EXIT_DONE, StoreArgs,
    text::{print, say},
};
use crate::query::{
    Session,
    output::{self, Format},
};

/// Query the published tables.
#[derive(Args)]
#[command(after_help = "\
Examples:
  vlmdiff sql \"select class, protocol, pixel_auroc from metrics\"
  vlmdiff sql \"select image_id, score from anomaly_maps order by score desc limit 5\" --format csv
  vlmdiff sql \"select * from latents\" --format parquet -o latents.parquet
  vlmdiff sql \"select * from metrics@baseline\"      as the run tagged `baseline` left it
  vlmdiff sql                      a prompt; statements end with `;`
  vlmdiff sql \"show tables\"

The metrics are aggregate functions, with `group by` or without: auroc(score, label), average_precision(score, label), \
f1_max(score, label), pixel_auroc(map, mask), pixel_ap(map, mask), pixel_f1_max(map, mask), aupro(map, mask, limit). They are those \
of the protocol `exact`; a row in which an argument is null is left out:
  vlmdiff sql \"select defect, aupro(map, mask, 0.3) from images join anomaly_maps using (image_id) group by defect\"

The instances of a swept table are one table with a column per swept parameter. A column whose type or shape differs among \
them, such as `pixels` of several sizes, is not part of it; read it as a run with --only left it: table@RUN.")]
pub(super) struct Sql {
    /// The query; without one, a prompt opens (or standard input is read).
    query: Option<String>,
    /// How to write the result.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Write to a file instead of standard output.
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// The pipeline that bare table names mean; by default the one that ran last.
    #[arg(long)]
    pipeline: Option<String>,
    /// Allow statements that make tables of this session's own, such as `create table`, and `copy … to` a file. Published
    /// tables stay as they are.
    #[arg(long)]
    allow_write: bool,
    #[command(flatten)]
    store: StoreArgs,
}

impl Sql {
    pub(super) fn run(self) -> Result<u8> {
        let store = self.store.open()?;
        let session = Session::open(&store, self.pipeline.as_deref())?;
        let session = if self.allow_write { session.allow_write() } else { session };
        match &self.query {
            Some(query) => self.answer(&session, query)?,
            None if std::io::stdin().is_terminal() => self.prompt(&session)?,
            None => {
                let mut text = String::new();
                std::io::stdin().read_to_string(&mut text)?;
                text.split(';')
                    .filter(|statement| !statement.trim().is_empty())
                    .try_for_each(|statement| self.answer(&session, statement))?;
            }
        }
        Ok(EXIT_DONE)
    }

    fn answer(&self, session: &Session, query: &str) -> Result<()> {
        let (schema, batches) = session.query(query)?;
        if schema.fields().is_empty() && batches.is_empty() {
            // `create table` and its like answer nothing.
            return Ok(());
        }
        match &self.output {
            Some(path) => {
                let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
                let mut out = BufWriter::new(file);
                output::write(&mut out, &schema, &batches, self.format)?;
                out.flush()?;
            }
            None => output::write(&mut std::io::stdout().lock(), &schema, &batches, self.format)?,
        }
        Ok(())
    }

    fn prompt(&self, session: &Session) -> Result<()> {
        let mut editor = DefaultEditor::new()?;
        let history = std::env::home_dir().map(|home| home.join(".vlmdiff_history"));
        if let Some(history) = &history {
            // The first time there is none.
            let _ = editor.load_history(history);
        }
        print("SQL over the published tables; `show tables;` lists them. A statement ends with `;`, Ctrl-D leaves.")?;
        let mut statement = String::new();
        loop {
            match editor.readline(if statement.is_empty() { "vlmdiff> " } else { "     ... " }) {
                Ok(line) if statement.is_empty() && matches!(line.trim(), "quit" | "exit" | "\\q") => break,
                Ok(line) => {
                    statement.push_str(&line);
                    statement.push('\n');
                    if let Some(query) = statement.trim_end().strip_suffix(';') {
                        if !query.trim().is_empty() {
                            editor.add_history_entry(statement.trim())?;
                            if let Err(error) = self.answer(session, query) {
                                say(format!("error: {error:#}"));
                            }
                        }
                        statement.clear();
                    } else if statement.trim().is_empty() {
                        statement.clear();
                    }
                }
                Err(ReadlineError::Interrupted) => statement.clear(),
                Err(ReadlineError::Eof) => break,
                Err(error) => return Err(error.into()),
            }
        }
        if let Some(history) = &history {
            editor.save_history(history).with_context(|| format!("cannot write {}", history.display()))?;
        }
        Ok(())
    }
}
