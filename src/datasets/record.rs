//! What every on-disk layout is listed as.

use std::path::PathBuf;

/// One image of a dataset, before anything is decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The image's path relative to the dataset's root, with `/` on every system.
    pub image_id: String,
    /// The product or texture that is inspected.
    pub class: String,
    /// `train` or `test`.
    pub split: String,
    /// Whether the image is anomalous.
    pub label: bool,
    /// The kind of defect, `good` for none.
    pub defect: String,
    /// The encoded image.
    pub image: PathBuf,
    /// The encoded ground truth of an anomalous image; None where only image labels are known.
    pub mask: Option<PathBuf>,
    /// A caption given with the dataset.
    pub caption: Option<String>,
}

/// Why a folder is not a dataset. Each message names the path and the layout that would have worked.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// The root does not exist or is a file.
    #[error("no dataset folder {path}: expected {path}/CLASS/train/good/*.png", path = .0.display())]
    NoRoot(PathBuf),
    /// Nothing below the root looks like a class.
    #[error(
        "no class in {path}: expected {path}/CLASS/train/good/*.png and {path}/CLASS/test/KIND/*.png, \
         or a folder that is itself one class",
        path = .0.display()
    )]
    NoClass(PathBuf),
    /// A class whose normal training images are missing.
    #[error(
        "no training images in {path}: expected normal images there ({extensions})",
        path = .0.display(), extensions = crate::datasets::folder::EXTENSIONS.join(" ")
    )]
    NoTrainingImages(PathBuf),
    /// A training folder other than `good`.
    #[error("{path}: training images are all normal and belong in train/good, anomalous ones in test/KIND", path = .0.display())]
    UnexpectedTrainFolder(PathBuf),
    /// An anomalous image whose kind has ground truth, but not for this image.
    #[error(
        "no mask for {image}: expected {expected} (any image extension, _mask may be left out)",
        image = .image.display(), expected = .expected.display()
    )]
    MissingMask {
        /// The image without a mask.
        image: PathBuf,
        /// Where its mask was looked for.
        expected: PathBuf,
    },
    /// A mask that belongs to no image.
    #[error("no image for mask {mask}: expected {expected} (any image extension)", mask = .mask.display(), expected = .expected.display())]
    MissingImage {
        /// The mask without an image.
        mask: PathBuf,
        /// Where its image was looked for.
        expected: PathBuf,
    },
    /// Two masks that belong to one image.
    #[error("two masks for {image}: {first} and {second}; keep one", image = .image.display(), first = .first.display(), second = .second.display())]
    TwoMasks {
        /// The image, without its extension.
        image: PathBuf,
        /// One mask.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// A line of a captions file that is no caption of a listed image.
    #[error(
        "{path}:{line}: {message}; expected {{\"image\": \"train/good/000.png\", \"caption\": \"...\"}}",
        path = .path.display()
    )]
    BadCaption {
        /// The captions file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        message: String,
    },
    /// A name that cannot be an id.
    #[error("{path}: the name is not UTF-8; rename it", path = .0.display())]
    NotUtf8(PathBuf),
    /// A file or folder that cannot be read, such as a broken symbolic link.
    #[error("cannot read {path}: {source}", path = .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}
