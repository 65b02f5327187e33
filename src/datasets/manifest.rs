//! Manifests: tables with a row per image, as people and programs write them.

use std::collections::HashMap;

use super::record::{DatasetError, LeftOut, Listing, MaskPlace, PicturePlace, Record};

const OF_NORMAL: &str = "masks of normal images are not read: a normal image has no anomalous pixel";

/// Labels of normal images, in lower case.
const NORMAL: [&str; 5] = ["normal", "good", "ok", "false", "0"];
/// Labels of anomalous images, in lower case.
const ANOMALOUS: [&str; 9] = ["anomalous", "anomaly", "abnormal", "bad", "defect", "defective", "nok", "true", "1"];
/// The splits, of which the images of all but the last are normal.
const SPLITS: [&str; 3] = ["train", "calibration", "test"];

/// A row of a manifest, as it is written. A value that is not there is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ManifestRow {
    /// The manifest and the row or line, for messages.
    pub place: String,
    /// The name that identifies the image.
    pub id: String,
    /// The file with the encoded image, by its path below the root.
    pub path: String,
    /// The row of that file with the encoded image, if it is a Parquet file.
    pub row: Option<u32>,
    /// The class.
    pub class: Option<String>,
    /// The split.
    pub split: Option<String>,
    /// The label in words or as a number.
    pub label: Option<String>,
    /// The kind of defect.
    pub defect: Option<String>,
    /// The file with the mask, by its path below the root.
    pub mask: Option<String>,
    /// The row of that file with the encoded mask, if it is a Parquet file.
    pub mask_row: Option<u32>,
    /// The caption.
    pub caption: Option<String>,
}

/// Lists the images of a manifest, sorted by `image_id`. A row without a class is of the class `class`; `mean` is the
/// name that no class may have.
///
/// An image without split and label is unlabelled and in `test`. Without a split, normal images are in `train` and
/// anomalous ones in `test`; without a label, images of `train` and `calibration` are normal, as all are there.
///
/// # Errors
/// [`DatasetError::BadRow`].
pub fn list<'a>(rows: &'a [ManifestRow], class: &'a str, mean: &str) -> Result<Listing<'a>, DatasetError> {
    let mut first: HashMap<&str, &str> = HashMap::new();
    let (mut records, mut of_normal) = (Vec::with_capacity(rows.len()), Vec::new());
    for row in rows {
        let record = row.record(class, mean).map_err(|message| row.bad(message))?;
        if let Some(other) = first.insert(&row.id, &row.place) {
            return Err(row.bad(format!("`{}` stands in {other} too; an image has one row", row.id)));
        }
        if row.mask.is_some() && record.mask.is_none() {
            of_normal.push(record.image_id);
        }
        records.push(record);
    }
    records.sort_unstable_by_key(|record| record.image_id);
    let left_out = if of_normal.is_empty() { vec![] } else { vec![LeftOut { what: OF_NORMAL, names: of_normal }] };
    Ok(Listing { records, left_out, faults: Vec::new() })
}

impl ManifestRow {
    fn bad(&self, message: String) -> DatasetError {
        DatasetError::BadRow { place: self.place.clone(), message }
    }

    fn record<'a>(&'a self, class: &'a str, mean: &str) -> Result<Record<'a>, String> {
        let class = self.class.as_deref().unwrap_or(class);
        if class == mean {
            return Err(format!("a class `{mean}` would be taken for the mean over classes; give it another name"));
        }
        let split = self.split()?;
        let (label, defect) = match (self.label()?, split) {
            (None, Some("train" | "calibration")) => (Some(false), Some("good")),
            (Some((true, _)), Some(split @ ("train" | "calibration"))) => {
                return Err(format!(
                    "an anomalous image in `{split}`, whose images are all normal; it belongs in `test`"
                ));
            }
            (label, _) => (label.map(|(is_bad, _)| is_bad), label.map(|(_, defect)| defect)),
        };
        if label.is_none() && self.mask.is_some() {
            return Err("a mask and no label: write the label `anomalous`".into());
        }
        let mask = self.mask.as_deref().filter(|_| label == Some(true));
        Ok(Record {
            image_id: &self.id,
            image: PicturePlace { path: &self.path, row: self.row },
            class,
            split: split.unwrap_or(if label == Some(false) { "train" } else { "test" }),
            label,
            defect,
            mask: mask.map(|path| MaskPlace::Picture(PicturePlace { path, row: self.mask_row })),
            caption: self.caption.as_deref().map(Into::into),
        })
    }

    fn split(&self) -> Result<Option<&'static str>, String> {
        let Some(written) = self.split.as_deref() else { return Ok(None) };
        let known = SPLITS.into_iter().find(|split| split.eq_ignore_ascii_case(written));
        known.map(Some).ok_or_else(|| format!("there is no split `{written}`; splits are {}", SPLITS.join(", ")))
    }

    /// Returns whether the image is anomalous and its kind of defect; `None` if neither is written.
    fn label(&self) -> Result<Option<(bool, &str)>, String> {
        let is = |words: &[&str], written: &str| words.iter().any(|word| word.eq_ignore_ascii_case(written));
        let label = match self.label.as_deref() {
            None => None,
            Some(written) if is(&NORMAL, written) => Some(false),
            Some(written) if is(&ANOMALOUS, written) => Some(true),
            Some(written) => {
                return Err(format!(
                    "`{written}` is no label: of a normal image it is {}, of an anomalous one {}; kinds of defects \
                     are read from this column by `columns: {{ defect: NAME }}`",
                    NORMAL.join(", "),
                    ANOMALOUS.join(", ")
                ));
            }
        };
        match (label, self.defect.as_deref()) {
            (label, None) => Ok(label.map(|is_bad| (is_bad, if is_bad { "anomalous" } else { "good" }))),
            (label, Some(defect)) => {
                let is_bad = !is(&NORMAL, defect);
                if label.is_some_and(|label| label != is_bad) {
                    let label = if is_bad { "normal" } else { "anomalous" };
                    return Err(format!("the image is {label} and its kind of defect `{defect}`"));
                }
                Ok(Some((is_bad, if is_bad { defect } else { "good" })))
            }
        }
    }
}

/// Returns the manifests below a folder, each with the split that its place means: files of metadata of a Hugging Face
/// `imagefolder`, else the Parquet files of a data set there. `paths` are the paths below the folder.
///
/// Metadata are `metadata.csv`, `metadata.jsonl` or `metadata.parquet`, in the folder or in one for each split. Parquet
/// files have their split in front: `data/train-00000-of-00002.parquet`, `test.parquet`.
pub fn manifests<'a>(paths: impl Iterator<Item = &'a str>) -> Vec<(&'a str, Option<&'a str>)> {
    let (mut metadata, mut shards) = (Vec::new(), Vec::new());
    for path in paths {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let (stem, ending) = name.rsplit_once('.').unwrap_or((name, ""));
        if stem == "metadata" && ["csv", "jsonl", "parquet"].contains(&ending) {
            metadata.push((path, split_of(folder.split('/').next())));
        } else if ending == "parquet" && ["", "data"].contains(&folder) {
            shards.push((path, split_of(stem.split('-').next())));
        }
    }
    if metadata.is_empty() { shards } else { metadata }
}

/// Returns the split that a part of a path names, one that is not known here too.
fn split_of(part: Option<&str>) -> Option<&str> {
    part.filter(|part| SPLITS.contains(part) || *part == "validation")
}

/// Returns true for the address of a manifest, and false for that of a folder.
pub fn is_manifest(address: &str) -> bool {
    let name = address.split('?').next().unwrap_or(address).to_lowercase();
    [".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"].iter().any(|ending| name.ends_with(ending))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(change: impl FnOnce(&mut ManifestRow)) -> ManifestRow {
        let mut row = ManifestRow {
            place: "m.csv: row 1".into(),
            id: "a.png".into(),
            path: "a.png".into(),
            ..ManifestRow::default()
        };
        change(&mut row);
        row
    }

    fn text(value: &str) -> Option<String> {
        Some(value.to_owned())
    }

    fn read(row: &ManifestRow) -> (&str, &'static str, Option<bool>, Option<&str>, Option<&str>) {
        let listing = list(std::slice::from_ref(row), "root", "mean").unwrap();
        let record = &listing.records[0];
        (record.class, record.split, record.label, record.defect, record.mask_picture().map(|mask| mask.path))
    }

    #[test]
    fn split_and_label_complete_each_other() {
        let of = |split: Option<&str>, label: Option<&str>, defect: Option<&str>| {
            let row = row(|row| {
                (row.split, row.label, row.defect) =
                    (split.and_then(text), label.and_then(text), defect.and_then(text));
            });
            let (_, split, label, defect, _) = read(&row);
            (split, label, defect.map(str::to_owned))
        };
        let good = text("good");
        assert_eq!(of(None, None, None), ("test", None, None));
        assert_eq!(of(Some("test"), None, None), ("test", None, None));
        assert_eq!(of(Some("Train"), None, None), ("train", Some(false), good.clone()));
        assert_eq!(of(Some("calibration"), Some("0"), None), ("calibration", Some(false), good.clone()));
        assert_eq!(of(None, Some("Normal"), None), ("train", Some(false), good.clone()));
        assert_eq!(of(Some("test"), Some("ok"), Some("good")), ("test", Some(false), good));
        assert_eq!(of(None, Some("1"), None), ("test", Some(true), text("anomalous")));
        assert_eq!(of(None, None, Some("scratch")), ("test", Some(true), text("scratch")));
        assert_eq!(of(None, Some("bad"), Some("scratch")), ("test", Some(true), text("scratch")));
    }

    #[test]
    fn masks_of_anomalous_images_are_read() {
        let anomalous = row(|row| (row.label, row.mask, row.class) = (text("1"), text("m.png"), text("nut")));
        assert_eq!(read(&anomalous), ("nut", "test", Some(true), Some("anomalous"), Some("m.png")));
        let normal = row(|row| (row.label, row.mask) = (text("0"), text("m.png")));
        assert_eq!(read(&normal), ("root", "train", Some(false), Some("good"), None));
        let left_out = list(std::slice::from_ref(&normal), "root", "mean").unwrap().left_out;
        assert_eq!(left_out, [LeftOut { what: OF_NORMAL, names: vec!["a.png"] }]);
    }

    #[test]
    fn contradictions_are_refused_with_their_row() {
        let told = |change: fn(&mut ManifestRow)| {
            let message = list(&[row(change)], "root", "mean").unwrap_err().to_string();
            message.strip_prefix("m.csv: row 1: ").unwrap().to_owned()
        };
        assert_eq!(
            told(|row| row.split = text("validation")),
            "there is no split `validation`; splits are train, calibration, test"
        );
        assert!(
            told(|row| row.label = text("gut")).starts_with("`gut` is no label: of a normal image it is normal, good")
        );
        assert!(
            told(|row| (row.split, row.label) = (text("train"), text("bad"))).contains("anomalous image in `train`")
        );
        assert!(told(|row| (row.label, row.defect) = (text("ok"), text("hole"))).contains("is normal and its kind"));
        assert!(told(|row| (row.label, row.defect) = (text("1"), text("good"))).contains("is anomalous and its kind"));
        assert!(told(|row| row.mask = text("m.png")).starts_with("a mask and no label"));
        assert!(told(|row| row.class = text("mean")).starts_with("a class `mean`"));
        let twice = [row(|_| {}), row(|row| row.place = "m.csv: row 2".into())];
        let message = list(&twice, "root", "mean").unwrap_err().to_string();
        assert_eq!(message, "m.csv: row 2: `a.png` stands in m.csv: row 1 too; an image has one row");
    }

    #[test]
    fn manifests_of_a_folder_are_its_metadata_or_its_parquet_files() {
        let of = |paths: &[&'static str]| manifests(paths.iter().copied());
        assert_eq!(of(&["a.png", "metadata.csv"]), [("metadata.csv", None)]);
        assert_eq!(
            of(&["test/metadata.jsonl", "train/a/metadata.csv", "x.parquet"]),
            [("test/metadata.jsonl", Some("test")), ("train/a/metadata.csv", Some("train"))]
        );
        assert_eq!(
            of(&["data/train-00000-of-00002.parquet", "data/validation.parquet", "parts.parquet", "x/y.parquet"]),
            [
                ("data/train-00000-of-00002.parquet", Some("train")),
                ("data/validation.parquet", Some("validation")),
                ("parts.parquet", None)
            ]
        );
        assert!(
            is_manifest("a/photographs.CSV") && is_manifest("https://host/p.parquet?x=1") && !is_manifest("a.csv/b")
        );
    }
}
