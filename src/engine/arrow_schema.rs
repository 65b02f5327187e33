//! Arrow schemas as text, and hints in them.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use crate::engine::{Error, Result, caught};

const HINT: &str = "vlmdiff:hint";

/// Gives a column a hint: what is known of its values before they are computed, for plans. A hint may depend on what is on
/// this machine, because it is not stored and is part of no identity.
pub fn with_hint(field: Field, hint: String) -> Field {
    let mut metadata = field.metadata().clone();
    metadata.insert(HINT.into(), hint);
    field.with_metadata(metadata)
}

/// Returns the hint of a column.
pub fn hint(field: &Field) -> Option<&str> {
    field.metadata().get(HINT).map(String::as_str)
}

/// Returns the same schema without hints.
pub(in crate::engine) fn without_hints(schema: &Schema) -> Schema {
    let field = |field: &Arc<Field>| {
        if hint(field).is_none() {
            return field.clone();
        }
        let mut metadata = field.metadata().clone();
        metadata.remove(HINT);
        Arc::new(field.as_ref().clone().with_metadata(metadata))
    };
    Schema::new_with_metadata(schema.fields().iter().map(field).collect::<Vec<_>>(), schema.metadata().clone())
}

/// Encodes an Arrow schema as the text that Parquet footers carry.
pub fn encode_schema(schema: &Schema) -> String {
    parquet::arrow::encode_arrow_schema(schema)
}

/// Decodes a schema from the text of [`encode_schema`].
pub fn decode_schema(text: &str) -> Result<SchemaRef> {
    use base64::Engine;
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(text)
        .map_err(|e| Error::Damaged(format!("a schema is not base64: {e}")))?;
    // The first eight bytes are the IPC continuation marker and the length.
    let body = bytes.get(8..).ok_or_else(|| Error::Damaged("a schema is cut short".into()))?;
    let message =
        arrow::ipc::root_as_message(body).map_err(|e| Error::Damaged(format!("a schema is not Arrow IPC: {e}")))?;
    let schema = message.header_as_schema().ok_or_else(|| Error::Damaged("a schema holds another message".into()))?;
    // `fb_to_schema` panics on types that no writer produces, as damaged text may contain them.
    let schema = caught(|| arrow::ipc::convert::fb_to_schema(schema));
    let schema = schema.filter(|schema| schema.fields().iter().all(|field| is_type(field.data_type())));
    schema.map(Arc::new).ok_or_else(|| Error::Damaged("a schema names a type that does not exist".into()))
}

/// Returns false if a length in a type is negative.
fn is_type(of: &DataType) -> bool {
    match of {
        DataType::FixedSizeBinary(length) => *length >= 0,
        DataType::FixedSizeList(item, length) => *length >= 0 && is_type(item.data_type()),
        DataType::List(item) | DataType::LargeList(item) | DataType::Map(item, _) => is_type(item.data_type()),
        DataType::Struct(fields) => fields.iter().all(|field| is_type(field.data_type())),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_with_a_negative_length_is_damage() {
        let decoded = |length| {
            let list = DataType::new_fixed_size_list(DataType::UInt8, length, true);
            let fields =
                vec![Field::new("record", DataType::Struct(vec![Field::new("list", list, true)].into()), true)];
            decode_schema(&encode_schema(&Schema::new(fields)))
        };
        assert_eq!(decoded(4).unwrap().fields().len(), 1);
        let error = decoded(-4).unwrap_err().to_string();
        assert!(error.contains("a type that does not exist"), "{error}");
    }
}
