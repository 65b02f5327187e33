//! The JSON Schema of the parameters of all captioners, as those of one stage.

use std::collections::BTreeSet;

use schemars::Schema;
use serde_json::{Map, Value, json};

/// The names of a captioner.
type Names = &'static [&'static str];

/// One parameter, with the names of the captioners that describe it in the same way.
struct Parameter {
    name: String,
    schema: Value,
    captioners: Vec<Names>,
}

/// Merges the schemas of all captioners into one of a flat object, in which `model` chooses the captioner. The names of
/// all parameters stand in `properties`, where editors and `--set` look for them; `allOf` says which of them go with which
/// captioner.
pub(super) fn merged(captioners: Vec<(Names, Value)>) -> Schema {
    let (mut parameters, mut models, mut rules) = (Vec::<Parameter>::new(), Vec::new(), Vec::new());
    for (captioner, schema) in &captioners {
        let chosen = |name: &&str| json!({ "const": name, "description": schema["description"] });
        models.extend(captioner.iter().map(chosen));
        rules.push(rule(captioner, schema));
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            match parameters.iter_mut().find(|known| known.name == *name && known.schema == *property) {
                Some(known) => known.captioners.push(captioner),
                None => {
                    parameters.push(Parameter {
                        name: name.clone(),
                        schema: property.clone(),
                        captioners: vec![captioner],
                    });
                }
            }
        }
    }
    let mut properties = Map::new();
    properties.insert("model".into(), json!({ "description": "The captioner.", "oneOf": models }));
    for Parameter { name, .. } in &parameters {
        if !properties.contains_key(name) {
            let same: Vec<&Parameter> = parameters.iter().filter(|parameter| parameter.name == *name).collect();
            properties.insert(name.clone(), property(&same));
        }
    }
    let object = json!({
        "type": "object",
        "properties": properties,
        "required": ["model"],
        "additionalProperties": false,
        "allOf": rules,
    });
    Schema::try_from(object).unwrap_or_default()
}

/// Returns the rule that `model: CAPTIONER` needs some parameters and goes with no others than its own.
fn rule(captioner: Names, schema: &Value) -> Value {
    let names: Vec<&str> = schema["properties"].as_object().into_iter().flatten().map(|(name, _)| &**name).collect();
    let names: Vec<&str> = std::iter::once("model").chain(names).collect();
    let mut then = json!({ "propertyNames": { "enum": names } });
    if let Some(required) = schema.get("required") {
        then["required"] = required.clone();
    }
    json!({ "if": { "properties": { "model": { "enum": captioner } } }, "then": then })
}

/// Returns the names of a captioner in words: the first and the last of many.
fn named(names: Names) -> String {
    match names {
        [first, .., last] => format!("`{first}` to `{last}`"),
        [only] => format!("`{only}`"),
        [] => String::new(),
    }
}

/// Describes the parameters of one name, each with its captioners.
fn property(same: &[&Parameter]) -> Value {
    let described = |parameter: &Parameter| {
        let captioners: Vec<String> = parameter.captioners.iter().map(|names| named(names)).collect();
        let text = parameter.schema["description"].as_str().unwrap_or_default();
        format!("With {}: {text}", captioners.join(", "))
    };
    let bare = |parameter: &Parameter| {
        let mut schema = parameter.schema.clone();
        schema.as_object_mut().map(|schema| schema.shift_remove("description"));
        schema
    };
    let description = same.iter().map(|parameter| described(parameter)).collect::<Vec<_>>().join("\n\n");
    let schemas: Vec<Value> = same.iter().map(|parameter| bare(parameter)).collect();
    let different: BTreeSet<String> = schemas.iter().map(Value::to_string).collect();
    let mut property = json!({ "description": description });
    match (&schemas[..], property.as_object_mut()) {
        ([Value::Object(schema), ..], Some(property)) if different.len() == 1 => property.extend(schema.clone()),
        (_, Some(property)) => {
            property.insert("anyOf".into(), json!(schemas));
        }
        _ => {}
    }
    property
}
