//! The generated contracts: the JSON Schema of pipeline files, from the stages' parameters and their documentation.

use serde_json::{Map, Value, json};

use super::stage::{Ports, StageKind};

/// The files of `schemas/`: name and content.
pub fn files(kinds: &[StageKind]) -> Vec<(String, String)> {
    let text = |value: Value| serde_json::to_string_pretty(&value).unwrap_or_default() + "\n";
    let mut files = vec![("pipeline.schema.json".to_owned(), text(pipeline(kinds)))];
    files.extend(kinds.iter().map(|kind| (format!("{}.json", kind.name), text(stage(kind)))));
    files
}

/// A stage kind: what it reads, what it takes, what it makes.
fn stage(kind: &StageKind) -> Value {
    let reads = match kind.ports {
        Ports::Any => json!("any tables"),
        Ports::Named(ports) => ports
            .iter()
            .map(|p| json!({ "name": p.name, "columns": p.columns, "reads": if p.reads == super::stage::Reads::Rows { "rows" } else { "table" }, "optional": p.optional }))
            .collect(),
    };
    json!({
        "stage": kind.name,
        "about": kind.about(),
        "revision": kind.revision,
        "reads": reads,
        "writes": kind.output,
        "parameters": (kind.schema)(),
    })
}

fn pipeline(kinds: &[StageKind]) -> Value {
    let mut definitions = Map::new();
    let variants: Vec<Value> = kinds
        .iter()
        .map(|kind| {
            let mut parameters = (kind.schema)().to_value();
            // Definitions of all stages share one place; their names are types of one crate, so equal names are equal types.
            if let Some(Value::Object(own)) = parameters.as_object_mut().and_then(|object| object.remove("$defs")) {
                definitions.extend(own);
            }
            let required = parameters.get("required").is_some();
            json!({
                "if": { "properties": { "stage": { "const": kind.name } } },
                "then": { "properties": { "with": parameters }, "required": if required { vec!["with"] } else { vec![] } },
            })
        })
        .collect();
    let names: Vec<Value> =
        kinds.iter().map(|kind| json!({ "const": kind.name, "description": kind.about() })).collect();
    definitions.insert("table".into(), json!({
        "type": "object",
        "required": ["stage"],
        "additionalProperties": false,
        "properties": {
            "stage": { "oneOf": names, "description": "What makes the table." },
            "from": {
                "description": "The tables it is made from: a list in the stage's order, or a mapping of input to table.",
                "anyOf": [
                    { "type": "array", "items": { "type": "string" } },
                    { "type": "object", "additionalProperties": { "type": "string" } },
                ],
            },
            "with": { "type": "object", "description": "The stage's parameters." },
            "where": { "type": "string", "description": "A SQL predicate: which rows of the first input take part." },
            "on_error": { "enum": ["fail", "skip"], "default": "fail", "description": "Whether a row that fails stops the run or is left out and recorded." },
        },
        "allOf": variants,
    }));
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "vlmdiff pipeline",
        "type": "object",
        "required": ["tables"],
        "additionalProperties": false,
        "properties": {
            "name": { "type": "string", "description": "The pipeline's name, which SQL uses as schema; the file's name by default." },
            "store": { "type": "string", "description": "Where tables are kept: a folder or a URL; .vlmdiff by default." },
            "tables": {
                "type": "object",
                "description": "The tables, top to bottom; a table may use only tables above it.",
                "additionalProperties": { "$ref": "#/$defs/table" },
            },
            "sweep": {
                "description": "Several values of some parameters: every combination runs, and tables that do not depend on a value are made once. Keys are `table.parameter`, or the parameter alone where one table takes it. SQL sees the instances of a table as one, with a column for each parameter.",
                "anyOf": [
                    {
                        "description": "Lists of values: every combination of them.",
                        "type": "object",
                        "minProperties": 1,
                        "additionalProperties": { "type": "array", "minItems": 1 },
                    },
                    {
                        "description": "The combinations themselves, each with the same keys.",
                        "type": "array",
                        "minItems": 1,
                        "items": { "type": "object", "minProperties": 1 },
                    },
                ],
            },
        },
        "$defs": definitions,
    })
}
