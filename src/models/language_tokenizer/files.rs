//! The files of a folder, with errors that name them.

use std::path::Path;

use serde_json::Value;

use super::super::tokenizer::TokenizerError;

pub(super) fn bytes(folder: &Path, file: &str) -> Result<Vec<u8>, TokenizerError> {
    std::fs::read(folder.join(file)).map_err(|e| TokenizerError(format!("cannot read {file}: {e}")))
}

pub(super) fn text(folder: &Path, file: &str) -> Result<String, TokenizerError> {
    String::from_utf8(bytes(folder, file)?).map_err(|_| TokenizerError(format!("{file} is not UTF-8")))
}

/// Reads a JSON file; null if there is none.
pub(super) fn json(folder: &Path, file: &str) -> Result<Value, TokenizerError> {
    if !folder.join(file).exists() {
        return Ok(Value::Null);
    }
    serde_json::from_str(&text(folder, file)?).map_err(|e| TokenizerError(format!("{file}: {e}")))
}
