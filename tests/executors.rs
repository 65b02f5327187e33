//! Several workers: concurrent tables and tasks, workers that die and answers that are lost. The tables must be those
//! of one worker.

use std::{
    fs,
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread::sleep,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use vlmdiff::{
    engine::{
        Result, Stop, pipeline,
        run::{self, Death, Executor, InProcess, Settings, Update},
        source::Sources,
        stage::{StageKind, Task, open},
        store::Store,
    },
    query::TABLES_OF_SQL,
    stages::{KINDS, sql::Sql},
};

use crate::lab::{Lab, TOY};

/// Two tables that have only their source in common.
const SIDE_BY_SIDE: &str = "name: pair
tables:
  rows: { stage: read, with: { path: rows.csv, id: id } }
  twice: { stage: sql, from: [rows], with: { makes: row_per_row, query: 'select id, 2 * n as n from rows' } }
  thrice: { stage: sql, from: [rows], with: { makes: row_per_row, query: 'select id, 3 * n as n from rows' } }
  both: { stage: sql, from: [twice, thrice], with: { query: 'select count(*) as n, sum(twice.n + thrice.n) as s from twice join thrice using (id)' } }
";

fn pair() -> Lab {
    let lab = Lab::empty();
    let rows: String = (0..40).map(|n| format!("r{n:02},{n}\n")).collect();
    lab.write("rows.csv", &format!("id,n\n{rows}"));
    lab.write("pipeline.yaml", &SIDE_BY_SIDE.replace("rows.csv", &lab.path("rows.csv").to_string_lossy()));
    lab
}

/// Returns the registry with `sql` as a stage that only a worker can open.
fn kinds() -> Vec<StageKind> {
    let elsewhere = |kind: &StageKind| match kind.name {
        "sql" => StageKind { open_here: None, in_worker: true, ..*kind },
        _ => *kind,
    };
    KINDS.iter().map(elsewhere).collect()
}

/// Two workers that lose some answers, before or after the task is computed.
struct Unreliable {
    inner: InProcess,
    lost: AtomicUsize,
    random: std::sync::Mutex<ChaCha8Rng>,
}

impl Executor for Unreliable {
    fn slots(&self) -> usize {
        2
    }

    fn run(
        &self,
        tasks: &mut dyn Iterator<Item = Result<Task>>,
        on: &mut dyn FnMut(Update) -> Result<()>,
    ) -> Result<()> {
        for (number, task) in tasks.enumerate() {
            let (loses, before) = {
                let mut random = self.random.lock().unwrap();
                (random.random_bool(0.4), random.random_bool(0.5))
            };
            let lost = || {
                self.lost.fetch_add(1, Ordering::Relaxed);
                Update::Lost { task: number, death: Death { status: "lost".into(), is_killed: false } }
            };
            if loses && before {
                on(lost())?;
                continue;
            }
            self.inner.run(&mut std::iter::once(task), &mut |update| match update {
                Update::Report { report, .. } => on(Update::Report { task: number, report }),
                Update::Done { .. } if loses => on(lost()),
                Update::Done { entries, .. } => on(Update::Done { task: number, entries }),
                Update::Lost { .. } => unreachable!("it runs in this process"),
            })?;
        }
        Ok(())
    }
}

#[test]
fn lost_answers_lose_no_row() {
    let whole = pair();
    whole.run(&[]);
    for seed in 0..20 {
        let lab = pair();
        let store = Store::open(&lab.path(".vlmdiff").to_string_lossy()).unwrap();
        let pipeline = pipeline::load(&lab.path("pipeline.yaml"), &kinds(), &TABLES_OF_SQL, &[]).unwrap();
        let tables = pipeline.tables.iter().map(|table| table.name.clone()).collect();
        let options = run::Options { tables, task_rows: Some(3), ..run::Options::default() };
        let inner = InProcess::new(store.clone(), Stop::default(), Settings::default(), open::<Sql>);
        let random = std::sync::Mutex::new(ChaCha8Rng::seed_from_u64(seed));
        let workers = Unreliable { inner, lost: AtomicUsize::new(0), random };
        let summary = run::run(&pipeline, &store, &Sources::default(), &options, &workers, &mut |_| {});
        // After several lost answers in a row the run gives up. Computed rows are kept, and the next run continues.
        if summary.is_err() {
            run::run(&pipeline, &store, &Sources::default(), &options, &workers, &mut |_| {}).unwrap();
        }
        assert!(workers.lost.load(Ordering::Relaxed) > 0, "seed {seed} loses nothing");
        assert_eq!(lab.contents(".vlmdiff"), whole.contents(".vlmdiff"), "seed {seed}");
    }
}

#[test]
fn independent_tables_are_made_concurrently() {
    let lab = Lab::new(TOY);
    let events = lab.run(&["--workers", "2", "--threads", "2", "--until", "autoencoder"]);
    let position = |kind: &str, table: &str| {
        let is = |event: &serde_json::Value| event["event"] == kind && event["table"] == table;
        events.iter().map(|event| serde_json::to_value(event).unwrap()).position(|event| is(&event)).unwrap()
    };
    // Each of the two trainings begins before the other ends.
    assert!(position("table_started", "autoencoder") < position("table_published", "text_encoder"));
    assert!(position("table_started", "text_encoder") < position("table_published", "autoencoder"));
}

#[test]
fn two_workers_make_the_same_tables_as_one() {
    let lab = Lab::new(TOY);
    lab.run(&["--threads", "1", "--batch-size", "1"]);
    lab.run(&["--store", "two", "--workers", "2", "--threads", "2", "--batch-size", "1", "--task-rows", "2"]);
    assert_eq!(lab.contents(".vlmdiff"), lab.contents("two"));
}

/// Returns the worker processes of a run or an executor.
pub(crate) fn workers_of(run: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{run}/task/{run}/children")).unwrap_or_default();
    let all = fs::read_dir(format!("/proc/{run}/task")).into_iter().flatten().flatten();
    let of_threads = all.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let mut found: Vec<u32> = of_threads
        .chain([children])
        .flat_map(|text| text.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<u32>>())
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// Kills one of two workers at random moments, and sometimes pauses one, so that a slow worker runs beside a fast
/// one.
#[test]
fn killed_and_slow_workers_do_not_change_tables() {
    const KILLS: usize = 6;
    let lab = Lab::empty();
    let pipeline = TOY.replace(
        "{ dataset: folder, root: data, size: 32 }",
        "{ dataset: synthetic, size: 32, synthetic: { classes: [tile, gear], train: 60, test_good: 2, test_per_defect: 1 } }",
    );
    lab.write("pipeline.yaml", &pipeline);
    // Each worker has one thread, because sums by two threads differ in the last digits.
    let settings = ["--batch-size", "1", "--task-rows", "2", "--until", "latents"];
    lab.run(&[&["--threads", "1"][..], &settings].concat());
    let whole = lab.contents(".vlmdiff");
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let began = Instant::now();
    let mut killed = 0;
    while killed < KILLS {
        assert!(began.elapsed() < Duration::from_secs(600), "only {killed} workers could be killed");
        let forced = [
            "run",
            "pipeline.yaml",
            "--workers",
            "2",
            "--threads",
            "2",
            "--force",
            "latents",
            "--force",
            "text_embeddings",
        ];
        let mut command = lab.command(&[&forced[..], &settings[..]].concat());
        let mut run = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        while run.try_wait().unwrap().is_none() {
            sleep(Duration::from_millis(random.random_range(20..700)));
            let workers = workers_of(run.id());
            if workers.is_empty() {
                continue;
            }
            let worker = workers[random.random_range(0..workers.len())].to_string();
            let signal =
                |name: &str| Command::new("kill").args([name, &worker]).stderr(Stdio::null()).status().unwrap();
            if random.random_bool(0.2) {
                signal("-STOP");
                sleep(Duration::from_millis(200));
                signal("-CONT");
            } else if signal("-KILL").success() {
                killed += 1;
                // A run gives up after three deaths in a row without a row in between.
                sleep(Duration::from_millis(900));
            }
        }
        let ended = run.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&ended.stderr);
        // A slow machine may compute no row between three deaths: the run gives up, and the next one continues.
        if stderr.contains("times on the same rows") {
            continue;
        }
        assert!(ended.status.success(), "{stderr}");
        assert_eq!(lab.contents(".vlmdiff"), whole, "after {killed} kills");
    }
}
