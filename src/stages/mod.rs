//! The pipeline, one file a stage, in the order of data flow. The only place where the engine and the networks meet.

pub mod column;
pub mod caption;
pub mod ingest;
pub mod sql;

use crate::engine::stage::{OpenFn, StageKind};

/// Every stage kind, as the driver knows it, in pipeline order.
pub const KINDS: &[StageKind] = &[
    StageKind::in_driver::<ingest::Ingest>(),
    StageKind::in_driver::<caption::Caption>(),
    StageKind::in_driver::<sql::Sql>(),
];

/// How the worker opens a stage.
pub fn open_in_worker(stage: &str) -> Option<OpenFn> {
    None
}
