//! Regions: the connected places where an anomaly map is above its threshold, in the photograph's own pixels.

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::{AsArray, RecordBatch},
    compute::cast,
    datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, UInt32Type},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::column::{column, numbers, text};
pub use super::images::{CLASS, HEIGHT, IMAGE_ID, WIDTH};
use crate::engine::Result;

/// The id of a region: that of its image, `#` and a number from 1.
pub const REGION_ID: &str = "region_id";
/// The outer contour, `x1, y1, x2, y2, …`: corners of pixels, clockwise; holes are filled.
pub const POLYGON: &str = "polygon";
/// The left edge of the box around the region.
pub const X: &str = "x";
/// The upper edge of the box around the region.
pub const Y: &str = "y";
/// The number of pixels, without holes.
pub const AREA: &str = "area";
/// The mean value of the map in the region.
pub const MEAN_SCORE: &str = "mean_score";
/// The highest value of the map in the region.
pub const MAX_SCORE: &str = "max_score";
/// The horizontal place of the centre of gravity; the middle of the first pixel is at 0.5.
pub const CENTRE_X: &str = "centre_x";
/// The vertical place of the centre of gravity.
pub const CENTRE_Y: &str = "centre_y";

/// Returns the item of polygons.
pub fn polygon_item() -> FieldRef {
    Arc::new(Field::new_list_field(DataType::UInt32, false))
}

/// Returns the schema of regions. [`WIDTH`] and [`HEIGHT`] are those of the box.
pub fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new(REGION_ID, DataType::Utf8, false),
        Field::new(IMAGE_ID, DataType::Utf8, false),
        Field::new(CLASS, DataType::Utf8, false),
        Field::new(POLYGON, DataType::List(polygon_item()), false),
        Field::new(X, DataType::UInt32, false),
        Field::new(Y, DataType::UInt32, false),
        Field::new(WIDTH, DataType::UInt32, false),
        Field::new(HEIGHT, DataType::UInt32, false),
        Field::new(AREA, DataType::UInt64, false),
        Field::new(MEAN_SCORE, DataType::Float32, false),
        Field::new(MAX_SCORE, DataType::Float32, false),
        Field::new(CENTRE_X, DataType::Float32, false),
        Field::new(CENTRE_Y, DataType::Float32, false),
    ]))
}

/// A region, in the photograph's own pixels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Region {
    /// The corners `[x, y]` of its outer contour, clockwise.
    pub polygon: Vec<(u32, u32)>,
    /// The box around it: left and upper edge, width and height.
    #[serde(rename = "box")]
    pub bounds: [u32; 4],
    /// The number of its pixels.
    pub area: u64,
    /// The mean value of the map in it.
    pub mean_score: f32,
    /// The highest value of the map in it.
    pub max_score: f32,
    /// The centre of gravity, `[x, y]`.
    pub centre: [f32; 2],
}

impl Region {
    /// Reads the rows of a table of regions, by image and in the order of the table.
    pub fn by_image(batch: &RecordBatch) -> Result<BTreeMap<String, Vec<Self>>> {
        let images = text(batch, IMAGE_ID)?;
        let polygons = column(batch, POLYGON)?.as_list::<i32>();
        let [x, y, width, height, area] = [X, Y, WIDTH, HEIGHT, AREA].map(|name| numbers(batch, name));
        let (x, y, width, height, area) = (x?, y?, width?, height?, area?);
        let [mean, max, across, down] = [MEAN_SCORE, MAX_SCORE, CENTRE_X, CENTRE_Y].map(|name| numbers(batch, name));
        let (mean, max, across, down) = (mean?, max?, across?, down?);
        let mut found: BTreeMap<String, Vec<Self>> = BTreeMap::new();
        for row in 0..batch.num_rows() {
            let corners = cast(&polygons.value(row), &DataType::UInt32)?;
            let (pairs, _) = corners.as_primitive::<UInt32Type>().values().as_chunks::<2>();
            let whole = |values: &[Option<f64>]| values[row].unwrap_or_default() as u32;
            let float = |values: &[Option<f64>]| values[row].unwrap_or_default() as f32;
            found.entry(images.value(row).to_owned()).or_default().push(Self {
                polygon: pairs.iter().map(|[x, y]| (*x, *y)).collect(),
                bounds: [whole(&x), whole(&y), whole(&width), whole(&height)],
                area: area[row].unwrap_or_default() as u64,
                mean_score: float(&mean),
                max_score: float(&max),
                centre: [float(&across), float(&down)],
            });
        }
        Ok(found)
    }
}
