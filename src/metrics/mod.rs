//! How well scores separate anomalous from normal: exact metrics, with ties, as pure functions and mergeable states.
//!
//! [`ImageMetrics`] and [`PixelMetrics`] are what is known of images and of the pixels of anomaly maps, [`Ranking`] has the
//! metrics of either, [`Components`] finds the regions that PRO averages over, and a [`Protocol`] says whose rules hold. No tables
//! and no tensors: slices in, numbers out.

pub mod components;
pub mod guessing;
pub mod image;
pub mod levels;
pub mod pixel;
pub mod protocol;
pub mod ranking;

pub use components::Components;
pub use guessing::Guess;
pub use image::ImageMetrics;
pub use levels::Score;
pub use pixel::PixelMetrics;
pub use protocol::Protocol;
pub use ranking::{Level, Ranking};

/// What is known of some images, in a form that what is known of others can be added to.
pub trait State: std::fmt::Debug + Send + Sync + 'static {
    /// Adds all that `other` has seen.
    fn merge(&mut self, other: &Self);

    /// The state for another process; [`State::merge_bytes`] reads it.
    fn to_bytes(&self) -> Vec<u8>;

    /// [`State::merge`] of a state in bytes. An error, and no change, if they are no state of this type.
    fn merge_bytes(&mut self, bytes: &[u8]) -> Result<(), MetricError>;

    /// Bytes of memory that it takes.
    fn size(&self) -> usize;
}

/// Why scores, maps or masks cannot be measured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetricError {
    /// A score that has no place in an order.
    #[error("the score is NaN: every score must be a number or an infinity")]
    NanScore,
    /// A pixel of an anomaly map that has no place in an order.
    #[error("anomaly map is NaN at x={x} y={y}: every pixel must be a number or an infinity")]
    NanPixel {
        /// Column, from 0.
        x: usize,
        /// Row, from 0.
        y: usize,
    },
    /// A map and a mask that do not show the same pixels.
    #[error("anomaly map has {map} pixels, its mask {mask}: they must be equally large")]
    Sizes {
        /// Pixels of the map.
        map: usize,
        /// Pixels of the mask.
        mask: usize,
    },
    /// A mask that is not made of whole rows.
    #[error("mask of {pixels} pixels does not divide into rows of {width}")]
    Width {
        /// Pixels of the mask.
        pixels: usize,
        /// Pixels of a row.
        width: usize,
    },
    /// Bytes that no state was written as.
    #[error("these bytes are no state of a metric")]
    State,
}
