//! `model: file`: captions from a table in a file.

use arrow::datatypes::DataType;
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    captioner::Captioner,
    index::{By, Index},
    lookup::{Describe, Lookup, Unclear},
    rows::CaptionFile,
    wording::Wording,
};
use crate::{
    engine::{
        Result,
        source::Sources,
        stage::{Batch, Column, Context, Misfit, Operator, Sample},
        store::Note,
    },
    tables::{images::CLASS, text_rows::TextRows},
};

/// Captions from a file of JSON lines, CSV with a header, or Parquet. Rows about no image, and images without a caption,
/// are counted and noted.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
pub struct FileCaptions {
    /// The file or its URL, ending in `.jsonl`, `.ndjson`, `.csv`, `.tsv` or `.parquet`. It counts by content, not by
    /// place.
    #[garde(length(min = 1))]
    pub path: String,
    /// The column that names the image.
    #[garde(length(min = 1))]
    #[serde(default = "default_id")]
    pub id: String,
    /// The column of captions. An empty cell or `null` is no caption.
    #[garde(length(min = 1))]
    #[serde(default = "default_caption")]
    pub caption: String,
    /// The name by which rows and images are joined.
    #[garde(skip)]
    #[serde(default)]
    pub by: By,
    /// The separator between the columns of a CSV file: by default a comma, in a `.tsv` file a tab.
    #[garde(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub separator: Option<char>,
    /// The caption of an image that has none; `{class}` stands for the image's class.
    #[garde(skip)]
    #[serde(default)]
    pub default: Wording,
}

fn default_id() -> String {
    "image_id".into()
}

fn default_caption() -> String {
    "caption".into()
}

impl FileCaptions {
    fn file(&self) -> CaptionFile<'_> {
        let text = TextRows { address: &self.path, separator: self.separator };
        CaptionFile { text, id: &self.id, caption: &self.caption }
    }

    pub(super) fn index(&self, sources: &Sources) -> Result<Index> {
        Index::new(&self.path, self.by, self.file().rows(sources)?)
    }
}

impl Captioner for FileCaptions {
    const NAMES: &'static [&'static str] = &["file"];

    fn reads(&self) -> Vec<Column> {
        vec![Column::new(CLASS, DataType::Utf8)]
    }

    fn check(&self) -> Result<(), Misfit> {
        self.default.check("default")?;
        self.file().check()
    }

    fn locations(&self) -> &'static [&'static str] {
        &["path"]
    }

    fn files(&self) -> Result<Vec<String>, Misfit> {
        Ok(vec![self.path.clone()])
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

impl Lookup for Index {
    fn captions(&self, batch: &Batch) -> Result<Vec<Result<Option<String>, Unclear>>> {
        Ok(batch.ids.iter().map(|image| self.caption(image)).collect())
    }
}
