//! Rows from files.

use std::{fmt::Write, fs};

use crate::lab::{Lab, computed};

const PIPELINE: &str = "
name: files
tables:
  rows: { stage: read, with: { path: rows.csv, id: id } }
";

fn rows(range: std::ops::Range<u32>) -> String {
    range.fold(String::new(), |mut text, i| {
        writeln!(text, "{i},{},name {i}", f64::from(i) / 2.).unwrap();
        text
    })
}

#[test]
fn appended_rows_are_computed_alone() {
    let lab = Lab::new(PIPELINE);
    lab.write("rows.csv", &format!("x,half,name\n{}", rows(0..3000)));
    let set = ["--set", "rows.id=x"];
    assert_eq!(computed(&lab.run(&set)), [("rows", 3000)]);
    lab.write("rows.csv", &format!("x,half,name\n{}", rows(0..3010)));
    assert_eq!(computed(&lab.run(&set)), [("rows", 10)]);
    assert_eq!(lab.sql(".vlmdiff", "select x, half, name from rows where x = '3009'"), ["3009,1504.5,name 3009"]);
    // Elsewhere and in another form the rows are the same.
    let jsonl: String = (0..3010).fold(String::new(), |mut text, i| {
        writeln!(text, r#"{{"x": {i}, "half": {:?}, "name": "name {i}"}}"#, f64::from(i) / 2.).unwrap();
        text
    });
    lab.write("rows.jsonl", &jsonl);
    let query = "select x, half, name from rows order by x";
    let before = lab.sql(".vlmdiff", query);
    lab.run(&["--set", "rows.id=x", "--set", "rows.path=rows.jsonl"]);
    assert_eq!(lab.sql(".vlmdiff", query), before);
    let parquet = lab.command(&["sql", "select * from rows", "--format", "parquet"]).output().unwrap();
    fs::write(lab.path("rows.parquet"), parquet.stdout).unwrap();
    let events = lab.run(&["--set", "rows.id=x", "--set", "rows.path=rows.parquet"]);
    assert!(computed(&events).iter().all(|(_, rows)| *rows == 0), "{events:?}");
    assert_eq!(lab.sql(".vlmdiff", query), before);
}

#[test]
fn what_is_wrong_with_a_file_is_said() {
    let lab = Lab::new(PIPELINE);
    let late = (0..10_001).fold("id,n\n".to_owned(), |text, i| text + &format!("{i},{i}\n")) + "last,A12\n";
    for (name, content, message) in [
        ("rows.csv", "id,n\na,1\na,2\n", "the id `a` is listed twice"),
        ("rows.csv", "id,n\na,1\n,2\n", "a row has no `id`"),
        ("rows.csv", "key,n\na,1\n", "`id`: rows.csv has no column `id`; it has key, n"),
        ("rows.csv", "id,n\n0.5,1\n", "column `id` is Float64; rows are identified by text or integers"),
        ("rows.csv", &late, "`types` says what a column is"),
        ("rows.txt", "", "rows.txt ends in none of .parquet, .csv, .jsonl and .ndjson"),
        ("rows.parquet", "PAR1", "cannot read rows.parquet"),
    ] {
        lab.write(name, content);
        let ended = lab.vlmdiff(&["run", "pipeline.yaml", "--quiet", "--set", &format!("rows.path={name}")]);
        assert_eq!(ended.code, Some(2), "{message}: {}", ended.stderr);
        assert!(ended.stderr.contains(message), "{message}: {}", ended.stderr);
    }
    lab.write("rows.csv", &late.replace("last", "10001"));
    lab.run(&["--set", "rows.types={ n: utf8? }"]);
    assert_eq!(lab.sql(".vlmdiff", "select n from rows where id = '10001'"), ["A12"]);
    let ended = lab.vlmdiff(&["plan", "pipeline.yaml", "--set", "rows.path=none.csv"]);
    assert!(ended.stderr.contains("cannot read none.csv"), "{}", ended.stderr);
}
