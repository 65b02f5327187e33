//! `model: pairs`: captions as the authors of VLMDiff publish them.

use std::path::{Path, PathBuf};

use arrow::datatypes::DataType;
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    captioner::Captioner,
    index::{By, Index},
    lookup::Describe,
    rows::Row,
    wording::Wording,
};
use crate::{
    engine::{
        Error, Result, is_url, local_path,
        source::Sources,
        stage::{Column, Context, Misfit, Operator, Sample},
        store::Note,
    },
    tables::images::CLASS,
};

/// Captions as the authors' scripts write them: `train_captions_mvtec_….json`, a list of texts, beside
/// `train_labels_mvtec_….json`, the paths of their images or COCO's numbers of them, in the same order.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
pub struct PairCaptions {
    /// A file whose name contains `captions`, or a folder, all pairs of which are read. The files count by content, not
    /// by place.
    #[garde(length(min = 1))]
    pub path: String,
    /// The name by which captions and images are joined.
    #[garde(skip)]
    #[serde(default)]
    pub by: By,
    /// The caption of an image that has none; `{class}` stands for the image's class.
    #[garde(skip)]
    #[serde(default)]
    pub default: Wording,
}

/// The part of a file's name that tells captions, and the one that tells labels.
const CAPTIONS: &str = "captions";
const LABELS: &str = "labels";

/// A file of captions and that of their labels.
struct Pair {
    captions: String,
    labels: String,
}

impl Pair {
    fn of(captions: &str) -> Option<Self> {
        let (folder, file) = captions.split_at(captions.rfind('/').map_or(0, |slash| slash + 1));
        let is_pair = file.contains(CAPTIONS) && file.ends_with(".json");
        let labels = format!("{folder}{}", file.replacen(CAPTIONS, LABELS, 1));
        is_pair.then(|| Self { captions: captions.to_owned(), labels })
    }

    fn rows(&self, sources: &Sources) -> Result<Vec<Row>> {
        let [captions, labels] = [&self.captions, &self.labels].map(|address| list(address, sources));
        let (captions, labels) = (captions?, labels?);
        if captions.len() != labels.len() {
            return Err(Error::Input(format!(
                "{} has {} captions and {} has {} labels; each caption has one label",
                self.captions,
                captions.len(),
                self.labels,
                labels.len()
            )));
        }
        let row = |(at, (caption, label)): (usize, (&Value, &Value))| {
            let wrong = |address: &str, value: &Value, expected: &str| {
                Error::Input(format!("{address}: item {} is {value}; {expected}", at + 1))
            };
            let image = image(label).ok_or_else(|| {
                wrong(&self.labels, label, "a label is the path of an image, or COCO's number of one")
            })?;
            let caption = match caption {
                Value::String(caption) => Some(caption.clone()),
                Value::Null => None,
                other => return Err(wrong(&self.captions, other, "a caption is text")),
            };
            Ok(Row { place: format!("item {} of {}", at + 1, self.labels), image, caption })
        };
        captions.iter().zip(&labels).enumerate().map(row).collect()
    }
}

fn list(address: &str, sources: &Sources) -> Result<Vec<Value>> {
    let bytes = sources.read(address)?;
    serde_json::from_slice(&bytes).map_err(|e| Error::Input(format!("{address}: {e}; it should be a list")))
}

/// Returns the image of a label. COCO's labels are lists of one number in one of the authors' scripts.
fn image(label: &Value) -> Option<String> {
    match label {
        Value::String(image) => Some(image.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Array(only) if only.len() == 1 => image(&only[0]),
        _ => None,
    }
}

impl PairCaptions {
    /// Returns the pairs at `path`, in the order of their names.
    fn pairs(&self) -> Result<Vec<Pair>, Misfit> {
        let folder = local_path(&self.path);
        let pairs: Vec<Pair> = if is_url(&self.path) || !folder.is_dir() {
            Pair::of(&self.path).into_iter().collect()
        } else {
            let files = files_in(&folder).map_err(|e| Misfit::parameter("path", format!("{}: {e}", self.path)))?;
            files.iter().filter_map(|file| Pair::of(&file.to_string_lossy())).collect()
        };
        if pairs.is_empty() {
            let message = format!("{} is no file such as train_captions_mvtec.json, and no folder with one", self.path);
            return Err(Misfit::parameter("path", message));
        }
        let missing = |pair: &&Pair| !is_url(&pair.labels) && !local_path(&pair.labels).is_file();
        match pairs.iter().find(missing) {
            Some(Pair { captions, labels }) => {
                Err(Misfit::parameter("path", format!("beside {captions} there is no {labels} with the images")))
            }
            None => Ok(pairs),
        }
    }

    fn index(&self, sources: &Sources) -> Result<Index> {
        let rows = self.pairs()?.iter().map(|pair| pair.rows(sources)).collect::<Result<Vec<_>>>()?;
        Ok(Index::new(&self.path, self.by, rows.concat())?.with_numbers())
    }
}

/// Returns the files of a folder in the order of their names.
pub(super) fn files_in(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    files.sort();
    Ok(files)
}

impl Captioner for PairCaptions {
    const NAMES: &'static [&'static str] = &["pairs"];

    fn reads(&self) -> Vec<Column> {
        vec![Column::new(CLASS, DataType::Utf8)]
    }

    fn check(&self) -> Result<(), Misfit> {
        self.default.check("default")?;
        self.pairs().map(|_| ())
    }

    fn locations(&self) -> &'static [&'static str] {
        &["path"]
    }

    fn files(&self) -> Result<Vec<String>, Misfit> {
        Ok(self.pairs()?.into_iter().flat_map(|pair| [pair.captions, pair.labels]).collect())
    }

    fn open(self, context: &Context) -> Result<Box<dyn Operator>> {
        let lookup = self.index(&context.sources)?;
        Ok(Box::new(Describe { lookup, default: self.default }))
    }

    fn review(&self, table: &Sample<'_>) -> Result<Vec<Note>> {
        let images = table.rows(usize::MAX, &[])?.ids;
        Ok(self.index(&Sources::default())?.unused(&images).into_iter().collect())
    }
}
