//! The columns that the engine adds to a stage's rows: digests of heavy columns, keys, and the content digest of a
//! row.
//!
//! The content digest is over canonical Arrow values, so it does not depend on their layout in Parquet.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions},
    compute::cast,
    datatypes::{DataType, Field, FieldRef, Schema, SchemaRef},
};
use rayon::prelude::*;

use crate::engine::{Digest, Error, Hasher, Result, arrow_schema::without_hints};

/// The column with the row key: the digest of everything that a row of a row-wise table was computed from.
pub const KEY: &str = "_key";

const DIGEST_SUFFIX: &str = "_digest";

/// Begins the digest of a row.
const ROW: &str = "row";

const VOLATILE: &str = "vlmdiff:volatile";

/// Marks a column as not part of a row's content, such as a time or a speed. A change of its values makes nothing
/// stale.
pub fn volatile(field: Field) -> Field {
    let mut metadata = field.metadata().clone();
    metadata.insert(VOLATILE.into(), "true".into());
    field.with_metadata(metadata)
}

/// Returns true if a column is not part of a row's content.
pub fn is_volatile(field: &Field) -> bool {
    field.metadata().contains_key(VOLATILE)
}

/// Returns the message about a stage that reads a volatile column.
pub fn volatile_misuse(column: &str) -> String {
    format!(
        "`{column}` says where a row lies or when it was made; a row is kept when that changes, so nothing \
         may be made from it"
    )
}

/// Returns true if a column is identified by a stored digest: lists, tensors and bytes.
pub fn is_heavy(field: &Field) -> bool {
    use DataType::{Binary, BinaryView, FixedSizeList, LargeBinary, LargeList, List};
    matches!(field.data_type(), Binary | LargeBinary | BinaryView | List(_) | LargeList(_) | FixedSizeList(_, _))
}

/// Returns true if some column of a table is heavy.
pub fn has_heavy(schema: &Schema) -> bool {
    schema.fields().iter().any(|field| is_heavy(field))
}

/// Returns the name of the column that holds the digests of `column`.
pub fn digest_name(column: &str) -> String {
    format!("{column}{DIGEST_SUFFIX}")
}

fn digest_field(name: &str) -> FieldRef {
    Arc::new(Field::new(name, DataType::FixedSizeBinary(Digest::LEN as i32), true))
}

/// Returns the schema on disk: the declared columns without hints, a digest column per heavy one, and `_key` if rows have
/// keys.
pub fn stored_schema(declared: &Schema, keyed: bool) -> SchemaRef {
    let declared = without_hints(declared);
    let mut fields: Vec<FieldRef> = declared.fields().to_vec();
    fields.extend(declared.fields().iter().filter(|f| is_heavy(f)).map(|f| digest_field(&digest_name(f.name()))));
    if keyed {
        fields.push(digest_field(KEY));
    }
    Arc::new(Schema::new_with_metadata(fields, declared.metadata().clone()))
}

/// Returns the schema that a stage declared, given the stored one.
pub fn declared_schema(stored: &Schema) -> Schema {
    let digests: Vec<String> = stored.fields().iter().filter(|f| is_heavy(f)).map(|f| digest_name(f.name())).collect();
    let declared = stored.fields().iter().filter(|f| f.name() != KEY && !digests.contains(f.name()));
    Schema::new_with_metadata(declared.cloned().collect::<Vec<_>>(), stored.metadata().clone())
}

/// Returns the columns that represent `columns` in planning: the digest column of a heavy one, the column itself
/// otherwise.
pub fn light_names(stored: &Schema, columns: &[String]) -> Vec<String> {
    let light = |name: &String| match stored.field_with_name(name) {
        Ok(field) if is_heavy(field) => digest_name(name),
        _ => name.clone(),
    };
    columns.iter().map(light).collect()
}

/// Returns all columns of a stored table that planning may read.
pub fn light_schema(stored: &Schema) -> Vec<String> {
    stored.fields().iter().filter(|f| !is_heavy(f)).map(|f| f.name().clone()).collect()
}

/// Converts a batch to its stored form. Returns it with the content digest of each of its rows.
pub fn to_stored(
    declared: &SchemaRef,
    batch: &RecordBatch,
    keys: Option<&[Digest]>,
) -> Result<(RecordBatch, Vec<Digest>)> {
    let batch = conform(declared, batch)?;
    let mut columns = batch.columns().to_vec();
    let mut rows: Vec<Hasher> = (0..batch.num_rows()).map(|_| Hasher::new(ROW)).collect();
    for (field, column) in declared.fields().iter().zip(batch.columns()) {
        if is_heavy(field) {
            let value = values(column)?;
            let digest = |row| column.is_valid(row).then(|| value.digest(row));
            let digests: Vec<Option<Digest>> = (0..column.len()).into_par_iter().map(digest).collect();
            if !is_volatile(field) {
                for (row, digest) in rows.iter_mut().zip(&digests) {
                    row.field(digest.as_ref().map_or(&[][..], |d| d.as_bytes()));
                }
            }
            columns.push(digest_array(digests.into_iter()));
        } else if !is_volatile(field) {
            let value = values(column)?;
            rows.iter_mut().enumerate().for_each(|(i, row)| value.encode(i, row));
        }
    }
    if let Some(keys) = keys {
        columns.push(digest_array(keys.iter().copied().map(Some)));
    }
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    let stored = RecordBatch::try_new_with_options(stored_schema(declared, keys.is_some()), columns, &options)?;
    Ok((stored, rows.iter().map(Hasher::finish).collect()))
}

/// Returns the digest of each row of `batch` over its columns except volatile ones.
pub fn row_digests(batch: &RecordBatch) -> Result<Vec<Digest>> {
    let content = batch.schema_ref().fields().iter().zip(batch.columns()).filter(|(field, _)| !is_volatile(field));
    let columns = content.map(|(_, column)| values(column)).collect::<Result<Vec<_>>>()?;
    // The bytes of a row are hashed at once, because hashing many short pieces costs more than copying them.
    let begin = [&(ROW.len() as u64).to_le_bytes(), ROW.as_bytes()].concat();
    let row = |bytes: &mut Vec<u8>, i| {
        bytes.clear();
        bytes.extend_from_slice(&begin);
        columns.iter().for_each(|column| column.encode(i, bytes));
        Digest::of(bytes)
    };
    Ok((0..batch.num_rows()).into_par_iter().map_init(Vec::new, row).collect())
}

/// Returns the type in which tables store values of a type: without views and dictionaries.
pub fn plain(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
        DataType::BinaryView | DataType::LargeBinary => DataType::Binary,
        DataType::Dictionary(_, value) => plain(value),
        other => other.clone(),
    }
}

/// Makes an array of digests.
pub fn digest_array(digests: impl ExactSizeIterator<Item = Option<Digest>>) -> ArrayRef {
    let mut builder = arrow::array::FixedSizeBinaryBuilder::with_capacity(digests.len(), Digest::LEN as i32);
    for digest in digests {
        match digest {
            // The digest has the builder's own width, so appending cannot fail.
            Some(digest) => builder.append_value(digest.as_bytes()).unwrap_or(()),
            None => builder.append_null(),
        }
    }
    Arc::new(builder.finish())
}

/// Brings a batch to the declared schema, or says how it differs.
fn conform(declared: &SchemaRef, batch: &RecordBatch) -> Result<RecordBatch> {
    let columns = declared.fields().iter().map(|field| {
        let column = batch.column_by_name(field.name()).ok_or_else(|| {
            let names: Vec<&str> = batch.schema_ref().fields().iter().map(|f| f.name().as_str()).collect();
            Error::Stage(format!(
                "the batch has no column `{}` that the schema declares; it has {}",
                field.name(),
                names.join(", ")
            ))
        })?;
        let column = match (column.data_type(), field.data_type()) {
            (have, want) if have == want || have.equals_datatype(want) => column.clone(),
            (have, want) if plain(have) == *want => cast(column, want)?,
            (have, want) => {
                return Err(Error::Stage(format!(
                    "column `{}` is {have} where the schema declares {want}",
                    field.name()
                )));
            }
        };
        if !field.is_nullable() && column.null_count() > 0 {
            return Err(Error::Stage(format!(
                "column `{}` has {} nulls and is declared without",
                field.name(),
                column.null_count()
            )));
        }
        Ok(column)
    });
    let columns = columns.collect::<Result<Vec<_>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(declared.clone(), columns, &options)?)
}

/// Receives the canonical encoding of a value, piece by piece.
trait Encoding {
    /// Takes bytes whose number is fixed by the type and the preceding bytes.
    fn raw(&mut self, bytes: &[u8]);

    /// Takes any number of bytes.
    fn sized(&mut self, bytes: &[u8]) {
        self.raw(&(bytes.len() as u64).to_le_bytes());
        self.raw(bytes);
    }
}

impl Encoding for Hasher {
    fn raw(&mut self, bytes: &[u8]) {
        Hasher::raw(self, bytes);
    }
}

impl Encoding for Vec<u8> {
    fn raw(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Begins the encoding of a null.
const NULL: u8 = 0;

/// First byte of the encoding of any other value. The items of a list of fixed-width values follow as one run of
/// bytes.
const VALUE: u8 = 1;

/// First byte of the encoding of a list of fixed-width values with nulls, in which each item is encoded by itself.
const VALUE_WITH_NULLS: u8 = 2;

/// The canonical encoding of the values of one column, row by row. Two values of one type have the same encoding only
/// if they are equal bit for bit, and no encoding is a prefix of another.
enum Values {
    Fixed { data: arrow::buffer::Buffer, offset: usize, width: usize, valid: ArrayRef },
    Bits(ArrayRef),
    Text(ArrayRef),
    Bytes(ArrayRef),
    List(ArrayRef, Box<Values>),
    FixedList { size: usize, items: Box<Values>, valid: ArrayRef },
    Struct(ArrayRef, Vec<Values>),
}

impl Values {
    fn encode(&self, row: usize, out: &mut impl Encoding) {
        let array = match self {
            Self::Fixed { valid, .. } | Self::FixedList { valid, .. } => valid,
            Self::Bits(a) | Self::Text(a) | Self::Bytes(a) | Self::List(a, _) | Self::Struct(a, _) => a,
        };
        if array.is_null(row) {
            return out.raw(&[NULL]);
        }
        match self {
            Self::Fixed { data, offset, width, .. } => {
                out.raw(&[VALUE]);
                out.raw(&data[(offset + row) * width..(offset + row + 1) * width]);
            }
            Self::Bits(array) => out.raw(&[VALUE, u8::from(array.as_boolean().value(row))]),
            Self::Text(array) => {
                out.raw(&[VALUE]);
                out.sized(array.as_string::<i32>().value(row).as_bytes());
            }
            Self::Bytes(array) => {
                out.raw(&[VALUE]);
                out.sized(array.as_binary::<i32>().value(row));
            }
            Self::List(array, items) => {
                let offsets = array.as_list::<i32>().value_offsets();
                let (start, end) = (offsets[row] as usize, offsets[row + 1] as usize);
                items.encode_items(start, end, Some((end - start) as u64), out);
            }
            Self::FixedList { size, items, .. } => items.encode_items(row * size, (row + 1) * size, None, out),
            Self::Struct(_, fields) => {
                out.raw(&[VALUE]);
                fields.iter().for_each(|field| field.encode(row, out));
            }
        }
    }

    /// Encodes the items of a list, after their number if the type does not fix it.
    fn encode_items(&self, start: usize, end: usize, length: Option<u64>, out: &mut impl Encoding) {
        let run = match self {
            Self::Fixed { data, offset, width, valid } => {
                let has_nulls = valid.null_count() > 0 && valid.slice(start, end - start).null_count() > 0;
                (!has_nulls).then(|| &data[(offset + start) * width..(offset + end) * width])
            }
            _ => None,
        };
        let has_nulls = run.is_none() && matches!(self, Self::Fixed { .. });
        out.raw(&[if has_nulls { VALUE_WITH_NULLS } else { VALUE }]);
        length.iter().for_each(|length| out.raw(&length.to_le_bytes()));
        match run {
            Some(run) => out.raw(run),
            None => (start..end).for_each(|row| self.encode(row, out)),
        }
    }

    fn digest(&self, row: usize) -> Digest {
        let mut hasher = Hasher::new("value");
        self.encode(row, &mut hasher);
        hasher.finish()
    }
}

/// Returns true if a table can hold values of a type.
pub(in crate::engine) fn is_storable(of: &DataType) -> bool {
    match plain(of) {
        DataType::Boolean | DataType::Utf8 | DataType::Binary | DataType::FixedSizeBinary(_) => true,
        DataType::List(item) | DataType::FixedSizeList(item, _) => is_storable(item.data_type()),
        DataType::Struct(fields) => fields.iter().all(|field| is_storable(field.data_type())),
        other => other.primitive_width().is_some(),
    }
}

fn values(array: &ArrayRef) -> Result<Values> {
    Ok(match array.data_type() {
        DataType::Boolean => Values::Bits(array.clone()),
        DataType::Utf8 => Values::Text(array.clone()),
        DataType::Binary => Values::Bytes(array.clone()),
        other if plain(other) != *other => values(&cast(array, &plain(other))?)?,
        DataType::List(_) => Values::List(array.clone(), Box::new(values(array.as_list::<i32>().values())?)),
        DataType::FixedSizeList(_, size) => {
            let list = array.as_fixed_size_list();
            Values::FixedList { size: *size as usize, items: Box::new(values(list.values())?), valid: array.clone() }
        }
        DataType::Struct(_) => {
            let fields = array.as_struct().columns().iter().map(values).collect::<Result<_>>()?;
            Values::Struct(array.clone(), fields)
        }
        DataType::FixedSizeBinary(width) => fixed(array, *width as usize),
        other => match other.primitive_width() {
            Some(width) => fixed(array, width),
            None => return Err(Error::Stage(format!("columns of type {other} cannot be stored in a table"))),
        },
    })
}

fn fixed(array: &ArrayRef, width: usize) -> Values {
    let data = array.to_data();
    Values::Fixed { data: data.buffers()[0].clone(), offset: data.offset(), width, valid: array.clone() }
}

/// Makes a tensor column of Arrow's canonical `arrow.fixed_shape_tensor` extension type: one tensor of `shape`,
/// row-major, per row. The items are never null but declared nullable, because pyarrow otherwise reads the column as
/// plain lists.
pub fn tensor_field(name: &str, item: DataType, shape: &[usize], nullable: bool) -> Field {
    let size = shape.iter().product::<usize>() as i32;
    let item = Arc::new(Field::new_list_field(item, true));
    Field::new(name, DataType::FixedSizeList(item, size), nullable).with_metadata(HashMap::from([
        ("ARROW:extension:name".into(), "arrow.fixed_shape_tensor".into()),
        ("ARROW:extension:metadata".into(), serde_json::json!({ "shape": shape }).to_string()),
    ]))
}

/// Returns the shape of a column made by [`tensor_field`], without the row dimension. Tables that other programs made may
/// name a shape that their lists do not have, or that has no values; such a column is no tensor.
pub fn tensor_shape(field: &Field) -> Option<Vec<usize>> {
    let DataType::FixedSizeList(_, length) = field.data_type() else { return None };
    let metadata: serde_json::Value = serde_json::from_str(field.metadata().get("ARROW:extension:metadata")?).ok()?;
    let side = |side: &serde_json::Value| usize::try_from(side.as_u64()?).ok();
    let shape: Vec<usize> = metadata["shape"].as_array()?.iter().map(side).collect::<Option<_>>()?;
    let size = shape.iter().try_fold(1_usize, |size, side| size.checked_mul(*side))?;
    (size > 0 && i32::try_from(size) == Ok(*length)).then_some(shape)
}

#[cfg(test)]
mod encoding_tests;

#[cfg(test)]
mod tests {
    use arrow::array::{Float32Array, Int64Array, StringArray, StringViewArray};

    use super::*;

    fn schema() -> SchemaRef {
        Arc::new(Schema::new(vec![
            Field::new("id", DataType::Utf8, false),
            tensor_field("x", DataType::Float32, &[2], true),
            volatile(Field::new("seconds", DataType::Int64, true)),
        ]))
    }

    fn batch(ids: &[&str], x: &[f32], seconds: &[i64]) -> RecordBatch {
        let item = Arc::new(Field::new_list_field(DataType::Float32, true));
        let x = arrow::array::FixedSizeListArray::new(item, 2, Arc::new(Float32Array::from(x.to_vec())), None);
        let columns: Vec<ArrayRef> =
            vec![Arc::new(StringArray::from(ids.to_vec())), Arc::new(x), Arc::new(Int64Array::from(seconds.to_vec()))];
        RecordBatch::try_new(schema(), columns).unwrap()
    }

    #[test]
    fn shape_that_the_lists_do_not_have_is_none() {
        let shape = |shape: &str, size| {
            let item = Arc::new(Field::new_list_field(DataType::Float32, true));
            let metadata = HashMap::from([("ARROW:extension:metadata".into(), format!(r#"{{"shape": {shape}}}"#))]);
            tensor_shape(&Field::new("x", DataType::FixedSizeList(item, size), true).with_metadata(metadata))
        };
        assert_eq!(shape("[2, 3]", 6), Some(vec![2, 3]));
        for (wrong, size) in
            [("[2, 3]", 5), ("[1099511627776, 1099511627776]", 6), ("[0, 3]", 0), ("[-2, -3]", 6), ("6", 6)]
        {
            assert_eq!(shape(wrong, size), None, "{wrong} {size}");
        }
        let text = Field::new("x", DataType::Utf8, true);
        assert_eq!(
            tensor_shape(&text.with_metadata(tensor_field("x", DataType::Int8, &[1], true).metadata().clone())),
            None
        );
    }

    #[test]
    fn digest_of_a_row_does_not_depend_on_its_position() {
        let whole = batch(&["a", "b", "c"], &[1., 2., 3., 4., 5., 6.], &[1, 2, 3]);
        let (stored, rows) = to_stored(&schema(), &whole, None).unwrap();
        let (_, last) = to_stored(&schema(), &whole.slice(2, 1), None).unwrap();
        assert_eq!(rows[2], last[0]);
        assert_ne!(rows[0], rows[1]);
        assert_eq!(stored.schema().fields().len(), 4);
        let heavy = stored.column_by_name("x_digest").unwrap().as_fixed_size_binary();
        assert_ne!(heavy.value(0), heavy.value(1));
    }

    #[test]
    fn volatile_columns_do_not_change_row_digests() {
        let digest = |x: f32, seconds| to_stored(&schema(), &batch(&["a"], &[x, 0.], &[seconds]), None).unwrap().1[0];
        assert_eq!(digest(1., 1), digest(1., 9));
        assert_ne!(digest(1., 1), digest(2., 1));
    }

    #[test]
    fn text_in_any_layout_has_one_digest() {
        let field = |data_type| Arc::new(Schema::new(vec![Field::new("t", data_type, true)]));
        let plain: ArrayRef = Arc::new(StringArray::from(vec![Some("x"), None]));
        let view: ArrayRef = Arc::new(StringViewArray::from(vec![Some("x"), None]));
        let of = |a: &ArrayRef| {
            row_digests(&RecordBatch::try_new(field(a.data_type().clone()), vec![a.clone()]).unwrap()).unwrap()
        };
        assert_eq!(of(&plain), of(&view));
        assert_ne!(of(&plain)[0], of(&plain)[1]);
    }

    #[test]
    fn error_of_a_batch_names_the_difference_to_the_schema() {
        let other = RecordBatch::try_from_iter([("id", Arc::new(Int64Array::from(vec![1])) as ArrayRef)]).unwrap();
        let message = to_stored(&schema(), &other, None).unwrap_err().to_string();
        assert!(message.contains("column `id` is Int64 where the schema declares Utf8"), "{message}");
    }
}
