//! Worker processes: several tasks at once, of one table or of several.

use std::{
    path::PathBuf,
    sync::{Condvar, Mutex, PoisonError, mpsc},
};

use super::{
    executor::{Death, Executor, Settings, Update},
    worker::Worker,
};
use crate::engine::{
    Error, Result, Stop,
    stage::{Report, Task},
    store::{Entry, Store},
};

/// Worker processes that share the tasks of all tables.
pub struct Workers {
    idle: Mutex<Vec<Worker>>,
    returned: Condvar,
    slots: usize,
}

/// A message from the thread that waits for a worker's answer.
enum Heard {
    Report(usize, Report),
    Ended(usize, Result<Result<Vec<Entry>>, Death>),
}

impl Workers {
    /// Makes a worker for each of these settings; `program` is the path of `vlmdiff-worker`. The workers divide
    /// `threads` among them, with at least one each. A process is started at its first task.
    pub fn new(store: &Store, program: PathBuf, settings: Vec<Settings>, threads: usize, stop: &Stop) -> Self {
        let slots = settings.len();
        let threads = (threads / slots.max(1)).max(1);
        let worker = |settings| Worker::new(store, program.clone(), settings, threads, stop);
        let mut idle: Vec<Worker> = settings.into_iter().map(worker).collect();
        // Workers are taken from the end. With one task at a time it is always the same worker, whose operators are
        // already open.
        idle.reverse();
        Self { idle: Mutex::new(idle), returned: Condvar::new(), slots }
    }

    /// Takes an idle worker. If there is none, returns `None`, or with `wait` waits for the next one.
    fn take(&self, wait: bool) -> Option<Worker> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while idle.is_empty() && wait {
            idle = self.returned.wait(idle).unwrap_or_else(PoisonError::into_inner);
        }
        idle.pop()
    }

    fn put_back(&self, worker: Worker) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(worker);
        self.returned.notify_one();
    }
}

impl Executor for Workers {
    fn slots(&self) -> usize {
        self.slots
    }

    fn run(
        &self,
        tasks: &mut dyn Iterator<Item = Result<Task>>,
        on: &mut dyn FnMut(Update) -> Result<()>,
    ) -> Result<()> {
        let (say, heard) = mpsc::channel();
        std::thread::scope(|scope| {
            let (mut taken, mut running) = (0, 0);
            let mut is_over = false;
            let mut failure: Option<Error> = None;
            loop {
                while !is_over && failure.is_none() {
                    // A call without a running task of its own waits for workers that other calls use.
                    let Some(mut worker) = self.take(running == 0) else { break };
                    match tasks.next() {
                        Some(Ok(task)) => {
                            let (number, say) = (taken, say.clone());
                            taken += 1;
                            running += 1;
                            scope.spawn(move || {
                                let report = &mut |report| _ = say.send(Heard::Report(number, report));
                                let ended = worker.run(&task, report);
                                self.put_back(worker);
                                _ = say.send(Heard::Ended(number, ended));
                            });
                            continue;
                        }
                        Some(Err(error)) => failure = Some(error),
                        None => is_over = true,
                    }
                    self.put_back(worker);
                }
                if running == 0 {
                    return failure.map_or(Ok(()), Err);
                }
                let Ok(next) = heard.recv() else { return failure.map_or(Ok(()), Err) };
                let update = match next {
                    Heard::Report(task, report) => Ok(Update::Report { task, report }),
                    Heard::Ended(task, ended) => {
                        running -= 1;
                        match ended {
                            Ok(Ok(entries)) => Ok(Update::Done { task, entries }),
                            Ok(Err(error)) => Err(error),
                            Err(death) => Ok(Update::Lost { task, death }),
                        }
                    }
                };
                if let Err(error) = update.and_then(&mut *on) {
                    failure.get_or_insert(error);
                }
            }
        })
    }
}
