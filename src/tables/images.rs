//! Images with their class, label and ground truth: one row per image.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt8Type};
use serde::{Deserialize, Serialize};

use super::{
    column::has,
    tensor::{find_shape, tensor_row},
};
use crate::{
    engine::{
        Result,
        stage::{Batch, Column, Misfit, Schemas},
        store::{tensor_field, volatile},
    },
    vision::placement::Placement,
};

/// The id of an image: its path below the dataset's root, or its name in a generated dataset.
pub const IMAGE_ID: &str = "image_id";
/// The product or texture that is inspected.
pub const CLASS: &str = "class";
/// [`TRAIN`], [`CALIBRATION`] or [`TEST`].
pub const SPLIT: &str = "split";
/// The split of the normal images that are learned from.
pub const TRAIN: &str = "train";
/// The split of the normal images that are held out of training, from whose scores thresholds follow.
pub const CALIBRATION: &str = "calibration";
/// The split of the images that are judged.
pub const TEST: &str = "test";
/// True for an anomalous image, false for a normal one; null if it is not known.
pub const LABEL: &str = "label";
/// The kind of defect, [`GOOD`] for none; null where the label is.
pub const DEFECT: &str = "defect";
/// The kind of defect of a normal image.
pub const GOOD: &str = "good";
/// The file that the image was read from.
pub const URI: &str = "uri";
/// The BLAKE3 digest of the file, as text.
pub const FILE_DIGEST: &str = "file_digest";
/// The width of the file's image.
pub const WIDTH: &str = "width";
/// The height of the file's image.
pub const HEIGHT: &str = "height";
/// A description of the image in words.
pub const CAPTION: &str = "caption";
/// The pixels, `uint8[H, W, 3]`.
pub const PIXELS: &str = "pixels";
/// The ground truth, `uint8[H, W]`: 255 where more than half of a pixel is anomalous.
pub const MASK: &str = "mask";
/// The ground truth, `uint8[H, W]`: above 0 wherever an anomaly touches a pixel.
pub const MASK_GREY: &str = "mask_grey";

/// The region that is judged, `uint8[H, W]`: 255 in it, 0 outside; null if it is the whole photograph.
pub const ROI: &str = "roi";

/// Returns the id column of every table with a row per image.
pub fn image_id() -> Field {
    Field::new(IMAGE_ID, DataType::Utf8, false)
}

/// The way in which photographs become pixels of one size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// True if a photograph lies in the middle of the pixels with its aspect ratio kept.
    pub padded: bool,
    /// The length to which the shorter side of a photograph is resized, whose middle the pixels then show. Without this,
    /// and if it is not padded, it fills the pixels.
    pub short_side: Option<u32>,
    /// True if it is taken as it is stored, and false if it is turned as its EXIF orientation says.
    pub unturned: bool,
}

/// The keys of [`Taken`] in the metadata of a column of pixels or maps.
const PADDED: &str = "padded";
const SHORT_SIDE: &str = "short_side";
const UNTURNED: &str = "unturned";

impl Taken {
    /// Reads how the photographs of a table were taken.
    pub fn of(schema: &Schema) -> Self {
        let metadata = |key| schema.field_with_name(PIXELS).ok()?.metadata().get(key);
        let short_side = metadata(SHORT_SIDE).and_then(|side| side.parse().ok());
        Self { padded: metadata(PADDED).is_some(), short_side, unturned: metadata(UNTURNED).is_some() }
    }

    /// Returns the field of a column of pixels or maps with a note on how the photographs were taken.
    pub fn note(self, field: Field) -> Field {
        let is_so = |is_so: bool| is_so.then(|| "true".to_owned());
        let notes = [
            (PADDED, is_so(self.padded)),
            (SHORT_SIDE, self.short_side.map(|side| side.to_string())),
            (UNTURNED, is_so(self.unturned)),
        ];
        let mut metadata = field.metadata().clone();
        metadata.extend(notes.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
        field.with_metadata(metadata)
    }

    /// Returns the place of a photograph in the pixels, by the sizes (width, height) of both.
    pub fn placement(self, photograph: (u32, u32), pixels: (u32, u32)) -> Placement {
        match self.short_side {
            Some(short_side) => Placement::cropped(photograph, pixels, short_side),
            None if self.padded => Placement::padded(photograph, pixels),
            None => Placement::stretched(photograph, pixels),
        }
    }
}

/// Returns the schema of images of this size, in pixels.
pub fn schema([height, width]: [usize; 2], taken: Taken) -> SchemaRef {
    Arc::new(Schema::new(vec![
        image_id(),
        Field::new(CLASS, DataType::Utf8, false),
        Field::new(SPLIT, DataType::Utf8, false),
        Field::new(LABEL, DataType::Boolean, true),
        Field::new(DEFECT, DataType::Utf8, true),
        volatile(Field::new(URI, DataType::Utf8, true)),
        Field::new(FILE_DIGEST, DataType::Utf8, true),
        Field::new(WIDTH, DataType::UInt32, false),
        Field::new(HEIGHT, DataType::UInt32, false),
        Field::new(CAPTION, DataType::Utf8, true),
        taken.note(tensor_field(PIXELS, DataType::UInt8, &[height, width, 3], false)),
        tensor_field(MASK, DataType::UInt8, &[height, width], true),
        tensor_field(MASK_GREY, DataType::UInt8, &[height, width], true),
    ]))
}

/// Returns the column of the regions of images of this size, in pixels.
pub fn roi([height, width]: [usize; 2]) -> Field {
    tensor_field(ROI, DataType::UInt8, &[height, width], true)
}

/// Returns the column of regions, as a stage reads it where there is one.
pub fn roi_column() -> Column {
    Column::tensors(ROI, DataType::UInt8, "[H, W]").optional()
}

/// Returns the height and width of the pixels at the port `images`, which must be those of its regions too, if it has some.
pub fn judged_size(schemas: &Schemas) -> Result<[usize; 2], Misfit> {
    let [height, width, _] = pixels(schemas)?;
    if schemas.field("images", ROI).is_ok() {
        let region: [usize; 2] = schemas.shape("images", ROI)?;
        if region != [height, width] {
            let message = format!("`roi` is {}x{} and `pixels` {height}x{width}", region[0], region[1]);
            return Err(Misfit::input("images", message));
        }
    }
    Ok([height, width])
}

/// Returns for each image of a batch the pixels that are judged; `None` if all are.
pub fn rois(batch: &Batch) -> Result<Vec<Option<Vec<bool>>>> {
    (0..batch.len()).map(|row| roi_of(batch, row)).collect()
}

/// Returns the pixels of the image in a row that are judged; `None` if all are.
pub fn roi_of(batch: &Batch, row: usize) -> Result<Option<Vec<bool>>> {
    let Some(column) = batch.rows("images")?.column_by_name(ROI) else { return Ok(None) };
    let region = tensor_row::<UInt8Type>(column, row)?;
    Ok(region.map(|region| region.iter().map(|pixel| *pixel > 0).collect()))
}

/// Returns the column of pixels, as a stage reads it.
pub fn pixels_column() -> Column {
    Column::tensors(PIXELS, DataType::UInt8, "[H, W, 3]")
}

/// Returns the shape `[H, W, 3]` of the pixels at the port `images`.
pub fn pixels(schemas: &Schemas) -> Result<[usize; 3], Misfit> {
    schemas.shape("images", PIXELS)
}

/// Returns the height and width of a table's images; `None` if it has none.
pub fn size(schema: &Schema) -> Option<[usize; 2]> {
    let [height, width, channels] = find_shape(schema, PIXELS, &[DataType::UInt8])?;
    (channels == 3).then_some([height, width])
}

/// Returns the column with the images' ids: `image_id`, else the first column if it is text.
pub fn id_column(schema: &Schema) -> Option<&str> {
    let first = || schema.fields().first().filter(|field| *field.data_type() == DataType::Utf8);
    if has(schema, IMAGE_ID, &DataType::Utf8) { Some(IMAGE_ID) } else { first().map(|field| field.name().as_str()) }
}
