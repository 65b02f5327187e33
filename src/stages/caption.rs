//! Images -> descriptions.

use arrow::{array::AsArray, datatypes::SchemaRef};
use garde::Validate;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    captioners::AnyCaptioner,
    engine::{
        Result,
        stage::{
            Context, ITSELF, Misfit, Open, OpenInDriver, Operator, Output, ParamError, Place, Port, Ports, Sample,
            Schemas, Stage,
        },
        store::Note,
    },
    tables::captions::CAPTION,
};

/// Describes each image in words, by the captioner that `model` chooses.
#[derive(Clone, Debug, Serialize, Deserialize, Validate)]
#[garde(transparent)]
pub struct Caption(#[garde(dive)] pub AnyCaptioner);

impl JsonSchema for Caption {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Caption".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = AnyCaptioner::json_schema(generator);
        schema.insert(
            "description".into(),
            "Describes each image in words, by the captioner that `model` chooses.".into(),
        );
        schema.insert("examples".into(), json!([{ "model": "dataset" }]));
        schema
    }
}

impl Stage for Caption {
    fn read(params: &Value) -> Result<Self, ParamError> {
        AnyCaptioner::read(params).map(Self)
    }

    fn revision(&self) -> u32 {
        self.0.revision()
    }

    fn ports(&self) -> Ports {
        Ports::Named(vec![Port::rows("images", self.0.reads())])
    }

    fn makes(&self) -> Output {
        Output::RowPerRow
    }

    fn output(&self, _: &Schemas) -> Result<SchemaRef, Misfit> {
        self.0.check()?;
        Ok(self.0.output())
    }

    fn place(&self) -> Place {
        self.0.place()
    }

    fn locations(&self) -> &'static [&'static str] {
        self.0.locations()
    }

    fn files(&self) -> Result<Vec<String>, Misfit> {
        self.0.files()
    }

    fn review(&self, table: &Sample<'_>) -> Result<Vec<Note>> {
        let rows = table.rows(LOOKED_AT, &[(ITSELF, &[CAPTION])])?;
        let captions: Vec<&str> = rows.column(ITSELF, CAPTION)?.as_string::<i32>().iter().flatten().collect();
        let mut notes = self.0.review(table)?;
        notes.extend(all_equal(&captions, table.len()).map(Note::new));
        Ok(notes)
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
    fn open(self, context: &Context) -> Result<Box<dyn Operator>> {
        self.0.open(context)
    }
}

impl OpenInDriver for Caption {
    fn open_in_driver(self, context: &Context) -> Result<Box<dyn Operator>> {
        self.0.open_in_driver(context)
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
