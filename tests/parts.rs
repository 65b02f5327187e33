//! Parts of tables over many runs: how many there are, and that old versions keep theirs.

use std::{
    fs,
    time::{Duration, SystemTime},
};

use crate::lab::{Lab, computed};

const GROWING: &str = "tables:
  rows: { stage: read, with: { path: rows.csv, id: id } }
  doubled: { stage: sql, from: [rows], with: { makes: row_per_row, query: 'select id, 2 * n as n from rows' } }
";

fn rows(n: usize) -> String {
    "id,n\n".to_owned() + &(0..n).map(|i| format!("row-{i:05},{i}\n")).collect::<String>()
}

fn files(lab: &Lab, folder: &str) -> usize {
    fs::read_dir(lab.path(folder)).unwrap().count()
}

#[test]
fn many_small_runs_leave_few_parts() {
    let lab = Lab::empty();
    lab.write("pipeline.yaml", GROWING);
    for run in 1..=200 {
        lab.write("rows.csv", &rows(10 * run));
        let tag: &[&str] = match run {
            5 => &["--tag", "early"],
            200 => &["--tag", "late"],
            _ => &[],
        };
        let events = lab.run(tag);
        assert_eq!(computed(&events), [("rows", 10), ("doubled", 10)], "run {run}");
    }
    let ended = lab.vlmdiff(&["gc"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let parts = files(&lab, ".vlmdiff/parts");
    assert!(parts < 100, "{parts} files of parts");
    let all = "select count(*), sum(n), count(distinct id) from doubled";
    assert_eq!(lab.sql(".vlmdiff", all), [format!("2000,{},2000", 1999 * 2000)]);
    assert!(lab.vlmdiff(&["plan", "pipeline.yaml"]).stdout.lines().all(|line| line.contains("fresh")));
    let diff = lab.vlmdiff(&["diff", "early", "late"]);
    assert!(diff.code == Some(0) && diff.stdout.contains("1950 new"), "{}{}", diff.stdout, diff.stderr);
    // All rows are already computed, also those that return.
    lab.write("rows.csv", &rows(50));
    assert_eq!(computed(&lab.run(&[])), [("rows", 0), ("doubled", 0)]);
    lab.write("rows.csv", &rows(2000));
    assert_eq!(computed(&lab.run(&[])), [("rows", 0), ("doubled", 0)]);
    assert_eq!(lab.sql(".vlmdiff", all), [format!("2000,{},2000", 1999 * 2000)]);
}

#[test]
fn clean_up_removes_half_written_files_of_a_killed_run() {
    let lab = Lab::empty();
    lab.write("pipeline.yaml", GROWING);
    lab.write("rows.csv", &rows(3));
    lab.run(&[]);
    let old = ["parts/00.parquet#1", "computed/00/00.rows#12", "parts/00.groups.77.part"];
    let old = old.map(|name| lab.path(".vlmdiff").join(name));
    let young = lab.path(".vlmdiff/parts/01.parquet#1");
    fs::create_dir_all(lab.path(".vlmdiff/computed/00")).unwrap();
    for file in old.iter().chain([&young]) {
        fs::write(file, "half").unwrap();
    }
    for file in &old {
        let hour_ago = SystemTime::now() - Duration::from_secs(3600);
        fs::File::options().write(true).open(file).unwrap().set_modified(hour_ago).unwrap();
    }
    let dry = lab.vlmdiff(&["gc", "--dry-run"]);
    assert!(dry.stdout.contains("would delete 3 half-written files"), "{}", dry.stdout);
    assert!(old.iter().all(|file| file.exists()));
    let cleaned = lab.vlmdiff(&["gc"]);
    assert!(cleaned.stdout.contains("deleted 3 half-written files"), "{}", cleaned.stdout);
    assert!(old.iter().all(|file| !file.exists()) && young.exists(), "a process may still write the young one");
    assert!(lab.vlmdiff(&["plan", "pipeline.yaml"]).stdout.lines().all(|line| line.contains("fresh")));
}
