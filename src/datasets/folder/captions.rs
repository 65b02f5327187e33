//! `CLASS/captions.jsonl`: descriptions of the images of a class.

use std::{borrow::Cow, collections::BTreeMap};

use super::{
    super::record::{DatasetError, Files},
    names::composed,
};

/// The name of the file with the captions of a class.
pub(super) const FILE: &str = "captions.jsonl";

/// The captions of a class: by image in composed form, each with its line number.
pub(super) struct Captions {
    path: String,
    by_image: BTreeMap<String, (usize, Box<str>)>,
}

#[derive(serde::Deserialize)]
struct Line {
    image: String,
    caption: Box<str>,
}

impl Captions {
    /// Reads the captions of a class, one JSON object a line. Empty lines are skipped, and without the file there are
    /// no captions. `paths` are the paths of the class, sorted, which begin with `prefix` below the root.
    pub(super) fn read(files: &Files<'_>, paths: &[&str], prefix: &str) -> Result<Self, DatasetError> {
        let path = format!("{prefix}{FILE}");
        let mut captions = Self { path: files.place(&path), by_image: BTreeMap::new() };
        if paths.binary_search(&path.as_str()).is_err() {
            return Ok(captions);
        }
        let text = (files.read)(&path).map_err(DatasetError::Unreadable)?;
        for (number, line) in (1..).zip(text.split(|byte| *byte == b'\n')) {
            if line.trim_ascii().is_empty() {
                continue;
            }
            let Line { image, caption } =
                serde_json::from_slice(line).map_err(|error| captions.bad(number, format!("bad caption ({error})")))?;
            let image = composed(&image).into_owned();
            if let Some((first, _)) = captions.by_image.insert(image.clone(), (number, caption)) {
                return Err(captions.bad(number, format!("{image:?} already has a caption in line {first}")));
            }
        }
        Ok(captions)
    }

    /// Takes the caption of an image, by its path in the class.
    pub(super) fn take(&mut self, image: &str) -> Option<Box<str>> {
        let image: Cow<'_, str> = composed(image);
        self.by_image.remove(&*image).map(|(_, caption)| caption)
    }

    /// Refuses a caption without an image, because the name of its image is most likely misspelt.
    pub(super) fn reject_unused(self) -> Result<(), DatasetError> {
        match self.by_image.iter().min_by_key(|(_, (line, _))| line) {
            Some((image, (line, _))) => Err(self.bad(*line, format!("no image {image:?} in this class"))),
            None => Ok(()),
        }
    }

    fn bad(&self, line: usize, message: String) -> DatasetError {
        DatasetError::BadCaption { path: self.path.clone(), line, message }
    }
}
