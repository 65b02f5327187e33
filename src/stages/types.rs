//! Column types in the notation of pipelines: `utf8`, `int64?`, `float32[3,224,224]`.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, FixedSizeListArray, RecordBatch, RecordBatchOptions, new_null_array},
    compute::{CastOptions, cast_with_options},
    datatypes::{DataType, Field, SchemaRef, TimeUnit},
};
use serde_json::{Map, Value};

use crate::engine::store::{plain, tensor_field, tensor_shape};

const NAMES: &[(&str, DataType)] = &[
    ("utf8", DataType::Utf8),
    ("bool", DataType::Boolean),
    ("int8", DataType::Int8),
    ("int16", DataType::Int16),
    ("int32", DataType::Int32),
    ("int64", DataType::Int64),
    ("uint8", DataType::UInt8),
    ("uint16", DataType::UInt16),
    ("uint32", DataType::UInt32),
    ("uint64", DataType::UInt64),
    ("float16", DataType::Float16),
    ("float32", DataType::Float32),
    ("float64", DataType::Float64),
    ("binary", DataType::Binary),
    ("date", DataType::Date32),
    ("timestamp", DataType::Timestamp(TimeUnit::Microsecond, None)),
];

/// Returns the fields that `name: type` declares, in the order written.
pub(super) fn fields(columns: &Map<String, Value>) -> Result<Vec<Field>, String> {
    let one = |(name, value): (&String, &Value)| {
        let text = value.as_str().unwrap_or_default();
        field(name, text).ok_or_else(|| {
            let names: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
            format!(
                "column `{name}` has the type {value}; types are {}, a tensor of numbers such as float32[3,224,224], and any of \
                 them with `?` where values may be missing",
                names.join(", ")
            )
        })
    };
    columns.iter().map(one).collect()
}

fn field(name: &str, text: &str) -> Option<Field> {
    let (text, nullable) = text.strip_suffix('?').map_or((text, false), |text| (text, true));
    let (item, shape) = match text.strip_suffix(']') {
        Some(tensor) => tensor.split_once('[').map(|(item, shape)| (item, Some(shape)))?,
        None => (text, None),
    };
    let (_, item) = NAMES.iter().find(|(name, _)| *name == item.trim())?;
    let Some(shape) = shape else { return Some(Field::new(name, item.clone(), nullable)) };
    let shape: Vec<usize> =
        shape.split(',').map(|n| n.trim().parse().ok().filter(|n| *n > 0)).collect::<Option<_>>()?;
    let size = shape.iter().try_fold(1usize, |size, n| size.checked_mul(*n))?;
    (item.is_numeric() && i32::try_from(size).is_ok()).then(|| tensor_field(name, item.clone(), &shape, nullable))
}

/// Returns the name of a type of single values, in the notation of pipelines if it has one.
pub(super) fn name_of(of: &DataType) -> String {
    let name = NAMES.iter().find(|(_, known)| known == of).map(|(name, _)| (*name).to_owned());
    name.unwrap_or_else(|| match of {
        DataType::Timestamp(..) => "timestamp".into(),
        other => other.to_string(),
    })
}

/// Returns a field's type in words.
fn words(field: &Field) -> String {
    match field.data_type() {
        DataType::FixedSizeList(item, size) => {
            let shape = tensor_shape(field).unwrap_or_else(|| vec![*size as usize]);
            let shape: Vec<String> = shape.iter().map(ToString::to_string).collect();
            format!("{}[{}]", name_of(item.data_type()), shape.join(","))
        }
        DataType::List(item) | DataType::LargeList(item) => format!("a list of {}", name_of(item.data_type())),
        other => name_of(other),
    }
}

/// Converts a batch to the declared schema. Its columns may have any order and any layout of the same values. An
/// error names the column, the declared type and the actual type.
pub(super) fn conform(declared: &SchemaRef, batch: &RecordBatch) -> Result<RecordBatch, String> {
    let given = batch.schema();
    let names = || given.fields().iter().map(|field| field.name().as_str()).collect::<Vec<_>>().join(", ");
    if let Some(extra) = given.fields().iter().find(|field| declared.field_with_name(field.name()).is_err()) {
        return Err(format!(
            "column `{}` is not declared; `output` takes `{}: {}`",
            extra.name(),
            extra.name(),
            words(extra)
        ));
    }
    let columns = declared.fields().iter().map(|field| {
        let at = given.index_of(field.name()).map_err(|_| {
            format!("column `{}` ({}) is declared and missing; there are {}", field.name(), words(field), names())
        })?;
        let misfit = || {
            format!("column `{}` is declared {} and given as {}", field.name(), words(field), words(given.field(at)))
        };
        let column = adopt(field, batch.column(at)).map_err(|why| misfit() + &why)?;
        if !field.is_nullable() && column.null_count() > 0 {
            return Err(format!(
                "column `{}` misses {} values; where values may be missing, declare it as {}?",
                field.name(),
                column.null_count(),
                words(field)
            ));
        }
        Ok(column)
    });
    let columns = columns.collect::<Result<Vec<_>, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(declared.clone(), columns, &options).map_err(|e| e.to_string())
}

/// Returns the same values in the declared layout.
fn adopt(field: &Field, column: &ArrayRef) -> Result<ArrayRef, String> {
    use DataType::{FixedSizeList, LargeList, List, Null, Timestamp};
    let cast = |to: &DataType| {
        let options = CastOptions { safe: false, ..CastOptions::default() };
        cast_with_options(column, to, &options).map_err(|e| format!(": {e}"))
    };
    match (column.data_type(), field.data_type()) {
        (have, want) if have == want => Ok(column.clone()),
        (Null, want) => Ok(new_null_array(want, column.len())),
        (Timestamp(_, None), want @ Timestamp(_, None)) => cast(want),
        (have, want) if plain(have) == *want => cast(want),
        (FixedSizeList(have, size), FixedSizeList(want, n)) if (have.data_type(), size) == (want.data_type(), n) => {
            let list = column.as_fixed_size_list();
            let same = FixedSizeListArray::try_new(want.clone(), *n, list.values().clone(), list.nulls().cloned());
            same.map(|list| Arc::new(list) as ArrayRef).map_err(|e| format!(": {e}"))
        }
        (List(have) | LargeList(have), FixedSizeList(want, n)) if have.data_type() == want.data_type() => {
            let list = cast(&FixedSizeList(have.clone(), *n))?;
            adopt(field, &list)
        }
        _ => Err(String::new()),
    }
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{Float32Array, Float64Array, ListArray, StringViewArray},
        datatypes::{Float32Type, Float64Type, Schema},
    };

    use super::*;

    fn declared(columns: &[(&str, &str)]) -> Result<SchemaRef, String> {
        let columns = columns.iter().map(|(name, text)| ((*name).to_owned(), Value::from(*text))).collect();
        fields(&columns).map(|fields| Arc::new(Schema::new(fields)))
    }

    #[test]
    fn types_are_parsed_as_they_are_written() {
        let types = ["utf8", "float32[3,224,224]", "timestamp", "uint8[2]"];
        for text in types {
            assert_eq!(words(&field("x", text).unwrap()), text);
        }
        assert!(field("x", "int64?").unwrap().is_nullable());
        assert_eq!(tensor_shape(&field("x", "float16[2, 3]?").unwrap()), Some(vec![2, 3]));
        for wrong in ["", "float", "utf8[3]", "float32[]", "float32[0]", "float32[3", "float32[65536,65536]"] {
            assert!(field("x", wrong).is_none(), "{wrong}");
        }
        let message = declared(&[("x", "text")]).unwrap_err();
        assert!(message.contains("column `x` has the type \"text\"; types are utf8, bool"), "{message}");
    }

    #[test]
    fn values_are_accepted_in_any_layout_and_in_no_other_type() {
        let schema = declared(&[("name", "utf8"), ("x", "float32[2]")]).unwrap();
        let name: ArrayRef = Arc::new(StringViewArray::from(vec!["a", "b"]));
        let lists = |rows: [Vec<f32>; 2]| {
            let rows = rows.into_iter().map(|row| Some(row.into_iter().map(Some).collect::<Vec<_>>()));
            Arc::new(ListArray::from_iter_primitive::<Float32Type, _, _>(rows)) as ArrayRef
        };
        let given = |x: ArrayRef| RecordBatch::try_from_iter([("x", x), ("name", name.clone())]).unwrap();
        let taken = conform(&schema, &given(lists([vec![1., 2.], vec![3., 4.]]))).unwrap();
        assert_eq!(taken.schema(), schema);
        assert_eq!(
            taken.column(1).as_fixed_size_list().values().as_ref(),
            &Float32Array::from(vec![1., 2., 3., 4.]) as &dyn Array
        );
        let message = conform(&schema, &given(lists([vec![1., 2.], vec![3.]]))).unwrap_err();
        assert!(message.starts_with("column `x` is declared float32[2] and given as a list of float32: "), "{message}");
        let doubles = ListArray::from_iter_primitive::<Float64Type, _, _>([Some([Some(1.), Some(2.)]), None]);
        let message = conform(&schema, &given(Arc::new(doubles))).unwrap_err();
        assert_eq!(message, "column `x` is declared float32[2] and given as a list of float64");
        let missing = conform(&schema, &given(new_null_array(&DataType::Null, 2))).unwrap_err();
        assert_eq!(missing, "column `x` misses 2 values; where values may be missing, declare it as float32[2]?");
        let scalar: ArrayRef = Arc::new(Float64Array::from(vec![1., 2.]));
        let batch = RecordBatch::try_from_iter([("y", scalar), ("name", name.clone())]).unwrap();
        assert!(conform(&schema, &batch).unwrap_err().contains("`output` takes `y: float64`"));
    }
}
