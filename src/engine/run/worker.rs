//! One worker process, as the driver controls it.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::PathBuf,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    executor::{Death, Settings},
    message::{Answer, STOP},
};
use crate::engine::{
    Error, Result, Stop,
    stage::{Report, Task},
    store::{Entry, Store},
};

/// Environment variables of a worker, unless the user sets them. By default glibc returns large blocks to the system
/// at every free and requests them again, which costs a training step more than its arithmetic. Threads that wait for
/// each other spin for some microseconds: long enough for the next small operation, which would take twice as long if
/// they slept, and short enough to leave the cores to other processes.
const ENVIRONMENT: [(&str, &str); 4] = [
    ("MALLOC_MMAP_MAX_", "0"),
    ("MALLOC_TRIM_THRESHOLD_", "100000000000"),
    ("MALLOC_TOP_PAD_", "268435456"),
    ("GOMP_SPINCOUNT", "20000"),
];

/// The variables from which libraries take the number of their threads, and glibc that of its heaps: each thread that is
/// started may otherwise take a heap of its own, up to eight for each core, none of which gives memory back.
const THREADS: [&str; 4] = ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS", "MALLOC_ARENA_MAX"];

/// A worker process. It is started at its first task, and again if it died.
pub(super) struct Worker {
    store: String,
    program: PathBuf,
    settings: Settings,
    threads: usize,
    stop: Stop,
    process: Option<Process>,
    /// The standard input of the process while it runs. It is shared, because a request to stop is written while a
    /// task runs.
    stdin: Arc<Mutex<Option<ChildStdin>>>,
}

struct Process {
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Worker {
    /// Makes a worker on a store; `stop` is the request that it forwards, `program` is the path of `vlmdiff-worker`,
    /// and `threads` the number of threads it may use.
    pub(super) fn new(store: &Store, program: PathBuf, settings: Settings, threads: usize, stop: &Stop) -> Self {
        let stdin = Arc::<Mutex<Option<ChildStdin>>>::default();
        let told = stdin.clone();
        stop.on_request(move || _ = say(&told, STOP));
        Self { store: store.url.clone(), program, settings, threads, stop: stop.clone(), process: None, stdin }
    }

    fn start(&self) -> Result<Process> {
        let mut command = Command::new(&self.program);
        command.arg(&self.store).arg(serde_json::to_string(&self.settings).map_err(std::io::Error::from)?);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        // Ctrl-C signals all processes of a terminal's group. The worker gets a group of its own and receives the
        // request from the driver, so that it can save its state.
        command.process_group(0);
        let threads = self.threads.to_string();
        let variables = ENVIRONMENT.into_iter().chain(THREADS.map(|name| (name, threads.as_str())));
        command.envs(variables.filter(|(name, _)| std::env::var_os(name).is_none()));
        let mut child = command.spawn().map_err(|e| {
            let program = self.program.display();
            Error::Worker(format!(
                "cannot start {program}: {e}; `cargo build` builds it beside vlmdiff, and Python finds one elsewhere by \
                 VLMDIFF_WORKER"
            ))
        })?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(stdin), Some(stdout)) => {
                *self.stdin.lock().unwrap_or_else(PoisonError::into_inner) = Some(stdin);
                Ok(Process { child, answers: BufReader::new(stdout) })
            }
            _ => Err(Error::Worker("the worker has no pipes".into())),
        }
    }

    /// Runs one task to its end. The outer error is the death of the process.
    pub(super) fn run(&mut self, task: &Task, report: &mut dyn FnMut(Report)) -> Result<Result<Vec<Entry>>, Death> {
        let line = match serde_json::to_string(task) {
            Ok(line) => line,
            Err(error) => return Ok(Err(std::io::Error::from(error).into())),
        };
        let process = match &mut self.process {
            Some(process) => process,
            None => match self.start() {
                Ok(process) => self.process.insert(process),
                Err(error) => return Ok(Err(error)),
            },
        };
        let mut sent = say(&self.stdin, &line);
        // The stop was requested while the worker was being started.
        if sent.is_ok() && self.stop.is_requested() {
            sent = say(&self.stdin, STOP);
        }
        let mut answer = String::new();
        while sent.is_ok() {
            answer.clear();
            match process.answers.read_line(&mut answer) {
                Ok(1..) => match serde_json::from_str(&answer) {
                    Ok(Answer::Report(what)) => report(what),
                    Ok(Answer::Done(entries)) => return Ok(Ok(entries)),
                    Ok(Answer::Failed(error)) => return Ok(Err(error.into())),
                    // The line was printed by some library.
                    Err(_) => report(Report::Log { message: answer.trim_end().to_owned() }),
                },
                Ok(0) | Err(_) => break,
            }
        }
        let status = self.end().and_then(|mut process| process.child.wait().ok());
        Err(Death {
            status: status.map_or_else(|| "ended".into(), |status| status.to_string()),
            is_killed: status.and_then(|status: ExitStatus| status.signal()) == Some(libc::SIGKILL),
        })
    }

    /// Closes the standard input of the process, which makes it end.
    fn end(&mut self) -> Option<Process> {
        *self.stdin.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.process.take()
    }
}

/// Writes a line to a worker if it runs.
fn say(stdin: &Mutex<Option<ChildStdin>>, line: &str) -> std::io::Result<()> {
    match stdin.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
        Some(stdin) => writeln!(stdin, "{line}").and_then(|()| stdin.flush()),
        None => Ok(()),
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(Process { mut child, .. }) = self.end() {
            let _ = child.wait();
        }
    }
}
