//! The description of the interface, as OpenAPI 3.1. The schemas are those of the types that are answered.

use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Value, json};

use super::{
    answer::{Answer, Health, Images, Problem},
    pictures::SIDES,
};

/// Returns the description; `classes` are those that a photograph may have, and `has_token` says whether requests carry a
/// token.
pub(super) fn description(pipeline: &str, classes: &[String], has_token: bool) -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = settings.into_generator();
    let answers = [
        ("answer", schema::<Answer>(&mut generator)),
        ("images", schema::<Images>(&mut generator)),
        ("health", schema::<Health>(&mut generator)),
        ("problem", schema::<Problem>(&mut generator)),
    ];
    let of = |name: &str| answers.iter().find(|(other, _)| *other == name).map(|(_, schema)| schema.clone());
    let as_json = |what: &str, name: &str| json!({ "description": what, "content": { "application/json": { "schema": of(name) } } });
    let problem = |what: &str| as_json(what, "problem");
    let picture = |what: &str, media_type: &str| {
        let side = json!({ "type": "integer", "minimum": SIDES.start(), "maximum": SIDES.end() });
        let about = "The longest side in pixels; by default that of the photograph.";
        json!({ "get": {
            "summary": what,
            "parameters": [id(), query("side", side, about)],
            "responses": {
                "200": { "description": what, "content": { media_type: {} } },
                "304": { "description": "The picture is the one that the client has (If-None-Match)." },
                "404": problem("There is no such picture."),
            },
        } })
    };
    let class = json!({ "type": "string", "examples": classes });
    let binary = json!({ "schema": { "type": "string", "format": "binary" } });
    let form = json!({ "schema": { "type": "object", "properties": {
        "image": { "type": "string", "format": "binary" }, "class": class, "name": { "type": "string" },
    } } });
    let predict = json!({ "post": {
        "summary": "Judges a photograph.",
        "parameters": [
            query("class", class.clone(), "The class of the photograph, where the pipeline knows several."),
            query("name", json!({ "type": "string" }), "The name under which it is shown."),
        ],
        "requestBody": { "required": true, "content": { "image/*": binary, "multipart/form-data": form } },
        "responses": {
            "200": as_json("The verdict.", "answer"),
            "400": problem("The class is missing or not known, or the form is wrong."),
            "408": problem("The photograph was not received in time."),
            "413": problem("The photograph has too many bytes or pixels."),
            "415": problem("The body is no picture by its content type."),
            "422": problem("The photograph cannot be judged: it is broken, or no picture."),
            "429": problem("The queue is full; the header Retry-After says when to come again."),
            "500": problem("The server failed."),
        },
    } });
    let list = json!({ "get": {
        "summary": "Lists the photographs that the server keeps.",
        "parameters": [
            query("sort", json!({ "enum": ["score", "time"] }), "The highest score first, or the newest first."),
            query("show", json!({ "enum": ["all", "anomalous", "good"] }), "The verdict."),
            query("class", class, "The class."),
            query("page", json!({ "type": "integer", "minimum": 1 }), "The page, from 1."),
        ],
        "responses": { "200": as_json("Photographs.", "images") },
    } });
    let one = json!({ "get": {
        "summary": "The verdict on a photograph again.",
        "parameters": [id()],
        "responses": { "200": as_json("The verdict.", "answer"), "404": problem("There is no such photograph.") },
    } });
    let health = json!({ "get": {
        "summary": "The state of the server.",
        "security": [],
        "responses": { "200": as_json("It takes photographs.", "health") },
    } });
    let text = |summary: &str, media_type: &str| {
        let content = json!({ "description": summary, "content": { media_type: {} } });
        json!({ "get": { "summary": summary, "responses": { "200": content } } })
    };
    let paths = json!({
        "/v1/predict": predict,
        "/v1/images": list,
        "/v1/images/{id}": one,
        "/v1/images/{id}/photograph": picture("The photograph, as it was sent.", "image/*"),
        "/v1/images/{id}/map.png": picture("The anomaly map in 16 bits of grey.", "image/png"),
        "/v1/images/{id}/overlay.png": picture("The map in colours over the photograph, a square around the most anomalous patch if that is known.", "image/png"),
        "/v1/images/{id}/mask.png": picture("255 where the map is above the threshold of pixels.", "image/png"),
        "/v1/images/{id}/nearest.png": picture("The good photograph as it was fitted on, a square around the nearest patch.", "image/png"),
        "/health": health,
        "/metrics": text("Figures for Prometheus.", "text/plain"),
        "/openapi.json": text("This description.", "application/json"),
        "/": text("A page about the photographs that were judged.", "text/html"),
    });
    let mut description = json!({
        "openapi": "3.1.0",
        "info": {
            "title": format!("vlmdiff serve {pipeline}"),
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Judges photographs by a pipeline that has run.",
        },
        "paths": paths,
        "components": { "schemas": generator.take_definitions(true) },
    });
    if has_token {
        description["components"]["securitySchemes"] = json!({ "token": { "type": "http", "scheme": "bearer" } });
        description["security"] = json!([{ "token": [] }]);
    }
    description
}

fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    generator.subschema_for::<T>().to_value()
}

fn id() -> Value {
    json!({ "name": "id", "in": "path", "required": true, "schema": { "type": "string" }, "description": "`image_id` of the verdict." })
}

fn query(name: &str, schema: Value, what: &str) -> Value {
    json!({ "name": name, "in": "query", "required": false, "schema": schema, "description": what })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Collects every `$ref` in a description.
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
                fields.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_of_the_description_leads_somewhere() {
        let description = description("nut", &["nut".into()], true);
        let mut found = Vec::new();
        references(&description, &mut found);
        assert!(found.len() > 10, "{found:?}");
        for reference in found {
            assert!(description.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
        }
        let answer = &description["components"]["schemas"]["Answer"]["properties"];
        for field in ["verdict", "image_id", "score", "p_value", "threshold", "model", "regions", "digest", "links"] {
            assert!(answer.get(field).is_some(), "{field}: {answer}");
        }
    }
}
