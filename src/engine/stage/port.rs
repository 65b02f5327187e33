//! Ports: the inputs of a stage, and the kind of output that it makes.

use std::collections::BTreeMap;

use arrow::datatypes::{DataType, Field, SchemaRef};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::misfit::Misfit;
use crate::engine::store::tensor_shape;

/// The relation of a stage's output rows to its input rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Output {
    /// One row per joined input row, with the same id in the first column. Rows are cached one by one.
    RowPerRow,
    /// One table from all rows, with an id of its own in the first column of each row, so that other stages can read
    /// it row by row: filters, joins. Cached as a whole.
    Rows,
    /// One table from all rows, without ids: training, aggregates. Cached as a whole.
    Table,
}

impl Output {
    /// Returns true if the first column identifies a row.
    pub fn has_ids(self) -> bool {
        self != Self::Table
    }
}

/// The way in which a stage reads an input table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// Row by row, joined with the stage's other `Rows` inputs on the id in the first column.
    Rows,
    /// For each joined row its pieces: the rows whose ids are its id, [`PIECE`] and more. They are joined with those of
    /// the stage's other `Pieces` inputs on their ids. A row without pieces is left out.
    Pieces,
    /// The whole table, before the first row: weights.
    Table,
}

/// The character in the id of a piece between the id of its row and the rest, such as `nut.png@0,224`.
pub const PIECE: char = '@';

/// Returns the id of the row of which a row with this id is a piece; `None` if it is none.
pub fn row_of_piece(id: &str) -> Option<&str> {
    id.rsplit_once(PIECE).map(|(row, _)| row)
}

/// A column that a stage reads. Its content is checked before a run.
#[derive(Clone, Debug)]
pub struct Column {
    /// The name.
    pub name: &'static str,
    /// The required content.
    pub holds: Holds,
    /// True if the table may lack it.
    pub optional: bool,
    /// The way to make a column that fits, for messages.
    pub advice: Option<&'static str>,
}

/// The required content of a column.
#[derive(Clone, Debug)]
pub enum Holds {
    /// Values that the stage checks itself.
    Anything,
    /// Values of this type.
    Values(DataType),
    /// Tensors of this item type. Each dimension is a name, or a number if the stage takes one length only: `[H, W,
    /// 3]`. A stage may take several numbers of dimensions: `[T, D] or [N, T, D]`.
    Tensors(DataType, &'static str),
}

impl Column {
    /// Makes a column of this type.
    pub fn new(name: &'static str, of: DataType) -> Self {
        Self::holding(name, Holds::Values(of))
    }

    /// Makes a column of tensors, such as `Column::tensors("pixels", DataType::UInt8, "[H, W, 3]")`.
    pub fn tensors(name: &'static str, item: DataType, dimensions: &'static str) -> Self {
        Self::holding(name, Holds::Tensors(item, dimensions))
    }

    /// Makes a column whose values the stage checks itself.
    pub fn any(name: &'static str) -> Self {
        Self::holding(name, Holds::Anything)
    }

    fn holding(name: &'static str, holds: Holds) -> Self {
        Self { name, holds, optional: false, advice: None }
    }

    /// Returns the same column as optional: the table may lack it.
    pub fn optional(self) -> Self {
        Self { optional: true, ..self }
    }

    /// Returns the same column with advice for those whose tensors have other dimensions, which ends the error.
    pub fn advised(self, advice: &'static str) -> Self {
        Self { advice: Some(advice), ..self }
    }

    /// Checks that a field has the content of this column. The error says what would fit.
    pub fn check(&self, field: &Field) -> Result<(), String> {
        match &self.holds {
            Holds::Anything => Ok(()),
            Holds::Values(of) if field.data_type() == of => Ok(()),
            Holds::Values(of) => {
                let (name, sql) = (self.name, sql_type(of));
                Err(format!(
                    "column `{name}` is {}; {of} is read, which `cast({name} as {sql}) as {name}` in a stage `sql` makes of it",
                    field.data_type()
                ))
            }
            Holds::Tensors(item, dimensions) => {
                let is_of_item =
                    matches!(field.data_type(), DataType::FixedSizeList(inner, _) if inner.data_type() == item);
                let shape = tensor_shape(field).filter(|_| is_of_item);
                if shape.as_ref().is_some_and(|shape| fits(shape, dimensions)) {
                    return Ok(());
                }
                let is = shape.map_or_else(|| field.data_type().to_string(), |shape| format!("{item}{shape:?}"));
                let advice = self.advice.map(|advice| format!("; {advice}")).unwrap_or_default();
                Err(format!("column `{}` is {is}; a {item}{dimensions} tensor is read{advice}", self.name))
            }
        }
    }
}

/// Returns true if a shape has these dimensions, or one of several that are joined by `or`. Dimensions that are numbers
/// must be equal.
fn fits(shape: &[usize], dimensions: &str) -> bool {
    let is_met =
        |(length, dimension): (&usize, &&str)| dimension.parse().map_or(true, |wanted: usize| wanted == *length);
    dimensions.split(" or ").any(|dimensions| {
        let dimensions: Vec<&str> = dimensions.trim_matches(['[', ']']).split(", ").collect();
        shape.len() == dimensions.len() && shape.iter().zip(&dimensions).all(is_met)
    })
}

/// Returns the name of a type in SQL.
fn sql_type(of: &DataType) -> &'static str {
    match of {
        DataType::Utf8 => "varchar",
        DataType::Boolean => "boolean",
        _ => "real",
    }
}

/// One input of a stage.
#[derive(Clone, Debug)]
pub struct Port {
    /// The role of the input, which is also the name of the table in the standard pipeline.
    pub name: &'static str,
    /// The columns that the stage reads. No other column of the table can change its output.
    pub columns: Vec<Column>,
    /// The way it is read: row by row, by the pieces of rows, or as a whole.
    pub reads: Reads,
    /// True if `from:` may omit it. Optional ports come last.
    pub optional: bool,
}

impl Port {
    /// Makes an input that is read row by row.
    pub fn rows(name: &'static str, columns: impl Into<Vec<Column>>) -> Self {
        Self { name, columns: columns.into(), reads: Reads::Rows, optional: false }
    }

    /// Makes an input whose rows are the pieces of the rows of the others.
    pub fn pieces(name: &'static str, columns: impl Into<Vec<Column>>) -> Self {
        Self { name, columns: columns.into(), reads: Reads::Pieces, optional: false }
    }

    /// Makes an input that is read as a whole.
    pub fn table(name: &'static str, columns: impl Into<Vec<Column>>) -> Self {
        Self { name, columns: columns.into(), reads: Reads::Table, optional: false }
    }

    /// Returns the same input as optional: `from:` may omit it.
    pub fn optional(self) -> Self {
        Self { optional: true, ..self }
    }
}

/// The tables that `from:` may name.
#[derive(Clone, Debug)]
pub enum Ports {
    /// These inputs, in this order or by name.
    Named(Vec<Port>),
    /// Any tables, each under its own name and with the columns that [`Stage::columns`] returns. A stage that makes a
    /// row per row reads tables with ids row by row and all others whole.
    ///
    /// [`Stage::columns`]: super::Stage::columns
    Any,
}

/// The declared schemas of a stage's inputs.
#[derive(Clone, Debug, Default)]
pub struct Schemas {
    /// The schemas by port.
    pub all: BTreeMap<String, SchemaRef>,
    /// The ports that are read row by row, in the order of `from:`.
    pub by_row: Vec<String>,
}

impl Schemas {
    /// Returns the schema at a port, if `from:` names a table for it.
    pub fn get(&self, port: &str) -> Option<&SchemaRef> {
        self.all.get(port)
    }

    /// Returns the field `column` at `port`.
    ///
    /// # Errors
    /// A [`Misfit`] at the port where the table has no such column: one of [`Ports::Any`], or an optional one.
    pub fn field(&self, port: &str, column: &str) -> Result<&Field, Misfit> {
        let missing = || Misfit::stage(format!("the stage reads a table `{port}` and `from:` names none"));
        let schema = self.get(port).ok_or_else(missing)?;
        schema.field_with_name(column).map_err(|_| {
            let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
            Misfit::input(port, format!("`{port}` has no column `{column}`; it has {}", names.join(", ")))
        })
    }

    /// Returns the shape of a column of tensors with `N` dimensions, which [`Column::check`] has checked.
    pub fn shape<const N: usize>(&self, port: &str, column: &str) -> Result<[usize; N], Misfit> {
        let field = self.field(port, column)?;
        let shape = tensor_shape(field).and_then(|shape| <[usize; N]>::try_from(shape).ok());
        shape.ok_or_else(|| {
            Misfit::input(
                port,
                format!("column `{column}` is {}; a tensor of {N} dimensions is read", field.data_type()),
            )
        })
    }
}

/// The port of rows that a stage without inputs listed.
pub const SOURCE: &str = "source";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::store::tensor_field;

    #[test]
    fn last_at_sign_ends_the_id_of_a_row() {
        assert_eq!(row_of_piece("nut/a.png@0,224"), Some("nut/a.png"));
        assert_eq!(row_of_piece("me@home/a.png@-3,0"), Some("me@home/a.png"));
        assert_eq!(row_of_piece("nut/a.png"), None);
    }

    #[test]
    fn column_of_another_type_is_refused_with_a_cast_that_fits() {
        let label = Column::new("label", DataType::Boolean);
        assert_eq!(label.check(&Field::new("label", DataType::Boolean, false)), Ok(()));
        let told = "column `label` is Int64; Boolean is read, which `cast(label as boolean) as label` in a stage `sql` makes of it";
        assert_eq!(label.check(&Field::new("label", DataType::Int64, false)), Err(told.into()));
    }

    #[test]
    fn tensors_are_checked_by_item_type_rank_and_numeric_lengths() {
        let pixels = Column::tensors("pixels", DataType::UInt8, "[H, W, 3]");
        let of = |item, shape: &[usize]| pixels.check(&tensor_field("pixels", item, shape, false));
        assert_eq!(of(DataType::UInt8, &[8, 9, 3]), Ok(()));
        let told = |is: &str| Err(format!("column `pixels` is {is}; a UInt8[H, W, 3] tensor is read"));
        assert_eq!(of(DataType::UInt8, &[8, 9, 1]), told("UInt8[8, 9, 1]"));
        assert_eq!(of(DataType::UInt8, &[8, 9]), told("UInt8[8, 9]"));
        assert!(of(DataType::Float32, &[8, 9, 3]).is_err());
        assert!(pixels.check(&Field::new("pixels", DataType::Utf8, false)).is_err());
    }

    #[test]
    fn tensors_of_one_of_several_ranks_fit_and_others_are_told_what_would() {
        let maps = Column::tensors("maps", DataType::Float32, "[H, W] or [N, H, W]").advised("leave `of` out");
        let of = |shape: &[usize]| maps.check(&tensor_field("maps", DataType::Float32, shape, false));
        assert_eq!((of(&[8, 9]), of(&[2, 8, 9])), (Ok(()), Ok(())));
        let told = "column `maps` is Float32[9]; a Float32[H, W] or [N, H, W] tensor is read; leave `of` out";
        assert_eq!(of(&[9]), Err(told.into()));
    }
}
