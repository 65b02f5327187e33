//! Answers of SQL as Arrow's C streams, which other packages read without copying.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender},
    },
    time::Duration,
};

use arrow::{
    array::{RecordBatch, RecordBatchIterator, RecordBatchReader},
    datatypes::SchemaRef,
    error::ArrowError,
    ffi::FFI_ArrowSchema,
    ffi_stream::FFI_ArrowArrayStream,
};
use pyo3::{prelude::*, types::PyCapsule};
use vlmdiff::{
    engine::{Error, Result, Stop},
    query::Session,
};

use crate::{
    errors::{InputError, exception},
    stores::store,
    threads::{quietly, worker},
};

/// The number of batches that a query may be ahead of its reader.
const AHEAD: usize = 2;

/// The interval at which Python is asked for signals while rows are waited for.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// The rows of a query, all of them.
#[pyclass(frozen, module = "vlmdiff._vlmdiff")]
pub(crate) struct Answer {
    schema: SchemaRef,
    batches: Vec<RecordBatch>,
}

/// Runs a query to its end.
#[pyfunction]
pub(crate) fn query(py: Python<'_>, sql: &str, address: &str, pipeline: Option<&str>) -> PyResult<Answer> {
    let stop = Stop::default();
    let (schema, batches) = quietly(py, &stop, || Session::open(&store(address)?, pipeline)?.end_at(&stop).query(sql))?;
    Ok(Answer { schema, batches })
}

#[pymethods]
impl Answer {
    /// The number of rows.
    #[getter]
    fn num_rows(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }

    fn __arrow_c_schema__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyCapsule>> {
        schema_capsule(py, &self.schema)
    }

    #[pyo3(signature = (requested_schema = None))]
    fn __arrow_c_stream__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyCapsule>> {
        // The protocol lets a producer answer with its own schema.
        let _ = requested_schema;
        let batches = self.batches.clone().into_iter().map(Ok);
        stream_capsule(py, Box::new(RecordBatchIterator::new(batches, self.schema.clone())))
    }
}

/// The rows of a query, which are computed while they are read.
#[pyclass(frozen, module = "vlmdiff._vlmdiff")]
pub(crate) struct Rows {
    schema: SchemaRef,
    reader: Mutex<Option<Reader>>,
}

/// Starts a query, whose rows are computed while they are read.
#[pyfunction]
pub(crate) fn rows(py: Python<'_>, sql: String, address: &str, pipeline: Option<String>) -> PyResult<Rows> {
    let stop = Stop::default();
    let reader = quietly(py, &stop, || {
        let session = Session::open(&store(address)?, pipeline.as_deref())?.end_at(&stop);
        Reader::start(session, sql, stop.clone())
    })?;
    Ok(Rows { schema: reader.schema.clone(), reader: Mutex::new(Some(reader)) })
}

#[pymethods]
impl Rows {
    fn __arrow_c_schema__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyCapsule>> {
        schema_capsule(py, &self.schema)
    }

    #[pyo3(signature = (requested_schema = None))]
    fn __arrow_c_stream__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyCapsule>> {
        let _ = requested_schema;
        let reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner).take().ok_or_else(|| {
            InputError::new_err("the rows of a stream can be read once; query again, or query without `stream=True`")
        })?;
        stream_capsule(py, Box::new(reader))
    }
}

/// Returns the names of the tables that a bare name in a query can mean.
#[pyfunction]
pub(crate) fn tables(py: Python<'_>, address: &str, pipeline: Option<&str>) -> PyResult<Vec<String>> {
    quietly(py, &Stop::default(), || Ok(Session::open(&store(address)?, pipeline)?.tables()))
}

fn schema_capsule<'py>(py: Python<'py>, schema: &SchemaRef) -> PyResult<Bound<'py, PyCapsule>> {
    let schema = FFI_ArrowSchema::try_from(schema.as_ref()).map_err(|error| exception(error.into()))?;
    PyCapsule::new_with_value(py, schema, c"arrow_schema")
}

fn stream_capsule<'py>(py: Python<'py>, reader: Box<dyn RecordBatchReader + Send>) -> PyResult<Bound<'py, PyCapsule>> {
    PyCapsule::new_with_value(py, FFI_ArrowArrayStream::new(reader), c"arrow_array_stream")
}

/// Reads the rows of a query that another thread computes. Dropping it ends the query.
struct Reader {
    schema: SchemaRef,
    /// Batches; `None` after the last one.
    batches: Receiver<Result<Option<RecordBatch>>>,
    stop: Stop,
    /// True if the last batch or an error was read.
    is_ended: bool,
}

impl Reader {
    /// Starts a query, which `stop` ends.
    fn start(session: Session, sql: String, stop: Stop) -> Result<Self> {
        let (say_schema, schema) = mpsc::sync_channel(1);
        let (say, batches) = mpsc::sync_channel(AHEAD);
        worker().spawn(move || compute(&session, &sql, &say_schema, &say))?;
        Ok(Self { schema: schema.recv().map_err(|_| died())??, batches, stop, is_ended: false })
    }
}

/// The error of a query whose thread panicked, which has printed why.
fn died() -> Error {
    Error::Stage("the thread of the query ended before its last row".into())
}

/// Runs a query, and hands on its schema and its rows until nobody reads them any more.
fn compute(
    session: &Session,
    sql: &str,
    schema: &SyncSender<Result<SchemaRef>>,
    batches: &SyncSender<Result<Option<RecordBatch>>>,
) {
    let mut answer = match session.answer(sql) {
        Ok(answer) => answer,
        Err(error) => {
            // Nobody waits for it any more.
            _ = schema.send(Err(error));
            return;
        }
    };
    _ = schema.send(Ok(answer.schema.clone()));
    loop {
        let batch = answer.next();
        let is_last = !matches!(batch, Ok(Some(_)));
        if batches.send(batch).is_err() || is_last {
            break;
        }
    }
}

impl Iterator for Reader {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.is_ended {
            let batch = match self.batches.recv_timeout(ASK_EVERY) {
                Ok(batch) => Some(batch),
                Err(RecvTimeoutError::Disconnected) => Some(Err(died())),
                Err(RecvTimeoutError::Timeout) => None,
            };
            if let Some(batch) = batch {
                self.is_ended = !matches!(batch, Ok(Some(_)));
                return batch.map_err(|error| ArrowError::ExternalError(Box::new(error))).transpose();
            }
            if let Err(interrupt) = Python::attach(|py| py.check_signals()) {
                self.stop.request();
                return Some(Err(ArrowError::ExternalError(Box::new(interrupt))));
            }
        }
        None
    }
}

impl RecordBatchReader for Reader {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop.request();
    }
}
