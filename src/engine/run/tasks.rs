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
    plan::{JoinedPieces, RowAddresses, TableStates, TableWork},
    stage::{Job, Listed, Pieces, PortRows, Reads, SOURCE, TableInput, Task},
    store::{declared_schema, has_heavy, project},
};

/// Rows per task.
const TASK_ROWS: usize = 256;

/// Rows per task of a stage that is [quick](crate::engine::stage::Stage::is_quick).
const QUICK_TASK_ROWS: usize = 16_384;

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
            pieces: work.joined.pieces.as_ref().map(|pieces| Pieces::of(pieces, &chunk)),
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

impl Pieces {
    /// Returns the pieces of chosen rows.
    fn of(JoinedPieces { ends, ids, places }: &JoinedPieces, rows: &[usize]) -> Self {
        let (mut chosen, mut chosen_ends) = (Vec::new(), Vec::new());
        for row in rows {
            let start = row.checked_sub(1).map_or(0, |before| ends[before]);
            chosen.extend(start..ends[*row]);
            chosen_ends.push(chosen.len());
        }
        Self {
            ends: chosen_ends,
            ids: chosen.iter().map(|piece| ids.value(*piece).to_owned()).collect(),
            rows: places.iter().map(|places| PortRows::of(places, &chosen)).collect(),
        }
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
            Reads::Rows | Reads::Pieces => row_schemas.push((input.port.clone(), schema)),
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
        model: work.made.model,
        files: work.files.clone(),
        save_every: options.save_every,
        secrets: table.secrets.as_ref().clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{
        Digest,
        run::toys::{CHAIN, PIECES, World, edited},
        stage::Output,
    };

    /// Returns the tasks of the stale rows of a table.
    fn tasks(world: &World, text: &str, table: &str, task_rows: usize) -> Vec<Task> {
        let options = Options { task_rows: Some(task_rows), ..Options::default() };
        world.work(text, table, |work, states| {
            let tasks = Tasks::new(work, &work.stale, states, &options, "run").unwrap();
            tasks.map(Result::unwrap).collect()
        })
    }

    /// Makes a store in which the tables above one are published.
    fn above(text: &str, table: &str) -> World {
        World::after(text.split(&format!("  {table}:")).next().unwrap())
    }

    fn ids(tasks: &[Task]) -> Vec<Vec<&str>> {
        tasks.iter().map(|task| task.ids.iter().map(String::as_str).collect()).collect()
    }

    #[test]
    fn rows_are_cut_into_tasks_in_their_order() {
        let world = above(CHAIN, "more");
        assert_eq!(ids(&tasks(&world, CHAIN, "more", 2)), [vec!["a", "b"], vec!["c"]]);
        assert_eq!(ids(&tasks(&world, CHAIN, "more", 3)), [["a", "b", "c"]]);
        assert_eq!(tasks(&world, CHAIN, "more", 0).len(), 3, "a task has at least one row");
    }

    #[test]
    fn tasks_have_only_stale_rows() {
        let world = World::after(CHAIN);
        let edited = edited(CHAIN, "b: 2", "b: 5");
        world.run(edited.split("  more:").next().unwrap()).unwrap();
        let tasks = tasks(&world, &edited, "more", 2);
        assert_eq!(ids(&tasks), [["b"]]);
        assert_eq!(tasks[0].keys.len(), 1);
    }

    #[test]
    fn keys_do_not_depend_on_the_sizes_of_tasks() {
        let world = above(CHAIN, "more");
        let keys = |task_rows| -> Vec<Digest> {
            tasks(&world, CHAIN, "more", task_rows).into_iter().flat_map(|task| task.keys).collect()
        };
        assert_eq!(keys(1), keys(3));
    }

    #[test]
    fn table_that_is_made_as_a_whole_is_one_task_without_keys() {
        let tasks = tasks(&above(CHAIN, "total"), CHAIN, "total", 1);
        assert_eq!(ids(&tasks), [["a", "b", "c"]]);
        assert_eq!((tasks[0].keys.len(), tasks[0].job.makes), (0, Output::Table));
    }

    #[test]
    fn task_names_only_the_parts_that_hold_its_rows() {
        // The run made `numbers` in tasks of two rows, so that `c` lies in a part of its own.
        let tasks = tasks(&above(CHAIN, "more"), CHAIN, "more", 2);
        let places: Vec<_> = tasks.iter().map(|task| (task.rows[0].parts.len(), &task.rows[0].places[..])).collect();
        assert_eq!(places, [(1, &[(0, 0), (0, 1)][..]), (1, &[(0, 0)][..])]);
        assert_ne!(tasks[0].rows[0].parts, tasks[1].rows[0].parts);
    }

    #[test]
    fn task_without_inputs_has_its_listed_rows() {
        let tasks = tasks(&World::new(), CHAIN, "numbers", 2);
        let listed = tasks[1].listed.as_ref().unwrap().unpack().unwrap();
        assert_eq!((listed.num_rows(), tasks[1].rows.len()), (1, 0));
        assert_eq!(tasks[1].ids, ["c"]);
    }

    #[test]
    fn task_has_the_pieces_of_its_rows() {
        let world = above(PIECES, "sums");
        let of = |tasks: Vec<Task>| -> Vec<(Vec<String>, Vec<usize>, Vec<String>)> {
            tasks
                .into_iter()
                .map(|task| (task.ids, task.pieces.as_ref().unwrap().ends.clone(), task.pieces.unwrap().ids))
                .collect()
        };
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let (a, c) = (["a@1", "a@2"], ["c@1"]);
        assert_eq!(
            of(tasks(&world, PIECES, "sums", 2)),
            [(names(&["a", "c"]), vec![2, 3], names(&[&a[..], &c].concat()))]
        );
        assert_eq!(
            of(tasks(&world, PIECES, "sums", 1)),
            [(names(&["a"]), vec![2], names(&a)), (names(&["c"]), vec![1], names(&c))]
        );
    }

    #[test]
    fn table_that_is_read_whole_belongs_to_the_job() {
        let text = format!("{CHAIN}  last: {{ stage: add, from: {{ numbers: numbers, total: total }} }}\n");
        let tasks = tasks(&above(&text, "last"), &text, "last", 2);
        let ports: Vec<&str> = tasks[0].rows.iter().map(|rows| rows.port.as_str()).collect();
        let whole: Vec<&str> = tasks[0].job.tables.iter().map(|table| table.port.as_str()).collect();
        assert_eq!((&ports[..], &whole[..]), (&["numbers"][..], &["total"][..]));
        assert!(tasks[0].job == tasks[1].job, "one operator serves both tasks");
    }
}
