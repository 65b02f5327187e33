//! A request to stop: what runs then finishes or saves the piece of work at hand, and the next run goes on from there.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

/// Whether a run is asked to stop. Clones share the request.
#[derive(Clone, Default)]
pub struct Stop {
    requested: Arc<AtomicBool>,
    told: Arc<Mutex<Vec<Teller>>>,
}

type Teller = Box<dyn Fn() + Send>;

impl std::fmt::Debug for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stop({})", self.is_requested())
    }
}

impl Stop {
    /// Asks to stop.
    pub fn request(&self) {
        self.requested.store(true, Ordering::SeqCst);
        self.told.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(|tell| tell());
    }

    /// Whether somebody asked.
    pub fn is_requested(&self) -> bool {
        self.requested.load(Ordering::SeqCst)
    }

    /// Calls `tell` at the request: for those who wait for something else.
    pub(in crate::engine) fn on_request(&self, tell: impl Fn() + Send + 'static) {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(tell));
    }
}
