//! Runs on a cluster: a scheduler and executors as processes, on a store that they share. Whatever is killed, paused or cut,
//! the tables must be those of one machine.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::sleep,
    time::{Duration, Instant},
};

use vlmdiff::engine::store::Event;

use crate::{
    lab::{LIGHT, Lab, Process, TOY, computed, project},
    proxy::{Proxy, seeded},
    remote::{Server, environment, python},
};

/// The time in which something has to happen that does not depend on a time-out.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// Seconds of silence after which the scheduler gives a task to another executor.
const LOST_AFTER: &str = "6";

/// Pictures that an executor generates without libtorch, a task each.
const PICTURES: &str = "
name: pictures
tables:
  images: { stage: ingest, with: { dataset: synthetic, size: 32, synthetic: { classes: [tile, gear], train: 60, test_good: 2, test_per_defect: 1 } } }
  counts: { stage: sql, from: [images], with: { query: 'select count(*) as n from images' } }
";

/// A training that takes some seconds, in a worker of an executor.
const TRAINING: &str = "
name: training
tables:
  images: { stage: ingest, with: { dataset: synthetic, size: 32, synthetic: { classes: [tile], train: 12, test_good: 1, test_per_defect: 1 } } }
  autoencoder:
    stage: train_autoencoder
    from: [images]
    where: split = 'train'
    with:
      config: { block_out_channels: [8, 16, 16], layers_per_block: 1, norm_num_groups: 4 }
      training: { steps: 100, batch_size: 4, lr: 1.0e-3, ema_decay: 0.9, log_every: 20 }
";

/// Starts a program, and returns it with the first line that contains a text. What it says later is read and dropped.
fn started(mut command: Command, out: bool, text: &str) -> (Process, String) {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let pipe: Box<dyn Read + Send> = match out {
        true => Box::new(child.stdout.take().unwrap()),
        false => Box::new(child.stderr.take().unwrap()),
    };
    let process = Process(child);
    let (say, heard) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            // The test has ended.
            _ = say.send(line);
        }
    });
    let mut said = Vec::new();
    let began = Instant::now();
    while let Ok(line) = heard.recv_timeout(SOON.saturating_sub(began.elapsed())) {
        if line.contains(text) {
            return (process, line);
        }
        said.push(line);
    }
    panic!("no `{text}` in {said:#?}");
}

/// A lab with a scheduler.
pub(crate) struct Cluster {
    pub(crate) lab: Lab,
    pub(crate) scheduler: Process,
    pub(crate) url: String,
    environment: Vec<(String, String)>,
}

impl Cluster {
    fn new(lab: Lab) -> Self {
        Self::with(lab, Vec::new(), &[])
    }

    pub(crate) fn with(lab: Lab, environment: Vec<(String, String)>, security: &[&str]) -> Self {
        let (scheduler, url) = Self::scheduler(&lab, "127.0.0.1:0", security);
        Self { lab, scheduler, url, environment }
    }

    fn scheduler(lab: &Lab, address: &str, security: &[&str]) -> (Process, String) {
        let arguments = ["cluster", "scheduler", "--bind", address, "--lost-after", LOST_AFTER];
        let command = lab.command(&[&arguments, security].concat());
        let (scheduler, line) = started(command, true, "listening on ");
        (scheduler, line.split_once("listening on ").unwrap().1.to_owned())
    }

    /// Kills the scheduler, and starts it again at the same address.
    pub(crate) fn kill_and_start_scheduler(&mut self) {
        self.scheduler.kill();
        let address = self.url.trim_start_matches("http://").to_owned();
        self.scheduler = Self::scheduler(&self.lab, &address, &[]).0;
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.lab.command(arguments);
        command.envs(self.environment.iter().cloned());
        command
    }

    fn executor_command(&self, more: &[&str]) -> Command {
        self.command(&[&["cluster", "executor", "--scheduler", &self.url, "--device", "cpu"], more].concat())
    }

    /// Starts an executor with more arguments.
    pub(crate) fn executor_with(&self, more: &[&str]) -> Process {
        started(self.executor_command(more), false, "takes tasks of").0
    }

    fn executor(&self) -> Process {
        self.executor_with(&[])
    }

    fn executors(&self, count: usize) -> Vec<Process> {
        (0..count).map(|_| self.executor()).collect()
    }

    fn run_command(&self, more: &[&str]) -> Command {
        let mut command = self.command(&[&["run", "pipeline.yaml", "--quiet", "--cluster", &self.url], more].concat());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, more: &[&str]) -> Vec<Event> {
        let output = self.run_command(more).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self.lab.events(".vlmdiff")
    }

    /// Starts a run, and returns it when the predicate is true of the objects of its jobs.
    fn run_until(&self, more: &[&str], is_there: impl Fn(&[PathBuf]) -> bool) -> Process {
        let mut run = Process(self.run_command(more).spawn().unwrap());
        let began = Instant::now();
        while !is_there(&self.jobs()) {
            if run.0.try_wait().unwrap().is_some() {
                panic!("the run ended before: {}", stderr(run.0.stderr.as_mut()));
            }
            assert!(began.elapsed() < SOON, "it does not happen: {:#?}", self.jobs());
            sleep(Duration::from_millis(2));
        }
        run
    }

    /// Waits for a run, which must succeed, and returns its events.
    fn ends(&self, mut run: Process) -> Vec<Event> {
        let began = Instant::now();
        while run.0.try_wait().unwrap().is_none() {
            assert!(began.elapsed() < 3 * SOON, "the run does not end");
            sleep(Duration::from_millis(20));
        }
        assert!(run.0.wait().unwrap().success(), "{}", stderr(run.0.stderr.as_mut()));
        self.lab.events(".vlmdiff")
    }

    /// Returns the objects of jobs in the store.
    fn jobs(&self) -> Vec<PathBuf> {
        let list = |folder: &PathBuf| -> Vec<PathBuf> {
            fs::read_dir(folder)
                .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
                .unwrap_or_default()
        };
        let jobs = list(&self.lab.path(".vlmdiff/jobs"));
        let folders = jobs.iter().flat_map(|job| [job.clone(), job.join("said"), job.join("answers")]);
        // A name with `#` is that of a file that is being written.
        folders
            .flat_map(|folder| list(&folder))
            .filter(|path| path.is_file() && !path.to_string_lossy().contains('#'))
            .collect()
    }

    /// Checks that the tables are those of a run on this machine.
    fn is_as_on_one_machine(&self, more: &[&str]) {
        self.lab.run(&[&["--store", "alone", "--threads", "1"], more].concat());
        assert_eq!(self.lab.contents(".vlmdiff"), self.lab.contents("alone"));
        assert!(self.jobs().is_empty(), "a job is left: {:?}", self.jobs());
    }
}

fn stderr(pipe: Option<&mut std::process::ChildStderr>) -> String {
    let mut text = String::new();
    pipe.map(|pipe| pipe.read_to_string(&mut text));
    text
}

fn lab(pipeline: &str) -> Lab {
    let lab = Lab::empty();
    lab.write("pipeline.yaml", pipeline);
    lab
}

fn count(jobs: &[PathBuf], folder: &str) -> usize {
    jobs.iter().filter(|path| path.parent().unwrap().ends_with(folder)).count()
}

/// Returns the executors that have reported or answered, by their process.
fn authors(jobs: &[PathBuf], folder: &str) -> Vec<u32> {
    let of = |path: &PathBuf| {
        let text = fs::read_to_string(path).ok()?;
        let value: serde_json::Value = serde_json::from_str(&text).ok()?;
        let by = value.pointer("/said/by").or(value.pointer("/by"))?.as_str()?.to_owned();
        by.rsplit_once(':')?.1.parse().ok()
    };
    jobs.iter().filter(|path| path.parent().unwrap().ends_with(folder)).filter_map(of).collect()
}

fn commits(events: &[Event]) -> usize {
    events.iter().filter(|event| matches!(event, Event::PartCommitted { .. })).count()
}

fn says(events: &[Event], text: &str) -> bool {
    events.iter().any(|event| matches!(event, Event::Log { message, .. } if message.contains(text)))
}

#[test]
fn cluster_makes_the_same_tables_as_one_machine() {
    let cluster = Cluster::new(Lab::new(TOY));
    let _executors = cluster.executors(2);
    let settings = ["--batch-size", "1", "--task-rows", "2", "--until", "bank_maps"];
    let events = cluster.run(&settings);
    assert!(says(&events, "went to the cluster in"));
    cluster.is_as_on_one_machine(&settings);
    // A second run has nothing to do, and submits nothing.
    assert_eq!(computed(&cluster.run(&settings)), []);
}

#[test]
fn work_is_shared_and_an_executor_that_died_before_it_is_not_waited_for() {
    let cluster = Cluster::new(lab(PICTURES));
    let (mut dead, executors) = (cluster.executor(), cluster.executors(2));
    dead.kill();
    let run = cluster.run_until(&["--task-rows", "1"], |jobs| {
        let authors = authors(jobs, "answers");
        executors.iter().all(|executor| authors.contains(&executor.0.id()))
    });
    cluster.ends(run);
    cluster.is_as_on_one_machine(&[]);
}

/// Starts a run of the training, and returns it with the executor that trains, when it has reported.
fn training(cluster: &Cluster, executors: &mut Vec<Process>, more: &[&str]) -> (Process, Process) {
    let trains = |said: &PathBuf| {
        let job = said.ancestors().nth(2).unwrap().join("job");
        fs::read_to_string(job).is_ok_and(|job| job.contains("train_autoencoder"))
    };
    let of_training = |jobs: &[PathBuf]| jobs.iter().filter(|path| trains(path)).cloned().collect::<Vec<_>>();
    let run = cluster.run_until(more, |jobs| count(&of_training(jobs), "said") > 0);
    let author = authors(&of_training(&cluster.jobs()), "said")[0];
    let at = executors.iter().position(|executor| executor.0.id() == author).unwrap();
    (run, executors.remove(at))
}

#[test]
#[ignore = "waits until an executor counts as lost"]
fn executor_killed_in_its_task_costs_that_task_at_most() {
    let cluster = Cluster::new(lab(TRAINING));
    let mut executors = cluster.executors(2);
    let (run, mut trains) = training(&cluster, &mut executors, &["--save-every", "0"]);
    let (state, began) = (cluster.lab.path(".vlmdiff/state"), Instant::now());
    // A name with another ending is that of a file that is being written.
    let is_saved = |entry: fs::DirEntry| entry.path().extension().is_some_and(|ending| ending == "bin");
    while !fs::read_dir(&state).is_ok_and(|mut entries| entries.any(|entry| entry.is_ok_and(is_saved))) {
        assert!(began.elapsed() < SOON, "the training saves nothing");
        sleep(Duration::from_millis(2));
    }
    trains.kill();
    let events = cluster.ends(run);
    assert!(says(&events, "goes on from step"), "the other executor continues");
    cluster.is_as_on_one_machine(&[]);
}

#[test]
#[ignore = "waits until an executor counts as lost"]
fn task_that_runs_twice_changes_nothing() {
    let cluster = Cluster::new(lab(TRAINING));
    let mut executors = cluster.executors(2);
    let (run, paused) = training(&cluster, &mut executors, &["--save-every", "3600"]);
    paused.signal("-STOP");
    cluster.ends(run);
    // It goes on with the task, which the other has done meanwhile, and has nowhere to answer.
    paused.signal("-CONT");
    sleep(Duration::from_secs(3));
    cluster.is_as_on_one_machine(&[]);
    assert_eq!(computed(&cluster.run(&[])), []);
}

#[test]
fn executor_killed_after_its_tasks_does_not_take_them_along() {
    let cluster = Cluster::new(lab(PICTURES));
    let mut executors = cluster.executors(2);
    let run = cluster.run_until(&["--task-rows", "1"], |jobs| count(jobs, "answers") > 8);
    executors[0].kill();
    let events = cluster.ends(run);
    let rows = computed(&events)[0].1 as usize;
    // Every task has committed one part; the one that was killed in its task may have committed and not answered.
    assert!((rows..=rows + 2).contains(&commits(&events)), "{} commits of {rows} rows", commits(&events));
    cluster.is_as_on_one_machine(&[]);
}

#[test]
fn executor_that_is_asked_to_end_saves_what_its_task_has() {
    let cluster = Cluster::new(lab(TRAINING));
    let mut executors = cluster.executors(1);
    let (run, mut trains) = training(&cluster, &mut executors, &["--save-every", "3600"]);
    trains.signal("-TERM");
    assert!(trains.0.wait().unwrap().success());
    let state = fs::read_dir(cluster.lab.path(".vlmdiff/state")).unwrap().count();
    assert_eq!(state, 1, "the training is saved at the request alone");
    let _next = cluster.executor();
    let events = cluster.ends(run);
    assert!(says(&events, "goes on from step"), "the next executor continues");
    cluster.is_as_on_one_machine(&[]);
}

#[test]
fn scheduler_that_was_killed_and_started_again_goes_on() {
    let mut cluster = Cluster::new(lab(PICTURES));
    let _executors = cluster.executors(2);
    let run = cluster.run_until(&["--task-rows", "1"], |jobs| count(jobs, "answers") > 8);
    cluster.kill_and_start_scheduler();
    let events = cluster.ends(run);
    assert!(
        says(&events, "the scheduler was started again and has forgotten its tasks") || computed(&events).len() == 2
    );
    cluster.is_as_on_one_machine(&[]);
}

#[test]
fn rows_of_a_driver_that_was_killed_are_not_computed_again() {
    let cluster = Cluster::new(lab(PICTURES));
    let executors = cluster.executors(2);
    let mut run = cluster.run_until(&["--task-rows", "1"], |jobs| count(jobs, "answers") > 20);
    run.kill();
    let events = cluster.run(&["--task-rows", "1"]);
    let stale = events.iter().find_map(|event| match event {
        Event::TableStarted { stale, rows, .. } => Some((*stale, *rows)),
        _ => None,
    });
    let (stale, rows) = stale.unwrap();
    assert!(stale + 20 <= rows, "{stale} of {rows} rows are computed again");
    // They still answer tasks of the killed driver.
    drop(executors);
    let left = fs::read_dir(cluster.lab.path(".vlmdiff/jobs")).unwrap().count();
    assert_eq!(left, 1, "the job of the killed driver stays until a clean-up");
    fs::remove_dir_all(cluster.lab.path(".vlmdiff/jobs")).unwrap();
    cluster.is_as_on_one_machine(&[]);
}

#[test]
fn interrupted_run_stops_its_executors_and_keeps_what_they_had() {
    let cluster = Cluster::new(lab(TRAINING));
    let mut executors = cluster.executors(1);
    let (mut run, _trains) = training(&cluster, &mut executors, &["--save-every", "3600"]);
    run.signal("-INT");
    let ended = run.0.wait().unwrap();
    assert_eq!(ended.code(), Some(130), "{}", stderr(run.0.stderr.as_mut()));
    assert_eq!(fs::read_dir(cluster.lab.path(".vlmdiff/state")).unwrap().count(), 1, "the training is saved");
    assert!(cluster.jobs().is_empty(), "{:?}", cluster.jobs());
    assert!(says(&cluster.run(&[]), "goes on from step"), "the executor is free, and continues");
    cluster.is_as_on_one_machine(&[]);
}

fn refused(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    said
}

#[test]
fn executor_of_another_build_is_refused() {
    let cluster = Cluster::new(lab(PICTURES));
    // The same driver beside another worker is another build.
    let folder = cluster.lab.path("other");
    fs::create_dir(&folder).unwrap();
    let program = folder.join("vlmdiff");
    fs::copy(env!("CARGO_BIN_EXE_vlmdiff"), &program).unwrap();
    fs::write(folder.join("vlmdiff-worker"), "another build").unwrap();
    let like = cluster.executor_command(&[]);
    let mut command = Command::new(program);
    command.args(like.get_args()).current_dir(like.get_current_dir().unwrap());
    command.envs(like.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let (_other, line) = started(command, false, "takes tasks of");
    let other = line.rsplit_once("as build ").unwrap().1.to_owned();
    let said = refused(&cluster.run_command(&[]).output().unwrap());
    assert!(said.contains(&format!("is of build {other}, and the driver of build ")), "{said}");
    assert!(said.contains("start executors from the files that the driver has"), "{said}");
}

#[test]
fn secrets_stay_in_the_environments_of_their_machines() {
    let pipeline =
        LIGHT.replace("model: dataset, default: nothing", "model: template, text: 'a ${CLUSTER_WORD} {class}'");
    let cluster = Cluster::new(Lab::new(&pipeline));
    let secret = ("CLUSTER_WORD", "hush-hush-7");
    let without = cluster.executor();
    let said = refused(&cluster.run_command(&[]).env(secret.0, secret.1).output().unwrap());
    assert!(said.contains("lacks the value that the driver has for CLUSTER_WORD"), "{said}");
    assert!(!said.contains(secret.1), "{said}");
    drop(without);
    let mut command = cluster.executor_command(&[]);
    command.env(secret.0, secret.1);
    let _with = started(command, false, "takes tasks of").0;
    let is_free_of_secrets = |jobs: &[PathBuf]| {
        let texts: Vec<String> = jobs.iter().map(|path| fs::read_to_string(path).unwrap_or_default()).collect();
        assert!(texts.iter().all(|text| !text.contains(secret.1)), "{texts:#?}");
        jobs.iter().any(|path| path.ends_with("job"))
    };
    let mut run = cluster.run_command(&["--task-rows", "1"]);
    let mut run = Process(run.env(secret.0, secret.1).spawn().unwrap());
    let began = Instant::now();
    while !is_free_of_secrets(&cluster.jobs()) {
        assert!(began.elapsed() < SOON && run.0.try_wait().unwrap().is_none());
    }
    cluster.ends(run);
    let captions = cluster.lab.sql(".vlmdiff", "select count(*) from captions where caption like 'a hush-hush-7 %'");
    assert_eq!(captions, ["8"]);
}

#[test]
fn cluster_without_an_answer_or_a_sensible_address_is_named() {
    let lab = lab(PICTURES);
    let ended = lab.vlmdiff(&["run", "pipeline.yaml", "--cluster", "http://127.0.0.1:1"]);
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("http://127.0.0.1:1 does not answer: Connection refused"), "{}", ended.stderr);
    assert!(ended.stderr.contains("`vlmdiff cluster scheduler` starts one"), "{}", ended.stderr);
    let ended = lab.vlmdiff(&["cluster", "executor", "--scheduler", "localhost:50050", "--device", "cpu"]);
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("http://HOST:50050"), "{}", ended.stderr);
}

/// Writes certificates of an authority, of the nodes, and of a stranger.
fn certificates(lab: &Lab) {
    let script = project().join("tests/certificates.py");
    let ended = python().arg(script).arg(lab.path("")).output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    lab.write("token", "0123456789abcdef-of-the-cluster\n");
    lab.write("wrong", "another-token-of-16-and-more\n");
}

const TLS: [&str; 6] = ["--tls-ca", "ca.pem", "--tls-cert", "node.pem", "--tls-key", "node.key"];
const STRANGER: [&str; 6] = ["--tls-ca", "ca.pem", "--tls-cert", "stranger.pem", "--tls-key", "stranger.key"];

#[test]
fn nodes_with_certificate_and_token_are_accepted_and_others_are_refused() {
    let lab = lab(PICTURES);
    certificates(&lab);
    let closed = [&TLS[..], &["--token-file", "token"]].concat();
    let cluster = Cluster::with(lab, Vec::new(), &closed);
    assert!(cluster.url.starts_with("https://"), "{}", cluster.url);
    let _executor = cluster.executor_with(&closed);
    cluster.run(&closed);
    for (security, reason) in [
        (&[&TLS[..], &["--token-file", "wrong"]].concat(), "the request carries another token"),
        (&TLS.to_vec(), "the request carries no token"),
        (&[&STRANGER[..], &["--token-file", "token"]].concat(), "does not answer"),
        (&vec!["--tls-ca", "ca.pem", "--token-file", "token"], "does not answer"),
        (&vec!["--tls-ca", "stranger.pem", "--token-file", "token"], "does not answer"),
    ] {
        let said = refused(&cluster.run_command(security).output().unwrap());
        assert!(said.contains(reason) && !said.contains("0123456789abcdef"), "{security:?}: {said}");
        let said = refused(&cluster.executor_command(security).output().unwrap());
        assert!(said.contains(reason), "{security:?}: {said}");
    }
    cluster.is_as_on_one_machine(&[]);
}

/// A connection to the scheduler that can be cut, and that delays what it carries.
struct Wire {
    address: SocketAddr,
    is_cut: Arc<AtomicBool>,
}

impl Wire {
    fn to(server: SocketAddr, delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, is_cut) = (listener.local_addr().unwrap(), Arc::<AtomicBool>::default());
        let cut = is_cut.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(server) else { continue };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to, cut) = (from.try_clone().unwrap(), to.try_clone().unwrap(), cut.clone());
                    std::thread::spawn(move || carry(from, to, delay, &cut));
                }
            }
        });
        Self { address, is_cut }
    }
}

/// Carries bytes until an end closes, or the wire is cut.
fn carry(mut from: TcpStream, mut to: TcpStream, delay: Duration, is_cut: &AtomicBool) {
    from.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut bytes = [0; 16 << 10];
    loop {
        let read = from.read(&mut bytes);
        if is_cut.load(Ordering::SeqCst) {
            break;
        }
        match read {
            Ok(0) => break,
            Ok(length) => {
                sleep(delay);
                if to.write_all(&bytes[..length]).is_err() {
                    break;
                }
            }
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    // The other direction then ends too.
    from.shutdown(std::net::Shutdown::Both).ok();
    to.shutdown(std::net::Shutdown::Both).ok();
}

#[test]
fn scheduler_behind_a_network_that_delays_and_cuts_is_reached_again() {
    let mut cluster = Cluster::new(lab(PICTURES));
    let direct = cluster.url.trim_start_matches("http://").parse().unwrap();
    let wire = Wire::to(direct, Duration::from_millis(5));
    cluster.url = format!("http://{}", wire.address);
    let _executors = cluster.executors(2);
    let run = cluster.run_until(&["--task-rows", "1"], |jobs| count(jobs, "answers") > 8);
    for _ in 0..2 {
        wire.is_cut.store(true, Ordering::SeqCst);
        sleep(Duration::from_millis(700));
        wire.is_cut.store(false, Ordering::SeqCst);
        sleep(Duration::from_millis(500));
    }
    cluster.ends(run);
    cluster.is_as_on_one_machine(&[]);
}

#[test]
fn cluster_on_s3_behind_a_failing_network_makes_the_same_tables() {
    let server = Server::start();
    let lab = Lab::new(LIGHT);
    server.upload(&lab.path("data"));
    lab.write("pipeline.yaml", &LIGHT.replace("root: data", "root: 's3://bucket/data'"));
    let proxy = Proxy::start(server.address, Duration::from_secs(6), seeded(2, 10));
    let mut environment = environment(proxy.address);
    environment.push(("VLMDIFF_STORE".into(), "s3://bucket/some/prefix".into()));
    let cluster = Cluster::with(lab, environment, &[]);
    let executors = cluster.executors(2);
    let output = cluster.run_command(&["--task-rows", "4"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    drop(executors);
    let digests = |(table, versions): (String, Vec<vlmdiff::engine::store::Manifest>)| {
        assert_eq!(versions.len(), 1, "{table}");
        (table, versions[0].content.to_string())
    };
    let of_cluster: Vec<_> = server.versions().into_iter().map(digests).collect();
    cluster.lab.write("pipeline.yaml", LIGHT);
    cluster.lab.run(&["--store", "alone"]);
    let mut alone = cluster.lab.contents("alone");
    alone.sort();
    assert_eq!(of_cluster, alone);
    let left: Vec<String> = server.objects("jobs").into_iter().map(|(name, _)| name).collect();
    assert_eq!(left, [""; 0], "a job is left");
}
