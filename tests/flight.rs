//! Arrow Flight SQL: the server as a process, and two clients from elsewhere (`flight/clients.py`).

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::{
    lab::{LIGHT, Lab, Process, project},
    remote::{Remote, python},
};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// Makes a lab in which a pipeline has run.
pub(crate) fn lab() -> Lab {
    let lab = Lab::new(LIGHT);
    lab.run(&[]);
    lab
}

/// A pipeline of another name over the same photographs.
fn second(lab: &Lab) {
    let pipeline = LIGHT.replace("name: light", "name: second");
    lab.write("second.yaml", pipeline.split("  captions:").next().unwrap());
    let ended = lab.vlmdiff(&["run", "second.yaml", "--quiet"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

/// A server in a process of its own.
pub(crate) struct Server {
    pub(crate) process: Process,
    address: String,
}

impl Server {
    fn start(lab: &Lab, arguments: &[&str]) -> Self {
        Self::of(lab.command(&["flight"]), arguments)
    }

    pub(crate) fn of(mut command: Command, arguments: &[&str]) -> Self {
        command.args(["--listen", "127.0.0.1:0"]).args(arguments);
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        match line.trim().strip_prefix("listening on grpc").and_then(|rest| rest.rsplit_once("//")) {
            Some((_, address)) => Self { process: Process(process), address: address.to_owned() },
            None => panic!("{line} {:?}", process.wait_with_output()),
        }
    }

    /// Makes a client do a case.
    fn client(&self, case: &str, arguments: &[&str]) -> Command {
        let mut command = python();
        command.arg(project().join("tests/flight/clients.py")).args([case, &self.address]).args(arguments);
        command
    }

    /// Makes a client do a case, which must succeed.
    pub(crate) fn check(&self, case: &str, arguments: &[&str]) {
        let output = self.client(case, arguments).output().unwrap();
        assert!(output.status.success(), "{case}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Returns the most memory that the server has taken, in MiB.
    fn peak(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() >> 10
    }
}

/// A client that goes on while the test does something else.
struct Client(Process);

impl Client {
    /// Starts a client and waits for its first line.
    fn start(server: &Server, case: &str) -> Self {
        let mut command = server.client(case, &[]);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "{:?}", process.wait_with_output());
        Self(Process(process))
    }

    /// Tells the client to go on, and waits until it has succeeded.
    fn finish(mut self) {
        // A client that has ended with an error reads nothing.
        let _ = writeln!(self.0.0.stdin.take().unwrap());
        let (code, said) = self.0.end();
        assert_eq!(code, Some(0), "{said}");
    }
}

#[test]
fn clients_query_with_parameters_and_get_tensors_in_their_shape() {
    let lab = lab();
    let ended = lab.vlmdiff(&["sql", "select * from images", "-o", "images.parquet"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    Server::start(&lab, &[]).check("queries", &[lab.path("images.parquet").to_str().unwrap()]);
}

#[test]
fn wrong_and_writing_statements_are_refused_with_what_would_work() {
    let lab = lab();
    Server::start(&lab, &[]).check("refusals", &[]);
}

#[test]
fn catalogue_has_every_pipeline_table_and_column() {
    let lab = lab();
    second(&lab);
    Server::start(&lab, &[]).check("catalogue", &[]);
}

#[test]
fn token_and_certificate_decide_who_is_answered() {
    let lab = lab();
    lab.write("token", TOKEN);
    let server = Server::start(&lab, &["--token-file", "token"]);
    server.check("tokens", &[TOKEN]);
    server.check("superset", &[TOKEN]);
    drop(server);

    let folder = lab.path(".");
    let made =
        python().arg(project().join("tests/flight/clients.py")).arg("certificate").arg(&folder).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let server = Server::start(&lab, &["--certificate", "server.pem", "--key", "server.key"]);
    server.check("encrypted", &[folder.to_str().unwrap()]);

    for (arguments, expected) in [
        (&["--listen", "0.0.0.0:0"][..], "--token-file asks them for a token, --without-token answers anybody"),
        (&["--certificate", "server.pem"], "--key <FILE>"),
        (&["--certificate", "none.pem", "--key", "server.key"], "cannot read none.pem"),
        (
            &["--certificate", "server.pem", "--key", "other.key"],
            "server.pem and other.key are no certificate and its key",
        ),
        (&["--certificate", "token", "--key", "server.key"], "token and server.key are no certificate and its key"),
        (&["--listen", &server.address], "--listen names another address"),
        (&["--store", "nowhere"], "there is no store at nowhere"),
    ] {
        let ended = lab.vlmdiff(&[&["flight"], arguments].concat());
        assert_eq!(ended.code, Some(2), "{arguments:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(expected), "{arguments:?}: {}", ended.stderr);
    }
}

#[test]
fn statement_beyond_its_memory_or_time_ends_with_an_error() {
    let lab = lab();
    Server::start(&lab, &["--max-memory", "33554432", "--max-seconds", "3"]).check("limits", &[]);
}

#[test]
fn results_larger_than_the_memory_are_sent_as_they_are_computed() {
    let lab = lab();
    let server = Server::start(&lab, &["--max-memory", "33554432"]);
    server.check("large", &[]);
    assert!(server.peak() < 400, "{} MiB", server.peak());
}

#[test]
fn connection_sees_what_is_published_later() {
    let lab = lab();
    let server = Server::start(&lab, &[]);
    let client = Client::start(&server, "fresh");
    fs::copy(lab.path("data/gear/train/good/000.png"), lab.path("data/gear/train/good/extra.png")).unwrap();
    lab.run(&[]);
    second(&lab);
    client.finish();
}

#[test]
fn texts_and_numbers_that_were_read_are_kept_up_to_a_limit() {
    let lab = lab();
    for limit in ["1000000", "0"] {
        let server = Server::start(&lab, &["--max-kept", limit]);
        server.check("read", &[]);
        fs::rename(lab.path(".vlmdiff/parts"), lab.path("parts")).unwrap();
        server.check("kept", &[limit]);
        fs::rename(lab.path("parts"), lab.path(".vlmdiff/parts")).unwrap();
    }
}

#[test]
fn statement_ends_with_its_client() {
    let lab = lab();
    let server = Server::start(&lab, &["--max-statements", "1", "--max-seconds", "60"]);
    // Only one statement may run, so that another one waits until this one has ended.
    let started = Instant::now();
    let client = Client::start(&server, "endless");
    std::thread::sleep(Duration::from_secs(1));
    drop(client);
    server.check("one", &[]);
    server.check("cancelled", &[]);
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
}

#[test]
fn clients_that_take_nothing_or_find_no_place_are_told_so() {
    let lab = lab();
    let server = Server::start(&lab, &["--max-statements", "1", "--max-seconds", "2"]);
    let client = Client::start(&server, "trickle");
    server.check("busy", &[]);
    client.finish();
    let client = Client::start(&server, "untaken");
    std::thread::sleep(Duration::from_secs(4));
    // Its place is free although it is still there.
    server.check("one", &[]);
    client.finish();
}

#[test]
fn server_that_is_asked_to_end_finishes_what_runs() {
    let lab = lab();
    let mut server = Server::start(&lab, &[]);
    let client = Client::start(&server, "slow");
    vlmdiff::engine::signals::ask_to_end(&server.process.0);
    client.finish();
    let (code, said) = server.process.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("stopping: the statements that run are finished"), "{said}");
}

#[test]
fn tables_of_a_store_elsewhere_are_queried() {
    let remote = Remote::new(|_, _| None);
    remote.run();
    Server::of(remote.command(&["flight"]), &[]).check("elsewhere", &[]);
}
