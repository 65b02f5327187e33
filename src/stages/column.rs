//! Column names of the standard pipeline, and Arrow columns as slices.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, FixedSizeListArray, PrimitiveArray},
    datatypes::{DataType, Field},
};

use crate::engine::{Error, Result, stage::Schemas, tensor_shape};

/// The id of an image: its path below the dataset's root, or its name in a generated dataset.
pub const IMAGE_ID: &str = "image_id";

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
