//! Regions: the connected places where an anomaly map is above its threshold, in the photograph's own pixels.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};

pub use super::images::{CLASS, HEIGHT, IMAGE_ID, WIDTH};

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
