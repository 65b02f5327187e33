//! VisA as it is downloaded, with the split for one class at a time:
//!
//! ```text
//! ROOT/split_csv/1cls.csv                     object,split,label,image,mask
//! ROOT/CLASS/Data/Images/Normal/0000.JPG      normal images
//! ROOT/CLASS/Data/Images/Anomaly/000.JPG      anomalous images
//! ROOT/CLASS/Data/Masks/Anomaly/000.png       their masks
//! ```
//!
//! The level of a pixel of a mask is the number of a kind of defect, 1 and up, so that masks look black. Every level above
//! 0 is anomalous.

use std::collections::HashSet;

use super::{
    folder::is_image,
    paths::{below, find},
    record::{DatasetError, Fault, Files, LeftOut, Listing, PicturePlace, Record},
};

/// The places of the table of splits, which some copy into the root.
const SPLITS: [&str; 2] = ["split_csv/1cls.csv", "1cls.csv"];
const HEADER: &str = "object,split,label,image,mask";
const CLASSES: [&str; 12] = [
    "candle",
    "capsules",
    "cashew",
    "chewinggum",
    "fryum",
    "macaroni1",
    "macaroni2",
    "pcb1",
    "pcb2",
    "pcb3",
    "pcb4",
    "pipe_fryum",
];

const ABSENT: &str = "classes of VisA without a folder here are left out";
const UNLISTED: &str = "photographs that 1cls.csv does not name are not read";

/// Lists the images of the table of splits, sorted by `image_id`.
///
/// # Errors
/// [`DatasetError::NotPublished`] and [`DatasetError::BadRow`].
pub fn list<'a>(files: &Files<'a>) -> Result<Listing<'a>, DatasetError> {
    let missing = || DatasetError::NotPublished {
        root: files.place(""),
        dataset: "VisA",
        expected: format!("{} and CLASS/Data/Images/Normal/*.JPG in it", SPLITS[0]),
    };
    let table = SPLITS.iter().find_map(|path| find(files.paths, path)).ok_or_else(missing)?;
    let bytes = (files.read)(table).map_err(DatasetError::Unreadable)?;
    let text = String::from_utf8_lossy(&bytes);
    let absent: Vec<&str> =
        CLASSES.into_iter().filter(|class| below(files.paths, &format!("{class}/")).is_empty()).collect();
    let mut listing = Listing { records: Vec::new(), left_out: Vec::new(), faults: Vec::new() };
    for (number, line) in (1..).zip(text.trim_start_matches('\u{feff}').lines().map(str::trim_end)) {
        let bad =
            |message: String| DatasetError::BadRow { place: format!("{}: line {number}", files.place(table)), message };
        if number == 1 && line != HEADER {
            return Err(bad(format!("the columns are `{line}`, not `{HEADER}`")));
        } else if number > 1 && !line.is_empty() {
            let row = Row::read(line).map_err(bad)?;
            if !absent.contains(&row.class) {
                row.list(files.paths, &mut listing);
            }
        }
    }
    let Listing { records, left_out, faults } = &mut listing;
    if records.is_empty() && faults.is_empty() {
        return Err(missing());
    }
    records.sort_unstable_by_key(|record| record.image_id);
    let read: HashSet<&str> = records.iter().map(|record| record.image_id).collect();
    let is_unlisted = |path: &&str| path.contains("/Data/Images/") && is_image(path) && !read.contains(path);
    let unlisted: Vec<&str> = files.paths.iter().copied().filter(is_unlisted).collect();
    let groups = [(ABSENT, absent), (UNLISTED, unlisted)].into_iter().filter(|(_, names)| !names.is_empty());
    left_out.extend(groups.map(|(what, names)| LeftOut { what, names }));
    Ok(listing)
}

/// A row of the table of splits.
struct Row<'t> {
    class: &'t str,
    split: &'static str,
    is_anomalous: bool,
    image: &'t str,
    mask: Option<&'t str>,
}

impl<'t> Row<'t> {
    fn read(line: &'t str) -> Result<Self, String> {
        let cells: Vec<&str> = line.split(',').collect();
        let [class, split, label, image, mask] = cells[..] else {
            return Err(format!("it has {} cells and not the 5 of {HEADER}", cells.len()));
        };
        let (split, is_anomalous) = match (split, label) {
            ("train", "normal") => ("train", false),
            ("test", "normal") => ("test", false),
            ("test", "anomaly") => ("test", true),
            _ => {
                return Err(format!(
                    "`{label}` in `{split}`: an image is normal in train, and normal or anomaly in test"
                ));
            }
        };
        if image.split('/').next() != Some(class) {
            return Err(format!("{image} does not lie in the folder of its class `{class}`"));
        }
        Ok(Self { class, split, is_anomalous, image, mask: Some(mask).filter(|mask| !mask.is_empty()) })
    }

    /// Adds the image to a listing.
    fn list<'a>(&self, paths: &[&'a str], listing: &mut Listing<'a>) {
        let Some(image) = find(paths, self.image) else {
            listing.faults.push(Fault::new(self.image, Fault::MISSING));
            return;
        };
        let mask = listing.annotated_mask(paths, image, self.is_anomalous, self.mask);
        listing.records.push(Record {
            image_id: image,
            image: PicturePlace::file(image),
            class: &image[..self.class.len()],
            split: self.split,
            label: Some(self.is_anomalous),
            defect: Some(if self.is_anomalous { "anomalous" } else { "good" }),
            mask,
            caption: None,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: [&str; 5] = [
        "candle/Data/Images/Anomaly/000.JPG",
        "candle/Data/Images/Normal/0000.JPG",
        "candle/Data/Images/Normal/0001.JPG",
        "candle/Data/Masks/Anomaly/000.png",
        "split_csv/1cls.csv",
    ];

    /// Lists these files, with rows of the table of splits below its header.
    fn listed<T>(paths: &[&str], rows: &str, use_it: impl FnOnce(Result<Listing<'_>, DatasetError>) -> T) -> T {
        let read = |_: &str| Ok(format!("{HEADER}\r\n{rows}").into_bytes());
        use_it(list(&Files { mean: "mean", root: "ROOT/", name: "root", paths, hidden: &[], dead: &[], read: &read }))
    }

    const ROWS: &str = "candle,train,normal,candle/Data/Images/Normal/0000.JPG,\r\n\
        candle,test,normal,candle/Data/Images/Normal/0001.JPG,\r\n\
        candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png\r\n\
        pcb4,train,normal,pcb4/Data/Images/Normal/0000.JPG,\r\n";

    #[test]
    fn table_of_splits_says_what_images_are() {
        listed(&FILES, ROWS, |listing| {
            let Listing { records, left_out, faults } = listing.unwrap();
            let rows: Vec<_> = records
                .iter()
                .map(|r| (r.image_id, r.class, r.split, r.label.unwrap(), r.mask_picture().map(|mask| mask.path)))
                .collect();
            assert_eq!(
                rows,
                [
                    (FILES[0], "candle", "test", true, Some(FILES[3])),
                    (FILES[1], "candle", "train", false, None),
                    (FILES[2], "candle", "test", false, None),
                ]
            );
            let [LeftOut { what: ABSENT, names }] = &left_out[..] else { panic!("{left_out:?}") };
            assert_eq!((names.len(), names.contains(&"pcb4"), faults), (11, true, vec![]));
        });
    }

    #[test]
    fn contradictions_are_all_collected() {
        let rows = "candle,train,normal,candle/Data/Images/Normal/0000.JPG,candle/Data/Masks/Anomaly/000.png\n\
            candle,test,normal,candle/Data/Images/Normal/0002.JPG,\n\
            candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/001.png\n\
            candle,test,anomaly,candle/Data/Images/Normal/0001.JPG,\n";
        listed(&FILES, rows, |listing| {
            let faults = listing.unwrap().faults;
            assert_eq!(
                faults,
                [
                    Fault::new("candle/Data/Images/Normal/0000.JPG", Fault::MASKED),
                    Fault::new("candle/Data/Images/Normal/0002.JPG", Fault::MISSING),
                    Fault::new("candle/Data/Masks/Anomaly/001.png", Fault::MISSING),
                    Fault::new("candle/Data/Images/Normal/0001.JPG", Fault::UNMASKED),
                ]
            );
        });
        let unlisted = "candle,train,normal,candle/Data/Images/Normal/0000.JPG,\n";
        listed(&FILES, unlisted, |listing| {
            let left_out = listing.unwrap().left_out;
            assert_eq!(left_out[1], LeftOut { what: UNLISTED, names: vec![FILES[0], FILES[2]] });
        });
    }

    #[test]
    fn what_is_not_visa_is_refused() {
        let told = |paths: &[&str], rows: &str| listed(paths, rows, |listing| listing.unwrap_err().to_string());
        let expected =
            "ROOT is not VisA as published: expected split_csv/1cls.csv and CLASS/Data/Images/Normal/*.JPG in it";
        assert_eq!(told(&FILES[..4], ROWS), expected);
        assert_eq!(told(&FILES[4..], ROWS), expected);
        assert_eq!(
            told(&FILES, "candle,train,anomaly,candle/Data/Images/Anomaly/000.JPG,\n"),
            "ROOT/split_csv/1cls.csv: line 2: `anomaly` in `train`: an image is normal in train, and normal or anomaly in test"
        );
        assert!(
            told(&FILES, "candle,train\n").ends_with("it has 2 cells and not the 5 of object,split,label,image,mask")
        );
        assert!(
            told(&FILES, "pcb1,train,normal,candle/x.JPG,\n").ends_with("not lie in the folder of its class `pcb1`")
        );
    }
}
