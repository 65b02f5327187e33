//! Shows events as progress bars on a terminal and as plain lines elsewhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{HumanBytes, HumanDuration, MultiProgress, ProgressBar, ProgressStyle};

use super::text::{count, say, width};
use crate::{engine::store::Event, query::output::printable};

/// The interval at which the progress of a long table is printed if there are no bars.
const SAY_EVERY: Duration = Duration::from_secs(15);

/// Shows the events of a run on standard error.
pub(super) struct Progress {
    quiet: bool,
    /// The width of the column of table names.
    width: usize,
    terminal: bool,
    bars: MultiProgress,
    /// The tables that are being made.
    tables: BTreeMap<String, Making>,
}

/// A table that is being made.
struct Making {
    bar: Option<ProgressBar>,
    /// Bytes of the parts so far.
    bytes: u64,
    /// The speed of the work, beside that of its rows; empty if none is known.
    rate: String,
    /// The time at which the progress was last printed.
    said: Instant,
}

impl Progress {
    /// Makes the display of a run of these tables.
    pub(super) fn new(tables: &BTreeSet<String>, quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { quiet, width: width(tables), terminal, bars: MultiProgress::new(), tables: BTreeMap::new() }
    }

    fn line(&self, table: &str, text: &str) {
        let line = format!("{table:<width$}  {text}", width = self.width);
        match self.tables.values().find_map(|making| making.bar.as_ref()) {
            Some(bar) => bar.println(printable(&line)),
            None => say(line),
        }
    }

    pub(super) fn show(&mut self, event: &Event) {
        if self.quiet {
            return;
        }
        match event {
            Event::RunStarted { .. } | Event::RunFinished { error: Some(_), .. } => {
                std::mem::take(&mut self.tables)
                    .into_values()
                    .filter_map(|making| making.bar)
                    .for_each(|bar| bar.abandon());
            }
            Event::TableFresh { table, rows, .. } => self.line(table, &format!("fresh, {}", count(*rows, "row"))),
            Event::TableStarted { table, stale, rows, reasons, .. } => {
                let why = reasons.first().map(|reason| format!(": {reason}")).unwrap_or_default();
                let what = if *stale == 0 {
                    "to publish".into()
                } else if *rows > 0 {
                    format!("{stale} of {} to compute", count(*rows, "row"))
                } else {
                    "to compute".to_owned()
                };
                self.line(table, &format!("{what}{why}"));
                let bar = (self.terminal && *stale > 0).then(|| {
                    let bar = "{bar:32.cyan/blue} {pos}/{len} {msg} {per_sec} {eta} left";
                    let style = ProgressStyle::with_template(&format!("{{prefix:<{}}}  {bar}", self.width));
                    let bar = ProgressBar::new(*stale).with_prefix(table.clone());
                    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
                    bar.enable_steady_tick(Duration::from_millis(200));
                    self.bars.add(bar)
                });
                self.tables.insert(table.clone(), Making { bar, bytes: 0, rate: String::new(), said: Instant::now() });
            }
            Event::Progress { table, done, total, unit } => {
                let Some(making) = self.tables.get_mut(table) else { return };
                if let Some(bar) = &making.bar {
                    bar.set_length(*total);
                    bar.set_message(printable(&format!("{unit}{}", making.rate)).into_owned());
                    bar.set_position(*done);
                } else if making.said.elapsed() > SAY_EVERY {
                    making.said = Instant::now();
                    let line = format!("{done}/{total} {unit}{}", making.rate);
                    self.line(table, &line);
                }
            }
            Event::Rate { table, rate } => {
                self.tables.get_mut(table).into_iter().for_each(|making| making.rate = format!(", {rate}"));
            }
            Event::PartCommitted { table, bytes, .. } => {
                self.tables.get_mut(table).into_iter().for_each(|making| making.bytes += bytes);
            }
            Event::RowFailed { table, id, message, .. } => self.line(table, &format!("{id} failed: {message}")),
            Event::Log { table, message } | Event::Note { table, message } => self.line(table, message),
            Event::TablePublished { table, rows, computed, errors, seconds, .. } => {
                let making = self.tables.remove(table);
                let bytes = making.as_ref().map_or(0, |making| making.bytes);
                making.and_then(|making| making.bar).inspect(ProgressBar::finish_and_clear);
                let speed = if *computed > 1 {
                    format!(", {:.1} rows/s", *computed as f64 / seconds.max(1e-3))
                } else {
                    String::new()
                };
                let size = if bytes > 0 { format!(", {}", HumanBytes(bytes)) } else { String::new() };
                let failed = if *errors > 0 { format!(", {errors} failed and left out") } else { String::new() };
                let rows = count(*rows, "row");
                self.line(table, &format!("{rows}, {computed} computed in {seconds:.1} s{speed}{size}{failed}"));
            }
            Event::RunFinished { seconds, error: None, .. } => {
                let time = if *seconds < 60. {
                    format!("{seconds:.2} s")
                } else {
                    HumanDuration(Duration::from_secs_f64(*seconds)).to_string()
                };
                say(format!("done in {time}"));
            }
        }
    }
}
