//! The contract of a captioner.

use std::fmt::Debug;

use arrow::datatypes::SchemaRef;
use garde::Validate;
use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    engine::{
        Result,
        stage::{Column, Context, Misfit, Operator, Sample},
        store::Note,
    },
    tables::captions,
};

/// A source of captions: a struct of the parameters that people write beside `model:`.
///
/// Its documentation becomes that of the captioner in `schemas/`. It keeps to the rules for a stage, since it is the
/// greater part of one: all answers but that of [`open`](Self::open) are cheap, use no device and no weights, and are
/// equal for equal parameters. The trait is used through generics and not as `dyn`, whose vtable would name `open` in the
/// driver.
pub trait Captioner:
    Clone + Debug + Serialize + DeserializeOwned + JsonSchema + Validate<Context = ()> + Send + Sync
{
    /// The names by which `model:` chooses the captioner.
    const NAMES: &'static [&'static str];

    /// Returns the name by which it was chosen.
    fn name(&self) -> &'static str {
        Self::NAMES[0]
    }

    /// Returns the same captioner under another of its names. A captioner with one name ignores it.
    fn named(self, _name: &'static str) -> Self {
        self
    }

    /// Returns the revision of the captioner. It is raised when the same parameters mean other captions.
    fn revision(&self) -> u32 {
        1
    }

    /// Returns the columns of the images that the captioner reads.
    fn reads(&self) -> Vec<Column>;

    /// Checks the parameters before anything runs.
    ///
    /// # Errors
    /// A [`Misfit`] with the parameter that is at fault and what would work.
    fn check(&self) -> Result<(), Misfit> {
        Ok(())
    }

    /// Returns the schema of the captions: id and caption, and for a captioner with a model
    /// [`captions::generated_schema`].
    fn output(&self) -> SchemaRef {
        captions::schema()
    }

    /// Returns the names of the parameters that are places of files, which are identified by content.
    fn locations(&self) -> &'static [&'static str] {
        &[]
    }

    /// Returns the files whose content decides the captions.
    fn files(&self) -> Result<Vec<String>, Misfit> {
        Ok(Vec::new())
    }

    /// Opens the operator that describes images.
    fn open(self, context: &Context) -> Result<Box<dyn Operator>>;

    /// Returns notes on a table of captions that was made without an error.
    fn review(&self, _table: &Sample<'_>) -> Result<Vec<Note>> {
        Ok(Vec::new())
    }
}
