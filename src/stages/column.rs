//! Column names of the standard pipeline, and Arrow columns as slices.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, FixedSizeListArray, PrimitiveArray, StringArray},
    datatypes::{DataType, Field},
};

use crate::engine::{
    Error, Result,
    stage::{Column, Misfit, Schemas, Sink},
};

/// The id of an image: its path below the dataset's root, or its name in a generated dataset.
pub const IMAGE_ID: &str = "image_id";

/// The input of each row's own caption.
pub const TEXT: &str = "text_embeddings";
/// The input whose first row is the caption of all rows, or that to lead away from.
pub const UNCONDITIONAL: &str = "unconditional";

/// The id column of every table of images.
pub fn image_id() -> Field {
    Field::new(IMAGE_ID, DataType::Utf8, false)
}

/// A tensor column from the rows' values one after another. `valid` says which rows are not null.
pub fn tensors<T: ArrowPrimitiveType>(
    values: Vec<T::Native>,
    size: usize,
    valid: Option<Vec<bool>>,
) -> Result<ArrayRef> {
    let item = Arc::new(Field::new_list_field(T::DATA_TYPE, true));
    let values = PrimitiveArray::<T>::new(values.into(), None);
    Ok(Arc::new(FixedSizeListArray::try_new(item, size as i32, Arc::new(values), valid.map(Into::into))?))
}

/// The values of one row of a tensor column; empty where the row is null.
pub fn row<T: ArrowPrimitiveType>(column: &ArrayRef, row: usize) -> Result<&[T::Native]> {
    let list = column.as_fixed_size_list_opt().ok_or_else(|| Error::Stage("a tensor column was expected".into()))?;
    if list.is_null(row) {
        return Ok(&[]);
    }
    let values = list.values().as_primitive_opt::<T>().ok_or_else(|| {
        Error::Stage(format!("a tensor of {} was expected where {} stands", T::DATA_TYPE, list.value_type()))
    })?;
    let size = list.value_length() as usize;
    let start = list.value_offset(row) as usize;
    Ok(&values.values()[start..start + size])
}

/// The images: `pixels` `[H, W, 3]`, RGB of 8 bits.
pub fn pixels() -> Column {
    Column::tensors("pixels", DataType::UInt8, "[H, W, 3]")
}

/// The latents' moments: `mean` and `logvar` `[C, h, w]`.
pub fn moments() -> [Column; 2] {
    ["mean", "logvar"].map(|name| Column::tensors(name, DataType::Float32, "[C, h, w]"))
}

/// The captions' text.
pub fn caption() -> Column {
    Column::new("caption", DataType::Utf8)
}

/// The captions as a text encoder sees them: `[T, D]`, T tokens of D numbers.
pub fn embedding() -> Column {
    Column::tensors("embedding", DataType::Float32, "[T, D]")
}

/// The weights of a network, with its configuration beside them; see [`config_of`](super::training::config_of).
pub fn weights() -> Column {
    Column::any("weights")
}

/// The shape `[H, W, 3]` of the images' pixels.
pub fn pixels_shape(inputs: &Schemas) -> Result<[usize; 3], Misfit> {
    inputs.shape("images", "pixels")
}

/// The shape `[C, h, w]` of the latents' moments.
pub fn latent_shape(inputs: &Schemas) -> Result<[usize; 3], Misfit> {
    let (mean, logvar) = (inputs.shape("latents", "mean")?, inputs.shape("latents", "logvar")?);
    if mean == logvar {
        Ok(mean)
    } else {
        Err(Misfit::input("latents", format!("column `mean` is {mean:?} and `logvar` {logvar:?}")))
    }
}

/// The shape `[T, D]` of the captions at a port.
pub fn embedding_shape(inputs: &Schemas, port: &str) -> Result<[usize; 2], Misfit> {
    inputs.shape(port, "embedding")
}

/// The error of a row in which a column has no value that is needed.
pub fn missing(id: &str, port: &str, name: &str) -> Error {
    Error::Input(format!("{id}: `{port}` has no `{name}`; leave such rows out by `where:`"))
}

/// Notes the rows that have no caption, and what stands for it.
pub fn note_missing_captions(out: &mut Sink<'_>, ids: &[String], captions: &StringArray, instead: &str) {
    let missing = ids.iter().zip(captions).filter(|(_, caption)| caption.is_none());
    missing.for_each(|(id, _)| out.note(&format!("the image has no caption, and {instead} stands for it"), id));
}

/// The note of a caption that has more tokens than a text encoder takes.
pub fn cut_caption(tokens: usize) -> String {
    format!("the caption is longer than the encoder's {tokens} tokens and is cut")
}
