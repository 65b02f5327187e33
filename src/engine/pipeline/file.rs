//! The files that a pipeline is read from. Errors contain their names and hide their secrets.

use std::sync::Arc;

use serde_json::Value;

use super::yaml::{Key, Kind, Node, Place};
use crate::engine::{Error, Result, Secrets, suggest::suggestion};

/// The place of values given by `--set`.
pub(in crate::engine) const GIVEN: Place = Place { file: 0, line: 0, column: 0 };

/// A pipeline file and those that it extends, as errors name them.
pub(in crate::engine) struct File {
    /// The path of each, its own first.
    pub(in crate::engine) names: Vec<String>,
    /// The values that were filled in from the environment.
    pub(in crate::engine) secrets: Arc<Secrets>,
}

impl File {
    /// Makes an error at a place of the file, or of `--set`.
    pub(in crate::engine) fn error(&self, place: Place, message: impl Into<String>) -> Error {
        let message = self.secrets.hide(message.into());
        match place {
            GIVEN => Error::Input(format!("--set: {message}")),
            Place { file, line, column } => Error::Pipeline { file: self.names[file].clone(), line, column, message },
        }
    }

    /// Returns the entries of a mapping, and refuses keys other than these.
    pub(in crate::engine) fn keys<'n>(&self, node: &'n Node, what: &str, known: &[&str]) -> Result<&'n [(Key, Node)]> {
        let Kind::Map(entries) = &node.kind else {
            return Err(self.error(node.place, format!("{what} is a mapping with {}", known.join(", "))));
        };
        match entries.iter().find(|(key, _)| !known.contains(&key.name.as_str())) {
            Some((key, _)) => Err(self.error(
                key.place,
                format!(
                    "{what} has no key `{}`{}; it takes {}",
                    key.name,
                    suggestion(&key.name, known),
                    known.join(", ")
                ),
            )),
            None => Ok(entries),
        }
    }

    /// Returns the text at a node; `None` if it is absent or null.
    pub(in crate::engine) fn text<'n>(&self, node: Option<&'n Node>, what: &str) -> Result<Option<&'n str>> {
        match node.map(|node| (node.place, &node.kind)) {
            None | Some((_, Kind::Scalar(Value::Null))) => Ok(None),
            Some((_, Kind::Scalar(Value::String(text)))) => Ok(Some(text)),
            Some((place, kind)) => {
                let read = match kind {
                    Kind::Scalar(Value::Bool(_)) => {
                        "; without quotes `y`, `n`, `yes`, `no`, `on`, `off`, `true` and `false` are true or false"
                    }
                    Kind::Scalar(_) => "; without quotes this is a number",
                    Kind::List(_) | Kind::Map(_) => "",
                };
                Err(self.error(place, format!("{what} is text{read}")))
            }
        }
    }
}
