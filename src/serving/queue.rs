//! The queue of photographs that wait for their verdicts. It is bounded by places: a request takes one before its
//! photograph is received, and gives it back when the photograph is judged.

use std::sync::{Arc, Mutex, PoisonError, mpsc};

use tempfile::NamedTempFile;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::{answer::Refusal, archive::Kept};
use crate::engine::Digest;

/// A place in the queue, which is free again when this is dropped.
pub(super) type Place = OwnedSemaphorePermit;

/// A photograph that waits for its verdict.
pub(super) struct Job {
    pub(super) id: String,
    pub(super) class: String,
    /// The name of its file, if the request gave one.
    pub(super) name: Option<String>,
    pub(super) digest: Digest,
    pub(super) media_type: &'static str,
    pub(super) file: NamedTempFile,
    pub(super) reply: Reply,
}

/// The way back to the request, and its place in the queue.
pub(super) struct Reply {
    pub(super) answer: oneshot::Sender<Outcome>,
    pub(super) place: Place,
}

/// The outcome of a photograph.
pub(super) type Outcome = Result<Arc<Kept>, Refusal>;

impl Reply {
    /// Answers the request, if its client still waits, and frees the place.
    pub(super) fn send(self, outcome: Outcome) {
        let Self { answer, place } = self;
        drop(place);
        let _ = answer.send(outcome);
    }
}

/// The queue.
pub(super) struct Queue {
    places: Arc<Semaphore>,
    limit: usize,
    /// `None` if the queue is closed.
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
}

impl Queue {
    /// Makes a queue of so many places, and its other end.
    pub(super) fn new(limit: usize) -> (Self, mpsc::Receiver<Job>) {
        let (sender, receiver) = mpsc::channel();
        (Self { places: Arc::new(Semaphore::new(limit)), limit, jobs: Mutex::new(Some(sender)) }, receiver)
    }

    /// Takes a place; `None` if all are taken.
    pub(super) fn place(&self) -> Option<Place> {
        self.places.clone().try_acquire_owned().ok()
    }

    /// Puts a photograph into the queue. Returns false if the queue is closed.
    pub(super) fn put(&self, job: Job) -> bool {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok())
    }

    /// Closes the queue: what is in it is still judged.
    pub(super) fn close(&self) {
        *self.jobs.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Returns the number of places that are taken.
    pub(super) fn length(&self) -> usize {
        self.limit - self.places.available_permits()
    }

    /// Returns the number of places.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }
}
