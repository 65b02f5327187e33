//! The generated contracts: the JSON Schema of pipeline files, from the stages' parameters and their documentation, and the
//! columns that stages read and write.

use serde_json::{Map, Value, json};

use super::document::parse;
use super::table::Table;
use crate::engine::{
    Error, Result,
    stage::{Holds, ParamError, Port, Ports, Reads, StageKind},
    store::{is_heavy, is_volatile, stored_schema, tensor_shape},
};

/// The pipeline whose tables show the columns that stages write.
const EXAMPLE: &str = include_str!("../../../pipelines/quickstart.yaml");

/// The files of `schemas/`: name and content.
pub fn files(kinds: &[StageKind]) -> Result<Vec<(String, String)>> {
    let text = |value: Value| serde_json::to_string_pretty(&value).unwrap_or_default() + "\n";
    let example = parse("quickstart.yaml", "quickstart", EXAMPLE, kinds, &[], &|_| None)?;
    let mut files = vec![("pipeline.schema.json".to_owned(), text(pipeline(kinds)))];
    for kind in kinds {
        let table = example.tables.iter().find(|table| table.kind.name == kind.name);
        files.push((format!("{}.json", kind.name), text(stage(kind, table)?)));
    }
    Ok(files)
}

/// A stage kind: what it reads, what it takes, what it makes, with the parameters of its example.
fn stage(kind: &StageKind, example: Option<&Table>) -> Result<Value> {
    let params = kind.example().unwrap_or_else(|| json!({}));
    let wrong =
        |e: ParamError| Error::Stage(format!("the example of stage `{}`: {}: {}", kind.name, e.path, e.message));
    let stage = (kind.parse)(&params).map_err(wrong)?;
    let reads = match stage.ports() {
        Ports::Any => json!("any tables"),
        Ports::Named(ports) => ports.iter().map(port).collect(),
    };
    let columns = match example {
        Some(table) => json!({ format!("of `{}` in pipelines/quickstart.yaml", table.name): columns(table) }),
        None => json!("as its parameters or its source say"),
    };
    Ok(json!({
        "stage": kind.name,
        "about": kind.about(),
        "revision": stage.revision(),
        "reads": reads,
        "writes": stage.makes(),
        "columns": columns,
        "parameters": (kind.schema)(),
    }))
}

/// An input of a stage, with the columns that it reads.
fn port(port: &Port) -> Value {
    let reads = if port.reads == Reads::Rows { "rows" } else { "table" };
    let columns = port.columns.iter().map(|column| {
        let mut described = json!({ "name": column.name });
        match &column.holds {
            Holds::Anything => {}
            Holds::Values(of) => described["type"] = json!(of.to_string()),
            Holds::Tensors(item, dimensions) => described["type"] = json!(format!("{item}{dimensions}")),
        }
        if column.optional {
            described["optional"] = json!(true);
        }
        described
    });
    json!({ "name": port.name, "columns": columns.collect::<Vec<_>>(), "reads": reads, "optional": port.optional })
}

/// The Arrow schema of a table as it is stored.
fn columns(table: &Table) -> Vec<Value> {
    let stored = stored_schema(&table.output, table.is_keyed());
    let column = |field: &arrow::datatypes::Field| {
        let mut column = json!({ "name": field.name(), "nullable": field.is_nullable() });
        match (tensor_shape(field), field.data_type()) {
            (Some(shape), arrow::datatypes::DataType::FixedSizeList(item, _)) => {
                column["type"] = json!(item.data_type().to_string());
                column["tensor"] = json!(shape);
            }
            (_, data_type) => column["type"] = json!(data_type.to_string()),
        }
        let marks = [("heavy", is_heavy(field)), ("volatile", is_volatile(field))];
        marks.iter().filter(|(_, is)| *is).for_each(|(mark, _)| column[*mark] = json!(true));
        column
    };
    stored.fields().iter().map(|field| column(field)).collect()
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
