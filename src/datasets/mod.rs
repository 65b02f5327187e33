//! On-disk layouts and generators -> rows.

pub mod folder;
pub mod record;
pub mod synthetic;

pub use record::{DatasetError, Files, LeftOut, Listing, Record};
