//! The MVTec layout, which most anomaly datasets are published in or converted to:
//!
//! ```text
//! ROOT/CLASS/train/good/000.png           normal images to learn from
//! ROOT/CLASS/test/good/000.png            normal images to test with
//! ROOT/CLASS/test/KIND/000.png            anomalous images
//! ROOT/CLASS/ground_truth/KIND/000_mask.png   (optional; 000.png is accepted too)
//! ROOT/CLASS/captions.jsonl               (optional) {"image": "train/good/000.png", "caption": "..."}
//! ```

use std::collections::{BTreeMap, HashMap, HashSet};

use super::record::{DatasetError, Files, Record};

/// File extensions that are listed, compared without case; other files are ignored.
pub const EXTENSIONS: [&str; 7] = ["png", "jpg", "jpeg", "bmp", "tif", "tiff", "webp"];

/// The folder name of normal images.
const GOOD: &str = "good";

/// Lists a dataset sorted by `image_id`. A root that itself has `train/good` is one class, named as its folder.
///
/// Other extensions are ignored. In a class without `ground_truth/KIND` the images of that kind have no mask; where it exists,
/// every image of it must have one. Masks of normal images are not read.
///
/// # Errors
/// Every [`DatasetError`]; see there.
pub fn list<'a>(files: &Files<'a>) -> Result<Vec<Record<'a>>, DatasetError> {
    let classes: Vec<(String, &str)> = if below(files.paths, "train/good/").is_empty() {
        let has = |class: &str, split: &str| !below(files.paths, &format!("{class}/{split}/")).is_empty();
        let classes = folders(files.paths, "").into_iter().filter(|class| has(class, "train") || has(class, "test"));
        classes.map(|class| (format!("{class}/"), class)).collect()
    } else {
        vec![(String::new(), files.name)]
    };
    if classes.is_empty() {
        return Err(DatasetError::NoClass(files.root.trim_end_matches('/').to_owned()));
    }
    let mut records = Vec::with_capacity(files.paths.len());
    for (prefix, name) in classes {
        let class = Class { files, paths: below(files.paths, &prefix), prefix, name };
        class.list(&mut records)?;
    }
    records.sort_unstable_by_key(|record| record.image_id);
    Ok(records)
}

/// One class; `prefix` leads from the root to it in every path.
struct Class<'f, 'a> {
    files: &'f Files<'a>,
    paths: &'a [&'a str],
    prefix: String,
    name: &'a str,
}

impl<'a> Class<'_, 'a> {
    fn list(&self, records: &mut Vec<Record<'a>>) -> Result<(), DatasetError> {
        if let Some(other) = self.folders("train").into_iter().find(|name| *name != GOOD) {
            return Err(DatasetError::UnexpectedTrainFolder(self.place(&["train", other])));
        }
        let normal = self.images("train", GOOD);
        if normal.is_empty() {
            return Err(DatasetError::NoTrainingImages(self.place(&["train", GOOD])));
        }
        self.reject_masks_without_kind()?;
        let mut captions = self.captions()?;
        let mut record = |split, kind: &'a str, image: &'a str, mask| {
            records.push(Record {
                image_id: image,
                class: self.name,
                split,
                label: kind != GOOD,
                defect: kind,
                mask,
                caption: captions.by_image.remove(&image[self.prefix.len()..]).map(|(_, caption)| caption),
            });
        };
        normal.into_iter().for_each(|image| record("train", GOOD, image, None));
        for kind in self.folders("test") {
            let images = self.images("test", kind);
            let masks = self.masks(kind, &images)?;
            images.into_iter().for_each(|image| record("test", kind, image, masks.get(stem(image)).copied()));
        }
        captions.reject_unused()
    }

    fn folders(&self, folder: &str) -> Vec<&'a str> {
        folders(self.paths, &format!("{}{folder}/", self.prefix))
    }

    /// The images in a folder, without those further below.
    fn images(&self, split: &str, kind: &str) -> Vec<&'a str> {
        let folder = format!("{}{split}/{kind}/", self.prefix);
        let shown = |path: &&&str| is_image(path) && !path[folder.len()..].contains('/');
        below(self.paths, &folder).iter().filter(shown).copied().collect()
    }

    /// The mask of each image of one kind, by the image's stem: exactly one for each, or none at all.
    fn masks(&self, kind: &str, images: &[&'a str]) -> Result<HashMap<&'a str, &'a str>, DatasetError> {
        let mut pairs = HashMap::new();
        if kind == GOOD || below(self.paths, &format!("{}ground_truth/{kind}/", self.prefix)).is_empty() {
            return Ok(pairs);
        }
        let stems: HashSet<&str> = images.iter().map(|image| stem(image)).collect();
        for mask in self.images("ground_truth", kind) {
            let bare = bare_stem(mask);
            let Some(owner) = [stem(mask), bare].into_iter().find(|stem| stems.contains(stem)) else {
                return Err(self.missing_image(mask, kind));
            };
            if let Some(first) = pairs.insert(owner, mask) {
                let [first, second] = [first, mask].map(|mask| self.files.place(mask));
                return Err(DatasetError::TwoMasks { image: self.place(&["test", kind, owner]), first, second });
            }
        }
        match images.iter().find(|image| !pairs.contains_key(stem(image))) {
            Some(image) => Err(DatasetError::MissingMask {
                image: self.files.place(image),
                expected: self.place(&["ground_truth", kind, &format!("{}_mask.png", stem(image))]),
            }),
            None => Ok(pairs),
        }
    }

    /// A folder of masks whose kind is not tested at all is most likely a misspelt name.
    fn reject_masks_without_kind(&self) -> Result<(), DatasetError> {
        let kinds = self.folders("test");
        let untested = self.folders("ground_truth").into_iter().filter(|kind| !kinds.contains(kind));
        let mask = untested.filter_map(|kind| Some((*self.images("ground_truth", kind).first()?, kind))).next();
        mask.map_or(Ok(()), |(mask, kind)| Err(self.missing_image(mask, kind)))
    }

    fn missing_image(&self, mask: &str, kind: &str) -> DatasetError {
        let expected = self.place(&["test", kind, &format!("{}.png", bare_stem(mask))]);
        DatasetError::MissingImage { mask: self.files.place(mask), expected }
    }

    /// A place in the class, for messages.
    fn place(&self, names: &[&str]) -> String {
        self.files.place(&format!("{}{}", self.prefix, names.join("/")))
    }

    /// Reads captions, one JSON object a line; empty lines are skipped and a missing file has none.
    fn captions(&self) -> Result<Captions, DatasetError> {
        #[derive(serde::Deserialize)]
        struct Line {
            image: String,
            caption: Box<str>,
        }
        let path = format!("{}captions.jsonl", self.prefix);
        let mut captions = Captions { path: self.files.place(&path), by_image: BTreeMap::new() };
        if self.paths.binary_search(&path.as_str()).is_err() {
            return Ok(captions);
        }
        let text = (self.files.read)(&path).map_err(DatasetError::Unreadable)?;
        for (number, line) in (1..).zip(text.split(|byte| *byte == b'\n')) {
            if line.trim_ascii().is_empty() {
                continue;
            }
            let Line { image, caption } =
                serde_json::from_slice(line).map_err(|error| captions.bad(number, format!("bad caption ({error})")))?;
            if let Some((first, _)) = captions.by_image.insert(image.clone(), (number, caption)) {
                return Err(captions.bad(number, format!("{image:?} already has a caption in line {first}")));
            }
        }
        Ok(captions)
    }
}

/// The captions file of a class: by image, each with its line number.
struct Captions {
    path: String,
    by_image: BTreeMap<String, (usize, Box<str>)>,
}

impl Captions {
    fn bad(&self, line: usize, message: String) -> DatasetError {
        DatasetError::BadCaption { path: self.path.clone(), line, message }
    }

    fn reject_unused(self) -> Result<(), DatasetError> {
        match self.by_image.iter().min_by_key(|(_, (line, _))| line) {
            Some((image, (line, _))) => Err(self.bad(*line, format!("no image {image:?} in this class"))),
            None => Ok(()),
        }
    }
}

impl Files<'_> {
    /// A path below the root, for messages.
    fn place(&self, path: &str) -> String {
        format!("{}/{path}", self.root.trim_end_matches('/'))
    }
}

/// The paths that begin with `prefix`, which sorting has brought together.
fn below<'p, 'a>(paths: &'p [&'a str], prefix: &str) -> &'p [&'a str] {
    let from = &paths[paths.partition_point(|path| *path < prefix)..];
    &from[..from.partition_point(|path| path.starts_with(prefix))]
}

/// The names of the folders below a prefix.
fn folders<'a>(paths: &[&'a str], prefix: &str) -> Vec<&'a str> {
    let name = |path: &&'a str| path[prefix.len()..].split_once('/').map(|(name, _)| name);
    let mut names: Vec<&str> = below(paths, prefix).iter().filter_map(name).collect();
    names.dedup();
    names
}

/// The file name without its extension.
fn stem(path: &str) -> &str {
    let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
    name.rsplit_once('.').map_or(name, |(stem, _)| stem)
}

/// The stem of the image that a mask is usually of.
fn bare_stem(mask: &str) -> &str {
    stem(mask).strip_suffix("_mask").unwrap_or(stem(mask))
}

fn is_image(path: &str) -> bool {
    let extension = path.rsplit_once('.').map_or("", |(_, extension)| extension);
    EXTENSIONS.iter().any(|known| known.eq_ignore_ascii_case(extension))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lists files below ROOT, which all hold this text.
    fn with_list<T>(paths: &[&str], text: &str, use_it: impl FnOnce(Result<Vec<Record<'_>>, DatasetError>) -> T) -> T {
        let mut paths = paths.to_vec();
        paths.sort_unstable();
        let read = |_: &str| Ok(text.as_bytes().to_vec());
        use_it(list(&Files { root: "ROOT/", name: "root", paths: &paths, read: &read }))
    }

    fn failure(paths: &[&str], text: &str) -> String {
        with_list(paths, text, |listed| listed.unwrap_err().to_string())
    }

    const NUT: [&str; 6] = [
        "nut/train/good/b.PNG",
        "nut/train/good/a.jpeg",
        "nut/test/good/0.png",
        "nut/test/bent/0.png",
        "nut/test/bent/1.tif",
        "nut/test/rust/0.webp",
    ];

    #[test]
    fn lists_sorted_with_masks() {
        let masks = ["nut/ground_truth/bent/0_mask.png", "nut/ground_truth/bent/1.BMP", "nut/ground_truth/good/0.png"];
        let ignored = ["notes.txt", "nut/train/good/Thumbs.db", "nut/train/good/more/1.png", "readme/license.png"];
        with_list(&[&NUT[..], &masks, &ignored].concat(), "", |listed| {
            let listed = listed.unwrap();
            let rows: Vec<(&str, &str, bool, &str, Option<&str>)> =
                listed.iter().map(|r| (r.image_id, r.split, r.label, r.defect, r.mask)).collect();
            let expected = [
                ("nut/test/bent/0.png", "test", true, "bent", Some("nut/ground_truth/bent/0_mask.png")),
                ("nut/test/bent/1.tif", "test", true, "bent", Some("nut/ground_truth/bent/1.BMP")),
                ("nut/test/good/0.png", "test", false, "good", None),
                ("nut/test/rust/0.webp", "test", true, "rust", None),
                ("nut/train/good/a.jpeg", "train", false, "good", None),
                ("nut/train/good/b.PNG", "train", false, "good", None),
            ];
            assert_eq!(rows, expected);
            assert!(listed.iter().all(|r| r.class == "nut"));
        });
    }

    #[test]
    fn one_class_is_a_root_too() {
        let nut = NUT.map(|path| path.strip_prefix("nut/").unwrap());
        with_list(&nut, "", |listed| {
            let listed = listed.unwrap();
            assert_eq!(listed.len(), NUT.len());
            assert_eq!((listed[0].image_id, listed[0].class), ("test/bent/0.png", "root"));
        });
    }

    /// Names that begin alike lie apart although `-` sorts before `/`.
    #[test]
    fn classes_whose_names_begin_alike_are_told_apart() {
        let paths = ["a/train/good/0.png", "a-b/train/good/0.png", "a/test/c/0.png", "a/test/c-d/0.png", "a.png"];
        with_list(&paths, "", |listed| {
            let listed = listed.unwrap();
            let rows: Vec<_> = listed.iter().map(|r| (r.class, r.defect)).collect();
            assert_eq!(rows, [("a-b", "good"), ("a", "c-d"), ("a", "c"), ("a", "good")]);
        });
    }

    #[test]
    fn captions_join_by_image() {
        let captions = "{\"image\": \"train/good/a.jpeg\", \"caption\": \"a hex nut\", \"model\": \"x\"}\r\n\n";
        let paths = [&NUT[..], &["nut/captions.jsonl"]].concat();
        with_list(&paths, captions, |listed| {
            let captioned: Vec<_> =
                listed.unwrap().into_iter().filter_map(|r| Some((r.image_id, r.caption?))).collect();
            assert_eq!(captioned, [("nut/train/good/a.jpeg", "a hex nut".into())]);
        });
        let wrong = |text: &str, starts: &str| {
            let message = failure(&paths, text);
            assert!(message.starts_with(starts), "{message}");
        };
        wrong(&format!("{captions}{{\"image\": 3}}"), "ROOT/nut/captions.jsonl:3: bad caption (invalid type");
        wrong(
            &captions.replace("a.jpeg", "z.png"),
            "ROOT/nut/captions.jsonl:1: no image \"train/good/z.png\" in this class",
        );
        wrong(&captions.repeat(2), "ROOT/nut/captions.jsonl:3: \"train/good/a.jpeg\" already has a caption in line 1");
    }

    #[test]
    fn errors_name_the_layout_that_would_work() {
        assert_eq!(
            failure(&["pictures/a.png"], ""),
            "no class in ROOT: expected ROOT/CLASS/train/good/*.png and ROOT/CLASS/test/KIND/*.png, \
             or a folder that is itself one class"
        );
        assert_eq!(
            failure(&["nut/test/bent/0.png"], ""),
            "no training images in ROOT/nut/train/good: expected normal images there (png jpg jpeg bmp tif tiff webp)"
        );
        assert_eq!(
            failure(&["nut/train/good/0.png", "nut/train/bad/0.png"], ""),
            "ROOT/nut/train/bad: training images are all normal and belong in train/good, anomalous ones in test/KIND"
        );
    }

    #[test]
    fn masks_and_images_belong_together() {
        let with = |files: &[&str]| failure(&[&NUT, files].concat(), "");
        let both = ["nut/ground_truth/bent/0_mask.png", "nut/ground_truth/bent/1_mask.png"];
        assert_eq!(
            with(&both[..1]),
            "no mask for ROOT/nut/test/bent/1.tif: expected ROOT/nut/ground_truth/bent/1_mask.png \
             (any image extension, _mask may be left out)"
        );
        assert_eq!(
            with(&[both[0], both[1], "nut/ground_truth/bent/7_mask.png"]),
            "no image for mask ROOT/nut/ground_truth/bent/7_mask.png: expected ROOT/nut/test/bent/7.png (any image extension)"
        );
        assert_eq!(
            with(&["nut/ground_truth/brnt/0_mask.png"]),
            "no image for mask ROOT/nut/ground_truth/brnt/0_mask.png: expected ROOT/nut/test/brnt/0.png (any image extension)"
        );
        assert_eq!(
            with(&[both[0], both[1], "nut/ground_truth/bent/1.png"]),
            "two masks for ROOT/nut/test/bent/1: ROOT/nut/ground_truth/bent/1.png and \
             ROOT/nut/ground_truth/bent/1_mask.png; keep one"
        );
    }
}
