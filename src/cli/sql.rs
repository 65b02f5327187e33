//! `vlmdiff sql`

use std::{
    fs::File,
    io::{BufWriter, IsTerminal, Write},
    path::{Path, PathBuf},
};

use anyhow::Result;
use clap::Args;
use rustyline::{
    CompletionType, Config, Editor, Helper, completion::Completer, error::ReadlineError, highlight::Highlighter,
    hint::Hinter, history::FileHistory, validate::Validator,
};
use vlmdiff_metrics::{METRICS, Metric};

use super::{
    EXIT_DONE, StoreArgs,
    text::{Named, StandardOutput, cannot_write, columns, print, say},
};
use crate::{
    engine::Error,
    query::{
        Session, is_ended,
        output::{Format, Writer},
        statements,
    },
    telemetry::Span,
};

/// Query the published tables.
#[derive(Args)]
#[command(after_help = examples())]
pub(super) struct Sql {
    /// The query, or several with `;` between them; without one, a prompt opens (or standard input is read).
    query: Option<String>,
    /// The format of the result. Default: by the extension of --output (.csv, .json, .jsonl, .ndjson, .parquet, .txt),
    /// else a drawn table, or `vertical` where that is wider than the terminal.
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
        let turns = self.format.is_none() && self.output.is_none();
        let mut results = Results::new(self.output.as_deref(), format, turns)?;
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

/// Returns examples, and the functions that are metrics.
fn examples() -> String {
    format!(
        "\
Examples:
  vlmdiff sql \"select class, protocol, pixel_auroc from metrics\"
  vlmdiff sql \"select image_id, score from anomaly_maps order by score desc limit 5\" --format csv
  vlmdiff sql \"select * from latents\" -o latents.parquet
  vlmdiff sql \"select * from metrics@baseline\"      as the run tagged `baseline` left it
  vlmdiff sql                      a prompt; statements end with `;`, and `help` lists shortcuts
  vlmdiff sql \"show tables\"

The metrics are aggregate functions, with `group by` or without: {}. They are those \
of the protocol `exact`; a row in which an argument is null is left out. Those of pixels take `roi` as a last argument, and \
then count no pixel outside of it:
  vlmdiff sql \"select defect, aupro(map, mask, 0.3) from images join anomaly_maps using (image_id) group by defect\"

The instances of a swept table are one table with a column per swept parameter. A column whose type or shape differs among \
them, such as `pixels` of several sizes, is not part of it; read it as a run with --only left it: table@RUN.",
        METRICS.map(Metric::call).join(", ")
    )
}

/// The output of results, one after another.
struct Results {
    format: Format,
    /// True if a table that is wider than the terminal is written as [`Format::Vertical`].
    turns: bool,
    written: usize,
    out: Output,
}

enum Output {
    Standard,
    /// A file that gets its name when everything is written, so that a failure leaves an older file as it was.
    File {
        file: BufWriter<Named<File>>,
        unfinished: PathBuf,
        path: PathBuf,
    },
    /// Something that exists and is not a file: a device, a pipe.
    Device(BufWriter<Named<File>>),
}

impl Results {
    fn new(path: Option<&Path>, format: Format, turns: bool) -> Result<Self> {
        let out = match path {
            None => Output::Standard,
            Some(path) => {
                if is_device(path) {
                    let device = File::options().append(true).open(path).map_err(cannot_write(path))?;
                    let device = BufWriter::new(Named::new(device, path));
                    return Ok(Self { format, turns, written: 0, out: Output::Device(device) });
                }
                // The target of a link is replaced, so that the link stays.
                let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
                let mut name = path.file_name().unwrap_or_default().to_owned();
                name.push(format!(".{}.unfinished", std::process::id()));
                let unfinished = path.with_file_name(name);
                let file = File::create(&unfinished).map_err(cannot_write(&path))?;
                let file = BufWriter::new(Named::new(file, &path));
                Output::File { file, unfinished, path }
            }
        };
        Ok(Self { format, turns, written: 0, out })
    }

    /// Writes the rows of a statement as they are computed.
    fn answer(&mut self, session: &Session, statement: &str) -> Result<()> {
        let mut span = Span::query(statement);
        let answered = self.write_answer(session, statement);
        match &answered {
            Ok(rows) => span.set("db.response.returned_rows", *rows as i64),
            Err(error) => span.failed(error),
        }
        answered.map(drop)
    }

    /// Writes the rows of a statement. Returns their number.
    fn write_answer(&mut self, session: &Session, statement: &str) -> Result<usize> {
        let mut answer = session.answer(statement)?;
        let mut rows = answer.next()?;
        if answer.schema.fields().is_empty() && rows.is_none() {
            // `create table` and similar statements have no result.
            return Ok(0);
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
                standard = StandardOutput::lock();
                &mut standard
            }
            Output::File { file, .. } | Output::Device(file) => file,
        };
        let widest = if self.turns { columns() } else { None };
        let mut writer = Writer::new(out, &answer.schema, self.format)?.turned_beyond(widest);
        let mut count = 0;
        while let Some(batch) = rows {
            count += batch.num_rows();
            writer.write(&batch)?;
            rows = answer.next()?;
        }
        writer.finish()?;
        Ok(count)
    }

    fn finish(mut self) -> Result<()> {
        match &mut self.out {
            Output::Standard => {}
            Output::Device(file) => file.flush()?,
            Output::File { file, unfinished, path } => {
                file.flush()?;
                std::fs::rename(unfinished, &path).map_err(cannot_write(path))?;
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

/// Returns true for what is written in place: devices, pipes, and the files that a process has open, such as `/dev/stdout`,
/// which have no name to which another file could be renamed.
fn is_device(path: &Path) -> bool {
    ["/dev/stdout", "/dev/stderr", "/dev/fd", "/proc"].iter().any(|open| path.starts_with(open))
        || path.metadata().is_ok_and(|there| !there.is_file())
}

/// The answer to `help`.
const HELP: &str = "\
A statement may have several lines and ends with `;`. Tab completes tables, columns and functions.
  \\d, .tables           the tables; also `show tables;`
  \\d TABLE              the columns of a table; also `describe TABLE;`
  \\x [on|off|auto]      a line for each value: always, never, or where a row is wider than the terminal
  Ctrl-C                ends a query, or drops a statement that is being written
  \\q, quit, Ctrl-D      leaves
PIPELINE.TABLE is a table of another pipeline, TABLE@RUN a table as a run left it. `vlmdiff sql --help` says more.";

/// A line of the prompt that is no statement.
#[derive(Debug, PartialEq)]
enum Shortcut {
    Statement(String),
    Help,
    Quit,
    /// The way in which results are drawn; `None` for the other than now.
    Turn(Option<&'static str>),
    Unknown(String),
}

impl Shortcut {
    /// Reads a line; `None` for the beginning of a statement.
    fn read(line: &str) -> Option<Self> {
        let line = line.trim().trim_end_matches(';').trim_end();
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        Some(match (word, rest.trim()) {
            ("quit" | "exit" | "\\q" | ".quit" | ".exit", "") => Self::Quit,
            ("help" | "?" | "\\?" | "\\h" | ".help", "") => Self::Help,
            ("\\d" | "\\dt" | ".tables", "") => Self::Statement("show tables".into()),
            ("\\d" | ".schema", table) if !table.is_empty() => Self::Statement(format!("describe {table}")),
            ("\\x", "") => Self::Turn(None),
            ("\\x", how) => match ["on", "off", "auto"].into_iter().find(|known| *known == how) {
                Some(how) => Self::Turn(Some(how)),
                None => Self::Unknown(line.to_owned()),
            },
            (word, _) if word.starts_with(['\\', '.']) => Self::Unknown(line.to_owned()),
            _ => return None,
        })
    }
}

/// Completes names at the prompt.
struct Names<'a> {
    session: &'a Session,
    /// The lines of the statement before the one that is edited.
    before: String,
}

impl Completer for Names<'_> {
    type Candidate = String;

    fn complete(&self, line: &str, at: usize, _: &rustyline::Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        let (start, names) = self.session.complete(&format!("{}{line}", self.before), self.before.len() + at);
        // A name never spans lines.
        Ok((start.saturating_sub(self.before.len()), names))
    }
}

impl Hinter for Names<'_> {
    type Hint = String;
}

impl Highlighter for Names<'_> {}
impl Validator for Names<'_> {}
impl Helper for Names<'_> {}

fn prompt(session: &Session, results: &mut Results) -> Result<()> {
    let config = Config::builder().completion_type(CompletionType::List).build();
    let mut editor: Editor<Names<'_>, FileHistory> = Editor::with_config(config)?;
    editor.set_helper(Some(Names { session, before: String::new() }));
    let history = std::env::home_dir().map(|home| home.join(".vlmdiff_history"));
    if let Some(history) = &history {
        // The first session has no history yet.
        let _ = editor.load_history(history);
    }
    print("SQL over the published tables. A statement ends with `;`, `help` lists shortcuts, Ctrl-D leaves.")?;
    let mut text = String::new();
    loop {
        if let Some(names) = editor.helper_mut() {
            names.before.clone_from(&text);
        }
        match editor.readline(if text.is_empty() { "vlmdiff> " } else { "     ... " }) {
            Ok(line) => match Shortcut::read(&line).filter(|_| text.is_empty()) {
                Some(Shortcut::Quit) => break,
                Some(shortcut) => {
                    editor.add_history_entry(line.trim())?;
                    results.shortcut(session, shortcut)?;
                }
                None => {
                    text.push_str(&line);
                    text.push('\n');
                    if is_ended(&text) {
                        editor.add_history_entry(text.trim())?;
                        results.answer_all(session, &text);
                        text.clear();
                    } else if text.trim().is_empty() {
                        text.clear();
                    }
                }
            },
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

impl Results {
    /// Answers statements one after another, up to one that fails. Errors are printed.
    fn answer_all(&mut self, session: &Session, text: &str) {
        let answered = statements(text)
            .map_err(anyhow::Error::from)
            .and_then(|all| all.iter().try_for_each(|statement| self.answer(session, statement)));
        if let Err(error) = answered {
            match error.downcast_ref::<Error>() {
                Some(Error::Interrupted) => say("interrupted"),
                _ => say(format!("error: {error:#}")),
            }
        }
    }

    fn shortcut(&mut self, session: &Session, shortcut: Shortcut) -> Result<()> {
        match shortcut {
            Shortcut::Statement(statement) => self.answer_all(session, &statement),
            Shortcut::Turn(how) => {
                let how = how.unwrap_or(if self.format == Format::Vertical { "off" } else { "on" });
                self.turns = how == "auto";
                self.format = if how == "on" { Format::Vertical } else { Format::Table };
                print(format!("a line for each value: {how}"))?;
            }
            Shortcut::Unknown(line) => say(format!("error: there is no `{line}`; `help` lists what there is")),
            Shortcut::Help | Shortcut::Quit => print(HELP)?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_is_told_by_what_it_is_and_an_open_file_by_its_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let is = |path: &str| is_device(Path::new(path));
        assert!(["/dev/null", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"].into_iter().all(is));
        assert!(!is("/dev/shm/answer.csv") && !is("answer.csv") && !is_device(file.path()));
    }

    #[test]
    fn shortcuts_of_psql_and_sqlite_are_known() {
        let statement = |text: &str| Some(Shortcut::Statement(text.into()));
        for (line, expected) in [
            ("\\d", statement("show tables")),
            ("\\d;", statement("show tables")),
            (".tables", statement("show tables")),
            ("\\d  quickstart.metrics ;", statement("describe quickstart.metrics")),
            ("help", Some(Shortcut::Help)),
            ("\\?", Some(Shortcut::Help)),
            ("quit;", Some(Shortcut::Quit)),
            ("\\x", Some(Shortcut::Turn(None))),
            ("\\x auto", Some(Shortcut::Turn(Some("auto")))),
            ("\\x maybe", Some(Shortcut::Unknown("\\x maybe".into()))),
            ("\\copy a", Some(Shortcut::Unknown("\\copy a".into()))),
            ("select 1;", None),
            ("", None),
            ("help me", None),
        ] {
            assert_eq!(Shortcut::read(line), expected, "{line}");
        }
    }
}
