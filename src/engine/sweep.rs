//! `sweep:`, several values of some parameters: every combination runs, and what they share is computed once.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Hasher;

/// The swept values that a table depends on, by axis; none for a table outside of every sweep.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Variant(pub Vec<(String, Value)>);

impl Variant {
    /// Whether the table depends on no swept value.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A table's name with its swept values: `metrics[extractor=dino-vits8]`.
    pub fn name(&self, table: &str) -> String {
        if self.is_empty() {
            return table.to_owned();
        }
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let values: Vec<String> = self.0.iter().map(|(axis, value)| format!("{axis}={}", text(value))).collect();
        format!("{table}[{}]", values.join(","))
    }

    /// Where the store keeps a table's versions; no table is called so.
    pub fn slot(&self, table: &str) -> String {
        if self.is_empty() {
            return table.to_owned();
        }
        let mut hasher = Hasher::new("variant");
        self.0.iter().for_each(|(axis, value)| {
            hasher.field(axis.as_bytes()).field(value.to_string().as_bytes());
        });
        format!("{table}~{}", hasher.finish())
    }
}
