//! The MVTec layout, which most anomaly datasets are published in or converted to:
//!
//! ```text
//! ROOT/CLASS/train/good/000.png           normal images to learn from
//! ROOT/CLASS/test/good/000.png            normal images to test with
//! ROOT/CLASS/test/KIND/000.png            anomalous images
//! ROOT/CLASS/ground_truth/KIND/000_mask.png   (optional; 000.png is accepted too)
//! ROOT/CLASS/captions.jsonl               (optional) {"image": "train/good/000.png", "caption": "..."}
//! ```
//!
//! Images may lie in folders further below (`test/KIND/line2/000.png`), their masks then at the same place below
//! `ground_truth`.

mod captions;
mod labelled;
mod left_out;
mod masks;
mod names;

use std::collections::HashMap;

use super::{
    paths::{below, folders},
    record::{DatasetError, Fault, Files, Listing, MaskPlace, PicturePlace, Record},
};
use captions::Captions;
pub use labelled::{Labelled, list_labelled};
pub use names::{EXTENSIONS, composed, is_image};
use names::{is_almost, is_of_masks, stem};

/// The folder name of normal images.
const GOOD: &str = "good";

/// Lists a dataset sorted by `image_id`. A root that itself has `train/good` is one class, named as its folder.
///
/// In a class without `ground_truth/KIND` the images of that kind have no mask; where it exists, it is a fault if an image of it
/// has none. Masks of normal images are not read. Whatever else looks as if it belonged to the dataset is listed as
/// left out.
///
/// # Errors
/// Every [`DatasetError`]; see there.
pub fn list<'a>(files: &Files<'a>) -> Result<Listing<'a>, DatasetError> {
    let classes = classes(files)?;
    let mut records = Vec::with_capacity(files.paths.len());
    let mut faults = Vec::new();
    for (prefix, name) in &classes {
        let class = Class { files, paths: below(files.paths, prefix), prefix, name };
        class.list(&mut records, &mut faults)?;
    }
    let prefixes: Vec<String> = classes.into_iter().map(|(prefix, _)| prefix).collect();
    let left_out = left_out::left_out(files, &prefixes, &records);
    records.sort_unstable_by_key(|record| record.image_id);
    Ok(Listing { records, left_out, faults })
}

/// Returns the classes, each with the prefix that its paths have below the root.
fn classes<'a>(files: &Files<'a>) -> Result<Vec<(String, &'a str)>, DatasetError> {
    let has = |prefix: &str, split: &str| !below(files.paths, &format!("{prefix}{split}/")).is_empty();
    let mut classes = Vec::new();
    if !below(files.paths, "train/good/").is_empty() {
        classes.push((String::new(), files.name));
    } else {
        for folder in folders(files.paths, "") {
            let prefix = format!("{folder}/");
            if has(&prefix, "train") || has(&prefix, "test") {
                classes.push((prefix, folder));
                continue;
            }
            // The folder may be a class, or a part of a root that is one class, with misspelt names.
            reject_almost(files, &prefix, &["train", "test"])?;
        }
    }
    if classes.is_empty() {
        reject_almost(files, "", &["train", "test"])?;
        return Err(DatasetError::NoClass(files.root.trim_end_matches('/').to_owned()));
    }
    reject_mean(files, &classes)?;
    Ok(classes)
}

/// Refuses a class with the name of the row of means.
fn reject_mean(files: &Files<'_>, classes: &[(String, &str)]) -> Result<(), DatasetError> {
    match classes.iter().find(|(_, name)| *name == files.mean) {
        Some((prefix, name)) => Err(DatasetError::ClassCalledMean {
            folder: files.place(prefix.trim_end_matches('/')),
            name: (*name).to_owned(),
        }),
        None => Ok(()),
    }
}

/// Refuses folders of pictures below a prefix whose names differ from reserved ones by case or separators alone,
/// because they would be read as something else.
fn reject_almost(files: &Files<'_>, prefix: &str, meant: &[&'static str]) -> Result<(), DatasetError> {
    for folder in folders(files.paths, prefix) {
        let pictures = below(files.paths, &format!("{prefix}{folder}/")).iter().any(|path| is_image(path));
        if let Some(meant) = meant.iter().copied().find(|meant| pictures && is_almost(folder, meant)) {
            return Err(DatasetError::AlmostReserved { folder: files.place(&format!("{prefix}{folder}")), meant });
        }
    }
    Ok(())
}

/// One class, whose paths below the root begin with `prefix`.
struct Class<'f, 'a> {
    files: &'f Files<'a>,
    paths: &'f [&'a str],
    prefix: &'f str,
    name: &'a str,
}

impl<'a> Class<'_, 'a> {
    fn list(&self, records: &mut Vec<Record<'a>>, faults: &mut Vec<Fault>) -> Result<(), DatasetError> {
        reject_almost(self.files, self.prefix, &["train", "test", "ground_truth"])?;
        for split in ["train", "test"] {
            reject_almost(self.files, &format!("{}{split}/", self.prefix), &[GOOD, "ground_truth"])?;
        }
        if let Some(other) = self.folders("train").into_iter().find(|name| *name != GOOD) {
            return Err(DatasetError::UnexpectedTrainFolder(self.place(&["train", other])));
        }
        let normal = self.images("train", GOOD)?;
        if normal.is_empty() {
            return Err(DatasetError::NoTrainingImages(self.place(&["train", GOOD])));
        }
        faults.extend(self.masks_without_kind());
        let mut captions = Captions::read(self.files, self.paths, self.prefix)?;
        let mut record = |split, kind: &'a str, image: &'a str, mask: Option<&'a str>| {
            records.push(Record {
                image_id: image,
                image: PicturePlace::file(image),
                class: self.name,
                split,
                label: Some(kind != GOOD),
                defect: Some(kind),
                mask: mask.map(MaskPlace::file),
                caption: captions.take(&image[self.prefix.len()..]),
            });
        };
        normal.into_iter().for_each(|image| record("train", GOOD, image, None));
        for kind in self.folders("test") {
            let images = self.images("test", kind)?;
            let has_masks = kind != GOOD && self.has_ground_truth(kind);
            let masks = if has_masks { masks::pair(self, kind, &images, faults)? } else { HashMap::new() };
            images.into_iter().for_each(|image| record("test", kind, image, masks.get(image).copied()));
        }
        captions.reject_unused()
    }

    fn folders(&self, folder: &str) -> Vec<&'a str> {
        folders(self.paths, &format!("{}{folder}/", self.prefix))
    }

    /// Returns the images of a kind, also those in folders further below.
    fn images(&self, split: &str, kind: &str) -> Result<Vec<&'a str>, DatasetError> {
        let folder = format!("{}{split}/{kind}/", self.prefix);
        let images: Vec<&str> = below(self.paths, &folder).iter().copied().filter(|path| is_image(path)).collect();
        for image in &images {
            let (between, _) = image[folder.len()..].rsplit_once('/').unwrap_or_default();
            if between.split('/').any(is_of_masks) {
                let at = &image[..folder.len() + between.len()];
                return Err(DatasetError::MasksAmongImages(self.files.place(at)));
            }
        }
        Ok(images)
    }

    /// Returns the folders below `ground_truth` with the name of a kind, in any form of Unicode.
    fn folders_of_masks(&self, kind: &str) -> impl Iterator<Item = &'a str> {
        self.folders("ground_truth").into_iter().filter(move |folder| composed(folder) == composed(kind))
    }

    fn has_ground_truth(&self, kind: &str) -> bool {
        self.folders_of_masks(kind).next().is_some()
    }

    /// Returns the masks of a kind.
    fn masks_of(&self, kind: &str) -> Vec<&'a str> {
        let folders = self.folders_of_masks(kind);
        let prefixes = folders.map(|folder| format!("{}ground_truth/{folder}/", self.prefix));
        let masks = prefixes.flat_map(|prefix| below(self.paths, &prefix).iter().copied());
        masks.filter(|path| is_image(path)).collect()
    }

    /// Returns the masks of kinds without test images, whose names are most likely misspelt.
    fn masks_without_kind(&self) -> Vec<Fault> {
        let kinds: Vec<_> = self.folders("test").into_iter().map(composed).collect();
        let untested = self.folders("ground_truth").into_iter().filter(|kind| !kinds.contains(&composed(kind)));
        let masks = untested.flat_map(|kind| self.masks_of(kind).into_iter().map(move |mask| (mask, kind)));
        masks.map(|(mask, kind)| self.missing_image(mask, kind)).collect()
    }

    fn missing_image(&self, mask: &str, kind: &str) -> Fault {
        let folder = self.below_split(mask).rsplit_once('/').map_or(kind, |(folder, _)| folder);
        let expected = self.place(&["test", folder, &format!("{}.png", masks::bare(stem(mask)))]);
        Fault::new(mask, &format!("it is the mask of no image; expected {expected} (any image extension)"))
    }

    /// Returns the part of a path after `train/`, `test/` or `ground_truth/`, without the extension.
    fn below_split<'p>(&self, path: &'p str) -> &'p str {
        let within = &path[self.prefix.len()..];
        names::without_extension(within.split_once('/').map_or(within, |(_, below)| below))
    }

    /// Returns a place in the class, for messages.
    fn place(&self, names: &[&str]) -> String {
        self.files.place(&format!("{}{}", self.prefix, names.join("/")))
    }
}

#[cfg(test)]
mod tests;
