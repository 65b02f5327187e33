//! The swept values that distinguish the instances of a table.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::engine::Hasher;

/// The swept values that a table depends on, by axis; empty for a table outside of every sweep.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Variant(pub Vec<(String, Value)>);

impl Variant {
    /// Returns true if the table depends on no swept value.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the value of an axis, if the table depends on it.
    pub fn get(&self, axis: &str) -> Option<&Value> {
        self.0.iter().find(|(name, _)| name == axis).map(|(_, value)| value)
    }

    /// Returns true if `other` has all of these values.
    pub fn is_part_of(&self, other: &Self) -> bool {
        self.0.iter().all(|(axis, value)| other.get(axis) == Some(value))
    }

    /// Returns a table's name with its swept values: `metrics[extractor=dino-vits8]`.
    pub fn name(&self, table: &str) -> String {
        if self.is_empty() {
            return table.to_owned();
        }
        format!("{table}[{}]", self.settings().join(","))
    }

    /// Returns each axis with its value: `extractor=dino-vits8`.
    pub fn settings(&self) -> Vec<String> {
        self.0.iter().map(|(axis, value)| format!("{axis}={}", value_text(value))).collect()
    }

    /// Compares the instances of a swept table; numbers are compared by size.
    pub fn by_values(&self, other: &Self) -> Ordering {
        let order = |(a, b): (&Value, &Value)| match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => a.total_cmp(&b),
            _ => value_text(a).cmp(&value_text(b)),
        };
        let values = self.0.iter().map(|(_, value)| value).zip(other.0.iter().map(|(_, value)| value));
        values.map(order).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
    }

    /// Returns the name under which the store keeps a table's versions. No table has such a name.
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

/// Returns a swept value as users write it: text bare, all else as JSON.
pub fn value_text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Returns the table whose versions are in a slot; see [`Variant::slot`].
pub fn table_of(slot: &str) -> &str {
    slot.split_once('.').map_or(slot, |(table, _)| table)
}
