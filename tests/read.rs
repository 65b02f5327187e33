//! Rows read from files.

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
    // At another place and in another format the rows are the same.
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
fn error_of_a_file_names_its_defect() {
    let lab = Lab::new(PIPELINE);
    let late = (0..10_001).fold("id,n\n".to_owned(), |text, i| text + &format!("{i},{i}\n")) + "last,A12\n";
    for (name, content, message) in [
        ("rows.csv", "id,n\na,1\na,2\n", "the id `a` is listed twice"),
        ("rows.csv", "id,n\na,1\n,2\n", "row 2 has no `id`"),
        ("rows.csv", "key,n\na,1\n", "`id`: rows.csv has no column `id`; it has key, n"),
        ("rows.csv", "", "it is empty; a CSV file begins with the names of its columns"),
        ("rows.csv", "id,id\na,b\n", "has several columns `id`"),
        ("rows.csv", "id;n\na;1\n", "separated by ';': write `separator: \";\"`"),
        ("rows.csv", "id\tn\na\t1\n", "separated by '\\t': write `separator: \"\\t\"`"),
        ("rows.csv", "id;n\na;1,5\nb;2,5,0\n", "write `separator: \";\"`"),
        ("rows.jsonl", "{\"id\": [1]}\n", "column `id` is List(Int64); rows are identified by text or integers"),
        ("rows.csv", &late, "row 10002, column `n`: `A12` would be changed by the type int64"),
        ("rows.txt", "", "rows.txt ends in none of .parquet, .csv, .tsv, .jsonl and .ndjson"),
        (
            "rows.jsonl",
            "{\"id\": 1}\n\n{\"id\": 2, \"x\": NaN}\n",
            "line 3, column 16: `NaN` is no JSON, which has null",
        ),
        ("rows.jsonl", "{\"id\": 1}\n{\"id\": 2, \"x\": -Infinity}\n", "`Infinity` is no JSON"),
        ("rows.jsonl", "{\"id\": 1}\n{\"id\": 2\n", "EOF while parsing an object"),
        (
            "rows.jsonl",
            "{\"id\": 1, \"x\": 1.5}\n{\"id\": 2, \"x\": 9007199254740993}\n",
            "row 2, column `x`: `9007199254740993` would be changed by the type float64",
        ),
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

/// Reads a file and returns its rows as JSON lines without their braces.
fn values(lab: &Lab, name: &str, content: &str, set: &[&str]) -> Vec<String> {
    lab.write(name, content);
    let path = format!("rows.path={name}");
    let set = set.iter().flat_map(|set| ["--set", set]);
    lab.run(&["--set", &path].into_iter().chain(set).collect::<Vec<_>>());
    let ended = lab.vlmdiff(&["sql", "select * from rows order by 1", "--format", "json"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    ended.stdout.lines().map(|line| line.trim_matches(['{', '}']).replace('"', "'")).collect()
}

#[test]
fn guessed_type_changes_no_value() {
    let lab = Lab::empty();
    lab.write("pipeline.yaml", PIPELINE);
    let csv = |content: &str| values(&lab, "rows.csv", content, &[]);
    assert_eq!(csv("id,n\n001,1\n002,2\n010,3\n"), ["'id':'001','n':1", "'id':'002','n':2", "'id':'010','n':3"]);
    assert_eq!(csv("id,n\n1.50,1\ntrue,2\n"), ["'id':'1.50','n':1", "'id':'true','n':2"]);
    assert_eq!(csv("id,zip\na,01234\nb,98765\n"), ["'id':'a','zip':'01234'", "'id':'b','zip':'98765'"]);
    let long = "12345678901234567890";
    assert_eq!(csv(&format!("id,n\na,{long}\nb,1\n")), [&format!("'id':'a','n':'{long}'"), "'id':'b','n':'1'"]);
    assert_eq!(csv("id,n\na,9007199254740993\nb,1.5\n"), ["'id':'a','n':'9007199254740993'", "'id':'b','n':'1.5'"]);
    assert_eq!(csv("id,n\na,1e999\nb,2\n"), ["'id':'a','n':'1e999'", "'id':'b','n':'2'"]);
    let times = "id,t\na,2024-01-02T03:04:05+02:00\nb,2024-01-02T03:04:05+01:00\n";
    assert_eq!(csv(times)[0], "'id':'a','t':'2024-01-02T03:04:05+02:00'");
    // Numbers, dates and truth values are guessed if the type preserves them.
    assert_eq!(csv("id,n,x,b,d\na,7,0.10,True,2024-01-02\n"), ["'id':'a','n':7,'x':0.1,'b':true,'d':'2024-01-02'"]);
    let jsonl = |content: &str| values(&lab, "rows.jsonl", content, &[]);
    assert_eq!(
        jsonl("{\"id\": 1, \"x\": 2}\n{\"id\": \"01\", \"x\": 2.5}\n"),
        ["'id':'01','x':2.5", "'id':'1','x':2.0"]
    );
    assert_eq!(jsonl("{\"id\": 1, \"x\": [1, 2.5], \"s\": {\"n\": 3}}\n"), ["'id':'1','x':[1.0,2.5],'s':{'n':3"]);
    // A declared type takes precedence if the values fit it.
    let declared =
        |content: &str, of: &str| values(&lab, "rows.jsonl", content, &[&format!("rows.types={{ n: {of} }}")]);
    assert_eq!(declared("{\"id\": 1, \"n\": 18446744073709551615}\n", "uint64"), ["'id':'1','n':18446744073709551615"]);
    assert_eq!(
        declared("{\"id\": 1, \"n\": 12345678901234567890123}\n", "utf8"),
        ["'id':'1','n':'12345678901234567890123'"]
    );
    let ended =
        lab.vlmdiff(&["run", "pipeline.yaml", "--set", "rows.path=rows.jsonl", "--set", "rows.types={ n: int64 }"]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("column `n`: `12345678901234567890123` is no int64"), "{}", ended.stderr);
}

#[test]
fn json_number_is_not_truncated_to_a_declared_integer() {
    let lab = Lab::empty();
    lab.write("pipeline.yaml", PIPELINE);
    lab.write("rows.jsonl", "{\"id\": 1, \"n\": 1.5}\n");
    let set = ["--set", "rows.path=rows.jsonl", "--set", "rows.types={ n: int64 }"];
    let ended = lab.vlmdiff(&[&["run", "pipeline.yaml"][..], &set].concat());
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("row 1, column `n`: `1.5` is no int64, which `types` declares"), "{}", ended.stderr);
}

#[test]
fn column_without_values_is_text() {
    let lab = Lab::empty();
    lab.write("pipeline.yaml", PIPELINE);
    assert_eq!(values(&lab, "rows.csv", "id,n,note\na,1,\nb,2,\n", &[])[0], "'id':'a','n':1,'note':null");
    assert_eq!(values(&lab, "rows.jsonl", "{\"id\": 1, \"a\": null, \"b\": []}\n", &[]), ["'id':'1','a':null,'b':[]"]);
    // A file with a header alone has columns and no rows.
    assert_eq!(values(&lab, "rows.csv", "id,note\n", &[]), [""; 0]);
    assert_eq!(lab.sql(".vlmdiff", "select count(*) from rows where note is null"), ["0"]);
}

#[test]
fn csv_files_of_other_programs_are_read() {
    let lab = Lab::empty();
    lab.write("pipeline.yaml", PIPELINE);
    let expected = ["'id':'a','n':1"];
    assert_eq!(values(&lab, "ROWS.CSV", "id,n\na,1\n", &[]), expected);
    assert_eq!(values(&lab, "Rows.JsonL", "{\"id\": \"a\", \"n\": 1}\n", &[]), expected);
    assert_eq!(values(&lab, "marked.csv", "\u{feff}id,n\na,1\n", &[]), expected);
    assert_eq!(values(&lab, "marked.jsonl", "\u{feff}{\"id\": \"a\", \"n\": 1}\n", &[]), expected);
    assert_eq!(values(&lab, "rows.tsv", "id\tn\na\t1\n", &[]), expected);
    assert_eq!(values(&lab, "semicolons.csv", "id;n\na;1\n", &["rows.separator=;"]), expected);
    fs::write(lab.path("wide.csv"), b"\xff\xfei\0d\0").unwrap();
    let ended = lab.vlmdiff(&["run", "pipeline.yaml", "--set", "rows.path=wide.csv"]);
    assert!(ended.stderr.contains("cannot read wide.csv: it is UTF-16; save it as UTF-8"), "{}", ended.stderr);
}
