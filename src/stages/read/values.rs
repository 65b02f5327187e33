//! Values of text files. Their types are guessed, and no value is changed by the guess.
//!
//! A column with a guessed type is read as the text in the file and converted here, so that digits which the type
//! would lose are noticed.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, ListArray, RecordBatch, StructArray},
    compute::cast,
    datatypes::{DataType, Field, Fields, Schema, SchemaRef},
};

use crate::engine::stage::Misfit;

/// The number of rows that are decoded at a time.
pub(super) const BATCH_ROWS: usize = 65_536;

/// A column of the table, and the way it is read from the file.
#[derive(Clone, Debug)]
pub(super) struct Column {
    /// The column of the table.
    pub(super) field: Field,
    /// True if its type is guessed, so that values need not fit it.
    pub(super) is_guessed: bool,
}

impl Column {
    /// Returns the type in which the file's reader returns the column, which [`Column::convert`] then converts.
    pub(super) fn as_read(&self) -> DataType {
        text_of(self.field.data_type())
    }

    /// Returns the values in the column's type. `before` is the number of preceding rows, from which the error
    /// computes the row.
    pub(super) fn convert(&self, values: &ArrayRef, before: usize) -> Result<ArrayRef, String> {
        let (name, to) = (self.field.name(), self.field.data_type());
        self.converted(values, to).map_err(|WrongValue { row, value, of }| {
            let row = before + row + 1;
            let type_of = crate::stages::types::name_of(&of);
            if self.is_guessed {
                format!(
                    "row {row}, column `{name}`: `{value}` would be changed by the type {type_of} that the first rows \
                     suggest; `types: {{ {name}: utf8? }}` keeps the text, or name another type there"
                )
            } else {
                format!("row {row}, column `{name}`: `{value}` is no {type_of}, which `types` declares")
            }
        })
    }

    fn converted(&self, values: &ArrayRef, to: &DataType) -> Result<ArrayRef, WrongValue> {
        match (values.data_type(), to) {
            (have, want) if have == want => Ok(values.clone()),
            (DataType::List(_), DataType::List(item)) => {
                let list = values.as_list::<i32>();
                let items = self.converted(list.values(), item.data_type()).map_err(|misfit| {
                    let row = list.offsets().partition_point(|offset| *offset as usize <= misfit.row) - 1;
                    WrongValue { row, ..misfit }
                })?;
                Ok(Arc::new(ListArray::new(item.clone(), list.offsets().clone(), items, list.nulls().cloned())))
            }
            (DataType::Struct(_), DataType::Struct(fields)) => {
                let parts = values.as_struct();
                let columns = fields.iter().zip(parts.columns());
                let columns = columns.map(|(field, column)| self.converted(column, field.data_type()));
                let columns = columns.collect::<Result<Vec<_>, _>>()?;
                Ok(Arc::new(StructArray::new(fields.clone(), columns, parts.nulls().cloned())))
            }
            _ => self.parsed(values, to),
        }
    }

    fn parsed(&self, values: &ArrayRef, to: &DataType) -> Result<ArrayRef, WrongValue> {
        let converted = cast(values, to).ok();
        let fits = |row: usize, text: &str| {
            converted.as_ref().is_some_and(|array| array.is_valid(row)) && (!self.is_guessed || is_exact(text, to))
        };
        let texts = values.as_string_opt::<i32>().into_iter().flatten().enumerate();
        let misfit = texts.filter_map(|(row, text)| Some((row, text?))).find(|(row, text)| !fits(*row, text));
        match (misfit, converted) {
            (None, Some(converted)) => Ok(converted),
            (misfit, _) => {
                let (row, value) = misfit.map_or((0, ""), |(row, text)| (row, text));
                Err(WrongValue { row, value: value.to_owned(), of: to.clone() })
            }
        }
    }
}

/// A value that its column's type cannot hold as written.
#[derive(Debug)]
struct WrongValue {
    row: usize,
    value: String,
    of: DataType,
}

/// Returns true if a text is a way to write the value that the type makes of it, so that nothing is lost. `007`,
/// `-0`, and an integer with more digits than a float keeps are not.
fn is_exact(text: &str, of: &DataType) -> bool {
    match of {
        DataType::Boolean => ["true", "false"].iter().any(|known| text.eq_ignore_ascii_case(known)),
        DataType::Int64 => is_plain_integer(text),
        DataType::Float64 => {
            let digits = text.strip_prefix('-').unwrap_or(text);
            if digits.bytes().all(|byte| byte.is_ascii_digit()) {
                let float: Option<f64> = text.parse().ok();
                return is_plain_integer(text) && float.is_some_and(|float| format!("{float:.0}") == text);
            }
            is_plain_decimal(digits)
        }
        DataType::Timestamp(..) => {
            // A time zone would be lost, because the column has none. `Z` is accepted, as times without a zone mean
            // UTC.
            let clock = text.get(11..).unwrap_or_default().trim_end_matches('Z');
            clock.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b':' | b'.'))
        }
        _ => true,
    }
}

/// Returns true if a text is a whole number as programs write it: with no sign except a minus, and without leading
/// zeros.
fn is_plain_integer(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !digits.starts_with('0'))
}

/// Returns true if digits with a point or an exponent are a number that a float represents up to rounding: without
/// leading zeros, neither infinite nor too small.
fn is_plain_decimal(digits: &str) -> bool {
    let (mantissa, _) = digits.split_once(['e', 'E']).unwrap_or((digits, ""));
    let has_leading_zero = mantissa.starts_with('0') && mantissa[1..].starts_with(|c: char| c.is_ascii_digit());
    let is_zero = mantissa.bytes().all(|byte| matches!(byte, b'0' | b'.'));
    let float: Option<f64> = digits.parse().ok().filter(|float: &f64| float.is_finite());
    !has_leading_zero && float.is_some_and(|float| (float == 0.) == is_zero)
}

/// Returns the type that holds the text of values: text in place of every guessed number, time or truth value, also
/// within lists and records.
fn text_of(of: &DataType) -> DataType {
    use DataType::{Boolean, Date32, Float32, Float64, Timestamp, Utf8};
    match of {
        DataType::List(item) => {
            DataType::List(Arc::new(item.as_ref().clone().with_data_type(text_of(item.data_type()))))
        }
        DataType::Struct(fields) => {
            let text = |field: &Arc<Field>| field.as_ref().clone().with_data_type(text_of(field.data_type()));
            DataType::Struct(fields.iter().map(text).collect::<Fields>())
        }
        of if of.is_integer() => Utf8,
        Boolean | Date32 | Float32 | Float64 | Timestamp(..) => Utf8,
        other => other.clone(),
    }
}

/// Returns a type that tables can hold. Columns without a known type become text.
pub(super) fn known(of: &DataType) -> DataType {
    let inner = |field: &Arc<Field>| Arc::new(field.as_ref().clone().with_data_type(known(field.data_type())));
    match of {
        DataType::Null => DataType::Utf8,
        DataType::List(item) => DataType::List(inner(item)),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(inner).collect::<Fields>()),
        other => other.clone(),
    }
}

/// Returns the schema that a reader of text returns.
pub(super) fn as_read(columns: &[Column]) -> SchemaRef {
    let fields = columns.iter().map(|column| column.field.clone().with_data_type(column.as_read()).with_nullable(true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// Returns the schema of the columns.
pub(super) fn schema(columns: &[Column]) -> SchemaRef {
    Arc::new(Schema::new(columns.iter().map(|column| column.field.clone()).collect::<Vec<_>>()))
}

/// Replaces by text each guessed type that would change some of these rows, and returns the names of these columns.
pub(super) fn refine(columns: &mut [Column], rows: &RecordBatch) -> Vec<String> {
    let mut refined = Vec::new();
    for (column, values) in columns.iter_mut().zip(rows.columns()).filter(|(column, _)| column.is_guessed) {
        if column.convert(values, 0).is_err() || has_mixed_zones(column, values) {
            column.field = column.field.clone().with_data_type(DataType::Utf8);
            refined.push(column.field.name().clone());
        }
    }
    refined
}

/// Returns true if some of the times say that they are UTC and others do not.
fn has_mixed_zones(column: &Column, values: &ArrayRef) -> bool {
    let texts = || values.as_string_opt::<i32>().into_iter().flatten().flatten();
    let zoned = texts().filter(|text| text.ends_with('Z')).count();
    matches!(column.field.data_type(), DataType::Timestamp(..)) && zoned > 0 && zoned < texts().count()
}

/// Makes the error about a file without a column of this name.
pub(super) fn without_id(file: &str, id: &str, schema: &Schema) -> Misfit {
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    Misfit::parameter("id", format!("{file} has no column `{id}`; it has {}", names.join(", ")))
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{Float64Array, Int64Array, StringArray},
        datatypes::{Float64Type, TimeUnit},
    };

    use super::*;

    fn guessed(of: DataType) -> Column {
        Column { field: Field::new("x", of, true), is_guessed: true }
    }

    fn text(values: &[&str]) -> ArrayRef {
        Arc::new(StringArray::from(values.to_vec()))
    }

    #[test]
    fn guessed_type_accepts_only_values_that_it_keeps() {
        let takes = |of: &DataType, value: &str| guessed(of.clone()).convert(&text(&[value]), 0).is_ok();
        for value in ["0", "-1", "9223372036854775807"] {
            assert!(takes(&DataType::Int64, value), "{value}");
        }
        for value in ["007", "-0", "+1", "00", "9223372036854775808", "1.0", "1e3", "", " 1", "1_000"] {
            assert!(!takes(&DataType::Int64, value), "{value}");
        }
        for value in ["0", "1", "0.1", "-1.5", "1e-05", "1.50", "9007199254740992", ".5", "2.", "1e16", "0.0", "0e5"] {
            assert!(takes(&DataType::Float64, value), "{value}");
        }
        for value in ["9007199254740993", "007", "00.5", "1e999", "-1e999", "1e-999", "nan", "inf", "-", ""] {
            assert!(!takes(&DataType::Float64, value), "{value}");
        }
        let seconds = DataType::Timestamp(TimeUnit::Second, None);
        for (value, fits) in [
            ("2024-01-02T03:04:05", true),
            ("2024-01-02 03:04:05Z", true),
            ("2024-01-02T03:04:05+02:00", false),
            ("2024-13-02T03:04:05", false),
        ] {
            assert_eq!(takes(&seconds, value), fits, "{value}");
        }
        assert!(!takes(&DataType::Date32, "2024-02-30"));
    }

    #[test]
    fn error_of_a_value_that_does_not_fit_names_its_row() {
        let error = guessed(DataType::Int64).convert(&text(&["1", "2", "007"]), 10).unwrap_err();
        assert!(error.starts_with("row 13, column `x`: `007` would be changed by the type int64"), "{error}");
        let declared = Column { is_guessed: false, ..guessed(DataType::Int64) };
        let error = declared.convert(&text(&["1.5"]), 0).unwrap_err();
        assert_eq!(error, "row 1, column `x`: `1.5` is no int64, which `types` declares");
        let numbers = declared.convert(&text(&["007"]), 0).unwrap();
        assert_eq!(numbers.as_ref(), &Int64Array::from(vec![7]));
    }

    #[test]
    fn values_within_lists_are_converted_too() {
        let item = |of| Arc::new(Field::new_list_field(of, true));
        let column = guessed(DataType::List(item(DataType::Float64)));
        assert_eq!(column.as_read(), DataType::List(item(DataType::Utf8)));
        let list = |values: &[&str]| -> ArrayRef {
            let offsets = arrow::buffer::OffsetBuffer::from_lengths([1, values.len() - 1]);
            Arc::new(ListArray::new(item(DataType::Utf8), offsets, text(values), None))
        };
        let floats = column.convert(&list(&["1", "0.5", "2"]), 0).unwrap();
        assert_eq!(
            floats.as_list::<i32>().values().as_primitive::<Float64Type>(),
            &Float64Array::from(vec![1., 0.5, 2.])
        );
        let error = column.convert(&list(&["1", "0.5", "9007199254740993"]), 0).unwrap_err();
        assert!(error.starts_with("row 2, column `x`: `9007199254740993` would be changed"), "{error}");
    }

    #[test]
    fn guessed_type_that_would_change_a_value_becomes_text() {
        let mut columns = vec![guessed(DataType::Int64), guessed(DataType::Int64)];
        let columns_of = [("a", text(&["1", "007"])), ("b", text(&["1", "7"]))];
        let refined = refine(&mut columns, &RecordBatch::try_from_iter(columns_of).unwrap());
        assert_eq!(refined, ["x"]);
        let types: Vec<&DataType> = columns.iter().map(|column| column.field.data_type()).collect();
        assert_eq!(types, [&DataType::Utf8, &DataType::Int64]);
    }

    #[test]
    fn guessed_cast_is_lossless_for_random_numbers() {
        // A number's own text is converted to the number.
        let column = guessed(DataType::Float64);
        let mut state = 1u64;
        for _ in 0..10_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let number = f64::from_bits(state);
            if number.is_finite() && number != 0. {
                let converted = column.convert(&text(&[&format!("{number:?}")]), 0).unwrap();
                assert_eq!(converted.as_primitive::<Float64Type>().value(0), number);
            }
        }
    }
}
