//! The state that all requests share.

use std::sync::Arc;

use minijinja::{Environment, Value};
use tokio::sync::Semaphore;

use super::{archive::Archive, figures::Figures, now::Now, queue::Queue, token::Token, upload::Limits};
use crate::{
    engine::store::Store,
    inspect::{Inspector, Scales},
};

/// All that requests share.
pub(super) struct Shared {
    pub(super) store: Store,
    pub(super) inspector: Inspector,
    pub(super) inspector_digest: String,
    /// The name of the pipeline whose model judges.
    pub(super) pipeline: String,
    pub(super) scales: Scales,
    pub(super) archive: Archive,
    pub(super) queue: Queue,
    pub(super) figures: Figures,
    pub(super) now: Now,
    /// The template of the page.
    pub(super) templates: Environment<'static>,
    /// The verdicts on the pipeline's own photographs, as reports show them.
    pub(super) own_verdicts: Vec<Value>,
    pub(super) limits: Limits,
    pub(super) token: Option<Token>,
    /// The pictures that may be drawn at once.
    pub(super) drawing: Arc<Semaphore>,
    pub(super) started_ms: u64,
}
