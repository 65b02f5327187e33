//! A task's input rows, read ahead of the operator.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, mpsc},
};

use arrow::{
    array::{ArrayRef, RecordBatch},
    datatypes::{DataType, Schema, SchemaRef},
};

use super::{
    port::SOURCE,
    task::{Listed, PortRows, Task},
};
use crate::engine::{
    Error, Result,
    arrow_schema::decode_schema,
    store::{RowReader, Store, gather, has_heavy},
};

/// The number of rows that are read from the store at a time, if they have images or tensors.
const HEAVY_ROWS: usize = 32;

/// The number of such rows if a part is decoded again whenever rows of it are read, and of rows with lists, whose parts
/// several threads decode.
const REPEATED_ROWS: usize = 256;

/// The number of rows without them that are read at a time.
const LIGHT_ROWS: usize = 4096;

/// The number of threads that read lists, such as the features of patches: decoding them takes longer than what a fit does
/// with them.
const LIST_READERS: usize = 2;

/// A task's input rows, read ahead of the operator.
pub struct Rows {
    total: usize,
    given: usize,
    /// The batches of each reading thread. The threads send them in turns.
    chunks: Vec<mpsc::Receiver<Result<Batch>>>,
    /// The thread whose turn it is.
    turn: usize,
    current: Option<Batch>,
}

/// Some rows of every input, aligned.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The rows' ids.
    pub ids: Vec<String>,
    ports: Vec<(String, RecordBatch)>,
    /// The task's inputs and the number of the first row in it, if the rows have pieces.
    pieces: Option<(Arc<Inputs>, usize)>,
}

impl Batch {
    /// Makes a batch of rows with these ids, from inputs by port.
    pub fn new(ids: Vec<String>, ports: Vec<(String, RecordBatch)>) -> Self {
        Self { ids, ports, pieces: None }
    }

    /// Returns the pieces of the rows.
    pub fn pieces(&self) -> Result<RowPieces> {
        let none = || Error::Stage("the stage was given no pieces of rows".into());
        let (inputs, first) = self.pieces.as_ref().ok_or_else(none)?;
        Ok(RowPieces { inputs: inputs.clone(), rows: *first..first + self.len() })
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
        let pieces = self.pieces.as_ref().map(|(inputs, first)| (inputs.clone(), first + offset));
        Self { ids: self.ids[offset..offset + len].to_vec(), ports, pieces }
    }
}

/// The pieces of the rows of a batch, one row after another. They are read from the store as they are asked for, because
/// a row may have many.
#[derive(Debug)]
pub struct RowPieces {
    inputs: Arc<Inputs>,
    /// The rows of the batch in the task.
    rows: Range<usize>,
}

impl RowPieces {
    /// Returns the ids of all pieces.
    pub fn ids(&self) -> &[String] {
        let pieces = self.inputs.task.pieces.as_ref();
        pieces.map_or(&[], |pieces| &pieces.ids[pieces.start_of(self.rows.start)..pieces.start_of(self.rows.end)])
    }

    /// Returns the place of the pieces of a row among all pieces.
    pub fn of(&self, row: usize) -> Range<usize> {
        let start_of =
            |row| self.inputs.task.pieces.as_ref().map_or(0, |pieces| pieces.start_of(self.rows.start + row));
        start_of(row) - start_of(0)..start_of(row + 1) - start_of(0)
    }

    /// Reads some of all pieces of an input.
    pub fn read(&self, port: &str, range: Range<usize>) -> Result<RecordBatch> {
        let none = || Error::Stage(format!("the stage was given no pieces of `{port}`"));
        let pieces = self.inputs.task.pieces.as_ref().ok_or_else(none)?;
        let input = pieces.rows.iter().find(|rows| rows.port == port).ok_or_else(none)?;
        let first = pieces.start_of(self.rows.start);
        self.inputs.gather(input, first + range.start..first + range.end)
    }
}

/// The inputs of a task in the store.
#[derive(Debug)]
struct Inputs {
    task: Arc<Task>,
    store: Store,
    /// The columns that are read, by port.
    schemas: HashMap<String, SchemaRef>,
}

impl Inputs {
    /// Returns the columns that are read of an input.
    fn schema(&self, rows: &PortRows) -> Result<&SchemaRef> {
        self.schemas.get(&rows.port).ok_or_else(|| Error::Worker(format!("no schema for `{}`", rows.port)))
    }

    fn gather(&self, rows: &PortRows, range: Range<usize>) -> Result<RecordBatch> {
        let schema = self.schema(rows)?;
        let columns: Vec<String> = schema.fields().iter().map(|field| field.name().clone()).collect();
        gather(&self.store, &rows.parts, &rows.places[range], &columns, schema)
    }
}

/// Reads rows of a task, a range after another.
struct Reader {
    inputs: Arc<Inputs>,
    listed: Option<RecordBatch>,
    /// The inputs that are read row by row, with their ports.
    ports: Vec<(String, RowReader)>,
    ranges: Vec<Range<usize>>,
}

impl Reader {
    fn new(inputs: &Arc<Inputs>, listed: Option<&RecordBatch>, ranges: Vec<Range<usize>>) -> Result<Self> {
        let port = |rows: &PortRows| {
            let places = ranges.iter().flat_map(|range| &rows.places[range.clone()]).copied().collect();
            let schema = inputs.schema(rows)?.clone();
            Ok((rows.port.clone(), RowReader::new(inputs.store.clone(), rows.parts.clone(), places, schema)))
        };
        let ports = inputs.task.rows.iter().map(port).collect::<Result<_>>()?;
        Ok(Self { inputs: inputs.clone(), listed: listed.cloned(), ports, ranges })
    }

    /// Returns true if no part is decoded several times.
    fn decodes_once(&self) -> bool {
        self.ports.iter().all(|(_, rows)| rows.decodes_once())
    }

    /// Sends all rows, until nothing receives them any more.
    fn send(self, to: &mpsc::SyncSender<Result<Batch>>) {
        let Self { inputs, listed, mut ports, ranges } = self;
        for range in ranges {
            let mut read = || {
                let mut rows = Vec::new();
                for (port, reader) in &mut ports {
                    rows.push((port.clone(), reader.next(range.len())?));
                }
                rows.extend(listed.as_ref().map(|all| (SOURCE.to_owned(), all.slice(range.start, range.len()))));
                let pieces = inputs.task.pieces.as_ref().map(|_| (inputs.clone(), range.start));
                Ok(Batch { ids: inputs.task.ids[range.clone()].to_vec(), ports: rows, pieces })
            };
            let batch = read();
            let is_last = batch.is_err();
            // The operator stopped early, so no further rows are read.
            if to.send(batch).is_err() || is_last {
                break;
            }
        }
    }
}

/// Returns true if a table has lists of any length. Tensors are lists of one length.
fn has_lists(schema: &Schema) -> bool {
    schema.fields().iter().any(|field| matches!(field.data_type(), DataType::List(_) | DataType::LargeList(_)))
}

/// Parts rows into ranges of about `rows`. Each ends where the rows of a part do, if there is such a place near: where a part
/// is not decoded once, it is decoded again for each range that has rows of it. `places` are the addresses `(part, row)` of the rows.
fn ranges(total: usize, rows: usize, places: &[(u32, u64)]) -> Vec<Range<usize>> {
    let ends_a_part = |end: &usize| matches!(places.get(end - 1..=*end), Some([last, next]) if last.0 != next.0);
    let (mut ranges, mut start) = (Vec::new(), 0);
    while start < total {
        let last = (start + rows + rows / 8).min(total);
        let near = || (start + rows / 2..=last).rev().find(ends_a_part);
        let end = if last == total { total } else { near().unwrap_or(start + rows) };
        ranges.push(start..end);
        start = end;
    }
    ranges
}

impl Rows {
    pub(in crate::engine) fn start(task: Arc<Task>, store: Store) -> Result<Self> {
        let schemas = task.job.row_schemas.iter();
        let schemas = schemas.map(|(port, schema)| Ok((port.clone(), decode_schema(schema)?)));
        let inputs = Arc::new(Inputs { schemas: schemas.collect::<Result<_>>()?, task, store });
        let listed = inputs.task.listed.as_ref().map(Listed::unpack).transpose()?;
        let total = inputs.task.ids.len();
        let any = |has: fn(&Schema) -> bool| {
            inputs.task.rows.iter().any(|rows| inputs.schemas.get(&rows.port).is_some_and(|schema| has(schema)))
        };
        let all_ranges = |at_a_time: usize| {
            let places = inputs.task.rows.first().map_or(&[][..], |rows| &rows.places[..]);
            ranges(total, at_a_time, places)
        };
        let reader = |ranges: Vec<Range<usize>>| Reader::new(&inputs, listed.as_ref(), ranges);
        let readers = if any(has_lists) {
            let all = all_ranges(REPEATED_ROWS);
            let every = |first: usize| reader(all.iter().skip(first).step_by(LIST_READERS).cloned().collect());
            (0..LIST_READERS).map(every).collect::<Result<Vec<_>>>()?
        } else {
            let at_a_time = if any(has_heavy) { HEAVY_ROWS } else { LIGHT_ROWS };
            let one = reader(all_ranges(at_a_time))?;
            vec![if any(has_heavy) && !one.decodes_once() { reader(all_ranges(REPEATED_ROWS))? } else { one }]
        };
        let start = |reader: Reader| {
            // One chunk of each thread waits to be received while the operator works on the one before it.
            let (send, chunks) = mpsc::sync_channel(0);
            std::thread::spawn(move || reader.send(&send));
            chunks
        };
        Ok(Self { total, given: 0, chunks: readers.into_iter().map(start).collect(), turn: 0, current: None })
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
            None => match self.chunks[self.turn].recv() {
                Ok(batch) => {
                    self.turn = (self.turn + 1) % self.chunks.len();
                    batch?
                }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_end_where_parts_do() {
        let place = |part: u32, rows: Range<u64>| rows.map(move |row| (part, row)).collect::<Vec<_>>();
        let whole = [place(0, 0..8), place(1, 0..8), place(2, 0..8)].concat();
        assert_eq!(ranges(24, 8, &whole), [0..8, 8..16, 16..24]);
        // A row of another part has come among those of the first one.
        let grown = [place(0, 0..3), place(3, 0..1), place(0, 3..8), place(1, 0..8), place(2, 0..8)].concat();
        assert_eq!(ranges(25, 8, &grown), [0..9, 9..17, 17..25]);
        // Parts that are larger, and rows without any.
        assert_eq!(ranges(20, 8, &place(0, 0..20)), [0..8, 8..16, 16..20]);
        assert_eq!(ranges(9, 8, &[]), [0..9]);
        assert!(ranges(0, 8, &[]).is_empty());
    }
}
