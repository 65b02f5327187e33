//! The check of a data set before anything is computed.

use std::{
    collections::{BTreeSet, HashSet},
    fs::File,
    io::{BufReader, Cursor},
};

use rayon::prelude::*;

use super::{Dataset, Ingest};
use crate::{
    datasets::{Fault, PicturePlace, Record, published::Stated, real_iad::Views},
    engine::{
        Result, local_path,
        source::{Sources, Tree},
        store::Note,
    },
    tables::images::{CALIBRATION, TRAIN},
    vision::{VisionError, decode},
};

const EMPTY: &str = "it is the mask of an anomalous photograph and has no anomalous pixel";
const EMPTY_DRAWING: &str = "it is anomalous, and its annotations cover no pixel";

/// A data set as it was found.
#[derive(Debug, Default)]
pub struct Checked {
    /// The numbers of its images.
    pub counts: Counts,
    /// Notes on files that are left out.
    pub notes: Vec<Note>,
    /// Files that are missing or broken, and labels, masks and pictures that contradict each other.
    pub faults: Vec<Fault>,
}

/// The numbers of images of a data set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// The classes.
    pub classes: u64,
    /// Normal training images.
    pub train: u64,
    /// Normal images for thresholds.
    pub calibration: u64,
    /// Normal test images.
    pub normal: u64,
    /// Anomalous test images.
    pub anomalous: u64,
    /// Test images without a label.
    pub unlabelled: u64,
}

impl Counts {
    fn of(records: &[Record<'_>]) -> Self {
        let classes: BTreeSet<&str> = records.iter().map(|record| record.class).collect();
        let mut counts = Self { classes: classes.len() as u64, ..Self::default() };
        for record in records {
            let count = match (record.split, record.label) {
                (TRAIN, _) => &mut counts.train,
                (CALIBRATION, _) => &mut counts.calibration,
                (_, Some(false)) => &mut counts.normal,
                (_, Some(true)) => &mut counts.anomalous,
                (_, None) => &mut counts.unlabelled,
            };
            *count += 1;
        }
        counts
    }
}

impl Ingest {
    /// Checks the files of the data set: that they exist, that photographs are pictures by their headers, and that masks have
    /// the size of their photographs. With `decode_masks` also that masks can be decoded and are not empty. A data set that
    /// is generated has no files.
    pub fn check_files(&self, sources: &Sources, decode_masks: bool) -> Result<Checked> {
        if self.dataset == Dataset::Synthetic {
            return Ok(Checked::default());
        }
        self.found(sources, |found| {
            let listing = found.listing;
            let mut faults = listing.faults;
            let known = faults.iter().map(|fault| fault.path.as_str()).collect();
            let looked = Looked { ingest: self, sources, tree: found.tree, known, decode_masks };
            let of_files: Vec<Vec<Fault>> = listing.records.par_iter().map(|record| looked.faults(record)).collect();
            faults.extend(of_files.into_iter().flatten());
            let notes =
                listing.left_out.into_iter().map(|left_out| Note::about(left_out.what, left_out.names)).collect();
            Ok(Checked { counts: Counts::of(&listing.records), notes, faults })
        })
    }

    /// Returns the numbers that the paper states for these images; `None` if it states none.
    pub fn stated(&self) -> Option<Stated> {
        match self.dataset {
            Dataset::Mvtec => Stated::of("MVTec-AD", "all"),
            Dataset::Visa => Stated::of("VisA", "all"),
            Dataset::RealIad if self.real_iad.clone().unwrap_or_default().views == Views::All => {
                Stated::of("Real-IAD", "all")
            }
            Dataset::CocoAd => Stated::of("COCO-AD", &format!("split{}", self.coco_ad?.split)),
            _ => None,
        }
    }
}

/// The files that are looked at.
struct Looked<'a> {
    ingest: &'a Ingest,
    sources: &'a Sources,
    tree: &'a Tree,
    /// The files that are known to be at fault.
    known: HashSet<&'a str>,
    decode_masks: bool,
}

type Size = (u32, u32);

impl Looked<'_> {
    /// Returns what is wrong with the files of an image.
    fn faults(&self, record: &Record<'_>) -> Vec<Fault> {
        let mut faults = Vec::new();
        let image = self.header(record.image, &mut faults);
        if let Some(drawing) = record.drawing() {
            if let Some(image) = image.filter(|image| self.differs(record, *image, drawing.size)) {
                let what = format!("it has {}, and its annotations are of {}", shown(image), shown(drawing.size));
                faults.push(Fault::new(record.image.path, &what));
            } else if drawing.mask().iter().all(|pixel| *pixel == 0) {
                faults.push(Fault::new(record.image.path, EMPTY_DRAWING));
            }
        }
        if let Some(place) = record.mask_picture().filter(|place| place.row.is_none()) {
            let mask = self.header(place, &mut faults);
            match (image, mask) {
                (Some(image), Some(mask)) if self.differs(record, image, mask) => {
                    let what = format!("it has {}, and its photograph {}", shown(mask), shown(image));
                    faults.push(Fault::new(place.path, &what));
                }
                (_, Some(_)) if self.decode_masks => faults.extend(self.mask_fault(place)),
                _ => {}
            }
        }
        faults
    }

    /// Returns the size of a picture as it is stored. A picture that cannot be read is a fault; one in a Parquet file is
    /// not looked at, nor one that is known to be at fault.
    fn header(&self, place: PicturePlace<'_>, faults: &mut Vec<Fault>) -> Option<Size> {
        if place.row.is_some() || self.known.contains(place.path) {
            return None;
        }
        let address = self.tree.address(place.path);
        let read = |address: String| -> Result<Result<decode::Header, VisionError>> {
            let path = local_path(&address);
            match path.is_file() {
                true => Ok(decode::header(BufReader::new(File::open(path)?))),
                // On a server or in an archive.
                false => Ok(decode::header(Cursor::new(self.sources.read(&address)?))),
            }
        };
        let wrong = match address.and_then(read) {
            Ok(Ok(header)) => return Some(header.size),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        faults.push(Fault::new(place.path, &wrong));
        None
    }

    /// Returns true if a mask does not fit an image of this size, neither as it is stored nor as it is turned.
    fn differs(&self, record: &Record<'_>, image: Size, mask: Size) -> bool {
        let is_turned = || {
            let bytes = self.tree.address(record.image.path).and_then(|address| self.sources.read(&address));
            bytes.is_ok_and(|bytes| decode::size(&bytes, true).is_ok_and(|size| size == mask))
        };
        image != mask && !(self.ingest.exif_orientation && (image.1, image.0) == mask && is_turned())
    }

    fn mask_fault(&self, place: PicturePlace<'_>) -> Option<Fault> {
        let bytes = self.tree.address(place.path).and_then(|address| self.sources.read(&address));
        let wrong = match bytes.map(|bytes| decode::mask(&bytes, self.ingest.exif_orientation)) {
            Ok(Ok(mask)) if mask.any.iter().all(|pixel| *pixel == 0) => EMPTY.to_owned(),
            Ok(Ok(_)) => return None,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        Some(Fault::new(place.path, &wrong))
    }
}

fn shown((width, height): Size) -> String {
    format!("{width}x{height} pixels")
}
