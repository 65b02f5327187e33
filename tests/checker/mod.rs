//! A model checker of the engine. After each step of a random sequence of edits and accidents, every published table
//! is compared with an independent computation, and the computed rows with those that had to be computed.
//!
//! `VLMDIFF_SEED=N` repeats one sequence and prints its steps, `VLMDIFF_STEPS=3,7,8` only some of its steps. A step's
//! choices depend on its own number, so that others can be left out. A sequence that fails is shortened
//! automatically.

mod damage;
mod edits;
mod observe;
mod oracle;
mod pipeline;
mod sources;
mod steps;
mod world;

use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use self::{
    sources::{File, Manner},
    world::World,
};

/// The number of steps in a sequence.
const STEPS: u64 = 50;

/// Reads a number from the environment.
fn given(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn random(seed: u64, step: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(step))
}

/// The failure of a sequence: its step, the reason, and the steps before it.
#[derive(Debug)]
struct Failure {
    at: u64,
    why: String,
    done: Vec<String>,
}

/// Makes the chosen steps of a sequence.
fn sequence(seed: u64, chosen: &[u64], is_told: bool) -> Result<(), Failure> {
    let mut world = World::new(&mut random(seed, u64::MAX / 2));
    let mut done = Vec::new();
    for &at in chosen {
        let mut log = |what: String| {
            if is_told {
                println!("{at}: {what}");
            }
            done.push(format!("{at}: {what}"));
        };
        if let Err(why) = steps::step(&mut world, &mut random(seed, at), &mut log) {
            return Err(Failure { at, why, done });
        }
    }
    Ok(())
}

/// Removes steps from a failing sequence as long as it still fails.
fn shorter(seed: u64, mut chosen: Vec<u64>, mut failure: Failure) -> (Vec<u64>, Failure) {
    let until = Instant::now() + Duration::from_secs(given("VLMDIFF_SHORTEN").unwrap_or(60));
    chosen.retain(|step| *step <= failure.at);
    let mut size = chosen.len() / 2;
    while size > 0 && Instant::now() < until {
        let mut start = 0;
        while start < chosen.len() && Instant::now() < until {
            let fewer: Vec<u64> = chosen
                .iter()
                .enumerate()
                .filter(|(i, _)| !(start..start + size).contains(i))
                .map(|(_, s)| *s)
                .collect();
            match sequence(seed, &fewer, false) {
                Err(again) => {
                    chosen = fewer.into_iter().filter(|step| *step <= again.at).collect();
                    failure = again;
                }
                Ok(()) => start += size,
            }
        }
        size /= 2;
    }
    (chosen, failure)
}

/// Makes whole sequences. Panics with the shortest failing sequence.
fn sequences(seeds: impl Iterator<Item = u64>, steps: u64, limit: Option<Duration>) {
    let began = Instant::now();
    let (mut count, mut failed) = (0, Vec::new());
    for seed in seeds.take_while(|_| limit.is_none_or(|limit| began.elapsed() < limit)) {
        let chosen: Vec<u64> = match std::env::var("VLMDIFF_STEPS") {
            Ok(steps) => steps.split(',').map(|step| step.trim().parse().unwrap()).collect(),
            Err(_) => (0..steps).collect(),
        };
        count += 1;
        if let Err(failure) = sequence(seed, &chosen, given("VLMDIFF_SEED").is_some()) {
            let (chosen, failure) = shorter(seed, chosen, failure);
            let chosen: Vec<String> = chosen.iter().map(ToString::to_string).collect();
            failed.push(format!(
                "VLMDIFF_SEED={seed} VLMDIFF_STEPS={}\n{}\n{}",
                chosen.join(","),
                failure.done.join("\n"),
                failure.why
            ));
            println!("{}\n", failed[failed.len() - 1]);
        }
    }
    println!("{count} sequences of {steps} steps in {:.0} s", began.elapsed().as_secs_f64());
    assert!(failed.is_empty(), "{} of {count} sequences fail:\n\n{}", failed.len(), failed.join("\n\n"));
}

/// Returns the seeds from the environment, or `count` seeds from `first` on.
fn seeds(first: u64, count: u64) -> std::ops::Range<u64> {
    match given("VLMDIFF_SEED") {
        Some(seed) => seed..seed + given("VLMDIFF_SEEDS").unwrap_or(1),
        None => first..first.saturating_add(given("VLMDIFF_SEEDS").unwrap_or(count)),
    }
}

/// The sequences are the same each time, as many as fit in the time limit, so that a failure is due to a change of
/// the code. The long run tries new seeds.
#[test]
fn every_table_is_right_after_any_sequence_of_edits_and_accidents() {
    sequences(seeds(1, u64::MAX), 25, Some(Duration::from_secs(25)));
}

/// Tests the checker itself: wrong values are distinguished from right ones, and rows already computed from others.
#[test]
fn checker_finds_a_wrong_table_and_a_needless_row() {
    let mut world = World::new(&mut random(7, 0));
    world.pipelines = vec![damage::pipeline()];
    world.write_pipelines();
    let run = |world: &mut World| {
        let attempt = world.attempt(world.pipelines[0].clone(), &|_, _| true);
        steps::whole_run(world, &attempt, &mut |_| {})
    };
    run(&mut world).unwrap();
    let right = world.sources.clone();
    world.sources.records.get_mut(&File::Csv).unwrap()[0].insert("n".into(), 77.into());
    let why = run(&mut world).unwrap_err();
    assert!(why.contains("a: 0 rows were computed, and 1 never were before"), "{why}");
    let allowed = world.allowed(&[&world.attempt(world.pipelines[0].clone(), &|_, _| true)], true);
    let why = world.compare(&allowed).unwrap_err();
    assert!(why.contains("one.a[] is wrong") && why.contains("\"n\":77"), "{why}");
    // The row is written anew, but the checker counts it as already computed.
    world.sources = right;
    let records = world.sources.records.get_mut(&File::Csv).unwrap();
    records[0].insert("n".into(), 78.into());
    world.sources.write_records(File::Csv, &world.folder(), Manner::InPlace);
    let attempt = world.attempt(world.pipelines[0].clone(), &|_, _| true);
    attempt.tables.iter().for_each(|(_, made)| world.known.surely.extend(&made.keys));
    let why = run(&mut world).unwrap_err();
    assert!(why.contains("a: 1 rows were computed, of which 0 had to be"), "{why}");
}

/// A hundred sequences with new seeds each time, for `make soak`.
#[test]
#[ignore = "takes many minutes"]
fn every_table_is_right_after_many_long_sequences() {
    sequences(seeds(rand::random::<u32>().into(), 100), STEPS, None);
}
