//! The swept values that tell the instances of a table apart.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::engine::Hasher;

/// The swept values that a table depends on, by axis; none for a table outside of every sweep.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Variant(pub Vec<(String, Value)>);

impl Variant {
    /// Whether the table depends on no swept value.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of an axis, if the table depends on it.
    pub fn get(&self, axis: &str) -> Option<&Value> {
        self.0.iter().find(|(name, _)| name == axis).map(|(_, value)| value)
    }

    /// Whether `other` has all of these values.
    pub fn is_part_of(&self, other: &Self) -> bool {
        self.0.iter().all(|(axis, value)| other.get(axis) == Some(value))
    }

    /// A table's name with its swept values: `metrics[extractor=dino-vits8]`.
    pub fn name(&self, table: &str) -> String {
        if self.is_empty() {
            return table.to_owned();
        }
        format!("{table}[{}]", self.settings().join(","))
    }

    /// Each axis with its value: `extractor=dino-vits8`.
    pub fn settings(&self) -> Vec<String> {
        self.0.iter().map(|(axis, value)| format!("{axis}={}", value_text(value))).collect()
    }

    /// The order of the instances of a swept table: numbers by size.
    pub fn by_values(&self, other: &Self) -> Ordering {
        let order = |(a, b): (&Value, &Value)| match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => a.total_cmp(&b),
            _ => value_text(a).cmp(&value_text(b)),
        };
        let values = self.0.iter().map(|(_, value)| value).zip(other.0.iter().map(|(_, value)| value));
        values.map(order).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
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
        format!("{table}.{}", hasher.finish())
    }
}

/// A swept value as people write it: text bare, all else as JSON.
pub fn value_text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The table whose versions a slot keeps; see [`Variant::slot`].
pub fn table_of(slot: &str) -> &str {
    slot.split_once('.').map_or(slot, |(table, _)| table)
}
