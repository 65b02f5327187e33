//! Data sets: layouts on disk, which are listed as rows, and a generator of synthetic pictures.

pub mod coco_ad;
pub mod folder;
pub mod manifest;
pub mod mvtec_ad_2;
mod paths;
pub mod published;
pub mod real_iad;
pub mod record;
pub mod synthetic;
pub mod visa;

pub use record::{DatasetError, Fault, Files, LeftOut, Listing, MaskPlace, PicturePlace, Record};
