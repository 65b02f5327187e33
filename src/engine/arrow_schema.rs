//! Arrow schemas as text.

use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};

use crate::engine::{Error, Result};

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
    let schema = std::panic::catch_unwind(|| arrow::ipc::convert::fb_to_schema(schema));
    schema.map(Arc::new).map_err(|_| Error::Damaged("a schema names a type that does not exist".into()))
}
