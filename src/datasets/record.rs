//! The form in which every layout on disk is listed.

use std::error::Error;

use super::paths::find;
use crate::vision::drawing::Drawing;

/// The files of a dataset, on any kind of storage.
pub struct Files<'a> {
    /// The name of the row of means over classes in tables of metrics, which no class may have.
    pub mean: &'a str,
    /// The folder or URL, for messages.
    pub root: &'a str,
    /// The root's own name.
    pub name: &'a str,
    /// Paths below the root, sorted, with `/`.
    pub paths: &'a [&'a str],
    /// Hidden files and folders below the root, which `paths` leaves out; a folder ends in `/`.
    pub hidden: &'a [&'a str],
    /// The entries of `paths` that are links to nothing, in no order.
    pub dead: &'a [&'a str],
    /// Reads a file with information about the others, such as captions.
    pub read: &'a dyn Fn(&str) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>>,
}

impl Files<'_> {
    /// Returns a path below the root with the root, for messages.
    pub(super) fn place(&self, path: &str) -> String {
        let root = self.root.trim_end_matches('/');
        if path.is_empty() { root.to_owned() } else { format!("{root}/{path}") }
    }
}

/// One image of a dataset, before anything is decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record<'a> {
    /// The name that identifies the image: its path below the dataset's root, unless a manifest has names.
    pub image_id: &'a str,
    /// The file with the encoded image.
    pub image: PicturePlace<'a>,
    /// The product or texture that is inspected.
    pub class: &'a str,
    /// `train`, `calibration` or `test`.
    pub split: &'static str,
    /// True if the image is anomalous; None if that is not known.
    pub label: Option<bool>,
    /// The kind of defect, `good` for none; None if there is no label.
    pub defect: Option<&'a str>,
    /// The ground truth of an anomalous image; None if only its label is known.
    pub mask: Option<MaskPlace<'a>>,
    /// A caption given with the dataset.
    pub caption: Option<Box<str>>,
}

impl<'a> Record<'a> {
    /// Returns the place of an encoded mask.
    pub fn mask_picture(&self) -> Option<PicturePlace<'a>> {
        match self.mask {
            Some(MaskPlace::Picture(place)) => Some(place),
            _ => None,
        }
    }

    /// Returns the shapes of which the mask is drawn, if it is no picture.
    pub fn drawing(&self) -> Option<&Drawing> {
        match &self.mask {
            Some(MaskPlace::Drawn(drawing)) => Some(drawing),
            _ => None,
        }
    }
}

/// The place of an encoded picture, which is a file or lies in a row of a Parquet file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PicturePlace<'a> {
    /// The file's path below the root.
    pub path: &'a str,
    /// The row in a Parquet file, from 0.
    pub row: Option<u32>,
}

impl<'a> PicturePlace<'a> {
    /// Returns the place of a file.
    pub fn file(path: &'a str) -> Self {
        Self { path, row: None }
    }
}

/// The place of a ground truth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MaskPlace<'a> {
    /// An encoded picture.
    Picture(PicturePlace<'a>),
    /// Annotations, of whose shapes it is drawn.
    Drawn(Drawing),
}

impl<'a> MaskPlace<'a> {
    /// Returns the place of a file.
    pub fn file(path: &'a str) -> Self {
        Self::Picture(PicturePlace::file(path))
    }
}

/// The images of a dataset, and the files that are left out.
#[derive(Debug)]
pub struct Listing<'a> {
    /// The images, by id.
    pub records: Vec<Record<'a>>,
    /// Files that look as if they belonged to the dataset but are not read, or not as one may expect.
    pub left_out: Vec<LeftOut<'a>>,
    /// Files that are missing or contradict others. Nothing is computed of a dataset that has any.
    pub faults: Vec<Fault>,
}

impl<'a> Listing<'a> {
    /// Returns the mask that the annotations of an image name. It is a fault if they name one for a normal image or none for
    /// an anomalous one, or if it does not exist.
    pub(super) fn annotated_mask(
        &mut self,
        paths: &[&'a str],
        image: &str,
        is_anomalous: bool,
        mask: Option<&str>,
    ) -> Option<MaskPlace<'a>> {
        let fault = match (is_anomalous, mask) {
            (false, None) => return None,
            (false, Some(_)) => Fault::new(image, Fault::MASKED),
            (true, None) => Fault::new(image, Fault::UNMASKED),
            (true, Some(mask)) => match find(paths, mask) {
                Some(mask) => return Some(MaskPlace::file(mask)),
                None => Fault::new(mask, Fault::MISSING),
            },
        };
        self.faults.push(fault);
        None
    }
}

/// A file that is missing or contradicts what the dataset says about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The path of the file below the root.
    pub path: String,
    /// The reason why the file is a fault, such as that it is listed and missing.
    pub what: String,
}

impl Fault {
    /// An annotated photograph or mask that does not exist.
    pub const MISSING: &'static str = "it is listed and does not exist";
    /// An anomalous photograph for which the annotations name no mask.
    pub const UNMASKED: &'static str = "it is listed as anomalous and without a mask";
    /// A normal photograph for which the annotations name a mask.
    pub const MASKED: &'static str = "it is listed as normal and with a mask";

    /// Makes a fault.
    pub fn new(path: &str, what: &str) -> Self {
        Self { path: path.to_owned(), what: what.to_owned() }
    }
}

/// Files that are not read, for one reason.
#[derive(Debug, PartialEq, Eq)]
pub struct LeftOut<'a> {
    /// The reason: which files these are and what would have been read.
    pub what: &'static str,
    /// Their paths below the root, at least one.
    pub names: Vec<&'a str>,
}

/// A folder that is not a dataset. Each message names the path and the layout that would have worked.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// Nothing below the root looks like a class.
    #[error(
        "no class in {0}: expected {0}/CLASS/train/good/*.png and {0}/CLASS/test/KIND/*.png, or a folder that is itself one class; \
         folders with other names are given by `good`, `bad` and `unlabelled`"
    )]
    NoClass(String),
    /// A class whose normal training images are missing.
    #[error(
        "no training images in {0}: expected normal images there ({extensions})",
        extensions = crate::datasets::folder::EXTENSIONS.join(" ")
    )]
    NoTrainingImages(String),
    /// A training folder other than `good`.
    #[error("{0}: training images are all normal and belong in train/good, anomalous ones in test/KIND")]
    UnexpectedTrainFolder(String),
    /// A folder whose name differs from a reserved one by case or separators alone; it would be read as something else.
    #[error(
        "{folder} differs from `{meant}` by case, spaces or punctuation alone; rename it to `{meant}`, or to something else if it is another thing"
    )]
    AlmostReserved {
        /// The folder.
        folder: String,
        /// The reserved name.
        meant: &'static str,
    },
    /// A folder of masks below a folder of images, whose masks would count as images.
    #[error("{0} is called as a folder of masks and lies among images; masks belong in ground_truth/KIND")]
    MasksAmongImages(String),
    /// A class that could not be distinguished from the mean over classes in tables of metrics.
    #[error("{folder}: a class `{name}` would be taken for the mean over classes; rename the folder")]
    ClassCalledMean {
        /// The folder of the class.
        folder: String,
        /// The name of the row of means.
        name: String,
    },
    /// A mask that could belong to one of two images.
    #[error(
        "{mask} could be the mask of {first} and of {second}; a mask belongs to one image, so give them different names"
    )]
    AmbiguousMask {
        /// The mask.
        mask: String,
        /// The first image.
        first: String,
        /// The second image.
        second: String,
    },
    /// No picture lies in any of the folders that the parameters name.
    #[error(
        "no pictures in {root}/{names} or {root}/CLASS/{names} ({extensions}); `good`, `bad` and `unlabelled` name folders there",
        extensions = crate::datasets::folder::EXTENSIONS.join(" ")
    )]
    NoLabelledFolder {
        /// The root.
        root: String,
        /// The folders that are named.
        names: String,
    },
    /// A row of a manifest that is no image of a dataset.
    #[error("{place}: {message}")]
    BadRow {
        /// The manifest and the row or line.
        place: String,
        /// The reason, and what would work.
        message: String,
    },
    /// Two masks that belong to one image.
    #[error("two masks for {image}: {first} and {second}; keep one")]
    TwoMasks {
        /// The image, without its extension.
        image: String,
        /// One mask.
        first: String,
        /// The other.
        second: String,
    },
    /// A line of a captions file that is no caption of a listed image.
    #[error("{path}:{line}: {message}; expected {{\"image\": \"train/good/000.png\", \"caption\": \"...\"}}")]
    BadCaption {
        /// The captions file.
        path: String,
        /// The line, counted from 1.
        line: usize,
        /// The reason.
        message: String,
    },
    /// A root without the files of a published dataset.
    #[error("{root} is not {dataset} as published: expected {expected}")]
    NotPublished {
        /// The root.
        root: String,
        /// The name of the dataset.
        dataset: &'static str,
        /// Files that it has as published.
        expected: String,
    },
    /// Photographs of several sizes, of which one is not chosen.
    #[error("{root} has photographs in {}; `real_iad.photographs` names the folder that is read", .names.join(" and "))]
    SeveralSizes {
        /// The root.
        root: String,
        /// The folders.
        names: Vec<String>,
    },
    /// A file with information about the others, such as captions, that cannot be read.
    #[error(transparent)]
    Unreadable(Box<dyn Error + Send + Sync>),
}
