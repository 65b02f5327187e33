//! `model: template`: a text per class.

use std::collections::BTreeMap;

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
    tables::images::CLASS,
};

/// A text, the same for all images or for all images of a class.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
pub struct TemplateCaptions {
    /// The caption; `{class}` stands for the image's class.
    #[garde(skip)]
    pub text: Wording,
    /// The captions of single classes, in place of `text`.
    #[garde(skip)]
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub classes: BTreeMap<String, Wording>,
}

impl TemplateCaptions {
    fn caption(&self, class: &str) -> String {
        self.classes.get(class).unwrap_or(&self.text).fill(class)
    }
}

impl Captioner for TemplateCaptions {
    const NAMES: &'static [&'static str] = &["template"];

    fn reads(&self) -> Vec<Column> {
        vec![Column::new(CLASS, DataType::Utf8)]
    }

    fn check(&self) -> Result<(), Misfit> {
        self.text.check("text")?;
        self.classes.iter().try_for_each(|(class, text)| text.check(&format!("classes.{class}")))
    }

    fn open(self, _: &Context) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Describe { lookup: self, default: Wording::default() }))
    }
}

impl Lookup for TemplateCaptions {
    fn captions(&self, batch: &Batch) -> Result<Vec<Result<Option<String>, Unclear>>> {
        let classes = batch.column(IMAGES, CLASS)?.as_string::<i32>();
        Ok(classes.iter().map(|class| Ok(Some(self.caption(class.unwrap_or_default())))).collect())
    }
}
