//! Banks of features: the memory that they take, and their growth by rows.

use std::{collections::BTreeMap, fs, process::Stdio, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use rayon::prelude::*;

use crate::{
    lab::computed,
    methods::{BANKS, banks, contents},
};

#[test]
fn plan_and_fit_say_what_memory_a_fit_takes() {
    let lab = banks();
    let planned = |arguments: &[&str]| {
        let ended = lab.vlmdiff(&[&["plan", "pipeline.yaml"], arguments].concat());
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        ended.stdout
    };
    // Nothing has run. Two arrays of 64 patches of 64 numbers in f16; PatchCore: one in f16 and one in f32, the same again for
    // patches that are no longer than their projections, and two numbers for each.
    let told = planned(&["--json"]);
    for (table, bytes) in [("bank", 64 * (6 * 64 + 4 * 66)), ("by_class", 64 * 4 * 64), ("subspace", 6 * 8 * 64 * 64)] {
        let plan = told.lines().find(|line| line.starts_with(&format!("{{\"table\":\"{table}\""))).unwrap();
        assert!(plan.contains(&format!("\"memory\":{{\"bytes\":{bytes},\"rows\":8}}")), "{plan}");
    }
    assert_eq!(planned(&[]).matches("takes up to 1 MiB of memory").count(), 3);
    // Patches among which the nearest are sought take two arrays in f16 while they are read, and two in f32 while they become a bank.
    let naming = BANKS.replacen("from: [images, bank]", "from: [images, bank, features]", 1);
    lab.write("pipeline.yaml", &naming);
    let told = planned(&["--json"]);
    let plan = told.lines().find(|line| line.starts_with("{\"table\":\"maps\"")).unwrap();
    let bytes = 64 * (2 * 2 + 2 * 4) * 64;
    assert!(plan.contains(&format!("\"memory\":{{\"bytes\":{bytes},\"rows\":6}}")), "{plan}");
    // Rows of a statement are not known before it has run.
    let query = "{ makes: rows, query: 'select image_id, class from images' }";
    let chosen = format!("  chosen: {{ stage: sql, from: [images], with: {query} }}\n  bank:");
    let both = "stage: fit, from: { features: features, images: chosen }";
    lab.write("pipeline.yaml", &BANKS.replace("  bank:", &chosen).replacen("stage: fit, from: [features]", both, 1));
    let told = planned(&["--target", "bank"]);
    assert!(told.contains("waits for chosen") && told.contains("takes up to 5 MiB of memory for 1000 rows"), "{told}");
    // After the run nothing is made.
    lab.write("pipeline.yaml", BANKS);
    let ended = lab.vlmdiff(&["run", "pipeline.yaml"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let announced = "a fit on 64 patches of 64 numbers takes up to 1 MiB of memory";
    assert_eq!(ended.stderr.matches(announced).count(), 3, "{}", ended.stderr);
    assert!(!planned(&[]).contains("memory"));
}

/// Photographs are added, changed and removed in random sequences, and runs are killed. After each step the features that were
/// computed are those of the photographs that changed, and at the end all tables are, bit for bit, those of a run from nothing.
///
/// `VLMDIFF_SEED` begins another series, of `VLMDIFF_SEQUENCES` sequences.
#[test]
fn bank_that_grew_is_the_bank_made_at_once() {
    let number = |name, default| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let (first, sequences): (u64, u64) = (number("VLMDIFF_SEED", 1), number("VLMDIFF_SEQUENCES", 3));
    (first..first + sequences).into_par_iter().for_each(grow);
}

/// Lets a bank grow by a random sequence.
fn grow(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let lab = banks();
    lab.run(&[]);
    let folder = lab.path("data/tile/train/good");
    let mut known: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        known.insert(path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap());
    }
    let pictures: Vec<Vec<u8>> = known.values().cloned().collect();
    for step in 0..random.random_range(1..5) {
        let before = known.clone();
        for _ in 0..random.random_range(1..4) {
            let name = format!("{:03}.png", random.random_range(0..8));
            if known.len() > 2 && known.contains_key(&name) && random.random_bool(0.4) {
                known.remove(&name);
                fs::remove_file(folder.join(&name)).unwrap();
            } else {
                // A byte behind the end of a picture makes another file of it.
                let mut picture = pictures[random.random_range(0..pictures.len())].clone();
                picture.push(random.random());
                fs::write(folder.join(&name), &picture).unwrap();
                known.insert(name, picture);
            }
        }
        if random.random_bool(0.5) {
            let mut child = lab.command(&["run", "pipeline.yaml", "--quiet"]).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(random.random_range(0..900)));
            child.kill().unwrap();
            child.wait().unwrap();
            lab.run(&[]);
        } else {
            let events = lab.run(&[]);
            let changed = known.iter().filter(|(name, picture)| before.get(*name) != Some(picture)).count() as u64;
            let features = computed(&events).into_iter().find(|(table, _)| *table == "features");
            assert!(features.map_or(0, |(_, rows)| rows) <= changed, "seed {seed}, step {step}");
        }
    }
    lab.run(&["--store", "whole"]);
    assert_eq!(contents(&lab, ".vlmdiff"), contents(&lab, "whole"), "seed {seed}");
}
