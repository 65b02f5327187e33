//! Checks that the canonical encoding is injective: an independent decoder of its rules recovers the values.

use arrow::{
    array::{
        ArrayData, BinaryArray, BooleanArray, Decimal128Array, FixedSizeBinaryArray, FixedSizeListArray, Float16Array,
        Float32Array, Float64Array, Int8Array, Int64Array, LargeStringArray, ListArray, StringArray, StringViewArray,
        StructArray, TimestampMicrosecondArray, UInt16Array, make_array,
    },
    buffer::{NullBuffer, OffsetBuffer},
    datatypes::Fields,
};
use proptest::prelude::*;

use super::*;

/// A value as decoded, without the type's name.
#[derive(Clone, Debug, PartialEq)]
enum Decoded {
    Null,
    Bytes(Vec<u8>),
    List(Vec<Decoded>),
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(count);
    *bytes = rest;
    taken
}

fn length(bytes: &mut &[u8]) -> usize {
    u64::from_le_bytes(take(bytes, 8).try_into().unwrap()) as usize
}

/// Reads one value of a type from the front of `bytes`.
fn decode(data_type: &DataType, bytes: &mut &[u8]) -> Decoded {
    let mark = take(bytes, 1)[0];
    if mark == NULL {
        return Decoded::Null;
    }
    let with_nulls = mark == VALUE_WITH_NULLS;
    let items = |item: &DataType, count: usize, bytes: &mut &[u8]| {
        let one = |bytes: &mut &[u8]| match item.primitive_width().or(fixed_width(item)) {
            Some(width) if !with_nulls => Decoded::Bytes(take(bytes, width).to_vec()),
            _ => decode(item, bytes),
        };
        Decoded::List((0..count).map(|_| one(bytes)).collect())
    };
    match data_type {
        DataType::List(item) => {
            let count = length(bytes);
            items(item.data_type(), count, bytes)
        }
        DataType::FixedSizeList(item, size) => items(item.data_type(), *size as usize, bytes),
        DataType::Struct(fields) => {
            Decoded::List(fields.iter().map(|field| decode(field.data_type(), bytes)).collect())
        }
        DataType::Boolean => Decoded::Bytes(take(bytes, 1).to_vec()),
        DataType::Utf8 | DataType::Binary => {
            let count = length(bytes);
            Decoded::Bytes(take(bytes, count).to_vec())
        }
        other => Decoded::Bytes(take(bytes, other.primitive_width().or(fixed_width(other)).unwrap()).to_vec()),
    }
}

/// Returns the type without views and dictionaries at any depth.
fn deeply_plain(data_type: &DataType) -> DataType {
    let field = |field: &FieldRef| Arc::new(field.as_ref().clone().with_data_type(deeply_plain(field.data_type())));
    match data_type {
        DataType::List(item) => DataType::List(field(item)),
        DataType::FixedSizeList(item, size) => DataType::FixedSizeList(field(item), *size),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(field).collect()),
        other => plain(other),
    }
}

fn fixed_width(data_type: &DataType) -> Option<usize> {
    if let DataType::FixedSizeBinary(width) = data_type { Some(*width as usize) } else { None }
}

/// Returns the value in a row, read from the array itself.
fn value(array: &ArrayRef, row: usize) -> Decoded {
    if array.is_null(row) {
        return Decoded::Null;
    }
    let all = |items: &ArrayRef| Decoded::List((0..items.len()).map(|row| value(items, row)).collect());
    match array.data_type() {
        DataType::List(_) => all(&array.as_list::<i32>().value(row)),
        DataType::FixedSizeList(..) => all(&array.as_fixed_size_list().value(row)),
        DataType::Struct(_) => Decoded::List(array.as_struct().columns().iter().map(|c| value(c, row)).collect()),
        DataType::Boolean => Decoded::Bytes(vec![u8::from(array.as_boolean().value(row))]),
        DataType::Utf8 => Decoded::Bytes(array.as_string::<i32>().value(row).as_bytes().to_vec()),
        DataType::Binary => Decoded::Bytes(array.as_binary::<i32>().value(row).to_vec()),
        DataType::FixedSizeBinary(_) => Decoded::Bytes(array.as_fixed_size_binary().value(row).to_vec()),
        other => {
            let width = other.primitive_width().unwrap();
            let one: ArrayData = array.slice(row, 1).to_data();
            Decoded::Bytes(one.buffers()[0][one.offset() * width..(one.offset() + 1) * width].to_vec())
        }
    }
}

/// Encodes each row, decodes it and compares. Equal encodings must be of equal values, and none may be a prefix of
/// another.
fn check(array: &ArrayRef) {
    let kept = cast(array, &deeply_plain(array.data_type())).unwrap();
    let values = values(array).unwrap();
    let encoded: Vec<Vec<u8>> = (0..array.len())
        .map(|row| {
            let mut bytes = Vec::new();
            values.encode(row, &mut bytes);
            bytes
        })
        .collect();
    for (row, bytes) in encoded.iter().enumerate() {
        let mut rest = bytes.as_slice();
        assert_eq!(decode(kept.data_type(), &mut rest), value(&kept, row), "{:?}", array.data_type());
        assert!(rest.is_empty(), "{:?}: {} bytes mean nothing", array.data_type(), rest.len());
        for (other, earlier) in encoded[..row].iter().enumerate() {
            let equal = value(&kept, row) == value(&kept, other);
            assert_eq!(earlier == bytes, equal);
            assert!(equal || !(earlier.starts_with(bytes) || bytes.starts_with(earlier)));
        }
    }
}

/// Makes columns of every kind of type that a table can hold from these rows. Few different bytes are used, so that
/// values are similar.
fn columns(rows: &[Option<Vec<Option<u8>>>]) -> Vec<ArrayRef> {
    let first: Vec<Option<u8>> =
        rows.iter().map(|row| row.as_ref().and_then(|row| row.first().copied().flatten())).collect();
    let text =
        |value: &Option<u8>| value.map(|value| "\0".repeat(value as usize % 3) + if value > 1 { "a" } else { "" });
    let texts: Vec<Option<String>> = first.iter().map(text).collect();
    let scalars: Vec<ArrayRef> = vec![
        Arc::new(first.iter().map(|v| v.map(|v| v > 1)).collect::<BooleanArray>()),
        Arc::new(first.iter().map(|v| v.map(|v| v as i8 - 1)).collect::<Int8Array>()),
        Arc::new(first.iter().map(|v| v.map(u16::from)).collect::<UInt16Array>()),
        Arc::new(first.iter().map(|v| v.map(i64::from)).collect::<Int64Array>()),
        Arc::new(first.iter().map(|v| v.map(|v| half::f16::from_bits(u16::from(v) << 14))).collect::<Float16Array>()),
        Arc::new(first.iter().map(|v| v.map(|v| [0., -0., f32::NAN, 1.][v as usize % 4])).collect::<Float32Array>()),
        Arc::new(first.iter().map(|v| v.map(|v| [0., -0., f64::NAN, 1.][v as usize % 4])).collect::<Float64Array>()),
        Arc::new(first.iter().map(|v| v.map(i128::from)).collect::<Decimal128Array>()),
        Arc::new(first.iter().map(|v| v.map(i64::from)).collect::<TimestampMicrosecondArray>().with_timezone("UTC")),
        Arc::new(texts.iter().cloned().collect::<StringArray>()),
        Arc::new(texts.iter().cloned().collect::<LargeStringArray>()),
        Arc::new(texts.iter().cloned().collect::<StringViewArray>()),
        Arc::new(texts.iter().map(|t| t.as_ref().map(|t| t.as_bytes().to_vec())).collect::<BinaryArray>()),
        Arc::new(
            FixedSizeBinaryArray::try_from_sparse_iter_with_size(first.iter().map(|v| v.map(|v| [v, 0])), 2).unwrap(),
        ),
        cast(
            &texts.iter().cloned().collect::<StringArray>(),
            &DataType::Dictionary(DataType::Int8.into(), DataType::Utf8.into()),
        )
        .unwrap(),
    ];
    // Each scalar type is put into lists of both kinds, structs, and lists of lists.
    let nested = scalars.iter().flat_map(|scalar| {
        let items = items_of(scalar, rows);
        let lists = list(&items.0, &items.1, rows);
        let pairs: ArrayRef = Arc::new(StructArray::new(
            Fields::from(vec![
                Field::new("a", scalar.data_type().clone(), true),
                Field::new("b", lists.data_type().clone(), true),
            ]),
            vec![scalar.clone(), lists.clone()],
            Some(rows.iter().map(Option::is_some).collect::<NullBuffer>()),
        ));
        let halves = fixed_list(scalar);
        let deep = list(&lists, &(0..=lists.len() as i32).collect::<Vec<_>>(), rows);
        let of_pairs = list(&pairs, &(0..=pairs.len() as i32).collect::<Vec<_>>(), rows);
        [lists, pairs, halves, deep, of_pairs]
    });
    scalars.iter().cloned().chain(nested.collect::<Vec<_>>()).collect()
}

/// Returns the items of all rows, chosen among the values of a column, and the offsets at which each row's items
/// begin and end.
fn items_of(scalar: &ArrayRef, rows: &[Option<Vec<Option<u8>>>]) -> (ArrayRef, Vec<i32>) {
    let mut offsets = vec![0];
    let mut chosen: Vec<Option<u32>> = Vec::new();
    for row in rows {
        let row = row.as_deref().unwrap_or_default();
        chosen.extend(row.iter().map(|item| item.map(|item| u32::from(item) % scalar.len() as u32)));
        offsets.push(chosen.len() as i32);
    }
    let chosen = arrow::array::UInt32Array::from(chosen);
    (arrow::compute::take(scalar, &chosen, None).unwrap(), offsets)
}

fn list(items: &ArrayRef, offsets: &[i32], rows: &[Option<Vec<Option<u8>>>]) -> ArrayRef {
    let item = Arc::new(Field::new_list_field(items.data_type().clone(), true));
    let valid = rows.iter().map(Option::is_some).collect::<NullBuffer>();
    Arc::new(ListArray::new(item, OffsetBuffer::new(offsets.to_vec().into()), items.clone(), Some(valid)))
}

/// Makes one list of each pair of neighbouring values; every third list is null.
fn fixed_list(scalar: &ArrayRef) -> ArrayRef {
    let pairs = scalar.len() / 2;
    let item = Arc::new(Field::new_list_field(scalar.data_type().clone(), true));
    let valid = (0..pairs).map(|pair| pair % 3 != 2).collect::<NullBuffer>();
    Arc::new(FixedSizeListArray::new(item, 2, scalar.slice(0, 2 * pairs), Some(valid)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn different_values_of_every_type_have_different_encodings(
        rows in proptest::collection::vec(proptest::option::of(proptest::collection::vec(proptest::option::of(0u8..4), 0..4)), 2..9),
    ) {
        for column in columns(&rows) {
            check(&column);
            // The values of a slice begin at an offset.
            check(&column.slice(1, column.len().saturating_sub(1)));
            check(&make_array(column.to_data()));
        }
    }
}

#[test]
fn lists_of_nulls_and_of_zeros_differ() {
    let lists = |rows: Vec<Vec<Option<i8>>>| -> ArrayRef {
        Arc::new(ListArray::from_iter_primitive::<arrow::datatypes::Int8Type, _, _>(rows.into_iter().map(Some)))
    };
    check(&lists(vec![vec![Some(0), Some(0)], vec![None, None], vec![Some(1), Some(0)], vec![Some(0), None], vec![]]));
}

#[test]
fn types_without_an_encoding_are_refused() {
    let nulls: ArrayRef = arrow::array::new_null_array(&DataType::Null, 2);
    let large: ArrayRef = arrow::array::new_null_array(&DataType::new_large_list(DataType::Int8, true), 2);
    for array in [nulls, large] {
        let error = values(&array).err().unwrap().to_string();
        assert!(error.contains("cannot be stored"), "{error}");
    }
}
