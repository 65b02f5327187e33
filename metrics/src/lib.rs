//! Metrics of how well scores separate anomalous from normal: exact, with ties, as pure functions and mergeable states.
//!
//! [`ImageMetrics`] and [`PixelMetrics`] are the states of images and of the pixels of anomaly maps. [`Ranking`]
//! computes the metrics of either, [`Components`] finds the regions over which PRO is averaged, and a [`Protocol`] is
//! the rules of one program. [`bootstrap`] computes intervals of metrics. [`conformal`] and [`costs`] compute thresholds. [`blur`] smooths maps before
//! they are scored. All work on slices, without tables and tensors.

pub mod adeval;
pub mod anomalib;
pub mod blur;
pub mod bootstrap;
pub mod components;
pub mod conformal;
pub mod costs;
pub mod guessing;
mod halves;
pub mod image;
pub mod judged;
pub mod levels;
pub mod pixel;
pub mod protocol;
pub mod ranking;
pub mod table;
pub mod two_samples;
pub mod windows;

pub use anomalib::RegionScores;
pub use components::{Components, has_foreground};
pub use guessing::Guess;
pub use image::ImageMetrics;
pub use judged::{count, count_bytes};
pub use levels::Score;
pub use pixel::{PixelCounts, PixelMetrics};
pub use protocol::{Given, Protocol};
pub use ranking::{Level, Ranking};
pub use table::{Judged, Kind, METRICS, Metric};

/// The false positive rate up to which PRO is integrated by most programs.
const FPR_LIMIT: f64 = 0.3;

/// A summary of some images to which summaries of others can be added.
pub trait State: std::fmt::Debug + Send + Sync + 'static {
    /// Adds everything that `other` has seen.
    fn merge(&mut self, other: &Self);

    /// Serialises the state; [`State::merge_bytes`] reads it, in another process too.
    fn to_bytes(&self) -> Vec<u8>;

    /// Does as [`State::merge`], for a state in bytes. Fails, and changes nothing, if they are not a state of this
    /// type.
    fn merge_bytes(&mut self, bytes: &[u8]) -> Result<(), MetricError>;

    /// Returns the size in memory in bytes.
    fn size(&self) -> usize;
}

/// Scores, maps or masks that cannot be measured.
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
    /// A map and a mask with different numbers of pixels.
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
    /// Bytes that are not a serialised state.
    #[error("these bytes are not the state of a metric")]
    State,
}
