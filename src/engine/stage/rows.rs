//! A task's input rows, read ahead of the operator.

use std::{
    collections::HashMap,
    sync::{Arc, mpsc},
};

use arrow::array::{ArrayRef, RecordBatch};

use super::{
    port::SOURCE,
    task::{Listed, Task},
};
use crate::engine::{
    Error, Result,
    arrow_schema::decode_schema,
    store::{Store, gather, has_heavy},
};

/// The number of rows that are read from the store at a time, if they have images or tensors.
const HEAVY_ROWS: usize = 256;

/// The number of rows without them that are read at a time.
const LIGHT_ROWS: usize = 4096;

/// A task's input rows, read ahead of the operator.
pub struct Rows {
    total: usize,
    given: usize,
    chunks: mpsc::Receiver<Result<Batch>>,
    current: Option<Batch>,
}

/// Some rows of every input, aligned.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The rows' ids.
    pub ids: Vec<String>,
    ports: Vec<(String, RecordBatch)>,
}

impl Batch {
    /// Makes a batch of rows with these ids, from inputs by port.
    pub fn new(ids: Vec<String>, ports: Vec<(String, RecordBatch)>) -> Self {
        Self { ids, ports }
    }

    /// Returns the number of rows.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Returns true if there are no rows.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Returns the rows of one input, or `None` if `from:` omits it.
    pub fn port(&self, port: &str) -> Option<&RecordBatch> {
        self.ports.iter().find(|(name, _)| name == port).map(|(_, batch)| batch)
    }

    /// Returns the rows of one input that `from:` names.
    pub fn rows(&self, port: &str) -> Result<&RecordBatch> {
        self.port(port).ok_or_else(|| Error::Stage(format!("the stage was given no rows of `{port}`")))
    }

    /// Returns a declared column of an input.
    pub fn column(&self, port: &str, column: &str) -> Result<&ArrayRef> {
        self.rows(port)?
            .column_by_name(column)
            .ok_or_else(|| Error::Stage(format!("`{port}` was read without its column `{column}`")))
    }

    /// Returns the rows `offset..offset + len` without a copy.
    pub fn slice(&self, offset: usize, len: usize) -> Self {
        let ports = self.ports.iter().map(|(name, batch)| (name.clone(), batch.slice(offset, len))).collect();
        Self::new(self.ids[offset..offset + len].to_vec(), ports)
    }
}

impl Rows {
    pub(in crate::engine) fn start(task: Arc<Task>, store: Store) -> Result<Self> {
        let schemas = task
            .job
            .row_schemas
            .iter()
            .map(|(port, schema)| Ok((port.clone(), decode_schema(schema)?)))
            .collect::<Result<HashMap<_, _>>>()?;
        let listed = task.listed.as_ref().map(Listed::unpack).transpose()?;
        // One chunk waits to be received while the operator works on the one before it.
        let (send, chunks) = mpsc::sync_channel(0);
        let total = task.ids.len();
        let at_a_time = if schemas.values().any(|schema| has_heavy(schema)) { HEAVY_ROWS } else { LIGHT_ROWS };
        std::thread::spawn(move || {
            for start in (0..total).step_by(at_a_time) {
                let end = (start + at_a_time).min(total);
                let read = || -> Result<Batch> {
                    let mut ports = Vec::new();
                    for rows in &task.rows {
                        let schema = schemas
                            .get(&rows.port)
                            .ok_or_else(|| Error::Worker(format!("no schema for `{}`", rows.port)))?;
                        let columns: Vec<String> = schema.fields().iter().map(|f| f.name().clone()).collect();
                        ports.push((
                            rows.port.clone(),
                            gather(&store, &rows.parts, &rows.places[start..end], &columns, schema)?,
                        ));
                    }
                    ports.extend(listed.iter().map(|batch| (SOURCE.to_owned(), batch.slice(start, end - start))));
                    Ok(Batch::new(task.ids[start..end].to_vec(), ports))
                };
                // The operator stopped early, so no further rows are read.
                if send.send(read()).is_err() {
                    break;
                }
            }
        });
        Ok(Self { total, given: 0, chunks, current: None })
    }

    /// Returns the number of rows in the task.
    pub fn len(&self) -> usize {
        self.total
    }

    /// Returns true if the task has no rows.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// Returns the next rows, at most `max`; `None` at the end.
    pub fn next(&mut self, max: usize) -> Result<Option<Batch>> {
        let batch = match self.current.take() {
            Some(batch) => batch,
            None => match self.chunks.recv() {
                Ok(batch) => batch?,
                Err(mpsc::RecvError) if self.given == self.total => return Ok(None),
                // If the reader thread panicked, the channel closes early. That is an error: the missing rows would
                // otherwise count as done.
                Err(mpsc::RecvError) => return Err(Error::Worker("the rows could not be read to their end".into())),
            },
        };
        let take = max.clamp(1, batch.len());
        if take < batch.len() {
            self.current = Some(batch.slice(take, batch.len() - take));
        }
        self.given += take;
        Ok(Some(batch.slice(0, take)))
    }
}
