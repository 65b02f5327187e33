//! Decoding, resampling and colouring of pictures in memory, without tensors and tables.
//!
//! Images are interleaved 8-bit `[H, W, C]`, maps are row-major `[H, W]` slices.

pub mod colormap;
mod container;
pub mod contour;
pub mod decode;
pub mod drawing;
pub mod imagenet;
pub mod mosaic;
pub mod placement;
pub mod resize;
pub mod tiling;

pub use decode::VisionError;
