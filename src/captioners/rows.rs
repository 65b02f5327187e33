//! Captions in a table: JSON lines, CSV or Parquet with a column of images and one of captions.

use crate::{
    engine::{source::Sources, stage::Misfit},
    tables::text_rows::{TextRow, TextRows, separator_advice},
};

/// The caption of an image, as a file has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// The line or row in which it stands, for messages.
    pub(super) place: String,
    pub(super) image: String,
    /// `None` if the file names the image and has no caption for it.
    pub(super) caption: Option<String>,
}

/// A file with captions, as the parameters of the captioner `file` describe it.
pub(super) struct CaptionFile<'a> {
    /// The file.
    pub(super) text: TextRows<'a>,
    /// The column of images.
    pub(super) id: &'a str,
    /// The column of captions.
    pub(super) caption: &'a str,
}

impl CaptionFile<'_> {
    /// Checks that the file can be read and has both columns.
    pub(super) fn check(&self) -> Result<(), Misfit> {
        let names = self.text.columns(&Sources::default())?;
        [("id", self.id), ("caption", self.caption)].into_iter().try_for_each(|(parameter, column)| {
            let is_there = names.iter().any(|name| name == column);
            let message = || {
                let advice = self.text.other_separator(&Sources::default()).map(separator_advice).unwrap_or_default();
                format!("{} has no column `{column}`; it has {}{advice}", self.text.address, names.join(", "))
            };
            if is_there { Ok(()) } else { Err(Misfit::parameter(parameter, message())) }
        })
    }

    /// Reads all rows of the file, in its order.
    pub(super) fn rows(&self, sources: &Sources) -> Result<Vec<Row>, Misfit> {
        let rows = self.text.rows(sources, &[self.id, self.caption])?;
        let row = |TextRow { place, values }| {
            let mut values = values.into_iter();
            let without_id = || {
                let message = format!("cannot read {}: {place} has no `{}`", self.text.address, self.id);
                Misfit::parameter("path", message)
            };
            let image = values.next().flatten().ok_or_else(without_id)?;
            Ok(Row { place, image, caption: values.next().flatten() })
        };
        rows.into_iter().map(row).collect()
    }
}
