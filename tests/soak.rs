//! Eight pipelines at once while programs are killed at random and a network fails: on a store behind a proxy that delays,
//! cuts and refuses, and on a store of this machine, by a cluster and by workers of their own. The tables must be those of
//! undisturbed runs, rows that were committed must not be computed again, and a clean-up must leave nothing behind.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant, SystemTime},
};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use vlmdiff::engine::store::{Entry, Event, Logged, Manifest};

use crate::{
    cluster::{Cluster, SOON},
    executors::workers_of,
    lab::{Lab, Process},
    proxy::{Client, Fault, Proxy, seeded},
    remote::{self, Server, environment},
};

/// Row-wise stages without libtorch.
const PICTURES: &str = "
tables:
  images: { stage: ingest, with: { dataset: synthetic, size: 32, synthetic: { classes: [tile, gear], seed: SEED, train: 30, test_good: 2, test_per_defect: 1 } } }
  captions: { stage: caption, from: [images], with: { model: template, text: 'NAME {class}' } }
  counts: { stage: sql, from: [captions], with: { query: 'select count(*) as n from captions' } }
";

/// A training of some seconds, and a network that is run row by row.
const TRAINING: &str = "
tables:
  images: { stage: ingest, with: { dataset: synthetic, size: 32, synthetic: { classes: [tile], seed: SEED, train: 12, test_good: 2, test_per_defect: 1 } } }
  autoencoder:
    stage: train_autoencoder
    from: [images]
    where: split = 'train'
    with:
      config: { block_out_channels: [8, 16, 16], layers_per_block: 1, norm_num_groups: 4 }
      training: { steps: 40, batch_size: 4, lr: 1.0e-3, ema_decay: 0.9, log_every: 20 }
  latents: { stage: encode_latents, from: [images, autoencoder] }
";

/// A method that is fitted on features of published weights.
const BANK: &str = "
tables:
  images: { stage: ingest, with: { dataset: synthetic, size: 32, synthetic: { classes: [gear], seed: SEED, train: 24, test_good: 2, test_per_defect: 2 } } }
  features: { stage: extract, from: [images], where: split = 'train', with: { extractor: efficientnet-lite0, layers: [4, 8], keep: 12 } }
  bank: { stage: fit, from: [features], with: { method: { patchcore: { ratio: 0.4 } } } }
  bank_maps: { stage: detect, from: [images, bank], where: split = 'test', with: { sigma: 1 } }
";

/// A store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// The store behind the failing network.
    Remote,
    /// The store in a folder, which has locks.
    Folder,
    /// The store of the undisturbed runs.
    Alone,
}

impl Place {
    fn address(self) -> &'static str {
        match self {
            Self::Remote => remote::STORE,
            Self::Folder => "folder",
            Self::Alone => "alone",
        }
    }
}

/// The programs that compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Cluster,
    Workers,
}

const PIPELINES: [(&str, &str, Place, By); 8] = [
    ("pictures_by_cluster", PICTURES, Place::Remote, By::Cluster),
    ("training_by_cluster", TRAINING, Place::Remote, By::Cluster),
    ("bank_by_cluster", BANK, Place::Remote, By::Cluster),
    ("pictures", PICTURES, Place::Remote, By::Workers),
    ("training", TRAINING, Place::Remote, By::Workers),
    ("bank", BANK, Place::Remote, By::Workers),
    ("folder_training_by_cluster", TRAINING, Place::Folder, By::Cluster),
    ("folder_bank", BANK, Place::Folder, By::Workers),
];

const EXECUTORS: usize = 3;
const WORKERS: u64 = 2;
const TASK_ROWS: u64 = 2;

/// The number of kills of a round, after which its runs may end.
const KILLS: u64 = 40;

/// The time for which an executor is paused: longer than the scheduler waits for it before it gives its task to another one.
const PAUSE: Duration = Duration::from_secs(8);

/// The time after which a round whose runs have not ended has hung.
const LONGEST: Duration = Duration::from_secs(900);

/// Errors by which a driver ends where it promises no more: three workers in a row died in a table without a row in between, or
/// the scheduler was away when the driver started.
const GIVEN_UP: [&str; 2] = ["times on the same rows", "does not answer"];

/// Returns a schedule of faults: one request in 30 fails in some way, and one in 8 is answered late.
fn rough(seed: u64) -> impl Fn(u64, &crate::proxy::Seen) -> Option<Fault> {
    let faults = seeded(seed, 30);
    let late = Fault { reaches: true, client: Client::Late };
    move |number, seen| faults(number, seen).or(number.is_multiple_of(8).then_some(late))
}

/// A run that is started again until it is done.
struct Driver {
    name: &'static str,
    place: Place,
    by: By,
    /// The program; `None` when it is done.
    process: Option<Process>,
    /// The events of each attempt.
    logs: Vec<PathBuf>,
}

impl Driver {
    fn restarts(&self) -> u64 {
        self.logs.len() as u64 - 1
    }

    /// Returns the events of each attempt. The last line of a program that was killed may be cut short.
    fn events(&self) -> Vec<Vec<Event>> {
        let of = |log: &PathBuf| {
            let text = fs::read_to_string(log).unwrap();
            text.lines().filter_map(|line| Some(serde_json::from_str::<Logged>(line).ok()?.event)).collect()
        };
        self.logs.iter().map(of).collect()
    }
}

/// The kills of a round, by kind of program.
#[derive(Default)]
struct Kills {
    schedulers: u64,
    executors: u64,
    /// Executors that were paused, and went on with a task that another one had been given.
    pauses: u64,
    workers: u64,
    drivers: u64,
}

impl Kills {
    fn sum(&self) -> u64 {
        self.schedulers + self.executors + self.pauses + self.workers + self.drivers
    }
}

/// Eight runs with new stores, and the programs that they need.
struct Round {
    seed: u64,
    random: ChaCha8Rng,
    executors: Vec<Process>,
    /// The executor that is paused, and since when.
    paused: Option<(usize, Instant)>,
    drivers: Vec<Driver>,
    cluster: Cluster,
    proxy: Proxy,
    server: Server,
    kills: Kills,
}

impl Round {
    fn new(seed: u64) -> Self {
        let lab = Lab::empty();
        for ((name, text, ..), number) in PIPELINES.into_iter().zip(0..) {
            // Pipelines have no rows in common, of which those in a store without locks could be computed twice.
            let text = text.replace("SEED", &(8 * seed + number).to_string()).replace("NAME", name);
            lab.write(&format!("{name}.yaml"), &format!("name: {name}{text}"));
        }
        let server = Server::of_two_days_ago();
        let proxy = Proxy::start(server.address, remote::HANG, Box::new(rough(seed)));
        let cluster = Cluster::with(lab, environment(proxy.address), &[]);
        let executors = (0..EXECUTORS).map(|_| Self::executor(&cluster)).collect();
        let random = ChaCha8Rng::seed_from_u64(seed);
        let drivers = PIPELINES.map(|(name, _, place, by)| Driver { name, place, by, process: None, logs: Vec::new() });
        let paused = None;
        Self {
            seed,
            random,
            executors,
            paused,
            drivers: drivers.into(),
            cluster,
            proxy,
            server,
            kills: Kills::default(),
        }
    }

    /// Starts an executor, whose networks have one thread: sums by two threads differ in the last digits.
    fn executor(cluster: &Cluster) -> Process {
        cluster.executor_with(&["--threads", "1"])
    }

    /// Returns a run of a pipeline with the settings that make equal results.
    fn run(&self, name: &str, place: Place, more: &[&str]) -> Command {
        let (pipeline, rows) = (format!("{name}.yaml"), TASK_ROWS.to_string());
        let fixed = ["run", &pipeline, "--store", place.address(), "--batch-size", "1", "--task-rows", &rows];
        self.cluster.command(&[&fixed[..], &["--log-format", "json"], more].concat())
    }

    /// Makes the tables of all pipelines without disturbance.
    fn run_alone(&self) {
        for (name, ..) in PIPELINES {
            let ended = self.run(name, Place::Alone, &["--threads", "1"]).output().unwrap();
            assert!(ended.status.success(), "{name}: {}", String::from_utf8_lossy(&ended.stderr));
        }
    }

    fn start(&mut self, at: usize) {
        let Driver { name, place, by, ref logs, .. } = self.drivers[at];
        let log = self.cluster.lab.path(&format!("{name}.{}.jsonl", logs.len()));
        let workers = WORKERS.to_string();
        let by = match by {
            By::Cluster => ["--cluster", &self.cluster.url, "--save-every", "1"].to_vec(),
            By::Workers => ["--workers", &workers, "--threads", &workers, "--save-every", "1"].to_vec(),
        };
        let mut command = self.run(name, place, &by);
        let process = command.stdout(Stdio::null()).stderr(File::create(&log).unwrap()).spawn().unwrap();
        self.drivers[at].process = Some(Process(process));
        self.drivers[at].logs.push(log);
    }

    /// Runs all pipelines, and kills programs until all runs are done.
    fn disturb(&mut self) {
        (0..self.drivers.len()).for_each(|at| self.start(at));
        let began = Instant::now();
        while self.drivers.iter().any(|driver| driver.process.is_some()) {
            assert!(began.elapsed() < LONGEST, "seed {}: {:?} do not end", self.seed, self.open());
            sleep(Duration::from_millis(self.random.random_range(50..800)));
            self.look();
            if self.kills.sum() < KILLS {
                self.kill();
            }
        }
    }

    /// Returns the names of the runs that are not done.
    fn open(&self) -> Vec<&str> {
        self.drivers.iter().filter(|driver| driver.process.is_some()).map(|driver| driver.name).collect()
    }

    /// Lets a paused executor go on, starts drivers again that have given up, and checks that no program ended for another reason.
    fn look(&mut self) {
        if let Some((at, _)) = self.paused.take_if(|(_, since)| since.elapsed() > PAUSE) {
            self.executors[at].signal("-CONT");
        }
        for at in 0..self.drivers.len() {
            let driver = &mut self.drivers[at];
            let Some(status) = driver.process.as_mut().and_then(|process| process.0.try_wait().unwrap()) else {
                continue;
            };
            driver.process = None;
            if !status.success() {
                let said = fs::read_to_string(driver.logs.last().unwrap()).unwrap();
                let error = said.lines().find(|line| line.contains(r#""event":"error""#)).unwrap_or(&said);
                let is_given_up = GIVEN_UP.iter().any(|reason| error.contains(reason));
                assert!(is_given_up, "seed {}: {} ended with {status}: {error}", self.seed, driver.name);
                self.start(at);
            }
        }
        for process in self.executors.iter_mut().chain([&mut self.cluster.scheduler]) {
            let ended = process.0.try_wait().unwrap();
            assert!(ended.is_none(), "seed {}: a program of the cluster ended by itself: {ended:?}", self.seed);
        }
    }

    /// Kills one program, and starts it again unless it is a worker; or pauses an executor.
    fn kill(&mut self) {
        match self.random.random_range(0..9) {
            0 => {
                self.cluster.kill_and_start_scheduler();
                self.kills.schedulers += 1;
            }
            1 | 2 => {
                let at = self.random.random_range(0..EXECUTORS);
                if self.paused.is_none() && self.random.random_bool(0.3) {
                    self.executors[at].signal("-STOP");
                    self.paused = Some((at, Instant::now()));
                    self.kills.pauses += 1;
                    return;
                }
                self.paused.take_if(|(paused, _)| *paused == at);
                self.executors[at].kill();
                self.executors[at] = Self::executor(&self.cluster);
                self.kills.executors += 1;
            }
            3..=5 => {
                let runs = self.drivers.iter().filter_map(|driver| driver.process.as_ref());
                let workers: Vec<u32> = runs.chain(&self.executors).flat_map(|p| workers_of(p.0.id())).collect();
                if workers.is_empty() {
                    return;
                }
                let worker = workers[self.random.random_range(0..workers.len())].to_string();
                let killed = Command::new("kill").args(["-KILL", &worker]).stderr(Stdio::null()).status().unwrap();
                // The worker may have ended meanwhile.
                self.kills.workers += u64::from(killed.success());
            }
            _ => {
                let running: Vec<usize> =
                    (0..self.drivers.len()).filter(|at| self.drivers[*at].process.is_some()).collect();
                let Some(at) = running.get(self.random.random_range(0..running.len().max(1))).copied() else { return };
                let mut process = self.drivers[at].process.take().unwrap();
                _ = process.0.kill();
                // It may have ended before.
                if process.0.wait().unwrap().code().is_none() {
                    self.start(at);
                    self.kills.drivers += 1;
                } else {
                    self.drivers[at].process = Some(process);
                }
            }
        }
    }

    /// Returns the objects below a folder of a store, by their names in the store.
    fn objects(&self, place: Place, folder: &str) -> Vec<(String, Vec<u8>)> {
        if place == Place::Remote {
            let prefix = "some/prefix/";
            let found = self.server.objects(folder).into_iter();
            return found.map(|(name, bytes)| (name.strip_prefix(prefix).unwrap().to_owned(), bytes)).collect();
        }
        let root = self.cluster.lab.path(place.address());
        let below = root.join(folder);
        let paths = if below.is_dir() { remote::files(&below) } else { Vec::new() };
        let name = |path: &Path| path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        let mut found: Vec<_> = paths.iter().map(|path| (name(path), fs::read(path).unwrap())).collect();
        found.sort();
        found
    }

    /// Returns the newest version of every table, by pipeline and table.
    fn tables(&self, place: Place) -> BTreeMap<(String, String), Manifest> {
        let objects = self.objects(place, "published").into_iter().filter(|(name, _)| name.ends_with(".json"));
        let versions = objects.map(|(name, bytes)| {
            let names: Vec<&str> = name.split('/').collect();
            ((names[1].to_owned(), names[2].to_owned()), serde_json::from_slice(&bytes).unwrap())
        });
        // Versions come in order, and the last one stays.
        versions.collect()
    }

    /// Checks that all tables are those of the undisturbed runs. Returns their number.
    fn check_tables(&self) -> usize {
        let contents = |tables: BTreeMap<_, Manifest>| -> BTreeMap<(String, String), String> {
            tables.into_iter().map(|(name, manifest)| (name, manifest.content.to_string())).collect()
        };
        let mut found = contents(self.tables(Place::Remote));
        found.extend(contents(self.tables(Place::Folder)));
        assert_eq!(found, contents(self.tables(Place::Alone)), "seed {}", self.seed);
        found.len()
    }

    /// Checks that committed rows were not computed again. Returns the number of rows that were computed twice.
    fn check_work(&self) -> u64 {
        let mut twice = BTreeMap::new();
        let mut sum = 0;
        for place in [Place::Remote, Place::Folder] {
            // Pipelines with a stage in common have their rows in the same records.
            let mut by_stage = BTreeMap::<String, Vec<(String, String, u64)>>::new();
            for ((pipeline, table), manifest) in self.tables(place).into_iter().filter(|(_, manifest)| manifest.keyed) {
                by_stage.entry(manifest.made.fingerprint.to_string()).or_default().push((
                    pipeline,
                    table,
                    manifest.rows,
                ));
            }
            for (stage, tables) in by_stage {
                let rows: u64 = tables.iter().map(|(.., rows)| rows).sum();
                let most: u64 =
                    tables.iter().map(|(pipeline, _, rows)| self.may_be_computed_twice(pipeline, *rows)).sum();
                let found = self.computed_twice(place, &stage, rows);
                assert!(
                    found <= most,
                    "seed {}: {found} rows were computed twice, {most} at most: {tables:?}",
                    self.seed
                );
                sum += found;
                twice.extend(tables.into_iter().map(|(pipeline, table, _)| ((pipeline, table), found)));
            }
        }
        self.drivers.iter().for_each(|driver| self.check_plans(driver, &twice));
        sum
    }

    /// Returns how many rows of a stage, which has this number of rows, were computed more than once.
    fn computed_twice(&self, place: Place, stage: &str, rows: u64) -> u64 {
        let mut times = HashMap::<_, u64>::new();
        // Records with another ending are of rows that were rewritten, to merge small parts.
        let records = self.objects(place, &format!("computed/{stage}"));
        for (name, record) in records.into_iter().filter(|(name, _)| name.ends_with(".rows")) {
            let entry = Entry::from_bytes(&record).unwrap_or_else(|| panic!("{name} is no record"));
            entry.keys.iter().for_each(|key| *times.entry(*key).or_default() += 1);
        }
        assert_eq!(times.len() as u64, rows, "seed {}: {place:?}: {stage}", self.seed);
        times.values().map(|times| times - 1).sum()
    }

    /// Returns how many rows of a table of this number of rows may have been computed twice.
    ///
    /// A task at hand is done twice where its worker outlives the driver. On a cluster it is where it is handed out again: because
    /// its executor or the scheduler was killed or is silent, or because its driver was killed, which executors notice late.
    fn may_be_computed_twice(&self, pipeline: &str, rows: u64) -> u64 {
        let driver = self.drivers.iter().find(|driver| driver.name == pipeline).unwrap();
        let is_handed_out =
            |event: &&Event| matches!(event, Event::Log { message, .. } if message.contains("; handing out "));
        let handed_out = driver.events().iter().flatten().filter(is_handed_out).count() as u64;
        let disturbances = self.kills.schedulers + self.kills.executors + self.kills.pauses + handed_out;
        match driver.by {
            By::Workers => WORKERS * TASK_ROWS * driver.restarts(),
            By::Cluster => rows * driver.restarts() + EXECUTORS as u64 * TASK_ROWS * disturbances,
        }
    }

    /// Checks that no attempt of a run planned to compute what an earlier one had heard to be committed. Where rows were computed
    /// `twice`, both may have been heard of.
    fn check_plans(&self, driver: &Driver, twice: &BTreeMap<(String, String), u64>) {
        let (name, seed) = (driver.name, self.seed);
        let mut committed = BTreeMap::<String, u64>::new();
        for events in driver.events() {
            let before = committed.clone();
            for event in events {
                match event {
                    Event::TableStarted { table, stale, rows, .. } => {
                        let known = before.get(&table).copied().unwrap_or_default();
                        let twice = twice.get(&(name.to_owned(), table.clone())).copied().unwrap_or_default();
                        // A table that is made as a whole has no number of rows before.
                        let is_kept = if rows == 0 { known == 0 || stale == 0 } else { stale + known <= rows + twice };
                        assert!(is_kept, "seed {seed}: {name}: {stale} of {rows} rows of {table}, {known} were there");
                    }
                    Event::PartCommitted { table, rows, .. } => *committed.entry(table).or_default() += rows,
                    _ => {}
                }
            }
        }
    }

    /// Ends the executors, waits for the workers of what was killed, and makes everything in the folder as old as a clean-up wants
    /// it.
    fn come_to_rest(&mut self) {
        self.executors.clear();
        let (folder, began) = (self.cluster.lab.path("").canonicalize().unwrap(), Instant::now());
        let is_worker = |process: fs::DirEntry| {
            let link = |name: &str| fs::read_link(process.path().join(name)).unwrap_or_default();
            link("exe").ends_with("vlmdiff-worker") && link("cwd") == folder
        };
        while fs::read_dir("/proc").unwrap().any(|process| is_worker(process.unwrap())) {
            assert!(began.elapsed() < SOON, "seed {}: a worker outlives its driver", self.seed);
            sleep(Duration::from_millis(100));
        }
        let old = SystemTime::now() - Duration::from_secs(2 * 86_400);
        for path in remote::files(&self.cluster.lab.path(Place::Folder.address())) {
            File::options().append(true).open(path).unwrap().set_modified(old).unwrap();
        }
    }

    /// Cleans a store up, and checks that it has the published tables and nothing else.
    fn check_clean_up(&self, place: Place) {
        let ended = self.cluster.command(&["gc", "--keep", "1", "--store", place.address()]).output().unwrap();
        assert!(ended.status.success(), "{place:?}: {}", String::from_utf8_lossy(&ended.stderr));
        let about = format!("seed {}, {place:?}: {}", self.seed, String::from_utf8_lossy(&ended.stdout));
        let names: Vec<String> = self.objects(place, "").into_iter().map(|(name, _)| name).collect();
        let is_left = |name: &&String| {
            let leftovers = ["jobs/", "unfinished/", "state/", "locks/"];
            leftovers.iter().any(|folder| name.starts_with(folder)) || name.contains('#')
        };
        assert_eq!(names.iter().filter(is_left).collect::<Vec<_>>(), [""; 0], "{about}");
        let tables = self.tables(place);
        let reached: BTreeSet<String> =
            tables.values().flat_map(Manifest::objects).map(|digest| digest.to_string()).collect();
        let stems = |folder: &str| {
            let stem = |name: &String| Path::new(name).file_stem().unwrap().to_str().unwrap().to_owned();
            names.iter().filter(|name| name.starts_with(folder)).map(stem).collect::<BTreeSet<_>>()
        };
        assert_eq!(&stems("parts/") | &stems("blobs/"), reached, "{about}");
    }

    /// Checks that another run finds every table and every byte of it.
    fn check_that_nothing_is_left_to_do(&self) {
        for driver in &self.drivers {
            let ended = self.run(driver.name, driver.place, &["--verify"]).output().unwrap();
            let said = String::from_utf8_lossy(&ended.stderr);
            assert!(ended.status.success() && !said.contains("table_started"), "{}: {said}", driver.name);
        }
    }
}

/// A round that ends well, in words.
fn round(seed: u64) -> String {
    let began = Instant::now();
    let mut round = Round::new(seed);
    round.run_alone();
    round.disturb();
    let tables = round.check_tables();
    let twice = round.check_work();
    round.come_to_rest();
    [Place::Remote, Place::Folder].into_iter().for_each(|place| round.check_clean_up(place));
    round.check_that_nothing_is_left_to_do();
    round.check_tables();
    let Kills { schedulers, executors, pauses, workers, drivers } = round.kills;
    format!(
        "seed {seed}: {tables} tables are right after {:.0} s; killed {schedulers} schedulers, {executors} executors, {workers} \
         workers, {drivers} drivers, paused {pauses} executors; {} requests failed; {twice} rows were computed twice",
        began.elapsed().as_secs_f64(),
        round.proxy.faults().iter().filter(|fault| fault.client != Client::Late).count(),
    )
}

/// Makes rounds with new seeds for `SOAK_SECONDS`. `VLMDIFF_SEED=N` repeats one.
#[test]
#[ignore = "takes twenty minutes"]
fn kills_and_faults_change_no_table_and_leave_nothing_behind() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = number("VLMDIFF_SEED") {
        println!("{}", round(seed));
        return;
    }
    let (began, longest) = (Instant::now(), Duration::from_secs(number("SOAK_SECONDS").unwrap_or(1200)));
    let first = u64::from(rand::random::<u32>());
    let (mut rounds, mut seed) = (0, first);
    while began.elapsed() < longest {
        println!("{}", round(seed));
        (rounds, seed) = (rounds + 1, seed + 1);
    }
    println!("{rounds} rounds in {:.0} s", began.elapsed().as_secs_f64());
}
