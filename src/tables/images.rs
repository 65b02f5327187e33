//! Images with their class, label and ground truth: one row per image.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::{column::has, tensor::find_shape};
use crate::engine::{
    stage::{Column, Misfit, Schemas},
    store::{tensor_field, volatile},
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
/// The kind of defect, `good` for none; null where the label is.
pub const DEFECT: &str = "defect";
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

/// Returns the id column of every table with a row per image.
pub fn image_id() -> Field {
    Field::new(IMAGE_ID, DataType::Utf8, false)
}

/// The way in which photographs become pixels of one size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// True if a photograph lies in the middle of the pixels with its aspect ratio kept, and false if it fills them.
    pub padded: bool,
    /// True if it is taken as it is stored, and false if it is turned as its EXIF orientation says.
    pub unturned: bool,
}

/// The keys of [`Taken`] in the metadata of the column of pixels.
const PADDED: &str = "padded";
const UNTURNED: &str = "unturned";

impl Taken {
    /// Reads how the photographs of a table were taken.
    pub fn of(schema: &Schema) -> Self {
        let has = |key| schema.field_with_name(PIXELS).is_ok_and(|field| field.metadata().contains_key(key));
        Self { padded: has(PADDED), unturned: has(UNTURNED) }
    }

    fn note(self, field: Field) -> Field {
        let mut metadata = field.metadata().clone();
        let notes = [(PADDED, self.padded), (UNTURNED, self.unturned)];
        metadata
            .extend(notes.iter().filter(|(_, is_so)| *is_so).map(|(key, _)| ((*key).to_owned(), "true".to_owned())));
        field.with_metadata(metadata)
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
