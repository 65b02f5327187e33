//! COCO-AD: four splits that follow from the annotations of COCO 2017 (Zhang et al. 2024, "Learning Feature Inversion for
//! Multi-class Anomaly Detection under General-purpose COCO-AD Benchmark"):
//!
//! ```text
//! ROOT/annotations/instances_train2017.json, instances_val2017.json
//! ROOT/annotations/captions_train2017.json, captions_val2017.json     (optional) captions that people wrote
//! ROOT/train2017/000000000009.jpg
//! ROOT/val2017/000000000139.jpg
//! ```
//!
//! In split `s`, the categories 20s to 20s + 19, in the order of the file, are anomalous. Images without an annotation take no
//! part. An image with an annotation of an anomalous category, crowds included, is anomalous. Normal images of `train2017` are
//! learned from, and all of `val2017` are tested with. A mask is drawn of the annotations of anomalous categories.

mod annotations;
mod run_lengths;

use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use annotations::{Annotated, Captions, read_captions, read_test, read_train};

use super::{
    paths::{below, find},
    record::{DatasetError, Fault, Files, Listing, MaskPlace, PicturePlace, Record},
};
use crate::vision::drawing::Drawing;

/// The number of splits.
const SPLITS: u8 = 4;

/// The class of all images of a split, which is judged as one; called as in the paper's table 14.
const CLASSES: [&str; SPLITS as usize] = ["split0", "split1", "split2", "split3"];

/// The images of COCO-AD that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
pub struct CocoAd {
    /// The split: of the 80 categories, 20 `split` to 20 `split` + 19 are anomalous. The paper's figures are means over
    /// the four splits.
    #[garde(range(max = SPLITS - 1))]
    pub split: u8,
}

/// Half of COCO 2017.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// `train2017`.
    Train,
    /// `val2017`.
    Val,
}

impl Half {
    /// Returns the name of its folder.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Train => "train2017",
            Self::Val => "val2017",
        }
    }

    /// Returns the path of its annotations below the root.
    pub fn instances(self) -> String {
        format!("annotations/instances_{}.json", self.folder())
    }

    /// Returns the path of its captions below the root.
    pub fn captions(self) -> String {
        format!("annotations/captions_{}.json", self.folder())
    }
}

/// Refuses a root that is not COCO 2017.
///
/// # Errors
/// [`DatasetError::NotPublished`].
pub fn check(files: &Files<'_>) -> Result<(), DatasetError> {
    for half in [Half::Train, Half::Val] {
        let has_pictures = !below(files.paths, &format!("{}/", half.folder())).is_empty();
        if find(files.paths, &half.instances()).is_none() || !has_pictures {
            return Err(DatasetError::NotPublished {
                root: files.place(""),
                dataset: "COCO 2017",
                expected: format!("{} and {}/*.jpg in it", half.instances(), half.folder()),
            });
        }
    }
    Ok(())
}

/// A half of COCO as its annotations describe it.
#[derive(Clone, Copy, Debug)]
pub struct Described<'d> {
    /// The annotated images.
    pub images: &'d [Annotated],
    /// Captions; empty if there are none.
    pub captions: &'d Captions,
}

/// Lists the images of a split, sorted by `image_id`.
pub fn list<'a>(files: &Files<'a>, CocoAd { split }: CocoAd, train: Described<'_>, test: Described<'_>) -> Listing<'a> {
    let mut listing = Listing { records: Vec::new(), left_out: Vec::new(), faults: Vec::new() };
    let class = CLASSES[usize::from(split) % CLASSES.len()];
    for (half, described) in [(Half::Train, train), (Half::Val, test)] {
        for annotated in described.images {
            let is_anomalous = annotated.is_anomalous(split);
            if half == Half::Train && is_anomalous {
                continue;
            }
            let path = format!("{}/{}", half.folder(), annotated.file_name);
            let Some(image) = find(files.paths, &path) else {
                listing.faults.push(Fault::new(&path, Fault::MISSING));
                continue;
            };
            let drawing = || Drawing { size: annotated.size, shapes: annotated.shapes(split) };
            listing.records.push(Record {
                image_id: image,
                image: PicturePlace::file(image),
                class,
                split: if half == Half::Train { "train" } else { "test" },
                label: Some(is_anomalous),
                defect: Some(if is_anomalous { "anomalous" } else { "good" }),
                mask: is_anomalous.then(|| MaskPlace::Drawn(drawing())),
                caption: described.captions.get(&annotated.number).cloned(),
            });
        }
    }
    listing.records.sort_unstable_by_key(|record| record.image_id);
    listing
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vision::drawing::Shape;

    fn annotated(number: u64, splits: &[u8]) -> Annotated {
        let corner = |split: u8| Shape::Polygon(vec![(split.into(), 0)]);
        Annotated {
            number,
            file_name: format!("{number}.jpg"),
            size: (4, 3),
            anomalous: splits.iter().map(|split| 1_u8 << *split).sum(),
            shapes: splits.iter().map(|split| (*split, corner(*split))).collect(),
        }
    }

    #[test]
    fn normal_images_are_learned_from_and_all_others_tested() {
        let paths = ["train2017/1.jpg", "train2017/2.jpg", "val2017/3.jpg", "val2017/4.jpg"];
        let read = |_: &str| Ok(Vec::new());
        let files =
            Files { mean: "mean", root: "ROOT", name: "root", paths: &paths, hidden: &[], dead: &[], read: &read };
        let (train, test) = ([annotated(1, &[1]), annotated(2, &[0, 3])], [annotated(3, &[0, 1]), annotated(4, &[2])]);
        let (captions, none) = (Captions::from([(4, "a dog".into())]), Captions::new());
        let [train, test] =
            [(&train, &none), (&test, &captions)].map(|(images, captions)| Described { images, captions });
        let Listing { records, faults, .. } = list(&files, CocoAd { split: 0 }, train, test);
        let rows: Vec<_> = records
            .iter()
            .map(|r| (r.image_id, r.split, r.label.unwrap(), r.drawing().map(|drawing| drawing.shapes.len())))
            .collect();
        assert_eq!(
            rows,
            [
                ("train2017/1.jpg", "train", false, None),
                ("val2017/3.jpg", "test", true, Some(1)),
                ("val2017/4.jpg", "test", false, None),
            ]
        );
        assert_eq!(records[2].caption.as_deref(), Some("a dog"));
        assert_eq!(faults, []);
        let files = Files { paths: &paths[..3], ..files };
        let Listing { records, faults, .. } = list(&files, CocoAd { split: 1 }, train, test);
        assert_eq!(records.iter().map(|r| r.image_id).collect::<Vec<_>>(), ["train2017/2.jpg", "val2017/3.jpg"]);
        assert_eq!(faults, [Fault::new("val2017/4.jpg", Fault::MISSING)]);
        assert!(check(&files).unwrap_err().to_string().contains("expected annotations/instances_train2017.json and"));
    }
}
