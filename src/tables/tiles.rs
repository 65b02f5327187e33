//! Tiles: the columns of a table of images whose rows are parts of photographs, beside those of [`images`](super::images).

use arrow::datatypes::{DataType, Field, Schema};

use super::column::has;
use crate::engine::stage::{Misfit, PIECE, Schemas};

/// The id of the photograph.
pub const PHOTOGRAPH: &str = "photograph";
/// The place in the resized photograph of the tile's left edge; negative where the tile begins before it.
pub const X: &str = "x";
/// The place of the tile's upper edge.
pub const Y: &str = "y";
/// The width of the resized photograph, which the tiles are cut from.
pub const SCALED_WIDTH: &str = "scaled_width";
/// The height of the resized photograph.
pub const SCALED_HEIGHT: &str = "scaled_height";

/// Returns the fields of these columns.
pub fn fields() -> [Field; 5] {
    [
        Field::new(PHOTOGRAPH, DataType::Utf8, false),
        Field::new(X, DataType::Int32, false),
        Field::new(Y, DataType::Int32, false),
        Field::new(SCALED_WIDTH, DataType::UInt32, false),
        Field::new(SCALED_HEIGHT, DataType::UInt32, false),
    ]
}

/// Returns true if the rows of a table are tiles.
pub fn are_in(schema: &Schema) -> bool {
    has(schema, PHOTOGRAPH, &DataType::Utf8) && [X, Y].iter().all(|name| has(schema, name, &DataType::Int32))
}

/// Refuses tiles at a port of a stage that knows whole photographs alone.
pub fn refuse(inputs: &Schemas, port: &str) -> Result<(), Misfit> {
    match inputs.get(port).is_some_and(|schema| are_in(schema)) {
        true => Err(Misfit::input(
            port,
            "its rows are tiles; a table of the photographs is read here, and the stage `stitch` makes their maps",
        )),
        false => Ok(()),
    }
}

/// Returns the id of a tile.
pub fn id(photograph: &str, (x, y): (i32, i32)) -> String {
    format!("{photograph}{PIECE}{x},{y}")
}
