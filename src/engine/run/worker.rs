//! The worker process and the driver's end of it. Messages are lines of JSON: a task, or a word to stop, in; reports, then the
//! parts or an error out.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
};

use serde::{Deserialize, Serialize};

use super::{in_process::Executor, options::Remote};
use crate::engine::{
    Digest, Error, Result, Stop,
    stage::{OpenFn, Report, Task},
    store::{Entry, Store},
};

/// What asks a worker to stop.
const STOP: &str = "stop";

/// How often a task is tried when its worker dies.
const TRIES: usize = 3;

/// What a worker starts with where the user has not said otherwise. glibc hands large blocks back to the system at every
/// free and fetches them again, which costs a training step more than its arithmetic. Threads that wait for each other spin
/// for some microseconds: long enough for the next small operation, which sleeping would double in time, and too short to
/// take the cores from whoever else runs.
const ENVIRONMENT: [(&str, &str); 4] = [
    ("MALLOC_MMAP_MAX_", "0"),
    ("MALLOC_TRIM_THRESHOLD_", "100000000000"),
    ("MALLOC_TOP_PAD_", "268435456"),
    ("GOMP_SPINCOUNT", "20000"),
];

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Report(Report),
    Done(Vec<Entry>),
    Failed { message: String, input: bool, lost: Option<Digest> },
    Interrupted,
}

/// Serves tasks from standard input until it closes. `find` knows the stages by name.
pub fn serve(store: Store, find: impl Fn(&str) -> Option<OpenFn>) -> Result<()> {
    let (send, tasks) = mpsc::channel();
    let stop = Stop::default();
    let asked = stop.clone();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            if line == STOP {
                asked.request();
            } else if send.send(line).is_err() {
                break;
            }
        }
        // The driver is gone, and what is not committed nobody will read.
        std::process::exit(0);
    });
    // A panic becomes an answer; its trace would only hide it.
    std::panic::set_hook(Box::new(|_| {}));
    let mut executor = Executor::new(store, stop);
    for line in tasks {
        let result = serde_json::from_str::<Task>(&line)
            .map_err(|e| Error::Worker(format!("a task that cannot be read: {e}")))
            .and_then(|task| {
                let open = find(&task.job.stage)
                    .ok_or_else(|| Error::Worker(format!("this worker has no stage `{}`", task.job.stage)))?;
                // libtorch reports what it refuses by a panic; the operator is dropped with what it may have left half done.
                let run = std::panic::AssertUnwindSafe(|| {
                    executor.run(task, open, &mut |report| answer(&Answer::Report(report)))
                });
                std::panic::catch_unwind(run).unwrap_or_else(|panic| {
                    let text = panic
                        .downcast_ref::<String>()
                        .map(String::as_str)
                        .or_else(|| panic.downcast_ref::<&str>().copied());
                    Err(Error::Stage(readable(text.unwrap_or("the stage panicked"))))
                })
            });
        match result {
            Ok(entries) => answer(&Answer::Done(entries)),
            Err(Error::Lost { digest, message }) => {
                answer(&Answer::Failed { message, input: false, lost: Some(digest) });
            }
            Err(Error::Interrupted) => answer(&Answer::Interrupted),
            Err(error) => answer(&Answer::Failed { message: error.to_string(), input: error.is_input(), lost: None }),
        }
    }
    Ok(())
}

/// A panic's text without what unwrapping and libtorch's own trace add to it.
fn readable(panic: &str) -> String {
    let text = panic.split_once("value: Torch(\"").map_or(panic, |(_, text)| text);
    text.split("\\nException raised").next().unwrap_or(text).to_owned()
}

fn answer(answer: &Answer) {
    if let Ok(json) = serde_json::to_string(answer) {
        let mut out = std::io::stdout().lock();
        // Nobody reads: the driver is gone, and standard input will say so.
        let _ = writeln!(out, "{json}");
    }
}

/// A worker process, started at its first task and again should it die.
pub struct Worker {
    store: String,
    program: PathBuf,
    stop: Stop,
    process: Option<Process>,
    /// The process's standard input while there is one; a request to stop is written beside the tasks.
    stdin: Arc<Mutex<Option<ChildStdin>>>,
}

struct Process {
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Worker {
    /// A worker on a store, which `stop` asks to stop; `program` is `vlmdiff-worker`.
    pub fn new(store: &Store, program: PathBuf, stop: &Stop) -> Self {
        let stdin = Arc::<Mutex<Option<ChildStdin>>>::default();
        let told = stdin.clone();
        stop.on_request(move || _ = say(&told, STOP));
        Self { store: store.url.clone(), program, stop: stop.clone(), process: None, stdin }
    }

    fn start(&self) -> Result<Process> {
        let mut command = Command::new(&self.program);
        command.arg(&self.store).stdin(Stdio::piped()).stdout(Stdio::piped());
        // Ctrl-C reaches all processes of a terminal's group: the worker is to hear of it from the driver, and save.
        command.process_group(0);
        command.envs(ENVIRONMENT.into_iter().filter(|(name, _)| std::env::var_os(name).is_none()));
        let mut child = command.spawn().map_err(|e| {
            let program = self.program.display();
            Error::Worker(format!("cannot start {program}: {e}; it is built beside vlmdiff by `cargo build`"))
        })?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(stdin), Some(stdout)) => {
                *self.stdin.lock().unwrap_or_else(PoisonError::into_inner) = Some(stdin);
                Ok(Process { child, answers: BufReader::new(stdout) })
            }
            _ => Err(Error::Worker("the worker has no pipes".into())),
        }
    }

    fn attempt(&mut self, line: &str, report: &mut dyn FnMut(Report)) -> Result<Result<Vec<Entry>>, String> {
        let process = match &mut self.process {
            Some(process) => process,
            None => match self.start() {
                Ok(process) => self.process.insert(process),
                Err(error) => return Ok(Err(error)),
            },
        };
        let mut sent = say(&self.stdin, line);
        // Asked while the worker was being started.
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
                    Ok(Answer::Interrupted) => return Ok(Err(Error::Interrupted)),
                    Ok(Answer::Failed { message, lost: Some(digest), .. }) => {
                        return Ok(Err(Error::lost(digest, message)));
                    }
                    Ok(Answer::Failed { message, input: true, .. }) => return Ok(Err(Error::Input(message))),
                    Ok(Answer::Failed { message, .. }) => return Ok(Err(Error::Stage(message))),
                    // A line that some library printed.
                    Err(_) => report(Report::Log { message: answer.trim_end().to_owned() }),
                },
                Ok(0) | Err(_) => break,
            }
        }
        let status = self.end().and_then(|mut process| process.child.wait().ok());
        Err(status.map_or_else(|| "ended".into(), |status| status.to_string()))
    }

    /// Closes the process's standard input, at which it ends.
    fn end(&mut self) -> Option<Process> {
        *self.stdin.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.process.take()
    }
}

/// Writes a line to a worker, where there is one.
fn say(stdin: &Mutex<Option<ChildStdin>>, line: &str) -> std::io::Result<()> {
    match stdin.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
        Some(stdin) => writeln!(stdin, "{line}").and_then(|()| stdin.flush()),
        None => Ok(()),
    }
}

impl Remote for Worker {
    fn run(&mut self, task: Task, report: &mut dyn FnMut(Report)) -> Result<Vec<Entry>> {
        let line = serde_json::to_string(&task).map_err(std::io::Error::from)?;
        let mut last = String::new();
        for _ in 0..TRIES {
            match self.attempt(&line, report) {
                Ok(result) => return result,
                Err(status) => {
                    report(Report::Log {
                        message: format!("the worker died ({status}); starting another for the same task"),
                    });
                    last = status;
                }
            }
        }
        Err(Error::Worker(format!("the worker died {TRIES} times on the same task ({last})")))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(Process { mut child, .. }) = self.end() {
            let _ = child.wait();
        }
    }
}
