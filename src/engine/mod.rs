//! Dataflow: tables made by stages, computed row by row, and stored under the digest of what they were computed from.
//! It works on Arrow data and has no code for images.

mod address;
mod arrow_schema;
mod caught;
mod clock;
mod connect;
mod credentials;
mod digest;
mod distinct;
mod error;
pub mod identity;
pub mod pipeline;
pub mod plan;
pub mod run;
mod secrets;
pub mod signals;
pub mod source;
pub mod stage;
mod stop;
pub mod store;
mod suggest;
mod variant;

pub use address::{expand_home, is_url, join, local_path};
pub use arrow_schema::{decode_schema, encode_schema, hint, with_hint};
pub use caught::caught;
pub use clock::now_ms;
pub use connect::objects_at;
pub use credentials::without_credentials;
pub use digest::{Digest, Hasher};
pub use distinct::distinct;
pub(crate) use error::Mismatch;
pub use error::{Error, Result};
pub use secrets::Secrets;
pub use stop::Stop;
pub use suggest::{or_none, suggestion};
pub use variant::{Variant, table_of, value_text};
