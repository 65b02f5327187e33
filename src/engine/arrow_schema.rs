//! Arrow schemas as text.

use std::sync::Arc;

use arrow::datatypes::{DataType, Schema, SchemaRef};

use crate::engine::{Error, Result, caught};

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
