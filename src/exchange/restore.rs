//! Restores the columns of a table from the types in which another format keeps them.

use std::sync::Arc;

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BinaryArray, FixedSizeListArray, RecordBatch, RecordBatchOptions, UInt8Array,
        new_null_array,
    },
    buffer::NullBuffer,
    compute::{cast, concat},
    datatypes::{DataType, Field, FieldRef, SchemaRef},
};
use rayon::prelude::*;

use super::tensors::{decode, picture};

/// The field of a record that holds an encoded picture.
pub(super) const BYTES: &str = "bytes";

/// Returns rows in the columns of a schema.
pub(super) fn rows(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, String> {
    let columns = schema.fields().iter().map(|field| {
        let column = batch.column_by_name(field.name());
        let column = column.ok_or_else(|| format!("it has no column `{}`", field.name()))?;
        restored(column, field).map_err(|e| format!("column `{}`: {e}", field.name()))
    });
    let columns = columns.collect::<Result<Vec<_>, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(schema.clone(), columns, &options).map_err(|e| e.to_string())
}

/// Returns a column in the type of a field.
fn restored(column: &ArrayRef, to: &Field) -> Result<ArrayRef, String> {
    match (column.data_type(), to.data_type()) {
        (from, wanted) if from == wanted => Ok(column.clone()),
        (DataType::Struct(_), DataType::FixedSizeList(item, _)) => {
            let shape = picture(to).ok_or("it has pictures where the table has other tensors")?;
            pictures(&encoded(column)?, item, shape)
        }
        (DataType::Struct(_), DataType::Binary) => Ok(Arc::new(encoded(column)?)),
        (DataType::Binary, DataType::FixedSizeList(item, _)) if picture(to).is_some() => {
            pictures(column.as_binary(), item, picture(to).unwrap_or_default())
        }
        (
            DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(_, _),
            DataType::FixedSizeList(item, size),
        ) => flat(column, item, *size as usize),
        (_, wanted) => cast(column, wanted).map_err(|e| e.to_string()),
    }
}

/// Returns the encoded pictures in records `{bytes, path}`.
fn encoded(records: &ArrayRef) -> Result<BinaryArray, String> {
    let records = records.as_struct();
    let bytes = records.column_by_name(BYTES).ok_or_else(|| format!("its records have no `{BYTES}`"))?;
    let bytes = cast(bytes, &DataType::Binary).map_err(|e| e.to_string())?;
    let bytes = bytes.as_binary::<i32>();
    let nulls = NullBuffer::union(bytes.nulls(), records.nulls());
    Ok(BinaryArray::new(bytes.offsets().clone(), bytes.values().clone(), nulls))
}

/// Decodes pictures to tensors with these items.
fn pictures(encoded: &BinaryArray, item: &FieldRef, shape: [usize; 3]) -> Result<ArrayRef, String> {
    let size = shape.iter().product();
    let decoded = (0..encoded.len()).into_par_iter().map(|row| match encoded.is_valid(row) {
        true => decode(encoded.value(row), shape).map_err(|e| format!("row {}: {e}", row + 1)),
        false => Ok(vec![0; size]),
    });
    let values = decoded.collect::<Result<Vec<_>, _>>()?.concat();
    let values = Arc::new(UInt8Array::from(values));
    tensors(item, size, values, encoded.nulls())
}

/// Returns tensors with these items, whose values lie in lists within lists.
fn flat(lists: &ArrayRef, item: &FieldRef, size: usize) -> Result<ArrayRef, String> {
    let failed = |e: arrow::error::ArrowError| e.to_string();
    let of = item.data_type();
    let values = (0..lists.len()).map(|row| {
        if lists.is_null(row) {
            return Ok(new_null_array(of, size));
        }
        let mut values = lists.slice(row, 1);
        while let Some(inner) = items(&values) {
            values = inner;
        }
        let values = cast(&values, of).map_err(failed)?;
        if values.len() == size {
            Ok(values)
        } else {
            Err(format!("row {}: {} values, where the table has {size}", row + 1, values.len()))
        }
    });
    let values = values.collect::<Result<Vec<_>, _>>()?;
    let values: Vec<&dyn Array> = values.iter().map(AsRef::as_ref).collect();
    let values = if values.is_empty() { new_null_array(of, 0) } else { concat(&values).map_err(failed)? };
    tensors(item, size, values, lists.nulls())
}

/// Returns a column of tensors of this size, if their values fit the items.
fn tensors(item: &FieldRef, size: usize, values: ArrayRef, nulls: Option<&NullBuffer>) -> Result<ArrayRef, String> {
    let size = i32::try_from(size).map_err(|_| format!("a tensor of {size} values is too large"))?;
    let tensors = FixedSizeListArray::try_new(item.clone(), size, values, nulls.cloned());
    tensors.map(|tensors| Arc::new(tensors) as ArrayRef).map_err(|e| e.to_string())
}

/// Returns the items of all lists; `None` if the values are no lists.
fn items(values: &ArrayRef) -> Option<ArrayRef> {
    match values.data_type() {
        DataType::List(_) => {
            let list = values.as_list::<i32>();
            let (start, end) = (list.offsets()[0] as usize, list.offsets()[list.len()] as usize);
            Some(list.values().slice(start, end - start))
        }
        DataType::LargeList(_) => {
            let list = values.as_list::<i64>();
            let (start, end) = (list.offsets()[0] as usize, list.offsets()[list.len()] as usize);
            Some(list.values().slice(start, end - start))
        }
        DataType::FixedSizeList(_, size) => {
            let list = values.as_fixed_size_list();
            let size = *size as usize;
            Some(list.values().slice(list.value_offset(0) as usize, list.len() * size))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::ListArray,
        buffer::OffsetBuffer,
        datatypes::{Float16Type, Float32Type},
    };

    use super::*;
    use crate::{
        engine::store::tensor_field,
        exchange::tensors::nested,
        tables::tensor::{float_row, tensor_column},
    };

    #[test]
    fn tensors_come_back_from_nested_lists_of_another_type() {
        let column = tensor_column::<Float32Type>((0..12_u8).map(f32::from).collect(), 6, Some(vec![true, false]));
        let lists = nested(&column.unwrap(), &[2, 3]).unwrap();
        let field = tensor_field("map", DataType::Float16, &[2, 3], true);
        let tensors = restored(&lists, &field).unwrap();
        assert_eq!(tensors.data_type(), field.data_type());
        assert_eq!(float_row(&tensors, 0).unwrap(), Some(vec![0., 1., 2., 3., 4., 5.]));
        assert_eq!(float_row(&tensors, 1).unwrap(), None);
        let none = restored(&lists.slice(0, 0), &field).unwrap();
        assert!(none.is_empty() && none.as_fixed_size_list().values().as_primitive_opt::<Float16Type>().is_some());
        let item = Arc::new(Field::new_list_field(DataType::Float32, false));
        let without_nulls = Field::new("map", DataType::FixedSizeList(item, 6), true);
        let gaps = ListArray::new(
            Arc::new(Field::new_list_field(DataType::Float16, true)),
            OffsetBuffer::from_lengths([6]),
            new_null_array(&DataType::Float16, 6),
            None,
        );
        assert!(restored(&(Arc::new(gaps) as ArrayRef), &without_nulls).unwrap_err().contains("null"));
        // Other programs name the items of a list otherwise.
        let item = Arc::new(Field::new("element", DataType::Float32, true));
        let named = Field::new("map", DataType::FixedSizeList(item, 6), true);
        assert_eq!(restored(&tensors, &named).unwrap().data_type(), named.data_type());
        let error = restored(&lists, &tensor_field("map", DataType::Float16, &[2, 4], true)).unwrap_err();
        assert_eq!(error, "row 1: 6 values, where the table has 8");
    }
}
