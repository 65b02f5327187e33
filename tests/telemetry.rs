//! The reports of runs and queries to other programs, heard by small servers and checked against published schemas.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener},
    sync::mpsc::{self, Receiver},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

#[cfg(feature = "telemetry")]
use crate::{flight, serve};
use crate::{
    lab::{Ended, LIGHT, Lab, project},
    remote::python,
};

/// A request that a server received.
struct Request {
    path: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

/// Starts a server that answers every request with a status. Returns its address and the requests.
fn server(status: &'static str) -> (SocketAddr, Receiver<Request>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (say, heard) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (say, mut stream) = (say.clone(), stream.unwrap());
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                // A client may send several requests over a connection.
                while let Some(request) = receive(&mut reader) {
                    // Not every test listens.
                    _ = say.send(request);
                    write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").unwrap();
                }
            });
        }
    });
    (address, heard)
}

fn receive(reader: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    if reader.read_line(&mut line).unwrap_or_default() == 0 {
        return None;
    }
    let path = line.split(' ').nth(1).unwrap().to_owned();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let mut body = vec![0; headers["content-length"].parse().unwrap()];
    reader.read_exact(&mut body).unwrap();
    Some(Request { path, headers, body })
}

/// Returns an address at which nothing listens.
fn nowhere() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Lab {
    /// Runs a command with variables of the environment.
    fn with_variables(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Ended {
        self.ended(self.command(arguments).envs(variables.iter().copied()))
    }
}

/// A pipeline whose last table cannot be made.
fn broken() -> String {
    format!(
        "{LIGHT}  broken: {{ stage: command, from: [captions], with: {{ run: \"false {{captions}} {{output}}\", output: {{ \
         image_id: utf8 }}, makes: rows }} }}\n"
    )
}

#[cfg(feature = "telemetry")]
mod traces {
    use opentelemetry_proto::tonic::{
        collector::trace::v1::ExportTraceServiceRequest,
        common::v1::{KeyValue, any_value::Value as AnyValue},
        trace::v1::{Span, span::SpanKind, status::StatusCode},
    };
    use prost::Message;

    use super::*;

    /// Returns the spans that a collector has received, and the name of the program that sent them.
    fn spans(heard: &Receiver<Request>) -> (Vec<Span>, String) {
        let (mut spans, mut service) = (Vec::new(), String::new());
        for request in heard.try_iter() {
            assert_eq!(request.path, "/v1/traces");
            assert_eq!(request.headers["content-type"], "application/x-protobuf");
            for resource in ExportTraceServiceRequest::decode(request.body.as_slice()).unwrap().resource_spans {
                service = text(&resource.resource.unwrap().attributes, "service.name");
                spans.extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
            }
        }
        (spans, service)
    }

    fn attribute(attributes: &[KeyValue], name: &str) -> AnyValue {
        let found = attributes.iter().find(|attribute| attribute.key == name);
        found.unwrap_or_else(|| panic!("no {name}")).value.clone().unwrap().value.unwrap()
    }

    fn text(attributes: &[KeyValue], name: &str) -> String {
        match attribute(attributes, name) {
            AnyValue::StringValue(text) => text,
            other => panic!("{name}: {other:?}"),
        }
    }

    #[test]
    fn run_is_traced_by_table_and_task() {
        let lab = Lab::new(LIGHT);
        let (address, heard) = server("200 OK");
        let endpoint = format!("http://{address}");
        let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())];
        let run = ["run", "pipeline.yaml", "--quiet", "--task-rows", "5"];
        let ended = lab.with_variables(&run, &variables);
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
        let (all, service) = spans(&heard);
        assert_eq!(service, "vlmdiff");
        let named = |name: &str| all.iter().filter(|span| span.name == name).collect::<Vec<_>>();
        let [root] = named("run light")[..] else { panic!("{all:?}") };
        assert!(root.parent_span_id.is_empty() && text(&root.attributes, "vlmdiff.pipeline") == "light");
        for (table, rows, tasks) in [("images", 14, 3), ("captions", 8, 2), ("counts", 1, 1)] {
            let [span] = named(&format!("table {table}"))[..] else { panic!("{table}: {all:?}") };
            assert_eq!((&span.parent_span_id, &span.trace_id), (&root.span_id, &root.trace_id));
            assert_eq!(attribute(&span.attributes, "vlmdiff.computed_rows"), AnyValue::IntValue(rows));
            assert!(root.start_time_unix_nano <= span.start_time_unix_nano);
            assert!(span.end_time_unix_nano <= root.end_time_unix_nano);
            let parts = named(&format!("task {table}"));
            assert_eq!(parts.len(), tasks, "{table}");
            assert!(parts.iter().all(|task| task.parent_span_id == span.span_id));
            let sum = parts.iter().map(|task| match attribute(&task.attributes, "vlmdiff.computed_rows") {
                AnyValue::IntValue(rows) => rows,
                other => panic!("{other:?}"),
            });
            assert_eq!(sum.sum::<i64>(), rows);
        }
        // A run in which nothing changed has one span, and a query has one.
        assert_eq!(lab.with_variables(&run, &variables).code, Some(0));
        let (again, _) = spans(&heard);
        assert_eq!(again.iter().map(|span| span.name.as_str()).collect::<Vec<_>>(), ["run light"]);
        assert_eq!(again[0].events.len(), 3);
        let query = "select count(*) from images";
        assert_eq!(lab.with_variables(&["sql", query], &variables).code, Some(0));
        let (queries, _) = spans(&heard);
        let [span] = &queries[..] else { panic!("{queries:?}") };
        assert_eq!((span.name.as_str(), text(&span.attributes, "db.query.text").as_str()), ("query", query));
        assert_eq!(attribute(&span.attributes, "db.response.returned_rows"), AnyValue::IntValue(1));
    }

    #[test]
    fn failure_ends_the_spans_with_its_error() {
        let lab = Lab::new(&broken());
        let (address, heard) = server("200 OK");
        let endpoint = format!("http://{address}");
        let ended = lab.with_variables(
            &["run", "pipeline.yaml", "--quiet"],
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("OTEL_SERVICE_NAME", "inspection")],
        );
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        let (all, service) = spans(&heard);
        assert_eq!(service, "inspection");
        for (name, is_wrong) in [("run light", true), ("table broken", true), ("table images", false)] {
            let span = all.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("{name}: {all:?}"));
            let status = span.status.clone().unwrap_or_default();
            assert_eq!(status.code() == StatusCode::Error, is_wrong, "{name}");
            assert_eq!(status.message.contains("table `broken`"), is_wrong, "{name}: {status:?}");
        }
    }

    #[test]
    fn requests_of_the_server_and_the_runs_of_their_batches_are_traced() {
        let lab = serve::lab();
        let (address, heard) = server("200 OK");
        let endpoint = format!("http://{address}");
        let mut server =
            serve::Server::with_variables(&lab, &[], &[("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())]);
        assert_eq!(server.judge(&serve::photographs(&lab, 1)[0]).status, 200);
        assert_eq!(server.judge(b"no picture").status, 422);
        server.terminate();
        assert_eq!(server.process.end().0, Some(0));
        let (all, _) = spans(&heard);
        let requests: Vec<&Span> = all.iter().filter(|span| span.name == "POST /v1/predict").collect();
        let codes = requests.iter().map(|span| attribute(&span.attributes, "http.response.status_code"));
        assert_eq!(codes.collect::<Vec<_>>(), [AnyValue::IntValue(200), AnyValue::IntValue(422)]);
        for span in requests {
            assert!(span.kind() == SpanKind::Server && span.parent_span_id.is_empty(), "{span:?}");
            assert_eq!(text(&span.attributes, "http.request.method"), "POST");
            assert_eq!(text(&span.attributes, "http.route"), "/v1/predict");
            // A photograph that cannot be read is the client's error, and not the server's.
            assert_ne!(span.status.clone().unwrap_or_default().code(), StatusCode::Error);
        }
        let runs: Vec<&Span> = all.iter().filter(|span| span.name == "run served_serve").collect();
        let [run] = runs[..] else { panic!("{all:?}") };
        for table in ["images", "anomaly_maps", "decisions"] {
            let span = all.iter().find(|span| span.name == format!("table {table}"));
            let span = span.unwrap_or_else(|| panic!("{table}: {all:?}"));
            assert_eq!((&span.parent_span_id, &span.trace_id), (&run.span_id, &run.trace_id));
            assert_eq!(attribute(&span.attributes, "vlmdiff.computed_rows"), AnyValue::IntValue(1), "{table}");
        }
    }

    #[test]
    fn statements_of_flight_are_traced_with_their_errors() {
        let lab = flight::lab();
        let (address, heard) = server("200 OK");
        let mut command = lab.command(&["flight"]);
        command.env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", format!("http://{address}/v1/traces"));
        let mut server = flight::Server::of(command, &[]);
        server.check("traced", &[]);
        vlmdiff::engine::signals::ask_to_end(&server.process.0);
        assert_eq!(server.process.end().0, Some(0));
        let (all, _) = spans(&heard);
        let query = |part: &str| {
            let is_it = |span: &&Span| span.name == "query" && text(&span.attributes, "db.query.text").contains(part);
            let found: Vec<&Span> = all.iter().filter(is_it).collect();
            let [span] = found[..] else { panic!("{part}: {all:?}") };
            span.status.clone().unwrap_or_default()
        };
        assert_ne!(query("count(*) as traced").code(), StatusCode::Error);
        let failed = query("1 / (n - n)");
        assert!(failed.code() == StatusCode::Error && failed.message.contains("ivide by zero"), "{failed:?}");
    }

    #[test]
    fn collector_that_is_away_neither_fails_nor_slows_a_run() {
        let lab = Lab::new(LIGHT);
        let run = ["run", "pipeline.yaml", "--quiet"];
        let endpoint = format!("http://{}", nowhere());
        let ended = lab.with_variables(&run, &[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)]);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let said: Vec<&str> = ended.stderr.lines().collect();
        assert_eq!(said.len(), 1, "{}", ended.stderr);
        assert!(said[0].starts_with(&format!("traces are not sent to {endpoint}: ")), "{}", ended.stderr);
        // A collector that accepts connections and never answers.
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", silent.local_addr().unwrap());
        let began = Instant::now();
        let ended = lab.with_variables(&run, &[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)]);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(ended.stderr.contains("traces are not sent to"), "{}", ended.stderr);
        // The end of the program waits for two seconds, and OTLP itself would wait for ten.
        assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    }
}

/// Returns the events in a file of lineage.
fn events(lab: &Lab, name: &str) -> Vec<Value> {
    let text = fs::read_to_string(lab.path(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Checks events against the published schemas of OpenLineage.
fn check_against_schemas(lab: &Lab, name: &str) {
    let script = r#"
import json, pathlib, re, sys
import jsonschema, referencing

# jsonschema checks a format only where a checker is given.
FORMATS = jsonschema.FormatChecker(formats=[])
PATTERNS = {
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",
    "uri": r"[a-z][a-z0-9+.-]*:[^\s]+",
    "date-time": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z",
}
for name, pattern in PATTERNS.items():
    FORMATS.checks(name)(lambda value, pattern=pattern: re.fullmatch(pattern, value) is not None)

schemas = [json.loads(path.read_text()) for path in pathlib.Path(sys.argv[1]).glob("*.json")]
registry = referencing.Registry().with_resources([(s["$id"], referencing.Resource.from_contents(s)) for s in schemas])

def check(value, schema):
    jsonschema.Draft202012Validator({"$ref": schema}, registry=registry, format_checker=FORMATS).validate(value)

facets = 0
def check_facets(value):
    global facets
    if isinstance(value, dict):
        if "_schemaURL" in value:
            check(value, value["_schemaURL"])
            facets += 1
        for inner in value.values():
            check_facets(inner)
    elif isinstance(value, list):
        for inner in value:
            check_facets(inner)

lines = pathlib.Path(sys.argv[2]).read_text().splitlines()
for line in lines:
    event = json.loads(line)
    check(event, "https://openlineage.io/spec/2-0-2/OpenLineage.json")
    check(event, event["schemaURL"])
    check_facets(event)
print(len(lines), facets)
"#;
    lab.write("check.py", script);
    let mut command = python();
    command.arg("check.py").arg(project().join("data/openlineage")).arg(name).current_dir(lab.path(""));
    let ended = lab.ended(&mut command);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let counts: Vec<usize> = ended.stdout.split_whitespace().map(|count| count.parse().unwrap()).collect();
    assert!(counts[0] == events(lab, name).len() && counts[1] > 2 * counts[0], "{counts:?}");
}

#[test]
fn lineage_names_inputs_columns_and_the_run_of_each_table() {
    let lab = Lab::new(LIGHT);
    let run = ["run", "pipeline.yaml", "--quiet", "--lineage", "lineage.jsonl"];
    assert_eq!(lab.vlmdiff(&run).code, Some(0));
    check_against_schemas(&lab, "lineage.jsonl");
    let told = events(&lab, "lineage.jsonl");
    let kinds: Vec<(&str, &str)> = told
        .iter()
        .map(|event| (event["eventType"].as_str().unwrap(), event["job"]["name"].as_str().unwrap()))
        .collect();
    let expected = [
        ("START", "light"),
        ("START", "light.images"),
        ("COMPLETE", "light.images"),
        ("START", "light.captions"),
        ("COMPLETE", "light.captions"),
        ("START", "light.counts"),
        ("COMPLETE", "light.counts"),
        ("COMPLETE", "light"),
    ];
    assert_eq!(kinds, expected);
    // Both events of a table are about one run, whose parent is the run of the pipeline.
    let id = |event: &Value| event["run"]["runId"].clone();
    assert!(id(&told[1]) == id(&told[2]) && id(&told[1]) != id(&told[3]) && id(&told[0]) == id(&told[7]));
    assert!(told[1..7].iter().all(|event| event["run"]["facets"]["parent"]["run"]["runId"] == id(&told[0])));
    let captions = &told[4];
    let input = &captions["inputs"][0];
    assert_eq!((&input["name"], &captions["outputs"][0]["name"]), (&json!("light.images"), &json!("light.captions")));
    let columns = input["facets"]["schema"]["fields"].as_array().unwrap();
    assert!(columns.contains(&json!({ "name": "pixels", "type": "uint8[32,32,3]" })), "{columns:?}");
    let statistics = &captions["outputs"][0]["outputFacets"]["outputStatistics"];
    assert_eq!((&statistics["rowCount"], statistics["size"].as_u64() > Some(0)), (&json!(8), true));
    // The photographs are an input from outside of the store.
    let outside = &told[1]["inputs"][0];
    assert!(outside["namespace"] == "file" && outside["name"].as_str().unwrap().ends_with("/data"), "{outside}");
    // Nothing is made again, and events are added to the file.
    assert_eq!(lab.vlmdiff(&run).code, Some(0));
    assert_eq!(events(&lab, "lineage.jsonl").len(), told.len() + 2);
}

#[test]
fn lineage_of_a_failure_says_why() {
    let lab = Lab::new(&broken());
    let ended = lab.vlmdiff(&["run", "pipeline.yaml", "--quiet", "--lineage", "lineage.jsonl"]);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    check_against_schemas(&lab, "lineage.jsonl");
    let told = events(&lab, "lineage.jsonl");
    let failed: Vec<&Value> = told.iter().filter(|event| event["eventType"] == "FAIL").collect();
    assert_eq!(failed.iter().map(|event| &event["job"]["name"]).collect::<Vec<_>>(), ["light.broken", "light"]);
    let message = failed[0]["run"]["facets"]["errorMessage"]["message"].as_str().unwrap();
    assert!(message.contains("table `broken`"), "{message}");
}

#[test]
fn lineage_is_sent_to_a_server_and_its_absence_fails_nothing() {
    let lab = Lab::new(LIGHT);
    let (address, heard) = server("201 Created");
    let url = format!("http://{address}");
    let run = ["run", "pipeline.yaml", "--quiet"];
    let ended = lab.with_variables(&run, &[("OPENLINEAGE_URL", &url), ("OPENLINEAGE_API_KEY", "a key")]);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    let received: Vec<Request> = heard.try_iter().collect();
    assert_eq!(received.len(), 8);
    for request in &received {
        assert_eq!(request.path, "/api/v1/lineage");
        assert_eq!(request.headers["authorization"], "Bearer a key");
        assert_eq!(request.headers["content-type"], "application/json");
        serde_json::from_slice::<Value>(&request.body).unwrap();
    }
    for (url, why) in
        [(format!("http://{}", nowhere()), "refused"), (format!("http://{}/x", server("503 Busy").0), "503")]
    {
        let ended = lab.vlmdiff(&[&run[..], &["--lineage", &url]].concat());
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let said: Vec<&str> = ended.stderr.lines().collect();
        assert_eq!(said.len(), 1, "{}", ended.stderr);
        assert!(said[0].starts_with(&format!("lineage is not sent to {url}")), "{}", ended.stderr);
        assert!(said[0].to_lowercase().contains(why), "{}", ended.stderr);
    }
    let ended = lab.vlmdiff(&[&run[..], &["--lineage", "none/lineage.jsonl"]].concat());
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("cannot write none/lineage.jsonl"), "{}", ended.stderr);
}

#[test]
fn figures_of_a_run_are_a_file_for_prometheus() {
    let lab = Lab::new(LIGHT);
    let run = ["run", "pipeline.yaml", "--quiet", "--metrics", "run.prom"];
    assert_eq!(lab.vlmdiff(&run).code, Some(0));
    let has = |text: &str, line: &str| assert!(text.lines().any(|other| other == line), "{line}\n{text}");
    let text = fs::read_to_string(lab.path("run.prom")).unwrap();
    has(&text, "vlmdiff_run_state{pipeline=\"light\",state=\"done\"} 1");
    has(&text, "vlmdiff_table_computed_rows{pipeline=\"light\",table=\"images\",stage=\"ingest\"} 14");
    has(&text, "# TYPE vlmdiff_table_computed_rows gauge");
    lab.write("pipeline.yaml", &broken());
    assert_eq!(lab.vlmdiff(&run).code, Some(1));
    let text = fs::read_to_string(lab.path("run.prom")).unwrap();
    has(&text, "vlmdiff_run_state{pipeline=\"light\",state=\"failed\"} 1");
    has(&text, "vlmdiff_table_computed_rows{pipeline=\"light\",table=\"images\",stage=\"ingest\"} 0");
    has(&text, "vlmdiff_table_rows{pipeline=\"light\",table=\"images\",stage=\"ingest\"} 14");
}

#[test]
fn log_as_json_has_the_names_of_events() {
    let lab = Lab::new(LIGHT);
    let lines = |ended: &Ended| -> Vec<Value> {
        ended.stderr.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect()
    };
    let names = |lines: &[Value]| -> Vec<String> {
        lines.iter().map(|line| line["event"].as_str().unwrap().to_owned()).collect()
    };
    let ended = lab.vlmdiff(&["run", "pipeline.yaml", "--log-format", "json", "--target", "images"]);
    assert_eq!(ended.code, Some(0));
    let told = lines(&ended);
    let all = names(&told);
    assert_eq!((all[0].as_str(), all[1].as_str()), ("run_started", "table_started"));
    assert_eq!(all[all.len() - 2..], ["table_published", "run_finished"]);
    assert!(all.contains(&"progress".to_owned()) && all.contains(&"part_committed".to_owned()), "{all:?}");
    assert!(told.iter().all(|line| line["at_ms"].as_u64() > Some(1_600_000_000_000)), "{told:?}");
    let published = &told[told.len() - 2];
    assert_eq!((&published["table"], &published["rows"]), (&json!("images"), &json!(14)));
    // Every event that the log of the run keeps is told as it is kept.
    let kept = lab.events(".vlmdiff");
    let without_time = |line: &Value| {
        let mut line = line.clone();
        line.as_object_mut().unwrap().remove("at_ms");
        line
    };
    let told: Vec<Value> = told.iter().map(without_time).collect();
    for event in kept {
        let text = serde_json::to_string(&event).unwrap().replace(&*lab.path("").to_string_lossy(), "[lab]/");
        let event: Value = serde_json::from_str(&text).unwrap();
        assert!(told.contains(&event), "{event}");
    }
    // Errors and messages are objects too.
    lab.write("pipeline.yaml", &broken());
    let ended = lab.with_variables(&["run", "pipeline.yaml", "--quiet"], &[("VLMDIFF_LOG_FORMAT", "json")]);
    assert_eq!(ended.code, Some(1));
    let told = lines(&ended);
    assert_eq!(names(&told), ["error"]);
    assert!(told[0]["message"].as_str().unwrap().contains("table `broken`"), "{told:?}");
}
