//! Lineage of tables, as OpenLineage 2-0-2 describes it: an event when a run or a table is started, and one when it is
//! complete, has failed or was given up. Tables that are fresh are not made, and have no events.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, OpenOptions},
    io::Write,
    path::PathBuf,
};

use arrow::datatypes::{DataType, Field, Schema};
use chrono::{DateTime, SecondsFormat};
use serde_json::{Map, Value, json};

use super::{Listener, sender::JsonSender};
use crate::engine::{
    Digest, Error, Result, Secrets, is_url, local_path,
    pipeline::{Pipeline, Table},
    store::{Event, tensor_shape},
};

/// The schema of the events, and of their facets.
const EVENT: &str = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent";
const FACETS: &str = "https://openlineage.io/spec/facets";
/// The program, as a package URL.
const PRODUCER: &str = concat!("pkg:cargo/vlmdiff@", env!("CARGO_PKG_VERSION"));
/// The namespace of jobs if the environment names none.
const NAMESPACE: &str = "vlmdiff";
/// The path of a server at which it takes events.
const ENDPOINT: &str = "api/v1/lineage";

/// Tells the lineage of a run's tables.
#[derive(Debug)]
pub struct Lineage {
    to: To,
    /// The namespace of jobs.
    namespace: String,
    pipeline: String,
    /// The tables of the pipeline, by name.
    tables: BTreeMap<String, About>,
    /// The run, when it has begun.
    run: String,
    version: String,
    /// The tables that are being made.
    open: BTreeSet<String>,
    failure: Option<String>,
}

/// The place of the events.
#[derive(Debug)]
enum To {
    /// A file of JSON lines, to which they are added.
    File(PathBuf, File),
    /// A server.
    Url(JsonSender),
}

/// A table and what it is made from, as data sets.
#[derive(Debug)]
struct About {
    stage: String,
    inputs: Vec<Value>,
    output: Value,
}

impl Lineage {
    /// Begins to tell lineage to a file, or to a server by its URL. `store` is the address of the store.
    ///
    /// # Errors
    /// [`Error::Input`] if the file cannot be written.
    pub fn begin(to: &str, pipeline: &Pipeline, store: &str) -> Result<Self> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let to = if to.starts_with("http://") || to.starts_with("https://") {
            let endpoint = variable("OPENLINEAGE_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
            To::Url(JsonSender::start(server(to, &endpoint), variable("OPENLINEAGE_API_KEY")))
        } else if is_url(to) {
            let message = format!("{to}: lineage is written to a file, or sent to an http:// or https:// address");
            return Err(Error::Input(message));
        } else {
            let path = local_path(to);
            let file = OpenOptions::new().create(true).append(true).open(&path);
            To::File(path, file.map_err(|e| Error::Input(format!("cannot write {to}: {e}")))?)
        };
        let tables = pipeline.tables.iter().map(|table| (table.name.clone(), about(table, pipeline, store)));
        Ok(Self {
            to,
            namespace: variable("OPENLINEAGE_NAMESPACE").unwrap_or_else(|| NAMESPACE.to_owned()),
            pipeline: pipeline.name.clone(),
            tables: tables.collect(),
            run: String::new(),
            version: String::new(),
            open: BTreeSet::new(),
            failure: None,
        })
    }

    /// Tells an event of the run as a whole.
    fn of_run(&mut self, kind: &str, at_ms: u64, error: Option<&str>) {
        let job = json!({
            "namespace": self.namespace,
            "name": self.pipeline,
            "facets": { "jobType": job_type("PIPELINE") },
        });
        let mut facets = Map::from_iter([("processing_engine".to_owned(), self.engine())]);
        facets.extend(error.map(|error| ("errorMessage".to_owned(), error_message(error))));
        self.tell(json!({
            "eventType": kind,
            "eventTime": time(at_ms),
            "producer": PRODUCER,
            "schemaURL": EVENT,
            "run": { "runId": uuid(&[&self.run]), "facets": facets },
            "job": job,
        }));
    }

    /// Tells that a table is started. One whose parts were damaged is started again in the same run, which is not told.
    fn started(&mut self, table: &str, at_ms: u64) {
        if self.open.insert(table.to_owned()) {
            self.of_table("START", table, at_ms, None, None);
        }
    }

    /// Tells an event of a table. `done` are its version, rows and bytes, if it is published.
    fn of_table(&mut self, kind: &str, table: &str, at_ms: u64, done: Option<[u64; 3]>, error: Option<&str>) {
        let Some(about) = self.tables.get(table) else { return };
        let mut output = about.output.clone();
        if let Some([version, rows, bytes]) = done {
            let version = facet("1-0-1/DatasetVersionDatasetFacet", json!({ "datasetVersion": version.to_string() }));
            output["facets"]["version"] = version;
            let statistics = json!({ "rowCount": rows, "size": bytes });
            output["outputFacets"] =
                json!({ "outputStatistics": facet("1-0-2/OutputStatisticsOutputDatasetFacet", statistics) });
        }
        let parent = json!({
            "run": { "runId": uuid(&[&self.run]) },
            "job": { "namespace": self.namespace, "name": self.pipeline },
        });
        let mut facets = Map::from_iter([
            ("parent".to_owned(), facet("1-2-0/ParentRunFacet", parent)),
            ("processing_engine".to_owned(), self.engine()),
        ]);
        facets.extend(error.map(|error| ("errorMessage".to_owned(), error_message(error))));
        let event = json!({
            "eventType": kind,
            "eventTime": time(at_ms),
            "producer": PRODUCER,
            "schemaURL": EVENT,
            "run": { "runId": uuid(&[&self.run, table]), "facets": facets },
            "job": {
                "namespace": self.namespace,
                "name": format!("{}.{table}", self.pipeline),
                "facets": { "jobType": job_type(&about.stage) },
            },
            "inputs": about.inputs,
            "outputs": [output],
        });
        self.tell(event);
    }

    fn engine(&self) -> Value {
        facet("1-1-1/ProcessingEngineRunFacet", json!({ "name": "vlmdiff", "version": self.version }))
    }

    fn tell(&mut self, event: Value) {
        match &mut self.to {
            To::Url(sender) => sender.send(event.to_string()),
            To::File(path, file) => {
                // One write, so that the lines of several runs do not mix.
                if let Err(error) = file.write_all(format!("{event}\n").as_bytes()) {
                    let failure = || format!("lineage is not written to {}: {error}", path.display());
                    self.failure.get_or_insert_with(failure);
                }
            }
        }
    }
}

impl Listener for Lineage {
    fn hear(&mut self, at_ms: u64, event: &Event) {
        match event {
            Event::RunStarted { run, version, .. } => {
                self.run.clone_from(run);
                self.version.clone_from(version);
                self.of_run("START", at_ms, None);
            }
            Event::TableStarted { table, .. } => self.started(table, at_ms),
            Event::TablePublished { table, version, rows, bytes, .. } => {
                self.open.remove(table);
                self.of_table("COMPLETE", table, at_ms, Some([*version, *rows, *bytes]), None);
            }
            Event::RunFinished { error, interrupted, .. } => {
                let kind = match error {
                    None => "COMPLETE",
                    Some(_) if *interrupted => "ABORT",
                    Some(_) => "FAIL",
                };
                for table in std::mem::take(&mut self.open) {
                    self.of_table(kind, &table, at_ms, None, error.as_deref());
                }
                self.of_run(kind, at_ms, error.as_deref());
            }
            _ => {}
        }
    }

    fn finish(&mut self) -> Option<String> {
        if let To::Url(sender) = &mut self.to {
            self.failure = sender.finish().map(|failure| format!("lineage is not sent to {failure}"));
        }
        self.failure.take()
    }
}

/// Returns the address at which a server takes events: the given one if it has a path.
fn server(url: &str, endpoint: &str) -> String {
    let after_scheme = url.split_once("://").map_or(url, |(_, rest)| rest);
    match after_scheme.trim_end_matches('/').contains('/') {
        true => url.to_owned(),
        false => format!("{}/{}", url.trim_end_matches('/'), endpoint.trim_start_matches('/')),
    }
}

/// Returns a table of a pipeline with the data sets from which it is made: other tables, or places outside the store.
fn about(table: &Table, pipeline: &Pipeline, store: &str) -> About {
    let of_table = |table: &Table| {
        let schema = facet("1-2-0/SchemaDatasetFacet", json!({ "fields": fields(&table.output) }));
        let name = format!("{}.{}", pipeline.name, table.name);
        json!({ "namespace": namespace(store), "name": name, "facets": { "schema": schema } })
    };
    let made_from = |input: &crate::engine::pipeline::Input| pipeline.tables.iter().find(|t| t.name == input.table);
    let mut names = BTreeSet::new();
    let inputs = table.inputs.iter().filter(|input| names.insert(&input.table)).filter_map(made_from).map(of_table);
    let (params, places) = (table.stage.params(), table.stage.locations());
    let places = places.iter().filter_map(|path| {
        let value = path.split('.').try_fold(&params, |below, name| below.get(name))?;
        place(value.as_str()?, &pipeline.secrets)
    });
    About { stage: table.kind.name.to_uppercase(), inputs: inputs.chain(places).collect(), output: of_table(table) }
}

/// Returns the namespace of the tables of a store.
fn namespace(store: &str) -> String {
    if is_url(store) {
        return store.to_owned();
    }
    let path = local_path(store);
    format!("file://{}", std::path::absolute(&path).unwrap_or(path).display())
}

/// Returns a place outside the store as a data set; `None` for a text that names no place.
fn place(address: &str, secrets: &Secrets) -> Option<Value> {
    let address = secrets.hide(address.to_owned());
    let (namespace, name) = if is_url(&address) {
        let (scheme, rest) = address.split_once("://")?;
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        (format!("{scheme}://{host}"), path.to_owned())
    } else {
        let path = std::path::absolute(local_path(&address)).ok().filter(|path| path.exists())?;
        ("file".to_owned(), path.to_string_lossy().into_owned())
    };
    Some(json!({ "namespace": namespace, "name": name }))
}

/// Returns columns as the facet of schemas has them.
fn fields(schema: &Schema) -> Vec<Value> {
    schema.fields().iter().map(|field| column(field)).collect()
}

fn column(field: &Field) -> Value {
    let of = match (field.data_type(), tensor_shape(field)) {
        (DataType::FixedSizeList(item, _), Some(shape)) => {
            let sides: Vec<String> = shape.iter().map(ToString::to_string).collect();
            format!("{}[{}]", item.data_type().to_string().to_lowercase(), sides.join(","))
        }
        (of, _) => of.to_string().to_lowercase(),
    };
    match field.data_type() {
        DataType::Struct(below) => {
            let below: Vec<Value> = below.iter().map(|field| column(field)).collect();
            json!({ "name": field.name(), "type": "struct", "fields": below })
        }
        _ => json!({ "name": field.name(), "type": of }),
    }
}

/// Makes a facet; `schema` is its version and name.
fn facet(schema: &str, content: Value) -> Value {
    let name = schema.rsplit('/').next().unwrap_or(schema);
    let mut facet = json!({ "_producer": PRODUCER, "_schemaURL": format!("{FACETS}/{schema}.json#/$defs/{name}") });
    if let (Some(facet), Value::Object(content)) = (facet.as_object_mut(), content) {
        facet.extend(content);
    }
    facet
}

fn job_type(kind: &str) -> Value {
    let content = json!({ "processingType": "BATCH", "integration": "VLMDIFF", "jobType": kind });
    facet("2-0-4/JobTypeJobFacet", content)
}

fn error_message(error: &str) -> Value {
    facet("1-0-1/ErrorMessageRunFacet", json!({ "message": error, "programmingLanguage": "RUST" }))
}

/// Returns a time as ISO 8601 has it.
fn time(at_ms: u64) -> String {
    let time = DateTime::from_timestamp_millis(at_ms as i64).unwrap_or_default();
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Returns the UUID of a run, or of a table in it: version 8 of RFC 9562, of the digest of their names.
fn uuid(names: &[&str]) -> String {
    let digest = Digest::of(names.join("\n").as_bytes());
    let mut bytes = *digest.as_bytes();
    bytes[6] = 0x80 | bytes[6] & 0x0f;
    bytes[8] = 0x80 | bytes[8] & 0x3f;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::store::tensor_field;

    #[test]
    fn run_and_table_have_uuids_of_their_names() {
        let (run, table) = (uuid(&["1-2"]), uuid(&["1-2", "images"]));
        assert!(run != table && run == uuid(&["1-2"]));
        for id in [run, table] {
            assert_eq!(id.len(), 36);
            assert!(id.as_bytes()[14] == b'8' && b"89ab".contains(&id.as_bytes()[19]), "{id}");
        }
    }

    #[test]
    fn server_without_a_path_takes_events_at_the_usual_one() {
        assert_eq!(server("http://host:5000", ENDPOINT), "http://host:5000/api/v1/lineage");
        assert_eq!(server("http://host:5000/", "/x"), "http://host:5000/x");
        assert_eq!(server("https://host/own/path", ENDPOINT), "https://host/own/path");
    }

    #[test]
    fn columns_are_named_with_their_types() {
        let record = DataType::Struct([Field::new("x", DataType::Int64, true)].into_iter().collect());
        let schema = Schema::new(vec![
            Field::new("id", DataType::Utf8, false),
            tensor_field("pixels", DataType::UInt8, &[4, 5, 3], false),
            Field::new("record", record, true),
        ]);
        let expected = json!([
            { "name": "id", "type": "utf8" },
            { "name": "pixels", "type": "uint8[4,5,3]" },
            { "name": "record", "type": "struct", "fields": [{ "name": "x", "type": "int64" }] },
        ]);
        assert_eq!(Value::from(fields(&schema)), expected);
    }

    #[test]
    fn time_is_in_utc() {
        assert_eq!(time(1_500), "1970-01-01T00:00:01.500Z");
    }
}
