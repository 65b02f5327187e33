//! How well scores separate anomalous from normal: exact metrics, with ties, as pure functions and mergeable states.
//!
//! [`Ranking`] scores images, [`PixelMetrics`] scores the pixels of anomaly maps, [`Components`] finds the regions that
//! PRO averages over. No tables and no tensors: slices in, numbers out.

pub mod components;
pub mod pixel;
pub mod ranking;

#[cfg(test)]
mod golden;

pub use components::Components;
pub use pixel::PixelMetrics;
pub use ranking::{Level, Ranking};

/// Why scores, maps or masks cannot be measured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetricError {
    /// A score that has no place in an order.
    #[error("score {index} is NaN: every score must be a number or an infinity")]
    NanScore {
        /// Position among the given scores, from 0.
        index: usize,
    },
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
}
