//! Columns of tensors, and of lists of numbers of any length, read page by page.
//!
//! Parquet stores a tensor as a list, with two numbers beside each item, its *levels*, which say where a list begins and what is
//! null. The general reader unpacks the levels of all items and makes the lists of them, which takes several times as long as
//! unpacking the items. Equal levels that follow one another are stored as one level and its number, and are compared as such
//! here: a tensor of any size has three or four.

use std::sync::Arc;

use arrow::{
    array::{ArrayData, ArrayRef, FixedSizeListArray, ListArray, make_array},
    buffer::{MutableBuffer, NullBuffer, OffsetBuffer},
    datatypes::{DataType, Field, FieldRef},
};
use bytes::{Buf, Bytes};
use parquet::{
    basic::{Encoding, Type},
    column::page::{Page, PageReader},
    file::{metadata::ParquetMetaData, reader::ChunkReader, serialized_reader::SerializedPageReader},
    schema::types::ColumnDescriptor,
};

use crate::engine::Result;

/// The number of bytes up to which memory is reserved at once: a damaged part may name tensors of any size.
const MOST_RESERVED: usize = 1 << 30;

/// Reads chosen rows of a column of tensors or lists, a few at a time.
pub(super) struct TensorReader {
    field: FieldRef,
    layout: Layout,
    /// Opens the pages of a row group.
    open: Box<dyn Fn(usize) -> Result<Box<dyn PageReader>> + Send>,
    /// The numbers of rows of the row groups.
    groups: Vec<u64>,
    /// The number of the next row group.
    group: usize,
    /// The pages that follow in the row group that is read, and the number of the first row after it.
    pages: Option<(Box<dyn PageReader>, u64)>,
    page: Option<TensorPage>,
    /// The number of the next row.
    row: u64,
    /// The runs of chosen rows that are not read to their end, the last one first.
    chosen: Vec<(u64, u64)>,
}

/// A row as it is stored.
enum Stored {
    Tensor(Bytes),
    Null,
    /// There are no rows any more.
    End,
    /// The page is not made of whole tensors.
    Otherwise,
}

impl TensorReader {
    /// Starts to read; `chosen` are ascending runs of rows. Returns `None` if the column is of another type than those that this
    /// program stores as tensors.
    pub(super) fn new(
        part: &Arc<impl ChunkReader + 'static>,
        metadata: &Arc<ParquetMetaData>,
        root: usize,
        field: &FieldRef,
        chosen: &[(u64, u64)],
    ) -> Option<Self> {
        let schema = metadata.file_metadata().schema_descr();
        let leaf = (0..schema.num_columns()).find(|leaf| schema.get_column_root_idx(*leaf) == root)?;
        let layout = Layout::of(field, &schema.column(leaf))?;
        let groups = metadata.row_groups().iter().map(|group| group.num_rows() as u64).collect();
        let (part, metadata) = (part.clone(), metadata.clone());
        let open = move |group: usize| -> Result<Box<dyn PageReader>> {
            let group = metadata.row_group(group);
            let rows = group.num_rows() as usize;
            Ok(Box::new(SerializedPageReader::new(part.clone(), group.column(leaf), rows, None)?))
        };
        let chosen = chosen.iter().rev().copied().collect();
        let (field, open) = (field.clone(), Box::new(open));
        Some(Self { field, layout, open, groups, group: 0, pages: None, page: None, row: 0, chosen })
    }

    /// Reads the next chosen rows, or all that are left if these are fewer.
    ///
    /// Returns `None` if they are stored in another way than the one in which this program stores tensors: items that are null,
    /// dictionaries, tensors that continue on the next page; or if they are more than a column has room for.
    pub(super) fn next(&mut self, rows: usize) -> Result<Option<ArrayRef>> {
        let mut tensors = Tensors::new(self.layout, rows);
        while tensors.valid.len() < rows {
            let stored = self.stored()?;
            let is_chosen = self.pass_row();
            match stored {
                Stored::End => break,
                Stored::Otherwise => return Ok(None),
                Stored::Tensor(tensor) if is_chosen => tensors.push(Some(&tensor)),
                Stored::Null if is_chosen => tensors.push(None),
                Stored::Tensor(_) | Stored::Null => {}
            }
        }
        tensors.finish(&self.field)
    }

    /// Returns the next row, after row groups without chosen rows.
    fn stored(&mut self) -> Result<Stored> {
        loop {
            if let Some(page) = self.page.as_mut().filter(|page| page.left > 0) {
                return Ok(page.next(self.layout).unwrap_or(Stored::Otherwise));
            }
            if let Some((pages, end)) = &mut self.pages {
                let Some(page) = pages.get_next_page()? else {
                    let is_whole = self.row == *end;
                    (self.pages, self.page) = (None, None);
                    if is_whole {
                        continue;
                    }
                    return Ok(Stored::Otherwise);
                };
                self.page = TensorPage::of(page, self.layout);
                if self.page.is_none() {
                    return Ok(Stored::Otherwise);
                }
                continue;
            }
            let Some(rows) = self.groups.get(self.group) else { return Ok(Stored::End) };
            let end = self.row.saturating_add(*rows);
            if self.chosen.last().is_some_and(|(first, _)| *first < end) {
                self.pages = Some(((self.open)(self.group)?, end));
            } else {
                self.row = end;
            }
            self.group += 1;
        }
    }

    /// Goes on to the row after the next one; returns true if that is chosen.
    fn pass_row(&mut self) -> bool {
        let row = self.row;
        self.row += 1;
        let Some((first, count)) = self.chosen.last() else { return false };
        let chosen = *first..first.saturating_add(*count);
        if chosen.end <= self.row {
            self.chosen.pop();
        }
        chosen.contains(&row)
    }
}

/// The way in which a column is stored, and what it is read into.
#[derive(Clone, Copy)]
struct Layout {
    /// Items of a tensor; `None` for lists.
    size: Option<usize>,
    /// Bytes of an item in a page, whose first bytes are the item.
    stored: usize,
    /// Bytes of an item in memory.
    width: usize,
    /// The level of an item. That of a tensor that is null is 0, and that of an empty list lies above it.
    item_level: u8,
    is_nullable: bool,
}

impl Layout {
    fn of(field: &Field, column: &ColumnDescriptor) -> Option<Self> {
        let (item, size) = match field.data_type() {
            DataType::FixedSizeList(item, size) => (item, Some(usize::try_from(*size).ok().filter(|size| *size > 0)?)),
            DataType::List(item) => (item, None),
            _ => return None,
        };
        let (stored, width) = match (item.data_type(), column.physical_type()) {
            (DataType::Float16, Type::FIXED_LEN_BYTE_ARRAY) if column.type_length() == 2 => (2, 2),
            (DataType::Float32, Type::FLOAT) | (DataType::Int32 | DataType::UInt32, Type::INT32) => (4, 4),
            (DataType::Float64, Type::DOUBLE) | (DataType::Int64 | DataType::UInt64, Type::INT64) => (8, 8),
            (DataType::UInt8 | DataType::Int8, Type::INT32) => (4, 1),
            _ => return None,
        };
        let item_level = 1 + u8::from(field.is_nullable()) + u8::from(item.is_nullable());
        let is_list = column.max_rep_level() == 1 && column.max_def_level() == i16::from(item_level);
        let layout = Self { size, stored, width, item_level, is_nullable: field.is_nullable() };
        (is_list && cfg!(target_endian = "little")).then_some(layout)
    }
}

/// A page of whole tensors, of which some were read.
struct TensorPage {
    repetition: Runs,
    definition: Runs,
    /// The items.
    values: Bytes,
    /// The number of levels that were not read.
    left: usize,
}

impl TensorPage {
    /// Returns `None` for a page that this program does not write for tensors.
    fn of(page: Page, layout: Layout) -> Option<Self> {
        let Page::DataPage { mut buf, num_values, encoding, def_level_encoding, rep_level_encoding, .. } = page else {
            return None;
        };
        if [encoding, def_level_encoding, rep_level_encoding] != [Encoding::PLAIN, Encoding::RLE, Encoding::RLE] {
            return None;
        }
        let repetition = Runs::new(levels(&mut buf)?, 1);
        let definition = Runs::new(levels(&mut buf)?, u8::BITS - layout.item_level.leading_zeros());
        Some(Self { repetition, definition, values: buf, left: num_values as usize })
    }

    /// Reads the next row; `None` if it is not a whole tensor.
    fn next(&mut self, Layout { size, stored, item_level, is_nullable, .. }: Layout) -> Option<Stored> {
        self.repetition.take(0, 1)?;
        let row = if is_nullable && self.definition.take(0, 1).is_some() {
            self.left -= 1;
            Stored::Null
        } else if size.is_none() && self.definition.take(u8::from(is_nullable), 1).is_some() {
            self.left -= 1;
            Stored::Tensor(Bytes::new())
        } else {
            let size = match size {
                Some(size) => self.repetition.take(1, size - 1).map(|()| size)?,
                None => 1 + self.repetition.take_all(1),
            };
            self.definition.take(item_level, size)?;
            self.left = self.left.checked_sub(size)?;
            let bytes = size.checked_mul(stored).filter(|bytes| *bytes <= self.values.len())?;
            Stored::Tensor(self.values.split_to(bytes))
        };
        (self.left > 0 || self.values.is_empty()).then_some(row)
    }
}

/// Tensors or lists that were read.
struct Tensors {
    layout: Layout,
    items: MutableBuffer,
    /// The number of items of each.
    lengths: Vec<usize>,
    /// False for a tensor that is null.
    valid: Vec<bool>,
}

impl Tensors {
    fn new(layout: Layout, rows: usize) -> Self {
        let bytes = rows.saturating_mul(layout.size.unwrap_or_default() * layout.width).min(MOST_RESERVED);
        Self { layout, items: MutableBuffer::with_capacity(bytes), lengths: Vec::new(), valid: Vec::new() }
    }

    /// Adds a tensor as its items are stored, or a null.
    fn push(&mut self, tensor: Option<&[u8]>) {
        let Layout { size, stored, width, .. } = self.layout;
        let length = tensor.map_or(size.unwrap_or_default(), |items| items.len() / stored);
        self.valid.push(tensor.is_some());
        self.lengths.push(length);
        match tensor {
            Some(items) if stored == width => self.items.extend_from_slice(items),
            tensor => {
                let start = self.items.len();
                self.items.resize(start + length * width, 0);
                let items = self.items.as_slice_mut()[start..].iter_mut();
                let tensor = tensor.unwrap_or_default().as_chunks::<4>().0;
                items.zip(tensor).for_each(|(item, stored)| *item = stored[0]);
            }
        }
    }

    fn finish(self, field: &Field) -> Result<Option<ArrayRef>> {
        let length: usize = self.lengths.iter().sum();
        let valid = self.valid.contains(&false).then(|| NullBuffer::from(self.valid));
        let items = |item: &Field| {
            ArrayData::builder(item.data_type().clone())
                .len(length)
                .add_buffer(self.items.into())
                .build()
                .map(make_array)
        };
        Ok(match field.data_type() {
            DataType::FixedSizeList(item, size) => {
                Some(Arc::new(FixedSizeListArray::try_new(item.clone(), *size, items(item)?, valid)?))
            }
            DataType::List(item) if i32::try_from(length).is_ok() => {
                let offsets = OffsetBuffer::from_lengths(self.lengths);
                Some(Arc::new(ListArray::try_new(item.clone(), offsets, items(item)?, valid)?))
            }
            _ => None,
        })
    }
}

/// Takes levels, which are stored after their length.
fn levels(bytes: &mut Bytes) -> Option<Bytes> {
    let length = bytes.try_get_u32_le().ok()? as usize;
    (length <= bytes.len()).then(|| bytes.split_to(length))
}

/// Levels as Parquet stores them: in turns a level with the number of its repetitions, and groups of eight levels of some bits
/// each.
struct Runs {
    bytes: Bytes,
    /// Bits of a level, 1 or 2.
    bits: u32,
    /// The level that comes next, and how often.
    level: u8,
    length: usize,
    /// Bytes of groups at the front.
    grouped: usize,
    /// The level within the first byte of a group that comes next.
    at: u32,
}

impl Runs {
    fn new(bytes: Bytes, bits: u32) -> Self {
        Self { bytes, bits, level: 0, length: 0, grouped: 0, at: 0 }
    }

    /// Takes this number of levels; `None` if there are fewer or one of them is another one. If the first one is, none is taken.
    fn take(&mut self, level: u8, mut count: usize) -> Option<()> {
        while count > 0 {
            if self.length == 0 {
                self.next_run()?;
            }
            if self.level != level {
                return None;
            }
            let taken = count.min(self.length);
            self.length -= taken;
            count -= taken;
        }
        Some(())
    }

    /// Takes all levels up to another one, or up to the end; returns their number.
    fn take_all(&mut self, level: u8) -> usize {
        let mut taken = 0;
        while (self.length > 0 || self.next_run().is_some()) && self.level == level {
            taken += std::mem::take(&mut self.length);
        }
        taken
    }

    fn next_run(&mut self) -> Option<()> {
        while self.length == 0 {
            if self.grouped > 0 {
                let byte = self.bytes.first()?;
                (self.level, self.length) = (byte >> (self.at * self.bits) & ((1 << self.bits) - 1), 1);
                self.at += 1;
                if self.at * self.bits == 8 {
                    self.bytes.advance(1);
                    (self.grouped, self.at) = (self.grouped - 1, 0);
                }
                continue;
            }
            let header = self.number()?;
            if header & 1 == 1 {
                // A group of eight has as many bytes as a level has bits.
                self.grouped = (header >> 1).checked_mul(self.bits as usize)?;
            } else {
                (self.level, self.length) = (self.bytes.try_get_u8().ok()?, header >> 1);
            }
        }
        Some(())
    }

    /// Takes a number whose bytes have seven bits each, the lowest first, and say if another one follows.
    fn number(&mut self) -> Option<usize> {
        let mut number = 0;
        for shift in (0..usize::BITS).step_by(7) {
            let byte = self.bytes.try_get_u8().ok()?;
            number |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{Array, AsArray, Float16Array, Float32Array, RecordBatch, UInt8Array, UInt16Array},
        buffer::BooleanBuffer,
        datatypes::{Float16Type, Schema},
    };
    use half::f16;
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    use super::*;
    use crate::engine::store::{Encoder, tensor_field};

    const SIZE: usize = 300;

    /// Stores tensors, of which each for which `is_null` is true is null, in groups of `group` rows.
    fn stored(
        items: ArrayRef,
        is_null: impl Fn(usize) -> bool,
        is_nullable: bool,
        group: usize,
    ) -> (RecordBatch, Bytes) {
        let field = tensor_field("x", items.data_type().clone(), &[SIZE], is_nullable);
        let DataType::FixedSizeList(item, size) = field.data_type() else { unreachable!() };
        let rows = items.len() / SIZE;
        let valid = NullBuffer::new(BooleanBuffer::collect_bool(rows, |row| !is_null(row)));
        let valid = Some(valid).filter(|valid| valid.null_count() > 0);
        let list = FixedSizeListArray::new(item.clone(), *size, items, valid);
        let batch = RecordBatch::try_new(Arc::new(Schema::new(vec![field])), vec![Arc::new(list)]).unwrap();
        let encoder = Encoder::in_groups(batch.schema(), group);
        encoder.write(batch.clone());
        (batch, encoder.finish().unwrap())
    }

    /// Reads chosen rows, `at_a_time` of them.
    fn read_back(part: &Bytes, chosen: &[(u64, u64)], at_a_time: usize) -> Option<Vec<ArrayRef>> {
        let builder = ParquetRecordBatchReaderBuilder::try_new(part.clone()).unwrap();
        let field = &builder.schema().fields()[0];
        let mut reader = TensorReader::new(&Arc::new(part.clone()), builder.metadata(), 0, field, chosen)?;
        let mut read = Vec::new();
        loop {
            read.push(reader.next(at_a_time).unwrap()?);
            if read[read.len() - 1].len() < at_a_time {
                return Some(read);
            }
        }
    }

    /// Compares tensors and not what lies behind those that are null.
    fn assert_equal(read: &ArrayRef, expected: &ArrayRef) {
        let (read, expected) = (read.as_fixed_size_list(), expected.as_fixed_size_list());
        assert_eq!(read.iter().collect::<Vec<_>>(), expected.iter().collect::<Vec<_>>());
    }

    #[test]
    fn tensors_of_any_nulls_come_back_in_chosen_rows() {
        let rows = 2000;
        let noise = |i: usize| (i as u32).wrapping_mul(2_654_435_761) >> 8;
        let halves: ArrayRef = Arc::new(Float16Array::from_iter_values(
            (0..rows * SIZE).map(|i| f16::from_bits(noise(i) as u16 & 0x7bff)),
        ));
        let bytes: ArrayRef = Arc::new(UInt8Array::from_iter_values((0..rows * SIZE).map(|i| noise(i) as u8)));
        let singles: ArrayRef = Arc::new(Float32Array::from_iter_values((0..rows * SIZE).map(|i| noise(i) as f32)));
        let nulls: [fn(usize) -> bool; 5] =
            [|_| false, |row| row % 2 == 0, |row| row < 9 || row == 1999, |row| row % 97 > 3, |_| true];
        let runs: [&[(u64, u64)]; 4] = [&[(0, 2000)], &[(3, 1), (5, 2), (1990, 10)], &[(640, 700)], &[]];
        for items in [halves, bytes, singles] {
            for (number, is_null) in nulls.into_iter().enumerate() {
                let (batch, part) = stored(items.clone(), is_null, number > 0, 640);
                for (chosen, at_a_time) in runs.into_iter().zip([3000, 1, 123, 9]) {
                    let slices =
                        chosen.iter().map(|(first, count)| batch.column(0).slice(*first as usize, *count as usize));
                    let slices: Vec<ArrayRef> = slices.collect();
                    let read = read_back(&part, chosen, at_a_time).unwrap();
                    let whole = |arrays: &[ArrayRef]| {
                        let arrays: Vec<&dyn Array> = arrays.iter().map(|array| &**array).collect();
                        arrow::compute::concat(&arrays).unwrap()
                    };
                    match &slices[..] {
                        [] => assert_eq!(whole(&read).len(), 0),
                        slices => assert_equal(&whole(&read), &whole(slices)),
                    }
                }
                // Rows that the part does not have are left out.
                assert_eq!(read_back(&part, &[(1999, 5)], 7).unwrap()[0].len(), 1);
            }
        }
    }

    #[test]
    fn lists_of_any_length_come_back_in_chosen_rows() {
        let list = |row: usize| match row % 5 {
            0 => None,
            1 => Some(vec![]),
            _ => Some((0..row % 71).map(|i| Some(f16::from_bits((row * 31 + i) as u16 & 0x7bff))).collect::<Vec<_>>()),
        };
        let rows = 1500;
        for is_nullable in [true, false] {
            let lists = (0..rows).map(|row| if is_nullable { list(row) } else { list(row).or_else(|| Some(vec![])) });
            let lists = ListArray::from_iter_primitive::<Float16Type, _, _>(lists);
            let item = Arc::new(Field::new_list_field(DataType::Float16, false));
            let lists =
                ListArray::new(item.clone(), lists.offsets().clone(), lists.values().clone(), lists.nulls().cloned());
            let field = Field::new("x", DataType::List(item), is_nullable);
            let batch = RecordBatch::try_new(Arc::new(Schema::new(vec![field])), vec![Arc::new(lists)]).unwrap();
            let encoder = Encoder::in_groups(batch.schema(), 640);
            encoder.write(batch.clone());
            let part = encoder.finish().unwrap();
            for (chosen, at_a_time) in
                [(&[(0, 1500)][..], 2000), (&[(3, 1), (5, 2), (1490, 10)], 1), (&[(630, 700)], 9)]
            {
                let read = read_back(&part, chosen, at_a_time).unwrap();
                let read = read.iter().flat_map(|lists| lists.as_list::<i32>().iter().collect::<Vec<_>>());
                let expected = chosen.iter().flat_map(|(first, count)| {
                    batch.column(0).slice(*first as usize, *count as usize).as_list::<i32>().iter().collect::<Vec<_>>()
                });
                assert_eq!(read.collect::<Vec<_>>(), expected.collect::<Vec<_>>(), "{is_nullable} {chosen:?}");
            }
        }
    }

    #[test]
    fn items_that_are_null_and_other_types_are_left_to_the_general_reader() {
        let items = (0..4 * SIZE).map(|i| (i != 700).then_some(i as f32));
        let (_, part) = stored(Arc::new(Float32Array::from_iter(items)), |_| false, true, 10);
        assert!(read_back(&part, &[(0, 4)], 4).is_none());
        let (_, part) = stored(Arc::new(UInt16Array::from_iter_values(0..4 * SIZE as u16)), |_| false, true, 10);
        assert!(read_back(&part, &[(0, 4)], 4).is_none());
    }

    #[test]
    fn levels_in_runs_and_groups_are_taken_one_after_another() {
        // Five times 2; a group of 1, 2, 0, 1, 3, 3, 3, 3; once 3.
        let bytes = [5 << 1, 2, 1 << 1 | 1, 0b01_00_10_01, 0xff, 1 << 1, 3];
        let runs = |bytes: &[u8], bits| Runs::new(Bytes::copy_from_slice(bytes), bits);
        let mut two = runs(&bytes, 2);
        assert_eq!(two.take(1, 1), None);
        let taken =
            [(2, 3), (2, 2), (1, 1), (2, 1), (0, 1), (1, 1), (3, 5)].map(|(level, count)| two.take(level, count));
        assert_eq!(taken, [Some(()); 7]);
        assert_eq!(two.take(3, 1), None);
        assert_eq!(runs(&[0xff; 12], 1).take(1, 1), None);
        assert_eq!([two.take_all(2), runs(&bytes, 2).take_all(2)], [0, 5]);
        assert_eq!(runs(&[2 << 1, 1, 3 << 1, 1], 1).take_all(1), 5);
        // A length of two bytes.
        assert_eq!(runs(&[0x80, 0x08, 1], 1).take(1, 512), Some(()));
    }
}
