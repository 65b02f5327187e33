//! Images that cannot be used.

use crate::{
    datasets::{DatasetError, synthetic},
    engine::Error,
    vision::{VisionError, decode::MAX_PIXELS},
};

/// The reason why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Read(#[from] Error),
    #[error("{error}")]
    Unreadable { place: String, error: Error },
    #[error("{place} changed while it was being read; run again")]
    Changed { place: String },
    #[error("{place}: {source}")]
    Decode { place: String, source: VisionError },
    #[error(
        "the mask {mask} is {}x{} and its image {image} is {}x{}{turned}; a mask has the size of its image",
        mask_size.0, mask_size.1, image_size.0, image_size.1
    )]
    MaskSize { mask: String, mask_size: (u32, u32), image: String, image_size: (u32, u32), turned: &'static str },
    #[error(
        "{place} would have {}x{} pixels with a shorter side of `short_side`, more than the {MAX_PIXELS} that are made; lower it",
        size.0, size.1
    )]
    TooLarge { place: String, size: (u32, u32) },
    #[error(transparent)]
    Synthetic(#[from] synthetic::Error),
}

impl Failure {
    /// Returns the file or URL that the message names, if the failure is about one alone.
    pub(super) fn place(&self) -> Option<String> {
        match self {
            Self::Unreadable { place, .. }
            | Self::Changed { place }
            | Self::Decode { place, .. }
            | Self::TooLarge { place, .. } => Some(place.clone()),
            Self::Read(_) | Self::MaskSize { .. } | Self::Synthetic(_) => None,
        }
    }
}

/// Makes the error of a folder that is no data set.
pub(super) fn input_error(error: DatasetError) -> Error {
    Error::Input(error.to_string())
}
