//! Column names of the standard pipeline, and Arrow columns as slices.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, FixedSizeListArray, PrimitiveArray, StringArray},
    datatypes::{DataType, Field},
};

use crate::engine::{
    Error, Result,
    stage::{Schemas, Sink},
    store::tensor_shape,
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

/// The shape of a tensor column with as many dimensions as `names`, or why it does not fit.
pub fn shape<const N: usize>(field: &Field, item: &DataType, names: &str) -> Result<[usize; N], String> {
    let fits = matches!(field.data_type(), DataType::FixedSizeList(inner, _) if inner.data_type() == item);
    let shape = tensor_shape(field).filter(|_| fits).and_then(|shape| <[usize; N]>::try_from(shape).ok());
    shape.ok_or_else(|| format!("column `{}` is {}; a {item}{names} tensor is read", field.name(), field.data_type()))
}

/// The shape `[H, W, 3]` of the images' pixels.
pub fn pixels(schemas: &Schemas) -> Result<[usize; 3], String> {
    shape(schemas.field("images", "pixels")?, &DataType::UInt8, "[H, W, 3]")
}

/// The shape `[C, h, w]` of the latents' moments.
pub fn latents(schemas: &Schemas) -> Result<[usize; 3], String> {
    let [mean, logvar]: [Result<[usize; 3], String>; 2] = ["mean", "logvar"]
        .map(|name| schemas.field("latents", name).and_then(|field| shape(field, &DataType::Float32, "[C, h, w]")));
    let (mean, logvar) = (mean?, logvar?);
    if mean == logvar { Ok(mean) } else { Err(format!("column `mean` is {mean:?} and `logvar` {logvar:?}")) }
}

/// The shape `[77, D]` of the captions at a port.
pub fn embedding(schemas: &Schemas, port: &str) -> Result<[usize; 2], String> {
    shape(schemas.field(port, "embedding")?, &DataType::Float32, "[77, D]")
}

/// Whether a column has the type that is read.
pub fn typed(schemas: &Schemas, port: &str, name: &str, wanted: &DataType) -> Result<(), String> {
    let field = schemas.field(port, name)?;
    if field.data_type() == wanted {
        return Ok(());
    }
    let sql = match wanted {
        DataType::Utf8 => "varchar",
        DataType::Boolean => "boolean",
        _ => "real",
    };
    Err(format!(
        "column `{name}` is {}; {wanted} is read, which `cast({name} as {sql}) as {name}` in a stage `sql` makes of it",
        field.data_type()
    ))
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
