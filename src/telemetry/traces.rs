//! Traces of runs and queries, by OpenTelemetry. They are sent by OTLP over HTTP if the usual variables name a collector, and
//! cost nothing otherwise. Spans wait in a queue of bounded length for a thread that sends them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, SystemTime},
};

use opentelemetry::{
    Context, KeyValue, Value,
    trace::{Span as _, SpanKind, Status, TraceContextExt, Tracer, TracerProvider},
};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{SdkTracer, SdkTracerProvider, SpanData},
};

use super::Listener;
use crate::engine::store::Event;

/// The variables that name the collector.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
/// The variables that name the program in traces.
const NAMES: [&str; 2] = ["OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"];
/// The variable that turns traces off.
const DISABLED: &str = "OTEL_SDK_DISABLED";
/// Time for which the end of the program waits for spans that are not sent yet.
const PATIENCE: Duration = Duration::from_secs(2);
/// The characters of a query that a trace keeps.
const QUERY: usize = 2000;

/// The traces of this process, if they are sent.
static SENT: OnceLock<Sent> = OnceLock::new();

struct Sent {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    collector: String,
    failure: Failure,
}

/// The first failure to send spans.
type Failure = Arc<Mutex<Option<String>>>;

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Begins to send traces if a collector is named.
pub fn begin() {
    let Some(collector) = ENDPOINTS.iter().find_map(|name| variable(name)) else { return };
    if variable(DISABLED).is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return;
    }
    let failure = Failure::default();
    let provider = match SpanExporter::builder().with_http().build() {
        Ok(exporter) => {
            let resource = Resource::builder();
            let is_named = NAMES.iter().any(|name| variable(name).is_some_and(|value| !value.is_empty()));
            let resource = if is_named { resource } else { resource.with_service_name("vlmdiff") };
            let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
            let exporter = Noting { exporter, failure: failure.clone() };
            let builder = SdkTracerProvider::builder().with_resource(resource.with_attribute(version).build());
            builder.with_batch_exporter(exporter).build()
        }
        Err(error) => {
            note(&failure, &error);
            SdkTracerProvider::builder().build()
        }
    };
    let tracer = provider.tracer("vlmdiff");
    // A process begins once.
    let _ = SENT.set(Sent { provider, tracer, collector, failure });
}

/// Sends the traces that wait, for a short time at most. Returns why some could not be sent.
pub fn end() -> Option<String> {
    let Sent { provider, collector, failure, .. } = SENT.get()?;
    if let Err(error) = provider.shutdown_with_timeout(PATIENCE) {
        note(failure, &error);
    }
    let failure = failure.lock().unwrap_or_else(PoisonError::into_inner).take()?;
    Some(format!("traces are not sent to {collector}: {failure}"))
}

fn note(failure: &Failure, error: &dyn std::fmt::Display) {
    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| error.to_string());
}

/// An exporter that keeps its first failure.
#[derive(Debug)]
struct Noting {
    exporter: SpanExporter,
    failure: Failure,
}

impl opentelemetry_sdk::trace::SpanExporter for Noting {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.exporter.export(batch).await.inspect_err(|error| note(&self.failure, error))
    }

    fn shutdown_with_timeout(&mut self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&mut self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// Starts a span below another one.
fn start(
    sent: &Sent,
    name: String,
    kind: SpanKind,
    at: SystemTime,
    above: &Context,
    attributes: Vec<KeyValue>,
) -> Context {
    let builder = sent.tracer.span_builder(name).with_kind(kind).with_start_time(at).with_attributes(attributes);
    above.with_span(sent.tracer.build_with_context(builder, above))
}

fn attribute(name: &'static str, value: impl Into<Value>) -> KeyValue {
    KeyValue::new(name, value)
}

/// Traces a run: a span for the run, below it one for each table that is made, and below that one for each task.
#[derive(Debug)]
pub struct RunTraces {
    run: Context,
    tables: BTreeMap<String, Traced>,
}

/// A table that is being made.
#[derive(Debug)]
struct Traced {
    span: Context,
    tasks: BTreeMap<u64, Context>,
}

impl RunTraces {
    /// Begins to trace a run; `None` if no traces are sent.
    pub fn begin() -> Option<Self> {
        SENT.get().map(|_| Self { run: Context::new(), tables: BTreeMap::new() })
    }

    /// Ends the spans of a table whose end was not heard.
    fn cut(&mut self, table: &str, at: SystemTime, error: Option<&str>) {
        let Some(Traced { span, tasks }) = self.tables.remove(table) else { return };
        for span in tasks.into_values().chain([span]) {
            if let Some(error) = error {
                span.span().set_status(Status::error(error.to_owned()));
            }
            span.span().end_with_timestamp(at);
        }
    }
}

impl Listener for RunTraces {
    fn hear(&mut self, at_ms: u64, event: &Event) {
        let Some(sent) = SENT.get() else { return };
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(at_ms);
        match event {
            Event::RunStarted { run, pipeline, host, device, .. } => {
                let attributes = vec![
                    attribute("vlmdiff.run", run.clone()),
                    attribute("vlmdiff.pipeline", pipeline.clone()),
                    attribute("vlmdiff.device", device.clone()),
                    attribute("host.name", host.clone()),
                ];
                self.run = start(sent, format!("run {pipeline}"), SpanKind::Internal, at, &Context::new(), attributes);
            }
            Event::TableFresh { table, version, rows, .. } => {
                let attributes = vec![
                    attribute("vlmdiff.table", table.clone()),
                    attribute("vlmdiff.version", *version as i64),
                    attribute("vlmdiff.rows", *rows as i64),
                ];
                self.run.span().add_event_with_timestamp("table is fresh", at, attributes);
            }
            Event::TableStarted { table, stage, stale, rows, .. } => {
                // A table whose parts were damaged is made again.
                self.cut(table, at, None);
                let attributes = vec![
                    attribute("vlmdiff.table", table.clone()),
                    attribute("vlmdiff.stage", stage.clone()),
                    attribute("vlmdiff.rows", *rows as i64),
                    attribute("vlmdiff.stale_rows", *stale as i64),
                ];
                let span = start(sent, format!("table {table}"), SpanKind::Internal, at, &self.run, attributes);
                self.tables.insert(table.clone(), Traced { span, tasks: BTreeMap::new() });
            }
            Event::TaskStarted { table, task, rows } => {
                let Some(traced) = self.tables.get_mut(table) else { return };
                let attributes = vec![
                    attribute("vlmdiff.table", table.clone()),
                    attribute("vlmdiff.task", *task as i64),
                    attribute("vlmdiff.rows", *rows as i64),
                ];
                let span = start(sent, format!("task {table}"), SpanKind::Internal, at, &traced.span, attributes);
                traced.tasks.insert(*task, span);
            }
            Event::TaskFinished { table, task, rows, errors, lost } => {
                let span = self.tables.get_mut(table).and_then(|traced| traced.tasks.remove(task));
                let Some(span) = span else { return };
                span.span().set_attribute(attribute("vlmdiff.computed_rows", *rows as i64));
                span.span().set_attribute(attribute("vlmdiff.failed_rows", *errors as i64));
                if *lost {
                    span.span().set_status(Status::error("the worker died"));
                }
                span.span().end_with_timestamp(at);
            }
            Event::RowFailed { table, id, message, .. } => {
                let Some(traced) = self.tables.get(table) else { return };
                let attributes = vec![attribute("vlmdiff.id", id.clone()), attribute("vlmdiff.error", message.clone())];
                traced.span.span().add_event_with_timestamp("row failed", at, attributes);
            }
            Event::TablePublished { table, version, computed, bytes, errors, .. } => {
                if let Some(Traced { span, .. }) = self.tables.get(table) {
                    for (name, value) in [
                        ("vlmdiff.version", version),
                        ("vlmdiff.computed_rows", computed),
                        ("vlmdiff.bytes", bytes),
                        ("vlmdiff.failed_rows", errors),
                    ] {
                        span.span().set_attribute(attribute(name, *value as i64));
                    }
                }
                self.cut(table, at, None);
            }
            Event::RunFinished { error, .. } => {
                let names: Vec<String> = self.tables.keys().cloned().collect();
                names.iter().for_each(|table| self.cut(table, at, error.as_deref()));
                if let Some(error) = error {
                    self.run.span().set_status(Status::error(error.clone()));
                }
                self.run.span().end_with_timestamp(at);
            }
            Event::Progress { .. }
            | Event::Figure { .. }
            | Event::PartCommitted { .. }
            | Event::Log { .. }
            | Event::Note { .. } => {}
        }
    }
}

/// A span of a query or request, which ends when it is dropped. It is nothing if no traces are sent.
#[derive(Debug)]
pub struct Span(Option<opentelemetry_sdk::trace::Span>);

impl Span {
    fn start(name: String, kind: SpanKind, attributes: Vec<KeyValue>) -> Self {
        let span = |sent: &Sent| {
            let builder = sent.tracer.span_builder(name).with_kind(kind).with_attributes(attributes);
            sent.tracer.build_with_context(builder, &Context::new())
        };
        Self(SENT.get().map(span))
    }

    /// Begins a query in SQL.
    pub fn query(sql: &str) -> Self {
        if SENT.get().is_none() {
            return Self(None);
        }
        let text: String = sql.chars().take(QUERY).collect();
        let attributes = vec![attribute("db.system.name", "datafusion"), attribute("db.query.text", text)];
        Self::start("query".into(), SpanKind::Internal, attributes)
    }

    /// Begins a request to a server.
    pub fn request(method: &'static str, path: &'static str) -> Self {
        let attributes = vec![attribute("http.request.method", method), attribute("http.route", path)];
        Self::start(format!("{method} {path}"), SpanKind::Server, attributes)
    }

    /// Adds a number to the span.
    pub fn set(&mut self, name: &'static str, value: i64) {
        if let Some(span) = &mut self.0 {
            span.set_attribute(attribute(name, value));
        }
    }

    /// Notes that the query or request failed.
    pub fn failed(&mut self, error: &dyn std::fmt::Display) {
        if let Some(span) = &mut self.0 {
            span.set_status(Status::error(error.to_string()));
        }
    }
}
