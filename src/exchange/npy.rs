//! NumPy's file format of arrays, version 1.0: a header in the syntax of Python, then the values.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayData, ArrayRef, FixedSizeListArray, make_array},
    buffer::{Buffer, NullBuffer},
    datatypes::{DataType, Field},
};

use crate::engine::{Error, Result};

/// The first bytes of a file, with the version of the format.
const MAGIC: &[u8] = b"\x93NUMPY\x01\x00";
/// The values begin at a multiple of this.
const ALIGNMENT: usize = 64;

/// The types of items with their names in NumPy, little-endian.
const TYPES: [(DataType, &str); 11] = [
    (DataType::Int8, "|i1"),
    (DataType::UInt8, "|u1"),
    (DataType::Int16, "<i2"),
    (DataType::UInt16, "<u2"),
    (DataType::Int32, "<i4"),
    (DataType::UInt32, "<u4"),
    (DataType::Int64, "<i8"),
    (DataType::UInt64, "<u8"),
    (DataType::Float16, "<f2"),
    (DataType::Float32, "<f4"),
    (DataType::Float64, "<f8"),
];

/// Returns true if the values of a tensor can be written.
pub(super) fn holds(item: &DataType) -> bool {
    TYPES.iter().any(|(known, _)| known == item)
}

/// Encodes the values of a tensor of this shape.
pub(super) fn encode(values: &ArrayRef, shape: &[usize]) -> Result<Vec<u8>> {
    let of = values.data_type();
    let name = TYPES.iter().find(|(known, _)| known == of).map(|(_, name)| *name);
    let (name, width) = name
        .zip(of.primitive_width())
        .ok_or_else(|| Error::Stage(format!("a tensor of {of} cannot be written as a NumPy array")))?;
    let sides: String = shape.iter().map(|side| format!("{side}, ")).collect();
    // A tuple of one element ends in a comma.
    let sides = if shape.len() == 1 { sides.trim_end() } else { sides.trim_end_matches(", ") };
    let mut header = format!("{{'descr': '{name}', 'fortran_order': False, 'shape': ({sides}), }}");
    let before = MAGIC.len() + 2;
    let end = (before + header.len() + 1).next_multiple_of(ALIGNMENT);
    header.push_str(&" ".repeat(end - before - header.len() - 1));
    header.push('\n');
    let data = values.to_data();
    let begin = data.offset() * width;
    let content = &data.buffers()[0].as_slice()[begin..begin + data.len() * width];
    let mut bytes = Vec::with_capacity(end + content.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&(header.len() as u16).to_le_bytes());
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(content);
    Ok(bytes)
}

/// An array in a file.
#[derive(Debug, PartialEq)]
pub(super) struct Npy<'a> {
    pub(super) item: DataType,
    pub(super) shape: Vec<usize>,
    /// The values, one after another.
    pub(super) values: &'a [u8],
}

impl<'a> Npy<'a> {
    /// Reads a file. The error says what is wrong with it.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let wrong = |what: &str| format!("it is no NumPy array that can be read: {what}");
        let (length, body) = match bytes.get(..8) {
            Some([0x93, b'N', b'U', b'M', b'P', b'Y', 1, _]) => {
                let length = bytes[8..].first_chunk().map(|length| usize::from(u16::from_le_bytes(*length)));
                (length, bytes.get(10..))
            }
            Some([0x93, b'N', b'U', b'M', b'P', b'Y', 2 | 3, _]) => {
                let length = bytes[8..].first_chunk().map(|length| u32::from_le_bytes(*length) as usize);
                (length, bytes.get(12..))
            }
            _ => return Err(wrong("it does not begin as one")),
        };
        let parts = length.zip(body).and_then(|(length, body)| body.split_at_checked(length));
        let (header, values) = parts.ok_or_else(|| wrong("it is cut short"))?;
        let header = std::str::from_utf8(header).map_err(|_| wrong("its header is not UTF-8"))?;
        let after = |key: &str| header.split_once(&format!("'{key}':")).map(|(_, rest)| rest.trim_start());
        let descr = after("descr").and_then(|rest| rest.strip_prefix('\'')?.split('\'').next()).unwrap_or_default();
        let known = TYPES.iter().find(|(_, name)| *name == descr);
        let item = known.map(|(item, _)| item.clone()).ok_or_else(|| wrong(&format!("its values are `{descr}`")))?;
        if !after("fortran_order").is_some_and(|rest| rest.starts_with("False")) {
            return Err(wrong("its values are in the order of Fortran"));
        }
        let sides = after("shape").and_then(|rest| rest.strip_prefix('(')?.split(')').next());
        let sides = sides.ok_or_else(|| wrong("it has no shape"))?.split(',').map(str::trim);
        let shape = sides.filter(|side| !side.is_empty()).map(str::parse).collect::<Result<Vec<usize>, _>>();
        let shape = shape.map_err(|_| wrong("it has no shape"))?;
        let size = shape.iter().try_fold(item.primitive_width().unwrap_or(1), |size, side| size.checked_mul(*side));
        if size != Some(values.len()) {
            return Err(wrong(&format!("it has {} bytes of values, which do not fit its shape", values.len())));
        }
        Ok(Self { item, shape, values })
    }
}

/// Makes a column of tensors from the bytes of the values of all rows. `valid` is false for rows without a tensor.
pub(super) fn column(item: &DataType, size: usize, bytes: Vec<u8>, valid: Vec<bool>) -> Result<ArrayRef> {
    let length = valid.len() * size;
    // The values are copied if the bytes do not lie as their type needs them.
    let data = ArrayData::builder(item.clone()).len(length).add_buffer(Buffer::from_vec(bytes)).align_buffers(true);
    let field = Arc::new(Field::new_list_field(item.clone(), true));
    let nulls = NullBuffer::from(valid);
    Ok(Arc::new(FixedSizeListArray::try_new(field, size as i32, make_array(data.build()?), Some(nulls))?))
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, Float32Array, UInt8Array};
    use arrow::datatypes::Float32Type;

    use super::*;

    #[test]
    fn header_is_that_of_numpy() {
        let values: ArrayRef = Arc::new(Float32Array::from(vec![0., 1., 2., 3.]).slice(1, 3));
        let bytes = encode(&values, &[3]).unwrap();
        // numpy.save of the same array writes these 128 bytes before the values.
        let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }";
        assert_eq!(&bytes[..10], b"\x93NUMPY\x01\x00\x76\x00");
        assert_eq!(std::str::from_utf8(&bytes[10..128]).unwrap().trim_end(), header);
        assert_eq!(bytes[128..], [1f32, 2., 3.].map(f32::to_le_bytes).concat());
        let bytes = encode(&values, &[1, 3]).unwrap();
        assert!(bytes.windows(15).any(|part| part == b"'shape': (1, 3)"));
    }

    #[test]
    fn array_is_read_as_it_was_written() {
        let values: ArrayRef = Arc::new(UInt8Array::from_iter_values(0..6));
        let bytes = encode(&values, &[2, 3]).unwrap();
        let read = Npy::read(&bytes).unwrap();
        assert_eq!(read, Npy { item: DataType::UInt8, shape: vec![2, 3], values: &[0, 1, 2, 3, 4, 5] });
        for (from, to) in [("|u1", "|S1"), ("False", "True "), ("(2, 3)", "(2, 9)")] {
            let text = bytes.iter().map(|byte| *byte as char).collect::<String>().replace(from, to);
            let wrong: Vec<u8> = text.chars().map(|c| c as u8).collect();
            Npy::read(&wrong).expect_err(to);
        }
        Npy::read(&bytes[..20]).expect_err("it is cut short");
    }

    #[test]
    fn column_has_the_values_of_all_rows() {
        let bytes = [1f32, 2., 0., 0.].map(f32::to_le_bytes).concat();
        let column = column(&DataType::Float32, 2, bytes, vec![true, false]).unwrap();
        let lists = column.as_fixed_size_list();
        assert_eq!(lists.value(0).as_primitive::<Float32Type>().values(), &[1., 2.]);
        assert!(lists.is_null(1));
    }
}
