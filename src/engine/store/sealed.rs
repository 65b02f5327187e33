//! JSON objects that contain the digest of their own text, so that changed or truncated text is detected.
//!
//! ```text
//! {"digest":"32 hexadecimal digits", ... }
//! ```
//!
//! The digest is over all bytes after it. The text stays one JSON object, which other programs read as any other.

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use crate::engine::{Digest, Error, Result};

const BEGIN: &str = "{\"digest\":\"";

const DIGITS: usize = 2 * Digest::LEN;

/// Seals a value that is a JSON object.
pub(in crate::engine) fn seal(value: &impl Serialize) -> Result<Bytes> {
    let json = serde_json::to_string(value).map_err(std::io::Error::from)?;
    let fields = json.strip_prefix('{').ok_or_else(|| Error::Stage("only JSON objects are sealed".into()))?;
    let rest = format!("\",{fields}");
    Ok(format!("{BEGIN}{}{rest}", Digest::of(rest.as_bytes())).into())
}

/// Opens a sealed text; `name` is the object's, for the error.
pub(in crate::engine) fn open<T: DeserializeOwned>(name: &str, text: &[u8]) -> Result<T> {
    let damaged = |what: &str| Error::Damaged(format!("{name} {what}"));
    let Some((digits, rest)) = text.strip_prefix(BEGIN.as_bytes()).and_then(|text| text.split_at_checked(DIGITS))
    else {
        // Stores were written without digests before, which the message explains.
        let is_json = serde_json::from_slice::<serde_json::Value>(text).is_ok();
        return Err(damaged(if is_json {
            "carries no digest: an earlier vlmdiff wrote it"
        } else {
            "is cut short or changed"
        }));
    };
    if !says(digits, rest) {
        return Err(damaged("does not match the digest in it"));
    }
    serde_json::from_slice(text).map_err(|e| Error::Damaged(format!("{name}: {e}")))
}

/// Returns true if `digits` is the digest of `bytes` in hexadecimal digits.
fn says(digits: &[u8], bytes: &[u8]) -> bool {
    digits == Digest::of(bytes).to_string().as_bytes()
}

/// Puts lines of text below a line with their digest.
pub(in crate::engine) fn seal_lines(lines: &str) -> Bytes {
    format!("{BEGIN}{}\"}}\n{lines}", Digest::of(lines.as_bytes())).into()
}

/// Returns the lines below the line with their digest, after checking it; `name` is the object's, for the error.
pub(in crate::engine) fn open_lines<'t>(name: &str, text: &'t [u8]) -> Result<&'t [u8]> {
    let lines = text.strip_prefix(BEGIN.as_bytes()).and_then(|text| {
        let (digits, rest) = text.split_at_checked(DIGITS)?;
        let lines = rest.strip_prefix(b"\"}\n")?;
        says(digits, lines).then_some(lines)
    });
    lines.ok_or_else(|| Error::Damaged(format!("{name} does not match the digest in its first line")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_text_is_json_and_every_changed_byte_is_detected() {
        let value = serde_json::json!({ "table": "n", "rows": [1, 2] });
        let text = seal(&value).unwrap();
        let read: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!((&read["table"], &read["rows"]), (&value["table"], &value["rows"]));
        assert_eq!(open::<serde_json::Value>("x", &text).unwrap(), read);
        for at in 0..text.len() {
            for bit in 0..8 {
                let mut changed = text.to_vec();
                changed[at] ^= 1 << bit;
                assert!(
                    matches!(open::<serde_json::Value>("x", &changed), Err(Error::Damaged(_))),
                    "byte {at}, bit {bit}"
                );
            }
            assert!(open::<serde_json::Value>("x", &text[..at]).is_err());
        }
        let log = seal_lines("{}\n{}\n");
        assert_eq!(open_lines("x", &log).unwrap(), b"{}\n{}\n");
        for at in 0..log.len() {
            let mut changed = log.to_vec();
            changed[at] ^= 1;
            assert!(open_lines("x", &changed).is_err() && open_lines("x", &log[..at]).is_err(), "byte {at}");
        }
        let old = open::<serde_json::Value>("x", br#"{"table": "n"}"#).unwrap_err().to_string();
        assert_eq!(old, "the store is damaged: x carries no digest: an earlier vlmdiff wrote it");
    }
}
