//! Edits after which a table must differ, and edits after which it need not.

use std::{fs, sync::Arc};

use arrow::{
    array::{ArrayRef, ListArray, RecordBatch, StringArray},
    datatypes::Int8Type,
};

use crate::lab::{LIGHT, Lab, computed};

fn parquet(lab: &Lab, name: &str, rows: [[Option<i8>; 2]; 2]) {
    let lists = ListArray::from_iter_primitive::<Int8Type, _, _>(rows.map(Some));
    let columns: [(&str, ArrayRef); 2] =
        [("id", Arc::new(StringArray::from(vec!["a", "b"]))), ("votes", Arc::new(lists))];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    fs::write(lab.path(name), vlmdiff::engine::store::encode_part(&batch).unwrap()).unwrap();
}

#[test]
fn zeros_that_become_nulls_change_the_content() {
    let lab = Lab::empty();
    lab.write(
        "pipeline.yaml",
        "name: votes\ntables:
  t: { stage: read, with: { path: votes.parquet, id: id } }
  first: { stage: sql, from: [t], with: { query: \"select id, votes[1] as v from t\", makes: row_per_row } }\n",
    );
    parquet(&lab, "votes.parquet", [[Some(0), Some(0)], [Some(1), Some(2)]]);
    lab.run(&[]);
    assert_eq!(lab.sql(".vlmdiff", "select id, v from first order by id"), ["a,0", "b,1"]);
    parquet(&lab, "votes.parquet", [[None, None], [Some(1), Some(2)]]);
    assert_eq!(computed(&lab.run(&[])), [("t", 1), ("first", 1)]);
    assert_eq!(lab.sql(".vlmdiff", "select id, v from first order by id"), ["a,", "b,1"]);
}

/// If a table loses its ids, tables that read it row by row then read it whole, although its rows are the same.
#[test]
fn table_that_loses_its_ids_is_read_as_a_whole() {
    let lab = Lab::empty();
    lab.write("a.csv", "id,x\na,1\nb,2\nc,3\n");
    lab.write("b.csv", "id,z\na,10\n");
    let pipeline = |makes: &str| {
        format!(
            "name: p\ntables:
  a: {{ stage: read, with: {{ path: a.csv, id: id }} }}
  b: {{ stage: read, with: {{ path: b.csv, id: id }} }}
  t: {{ stage: sql, from: [b], with: {{ query: \"select id, z from b order by id\", makes: {makes} }} }}
  n: {{ stage: sql, from: [a, t], with: {{ query: \"select a.id, t.z from a left join t on a.id = t.id\", makes: row_per_row }} }}\n"
        )
    };
    let rows = |makes: &str| {
        lab.write("pipeline.yaml", &pipeline(makes));
        lab.run(&[]);
        lab.sql(".vlmdiff", "select id, z from n order by id")
    };
    assert_eq!(rows("rows"), ["a,10"]);
    assert_eq!(rows("table"), ["a,10", "b,", "c,"]);
    assert_eq!(rows("rows"), ["a,10"]);
}

#[test]
fn row_by_row_query_joins_only_on_the_ids_of_tables() {
    let lab = Lab::empty();
    lab.write("a.csv", "id,x\na,1\nb,2\n");
    lab.write("b.csv", "key,id,z\na,b,10\nb,a,20\n");
    let pipeline = |on: &str| {
        format!(
            "name: p\ntables:
  a: {{ stage: read, with: {{ path: a.csv, id: id }} }}
  b: {{ stage: read, with: {{ path: b.csv, id: key }} }}
  n:
    stage: sql
    from: [a, b]
    with: {{ query: \"select a.id, b.z from a left join b on a.id = {on}\", makes: row_per_row }}\n"
        )
    };
    lab.write("pipeline.yaml", &pipeline("b.id"));
    let refused = lab.vlmdiff(&["run", "pipeline.yaml"]);
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("no `join` but on their ids"), "{}", refused.stderr);
    lab.write("pipeline.yaml", &pipeline("b.key"));
    lab.run(&["--task-rows", "1"]);
    assert_eq!(lab.sql(".vlmdiff", "select id, z from n order by id"), ["a,10", "b,20"]);
}

/// The path of an image is volatile: a row stays the same when its folder moves, so later tables must not read the
/// path.
#[test]
fn reading_a_volatile_column_is_refused() {
    let lab = Lab::new(LIGHT);
    let refused = |table: &str| {
        lab.write("pipeline.yaml", &format!("{LIGHT}  n: {table}\n"));
        let ended = lab.vlmdiff(&["plan", "pipeline.yaml"]);
        assert_eq!(ended.code, Some(2), "{table}: {}", ended.stderr);
        assert!(ended.stderr.contains("`uri` says where a row lies"), "{table}: {}", ended.stderr);
    };
    refused(
        "{ stage: sql, from: [images], where: \"uri like 'data/%'\", with: { query: 'select image_id from images', makes: row_per_row } }",
    );
    refused("{ stage: sql, from: [images], with: { query: 'select image_id, uri from images', makes: row_per_row } }");
    refused("{ stage: command, from: [images], with: { run: cat, columns: [uri], output: { n: int64 } } }");
    // `*` stands for all columns that are not volatile.
    let all = "  n: { stage: sql, from: [images], with: { query: 'select * from images', makes: rows } }\n";
    lab.write("pipeline.yaml", &format!("{LIGHT}{all}"));
    lab.run(&[]);
    let columns = lab.sql(".vlmdiff", "select column_name from information_schema.columns where table_name = 'n'");
    assert!(columns.contains(&"class".to_owned()) && !columns.contains(&"uri".to_owned()), "{columns:?}");
}

/// The listing contains the split of a new image, so a plan announces no work on tables of the other split.
#[test]
fn new_test_images_announce_no_work_on_training_images() {
    let lab = Lab::new(LIGHT);
    lab.run(&[]);
    let image = lab.path("data/gear/train/good/000.png");
    fs::copy(&image, lab.path("data/gear/test/good/new.png")).unwrap();
    let plan = lab.vlmdiff(&["plan", "pipeline.yaml"]).stdout;
    let line = |table: &str| plan.lines().find(|line| line.starts_with(table)).unwrap().to_owned();
    assert!(line("images").contains("1 of 15 rows to compute"), "{plan}");
    assert!(line("captions").contains("to publish"), "{plan}");
    assert!(line("counts").contains("fresh"), "{plan}");
    fs::copy(&image, lab.path("data/gear/train/good/new.png")).unwrap();
    let plan = lab.vlmdiff(&["plan", "pipeline.yaml"]).stdout;
    assert!(plan.contains("captions  at most 1 of 9 rows to compute"), "{plan}");
    lab.run(&[]);
    assert_eq!(lab.sql(".vlmdiff", "select n from counts"), ["9"]);
}
