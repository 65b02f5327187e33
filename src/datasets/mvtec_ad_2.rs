//! MVTec AD 2 as it is downloaded:
//!
//! ```text
//! ROOT/CLASS/train/good/000_regular.png               normal images to learn from
//! ROOT/CLASS/validation/good/000_regular.png          normal images, for thresholds
//! ROOT/CLASS/test_public/good/000_regular.png         normal images to test with
//! ROOT/CLASS/test_public/bad/000_regular.png          anomalous images
//! ROOT/CLASS/test_public/ground_truth/bad/000_regular_mask.png      their masks
//! ROOT/CLASS/test_private/000_regular.png             images without labels
//! ROOT/CLASS/test_private_mixed/000_mixed.png         the same, in several lightings
//! ```

use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    folder::is_image,
    paths::{below, folders},
    record::{DatasetError, Files, Listing, PicturePlace, Record},
};

/// The images of MVTec AD 2 that are read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
pub struct MvtecAd2 {
    /// The test sets, all of which are in `split = 'test'`. `label` is null in those that are not public.
    #[garde(length(min = 1))]
    pub test: Vec<TestSet>,
}

impl Default for MvtecAd2 {
    fn default() -> Self {
        Self { test: vec![TestSet::Public] }
    }
}

/// A test set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TestSet {
    /// The one with labels and masks.
    Public,
    /// The one whose maps MVTec's server judges.
    Private,
    /// The same in several lightings.
    PrivateMixed,
}

/// Lists the images, sorted by `image_id`. Those of `validation` are in the split `calibration`.
///
/// # Errors
/// [`DatasetError::NotPublished`].
pub fn list<'a>(files: &Files<'a>, choice: &MvtecAd2) -> Result<Listing<'a>, DatasetError> {
    let mut listing = Listing { records: Vec::new(), left_out: Vec::new(), faults: Vec::new() };
    let is_class = |class: &&str| !below(files.paths, &format!("{class}/train/good/")).is_empty();
    for name in folders(files.paths, "").into_iter().filter(is_class) {
        let class = Class { files, name };
        class.list("train/good/", "train", Some("good"), &mut listing);
        class.list("validation/good/", "calibration", Some("good"), &mut listing);
        for test in &choice.test {
            let before = listing.records.len();
            let folder = match test {
                TestSet::Public => {
                    class.list("test_public/good/", "test", Some("good"), &mut listing);
                    class.list("test_public/bad/", "test", Some("bad"), &mut listing);
                    "test_public/good"
                }
                TestSet::Private => class.list("test_private/", "test", None, &mut listing),
                TestSet::PrivateMixed => class.list("test_private_mixed/", "test", None, &mut listing),
            };
            if listing.records.len() == before && listing.faults.is_empty() {
                return Err(missing(files, &format!("{name}/{}/*.png", folder.trim_end_matches('/'))));
            }
        }
    }
    if listing.records.is_empty() {
        return Err(missing(files, "CLASS/train/good/*.png"));
    }
    listing.records.sort_unstable_by_key(|record| record.image_id);
    Ok(listing)
}

fn missing(files: &Files<'_>, expected: &str) -> DatasetError {
    DatasetError::NotPublished { root: files.place(""), dataset: "MVTec AD 2", expected: format!("{expected} in it") }
}

struct Class<'f, 'a> {
    files: &'f Files<'a>,
    name: &'a str,
}

impl<'a> Class<'_, 'a> {
    /// Adds the pictures of a folder of the class, which are of one kind, and returns the folder. `None` is the kind of
    /// images without labels.
    fn list<'n>(
        &self,
        folder: &'n str,
        split: &'static str,
        kind: Option<&'a str>,
        listing: &mut Listing<'a>,
    ) -> &'n str {
        let prefix = format!("{}/{folder}", self.name);
        for image in below(self.files.paths, &prefix).iter().copied().filter(|path| is_image(path)) {
            let is_anomalous = kind.map(|kind| kind != "good");
            let mask = match is_anomalous {
                Some(true) => {
                    let stem = image[prefix.len()..].rsplit_once('.').map_or("", |(stem, _)| stem);
                    let mask = format!("{}/test_public/ground_truth/bad/{stem}_mask.png", self.name);
                    listing.annotated_mask(self.files.paths, image, true, Some(&mask))
                }
                _ => None,
            };
            listing.records.push(Record {
                image_id: image,
                image: PicturePlace::file(image),
                class: self.name,
                split,
                label: is_anomalous,
                defect: kind,
                mask,
                caption: None,
            });
        }
        folder
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datasets::Fault;

    const FILES: [&str; 9] = [
        "can/readme.txt",
        "can/test_private/000_regular.png",
        "can/test_private_mixed/000_mixed.png",
        "can/test_public/bad/000_regular.png",
        "can/test_public/good/000_regular.png",
        "can/test_public/ground_truth/bad/000_regular_mask.png",
        "can/train/good/000_regular.png",
        "can/validation/good/000_regular.png",
        "license.txt",
    ];

    fn listed<T>(paths: &[&str], test: &[TestSet], use_it: impl FnOnce(Result<Listing<'_>, DatasetError>) -> T) -> T {
        let read = |_: &str| Ok(Vec::new());
        let files = Files { mean: "mean", root: "ROOT", name: "root", paths, hidden: &[], dead: &[], read: &read };
        use_it(list(&files, &MvtecAd2 { test: test.to_vec() }))
    }

    #[test]
    fn validation_calibrates_and_private_images_have_no_label() {
        let all = [TestSet::Public, TestSet::Private, TestSet::PrivateMixed];
        listed(&FILES, &all, |listing| {
            let Listing { records, faults, .. } = listing.unwrap();
            let rows: Vec<_> = records
                .iter()
                .map(|r| (r.image_id, r.class, r.split, r.label, r.mask_picture().map(|mask| mask.path)))
                .collect();
            assert_eq!(
                rows,
                [
                    (FILES[1], "can", "test", None, None),
                    (FILES[2], "can", "test", None, None),
                    (FILES[3], "can", "test", Some(true), Some(FILES[5])),
                    (FILES[4], "can", "test", Some(false), None),
                    (FILES[6], "can", "train", Some(false), None),
                    (FILES[7], "can", "calibration", Some(false), None),
                ]
            );
            assert_eq!(faults, []);
        });
        let public = listed(&FILES, &[TestSet::Public], |listing| listing.unwrap().records.len());
        assert_eq!(public, 4);
    }

    #[test]
    fn what_is_missing_is_told() {
        let without = |left_out: &str| FILES.into_iter().filter(|path| *path != left_out).collect::<Vec<_>>();
        let faults = listed(&without(FILES[5]), &[TestSet::Public], |listing| listing.unwrap().faults);
        assert_eq!(faults, [Fault::new(FILES[5], Fault::MISSING)]);
        let told = |paths: &[&str]| listed(paths, &[TestSet::Private], |listing| listing.unwrap_err().to_string());
        assert_eq!(
            told(&without(FILES[1])),
            "ROOT is not MVTec AD 2 as published: expected can/test_private/*.png in it"
        );
        assert_eq!(told(&FILES[..1]), "ROOT is not MVTec AD 2 as published: expected CLASS/train/good/*.png in it");
    }
}
