//! Damaged objects of the store are named, and made again or refused. They never lead to an older or a different
//! answer.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::lab::{Ended, LIGHT, Lab, computed};

const PIPELINE: &str = "name: p\ntables:
  a: { stage: read, with: { path: a.csv, id: id } }
  n: { stage: sql, from: [a], with: { query: \"select id, x from a where x > 2\", makes: rows } }\n";
const SUM: &str = "select count(*), sum(x) from a";

fn lab() -> Lab {
    let lab = Lab::empty();
    lab.write("pipeline.yaml", PIPELINE);
    let rows: String = (0..60).map(|i| format!("row{i},{}\n", i * 7919 % 1000)).collect();
    lab.write("a.csv", &format!("id,x\n{rows}"));
    lab.run(&[]);
    lab
}

/// Returns the files of a folder of the store, sorted.
fn objects(lab: &Lab, folder: &str) -> Vec<PathBuf> {
    let folder = lab.path(".vlmdiff").join(folder);
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn flip(file: &Path, at: usize) {
    let mut bytes = fs::read(file).unwrap();
    bytes[at] ^= 4;
    fs::write(file, bytes).unwrap();
}

fn replace(file: &Path, from: &str, to: &str) {
    // A record is not only text.
    let mut bytes = fs::read(file).unwrap();
    let at = bytes.windows(from.len()).position(|bytes| bytes == from.as_bytes());
    let at = at.unwrap_or_else(|| panic!("no {from} in {}", file.display()));
    bytes.splice(at..at + from.len(), to.bytes());
    fs::write(file, bytes).unwrap();
}

fn query(lab: &Lab, text: &str) -> Ended {
    lab.vlmdiff(&["sql", text, "--format", "csv"])
}

#[test]
fn rows_of_a_damaged_record_are_computed_again() {
    let lab = lab();
    let expected = lab.sql(".vlmdiff", SUM);
    for record in fs::read_dir(lab.path(".vlmdiff/computed")).unwrap() {
        for file in fs::read_dir(record.unwrap().path()).unwrap() {
            replace(&file.unwrap().path(), "\"part\"", "\"qart\"");
        }
    }
    assert_eq!(computed(&lab.run(&[])), [], "a fresh table needs no record");
    let rows = fs::read_to_string(lab.path("a.csv")).unwrap();
    lab.write("a.csv", &format!("{rows}more,0\n"));
    let ended = lab.vlmdiff(&["run", "pipeline.yaml"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("does not match its digest: its rows are computed again"), "{}", ended.stderr);
    assert_eq!(lab.sql(".vlmdiff", SUM), [expected[0].replace("60,", "61,")]);
}

#[test]
fn damaged_manifest_is_not_replaced_by_an_older_version() {
    let damages: [(&str, &dyn Fn(&Path)); 4] = [
        ("another name", &|file| replace(file, "\"rows\"", "\"bows\"")),
        ("empty", &|file| fs::write(file, "").unwrap()),
        ("cut short", &|file| fs::write(file, &fs::read(file).unwrap()[..200]).unwrap()),
        ("deleted", &|file| fs::remove_file(file).unwrap()),
    ];
    for (what, damage) in damages {
        let lab = lab();
        lab.write("pipeline.yaml", &PIPELINE.replace("x > 2", "x > 500"));
        lab.run(&[]);
        let rows = lab.sql(".vlmdiff", "select * from n order by id");
        damage(&lab.path(".vlmdiff/published/p/n/0000000002.json"));
        let refused = query(&lab, "select * from n");
        assert_eq!(refused.code, Some(1), "{what}: {}", refused.stdout);
        assert!(refused.stderr.contains("published/p/n/0000000002.json"), "{what}: {}", refused.stderr);
        assert!(
            refused.stderr.contains("`vlmdiff run` of its pipeline publishes it again"),
            "{what}: {}",
            refused.stderr
        );
        let refused = lab.vlmdiff(&["gc", "--store", ".vlmdiff"]);
        assert_eq!(refused.code, Some(1), "{what}: what it reaches is not known: {}", refused.stdout);
        let plan = lab.vlmdiff(&["plan", "pipeline.yaml"]).stdout;
        assert!(plan.contains("n  to publish: a part of it is damaged or missing"), "{what}: {plan}");
        let mended = lab.vlmdiff(&["run", "pipeline.yaml"]);
        assert!(mended.stderr.contains("0000000002.json"), "{what}: {}", mended.stderr);
        assert_eq!(lab.sql(".vlmdiff", "select * from n order by id"), rows, "{what}");
        assert_eq!(computed(&lab.run(&["--verify"])), [], "{what}");
    }
}

#[test]
fn sql_refuses_to_answer_from_damaged_parts() {
    let lab = lab();
    let expected = lab.sql(".vlmdiff", SUM);
    let part = objects(&lab, "parts").into_iter().max_by_key(|part| part.metadata().unwrap().len()).unwrap();
    let whole = fs::read(&part).unwrap();
    for at in (4..whole.len()).step_by(97) {
        fs::write(&part, &whole).unwrap();
        flip(&part, at);
        let refused = query(&lab, SUM);
        assert_eq!(refused.code, Some(1), "byte {at}: {}", refused.stdout);
        assert!(refused.stderr.contains("does not match its digest"), "byte {at}: {}", refused.stderr);
        assert!(refused.stderr.contains("--verify") && !refused.stderr.contains("panicked"), "{}", refused.stderr);
    }
    let mended = lab.vlmdiff(&["run", "pipeline.yaml", "--verify"]);
    assert!(mended.stderr.contains("does not match its digest"), "{}", mended.stderr);
    assert_eq!(lab.sql(".vlmdiff", SUM), expected);
}

#[test]
fn missing_part_is_computed_again_by_any_run() {
    let lab = lab();
    let expected = lab.sql(".vlmdiff", SUM);
    objects(&lab, "parts").iter().for_each(|part| fs::remove_file(part).unwrap());
    let refused = query(&lab, SUM);
    assert!(refused.code == Some(1) && refused.stderr.contains("is missing"), "{}", refused.stderr);
    assert!(!lab.vlmdiff(&["plan", "pipeline.yaml"]).stdout.contains("fresh"));
    lab.run(&[]);
    assert_eq!(lab.sql(".vlmdiff", SUM), expected);
}

#[test]
fn error_of_a_damaged_log_or_tag_names_it() {
    let lab = lab();
    assert_eq!(lab.vlmdiff(&["runs", "tag", "first"]).code, Some(0));
    lab.run(&[]);
    let logs = objects(&lab, "runs");
    flip(&logs[0], 90);
    let runs = lab.vlmdiff(&["runs"]).stdout;
    assert!(runs.lines().nth(1).unwrap().contains("damaged"), "{runs}");
    let gc = lab.vlmdiff(&["gc"]);
    assert!(gc.code == Some(1) && gc.stderr.contains("what the tag first keeps is not known"), "{}", gc.stderr);
    flip(&lab.path(".vlmdiff/tags/first.json"), 60);
    let at_tag = query(&lab, "select * from \"n@first\"");
    assert!(at_tag.code == Some(1) && at_tag.stderr.contains("tags/first.json"), "{}", at_tag.stderr);
    assert_eq!(lab.vlmdiff(&["runs", "tag", "first"]).code, Some(0), "a tag is written again");
    assert_eq!(query(&lab, "select * from \"n@first\"").code, Some(0));
    let verified = lab.vlmdiff(&["run", "pipeline.yaml", "--verify"]);
    assert!(verified.stderr.contains("what that run did is no longer known"), "{}", verified.stderr);
    assert_eq!(lab.vlmdiff(&["gc"]).code, Some(0));
}

/// A row that failed is recorded together with other rows, and stays recorded when those are replaced and cleaned up.
#[test]
fn clean_up_keeps_the_failures_of_published_tables() {
    let lab = Lab::new(&LIGHT.replace("stage: ingest,", "stage: ingest, on_error: skip,"));
    let image = |name: &str| lab.path(&format!("data/gear/train/good/{name}.png"));
    fs::write(image("003"), b"no picture").unwrap();
    assert_eq!(lab.vlmdiff(&["run", "pipeline.yaml"]).code, Some(3));
    for class in ["gear", "tile"] {
        for file in fs::read_dir(lab.path(&format!("data/{class}/train/good"))).unwrap() {
            let file = file.unwrap().path();
            if file != image("003") {
                fs::copy(lab.path("data/tile/test/good/000.png"), &file).unwrap();
            }
        }
    }
    assert_eq!(lab.vlmdiff(&["run", "pipeline.yaml"]).code, Some(3));
    assert_eq!(lab.vlmdiff(&["gc", "--keep", "0"]).code, Some(0));
    fs::copy(image("000"), image("new")).unwrap();
    let plan = lab.vlmdiff(&["plan", "pipeline.yaml", "--json"]).stdout;
    let images: serde_json::Value = serde_json::from_str(plan.lines().next().unwrap()).unwrap();
    assert_eq!(images["stale"], 1, "{plan}");
}
