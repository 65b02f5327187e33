//! Figures for Prometheus, in its text format.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::answer::Word;
use crate::telemetry::Exposition;

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The upper bounds of the buckets of seconds.
const BOUNDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1., 2.5, 5., 10., 30.];

/// The numbers of durations up to each bound.
#[derive(Debug, Default)]
struct Histogram {
    buckets: [Counter; BOUNDS.len()],
    count: Counter,
    microseconds: Counter,
}

/// Everything that is counted.
#[derive(Debug, Default)]
pub(super) struct Figures {
    /// Answers, by code.
    codes: Mutex<BTreeMap<u16, u64>>,
    /// Seconds from the beginning of a request for a verdict to its answer.
    seconds: Histogram,
    anomalous: Counter,
    good: Counter,
    undecided: Counter,
    /// Photographs that could not be judged.
    pub(super) failed: Counter,
    /// Batches that failed as a whole.
    pub(super) errors: Counter,
}

impl Figures {
    /// Counts an answer.
    pub(super) fn answered(&self, code: u16) {
        *self.codes.lock().unwrap_or_else(PoisonError::into_inner).entry(code).or_default() += 1;
    }

    /// Counts a verdict that was answered after this time.
    pub(super) fn took(&self, time: Duration) {
        let Histogram { buckets, count, microseconds } = &self.seconds;
        for (bucket, bound) in buckets.iter().zip(BOUNDS) {
            bucket.add(u64::from(time.as_secs_f64() <= bound));
        }
        count.add(1);
        microseconds.add(time.as_micros() as u64);
    }

    /// Counts a photograph that was judged.
    pub(super) fn judged(&self, word: Word) {
        match word {
            Word::Anomalous => &self.anomalous,
            Word::Good => &self.good,
            Word::None => &self.undecided,
        }
        .add(1);
    }

    /// Returns the numbers of photographs that were judged, of alarms, and of photographs that failed.
    pub(super) fn totals(&self) -> [u64; 3] {
        let [anomalous, good, undecided] = [&self.anomalous, &self.good, &self.undecided].map(Counter::get);
        [anomalous + good + undecided, anomalous, self.failed.get()]
    }

    /// Writes all figures, and the length and the limit of the queue.
    pub(super) fn text(&self, queue: usize, limit: usize) -> String {
        let mut text = Exposition::default();
        let mut family = |name: &str, kind: &str, help: &str, samples: &[(String, String)]| {
            text.family(name, kind, help, samples.iter().map(|(labels, value)| (labels, value)));
        };
        let codes = self.codes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let codes: Vec<_> = codes.iter().map(|(code, n)| (format!("{{code=\"{code}\"}}"), n.to_string())).collect();
        family("requests_total", "counter", "Answers by code.", &codes);
        let Histogram { buckets, count, microseconds } = &self.seconds;
        let bucket = |bound: &str, n: u64| (format!("_bucket{{le=\"{bound}\"}}"), n.to_string());
        let mut samples: Vec<_> =
            buckets.iter().zip(BOUNDS).map(|(n, bound)| bucket(&bound.to_string(), n.get())).collect();
        samples.push(bucket("+Inf", count.get()));
        samples.push(("_sum".into(), (microseconds.get() as f64 / 1e6).to_string()));
        samples.push(("_count".into(), count.get().to_string()));
        family("verdict_seconds", "histogram", "Seconds from a request for a verdict to its answer.", &samples);
        let verdict = |word: Word, n: &Counter| (format!("{{verdict=\"{}\"}}", word.name()), n.get().to_string());
        let verdicts = [
            verdict(Word::Anomalous, &self.anomalous),
            verdict(Word::Good, &self.good),
            verdict(Word::None, &self.undecided),
        ];
        family("images_total", "counter", "Photographs that were judged, by verdict.", &verdicts);
        let one = |value: String| [(String::new(), value)];
        family(
            "failed_images_total",
            "counter",
            "Photographs that could not be judged.",
            &one(self.failed.get().to_string()),
        );
        family(
            "failed_batches_total",
            "counter",
            "Batches that failed as a whole.",
            &one(self.errors.get().to_string()),
        );
        family("queue_length", "gauge", "Photographs that wait or are being judged.", &one(queue.to_string()));
        family("queue_limit", "gauge", "The greatest length of the queue.", &one(limit.to_string()));
        text.text()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_written_as_prometheus_reads_them() {
        let figures = Figures::default();
        figures.answered(200);
        figures.answered(429);
        figures.answered(200);
        figures.took(Duration::from_millis(30));
        figures.took(Duration::from_secs(60));
        figures.judged(Word::Anomalous);
        let text = figures.text(3, 64);
        for line in [
            "# TYPE vlmdiff_requests_total counter",
            "vlmdiff_requests_total{code=\"200\"} 2",
            "vlmdiff_requests_total{code=\"429\"} 1",
            "vlmdiff_verdict_seconds_bucket{le=\"0.025\"} 0",
            "vlmdiff_verdict_seconds_bucket{le=\"0.05\"} 1",
            "vlmdiff_verdict_seconds_bucket{le=\"30\"} 1",
            "vlmdiff_verdict_seconds_bucket{le=\"+Inf\"} 2",
            "vlmdiff_verdict_seconds_sum 60.03",
            "vlmdiff_verdict_seconds_count 2",
            "vlmdiff_images_total{verdict=\"anomalous\"} 1",
            "vlmdiff_queue_length 3",
            "vlmdiff_queue_limit 64",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}\n{text}");
        }
    }
}
