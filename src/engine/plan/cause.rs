//! The causes why a table is not fresh, in words for people.

use std::{collections::HashMap, fmt};

use serde::Serialize;
use serde_json::Value;

use crate::engine::{stage::SOURCE, store::Provenance};

/// One cause.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "cause", rename_all = "snake_case")]
pub enum Cause {
    /// A file that a parameter names is not here.
    Absent {
        /// The parameter, and how to get the file.
        message: String,
    },
    /// It was never published.
    New {
        /// True if its rows were computed before, by another pipeline or for another predicate.
        known: bool,
    },
    /// The user asked to compute it again.
    Forced,
    /// A part of it is damaged or missing.
    Damaged,
    /// Another stage makes it.
    Stage {
        /// Before.
        from: String,
        /// Now.
        to: String,
    },
    /// The stage has another revision, so that equal parameters may give other results.
    Revision {
        /// The stage.
        stage: String,
        /// Before.
        from: u32,
        /// Now.
        to: u32,
    },
    /// A parameter has another value.
    Parameter {
        /// Path to it.
        path: String,
        /// The value before; null if the parameter did not exist.
        from: Value,
        /// Now.
        to: Value,
    },
    /// A file named by a parameter, such as weights, has another content.
    File {
        /// The file.
        path: String,
        /// True if it was not read before.
        new: bool,
    },
    /// Another predicate chooses the rows.
    Where {
        /// Before.
        from: Option<String>,
        /// Now.
        to: Option<String>,
        /// The effect on the rows, if it is known.
        #[serde(skip_serializing_if = "Option::is_none")]
        rows: Option<RowChanges>,
    },
    /// A table above, or the source, has another content.
    Input {
        /// The table, or `source`.
        table: String,
        /// The effect on the rows, if it is known.
        #[serde(skip_serializing_if = "Option::is_none")]
        rows: Option<RowChanges>,
    },
    /// A table above will have another content once it is computed.
    Pending {
        /// The table.
        table: String,
        /// The number of its rows to compute; `None` if it is made as a whole.
        rows: Option<u64>,
    },
    /// Other tables are read, or the same ones in another order.
    From {
        /// Before.
        from: Vec<String>,
        /// Now.
        to: Vec<String>,
    },
    /// The model that its rows state is another one.
    Model,
    /// The columns that the stage writes have changed.
    Schema,
    /// Rows failed before.
    Failed {
        /// The number of rows.
        rows: u64,
    },
}

/// The differences between the rows of a table and those that are published.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RowChanges {
    /// The number of rows with a new id.
    pub new: u64,
    /// The number of rows that are made from other values than before.
    pub changed: u64,
    /// The number of rows that no longer exist.
    pub removed: u64,
    /// The id of a new or changed row, else of a removed one.
    pub example: Option<String>,
}

impl fmt::Display for RowChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [(self.new, "new"), (self.changed, "changed"), (self.removed, "removed")];
        let counts: Vec<String> =
            counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
        f.write_str(&counts.join(", "))?;
        let all = self.new + self.changed + self.removed;
        match &self.example {
            Some(example) if all == 1 => write!(f, ": {example}"),
            Some(example) => write!(f, ", such as {example}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let in_rows = |rows: &Option<RowChanges>| match rows {
            None => String::new(),
            Some(rows) if rows.is_empty() => ", but not in these rows".into(),
            Some(rows) => format!(" ({rows})"),
        };
        match self {
            Self::Absent { message } => f.write_str(message),
            Self::New { known: false } => f.write_str("not computed yet"),
            Self::New { known: true } => f.write_str("all rows are known"),
            Self::Forced => f.write_str("forced"),
            Self::Damaged => f.write_str("a part of it is damaged or missing"),
            Self::Stage { from, to } => write!(f, "stage: {from} -> {to}"),
            Self::Revision { stage, from, to } => write!(f, "stage `{stage}` has a new revision: {from} -> {to}"),
            Self::Parameter { path, from, to } => write!(f, "{path}: {from} -> {to}"),
            Self::File { path, new: false } => write!(f, "{path} has changed"),
            Self::File { path, new: true } => write!(f, "reads {path} now"),
            Self::Where { from, to, rows } => {
                let text = |filter: &Option<String>| filter.as_ref().map_or("all rows".into(), |f| format!("`{f}`"));
                write!(f, "where: {} -> {}{}", text(from), text(to), in_rows(rows))
            }
            Self::Input { table, rows } if table == SOURCE => write!(f, "the source has changed{}", in_rows(rows)),
            Self::Input { table, rows } => write!(f, "{table} has changed{}", in_rows(rows)),
            Self::Pending { table, rows: Some(1) } => write!(f, "1 row of {table} is computed first"),
            Self::Pending { table, rows: Some(rows) } => write!(f, "{rows} rows of {table} are computed first"),
            Self::Pending { table, rows: None } => write!(f, "{table} is computed first"),
            Self::From { from, to } => write!(f, "from: {} -> {}", from.join(", "), to.join(", ")),
            Self::Model => f.write_str("the model has changed"),
            Self::Schema => f.write_str("the output schema has changed"),
            Self::Failed { rows: 1 } => f.write_str("1 row failed before"),
            Self::Failed { rows } => write!(f, "{rows} rows failed before"),
        }
    }
}

/// Returns the differences between two stages: kind, revision, parameters, the contents of files, and the tables that
/// they read.
pub(super) fn compare(old: &Provenance, new: &Provenance) -> Vec<Cause> {
    let mut causes = Vec::new();
    if old.stage != new.stage {
        causes.push(Cause::Stage { from: old.stage.clone(), to: new.stage.clone() });
    } else if old.revision != new.revision {
        causes.push(Cause::Revision { stage: new.stage.clone(), from: old.revision, to: new.revision });
    }
    differences("", &old.params, &new.params, &mut causes);
    for (path, digest) in &new.files {
        match old.files.iter().find(|(p, _)| p == path) {
            Some((_, before)) if before == digest => {}
            // A file with the same content at another path is no cause.
            None if old.files.iter().any(|(_, before)| before == digest) => {}
            found => causes.push(Cause::File { path: path.clone(), new: found.is_none() }),
        }
    }
    let tables = |made: &Provenance| made.inputs.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    let (from, to) = (tables(old), tables(new));
    if from != to {
        causes.push(Cause::From { from, to });
    }
    causes
}

impl RowChanges {
    /// Returns true if the rows are the same.
    pub fn is_empty(&self) -> bool {
        (self.new, self.changed, self.removed) == (0, 0, 0)
    }

    /// Compares rows by id; each is given with the bytes that identify its content.
    pub fn between<'a>(
        before: impl Iterator<Item = (&'a str, &'a [u8])>,
        now: impl Iterator<Item = (&'a str, &'a [u8])>,
    ) -> Self {
        let mut before: HashMap<&str, &[u8]> = before.collect();
        let mut changes = Self::default();
        for (id, content) in now {
            match before.remove(id) {
                Some(old) if old == content => continue,
                Some(_) => changes.changed += 1,
                None => changes.new += 1,
            }
            changes.example.get_or_insert_with(|| id.to_owned());
        }
        changes.removed = before.len() as u64;
        changes.example = changes.example.or_else(|| before.into_keys().min().map(str::to_owned));
        changes
    }
}

/// Adds a cause for every parameter whose value differs.
fn differences(path: &str, old: &Value, new: &Value, out: &mut Vec<Cause>) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            let keys: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            for key in keys {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                differences(&path, old.get(key).unwrap_or(&Value::Null), new.get(key).unwrap_or(&Value::Null), out);
            }
        }
        _ if old != new => out.push(Cause::Parameter { path: path.into(), from: old.clone(), to: new.clone() }),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::engine::Digest;

    fn made(params: Value, files: &[(&str, &str)]) -> Provenance {
        let digest = |text: &str| Digest::of(text.as_bytes());
        Provenance {
            stage: "add".into(),
            revision: 1,
            params,
            files: files.iter().map(|(path, content)| ((*path).to_owned(), digest(content))).collect(),
            fingerprint: digest("stage"),
            inputs: Vec::new(),
            model: None,
            filter: None,
        }
    }

    fn causes(old: &Provenance, new: &Provenance) -> Vec<String> {
        compare(old, new).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn parameters_are_compared_by_their_paths() {
        let old = made(json!({ "config": { "width": 1, "depth": 2 }, "gone": "x", "same": [1] }), &[]);
        let new = made(json!({ "config": { "width": 3, "depth": 2 }, "came": true, "same": [1] }), &[]);
        assert_eq!(causes(&old, &new), ["came: null -> true", "config.width: 1 -> 3", "gone: \"x\" -> null"]);
    }

    #[test]
    fn files_are_compared_by_content_and_not_by_path() {
        let old = made(json!({}), &[("a.pth", "weights")]);
        assert_eq!(causes(&old, &made(json!({}), &[("b.pth", "weights")])), [""; 0]);
        assert_eq!(causes(&old, &made(json!({}), &[("a.pth", "others")])), ["a.pth has changed"]);
        assert_eq!(causes(&old, &made(json!({}), &[("b.pth", "others")])), ["reads b.pth now"]);
    }

    #[test]
    fn changes_are_counted_by_id() {
        let changes = |before: &[(&'static str, &'static str)], now: &[(&'static str, &'static str)]| {
            let rows = |rows: &[(&'static str, &'static str)]| {
                rows.iter().map(|(id, content)| (*id, content.as_bytes())).collect::<Vec<_>>()
            };
            RowChanges::between(rows(before).into_iter(), rows(now).into_iter()).to_string()
        };
        let before = [("a", "1"), ("b", "2"), ("c", "3")];
        assert_eq!(changes(&before, &before), "");
        assert_eq!(changes(&before, &[("b", "2"), ("c", "4"), ("d", "5")]), "1 new, 1 changed, 1 removed, such as c");
        assert_eq!(changes(&before, &[("c", "3")]), "2 removed, such as a");
        assert_eq!(changes(&before[..2], &before), "1 new: c");
    }
}
