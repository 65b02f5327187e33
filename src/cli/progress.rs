//! Events as progress bars on a terminal, as plain lines elsewhere.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressStyle};

use crate::engine::event::Event;

/// Where there are no bars, a long table says how far it is this often.
const SAY_EVERY: Duration = Duration::from_secs(15);

/// Shows the events of a run on standard error.
pub(super) struct Progress {
    quiet: bool,
    terminal: bool,
    bar: Option<ProgressBar>,
    bytes: u64,
    said: Instant,
}

impl Progress {
    pub(super) fn new(quiet: bool) -> Self {
        Self { quiet, terminal: std::io::stderr().is_terminal(), bar: None, bytes: 0, said: Instant::now() }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }

    pub(super) fn show(&mut self, event: &Event) {
        if self.quiet {
            return;
        }
        match event {
            Event::RunStarted { .. } | Event::RunFinished { error: Some(_), .. } => {
                self.bar.take().inspect(ProgressBar::abandon);
            }
            Event::TableFresh { table, rows, .. } => self.line(&format!("{table:<16} fresh, {}", count(*rows, "row"))),
            Event::TableStarted { table, stale, rows, reasons, .. } => {
                self.bytes = 0;
                self.said = Instant::now();
                let why = reasons.first().map(|reason| format!(": {reason}")).unwrap_or_default();
                let what = if *stale == 0 {
                    "all rows known".into()
                } else if *rows > 0 {
                    format!("{stale} of {} to compute", count(*rows, "row"))
                } else {
                    "to compute".to_owned()
                };
                self.line(&format!("{table:<16} {what}{why}"));
                if self.terminal && *stale > 0 {
                    let style = ProgressStyle::with_template(
                        "{prefix:<16} {bar:32.cyan/blue} {pos}/{len} {msg} {per_sec} {eta} left",
                    );
                    let bar = ProgressBar::new(*stale).with_prefix(table.clone());
                    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
                    bar.enable_steady_tick(Duration::from_millis(200));
                    self.bar = Some(bar);
                }
            }
            Event::Progress { table, done, total, unit } => {
                if let Some(bar) = &self.bar {
                    bar.set_length(*total);
                    bar.set_message(unit.clone());
                    bar.set_position(*done);
                } else if self.said.elapsed() > SAY_EVERY {
                    self.said = Instant::now();
                    self.line(&format!("{table:<16} {done}/{total} {unit}"));
                }
            }
            Event::PartCommitted { bytes, .. } => self.bytes += bytes,
            Event::RowFailed { table, id, message, .. } => self.line(&format!("{table:<16} {id} failed: {message}")),
            Event::Log { table, message } => self.line(&format!("{table:<16} {message}")),
            Event::TablePublished { table, rows, computed, errors, seconds, .. } => {
                self.bar.take().inspect(ProgressBar::finish_and_clear);
                let speed = if *computed > 1 {
                    format!(", {:.1} rows/s", *computed as f64 / seconds.max(1e-3))
                } else {
                    String::new()
                };
                let size = if self.bytes > 0 { format!(", {}", HumanBytes(self.bytes)) } else { String::new() };
                let failed = if *errors > 0 { format!(", {errors} failed and left out") } else { String::new() };
                eprintln!(
                    "{table:<16} {}, {computed} computed in {seconds:.1} s{speed}{size}{failed}",
                    count(*rows, "row")
                );
            }
            Event::RunFinished { seconds, error: None } => {
                let time = if *seconds < 60. {
                    format!("{seconds:.2} s")
                } else {
                    HumanDuration(Duration::from_secs_f64(*seconds)).to_string()
                };
                eprintln!("done in {time}");
            }
        }
    }
}

/// `1 row`, `12 rows`.
pub(super) fn count(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}
