//! `vlmdiff sql`

use std::{
    fs::File,
    io::{BufWriter, IsTerminal, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use clap::Args;
use rustyline::{DefaultEditor, error::ReadlineError};

use super::{
    EXIT_DONE, StoreArgs,
    text::{print, say},
};
use crate::{
    engine::Error,
    query::{
        Session, is_ended,
        output::{Format, Writer},
        statements,
    },
};

/// Query the published tables.
#[derive(Args)]
#[command(after_help = "\
Examples:
  vlmdiff sql \"select class, protocol, pixel_auroc from metrics\"
  vlmdiff sql \"select image_id, score from anomaly_maps order by score desc limit 5\" --format csv
  vlmdiff sql \"select * from latents\" -o latents.parquet
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
    /// The query, or several with `;` between them; without one, a prompt opens (or standard input is read).
    query: Option<String>,
    /// The format of the result. Default: by the extension of --output (.csv, .json, .jsonl, .ndjson, .parquet, .txt),
    /// else a drawn table.
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Write to a file instead of standard output. The file gets its name when everything is written.
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// The pipeline to which bare table names refer; by default the one that ran last.
    #[arg(long)]
    pipeline: Option<String>,
    /// Allow statements that make tables in this session, such as `create table`, and `copy … to` a file. Published
    /// tables stay as they are.
    #[arg(long)]
    allow_write: bool,
    #[command(flatten)]
    store: StoreArgs,
}

impl Sql {
    pub(super) fn run(self) -> Result<u8> {
        let format = match (self.format, &self.output) {
            (Some(format), _) => format,
            (None, Some(path)) => Format::of_file(path)?,
            (None, None) => Format::Table,
        };
        let store = self.store.open()?;
        let session = Session::open(&store, self.pipeline.as_deref())?;
        let session = if self.allow_write { session.allow_write() } else { session };
        let mut results = Results::new(self.output.as_deref(), format)?;
        match self.query {
            Some(query) => {
                let statements = statements(&query)?;
                if statements.is_empty() {
                    return Err(Error::Input("the query is empty".into()).into());
                }
                statements.iter().try_for_each(|statement| results.answer(&session, statement))?;
            }
            None if std::io::stdin().is_terminal() => prompt(&session.end_at_interrupt(), &mut results)?,
            None => {
                let text = std::io::read_to_string(std::io::stdin())?;
                statements(&text)?.iter().try_for_each(|statement| results.answer(&session, statement))?;
            }
        }
        results.finish()?;
        Ok(EXIT_DONE)
    }
}

/// The output of results, one after another.
struct Results {
    format: Format,
    written: usize,
    out: Output,
}

enum Output {
    Standard,
    /// A file that gets its name when everything is written, so that a failure leaves an older file as it was.
    File {
        file: BufWriter<File>,
        unfinished: PathBuf,
        path: PathBuf,
    },
    /// Something that exists and is not a file: a device, a pipe.
    Device(BufWriter<File>),
}

impl Results {
    fn new(path: Option<&Path>, format: Format) -> Result<Self> {
        let out = match path {
            None => Output::Standard,
            Some(path) => {
                let failed = || format!("cannot write {}", path.display());
                // `/dev/stdout` may be a file, but it has no name to which another file could be renamed.
                if path.starts_with("/dev") || path.metadata().is_ok_and(|there| !there.is_file()) {
                    let device = File::options().append(true).open(path).with_context(failed)?;
                    return Ok(Self { format, written: 0, out: Output::Device(BufWriter::new(device)) });
                }
                // The target of a link is replaced, so that the link stays.
                let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
                let mut name = path.file_name().unwrap_or_default().to_owned();
                name.push(format!(".{}.unfinished", std::process::id()));
                let unfinished = path.with_file_name(name);
                let file = BufWriter::new(File::create(&unfinished).with_context(failed)?);
                Output::File { file, unfinished, path }
            }
        };
        Ok(Self { format, written: 0, out })
    }

    /// Writes the rows of a statement as they are computed.
    fn answer(&mut self, session: &Session, statement: &str) -> Result<()> {
        let mut answer = session.answer(statement)?;
        let mut rows = answer.next()?;
        if answer.schema.fields().is_empty() && rows.is_none() {
            // `create table` and similar statements have no result.
            return Ok(());
        }
        self.written += 1;
        if self.format == Format::Parquet && self.written > 1 {
            let message =
                "a Parquet file holds one result, and this is the second; run the statements one by one".to_owned();
            return Err(Error::Input(message).into());
        }
        let mut standard;
        let out: &mut dyn Write = match &mut self.out {
            Output::Standard => {
                standard = std::io::stdout().lock();
                &mut standard
            }
            Output::File { file, .. } | Output::Device(file) => file,
        };
        let mut writer = Writer::new(out, &answer.schema, self.format)?;
        while let Some(batch) = rows {
            writer.write(&batch)?;
            rows = answer.next()?;
        }
        Ok(writer.finish()?)
    }

    fn finish(mut self) -> Result<()> {
        match &mut self.out {
            Output::Standard => {}
            Output::Device(file) => file.flush()?,
            Output::File { file, unfinished, path } => {
                let done = file.flush().and_then(|()| std::fs::rename(unfinished, &path));
                done.with_context(|| format!("cannot write {}", path.display()))?;
            }
        }
        Ok(())
    }
}

impl Drop for Results {
    fn drop(&mut self) {
        if let Output::File { unfinished, .. } = &self.out {
            // The file does not exist if everything went well.
            let _ = std::fs::remove_file(unfinished);
        }
    }
}

fn prompt(session: &Session, results: &mut Results) -> Result<()> {
    let mut editor = DefaultEditor::new()?;
    let history = std::env::home_dir().map(|home| home.join(".vlmdiff_history"));
    if let Some(history) = &history {
        // The first session has no history yet.
        let _ = editor.load_history(history);
    }
    print("SQL over the published tables; `show tables;` lists them. A statement ends with `;`, Ctrl-D leaves.")?;
    let mut text = String::new();
    loop {
        match editor.readline(if text.is_empty() { "vlmdiff> " } else { "     ... " }) {
            Ok(line) if text.is_empty() && matches!(line.trim(), "quit" | "exit" | "\\q") => break,
            Ok(line) => {
                text.push_str(&line);
                text.push('\n');
                if is_ended(&text) {
                    editor.add_history_entry(text.trim())?;
                    let answered = statements(&text)
                        .map_err(anyhow::Error::from)
                        .and_then(|all| all.iter().try_for_each(|statement| results.answer(session, statement)));
                    if let Err(error) = answered {
                        match error.downcast_ref::<Error>() {
                            Some(Error::Interrupted) => say("interrupted"),
                            _ => say(format!("error: {error:#}")),
                        }
                    }
                    text.clear();
                } else if text.trim().is_empty() {
                    text.clear();
                }
            }
            Err(ReadlineError::Interrupted) => text.clear(),
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(error.into()),
        }
    }
    if let Some(history) = &history
        && let Err(error) = editor.save_history(history)
    {
        say(format!("the history of statements is not saved: cannot write {}: {error}", history.display()));
    }
    Ok(())
}
