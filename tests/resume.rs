//! After a run is killed at any moment, the next run makes the same tables.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Stdio},
    time::{Duration, SystemTime},
};

use rand::{Rng, RngExt, SeedableRng};

use crate::{
    captions::lab_of_several_captions,
    lab::{LIGHT, Lab, TOY, computed},
};

/// Returns random moments spread over a run, and their seed, which a failing test prints.
fn moments(count: usize, longest: u64) -> (u64, Vec<Duration>) {
    let seed = rand::rng().next_u64();
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (seed, (0..count).map(|_| Duration::from_millis(random.random_range(0..longest))).collect())
}

fn killed_runs_end_in_the_same_tables(pipeline: &str, count: usize, longest: u64) {
    let lab = Lab::new(pipeline);
    // Equal tasks make equal batches, so the networks' results are equal to the last bit.
    lab.run(&["--store", "undisturbed", "--task-rows", "2"]);
    let (seed, moments) = moments(count, longest);
    for moment in moments {
        let mut run = lab.command(&["run", "pipeline.yaml", "--quiet", "--task-rows", "2"]);
        let mut child = run.stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(moment);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    lab.run(&["--task-rows", "2"]);
    assert_eq!(lab.contents("undisturbed"), lab.contents(".vlmdiff"), "seed {seed}");
    assert_eq!(computed(&lab.run(&["--verify"])), [], "seed {seed}");
}

#[test]
fn runs_killed_in_any_stage_end_in_the_same_tables() {
    killed_runs_end_in_the_same_tables(TOY, 12, 3000);
}

#[test]
fn runs_killed_at_many_moments_end_in_the_same_tables() {
    killed_runs_end_in_the_same_tables(LIGHT, 40, 120);
}

/// Returns the time of the newest saved state of a training.
fn saved(lab: &Lab) -> Option<SystemTime> {
    let files = fs::read_dir(lab.path(".vlmdiff/state")).into_iter().flatten().flatten();
    // A file that is being written has another ending.
    let states = files.filter(|file| file.path().extension().is_some_and(|extension| extension == "bin"));
    states.filter_map(|state| state.metadata().ok()?.modified().ok()).max()
}

/// Waits until a training has saved its state again. Returns false if the run has ended before.
fn saves_again(lab: &Lab, run: &mut Child, before: Option<SystemTime>) -> bool {
    while run.try_wait().unwrap().is_none() {
        if saved(lab) > before {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

/// A training that is killed at random moments after it has saved its state continues from there and makes the same weights bit for
/// bit. The tables up to `above` are made before.
fn killed_training_ends_in_the_same_weights(lab: &Lab, above: &str, table: &str) {
    lab.run(&["--store", "undisturbed", "--until", table]);
    lab.run(&["--until", above]);
    let (seed, moments) = moments(4, 150);
    let mut resumed = 0;
    for moment in moments {
        let before = saved(lab);
        let mut run = lab.command(&["run", "pipeline.yaml", "--until", table, "--save-every", "0"]);
        let mut child = run.stderr(Stdio::piped()).spawn().unwrap();
        if saves_again(lab, &mut child, before) {
            std::thread::sleep(moment);
        }
        child.kill().unwrap();
        let said = child.wait_with_output().unwrap().stderr;
        resumed += String::from_utf8_lossy(&said).matches("goes on from step").count();
    }
    let last = lab.vlmdiff(&["run", "pipeline.yaml", "--until", table]);
    assert_eq!(last.code, Some(0), "{}", last.stderr);
    resumed += last.stderr.matches("goes on from step").count();
    assert!(resumed > 0, "seed {seed}: no kill fell into a training");
    assert_eq!(lab.contents("undisturbed"), lab.contents(".vlmdiff"), "seed {seed}");
}

#[test]
fn killed_training_continues_to_the_same_weights() {
    let lab = Lab::new(&TOY.replace("training: { steps: 4,", "training: { steps: 150,"));
    killed_training_ends_in_the_same_weights(&lab, "text_embeddings", "autoencoder");
}

/// Captions are drawn in 75 epochs.
#[test]
fn killed_training_draws_the_same_captions() {
    let lab = lab_of_several_captions(150);
    killed_training_ends_in_the_same_weights(&lab, "several_embeddings", "denoiser");
}

/// At most one task is computed again: 14 images in tasks of one row are computed 14 times plus once for each kill.
#[test]
fn kill_costs_at_most_one_task() {
    let lab = Lab::new(LIGHT);
    let (seed, moments) = moments(6, 60);
    for moment in &moments {
        let mut run = lab.command(&["run", "pipeline.yaml", "--quiet", "--task-rows", "1", "--target", "images"]);
        let mut child = run.stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(*moment);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    lab.run(&["--task-rows", "1"]);
    // Files that a kill has truncated during writing may lie beside the parts.
    let is_part = |entry: &fs::DirEntry| entry.path().extension().is_some_and(|extension| extension == "parquet");
    let parts =
        fs::read_dir(lab.path(".vlmdiff/parts")).unwrap().filter(|entry| is_part(entry.as_ref().unwrap())).count();
    // There is one part for each image, one for each of eight captions, and one for the count.
    assert_eq!(parts, 14 + 8 + 1, "seed {seed}: what was committed was computed again");
}

#[test]
fn full_disk_is_an_error_and_the_next_run_continues() {
    let lab = Lab::new(LIGHT);
    lab.run(&["--store", "undisturbed"]);
    let vlmdiff = env!("CARGO_BIN_EXE_vlmdiff");
    // Files are limited to 8 KiB, as batch systems do. Writing then fails as on a full disk.
    let script = format!("ulimit -f 8; exec {vlmdiff} run pipeline.yaml --quiet");
    let mut shell = std::process::Command::new("bash");
    let output = shell.args(["-c", &script]).current_dir(lab.path("")).env_remove("VLMDIFF_STORE").output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("too large"), "{message}");
    lab.run(&[]);
    assert_eq!(lab.contents("undisturbed"), lab.contents(".vlmdiff"));
}

fn largest_part(lab: &Lab) -> PathBuf {
    let parts = fs::read_dir(lab.path(".vlmdiff/parts")).unwrap().map(|e| e.unwrap().path());
    parts.max_by_key(|p| p.metadata().unwrap().len()).unwrap()
}

#[test]
fn damaged_part_is_named_and_computed_again() {
    let lab = Lab::new(TOY);
    lab.run(&[]);
    let contents = lab.contents(".vlmdiff");
    let largest = largest_part(&lab);
    let name = largest.file_stem().unwrap().to_string_lossy().into_owned();
    let whole = fs::read(&largest).unwrap();
    let mut bytes = whole.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&largest, bytes).unwrap();
    // The damage is found when the part is read: it has pixels, of images or of tiles.
    let smoother = ["--set", "anomaly_maps.sigma=3", "--set", "tile_maps.sigma=3"];
    let ended = lab.vlmdiff(&[&["run", "pipeline.yaml"][..], &smoother].concat());
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains(&format!("part {name} does not match its digest")), "{}", ended.stderr);
    assert_eq!(fs::read(&largest).unwrap(), whole);
    lab.run(&[]);
    // Damage to a byte that no run reads is found by a verification.
    let mut bytes = whole.clone();
    bytes[middle] ^= 1;
    fs::write(&largest, bytes).unwrap();
    assert_eq!(computed(&lab.run(&[])), []);
    let ended = lab.vlmdiff(&["run", "pipeline.yaml", "--verify"]);
    assert!(ended.stderr.contains("a part of it is damaged or missing"), "{}", ended.stderr);
    assert_eq!(lab.contents(".vlmdiff"), contents);
    assert_eq!(fs::read(&largest).unwrap(), whole);
    // A truncated or missing part is detected by its size.
    for damage in [b"PAR1".to_vec(), Vec::new()] {
        fs::write(&largest, damage).unwrap();
        let ended = lab.vlmdiff(&["run", "pipeline.yaml"]);
        assert!(ended.stderr.contains("a part of it is damaged or missing"), "{}", ended.stderr);
        assert_eq!(fs::read(&largest).unwrap(), whole);
    }
    fs::remove_file(&largest).unwrap();
    lab.run(&[]);
    assert_eq!(fs::read(&largest).unwrap(), whole);
}

#[test]
fn lost_weights_are_trained_again() {
    let lab = Lab::new(TOY);
    lab.run(&[]);
    let contents = lab.contents(".vlmdiff");
    fs::remove_dir_all(lab.path(".vlmdiff/blobs")).unwrap();
    fs::copy(lab.path("data/gear/train/good/000.png"), lab.path("data/gear/test/good/000.png")).unwrap();
    let ended = lab.vlmdiff(&["run", "pipeline.yaml"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("missing: it is computed again"), "{}", ended.stderr);
    let weights = |contents: &[(String, String)]| {
        let trained =
            contents.iter().filter(|(table, _)| ["text_encoder", "autoencoder", "denoiser"].contains(&table.as_str()));
        trained.cloned().collect::<Vec<_>>()
    };
    assert_eq!(weights(&lab.contents(".vlmdiff")), weights(&contents));
}

/// A power failure may leave the last files empty. Their content is made again.
#[test]
fn truncated_files_are_made_again() {
    let lab = Lab::new(LIGHT);
    lab.run(&[]);
    let contents = lab.contents(".vlmdiff");
    let log = fs::read_dir(lab.path(".vlmdiff/runs")).unwrap().next().unwrap().unwrap().path();
    for file in [lab.path(".vlmdiff/published/light/captions/0000000001.json"), log] {
        fs::write(file, b"").unwrap();
    }
    for stage in fs::read_dir(lab.path(".vlmdiff/computed")).unwrap() {
        let record = fs::read_dir(stage.unwrap().path()).unwrap().next().unwrap().unwrap().path();
        fs::write(record, b"{\"part\":").unwrap();
    }
    // A damaged manifest is not replaced by an older version: queries are refused until a run has repaired it.
    let asked = lab.vlmdiff(&["sql", "select * from captions"]);
    assert_eq!(asked.code, Some(1), "{}", asked.stdout);
    assert!(asked.stderr.contains("published/light/captions/0000000001.json is cut short"), "{}", asked.stderr);
    let ended = lab.vlmdiff(&["run", "pipeline.yaml"]);
    assert!(ended.stderr.contains("it is published again"), "{}", ended.stderr);
    assert_eq!(lab.contents(".vlmdiff"), contents);
    assert_eq!(computed(&lab.run(&[])), []);
}
