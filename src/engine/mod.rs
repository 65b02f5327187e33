//! Dataflow: tables made by stages, computed row by row, kept under what they were computed from. Knows Arrow, not images.

pub mod columns;
pub mod cut;
pub mod diff;
pub mod digest;
pub mod error;
pub mod event;
pub mod filter;
mod from;
pub mod gc;
pub mod history;
pub mod join;
pub mod known;
mod loader;
pub mod lock;
pub mod parts;
pub mod pipeline;
pub mod plan;
pub mod reason;
pub mod run;
pub mod schema;
pub mod select;
pub mod source;
pub mod stage;
pub mod store;
pub mod sweep;
pub mod task;
pub mod worker;
pub mod yaml;

pub use columns::{KEY, digest_name, heavy, is_heavy, tensor_field, tensor_shape, volatile};
pub use digest::{Digest, Hasher};
pub use error::{Error, Result};
pub use parts::read_table;
pub use source::Sources;
pub use store::{Store, encode_schema};
