//! `model: dataset`: the captions that come with the images.

use arrow::{array::AsArray, datatypes::DataType};
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    captioner::Captioner,
    lookup::{Describe, IMAGES, Lookup, Unclear},
    wording::Wording,
};
use crate::{
    engine::{
        Result,
        stage::{Batch, Column, Context, Misfit, Operator},
    },
    tables::{
        captions::{self, CAPTION},
        images::CLASS,
    },
};

/// The captions that come with the images: a generator's, or CLASS/captions.jsonl of a folder.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
pub struct DatasetCaptions {
    /// The caption of an image that has none; `{class}` stands for the image's class.
    #[garde(skip)]
    #[serde(default)]
    pub default: Wording,
}

impl Captioner for DatasetCaptions {
    const NAMES: &'static [&'static str] = &["dataset"];

    fn reads(&self) -> Vec<Column> {
        vec![captions::caption_column(), Column::new(CLASS, DataType::Utf8)]
    }

    fn check(&self) -> Result<(), Misfit> {
        self.default.check("default")
    }

    fn open(self, _: &Context) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Describe { lookup: OfImages, default: self.default }))
    }
}

struct OfImages;

impl Lookup for OfImages {
    fn captions(&self, batch: &Batch) -> Result<Vec<Result<Option<String>, Unclear>>> {
        let given = batch.column(IMAGES, CAPTION)?.as_string::<i32>();
        Ok(given.iter().map(|caption| Ok(caption.map(str::to_owned))).collect())
    }
}
