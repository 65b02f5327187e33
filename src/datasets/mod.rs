//! Data sets: layouts on disk, which are listed as rows, and a generator of synthetic pictures.

pub mod folder;
pub mod manifest;
pub mod record;
pub mod synthetic;

pub use record::{DatasetError, Files, LeftOut, Listing, PicturePlace, Record};
