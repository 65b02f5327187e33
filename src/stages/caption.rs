//! Images -> descriptions.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, AsArray, RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::column;
use crate::engine::{
    Result,
    stage::{Context, Open, Operator, Output, Port, Ports, Schemas, Stage},
    task::{Rows, Sink},
};

/// Describes each image in words.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
pub struct Caption {
    /// What writes the captions.
    #[garde(skip)]
    pub model: Model,
    /// The caption of an image that has none; `{class}` stands for the image's class.
    #[garde(skip)]
    #[serde(default)]
    pub default: String,
}

/// A source of captions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Model {
    /// The captions that come with the images: a generator's, or CLASS/captions.jsonl of a folder.
    Dataset,
}

impl Stage for Caption {
    const NAME: &'static str = "caption";
    const REVISION: u32 = 1;
    const PORTS: Ports = Ports::Named(&[Port::rows("images", &["caption", "class"])]);
    const OUTPUT: &'static [Output] = &[Output::RowPerRow];

    fn output(&self, _: &Schemas) -> Result<SchemaRef, String> {
        Ok(Arc::new(Schema::new(vec![column::image_id(), Field::new("caption", DataType::Utf8, false)])))
    }
}

impl Open for Caption {
    fn open(self, context: &Context) -> Result<Box<dyn Operator>> {
        Ok(Box::new(FromDataset { default: self.default, output: context.output.clone() }))
    }
}

struct FromDataset {
    default: String,
    output: SchemaRef,
}

impl Operator for FromDataset {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        while let Some(batch) = rows.next(1024)? {
            let given = batch.column("images", "caption")?.as_string::<i32>();
            let classes = batch.column("images", "class")?.as_string::<i32>();
            let caption = given.iter().zip(classes).map(|(given, class)| match given {
                Some(caption) => caption.to_owned(),
                None => self.default.replace("{class}", class.unwrap_or_default()),
            });
            let captions: ArrayRef = Arc::new(StringArray::from_iter_values(caption));
            let ids: ArrayRef = Arc::new(StringArray::from_iter_values(&batch.ids));
            out.write(&RecordBatch::try_new(self.output.clone(), vec![ids, captions])?)?;
        }
        Ok(())
    }
}
