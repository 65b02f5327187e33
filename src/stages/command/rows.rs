//! Row by row: one long-lived program, which reads one Arrow stream and writes another.

use std::{
    io::BufWriter,
    process::{ChildStdin, Stdio},
    sync::{Arc, mpsc},
};

use arrow::{
    array::{ArrayRef, RecordBatch, StringArray},
    datatypes::{Field, Schema, SchemaRef},
    ipc::writer::StreamWriter,
};

use super::{
    Command, answer,
    program::{Program, Unanswered},
    table::Files,
};
use crate::engine::{
    Error, Result,
    stage::{Batch, Context, Misfit, Operator, Rows, Schemas, Sink},
};

/// A program that answers batches. It is started at the first batch, and again after it has failed.
pub(super) struct RowByRow {
    words: Vec<String>,
    /// The columns that it reads beside the ids: table and column.
    columns: Vec<(String, String)>,
    /// The schema of the batches that it reads.
    asks: SchemaRef,
    output: SchemaRef,
    running: Option<Running>,
    /// Files with the tables without ids, kept while the program runs.
    _files: Files,
}

struct Running {
    /// The sender of the program's input, which is closed before the program is waited for.
    feed: Option<mpsc::SyncSender<RecordBatch>>,
    program: Program,
}

impl RowByRow {
    pub(super) fn open(command: &Command, context: &Context) -> Result<Self> {
        let files = Files::write(&context.tables)?;
        let mut columns = command.reads(&context.schemas)?;
        columns.retain(|(table, _)| context.schemas.by_row.contains(table));
        let asks = asks(&context.schemas, &columns, context.output.field(0))?;
        Ok(Self {
            words: command.words(&files.paths()),
            columns,
            asks,
            output: context.output.clone(),
            running: None,
            _files: files,
        })
    }

    fn answer(&mut self, batch: &Batch, out: &mut Sink<'_>) -> Result<()> {
        let ids: ArrayRef = Arc::new(StringArray::from_iter_values(&batch.ids));
        let columns = self.columns.iter().map(|(table, column)| batch.column(table, column).cloned());
        let columns = std::iter::once(Ok(ids)).chain(columns).collect::<Result<Vec<_>>>()?;
        let question = RecordBatch::try_new(self.asks.clone(), columns)?;
        let running = match &mut self.running {
            Some(running) => running,
            None => self.running.insert(Running::start(&self.words)?),
        };
        // If the program has ended, sending fails; the missing answer is reported below.
        let _ = running.feed.as_ref().map(|feed| feed.send(question));
        let answer = running
            .program
            .answer(batch.len(), out)
            .and_then(|answer| answer::check(&batch.ids, &self.output, &answer).map_err(Unanswered::Failed));
        let answer = answer.map_err(|why| {
            running.feed = None;
            match why {
                Unanswered::Failed(what) => running.program.failure(&what, out),
                Unanswered::Stopped => Error::Interrupted,
            }
        })?;
        out.write(&answer.rows)?;
        answer.failed.into_iter().try_for_each(|(id, message)| out.fail(&id, message))
    }
}

/// Returns the schema of the program's input: the id, then the columns. A name that occurs in several tables is
/// written as `table.column`.
fn asks(schemas: &Schemas, columns: &[(String, String)], id: &Field) -> Result<SchemaRef, Misfit> {
    let mut fields = vec![id.clone()];
    for (table, column) in columns {
        let shared = columns.iter().filter(|(_, other)| other == column).count() > 1 || column == id.name();
        let name = if shared { format!("{table}.{column}") } else { column.clone() };
        fields.push(schemas.field(table, column)?.clone().with_name(name));
    }
    Ok(Arc::new(Schema::new(fields)))
}

impl Running {
    fn start(words: &[String]) -> Result<Self> {
        let (program, stdin) = Program::start(words, Stdio::piped(), answer::listen)?;
        let (feed, batches) = mpsc::sync_channel(1);
        if let Some(stdin) = stdin {
            // The input is written in a thread of its own, because a program may answer while it still reads.
            std::thread::spawn(move || write(stdin, &batches));
        }
        Ok(Self { feed: Some(feed), program })
    }
}

/// Writes batches until there are no more or the program has ended.
fn write(stdin: ChildStdin, batches: &mpsc::Receiver<RecordBatch>) -> Option<()> {
    let mut first = batches.recv().ok()?;
    let mut writer = StreamWriter::try_new(BufWriter::new(stdin), first.schema_ref()).ok()?;
    loop {
        writer.write(&first).ok()?;
        writer.flush().ok()?;
        match batches.recv() {
            Ok(next) => first = next,
            Err(mpsc::RecvError) => return writer.finish().ok(),
        }
    }
}

impl Operator for RowByRow {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        while let Some(batch) = rows.next(usize::MAX)? {
            if let Err(error) = self.answer(&batch, out) {
                self.running = None;
                return Err(error);
            }
        }
        if let Some(running) = &mut self.running {
            running.program.listen(out);
        }
        Ok(())
    }
}
