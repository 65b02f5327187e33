//! The interface between an extractor and the network that it opens.

use std::{
    fmt::Debug,
    path::{Path, PathBuf},
};

use tch::{Device, Tensor};

use crate::models::{checkpoint::CheckpointError, preprocessing::Preprocessing};

/// A loaded network whose inner maps are features of an image.
pub(super) trait FeatureNetwork: Debug + Send {
    /// Returns the preprocessing with which the network was trained.
    fn preprocessing(&self) -> Preprocessing;

    /// Returns the last layer of the network, counted as the extractor counts layers.
    fn last_layer(&self) -> usize;

    /// Maps preprocessed images [B, 3, H, W], whose height and width are multiples of
    /// [`Preprocessing::size_multiple`], to one map per entry of `layers`, [B, C, h, w], in that order. `final_norm`
    /// applies the final layer norm to each of them; a network without one ignores it.
    ///
    /// # Panics
    /// May panic if a layer does not exist; [`Extractor::open`](super::Extractor::open) has checked that all do.
    fn features(&self, x: &Tensor, layers: &[usize], final_norm: bool) -> Vec<Tensor>;
}

/// The weights that an extractor opens, and the device on which its network is to compute.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opening<'a> {
    /// The name of the extractor, for errors.
    pub(super) extractor: &'static str,
    /// A weight file, or a folder in Hugging Face layout.
    pub(super) weights: &'a Path,
    /// The device.
    pub(super) device: Device,
}

impl Opening<'_> {
    /// Returns the error of weights that are those of another network; both networks are described in words.
    pub(super) fn other(&self, found: String, wanted: String) -> ExtractorError {
        ExtractorError::Other { path: self.weights.to_owned(), extractor: self.extractor, found, wanted }
    }
}

/// The error of an extractor that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ExtractorError {
    /// The weights cannot be read or are of another architecture.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The weights are those of another network of the same architecture.
    #[error("the weights {} are {found}, and {extractor} is {wanted}", path.display())]
    Other {
        /// The file or folder.
        path: PathBuf,
        /// The extractor asked for.
        extractor: &'static str,
        /// The network of the weights, in words.
        found: String,
        /// The network of the extractor, in words.
        wanted: String,
    },
    /// The network has no such layer, or takes no such option.
    #[error("{0}")]
    Option(String),
}
