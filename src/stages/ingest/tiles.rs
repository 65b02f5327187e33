//! Tiles of photographs: the listing with a row for each.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use arrow::{
    array::{ArrayRef, AsArray, Int32Array, RecordBatch, StringArray, UInt32Array},
    compute::take,
    datatypes::{DataType, Field},
};
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    files::{IMAGES, PictureFiles},
    listed::{batch_of, listing},
};
use crate::{
    engine::{Digest, Result, stage::Batch},
    tables::{
        column::column,
        images::{DEFECT, HEIGHT, IMAGE_ID, LABEL, WIDTH},
        tiles::{self, PHOTOGRAPH, SCALED_HEIGHT, SCALED_WIDTH, X, Y},
    },
    vision::{decode, mosaic},
};

/// The columns of a listing of tiles that have the label and the kind of defect of the photograph. Those of a tile are
/// known when its mask is.
pub(super) const PHOTOGRAPH_LABEL: &str = "photograph_label";
pub(super) const PHOTOGRAPH_DEFECT: &str = "photograph_defect";

/// The way in which photographs are cut into tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
pub struct Tile {
    /// The number of pixels that neighbouring tiles share, at most half of a tile. The last tile in a row or column
    /// shares more, because it ends where the photograph ends.
    #[garde(range(max = 1024))]
    pub overlap: u32,
}

impl Default for Tile {
    fn default() -> Self {
        Self { overlap: 32 }
    }
}

/// A photograph's size, and that after it is resized, (width, height).
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) photograph: (u32, u32),
    pub(super) scaled: (u32, u32),
}

/// Returns the size of each listed photograph; `None` of one that cannot be read. Sizes are remembered by content.
pub(super) fn sizes(
    photographs: &RecordBatch,
    files: &PictureFiles<'_>,
    turn_by_exif: bool,
) -> Result<Vec<Option<(u32, u32)>>> {
    /// The number of photographs that are read at a time.
    const AT_ONCE: usize = 8;
    let kind = if turn_by_exif { "sizes" } else { "sizes-as-stored" };
    let contents = column(photographs, IMAGES.content)?.as_fixed_size_binary();
    let contents: Vec<Option<Digest>> = contents.iter().map(|content| Digest::from_slice(content?)).collect();
    let mut known: BTreeMap<Digest, (u32, u32)> = files.sources.recall(kind, files.folder);
    let is_known = |row: &u32| contents[*row as usize].is_some_and(|content| known.contains_key(&content));
    let unknown: Vec<u32> = (0..contents.len() as u32).filter(|row| !is_known(row)).collect();
    for rows in unknown.chunks(AT_ONCE) {
        for file in files.images(&batch_of(photographs, rows)?)? {
            let Some(content) = file.content else { continue };
            // A photograph that cannot be read fails as a row.
            known.extend(file.decode(decode::size, turn_by_exif).ok().map(|(_, size)| (content, size)));
        }
    }
    if !unknown.is_empty() {
        let listed: BTreeSet<Digest> = contents.iter().copied().flatten().collect();
        known.retain(|content, _| listed.contains(content));
        files.sources.remember(kind, files.folder, &known);
    }
    Ok(contents.into_iter().map(|content| known.get(&content?).copied()).collect())
}

/// Makes the listing of tiles of this size (width, height) from that of photographs. A photograph without a size has one
/// tile, which fails when it is read.
pub(super) fn list(
    photographs: &RecordBatch,
    sizes: &[Option<Sizes>],
    size: (u32, u32),
    overlap: u32,
) -> Result<RecordBatch> {
    let (mut rows, mut places) = (Vec::new(), Vec::new());
    for (row, sizes) in (0..).zip(sizes) {
        let scaled = sizes.map_or((1, 1), |sizes| sizes.scaled);
        let xs = mosaic::starts(scaled.0, size.0, overlap);
        for y in mosaic::starts(scaled.1, size.1, overlap) {
            places.extend(xs.iter().map(|x| (*x, y)));
        }
        rows.resize(places.len(), row);
    }
    let rows = UInt32Array::from(rows);
    let schema = photographs.schema();
    let mut columns = Vec::new();
    for (field, column) in schema.fields().iter().zip(photographs.columns()) {
        let name = match field.name().as_str() {
            IMAGE_ID => PHOTOGRAPH,
            LABEL => PHOTOGRAPH_LABEL,
            DEFECT => PHOTOGRAPH_DEFECT,
            name => name,
        };
        columns.push((field.as_ref().clone().with_name(name), take(column, &rows, None)?));
    }
    let photographs = columns[0].1.as_string::<i32>().clone();
    let ids = photographs.iter().zip(&places).map(|(id, place)| tiles::id(id.unwrap_or_default(), *place));
    let ids = (Field::new(IMAGE_ID, DataType::Utf8, true), Arc::new(StringArray::from_iter_values(ids)) as ArrayRef);
    columns.insert(0, ids);
    let place =
        |name: &str, values: Int32Array| (Field::new(name, DataType::Int32, true), Arc::new(values) as ArrayRef);
    columns.push(place(X, places.iter().map(|(x, _)| *x).collect()));
    columns.push(place(Y, places.iter().map(|(_, y)| *y).collect()));
    let sides: [(&str, fn(Sizes) -> u32); 4] = [
        (WIDTH, |sizes| sizes.photograph.0),
        (HEIGHT, |sizes| sizes.photograph.1),
        (SCALED_WIDTH, |sizes| sizes.scaled.0),
        (SCALED_HEIGHT, |sizes| sizes.scaled.1),
    ];
    for (name, side) in sides {
        let values: UInt32Array = rows.values().iter().map(|row| sizes[*row as usize].map(side)).collect();
        columns.push((Field::new(name, DataType::UInt32, true), Arc::new(values) as ArrayRef));
    }
    listing(columns)
}

/// Returns the first and the end of each photograph's neighbouring tiles in a batch.
pub(super) fn by_photograph(batch: &Batch, photographs: &StringArray) -> Vec<(usize, usize)> {
    let starts = (0..batch.len()).filter(|row| *row == 0 || photographs.value(*row) != photographs.value(row - 1));
    let starts: Vec<usize> = starts.collect();
    let ends = starts.iter().skip(1).copied().chain([batch.len()]);
    starts.iter().copied().zip(ends).collect()
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{Array, BooleanArray},
        datatypes::Int32Type,
    };

    use super::*;

    #[test]
    fn each_photograph_has_a_row_for_each_tile() {
        let text = |values: &[&str]| Arc::new(StringArray::from_iter_values(values)) as ArrayRef;
        let labels: ArrayRef = Arc::new(BooleanArray::from(vec![Some(true), Some(false), None]));
        let columns = [(IMAGE_ID, text(&["a", "b", "c"])), (LABEL, labels), (DEFECT, text(&["dent", "good", "?"]))];
        let photographs = RecordBatch::try_from_iter_with_nullable(columns.map(|(name, of)| (name, of, true))).unwrap();
        let sizes = |photograph, scaled| Some(Sizes { photograph, scaled });
        let sizes = [sizes((100, 40), (50, 20)), None, sizes((30, 16), (30, 16))];
        let listed = list(&photographs, &sizes, (32, 16), 8).unwrap();
        let ids: Vec<&str> = listed.column(0).as_string::<i32>().iter().flatten().collect();
        assert_eq!(ids, ["a@0,0", "a@18,0", "a@0,4", "a@18,4", "b@-15,-7", "c@-1,0"]);
        let integers = |name| listed[name].as_primitive::<Int32Type>().values().to_vec();
        assert_eq!((integers(X), integers(Y)), (vec![0, 18, 0, 18, -15, -1], vec![0, 0, 4, 4, -7, 0]));
        let sides = |name| listed[name].as_primitive::<arrow::datatypes::UInt32Type>().iter().collect::<Vec<_>>();
        assert_eq!(sides(WIDTH)[3..], [Some(100), None, Some(30)]);
        assert_eq!(sides(SCALED_HEIGHT)[3..], [Some(20), None, Some(16)]);
        assert!(listed[PHOTOGRAPH_LABEL].as_boolean().value(0) && listed[PHOTOGRAPH_LABEL].is_null(5));
        assert!(listed.column_by_name(LABEL).is_none(), "the label of a tile is not known yet");
    }
}
