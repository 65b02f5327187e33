//! The parameters of captioners, and captions read from files.

use std::{fs, path::Path};

use arrow::{
    array::{RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema},
};
use parquet::arrow::ArrowWriter;
use serde_json::json;
use std::sync::Arc;

use super::*;
use crate::engine::{source::Sources, stage::Batch};

fn captioner(parameters: Value) -> AnyCaptioner {
    AnyCaptioner::read(&parameters).unwrap_or_else(|e| panic!("{}: {}", e.path, e.message))
}

fn refused(parameters: Value) -> (String, String) {
    let ParamError { path, message } = AnyCaptioner::read(&parameters).unwrap_err();
    (path, message)
}

#[test]
fn parameters_of_dataset_are_written_as_before() {
    let written = serde_json::to_string(&captioner(json!({ "model": "dataset" }))).unwrap();
    assert_eq!(written, r#"{"model":"dataset","default":""}"#);
    assert_eq!(captioner(json!({ "model": "dataset" })).revision(), 1);
}

#[test]
fn wrong_parameter_is_refused_at_its_place() {
    assert_eq!(refused(json!({ "model": "datset" })).0, "model");
    let told = refused(json!({ "model": "datset" })).1;
    assert!(told.contains("there are `dataset`, `template`, `file`, `pairs`, `coco`, `internvl2-1b`"), "{told}");
    assert!(refused(json!({})).1.starts_with("missing field `model`"));
    assert!(refused(json!({ "model": "template" })).1.starts_with("missing field `text`"));
    assert_eq!(refused(json!({ "model": "coco", "path": "x", "seed": "y" })).0, "seed");
    assert!(refused(json!({ "model": "dataset", "text": "x" })).1.starts_with("unknown field `text`"));
    let told = captioner(json!({ "model": "template", "text": "", "classes": { "nut": "{klass}" } })).check();
    assert!(told.unwrap_err().to_string().starts_with("`classes.nut`: `{klass}` at character 1"));
}

#[test]
fn every_parameter_of_every_captioner_stands_in_the_schema_of_the_stage() {
    let schema = serde_json::to_value(schemars::schema_for!(AnyCaptioner)).unwrap();
    let properties = schema["properties"].as_object().unwrap();
    for (name, property) in properties {
        assert!(property["description"].as_str().is_some_and(|text| !text.is_empty()), "{name}: {property}");
    }
    for name in ["model", "text", "classes", "path", "id", "caption", "by", "separator", "take", "seed", "default"] {
        assert!(properties.contains_key(name), "{name}");
    }
    assert_eq!(properties["default"]["type"], "string");
    let models: Vec<&Value> =
        properties["model"]["oneOf"].as_array().unwrap().iter().map(|one| &one["const"]).collect();
    assert_eq!(models, AnyCaptioner::names());
}

/// Returns the captions that the file gives images `a/0.png`, `a/1.png` and `a/2.png`.
fn described(file: &file::FileCaptions) -> Vec<Option<String>> {
    let batch = Batch::new(["a/0.png", "a/1.png", "a/2.png"].map(str::to_owned).into(), Vec::new());
    let index = file.index(&Sources::default()).unwrap();
    lookup::Lookup::captions(&index, &batch).unwrap().into_iter().map(|caption| caption.unwrap()).collect()
}

fn file(path: &Path, other: Value) -> file::FileCaptions {
    let mut parameters = json!({ "path": path });
    parameters.as_object_mut().unwrap().extend(other.as_object().unwrap().clone());
    serde_json::from_value(parameters).unwrap()
}

#[test]
fn captions_are_read_from_json_lines_csv_and_parquet() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("c.jsonl"), "\u{feff}{\"image_id\": \"a/0.png\", \"caption\": \"zero\"}\n\n{\"image_id\": \"a/1.png\", \"caption\": null, \"vlm\": 1}\n").unwrap();
    fs::write(path("c.csv"), "n,image_id,caption\n1,a/0.png,\"zero, \"\"one\"\"\nand\"\n2,a/1.png,\n").unwrap();
    fs::write(path("c.tsv"), "image\ttext\na/0.png\tzero\n").unwrap();
    let ids = StringArray::from(vec!["a/0.png", "a/1.png"]);
    let captions = StringArray::from(vec![Some("zero"), None]);
    let field = |name: &str| Field::new(name, DataType::Utf8, true);
    let schema = Arc::new(Schema::new(vec![field("other"), field("caption"), field("image_id")]));
    let batch =
        RecordBatch::try_new(schema.clone(), vec![Arc::new(ids.clone()), Arc::new(captions), Arc::new(ids)]).unwrap();
    let mut writer = ArrowWriter::try_new(fs::File::create(path("c.parquet")).unwrap(), schema, None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let zero = || vec![Some("zero".to_owned()), None, None];
    assert_eq!(described(&file(&path("c.jsonl"), json!({}))), zero());
    assert_eq!(described(&file(&path("c.parquet"), json!({}))), zero());
    assert_eq!(described(&file(&path("c.tsv"), json!({ "id": "image", "caption": "text" }))), zero());
    assert_eq!(described(&file(&path("c.csv"), json!({})))[0].as_deref(), Some("zero, \"one\"\nand"));
    for (name, at, told) in [
        ("c.jsonl", "id", "has no column `x`; it has image_id, caption"),
        ("c.csv", "id", "has no column `x`; it has n, image_id, caption"),
        ("c.parquet", "id", "has no column `x`; it has other, caption, image_id"),
        ("gone.csv", "path", "cannot read"),
        ("c.txt", "path", "ends in none of .jsonl, .ndjson, .csv, .tsv and .parquet"),
    ] {
        let misfit = file(&path(name), json!({ "id": "x" })).check().unwrap_err().to_string();
        assert!(misfit.starts_with(&format!("`{at}`: ")) && misfit.contains(told), "{name}: {misfit}");
    }
}

#[test]
fn broken_file_is_refused_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.jsonl");
    for (text, told) in [
        ("{\"image_id\": \"a\", \"caption\": \"b\"}\n[]\n", "c.jsonl: line 2, character"),
        ("{\"image_id\": \"a\", \"caption\": \"b\"}\n\n{\"image_id\": \"a\"", "c.jsonl: line 3, character 16: EOF"),
        ("{\"image_id\": [], \"caption\": \"b\"}\n", "line 1: `image_id` is no text, number or null"),
        ("{\"caption\": \"b\"}\n", "line 1 has no `image_id`"),
        ("{\"image_id\": 5, \"caption\": {}}\n", "line 1: `caption` is no text, number or null"),
        (
            "{\"image_id\": 5, \"caption\": \"\"}\n{\"image_id\": \"5\", \"caption\": \"\"}\n",
            "line 1 and line 2 both describe `5`",
        ),
    ] {
        fs::write(&path, text).unwrap();
        let error = file(&path, json!({})).index(&Sources::default()).err().unwrap().to_string();
        assert!(error.contains(told), "{error}");
    }
    fs::write(&path, [0xff, 0xfe, 0]).unwrap();
    assert!(file(&path, json!({})).check().is_err());
}
