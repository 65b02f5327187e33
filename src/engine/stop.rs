//! A request to stop. Running work is finished or saved, and the next run continues from there.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// The interval at which waiting work asks for a request.
const ASK_EVERY: Duration = Duration::from_millis(20);

/// A request to stop, which clones share.
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
    /// Requests a stop.
    pub fn request(&self) {
        self.requested.store(true, Ordering::SeqCst);
        self.told.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(|tell| tell());
    }

    /// Returns true if a stop was requested.
    pub fn is_requested(&self) -> bool {
        self.requested.load(Ordering::SeqCst)
    }

    /// Waits until a stop is requested.
    pub async fn requested(&self) {
        while !self.is_requested() {
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// Calls `tell` at the request, for threads that wait for something else.
    pub(in crate::engine) fn on_request(&self, tell: impl Fn() + Send + 'static) {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(tell));
    }
}
