//! Tensors as pictures and as nested lists.

use std::{io::Cursor, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, ListArray},
    buffer::OffsetBuffer,
    datatypes::{DataType, Field, UInt8Type},
};
use image::{DynamicImage, ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
use rayon::prelude::*;

use crate::{
    engine::{Error, Result, store::tensor_shape},
    tables::tensor::tensor_row,
};

/// Returns height, width and channels of a column of pictures: tensors of bytes with one, three or four channels;
/// `None` for any other column.
pub(super) fn picture(field: &Field) -> Option<[usize; 3]> {
    let DataType::FixedSizeList(item, _) = field.data_type() else { return None };
    let shape = match *tensor_shape(field)?.as_slice() {
        [height, width] => [height, width, 1],
        [height, width, channels @ (1 | 3 | 4)] => [height, width, channels],
        _ => return None,
    };
    (*item.data_type() == DataType::UInt8 && !shape.contains(&0)).then_some(shape)
}

/// Encodes the pictures of a column as PNG; `None` for a row without one.
pub(super) fn pngs(column: &ArrayRef, shape: [usize; 3]) -> Result<Vec<Option<Vec<u8>>>> {
    let encode = |row| tensor_row::<UInt8Type>(column, row)?.map(|values| png(values, shape)).transpose();
    (0..column.len()).into_par_iter().map(encode).collect()
}

fn png(values: &[u8], [height, width, channels]: [usize; 3]) -> Result<Vec<u8>> {
    let colour = match channels {
        1 => ExtendedColorType::L8,
        3 => ExtendedColorType::Rgb8,
        _ => ExtendedColorType::Rgba8,
    };
    let mut bytes = Vec::new();
    let written = PngEncoder::new(&mut bytes).write_image(values, width as u32, height as u32, colour);
    written.map_err(|e| Error::Stage(format!("a picture cannot be written as PNG: {e}")))?;
    Ok(bytes)
}

/// Decodes a picture to the values of a tensor.
pub(super) fn decode(bytes: &[u8], [height, width, channels]: [usize; 3]) -> Result<Vec<u8>, String> {
    let reader = image::ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| e.to_string())?;
    let decoded = reader.decode().map_err(|e| e.to_string())?;
    let size = (decoded.width() as usize, decoded.height() as usize);
    if size != (width, height) {
        return Err(format!("a picture is {}×{} pixels; the table has pictures of {width}×{height}", size.0, size.1));
    }
    match (decoded, channels) {
        (DynamicImage::ImageLuma8(picture), 1) => Ok(picture.into_raw()),
        (DynamicImage::ImageRgb8(picture), 3) => Ok(picture.into_raw()),
        (DynamicImage::ImageRgba8(picture), 4) => Ok(picture.into_raw()),
        (other, _) => Err(format!("a picture is {:?}; the table has pictures of {channels} channels", other.color())),
    }
}

/// Returns the type of lists within lists that hold tensors of this shape.
pub(super) fn nested_type(item: &DataType, shape: &[usize]) -> DataType {
    shape.iter().fold(item.clone(), |inner, _| DataType::List(Arc::new(Field::new_list_field(inner, true))))
}

/// Returns a column of tensors as lists within lists.
pub(super) fn nested(column: &ArrayRef, shape: &[usize]) -> Result<ArrayRef> {
    let list = column.as_fixed_size_list();
    let size = list.value_length() as usize;
    let mut values = list.values().slice(list.value_offset(0) as usize, list.len() * size);
    for (depth, length) in shape.iter().enumerate().rev() {
        let count: usize = list.len() * shape[..depth].iter().product::<usize>();
        let offsets = OffsetBuffer::from_lengths(std::iter::repeat_n(*length, count));
        let nulls = if depth == 0 { list.nulls().cloned() } else { None };
        let item = Arc::new(Field::new_list_field(values.data_type().clone(), true));
        values = Arc::new(ListArray::try_new(item, offsets, values, nulls)?);
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::Float32Type;

    use super::*;
    use crate::{engine::store::tensor_field, tables::tensor::tensor_column};

    #[test]
    fn bytes_of_one_three_or_four_channels_are_pictures() {
        let of = |item, shape: &[usize]| picture(&tensor_field("x", item, shape, true));
        assert_eq!(of(DataType::UInt8, &[4, 5]), Some([4, 5, 1]));
        assert_eq!(of(DataType::UInt8, &[4, 5, 3]), Some([4, 5, 3]));
        assert_eq!(of(DataType::UInt8, &[4, 5, 2]), None);
        assert_eq!(of(DataType::UInt8, &[4, 0]), None);
        assert_eq!(of(DataType::Float32, &[4, 5]), None);
        assert_eq!(picture(&Field::new("x", DataType::Binary, true)), None);
    }

    #[test]
    fn pictures_are_decoded_to_what_was_encoded() {
        for channels in [1, 3, 4] {
            let values: Vec<u8> = (0..2 * 20 * channels as u8).collect();
            let column = tensor_column::<UInt8Type>(values.clone(), 20 * channels, Some(vec![true, false])).unwrap();
            let encoded = pngs(&column, [4, 5, channels]).unwrap();
            let [Some(png), None] = encoded.as_slice() else { panic!("one of two rows has a picture") };
            assert_eq!(decode(png, [4, 5, channels]).unwrap(), values[..20 * channels]);
            let error = decode(png, [5, 4, channels]).unwrap_err();
            assert!(error.contains("5×4 pixels; the table has pictures of 4×5"), "{error}");
        }
    }

    #[test]
    fn nested_lists_keep_rows_and_shape() {
        let column =
            tensor_column::<Float32Type>((0..18_u8).map(f32::from).collect(), 6, Some(vec![true, false, true]));
        let lists = nested(&column.unwrap().slice(1, 2), &[2, 3]).unwrap();
        assert_eq!(*lists.data_type(), nested_type(&DataType::Float32, &[2, 3]));
        let lists = lists.as_list::<i32>();
        assert!(lists.is_null(0));
        let rows = lists.value(1);
        let rows: Vec<Vec<f32>> = rows
            .as_list::<i32>()
            .iter()
            .map(|row| row.unwrap().as_primitive::<Float32Type>().values().to_vec())
            .collect();
        assert_eq!(rows, [[12., 13., 14.], [15., 16., 17.]]);
    }
}
