//! Captions by image.

use std::collections::{HashMap, HashSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{lookup::Unclear, rows::Row};
use crate::{
    datasets::folder::composed,
    engine::{Error, Result, store::Note},
};

/// The names by which a file and a table of images are joined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// The image's id. A path in the file may be longer: `/data/nut/train/good/000.png` is the image
    /// `nut/train/good/000.png`.
    #[default]
    Id,
    /// The file name alone: `a/000.png` is the image `nut/train/good/000.png`.
    FileName,
}

/// Captions by the names of images.
pub(super) struct Index {
    /// The file, for messages.
    address: String,
    by: By,
    rows: Vec<Row>,
    /// The row of each name as it stands in the file.
    whole: HashMap<String, usize>,
    /// The rows of each name without some of its first folders; `None` for a name that several rows share.
    shortened: HashMap<String, Option<usize>>,
    /// The row of each number, if numbers are names of COCO's images.
    numbers: HashMap<u64, usize>,
}

impl Index {
    /// Makes an index of the rows of a file. Two rows about one image are an error.
    pub(super) fn new(address: &str, by: By, rows: Vec<Row>) -> Result<Self> {
        let mut index = Self {
            address: address.to_owned(),
            by,
            rows: Vec::new(),
            whole: HashMap::new(),
            shortened: HashMap::new(),
            numbers: HashMap::new(),
        };
        rows.into_iter().try_for_each(|row| index.add(row))?;
        Ok(index)
    }

    /// Takes names that are numbers for COCO's: `9` is the image `coco/train/good/000000000009.jpg`.
    pub(super) fn with_numbers(mut self) -> Self {
        let number = |(at, row): (usize, &Row)| Some((row.image.parse().ok()?, at));
        self.numbers = self.rows.iter().enumerate().filter_map(number).collect();
        self
    }

    fn add(&mut self, row: Row) -> Result<()> {
        let at = self.rows.len();
        let name = name(&row.image, self.by);
        if let Some(first) = self.whole.insert(name.clone(), at) {
            return Err(Error::Input(format!(
                "{}: {} and {} both describe `{name}`; an image has one caption",
                self.address, self.rows[first].place, row.place
            )));
        }
        for (slash, _) in name.match_indices('/') {
            let of = self.shortened.entry(name[slash + 1..].to_owned());
            of.and_modify(|other| *other = None).or_insert(Some(at));
        }
        self.rows.push(row);
        Ok(())
    }

    fn row(&self, image: &str) -> Result<Option<usize>, Unclear> {
        let name = name(image, self.by);
        if let Some(at) = self.whole.get(&name) {
            return Ok(Some(*at));
        }
        match self.shortened.get(&name) {
            Some(Some(at)) => Ok(Some(*at)),
            Some(None) => Err(Unclear(format!("several rows of {} end in `{name}`", self.address))),
            None => Ok(coco_number(image).and_then(|number| self.numbers.get(&number)).copied()),
        }
    }

    /// Returns the caption of an image.
    ///
    /// # Errors
    /// [`Unclear`] if the names of several rows end in that of the image.
    pub(super) fn caption(&self, image: &str) -> Result<Option<String>, Unclear> {
        Ok(self.row(image)?.and_then(|at| self.rows[at].caption.clone()))
    }

    /// Returns a note on rows that describe none of these images.
    pub(super) fn unused(&self, images: &[String]) -> Option<Note> {
        let used: HashSet<usize> = images.iter().filter_map(|image| self.row(image).ok()?).collect();
        let unused = self.rows.iter().enumerate().filter(|(at, _)| !used.contains(at));
        let note = Note::about("rows of the file describe no image of this table", unused.map(|(_, row)| &*row.image));
        (note.count > 0).then_some(note)
    }
}

/// Returns a name in the form in which names are compared: composed Unicode, folders separated by `/`.
fn name(image: &str, by: By) -> String {
    let name = composed(image).replace('\\', "/");
    let name = name.trim_start_matches("./");
    match by {
        By::Id => name.to_owned(),
        By::FileName => name.rsplit('/').next().unwrap_or_default().to_owned(),
    }
}

/// Returns the number of an image of COCO: the digits at the end of its file name before the ending, as in
/// `COCO_train2014_000000000009.jpg`.
pub(super) fn coco_number(image: &str) -> Option<u64> {
    let file = image.rsplit('/').next()?;
    let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
    let digits = stem.len() - stem.trim_end_matches(|character: char| character.is_ascii_digit()).len();
    stem[stem.len() - digits..].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(images: &[&str]) -> Vec<Row> {
        let row = |(at, image): (usize, &&str)| Row {
            place: format!("line {}", at + 1),
            image: (*image).to_owned(),
            caption: Some(format!("caption {}", at + 1)),
        };
        images.iter().enumerate().map(row).collect()
    }

    fn found(index: &Index, image: &str) -> Option<String> {
        index.caption(image).unwrap()
    }

    #[test]
    fn id_is_found_whole_or_at_the_end_of_a_longer_path() {
        let images = ["nut/train/0.png", "/data/nut/train/1.png", ".\\data\\nut\\train\\2.png", "old/nut/train/0.png"];
        let index = Index::new("c.csv", By::Id, rows(&images)).unwrap();
        assert_eq!(found(&index, "nut/train/0.png").unwrap(), "caption 1", "a whole name comes first");
        assert_eq!(found(&index, "nut/train/1.png").unwrap(), "caption 2");
        assert_eq!(found(&index, "nut/train/2.png").unwrap(), "caption 3");
        assert_eq!(found(&index, "ut/train/1.png"), None);
        assert_eq!(found(&index, "more/nut/train/1.png"), None);
        let unused = index.unused(&["nut/train/0.png".into(), "nut/train/2.png".into()]).unwrap();
        assert_eq!((unused.count, &unused.names[1][..]), (2, "old/nut/train/0.png"));
    }

    #[test]
    fn name_that_several_rows_share_is_an_error() {
        let index = Index::new("c.csv", By::Id, rows(&["a/nut/0.png", "b/nut/0.png"])).unwrap();
        let told = index.caption("nut/0.png").unwrap_err().to_string();
        assert_eq!(told, "several rows of c.csv end in `nut/0.png`");
        let told = Index::new("c.csv", By::Id, rows(&["a", "a"])).err().unwrap().to_string();
        assert_eq!(told, "c.csv: line 1 and line 2 both describe `a`; an image has one caption");
        assert!(Index::new("c.csv", By::FileName, rows(&["a/0.png", "b/0.png"])).is_err());
    }

    #[test]
    fn file_name_and_number_of_coco_find_an_image() {
        let index = Index::new("c.csv", By::FileName, rows(&["elsewhere/0.png"])).unwrap();
        assert_eq!(found(&index, "nut/train/good/0.png").unwrap(), "caption 1");
        let index = Index::new("c.json", By::Id, rows(&["9", "25"])).unwrap();
        assert_eq!(found(&index, "coco/train/good/000000000009.jpg"), None);
        let index = index.with_numbers();
        assert_eq!(found(&index, "coco/train/good/000000000009.jpg").unwrap(), "caption 1");
        assert_eq!(coco_number("COCO_train2014_000000000025.jpg"), Some(25));
        assert_eq!(coco_number("nut.jpg"), None);
    }
}
