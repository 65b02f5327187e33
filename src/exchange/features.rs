//! The columns of a data set in the terms of Hugging Face's `datasets`, in its JSON (metadata of Parquet files) and its YAML
//! (the card of a data set). The card alone is believed about arrays.

use arrow::datatypes::{DataType, Field, TimeUnit};
use serde_json::{Map, Value, json};

use super::{cannot_hold, tensors::picture};
use crate::engine::{Result, store::tensor_shape};

/// The numbers of dimensions for which there is an array type, `Array2D` to `Array5D`.
const ARRAYS: std::ops::RangeInclusive<usize> = 2..=5;

/// The type of a column.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Feature {
    /// A plain value, by the name of its type.
    Value(String),
    /// A picture, encoded.
    Image,
    /// A tensor of two to five dimensions.
    Array { shape: Vec<usize>, item: String },
    /// A list, with its length if all are equally long.
    List(Box<Self>, Option<i32>),
    /// A record.
    Struct(Vec<(String, Self)>),
}

impl Feature {
    /// Returns the type of a column.
    pub(super) fn of(field: &Field) -> Result<Self> {
        let lacks = || cannot_hold("a data set of Hugging Face", field.name(), field.data_type());
        if picture(field).is_some() {
            return Ok(Self::Image);
        }
        if let (DataType::FixedSizeList(item, _), Some(shape)) = (field.data_type(), tensor_shape(field))
            && ARRAYS.contains(&shape.len())
        {
            let item = value_name(item.data_type()).ok_or_else(lacks)?;
            return Ok(Self::Array { shape, item });
        }
        Self::of_type(field.data_type()).ok_or_else(lacks)
    }

    fn of_type(of: &DataType) -> Option<Self> {
        let list = |item: &Field, length| Some(Self::List(Box::new(Self::of_type(item.data_type())?), length));
        match of {
            DataType::List(item) => list(item, None),
            DataType::FixedSizeList(item, length) => list(item, Some(*length)),
            DataType::Struct(fields) => {
                let fields = fields.iter().map(|field| Some((field.name().clone(), Self::of_type(field.data_type())?)));
                fields.collect::<Option<_>>().map(Self::Struct)
            }
            other => value_name(other).map(Self::Value),
        }
    }

    /// Returns the type as the metadata of Parquet files have it.
    pub(super) fn json(&self) -> Value {
        match self {
            Self::Value(name) => json!({ "dtype": name, "_type": "Value" }),
            Self::Image => json!({ "_type": "Image" }),
            Self::Array { shape, item } => {
                json!({ "shape": shape, "dtype": item, "_type": format!("Array{}D", shape.len()) })
            }
            Self::List(item, None) => json!({ "feature": item.json(), "_type": "List" }),
            Self::List(item, length) => json!({ "feature": item.json(), "length": length, "_type": "List" }),
            Self::Struct(fields) => fields.iter().map(|(name, feature)| (name.clone(), feature.json())).collect(),
        }
    }

    /// Returns the type as an entry of a card, without the name of the column.
    fn card(&self) -> Map<String, Value> {
        let (key, value) = match self {
            Self::List(item, length) => {
                let mut entry = Map::from_iter([("list".to_owned(), item.card_item())]);
                entry.extend(length.map(|length| ("length".to_owned(), length.into())));
                return entry;
            }
            Self::Value(name) => ("dtype", json!(name)),
            Self::Image => ("dtype", json!("image")),
            Self::Array { shape, item } => {
                ("dtype", json!({ format!("array{}_d", shape.len()): { "shape": shape, "dtype": item } }))
            }
            Self::Struct(fields) => ("struct", entries(fields)),
        };
        Map::from_iter([(key.to_owned(), value)])
    }

    /// Returns the type as it stands below `list`.
    fn card_item(&self) -> Value {
        match self {
            Self::Struct(fields) => entries(fields),
            Self::List(..) => self.card().into(),
            other => other.card().remove("dtype").unwrap_or_default(),
        }
    }
}

/// Returns columns as the entries of a card.
pub(super) fn entries(fields: &[(String, Feature)]) -> Value {
    let entry = |(name, feature): &(String, Feature)| {
        let mut entry = Map::from_iter([("name".to_owned(), json!(name))]);
        entry.extend(feature.card());
        Value::from(entry)
    };
    fields.iter().map(entry).collect()
}

/// Returns the name of a plain type; `None` for a type without one.
fn value_name(of: &DataType) -> Option<String> {
    let unit = |unit: &TimeUnit| match unit {
        TimeUnit::Second => "s",
        TimeUnit::Millisecond => "ms",
        TimeUnit::Microsecond => "us",
        TimeUnit::Nanosecond => "ns",
    };
    Some(match of {
        DataType::Null => "null".into(),
        DataType::Boolean => "bool".into(),
        DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8 => "string".into(),
        DataType::Binary | DataType::BinaryView | DataType::LargeBinary => "binary".into(),
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => of.to_string().to_lowercase(),
        DataType::UInt8 | DataType::UInt16 | DataType::UInt32 | DataType::UInt64 => of.to_string().to_lowercase(),
        DataType::Float16 | DataType::Float32 | DataType::Float64 => of.to_string().to_lowercase(),
        DataType::Date32 => "date32".into(),
        DataType::Date64 => "date64".into(),
        DataType::Timestamp(of, None) => format!("timestamp[{}]", unit(of)),
        DataType::Timestamp(of, Some(zone)) => format!("timestamp[{}, tz={zone}]", unit(of)),
        DataType::Duration(of) => format!("duration[{}]", unit(of)),
        DataType::Decimal128(precision, scale) => format!("decimal128({precision}, {scale})"),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::engine::store::tensor_field;

    #[test]
    fn columns_are_described_as_the_library_describes_them() {
        let list = |item| DataType::List(Arc::new(Field::new_list_field(item, true)));
        let record = DataType::Struct([Field::new("x", DataType::Int8, true)].into_iter().collect());
        // The expected texts are those of `Features.arrow_schema.metadata` and `Features._to_yaml_list` of datasets 4.5.0.
        for (field, json, card) in [
            (Field::new("a", DataType::Utf8, true), r#"{"dtype":"string","_type":"Value"}"#, r#"{"dtype":"string"}"#),
            (tensor_field("p", DataType::UInt8, &[4, 5, 3], true), r#"{"_type":"Image"}"#, r#"{"dtype":"image"}"#),
            (
                tensor_field("m", DataType::Float16, &[4, 5], true),
                r#"{"shape":[4,5],"dtype":"float16","_type":"Array2D"}"#,
                r#"{"dtype":{"array2_d":{"shape":[4,5],"dtype":"float16"}}}"#,
            ),
            (
                tensor_field("e", DataType::Float32, &[3], true),
                r#"{"feature":{"dtype":"float32","_type":"Value"},"length":3,"_type":"List"}"#,
                r#"{"list":"float32","length":3}"#,
            ),
            (
                Field::new("l", list(list(DataType::Int32)), true),
                r#"{"feature":{"feature":{"dtype":"int32","_type":"Value"},"_type":"List"},"_type":"List"}"#,
                r#"{"list":{"list":"int32"}}"#,
            ),
            (
                Field::new("s", record.clone(), true),
                r#"{"x":{"dtype":"int8","_type":"Value"}}"#,
                r#"{"struct":[{"name":"x","dtype":"int8"}]}"#,
            ),
            (
                Field::new("r", list(record), true),
                r#"{"feature":{"x":{"dtype":"int8","_type":"Value"}},"_type":"List"}"#,
                r#"{"list":[{"name":"x","dtype":"int8"}]}"#,
            ),
            (
                Field::new("t", DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())), true),
                r#"{"dtype":"timestamp[ms, tz=UTC]","_type":"Value"}"#,
                r#"{"dtype":"timestamp[ms, tz=UTC]"}"#,
            ),
        ] {
            let feature = Feature::of(&field).unwrap();
            assert_eq!(feature.json().to_string(), json);
            assert_eq!(Value::from(feature.card()).to_string(), card);
        }
        let error = Feature::of(&Field::new("u", DataType::Time32(TimeUnit::Second), true)).unwrap_err().to_string();
        assert!(error.contains("column `u` has the type Time32"), "{error}");
    }
}
