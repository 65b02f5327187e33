//! Several concurrent runs on one store.

use std::process::{Child, Stdio};

use vlmdiff::engine::store::{Event, Store, history};

use crate::lab::{LIGHT, Lab, TOY, computed, toy_tables};

fn start(lab: &Lab, arguments: &[&str]) -> Child {
    lab.command(arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn succeeds(child: Child) {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn store(lab: &Lab) -> Store {
    Store::open(&lab.path(".vlmdiff").to_string_lossy()).unwrap()
}

#[test]
fn eight_runs_compute_each_row_once_and_publish_once() {
    let lab = Lab::new(LIGHT);
    lab.run(&["--store", "alone"]);
    let runs: Vec<Child> =
        (0..8).map(|_| start(&lab, &["run", "pipeline.yaml", "--quiet", "--task-rows", "2"])).collect();
    runs.into_iter().for_each(succeeds);
    assert_eq!(lab.contents(".vlmdiff"), lab.contents("alone"));
    let store = store(&lab);
    let runs = history::runs(&store).unwrap();
    assert_eq!(runs.iter().filter(|run| run.status() == "done").count(), 8);
    let total = |name: &str| -> u64 {
        runs.iter().flat_map(|run| &run.tables).filter(|t| t.table == name).map(|t| t.computed).sum()
    };
    assert_eq!(["images", "captions", "counts"].map(total), [14, 8, 1]);
    let versions = store.versions("light").unwrap();
    assert!(versions.len() == 3 && versions.values().all(|versions| versions.iter().eq([&1])), "{versions:?}");
    assert_eq!(computed(&lab.run(&[])), []);
}

#[test]
fn concurrent_runs_of_different_pipelines_make_their_own_tables() {
    let lab = Lab::new(LIGHT);
    let names = ["one", "two", "three", "four"];
    for (i, name) in names.iter().enumerate() {
        let pipeline =
            LIGHT.replace("name: light", &format!("name: {name}")).replace("nothing", &format!("nothing {i}"));
        lab.write(&format!("{name}.yaml"), &pipeline);
    }
    let runs: Vec<Child> = names.iter().map(|name| start(&lab, &["run", &format!("{name}.yaml"), "--quiet"])).collect();
    runs.into_iter().for_each(succeeds);
    for (i, name) in names.iter().enumerate() {
        // Captions come from the dataset first, so the default `nothing` occurs in none of them.
        assert_eq!(lab.sql(".vlmdiff", &format!("select n from {name}.counts")), ["8"], "{i}");
    }
    let runs = history::runs(&store(&lab)).unwrap();
    let images: u64 = runs.iter().flat_map(|run| &run.tables).filter(|t| t.table == "images").map(|t| t.computed).sum();
    assert_eq!(images, 14, "images are the same in all of them");
}

/// A clean-up must not delete anything that a concurrent run uses.
#[test]
fn clean_up_deletes_nothing_of_a_concurrent_run() {
    let lab = Lab::new(TOY);
    lab.run(&["--store", "undisturbed"]);
    let mut run = start(&lab, &["run", "pipeline.yaml", "--quiet"]);
    let mut cleaned = 0;
    while run.try_wait().unwrap().is_none() {
        let ended = lab.vlmdiff(&["gc", "--keep", "0", "--store", ".vlmdiff"]);
        // The store does not exist before the run has made it.
        cleaned += u32::from(ended.code == Some(0));
        assert!(ended.code == Some(0) || ended.stderr.contains("there is no store"), "{}", ended.stderr);
    }
    succeeds(run);
    assert!(cleaned > 1, "the clean-ups did not fall into the run");
    assert_eq!(lab.contents(".vlmdiff"), lab.contents("undisturbed"));
    let again = lab.run(&["--verify"]);
    assert_eq!(again.iter().filter(|event| matches!(event, Event::TableFresh { .. })).count(), toy_tables());
}
