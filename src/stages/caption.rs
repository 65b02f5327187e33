//! Images -> descriptions.

use std::sync::Arc;

use arrow::{
    array::{AsArray, StringArray},
    datatypes::{DataType, SchemaRef},
};
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    engine::{
        Result,
        stage::{
            Column, Context, ITSELF, Misfit, Open, Operator, Output, Port, Ports, Rows, Sample, Schemas, Sink, Stage,
        },
        store::Note,
    },
    tables::{
        captions::{self, CAPTION, note_missing_captions},
        images::CLASS,
    },
};

/// Describes each image in words.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
#[schemars(extend("examples" = [{ "model": "dataset" }]))]
pub struct Caption {
    /// The source of the captions.
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
    fn revision(&self) -> u32 {
        1
    }

    fn ports(&self) -> Ports {
        Ports::Named(vec![Port::rows("images", [captions::caption_column(), Column::new("class", DataType::Utf8)])])
    }

    fn makes(&self) -> Output {
        Output::RowPerRow
    }

    fn output(&self, _: &Schemas) -> Result<SchemaRef, Misfit> {
        Ok(captions::schema())
    }

    fn review(&self, table: &Sample<'_>) -> Result<Vec<Note>> {
        let rows = table.rows(LOOKED_AT, &[(ITSELF, &[CAPTION])])?;
        let captions: Vec<&str> = rows.column(ITSELF, CAPTION)?.as_string::<i32>().iter().flatten().collect();
        Ok(all_equal(&captions, table.len()).map(Note::new).into_iter().collect())
    }
}

/// The maximum number of captions that a review reads.
const LOOKED_AT: usize = 8192;

/// Returns the note on a table of `rows` rows whose captions are all equal.
fn all_equal(captions: &[&str], rows: usize) -> Option<String> {
    let (first, others) = captions.split_first()?;
    if others.is_empty() || others.iter().any(|caption| caption != first) {
        return None;
    }
    let seen = if captions.len() < rows { " that were looked at" } else { "" };
    let count = captions.len();
    let are = if first.trim().is_empty() { "empty".to_owned() } else { format!("equal: `{first}`") };
    Some(format!(
        "all {count} captions{seen} are {are}; they tell no image from another, and a model learns nothing from them"
    ))
}

impl Open for Caption {
    fn open(self, _: &Context) -> Result<Box<dyn Operator>> {
        Ok(Box::new(FromDataset { default: self.default }))
    }
}

struct FromDataset {
    default: String,
}

impl Operator for FromDataset {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        while let Some(batch) = rows.next(1024)? {
            let given = batch.column("images", CAPTION)?.as_string::<i32>();
            let classes = batch.column("images", CLASS)?.as_string::<i32>();
            let caption = given.iter().zip(classes).map(|(given, class)| match given {
                Some(caption) => caption.to_owned(),
                None => self.default.replace("{class}", class.unwrap_or_default()),
            });
            out.write_rows(&batch, vec![Arc::new(StringArray::from_iter_values(caption))])?;
            note_missing_captions(out, &batch.ids, given, "`default`");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn note_on_captions_that_are_all_equal_or_empty() {
        assert_eq!(all_equal(&["a nut", "a bolt"], 2), None);
        assert_eq!(all_equal(&["a nut"], 1), None);
        assert_eq!(all_equal(&[], 0), None);
        assert!(all_equal(&["a nut"; 3], 3).unwrap().starts_with("all 3 captions are equal: `a nut`; they tell no"));
        assert!(all_equal(&[""; 3], 9).unwrap().starts_with("all 3 captions that were looked at are empty; they"));
    }
}
