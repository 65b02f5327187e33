//! Tensor columns: their shapes, and their values as slices.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, FixedSizeListArray, PrimitiveArray},
    compute::cast,
    datatypes::{DataType, Field, Float32Type, Schema},
};

use crate::engine::{Error, Result, store::tensor_shape};

/// Makes a tensor column from the values of all rows, one row after another. `valid` is false for rows that are null.
pub fn tensor_column<T: ArrowPrimitiveType>(
    values: Vec<T::Native>,
    size: usize,
    valid: Option<Vec<bool>>,
) -> Result<ArrayRef> {
    let item = Arc::new(Field::new_list_field(T::DATA_TYPE, true));
    let values = PrimitiveArray::<T>::new(values.into(), None);
    Ok(Arc::new(FixedSizeListArray::try_new(item, size as i32, Arc::new(values), valid.map(Into::into))?))
}

fn lists(column: &ArrayRef) -> Result<&FixedSizeListArray> {
    column.as_fixed_size_list_opt().ok_or_else(|| Error::Stage("a tensor column was expected".into()))
}

/// Returns the values of one row of a tensor column; `None` if the row is null.
pub fn tensor_row<T: ArrowPrimitiveType>(column: &ArrayRef, row: usize) -> Result<Option<&[T::Native]>> {
    let list = lists(column)?;
    let values = list.values().as_primitive_opt::<T>().ok_or_else(|| {
        Error::Stage(format!("a tensor of {} was expected where {} stands", T::DATA_TYPE, list.value_type()))
    })?;
    let size = list.value_length() as usize;
    let start = list.value_offset(row) as usize;
    Ok(list.is_valid(row).then(|| &values.values()[start..start + size]))
}

/// Returns the values of one row of a tensor column of floats of any width; `None` if the row is null.
pub fn float_row(column: &ArrayRef, row: usize) -> Result<Option<Vec<f32>>> {
    let list = lists(column)?;
    if list.is_null(row) {
        return Ok(None);
    }
    let values = cast(&list.value(row), &DataType::Float32)?;
    Ok(Some(values.as_primitive::<Float32Type>().values().to_vec()))
}

/// Returns the shape of a tensor column of N dimensions whose items are of one of these types; `None` for any other
/// column.
pub fn find_shape<const N: usize>(schema: &Schema, name: &str, items: &[DataType]) -> Option<[usize; N]> {
    let field = schema.field_with_name(name).ok()?;
    let DataType::FixedSizeList(item, _) = field.data_type() else { return None };
    items.contains(item.data_type()).then(|| tensor_shape(field))??.try_into().ok()
}

/// The types of floats.
pub const FLOATS: [DataType; 3] = [DataType::Float16, DataType::Float32, DataType::Float64];

#[cfg(test)]
mod tests {
    use arrow::datatypes::{Float16Type, UInt8Type};
    use half::f16;

    use super::*;
    use crate::engine::store::tensor_field;

    #[test]
    fn null_row_is_none_and_others_are_their_own_values() {
        let column = tensor_column::<UInt8Type>((0..6).collect(), 2, Some(vec![true, false, true])).unwrap();
        let rows: Vec<Option<&[u8]>> = (0..3).map(|row| tensor_row::<UInt8Type>(&column, row).unwrap()).collect();
        assert_eq!(rows, [Some(&[0, 1][..]), None, Some(&[4, 5])]);
        let sliced = column.slice(2, 1);
        assert_eq!(tensor_row::<UInt8Type>(&sliced, 0).unwrap(), Some(&[4, 5][..]));
        let error = tensor_row::<Float16Type>(&column, 0).unwrap_err().to_string();
        assert!(error.contains("a tensor of Float16 was expected where UInt8 stands"), "{error}");
    }

    #[test]
    fn floats_of_any_width_are_read() {
        let halves = tensor_column::<Float16Type>([0.5, 2., 1., 1.].map(f16::from_f32).into(), 2, None).unwrap();
        assert_eq!(float_row(&halves, 0).unwrap(), Some(vec![0.5, 2.]));
        let floats = tensor_column::<Float32Type>(vec![1e6, 0.], 2, Some(vec![true])).unwrap();
        assert_eq!(float_row(&floats, 0).unwrap(), Some(vec![1e6, 0.]));
        let null = tensor_column::<Float32Type>(vec![1., 0.], 2, Some(vec![false])).unwrap();
        assert_eq!(float_row(&null, 0).unwrap(), None);
    }

    #[test]
    fn shape_is_found_by_dimensions_and_item() {
        let schema = Schema::new(vec![tensor_field("map", DataType::Float16, &[4, 5], false)]);
        assert_eq!(find_shape(&schema, "map", &FLOATS), Some([4, 5]));
        assert_eq!(find_shape::<3>(&schema, "map", &FLOATS), None);
        assert_eq!(find_shape::<2>(&schema, "map", &[DataType::UInt8]), None);
        assert_eq!(find_shape::<2>(&schema, "mask", &FLOATS), None);
    }
}
