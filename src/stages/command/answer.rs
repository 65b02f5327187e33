//! The answers of a row-wise program: they are read from its standard output and checked against the question.

use std::{
    collections::BTreeSet,
    io::{self, BufRead, BufReader},
    process::ChildStdout,
    sync::{Arc, mpsc},
};

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, StringArray},
    compute::{cast, filter_record_batch},
    datatypes::{DataType, SchemaRef},
    ipc::reader::StreamReader,
};

use super::{ERROR, program::Said};
use crate::{engine::caught, stages::types::conform};

/// Reads an Arrow IPC stream to its end.
pub(super) fn listen(stdout: ChildStdout, say: &mpsc::Sender<Said>) {
    let mut stdout = BufReader::new(stdout);
    let why = match stream(&mut stdout, say) {
        Ok(()) => "ended before it answered".to_owned(),
        Err(why) => why,
    };
    // If the receiver has stopped, the output is still read to its end, so that the program is not blocked and ends
    // by itself.
    let _ = say.send(Said::Ended(why));
    let _ = io::copy(&mut stdout, &mut io::sink());
}

fn stream(stdout: &mut BufReader<ChildStdout>, say: &mpsc::Sender<Said>) -> Result<(), String> {
    let damaged = |e: arrow::error::ArrowError| format!("wrote a damaged Arrow IPC stream: {e}");
    if !message_follows(stdout)? {
        return Ok(());
    }
    // The library panics on some damaged streams.
    let panicked = || "wrote a damaged Arrow IPC stream".to_owned();
    let mut reader = caught(|| StreamReader::try_new(stdout, None)).ok_or_else(panicked)?.map_err(damaged)?;
    while message_follows(reader.get_mut())? {
        match caught(|| reader.next()).ok_or_else(panicked)? {
            Some(batch) => {
                if say.send(Said::Answer(batch.map_err(damaged)?)).is_err() {
                    break;
                }
            }
            None => break,
        }
    }
    Ok(())
}

/// Returns true if another message of the stream begins. Text in its place would be read as a length, and the read
/// would wait for that many bytes.
fn message_follows(stdout: &mut BufReader<ChildStdout>) -> Result<bool, String> {
    let begin = stdout.fill_buf().map_err(|e| format!("could not be read: {e}"))?;
    if begin.iter().take(4).all(|byte| *byte == 0xFF) {
        return Ok(!begin.is_empty());
    }
    let text = String::from_utf8_lossy(&begin[..begin.len().min(60)]).into_owned();
    let text = text.lines().next().unwrap_or_default();
    Err(format!("wrote `{text}` where its standard output is an Arrow IPC stream; text belongs on its standard error"))
}

/// Rows that succeeded, in the declared schema, and those that failed with the reason.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) rows: RecordBatch,
    pub(super) failed: Vec<(String, String)>,
}

/// Checks an answer against the requested ids and the declared schema, whose first column holds the ids.
pub(super) fn check(asked: &[String], declared: &SchemaRef, answer: &RecordBatch) -> Result<Answer, String> {
    let id = declared.field(0).name();
    let text = |name: &str| -> Result<Option<StringArray>, String> {
        let Some(column) = answer.column_by_name(name) else { return Ok(None) };
        let column = match column.data_type() {
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => cast(column, &DataType::Utf8),
            other => return Err(format!("wrote the column `{name}` as {other}; it is text")),
        };
        Ok(Some(column.map_err(|e| e.to_string())?.as_string::<i32>().clone()))
    };
    let ids = text(id)?.ok_or_else(|| {
        let names: Vec<&str> = answer.schema_ref().fields().iter().map(|field| field.name().as_str()).collect();
        format!("wrote no column `{id}` with the ids of the rows; it wrote {}", names.join(", "))
    })?;
    let mut missing: BTreeSet<&str> = asked.iter().map(String::as_str).collect();
    for id in ids.iter().map(Option::unwrap_or_default) {
        if !missing.remove(id) {
            let twice = asked.iter().any(|asked| asked == id);
            return Err(if twice {
                format!("answered the row `{id}` twice")
            } else {
                format!(
                    "answered a row `{id}` that it was not asked for; a batch is answered by one batch with the same ids"
                )
            });
        }
    }
    if let Some(id) = missing.first() {
        let (rows, of) = (missing.len(), asked.len());
        return Err(format!(
            "left out {rows} of {of} rows, such as `{id}`; a batch is answered by one batch with the same ids"
        ));
    }
    let errors = text(ERROR)?;
    let error =
        |row: usize| errors.as_ref().filter(|errors| errors.is_valid(row)).map(|errors| errors.value(row).to_owned());
    let failed: Vec<(String, String)> =
        (0..ids.len()).filter_map(|row| Some((ids.value(row).to_owned(), error(row)?))).collect();
    let good: BooleanArray = (0..ids.len()).map(|row| Some(error(row).is_none())).collect();
    let columns = answer.schema();
    let columns = columns.fields().iter().zip(answer.columns()).filter(|(field, _)| field.name() != ERROR);
    let with_ids = columns.map(|(field, column)| {
        let column = if field.name() == id { Arc::new(ids.clone()) as ArrayRef } else { column.clone() };
        (field.name(), column, true)
    });
    let rows = RecordBatch::try_from_iter_with_nullable(with_ids)
        .and_then(|rows| filter_record_batch(&rows, &good))
        .map_err(|e| e.to_string())?;
    Ok(Answer { rows: conform(declared, &rows).map_err(|e| format!("does not write what is declared: {e}"))?, failed })
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::Int64Array,
        datatypes::{Field, Schema},
    };

    use super::*;

    fn answer(ids: &[&str], errors: &[Option<&str>]) -> Result<Answer, String> {
        let declared =
            Schema::new(vec![Field::new("id", DataType::Utf8, false), Field::new("n", DataType::Int64, false)]);
        let n = Int64Array::from_iter(errors.iter().map(|error| error.is_none().then_some(1)));
        let columns: [(&str, ArrayRef); 3] = [
            ("id", Arc::new(StringArray::from(ids.to_vec()))),
            ("_error", Arc::new(StringArray::from(errors.to_vec()))),
            ("n", Arc::new(n)),
        ];
        check(&["a".into(), "b".into()], &Arc::new(declared), &RecordBatch::try_from_iter(columns).unwrap())
    }

    #[test]
    fn answer_has_every_row_once() {
        assert_eq!(answer(&["b", "a"], &[None, None]).unwrap().rows.num_rows(), 2);
        assert!(answer(&["b"], &[None]).unwrap_err().starts_with("left out 1 of 2 rows, such as `a`"));
        assert_eq!(answer(&["b", "b"], &[None, None]).unwrap_err(), "answered the row `b` twice");
        assert!(answer(&["b", "c"], &[None, None]).unwrap_err().contains("a row `c` that it was not asked for"));
    }

    #[test]
    fn failed_rows_need_no_values() {
        let answer = answer(&["b", "a"], &[Some("too dark"), None]).unwrap();
        assert_eq!(answer.failed, [("b".to_owned(), "too dark".to_owned())]);
        assert_eq!(answer.rows.column(0).as_string::<i32>().value(0), "a");
        assert_eq!(answer.rows.num_rows(), 1);
    }
}
