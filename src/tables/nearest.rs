//! The good patch that is nearest to the most anomalous patch of an image: columns beside its anomaly map.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, Float32Array, RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    column::{has, numbers, text},
    images::id_column,
};
use crate::engine::{Error, Result};

/// The good photograph: its `image_id`.
pub const NEAREST: &str = "nearest";
/// The centre of its patch, as shares of width and height.
const NEAREST_PLACE: [&str; 2] = ["nearest_x", "nearest_y"];
/// The centre of the image's most anomalous patch, as shares of width and height.
const WORST_PLACE: [&str; 2] = ["worst_x", "worst_y"];

/// The good patch that is nearest to the most anomalous patch of a photograph.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Nearest {
    /// The good photograph that it is of.
    pub image_id: String,
    /// Its centre, x and y, as shares of the width and the height of the stored pixels.
    pub at: [f32; 2],
    /// The centre of the most anomalous patch of the judged photograph.
    pub worst: [f32; 2],
}

/// Returns the fields of these columns. All are null for an image of a class without good photographs.
pub fn fields() -> Vec<Field> {
    let places = NEAREST_PLACE.into_iter().chain(WORST_PLACE);
    let places = places.map(|name| Field::new(name, DataType::Float32, true));
    std::iter::once(Field::new(NEAREST, DataType::Utf8, true)).chain(places).collect()
}

/// Returns the columns of some images.
pub fn columns(found: &[Option<Nearest>]) -> Vec<ArrayRef> {
    let all = || found.iter().map(Option::as_ref);
    let ids = StringArray::from_iter(all().map(|nearest| nearest.map(|nearest| nearest.image_id.as_str())));
    let share = |share: fn(&Nearest) -> f32| -> ArrayRef {
        Arc::new(Float32Array::from_iter(all().map(|nearest| nearest.map(share))))
    };
    vec![
        Arc::new(ids),
        share(|nearest| nearest.at[0]),
        share(|nearest| nearest.at[1]),
        share(|nearest| nearest.worst[0]),
        share(|nearest| nearest.worst[1]),
    ]
}

/// Returns true if a table has these columns.
pub fn are_in(schema: &Schema) -> bool {
    has(schema, NEAREST, &DataType::Utf8)
}

/// Returns the names of the columns to read, beside that of the ids.
pub fn names() -> Vec<&'static str> {
    std::iter::once(NEAREST).chain(NEAREST_PLACE).chain(WORST_PLACE).collect()
}

/// Reads the nearest good patches, by image.
pub fn by_image(rows: &RecordBatch) -> Result<HashMap<String, Nearest>> {
    let none = || Error::Stage("a table of nearest patches has no ids of images".into());
    let (ids, nearest) = (text(rows, id_column(&rows.schema()).ok_or_else(none)?)?, text(rows, NEAREST)?);
    let [at, worst] = [NEAREST_PLACE, WORST_PLACE].map(|names| names.map(|name| numbers(rows, name)));
    let ([x, y], [worst_x, worst_y]) = (at, worst);
    let (x, y, worst_x, worst_y) = (x?, y?, worst_x?, worst_y?);
    let place = |x: Option<f64>, y: Option<f64>| x.zip(y).map(|(x, y)| [x as f32, y as f32]);
    let row = |row: usize| {
        let image_id = nearest.is_valid(row).then(|| nearest.value(row).to_owned())?;
        let nearest = Nearest { image_id, at: place(x[row], y[row])?, worst: place(worst_x[row], worst_y[row])? };
        Some((ids.value(row).to_owned(), nearest))
    };
    Ok((0..rows.num_rows()).filter_map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::images::image_id;

    #[test]
    fn columns_are_read_as_they_are_written() {
        let first = Nearest { image_id: "good/a.png".into(), at: [0.25, 0.75], worst: [0.5, 0.125] };
        let second = Nearest { at: [1., 0.], ..first.clone() };
        let mut all: Vec<ArrayRef> = vec![Arc::new(StringArray::from(vec!["1", "2", "3"]))];
        all.extend(columns(&[Some(first.clone()), None, Some(second.clone())]));
        let schema = Schema::new([vec![image_id()], fields()].concat());
        assert!(are_in(&schema) && !are_in(&Schema::new(vec![image_id()])));
        assert_eq!(fields().iter().map(|field| field.name().as_str()).collect::<Vec<_>>(), names());
        let rows = RecordBatch::try_new(Arc::new(schema), all).unwrap();
        assert_eq!(by_image(&rows).unwrap(), [("1".to_owned(), first), ("3".to_owned(), second)].into());
    }
}
