//! Text output that the commands share.

use std::{
    fmt::Display,
    fs::File,
    io::{self, IsTerminal, Write},
    net::SocketAddr,
    path::Path,
    sync::OnceLock,
};

use clap::{Args, ValueEnum};
use serde_json::json;

pub(super) use crate::driver::{count, width};
use crate::{
    driver::Lines,
    engine::{
        Error, now_ms,
        store::{Event, Logged},
        without_credentials,
    },
    query::output::printable,
};

/// Reads an address to listen on.
pub(super) fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let numbers = match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => text.to_owned(),
    };
    numbers.parse().map_err(|_| {
        "it is no IP address with a port; 127.0.0.1:8080 or, for other machines, 0.0.0.0:8080 would work".into()
    })
}

/// Makes the error about a file that an argument names and that cannot be written.
pub(super) fn cannot_write(path: &Path) -> impl Fn(io::Error) -> Error + '_ {
    move |error| Error::Input(format!("cannot write {}: {error}", path.display()))
}

/// An output that its errors name.
pub(super) struct Named<W> {
    output: W,
    name: String,
}

/// Standard output.
pub(super) type StandardOutput = Named<io::StdoutLock<'static>>;

impl StandardOutput {
    /// Keeps other threads from writing meanwhile.
    pub(super) fn lock() -> Self {
        Self { output: io::stdout().lock(), name: "to standard output".to_owned() }
    }
}

impl Named<File> {
    /// Names a file by its path.
    pub(super) fn new(output: File, path: &Path) -> Self {
        Self { output, name: path.display().to_string() }
    }
}

impl<W> Named<W> {
    /// Names the output in an error about it. A closed pipe stays what it is, since it ends a command quietly.
    fn named(&self, error: io::Error) -> io::Error {
        match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::Interrupted => error,
            kind => io::Error::new(kind, format!("cannot write {}: {error}", self.name)),
        }
    }
}

impl<W: Write> Write for Named<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.write(bytes).map_err(|error| self.named(error))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush().map_err(|error| self.named(error))
    }
}

/// Prints a line for people. Control characters, which names and values of others may contain, are escaped. A closed
/// output is an error, which ends the command quietly, instead of a panic.
pub(super) fn print(line: impl Display) -> io::Result<()> {
    writeln!(StandardOutput::lock(), "{}", printable(&line.to_string()))
}

/// Prints a line for programs, such as JSON, without changes.
pub(super) fn print_exactly(line: impl Display) -> io::Result<()> {
    writeln!(StandardOutput::lock(), "{line}")
}

/// The form of what a command says on standard error: words for people, or a JSON object for each event and message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    #[default]
    Text,
    Json,
}

/// The choice of that form.
#[derive(Args)]
pub(super) struct LogArgs {
    /// The form of progress, notes and messages on standard error: text, or a JSON object a line.
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t, env = "VLMDIFF_LOG_FORMAT")]
    log_format: LogFormat,
}

impl LogArgs {
    /// Makes the choice hold for everything that is said from now on.
    pub(super) fn choose(&self) {
        // A command chooses once.
        let _ = FORMAT.set(self.log_format);
    }
}

static FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// Returns the form of what is said.
pub(super) fn log_format() -> LogFormat {
    FORMAT.get().copied().unwrap_or_default()
}

/// Prints a line on standard error without credentials in URLs, escaped as by [`print()`]. If standard error is closed, the work continues.
pub(super) fn say(line: impl Display) {
    let line = line.to_string();
    let line = without_credentials(&line);
    match log_format() {
        LogFormat::Text => tell(printable(&line)),
        LogFormat::Json => tell(json!({ "at_ms": now_ms(), "event": "message", "message": line })),
    }
}

/// Prints the error that ends the command, without credentials in URLs.
pub(super) fn say_error(message: impl Display) {
    let message = message.to_string();
    let message = without_credentials(&message);
    match log_format() {
        LogFormat::Text => tell(printable(&format!("error: {message}"))),
        LogFormat::Json => tell(json!({ "at_ms": now_ms(), "event": "error", "message": message })),
    }
}

/// Prints an event as a JSON object, with the names that logs of runs have.
pub(super) fn say_event(event: &Event) {
    // Events hold texts and numbers alone, which JSON has.
    let logged = serde_json::to_string(&Logged { at_ms: now_ms(), event: event.clone() });
    tell(logged.unwrap_or_default());
}

fn tell(line: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Returns the width of the terminal that standard output is, in characters; `None` if it is none.
pub(super) fn columns() -> Option<usize> {
    terminal_size::terminal_size_of(io::stdout()).map(|(width, _)| usize::from(width.0))
}

/// Returns the way in which a run's progress is shown: on standard error, or not at all.
pub(super) fn lines(quiet: bool) -> Lines {
    if quiet { Lines::none() } else { Lines::new(io::stderr().is_terminal(), |line| say(line)) }
}
