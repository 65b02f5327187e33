//! The operator of captioners that have a caption for some images and none for others.

use std::sync::Arc;

use arrow::array::{AsArray, StringArray};

use super::wording::Wording;
use crate::{
    engine::{
        Result,
        stage::{Batch, Operator, Rows, Sink},
    },
    tables::{captions::note_missing_captions, images::CLASS},
};

/// The port at which a captioner reads images.
pub(super) const IMAGES: &str = "images";

/// The reason why an image's caption is not known.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Unclear(pub(super) String);

/// A source that finds the caption of an image, or none.
pub(super) trait Lookup: Send {
    /// Returns the caption of each row. A row whose caption is [`Unclear`] fails.
    fn captions(&self, batch: &Batch) -> Result<Vec<Result<Option<String>, Unclear>>>;
}

/// Writes the captions that are found, and `default` for images that have none, which are noted.
pub(super) struct Describe<L> {
    pub(super) lookup: L,
    pub(super) default: Wording,
}

impl<L: Lookup> Operator for Describe<L> {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        while let Some(batch) = rows.next(1024)? {
            let classes = batch.column(IMAGES, CLASS)?.as_string::<i32>();
            let (mut ids, mut given, mut captions) = (Vec::new(), Vec::new(), Vec::new());
            for (row, found) in self.lookup.captions(&batch)?.into_iter().enumerate() {
                match found {
                    Ok(found) => {
                        ids.push(batch.ids[row].clone());
                        captions.push(found.clone().unwrap_or_else(|| self.default.fill(classes.value(row))));
                        given.push(found);
                    }
                    Err(unclear) => out.fail(&batch.ids[row], unclear)?,
                }
            }
            out.write_columns(vec![
                Arc::new(StringArray::from_iter_values(&ids)),
                Arc::new(StringArray::from_iter_values(captions)),
            ])?;
            note_missing_captions(out, &ids, &StringArray::from_iter(given), "`default`");
        }
        Ok(())
    }
}
