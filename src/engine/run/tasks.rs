//! Splits the stale rows of a table into tasks.

use std::collections::HashMap;

use arrow::{
    array::{Array, UInt32Array},
    compute::take_record_batch,
};

use super::options::Options;
use crate::engine::{
    Result,
    arrow_schema::encode_schema,
    plan::{RowAddresses, TableStates, TableWork},
    stage::{Job, Listed, PortRows, Reads, SOURCE, TableInput, Task},
    store::{declared_schema, has_heavy, project},
};

/// Rows per task.
const TASK_ROWS: usize = 256;

/// Rows per task of a stage that is [quick](crate::engine::stage::Stage::is_quick).
const QUICK_TASK_ROWS: usize = 4096;

/// Splits the stale rows of a table into tasks. A table that is made as a whole is one task over all rows.
pub(in crate::engine) struct Tasks<'a> {
    work: &'a TableWork<'a>,
    run: &'a str,
    job: Job,
    chunks: std::vec::IntoIter<Vec<usize>>,
}

impl<'a> Tasks<'a> {
    /// Makes the tasks of `rows`, which are positions among the rows of `work`; `views` holds the states of the
    /// inputs.
    pub(in crate::engine) fn new(
        work: &'a TableWork<'a>,
        rows: &[usize],
        views: &TableStates,
        options: &Options,
        run: &'a str,
    ) -> Result<Self> {
        let chunks: Vec<Vec<usize>> = if work.table.is_keyed() {
            rows.chunks(task_rows(work, views, options)?.max(1)).map(<[usize]>::to_vec).collect()
        } else {
            vec![(0..work.joined.ids.len()).collect()]
        };
        Ok(Self { work, run, job: job(work, views, options)?, chunks: chunks.into_iter() })
    }
}

/// Returns the rows of a task. Rows of images and tensors are few, because a task's results are one part.
fn task_rows(work: &TableWork<'_>, views: &TableStates, options: &Options) -> Result<usize> {
    if let Some(rows) = options.task_rows {
        return Ok(rows);
    }
    let table = work.table;
    if !table.stage.is_quick() || has_heavy(&table.output) {
        return Ok(TASK_ROWS);
    }
    for input in &table.inputs {
        let stored = views[&input.table].manifest.schema()?;
        if has_heavy(project(&stored, &input.columns)?.as_ref()) {
            return Ok(TASK_ROWS);
        }
    }
    Ok(QUICK_TASK_ROWS)
}

impl Iterator for Tasks<'_> {
    type Item = Result<Task>;

    fn next(&mut self) -> Option<Result<Task>> {
        let Self { work, run, job, chunks } = self;
        let chunk = chunks.next()?;
        let listed = work.listed.as_ref().map(|listed| {
            let rows = UInt32Array::from_iter_values(chunk.iter().map(|row| *row as u32));
            Listed::pack(&take_record_batch(&listed.rows, &rows)?)
        });
        let listed = match listed.transpose() {
            Ok(listed) => listed,
            Err(error) => return Some(Err(error)),
        };
        Some(Ok(Task {
            job: job.clone(),
            stage_key: work.stage_key,
            run: (*run).to_owned(),
            after: work.after,
            ids: chunk.iter().map(|row| work.joined.ids.value(*row).to_owned()).collect(),
            keys: if work.keys.is_empty() { Vec::new() } else { chunk.iter().map(|row| work.keys[*row]).collect() },
            rows: work.joined.places.iter().map(|places| PortRows::of(places, &chunk)).collect(),
            listed,
        }))
    }
}

impl PortRows {
    /// Returns the addresses of chosen rows. Only the parts that contain them are sent with a task.
    fn of(places: &RowAddresses, chunk: &[usize]) -> Self {
        let mut parts = Vec::new();
        let mut numbers = HashMap::new();
        let at = chunk.iter().map(|row| {
            let (part, row) = places.at[*row];
            let number = *numbers.entry(part).or_insert_with(|| {
                parts.push(places.parts[part as usize]);
                parts.len() as u32 - 1
            });
            (number, row)
        });
        let at = at.collect();
        Self { port: places.port.clone(), parts, places: at }
    }
}

fn job(work: &TableWork<'_>, views: &TableStates, options: &Options) -> Result<Job> {
    let table = work.table;
    let (mut input_schemas, mut row_schemas, mut tables) = (Vec::new(), Vec::new(), Vec::new());
    for input in &table.inputs {
        let manifest = &views[&input.table].manifest;
        let stored = manifest.schema()?;
        input_schemas.push((input.port.clone(), encode_schema(&declared_schema(&stored))));
        let schema = encode_schema(&*project(&stored, &input.columns)?);
        match input.reads {
            Reads::Rows => row_schemas.push((input.port.clone(), schema)),
            Reads::Table => tables.push(TableInput {
                port: input.port.clone(),
                schema,
                parts: manifest.parts.clone(),
                keyed: manifest.keyed,
            }),
        }
    }
    row_schemas.extend(work.listed.as_ref().map(|listed| (SOURCE.to_owned(), encode_schema(listed.rows.schema_ref()))));
    Ok(Job {
        stage: table.kind.name.to_owned(),
        params: table.stage.params(),
        makes: table.makes(),
        output: encode_schema(&table.output),
        input_schemas,
        row_schemas,
        tables,
        files: work.files.clone(),
        save_every: options.save_every,
        secrets: table.secrets.as_ref().clone(),
    })
}
