//! Killed at any moment, the next run ends in the same tables.

use std::{fs, process::Stdio, time::Duration};

use crate::lab::{Lab, TOY};

#[test]
fn killed_runs_end_in_the_same_tables() {
    let lab = Lab::new(TOY);
    lab.run(&["--store", "undisturbed"]);
    // Moments spread over a run; some fall into training, some into row-wise stages.
    for milliseconds in [50, 300, 700, 900, 1200, 1600, 2000, 2500] {
        let mut child = lab
            .command(&["run", "pipeline.yaml", "--quiet", "--task-rows", "2"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(milliseconds));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    lab.run(&["--task-rows", "256"]);
    let tables = |store: &str| lab.contents(store).into_iter().map(|(table, _)| table).collect::<Vec<_>>();
    assert_eq!(tables("undisturbed"), tables(".vlmdiff"));
    for table in ["images", "captions", "text_encoder", "autoencoder"] {
        let content = |store: &str| lab.contents(store).into_iter().find(|(name, _)| name == table);
        assert_eq!(content("undisturbed"), content(".vlmdiff"), "{table}");
    }
    let metrics = |store: &str| lab.sql(store, "select class, n_images, round(pixel_auroc, 2) from metrics");
    assert_eq!(metrics("undisturbed"), metrics(".vlmdiff"));
}

#[test]
fn a_damaged_part_is_named() {
    let lab = Lab::new(TOY);
    lab.run(&[]);
    let parts: Vec<_> = fs::read_dir(lab.path(".vlmdiff/parts")).unwrap().map(|e| e.unwrap().path()).collect();
    let largest = parts.iter().max_by_key(|p| p.metadata().unwrap().len()).unwrap();
    let mut bytes = fs::read(largest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(largest, bytes).unwrap();
    let ended = lab.vlmdiff(&["run", "pipeline.yaml", "--set", "anomaly_maps.sigma=3"]);
    assert_eq!(ended.code, Some(1));
    let name = largest.file_stem().unwrap().to_string_lossy().into_owned();
    assert!(ended.stderr.contains(&name) && ended.stderr.contains("does not match its digest"), "{}", ended.stderr);
}
