//! Many photographs at once through `vlmdiff predict`: verdicts do not depend on company, order, threads and interruptions.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use image::{Rgb, RgbImage};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};
use serde_json::Value;
use vlmdiff::engine::store::{Event, Logged};

use crate::{executors::workers_of, lab::Lab, methods::INSPECTION};

/// The arguments before the photographs.
const PREDICT: [&str; 5] = ["predict", "pipeline.yaml", "--class", "gear", "--json"];

/// Makes a lab whose pipeline has run, with new photographs of noise in the folder `new`, and one file that is none.
fn lab(photographs: usize) -> Lab {
    let lab = Lab::new(INSPECTION);
    lab.run(&[]);
    fs::create_dir(lab.path("new")).unwrap();
    let mut random = StdRng::seed_from_u64(1);
    for number in 0..photographs {
        let light: u8 = random.random_range(0..200);
        let picture = RgbImage::from_fn(24, 24, |_, _| Rgb([0; 3].map(|_: u8| light + random.random_range(0..50))));
        picture.save(lab.path(&format!("new/{number:04}.png"))).unwrap();
    }
    lab.write("new/broken.png", "no picture");
    lab
}

/// Copies the store in which the pipeline has run.
fn copy_store(lab: &Lab, name: &str) {
    let copied = Command::new("cp").args(["-r", ".vlmdiff", name]).current_dir(lab.path("")).status().unwrap();
    assert!(copied.success());
}

/// Returns the objects that `predict --json` printed, by photograph.
fn by_photograph(printed: &str) -> BTreeMap<String, Value> {
    let object = |line: &str| -> (String, Value) {
        let object: Value = serde_json::from_str(line).unwrap();
        (object["image_id"].as_str().unwrap().to_owned(), object)
    };
    printed.lines().map(object).collect()
}

/// Judges photographs, of which at least one is anomalous, or all could be read.
fn judge(lab: &Lab, store: &str, threads: &str, photographs: &[&str]) -> BTreeMap<String, Value> {
    let mut command = lab.command(&[&PREDICT[..], &["--store", store], photographs].concat());
    let ended = lab.ended(command.env("OMP_NUM_THREADS", threads));
    assert!(matches!(ended.code, Some(0 | 3 | 4)), "{:?} {}", ended.code, ended.stderr);
    by_photograph(&ended.stdout)
}

/// Returns the numbers of maps of new photographs in the parts that runs have committed, by run.
fn committed(lab: &Lab, store: &str) -> Vec<u64> {
    let logs = fs::read_dir(lab.path(store).join("runs")).unwrap().map(|entry| entry.unwrap().path());
    let of_run = |log: PathBuf| -> Option<u64> {
        // A kill may cut the last line.
        let events = fs::read_to_string(log).unwrap();
        let events: Vec<Event> =
            events.lines().filter_map(|line| Some(serde_json::from_str::<Logged>(line).ok()?.event)).collect();
        let is_prediction =
            |event: &Event| matches!(event, Event::RunStarted { pipeline, .. } if pipeline == "inspection_predict");
        let rows = events.iter().map(|event| match event {
            Event::PartCommitted { table, rows, .. } if table == "anomaly_maps" => *rows,
            _ => 0,
        });
        events.iter().any(is_prediction).then(|| rows.sum())
    };
    logs.filter_map(of_run).collect()
}

fn verdicts_are_the_same_however_photographs_come(photographs: usize, kills: usize) {
    let lab = lab(photographs);
    let seed = rand::rng().next_u64();
    let mut random = StdRng::seed_from_u64(seed);
    ["apart", "killed"].into_iter().for_each(|store| copy_store(&lab, store));
    let began = Instant::now();
    let expected = judge(&lab, ".vlmdiff", "1", &["new"]);
    let whole = began.elapsed();
    assert_eq!(expected.len(), photographs + 1);
    let scores = expected.values().filter_map(|verdict| verdict["score"].as_f64());
    let mut different: Vec<u64> = scores.map(f64::to_bits).collect();
    different.sort_unstable();
    different.dedup();
    assert!(different.len() > photographs / 2, "the photographs differ, and so do their scores");
    assert!(expected["new/broken.png"]["error"].as_str().unwrap().starts_with("not an image"));

    // In another order, some at a time, by processes with two threads; some of them again.
    let mut names: Vec<&str> = expected.keys().map(String::as_str).collect();
    names.shuffle(&mut random);
    let mut found = BTreeMap::new();
    for some in names.chunks(photographs / 3 + 1) {
        let again: Vec<&str> = names[..5].iter().copied().filter(|name| !some.contains(name)).collect();
        found.extend(judge(&lab, "apart", "2", &[some, &again].concat()));
    }
    assert!(found == expected, "seed {seed}");
    assert_eq!(committed(&lab, "apart").iter().sum::<u64>(), photographs as u64, "what is known is not computed again");

    // The process is killed at random moments, or its worker, which it starts again.
    let mut killed = 0;
    while killed < kills {
        let mut command = lab.command(&[&PREDICT[..], &["--store", "killed", "new"]].concat());
        let mut process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        sleep(Duration::from_millis(random.random_range(0..=whole.as_millis() as u64 / 2)));
        let mut workers = workers_of(process.id());
        workers.retain(|_| random.random_bool(0.5));
        for worker in workers {
            let _ = Command::new("kill").args(["-KILL", &worker.to_string()]).stderr(Stdio::null()).status();
            sleep(Duration::from_millis(random.random_range(0..1000)));
        }
        process.kill().unwrap();
        process.wait().unwrap();
        killed += 1;
    }
    assert!(judge(&lab, "killed", "1", &["new"]) == expected, "seed {seed}");
    let rows = committed(&lab, "killed");
    let sum: u64 = rows.iter().sum();
    assert!(sum <= photographs as u64, "seed {seed}: of {rows:?} rows some were computed again");
    // All are known now.
    assert!(judge(&lab, "killed", "1", &["new"]) == expected, "seed {seed}");
    assert_eq!(committed(&lab, "killed").iter().sum::<u64>(), sum, "seed {seed}");
}

#[test]
fn verdicts_of_many_photographs_do_not_depend_on_order_company_or_kills() {
    verdicts_are_the_same_however_photographs_come(40, 3);
}

#[test]
#[ignore = "takes minutes"]
fn verdicts_of_a_thousand_photographs_do_not_depend_on_order_company_or_kills() {
    verdicts_are_the_same_however_photographs_come(1000, 12);
}
