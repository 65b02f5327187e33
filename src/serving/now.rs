//! The batch that the server judges now, and the last ones that it judged.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use crate::engine::now_ms;

/// The number of batches that are remembered.
const BATCHES: usize = 6;
/// The number of notes that are remembered of a batch.
const NOTES: usize = 8;

/// A batch that was judged.
#[derive(Clone, Debug)]
pub(super) struct Batch {
    /// The time of its end, in milliseconds since 1970.
    pub(super) ended_ms: u64,
    /// Its photographs.
    pub(super) images: usize,
    pub(super) anomalous: usize,
    pub(super) failed: usize,
    pub(super) seconds: f64,
    /// The error that ended it.
    pub(super) error: Option<String>,
}

impl Batch {
    /// Makes the record of a batch that ends now.
    pub(super) fn new(images: usize, began: Instant) -> Self {
        let seconds = began.elapsed().as_secs_f64();
        Self { ended_ms: now_ms(), images, anomalous: 0, failed: 0, seconds, error: None }
    }
}

/// The present state of the server, shared by its threads.
#[derive(Default)]
pub(super) struct Now(Mutex<State>);

/// A copy of what the server does.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    /// The work in words; `None` if there is none.
    pub(super) running: Option<String>,
    /// The last batches, the newest first.
    pub(super) batches: VecDeque<Batch>,
    /// Notes on the last batch.
    pub(super) notes: Vec<String>,
}

impl Now {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what the server does at this moment.
    pub(super) fn look(&self) -> State {
        self.state().clone()
    }

    /// A batch of so many photographs begins.
    pub(super) fn began(&self, images: usize) {
        let mut state = self.state();
        state.notes.clear();
        state.running = Some(format!("a batch of {images}"));
    }

    /// So many rows of a table are being computed.
    pub(super) fn at(&self, table: &str, rows: u64) {
        self.state().running = Some(format!("{table}: {rows}"));
    }

    /// Adds a note on the batch.
    pub(super) fn note(&self, note: String) {
        let mut state = self.state();
        if state.notes.len() < NOTES && !state.notes.contains(&note) {
            state.notes.push(note);
        }
    }

    /// A batch has ended.
    pub(super) fn ended(&self, batch: Batch) {
        let mut state = self.state();
        state.running = None;
        state.batches.push_front(batch);
        state.batches.truncate(BATCHES);
    }

    /// Returns the seconds that a photograph of the last batch took; `None` before the first.
    pub(super) fn seconds_per_image(&self) -> Option<f64> {
        let state = self.state();
        let last = state.batches.front()?;
        Some(last.seconds / last.images.max(1) as f64)
    }
}
