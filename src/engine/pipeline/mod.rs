//! Pipelines: YAML is read, checked and matched before anything runs.

mod document;
mod extends;
mod file;
mod filter;
mod inputs;
mod json_schema;
mod selection;
mod sweep;
mod table;
mod yaml;

pub use document::{load, parse};
pub use filter::{Filter, check_length, lower_case, session, syntax, unrepeatable};
pub use json_schema::{Example, files};
pub use selection::{Selection, check, is_called};
pub use table::{Input, OnError, Pipeline, Table};
