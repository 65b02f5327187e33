//! The reports of runs and queries to other programs: traces (OpenTelemetry), lineage (OpenLineage) and figures (Prometheus).
//!
//! Whatever hears the events of a run is a [`Listener`]; a run has any number of them. None of them may slow or fail a
//! run: a report that cannot be sent is named once, at the end.

mod figures;
mod lineage;
mod prometheus;
mod sender;
#[cfg(feature = "telemetry")]
mod traces;
#[cfg(not(feature = "telemetry"))]
#[path = "no_traces.rs"]
mod traces;

pub use self::{
    figures::RunFigures,
    lineage::Lineage,
    prometheus::{Exposition, label},
    traces::{RunTraces, Span, begin, end},
};
use crate::engine::{now_ms, store::Event};

/// Hears the events of a run.
pub trait Listener: Send {
    /// Hears an event, with its time in milliseconds since 1970. It returns at once, because the run waits for it.
    fn hear(&mut self, at_ms: u64, event: &Event);

    /// Ends after the last event. Returns what could not be done, in words.
    fn finish(&mut self) -> Option<String> {
        None
    }
}

/// The listeners of a run.
#[derive(Default)]
pub struct Listeners<'a>(Vec<Box<dyn Listener + 'a>>);

impl std::fmt::Debug for Listeners<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Listeners({})", self.0.len())
    }
}

impl<'a> Listeners<'a> {
    /// Adds a listener.
    pub fn add(&mut self, listener: impl Listener + 'a) {
        self.0.push(Box::new(listener));
    }

    /// Tells all listeners an event that happens now.
    pub fn tell(&mut self, event: &Event) {
        let now = now_ms();
        self.0.iter_mut().for_each(|listener| listener.hear(now, event));
    }

    /// Ends all listeners. Returns what they could not do.
    pub fn finish(mut self) -> Vec<String> {
        self.0.iter_mut().filter_map(|listener| listener.finish()).collect()
    }
}
