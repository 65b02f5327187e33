//! Shows events as progress bars on a terminal and as plain lines elsewhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use indicatif::{HumanBytes, HumanDuration, MultiProgress, ProgressBar, ProgressStyle};

use super::words::{count, width};
use crate::{engine::store::Event, query::output::printable, telemetry::Listener};

/// The interval at which the progress of a long table is printed if there are no bars.
const SAY_EVERY: Duration = Duration::from_secs(15);
/// The smallest and the largest width of a bar, and that of the words after it, in characters.
const BAR: std::ops::RangeInclusive<usize> = 8..=32;
const WORDS: std::ops::RangeInclusive<usize> = 20..=48;

/// The way in which lines about a run are shown.
#[derive(Clone)]
pub struct Lines {
    /// Shows a line; `None` if nothing is shown.
    say: Option<Arc<dyn Fn(&str) + Send + Sync>>,
    /// True if standard error is a terminal, on which bars are drawn.
    terminal: bool,
}

impl Lines {
    /// Shows lines by `say`, which may be called from any thread; with `terminal` there are bars on standard error too.
    pub fn new(terminal: bool, say: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self { say: Some(Arc::new(say)), terminal }
    }

    /// Shows nothing.
    pub fn none() -> Self {
        Self { say: None, terminal: false }
    }
}

/// Shows the events of a run.
pub struct Progress {
    lines: Lines,
    /// The width of the column of table names.
    width: usize,
    /// The number of tables of the run.
    total: usize,
    /// The tables that the run has reached.
    reached: BTreeSet<String>,
    bars: MultiProgress,
    /// The tables that are being made.
    tables: BTreeMap<String, Making>,
}

/// A table that is being made.
struct Making {
    bar: Option<ProgressBar>,
    /// Bytes of the parts so far.
    bytes: u64,
    work: Option<Work>,
    /// A number that tells how the work goes; empty if there is none.
    figure: String,
    /// The time at which the progress was last printed.
    said: Instant,
}

/// The progress of a table.
struct Work {
    done: u64,
    total: u64,
    unit: String,
    /// The units that were done when the work was first reported, and when that was. They are no part of its speed.
    first: (u64, Instant),
}

impl Work {
    fn words(&self) -> String {
        format!("{}/{} {}", self.done, self.total, self.unit)
    }

    /// Returns the units per second since the first report, and the time that the others will take; `None` before the
    /// second report.
    fn speed(&self) -> Option<(f64, Duration)> {
        let (before, since) = self.first;
        let done = self.done.saturating_sub(before) as f64;
        let speed = done / since.elapsed().as_secs_f64().max(1e-3);
        let left = self.total.saturating_sub(self.done) as f64 / speed;
        (done > 0.).then(|| (speed, Duration::try_from_secs_f64(left).unwrap_or_default()))
    }
}

impl Making {
    /// Returns the progress in words, the most important ones first.
    fn words(&self) -> String {
        let Some(work) = &self.work else { return String::new() };
        let mut words = vec![work.words()];
        words.extend((!self.figure.is_empty()).then(|| self.figure.clone()));
        if let Some((speed, left)) = work.speed() {
            words.push(format!("{} left", short_time(left)));
            words.push(if speed < 10. { format!("{speed:.2}/s") } else { format!("{speed:.0}/s") });
        }
        words.join(", ")
    }

    fn update(&self) {
        if let Some((bar, work)) = self.bar.as_ref().zip(self.work.as_ref()) {
            bar.set_length(work.total);
            bar.set_message(printable(&self.words()).into_owned());
            bar.set_position(work.done);
        }
    }
}

impl Progress {
    /// Makes the display of a run of these tables.
    pub fn new(tables: &BTreeSet<String>, lines: Lines) -> Self {
        Self {
            lines,
            width: width(tables),
            total: tables.len(),
            reached: BTreeSet::new(),
            bars: MultiProgress::new(),
            tables: BTreeMap::new(),
        }
    }

    /// Returns a function that prints a line above the bars, from any thread.
    pub fn speaker(&self) -> impl Fn(&str) + Send + 'static {
        let (bars, say) = (self.bars.clone(), self.lines.say.clone());
        move |line| {
            if let Some(say) = &say {
                bars.suspend(|| say(line));
            }
        }
    }

    fn line(&self, table: &str, text: &str) {
        self.speaker()(&format!("{table:<width$}  {text}", width = self.width));
    }

    /// Returns the place of a table among those of the run: `2/10`.
    fn place(&mut self, table: &str) -> String {
        self.reached.insert(table.to_owned());
        format!("{}/{}", self.reached.len(), self.total)
    }

    /// Shows an event.
    pub fn show(&mut self, event: &Event) {
        if self.lines.say.is_none() {
            return;
        }
        match event {
            Event::RunStarted { .. } | Event::RunFinished { error: Some(_), .. } => {
                for making in std::mem::take(&mut self.tables).into_values() {
                    if let Some((bar, work)) = making.bar.zip(making.work) {
                        bar.abandon_with_message(format!("{}, stopped", work.words()));
                    }
                }
            }
            Event::TableFresh { table, rows, .. } => {
                self.reached.insert(table.clone());
                self.line(table, &format!("fresh, {}", count(*rows, "row")));
            }
            Event::TableStarted { table, stale, rows, reasons, .. } => {
                let place = self.place(table);
                let why = if reasons.is_empty() { String::new() } else { format!(": {}", reasons.join("; ")) };
                let what = if *stale == 0 {
                    "to publish".into()
                } else if *rows > 0 {
                    format!("{stale} of {} to compute", count(*rows, "row"))
                } else {
                    "to compute".to_owned()
                };
                self.line(table, &format!("{what}{why}"));
                let bar = (self.lines.terminal && *stale > 0).then(|| self.bar(table, &place, *stale));
                let making = Making { bar, bytes: 0, work: None, figure: String::new(), said: Instant::now() };
                self.tables.insert(table.clone(), making);
            }
            Event::Progress { table, done, total, unit } => {
                let Some(making) = self.tables.get_mut(table) else { return };
                let first = making.work.as_ref().map_or_else(|| (*done, Instant::now()), |work| work.first);
                making.work = Some(Work { done: *done, total: *total, unit: unit.clone(), first });
                if making.bar.is_some() {
                    making.update();
                } else if making.said.elapsed() > SAY_EVERY {
                    making.said = Instant::now();
                    let words = making.words();
                    let place = self.place(table);
                    self.line(table, &format!("{words} (table {place})"));
                }
            }
            Event::Figure { table, figure } => {
                if let Some(making) = self.tables.get_mut(table) {
                    making.figure.clone_from(figure);
                    making.update();
                }
            }
            Event::TaskStarted { .. } | Event::TaskFinished { .. } => {}
            Event::PartCommitted { table, bytes, .. } => {
                self.tables.get_mut(table).into_iter().for_each(|making| making.bytes += bytes);
            }
            Event::RowFailed { table, id, message, .. } => self.line(table, &format!("{id} failed: {message}")),
            Event::Log { table, message } | Event::Note { table, message } => self.line(table, message),
            Event::TablePublished { table, rows, computed, errors, seconds, .. } => {
                let making = self.tables.remove(table);
                let bytes = making.as_ref().map_or(0, |making| making.bytes);
                making.as_ref().and_then(|making| making.bar.as_ref()).inspect(|bar| bar.finish_and_clear());
                // The rows of a training are those of its log, which say nothing about its speed.
                let steps = making.and_then(|making| making.work).filter(|work| work.unit == "steps");
                let speed = match steps.map(|work| work.speed()) {
                    Some(Some((speed, _))) => format!(", {speed:.2} steps/s"),
                    Some(None) => String::new(),
                    None if *computed > 1 => format!(", {:.1} rows/s", *computed as f64 / seconds.max(1e-3)),
                    None => String::new(),
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
                self.speaker()(&format!("done in {time}"));
            }
        }
    }

    /// Makes the bar of a table. On a narrow terminal its words are cut, and names before that; it is never wider than
    /// a line.
    fn bar(&self, table: &str, place: &str, length: u64) -> ProgressBar {
        let columns = terminal_size::terminal_size_of(std::io::stderr()).map_or(80, |(width, _)| usize::from(width.0));
        let bar = ProgressBar::new(length).with_prefix(table.to_owned());
        if let Ok(style) = ProgressStyle::with_template(&template(columns, self.width, place)) {
            bar.set_style(if is_utf8() { style } else { style.progress_chars("#>-") });
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        self.bars.add(bar)
    }
}

impl Listener for Progress {
    fn hear(&mut self, _: u64, event: &Event) {
        self.show(event);
    }
}

/// Returns the parts of a bar's line: the name of the table, its place among the tables, the bar, and words.
fn template(columns: usize, names: usize, place: &str) -> String {
    let least = BAR.start() + 1 + WORDS.start();
    let names = names.min(columns.saturating_sub(2 + place.len() + 2 + least)).max(8);
    let rest = columns.saturating_sub(names + 2 + place.len() + 2);
    let bar = rest.saturating_sub(WORDS.end() + 1).clamp(*BAR.start(), *BAR.end());
    format!("{{prefix:<{names}!}}  {place}  {{bar:{bar}.cyan/blue}} {{wide_msg}}")
}

/// Formats a time in at most six characters: `45s`, `12m`, `3h 5m`.
fn short_time(time: Duration) -> String {
    match time.as_secs() {
        seconds @ ..120 => format!("{seconds}s"),
        seconds @ ..7200 => format!("{}m", seconds / 60),
        seconds => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
    }
}

/// Returns true if the locale has more characters than ASCII.
fn is_utf8() -> bool {
    let set = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set).unwrap_or_default().to_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bar_and_names_fit_into_narrow_terminals() {
        assert_eq!(template(120, 12, "2/10"), "{prefix:<12!}  2/10  {bar:32.cyan/blue} {wide_msg}");
        assert_eq!(template(80, 12, "2/10"), "{prefix:<12!}  2/10  {bar:11.cyan/blue} {wide_msg}");
        assert_eq!(template(44, 40, "2/10"), "{prefix:<8!}  2/10  {bar:8.cyan/blue} {wide_msg}");
    }

    #[test]
    fn speed_leaves_out_what_was_done_before() {
        let since = Instant::now().checked_sub(Duration::from_secs(10)).unwrap();
        let work = |done| Work { done, total: 100, unit: "steps".into(), first: (40, since) };
        let (speed, left) = work(60).speed().unwrap();
        assert!((speed - 2.).abs() < 0.1 && (19..=21).contains(&left.as_secs()), "{speed} {left:?}");
        assert_eq!(work(40).speed(), None);
        let making = |figure: &str| {
            let (bar, figure) = (None, figure.to_owned());
            Making { bar, bytes: 0, work: Some(work(60)), figure, said: since }.words()
        };
        assert!(making("loss 0.5").starts_with("60/100 steps, loss 0.5, "), "{}", making("loss 0.5"));
        assert!(making("").starts_with("60/100 steps, ") && making("").ends_with("/s"), "{}", making(""));
    }

    #[test]
    fn times_are_short() {
        assert_eq!(
            [0, 119, 120, 7199, 7500].map(|s| short_time(Duration::from_secs(s))),
            ["0s", "119s", "2m", "119m", "2h 5m"]
        );
    }
}
