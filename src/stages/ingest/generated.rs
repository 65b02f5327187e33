//! Generated images.

use std::sync::Arc;

use arrow::{
    array::UInt32Array,
    datatypes::{DataType, Field},
};
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    hold_out::HoldOut,
    listed::{labels, listing, text},
};
use crate::{
    datasets::synthetic,
    engine::{Error, Result, stage::Listing},
    tables::images::{CLASS, DEFECT, IMAGE_ID, SPLIT},
};

/// The images that the generator makes. Each image depends only on the seed and its class, defect and number.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
pub struct Synthetic {
    /// Classes; all of them by default.
    #[garde(length(min = 1))]
    pub classes: Vec<String>,
    /// Normal training images per class.
    #[garde(range(min = 1, max = synthetic::MOST))]
    pub train: u32,
    /// Normal test images per class.
    #[garde(range(max = synthetic::MOST))]
    pub test_good: u32,
    /// Test images per class and kind of defect.
    #[garde(range(max = synthetic::MOST))]
    pub test_per_defect: u32,
    /// The seed. A different seed makes a different dataset.
    #[garde(skip)]
    pub seed: u64,
}

impl Default for Synthetic {
    fn default() -> Self {
        let classes = synthetic::CLASSES.iter().map(ToString::to_string).collect();
        Self { classes, train: 60, test_good: 12, test_per_defect: 4, seed: 0 }
    }
}

impl Synthetic {
    /// Returns the images to generate, in id order.
    pub fn items(&self) -> Result<Vec<synthetic::Item>, synthetic::Error> {
        synthetic::items(&self.classes, self.train, self.test_good, self.test_per_defect)
    }

    /// Returns the images with their labels.
    pub(super) fn list(&self, hold_out: HoldOut) -> Result<Listing> {
        let items = self.items().map_err(|e| Error::Input(e.to_string()))?;
        let ids: Vec<String> = items.iter().map(synthetic::Item::image_id).collect();
        let index = UInt32Array::from_iter_values(items.iter().map(|item| item.index));
        let splits: Vec<&str> =
            items.iter().zip(&ids).map(|(item, id)| hold_out.split(item.split.name(), id)).collect();
        let rows = listing(vec![
            text(IMAGE_ID, ids.iter().map(|id| Some(id.as_str()))),
            text(CLASS, items.iter().map(|item| Some(item.class.name()))),
            text(SPLIT, splits.iter().copied().map(Some)),
            labels(items.iter().map(|item| Some(item.defect.is_some()))),
            text(DEFECT, items.iter().map(|item| Some(item.label()))),
            (Field::new("index", DataType::UInt32, false), Arc::new(index)),
        ])?;
        let notes = hold_out.notes(items.iter().map(|item| item.class.name()).zip(splits));
        Ok(Listing { rows, notes })
    }
}
