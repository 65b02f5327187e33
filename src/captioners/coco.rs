//! `model: coco`: the captions that people wrote for COCO, or others in the same format.

use std::{collections::HashMap, io::BufReader};

use arrow::datatypes::DataType;
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    captioner::Captioner,
    index::coco_number,
    lookup::{Describe, Lookup, Unclear},
    pairs::files_in,
    wording::Wording,
};
use crate::{
    engine::{
        Error, Hasher, Result, is_url, local_path,
        source::Sources,
        stage::{Batch, Column, Context, Misfit, Operator},
    },
    tables::images::CLASS,
};

/// Captions of COCO's format: `annotations`, each with `image_id` and `caption`. An image is found by the number at the end
/// of its file name.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
pub struct CocoCaptions {
    /// A file such as `captions_train2017.json`, or the folder of COCO's annotations, of which all `captions_SPLIT.json`
    /// are read. The files count by content, not by place.
    #[garde(length(min = 1))]
    pub path: String,
    /// The captions that are taken of an image that has several.
    #[garde(skip)]
    #[serde(default)]
    pub take: Take,
    /// The seed of `take: random`.
    #[garde(skip)]
    #[serde(default)]
    pub seed: u64,
    /// The caption of an image that has none; `{class}` stands for the image's class.
    #[garde(skip)]
    #[serde(default)]
    pub default: Wording,
}

/// A choice among the captions of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Take {
    /// All of them in the order of the file, joined by spaces. The authors join them without spaces.
    #[default]
    Joined,
    /// The first in the file.
    First,
    /// One, drawn from the seed and the image's id.
    Random,
    /// All of them, each on a line of its own. `encode_text` with `lines` encodes them one by one, and `train_denoiser` draws
    /// one of them in each epoch.
    Each,
}

#[derive(Deserialize)]
struct Captions {
    annotations: Vec<Annotation>,
}

#[derive(Deserialize)]
struct Annotation {
    image_id: Number,
    caption: String,
}

/// The number of an image. The authors' converter writes it as text.
#[derive(Deserialize)]
#[serde(untagged, expecting = "the number of an image")]
enum Number {
    Number(u64),
    Text(String),
}

impl CocoCaptions {
    fn paths(&self) -> Result<Vec<String>, Misfit> {
        let folder = local_path(&self.path);
        if is_url(&self.path) || !folder.is_dir() {
            return Ok(vec![self.path.clone()]);
        }
        let files = files_in(&folder).map_err(|e| Misfit::parameter("path", format!("{}: {e}", self.path)))?;
        let files: Vec<String> = files.iter().map(|file| file.to_string_lossy().into_owned()).collect();
        let of_coco: Vec<String> = files.into_iter().filter(|file| is_of_coco(file)).collect();
        if of_coco.is_empty() {
            let message = format!("{} has no file such as captions_train2017.json", self.path);
            return Err(Misfit::parameter("path", message));
        }
        Ok(of_coco)
    }

    /// Reads the captions of each image, in the order of the files.
    fn by_number(&self, sources: &Sources) -> Result<HashMap<u64, Vec<String>>> {
        let mut by_number = HashMap::<u64, Vec<String>>::new();
        for address in self.paths()? {
            let wrong = |e: String| Error::Input(format!("{address}: {e}"));
            let file = std::fs::File::open(sources.local(&address)?).map_err(|e| wrong(e.to_string()))?;
            let captions: Captions = serde_json::from_reader(BufReader::new(file))
                .map_err(|e| wrong(format!("{e}; expected COCO's captions")))?;
            for Annotation { image_id, caption } in captions.annotations {
                let number = match image_id {
                    Number::Number(number) => number,
                    Number::Text(text) => {
                        coco_number(&text).ok_or_else(|| wrong(format!("`{text}` is no number of an image")))?
                    }
                };
                by_number.entry(number).or_default().push(caption.trim().to_owned());
            }
        }
        Ok(by_number)
    }
}

/// Returns true for `captions_SPLIT.json` of COCO, such as `captions_val2017.json`; other programs put their own captions
/// beside it under longer names.
fn is_of_coco(path: &str) -> bool {
    let file = path.rsplit('/').next().unwrap_or_default();
    let split = file.strip_prefix("captions_").and_then(|file| file.strip_suffix(".json"));
    split.is_some_and(|split| split.chars().all(|character| character.is_ascii_alphanumeric()))
}

impl Captioner for CocoCaptions {
    const NAMES: &'static [&'static str] = &["coco"];

    fn reads(&self) -> Vec<Column> {
        vec![Column::new(CLASS, DataType::Utf8)]
    }

    fn check(&self) -> Result<(), Misfit> {
        self.default.check("default")?;
        if self.seed != 0 && self.take != Take::Random {
            return Err(Misfit::parameter("seed", "it belongs to `take: random`"));
        }
        self.paths().map(|_| ())
    }

    fn locations(&self) -> &'static [&'static str] {
        &["path"]
    }

    fn files(&self) -> Result<Vec<String>, Misfit> {
        self.paths()
    }

    fn open(self, context: &Context) -> Result<Box<dyn Operator>> {
        let by_number = self.by_number(&context.sources)?;
        let Self { take, seed, default, .. } = self;
        Ok(Box::new(Describe { lookup: OfPeople { by_number, take, seed }, default }))
    }
}

struct OfPeople {
    by_number: HashMap<u64, Vec<String>>,
    take: Take,
    seed: u64,
}

impl OfPeople {
    fn caption(&self, image: &str) -> Option<String> {
        let captions = coco_number(image).and_then(|number| self.by_number.get(&number))?;
        match self.take {
            Take::Joined => Some(captions.join(" ")),
            Take::First => captions.first().cloned(),
            Take::Random => captions.get(self.drawn(image, captions.len())).cloned(),
            Take::Each => {
                let lines: Vec<String> = captions.iter().map(|caption| caption.replace(['\r', '\n'], " ")).collect();
                Some(lines.join("\n"))
            }
        }
    }

    /// Draws a number below `among` that depends on the seed and the image alone.
    fn drawn(&self, image: &str, among: usize) -> usize {
        let digest = Hasher::new("caption").field(&self.seed.to_le_bytes()).field(image.as_bytes()).finish();
        let number = digest.as_bytes().iter().fold(0_u128, |number, byte| number << 8 | u128::from(*byte));
        (number % among.max(1) as u128) as usize
    }
}

impl Lookup for OfPeople {
    fn captions(&self, batch: &Batch) -> Result<Vec<Result<Option<String>, Unclear>>> {
        Ok(batch.ids.iter().map(|image| Ok(self.caption(image))).collect())
    }
}
