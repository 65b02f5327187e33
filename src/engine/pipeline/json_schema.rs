//! The generated contracts: the JSON Schema of pipeline files, made from the stages' parameters and their
//! documentation, and the columns that stages read and write.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::document::parse;
use super::table::Table;
use crate::engine::{
    Error, Result,
    stage::{Holds, ParamError, Port, Ports, Reads, StageKind},
    store::{is_heavy, is_volatile, stored_schema, tensor_shape},
};

/// The pipeline whose tables show the columns that stages write.
#[derive(Clone, Copy, Debug)]
pub struct Example<'a> {
    /// Its path in the repository.
    pub path: &'a str,
    /// Its YAML.
    pub text: &'a str,
}

/// The files of `schemas/`: name and content.
pub fn files(kinds: &[StageKind], example: Example<'_>) -> Result<Vec<(String, String)>> {
    let text = |value: Value| serde_json::to_string_pretty(&value).unwrap_or_default() + "\n";
    let tables = parse(example.path, "example", example.text, kinds, &[], &[], &|_| None)?.tables;
    let mut files = vec![("pipeline.schema.json".to_owned(), text(pipeline(kinds)))];
    for kind in kinds {
        let table = tables.iter().find(|table| table.kind.name == kind.name);
        files.push((format!("{}.json", kind.name), text(stage(kind, table.map(|table| (example.path, table)))?)));
    }
    Ok(files)
}

/// Describes a stage kind: its inputs, its parameters, and the columns of its output, with the parameters of its
/// example.
fn stage(kind: &StageKind, example: Option<(&str, &Table)>) -> Result<Value> {
    let params = kind.example().unwrap_or_else(|| json!({}));
    let wrong =
        |e: ParamError| Error::Stage(format!("the example of stage `{}`: {}: {}", kind.name, e.path, e.message));
    let stage = (kind.parse)(&params).map_err(wrong)?;
    let reads = match stage.ports() {
        Ports::Any => json!("any tables"),
        Ports::Named(ports) => ports.iter().map(port).collect(),
    };
    let columns = match example {
        Some((path, table)) => json!({ format!("of `{}` in {path}", table.name): columns(table) }),
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

/// Describes an input of a stage and the columns that are read from it.
fn port(port: &Port) -> Value {
    let reads = match port.reads {
        Reads::Rows => "rows",
        Reads::Pieces => "pieces",
        Reads::Table => "table",
    };
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

/// Describes the Arrow schema of a table as it is stored.
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

/// The name of the definition of a table in the JSON Schema of pipelines, which no definition of a stage may take.
const TABLE: &str = "table";
/// The name of the definition of a change to a table of the file that is extended.
const CHANGE: &str = "change";

/// The parameters of one stage.
struct Parameters<'a> {
    stage: &'a str,
    schema: Value,
    /// The definitions that `schema` refers to.
    definitions: Map<String, Value>,
}

impl<'a> Parameters<'a> {
    fn new(stage: &'a str, mut schema: Value) -> Self {
        let definitions = schema.as_object_mut().and_then(|object| object.remove("$defs"));
        let definitions = match definitions {
            Some(Value::Object(definitions)) => definitions,
            _ => Map::new(),
        };
        Self { stage, schema, definitions }
    }
}

/// Merges the definitions of all stages. Stages share a definition that is the same in all of them; if a name means
/// different things, each stage has a definition of its own, `stage.Name`.
fn merge(stages: &mut [Parameters<'_>]) -> Map<String, Value> {
    let own = ambiguous(stages);
    let mut merged = Map::new();
    for stage in stages {
        let name = |name: &str| if own.contains(name) { format!("{}.{name}", stage.stage) } else { name.to_owned() };
        rename(&mut stage.schema, &name);
        for (of, mut definition) in std::mem::take(&mut stage.definitions) {
            rename(&mut definition, &name);
            merged.insert(name(&of), definition);
        }
    }
    merged
}

/// Returns the names of definitions that differ between stages, by themselves or in a definition that they refer to.
fn ambiguous(stages: &[Parameters<'_>]) -> BTreeSet<String> {
    let all = || stages.iter().flat_map(|stage| &stage.definitions);
    let mut found = BTreeSet::from([TABLE.to_owned(), CHANGE.to_owned()]);
    loop {
        let differs = |name: &str, definition: &Value| {
            all().any(|(other, content)| other == name && content != definition)
                || references(definition).iter().any(|name| found.contains(*name))
        };
        let new = all().find(|(name, definition)| !found.contains(*name) && differs(name, definition));
        let Some((name, _)) = new else { return found };
        found.insert(name.clone());
    }
}

/// The beginning of a reference from a schema to a definition.
const REFERENCE: &str = "#/$defs/";

/// Returns the definitions that a schema refers to.
fn references(schema: &Value) -> Vec<&str> {
    match schema {
        Value::Object(entries) => {
            let own = entries.get("$ref").and_then(Value::as_str).and_then(|to| to.strip_prefix(REFERENCE));
            own.into_iter().chain(entries.values().flat_map(references)).collect()
        }
        Value::Array(items) => items.iter().flat_map(references).collect(),
        _ => Vec::new(),
    }
}

/// Renames the definitions that a schema refers to.
fn rename(schema: &mut Value, name: &dyn Fn(&str) -> String) {
    match schema {
        Value::Object(entries) => {
            if let Some(Value::String(to)) = entries.get_mut("$ref")
                && let Some(old) = to.strip_prefix(REFERENCE)
            {
                *to = format!("{REFERENCE}{}", name(old));
            }
            entries.values_mut().for_each(|value| rename(value, name));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| rename(item, name)),
        _ => {}
    }
}

fn pipeline(kinds: &[StageKind]) -> Value {
    let mut stages: Vec<Parameters<'_>> =
        kinds.iter().map(|kind| Parameters::new(kind.name, (kind.schema)().to_value())).collect();
    let mut definitions = merge(&mut stages);
    let variants: Vec<Value> = kinds
        .iter()
        .zip(stages)
        .map(|(kind, Parameters { schema: parameters, .. })| {
            let required = parameters.get("required").is_some();
            json!({
                "if": { "properties": { "stage": { "const": kind.name } } },
                "then": { "properties": { "with": parameters }, "required": if required { vec!["with"] } else { vec![] } },
            })
        })
        .collect();
    let names: Vec<Value> =
        kinds.iter().map(|kind| json!({ "const": kind.name, "description": kind.about() })).collect();
    let keys = json!({
        "stage": { "oneOf": names, "description": "The kind of stage that makes the table." },
        "from": {
            "description": "The tables it is made from: a list in the stage's order, or a mapping of input to table.",
            "anyOf": [
                { "type": "array", "items": { "type": "string" } },
                { "type": "object", "additionalProperties": { "type": "string" } },
            ],
        },
        "with": { "type": "object", "description": "The stage's parameters." },
        "where": { "type": "string", "description": "A SQL predicate that selects rows of the first input." },
        "on_error": { "enum": ["fail", "skip"], "default": "fail", "description": "The handling of rows that fail: `fail` ends the run, `skip` leaves such rows out and records them." },
    });
    definitions.insert(
        TABLE.into(),
        json!({
            "type": "object",
            "required": ["stage"],
            "additionalProperties": false,
            "properties": keys,
            "allOf": variants,
        }),
    );
    definitions.insert(CHANGE.into(), json!({
        "description": "What differs from the table of the file that is extended, or `null` to leave the table out. Parameters in `with` may be paths, such as `training.epochs`.",
        "type": ["object", "null"],
        "additionalProperties": false,
        "properties": keys,
    }));
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "vlmdiff pipeline",
        "type": "object",
        "anyOf": [{ "required": ["tables"] }, { "required": ["extends"] }],
        "if": { "required": ["extends"] },
        "then": { "properties": { "tables": { "additionalProperties": { "$ref": "#/$defs/change" } } } },
        "else": { "properties": { "tables": { "additionalProperties": { "$ref": "#/$defs/table" } } } },
        "additionalProperties": false,
        "properties": {
            "extends": { "type": "string", "description": "The path of a pipeline file, relative to this one, from which this one differs as it says. Its name is not inherited." },
            "name": { "type": "string", "description": "The pipeline's name, which SQL uses as schema; the file's name by default." },
            "store": { "type": "string", "description": "The store, a folder or a URL; .vlmdiff by default." },
            "tables": {
                "type": "object",
                "description": "The tables, top to bottom; a table may use only tables above it. In a file that extends another: what differs from its tables; a new one stands above the first that reads it.",
            },
            "sweep": {
                "description": "Several values of some parameters: every combination runs, and tables that do not depend on a value are made once. Keys are `table.parameter`, or the parameter alone if only one table takes it. SQL sees the instances of a table as one, with a column for each parameter.",
                "anyOf": [
                    {
                        "description": "Lists of values, of which every combination runs.",
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
            "seeds": {
                "description": "The number of seeds, from 2: every combination runs with 0, 1 and so on as the seed of all trainings, fitted methods and noise.",
                "type": "integer",
                "minimum": 2,
            },
        },
        "$defs": definitions,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refers(to: &str) -> Value {
        json!({ "properties": { "x": { "$ref": format!("{REFERENCE}{to}"), "description": "What to use." } } })
    }

    /// Two stages with these definitions, each with a parameter of the type `Model`, merged.
    fn merged(a: Value, b: Value) -> (Map<String, Value>, [Value; 2]) {
        let parameters = |stage, definitions: Value| {
            let mut schema = refers("Model");
            schema["$defs"] = definitions;
            Parameters::new(stage, schema)
        };
        let mut stages = [parameters("caption", a), parameters("fit", b)];
        let definitions = merge(&mut stages);
        (definitions, stages.map(|stage| stage.schema))
    }

    #[test]
    fn equal_definitions_of_two_stages_are_shared() {
        let own = json!({ "Model": { "enum": ["a"] } });
        let (definitions, schemas) = merged(own.clone(), own.clone());
        assert_eq!(Value::from(definitions), own);
        assert_eq!(schemas, [refers("Model"), refers("Model")]);
    }

    #[test]
    fn different_definitions_of_one_name_carry_their_stage() {
        let [a, b] = ["a", "b"].map(|word| json!({ "enum": [word] }));
        let (definitions, schemas) = merged(json!({ "Model": a, "Rule": {} }), json!({ "Model": b }));
        assert_eq!(Value::from(definitions), json!({ "caption.Model": a, "Rule": {}, "fit.Model": b }));
        assert_eq!(schemas, [refers("caption.Model"), refers("fit.Model")]);
    }

    #[test]
    fn definitions_that_refer_to_different_ones_differ_too() {
        let with = |word: &str| json!({ "Model": refers("Size"), "Size": { "const": word } });
        let (definitions, schemas) = merged(with("a"), with("b"));
        let expected = json!({
            "caption.Model": refers("caption.Size"), "caption.Size": { "const": "a" },
            "fit.Model": refers("fit.Size"), "fit.Size": { "const": "b" },
        });
        assert_eq!(Value::from(definitions), expected);
        assert_eq!(schemas, [refers("caption.Model"), refers("fit.Model")]);
    }

    #[test]
    fn no_definition_takes_the_name_of_the_tables_own() {
        let (definitions, _) = merged(json!({ "Model": refers("table"), "table": {} }), json!({}));
        assert_eq!(definitions.keys().collect::<Vec<_>>(), ["caption.Model", "caption.table"]);
    }
}
