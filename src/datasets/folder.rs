//! The MVTec layout, which most anomaly datasets are published in or converted to:
//!
//! ```text
//! ROOT/CLASS/train/good/000.png           normal images to learn from
//! ROOT/CLASS/test/good/000.png            normal images to test with
//! ROOT/CLASS/test/KIND/000.png            anomalous images
//! ROOT/CLASS/ground_truth/KIND/000_mask.png   (optional; 000.png is accepted too)
//! ROOT/CLASS/captions.jsonl               (optional) {"image": "train/good/000.png", "caption": "..."}
//! ```

use super::record::{DatasetError, Record};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

/// File extensions that are listed, compared without case; other files are ignored.
pub const EXTENSIONS: [&str; 7] = ["png", "jpg", "jpeg", "bmp", "tif", "tiff", "webp"];

/// The folder name of normal images.
const GOOD: &str = "good";

/// Lists a dataset sorted by `image_id`. A `root` that itself has `train/good` is one class, named as its folder.
///
/// Files may be symbolic links; hidden files and other extensions are ignored. In a class without
/// `ground_truth/KIND` the images of that kind have no mask; where it exists, every image of it must have one. Masks
/// of normal images are not read.
///
/// # Errors
/// Every [`DatasetError`]; see there.
pub fn list(root: &Path) -> Result<Vec<Record>, DatasetError> {
    if !root.is_dir() {
        return Err(DatasetError::NoRoot(root.into()));
    }
    let mut records = if root.join("train").join(GOOD).is_dir() {
        list_class(root, "", &own_name(root)?)?
    } else {
        let classes: Vec<Entry> = entries(root)?
            .into_iter()
            .filter(|e| e.path.join("train").is_dir() || e.path.join("test").is_dir())
            .collect();
        if classes.is_empty() {
            return Err(DatasetError::NoClass(root.into()));
        }
        let mut records = Vec::new();
        for class in classes {
            records.extend(list_class(&class.path, &format!("{}/", class.name), &class.name)?);
        }
        records
    };
    records.sort_by(|a, b| a.image_id.cmp(&b.image_id));
    Ok(records)
}

/// Lists one class; `prefix` leads from the root to it in every id.
fn list_class(folder: &Path, prefix: &str, class: &str) -> Result<Vec<Record>, DatasetError> {
    let train = folder.join("train");
    if let Some(other) = folders(&train)?.into_iter().find(|entry| entry.name != GOOD) {
        return Err(DatasetError::UnexpectedTrainFolder(other.path));
    }
    let normal = images(&train.join(GOOD))?;
    if normal.is_empty() {
        return Err(DatasetError::NoTrainingImages(train.join(GOOD)));
    }

    let mut captions = captions(&folder.join("captions.jsonl"))?;
    let mut record = |split: &str, kind: &str, image: Entry, mask| {
        let local = format!("{split}/{kind}/{}", image.name);
        Record {
            image_id: format!("{prefix}{local}"),
            class: class.into(),
            split: split.into(),
            label: kind != GOOD,
            defect: kind.into(),
            image: image.path,
            mask,
            caption: captions.by_image.remove(&local).map(|(_, caption)| caption),
        }
    };

    let mut records: Vec<Record> = normal.into_iter().map(|image| record("train", GOOD, image, None)).collect();
    let kinds = folders(&folder.join("test"))?;
    let ground_truth = folder.join("ground_truth");
    reject_masks_without_kind(&ground_truth, &kinds, &folder.join("test"))?;
    for kind in kinds {
        let images = images(&kind.path)?;
        let masks = match ground_truth.join(&kind.name) {
            masks if kind.name != GOOD && masks.is_dir() => Some(pair(&images, &kind.path, &masks)?),
            _ => None,
        };
        for image in images {
            let mask = masks.as_ref().and_then(|masks| masks.get(image.stem())).cloned();
            records.push(record("test", &kind.name, image, mask));
        }
    }
    captions.reject_unused()?;
    Ok(records)
}

/// The mask of each image of one kind, by the image's stem: exactly one for each.
fn pair(images: &[Entry], folder: &Path, masks: &Path) -> Result<HashMap<String, PathBuf>, DatasetError> {
    let stems: HashSet<&str> = images.iter().map(Entry::stem).collect();
    let mut pairs = HashMap::new();
    for mask in self::images(masks)? {
        let stem = mask.stem();
        let bare = stem.strip_suffix("_mask").unwrap_or(stem);
        let Some(owner) = [stem, bare].into_iter().find(|stem| stems.contains(stem)) else {
            let expected = folder.join(format!("{bare}.png"));
            return Err(DatasetError::MissingImage { mask: mask.path, expected });
        };
        if let Some(first) = pairs.insert(owner.to_owned(), mask.path.clone()) {
            return Err(DatasetError::TwoMasks { image: folder.join(owner), first, second: mask.path });
        }
    }
    match images.iter().find(|image| !pairs.contains_key(image.stem())) {
        Some(image) => Err(DatasetError::MissingMask {
            image: image.path.clone(),
            expected: masks.join(format!("{}_mask.png", image.stem())),
        }),
        None => Ok(pairs),
    }
}

/// A folder of masks whose kind is not tested at all is most likely a misspelt name.
fn reject_masks_without_kind(ground_truth: &Path, kinds: &[Entry], test: &Path) -> Result<(), DatasetError> {
    for masks in folders(ground_truth)? {
        if kinds.iter().any(|kind| kind.name == masks.name) {
            continue;
        }
        if let Some(mask) = images(&masks.path)?.into_iter().next() {
            let stem = mask.stem().strip_suffix("_mask").unwrap_or(mask.stem());
            let expected = test.join(&masks.name).join(format!("{stem}.png"));
            return Err(DatasetError::MissingImage { mask: mask.path, expected });
        }
    }
    Ok(())
}

/// The captions file of a class: by image, each with its line number.
struct Captions {
    path: PathBuf,
    by_image: BTreeMap<String, (usize, String)>,
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

/// Reads captions, one JSON object a line; empty lines are skipped and a missing file has none.
fn captions(path: &Path) -> Result<Captions, DatasetError> {
    #[derive(serde::Deserialize)]
    struct Line {
        image: String,
        caption: String,
    }
    let mut captions = Captions { path: path.into(), by_image: BTreeMap::new() };
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(captions),
        Err(source) => return Err(DatasetError::Io { path: path.into(), source }),
    };
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

/// One visible file or folder of a folder.
struct Entry {
    name: String,
    path: PathBuf,
    is_dir: bool,
}

impl Entry {
    fn stem(&self) -> &str {
        self.name.rsplit_once('.').map_or(&self.name, |(stem, _)| stem)
    }

    fn is_image(&self) -> bool {
        let extension = self.name.rsplit_once('.').map_or("", |(_, extension)| extension);
        !self.is_dir && EXTENSIONS.iter().any(|known| known.eq_ignore_ascii_case(extension))
    }
}

fn images(folder: &Path) -> Result<Vec<Entry>, DatasetError> {
    Ok(entries(folder)?.into_iter().filter(Entry::is_image).collect())
}

fn folders(folder: &Path) -> Result<Vec<Entry>, DatasetError> {
    Ok(entries(folder)?.into_iter().filter(|entry| entry.is_dir).collect())
}

/// What a folder shows, sorted by name; links are followed, and a missing folder is empty.
fn entries(folder: &Path) -> Result<Vec<Entry>, DatasetError> {
    let io = |path: &Path, source| DatasetError::Io { path: path.into(), source };
    let reader = match fs::read_dir(folder) {
        Ok(reader) => reader,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io(folder, error)),
    };
    let mut entries = Vec::new();
    for entry in reader {
        let entry = entry.map_err(|error| io(folder, error))?;
        let path = entry.path();
        let name = entry.file_name().into_string().map_err(|_| DatasetError::NotUtf8(path.clone()))?;
        if name.starts_with('.') {
            continue;
        }
        let is_dir = fs::metadata(&path).map_err(|error| io(&path, error))?.is_dir();
        entries.push(Entry { name, path, is_dir });
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// The name of a folder, also where the path to it is `.` or ends in `..`.
fn own_name(folder: &Path) -> Result<String, DatasetError> {
    let resolved = folder.canonicalize().map_err(|source| DatasetError::Io { path: folder.into(), source })?;
    let name = folder.file_name().or(resolved.file_name()).unwrap_or(resolved.as_os_str());
    name.to_str().map(str::to_owned).ok_or_else(|| DatasetError::NotUtf8(folder.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of empty files, since listing decodes nothing.
    fn tree(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            put(&root, file, "");
        }
        root
    }

    fn put(root: &tempfile::TempDir, file: &str, text: &str) {
        let path = root.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// What listing fails with, the temporary root replaced by ROOT.
    fn failure(root: &tempfile::TempDir) -> String {
        list(root.path()).unwrap_err().to_string().replace(root.path().to_str().unwrap(), "ROOT")
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
        let root = tree(&NUT);
        for file in ["nut/ground_truth/bent/0_mask.png", "nut/ground_truth/bent/1.BMP", "nut/ground_truth/good/0.png"] {
            put(&root, file, "");
        }
        for ignored in ["notes.txt", "nut/train/good/.hidden.png", "nut/train/good/Thumbs.db", "readme/license.png"] {
            put(&root, ignored, "");
        }
        let records = list(root.path()).unwrap();
        let rows: Vec<(&str, &str, bool, &str, Option<&Path>)> = records
            .iter()
            .map(|r| {
                let mask =
                    r.mask.as_deref().map(|mask| mask.strip_prefix(root.path().join("nut/ground_truth")).unwrap());
                (r.image_id.as_str(), r.split.as_str(), r.label, r.defect.as_str(), mask)
            })
            .collect();
        let expected = [
            ("nut/test/bent/0.png", "test", true, "bent", Some(Path::new("bent/0_mask.png"))),
            ("nut/test/bent/1.tif", "test", true, "bent", Some(Path::new("bent/1.BMP"))),
            ("nut/test/good/0.png", "test", false, "good", None),
            ("nut/test/rust/0.webp", "test", true, "rust", None),
            ("nut/train/good/a.jpeg", "train", false, "good", None),
            ("nut/train/good/b.PNG", "train", false, "good", None),
        ];
        assert_eq!(rows, expected);
        assert!(records.iter().all(|r| r.class == "nut" && r.image == root.path().join(&r.image_id)));
    }

    #[test]
    fn one_class_is_a_root_too() {
        let root = tree(&NUT);
        let records = list(&root.path().join("nut")).unwrap();
        assert_eq!(records.len(), NUT.len());
        assert_eq!((records[0].image_id.as_str(), records[0].class.as_str()), ("test/bent/0.png", "nut"));
    }

    #[test]
    #[cfg(unix)]
    fn links_are_followed_and_broken_ones_named() {
        let root = tree(&NUT);
        let link = root.path().join("nut/train/good/c.png");
        std::os::unix::fs::symlink(root.path().join(NUT[0]), &link).unwrap();
        assert_eq!(list(root.path()).unwrap().len(), NUT.len() + 1);
        fs::remove_file(root.path().join(NUT[0])).unwrap();
        assert!(failure(&root).starts_with("cannot read ROOT/nut/train/good/c.png: "));
    }

    #[test]
    fn captions_join_by_image() {
        let root = tree(&NUT);
        let captions = "{\"image\": \"train/good/a.jpeg\", \"caption\": \"a hex nut\", \"model\": \"x\"}\r\n\n";
        put(&root, "nut/captions.jsonl", captions);
        let captioned: Vec<(String, String)> =
            list(root.path()).unwrap().into_iter().filter_map(|r| Some((r.image_id, r.caption?))).collect();
        assert_eq!(captioned, [("nut/train/good/a.jpeg".into(), "a hex nut".into())]);

        put(&root, "nut/captions.jsonl", &format!("{captions}{{\"image\": 3}}"));
        assert!(
            failure(&root).starts_with("ROOT/nut/captions.jsonl:3: bad caption (invalid type"),
            "{}",
            failure(&root)
        );
        put(&root, "nut/captions.jsonl", &captions.replace("a.jpeg", "z.png"));
        assert!(failure(&root).starts_with("ROOT/nut/captions.jsonl:1: no image \"train/good/z.png\" in this class"));
        put(&root, "nut/captions.jsonl", &captions.repeat(2));
        assert!(
            failure(&root).contains(":3: \"train/good/a.jpeg\" already has a caption in line 1"),
            "{}",
            failure(&root)
        );
    }

    #[test]
    fn errors_name_the_layout_that_would_work() {
        let root = tree(&["pictures/a.png"]);
        assert_eq!(
            failure(&root),
            "no class in ROOT: expected ROOT/CLASS/train/good/*.png and ROOT/CLASS/test/KIND/*.png, \
             or a folder that is itself one class"
        );
        assert!(list(&root.path().join("x")).unwrap_err().to_string().contains("x: expected "));
        assert_eq!(
            failure(&tree(&["nut/test/bent/0.png"])),
            "no training images in ROOT/nut/train/good: expected normal images there (png jpg jpeg bmp tif tiff webp)"
        );
        assert_eq!(
            failure(&tree(&["nut/train/good/0.png", "nut/train/bad/0.png"])),
            "ROOT/nut/train/bad: training images are all normal and belong in train/good, anomalous ones in test/KIND"
        );
    }

    #[test]
    fn masks_and_images_belong_together() {
        let with = |files: &[&str]| failure(&tree(&[&NUT, files].concat()));
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
