//! A job in the store: the tasks of one call of the driver, the answers to them, and a sign of life of either side.
//!
//! ```text
//! jobs/JOB/job              the stage, its parameters and what its tasks have in common
//! jobs/JOB/tasks            the tasks, one after the other
//! jobs/JOB/driver           the driver's sign of life, and its request to stop
//! jobs/JOB/said/NUMBER      what a task that takes long has reported so far
//! jobs/JOB/answers/NUMBER   the answer to a task; written once
//! ```
//!
//! A plan contains none of these but their place and digests: it is shown by the scheduler, and has to be small.

use base64::{Engine, engine::general_purpose::URL_SAFE};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::engine::{
    Digest, Error, Result, Secrets,
    run::{Death, Settings},
    stage::{Job, Report, Task, TaskError},
    store::{Entry, JobFolder},
};

pub(super) const JOB: &str = "job";
pub(super) const TASKS: &str = "tasks";
pub(super) const DRIVER: &str = "driver";
pub(super) const SAID: &str = "said";
pub(super) const ANSWERS: &str = "answers";

/// The order to an executor that all tasks of a job have in common. It travels as JSON in the plan.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Order {
    /// The build of the driver. It is read before the rest, which another build may have written in another way.
    pub(super) build: String,
    /// The address of the store.
    pub(super) store: String,
    /// The job.
    pub(super) job: String,
    /// The digest of the object `job`.
    pub(super) digest: Digest,
    /// Rows per batch of a network; if absent, the default of the stage.
    pub(super) batch_size: Option<usize>,
    /// True if every file outside the store is hashed.
    pub(super) verify: bool,
}

impl Order {
    /// Returns the settings of an executor with this device.
    pub(super) fn settings(&self, device: &str) -> Settings {
        Settings { device: device.to_owned(), batch_size: self.batch_size, verify: self.verify }
    }
}

/// The place of a task in the object `tasks`. It travels as a row of the plan's scan.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Ticket {
    /// The number of the task in the job.
    pub(super) number: usize,
    pub(super) start: u64,
    pub(super) end: u64,
    /// The digest of its text.
    pub(super) digest: Digest,
}

/// The driver's sign of life.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Sign {
    /// A number that grows.
    pub(super) beat: u64,
    /// True if tasks that run should save what they have and end.
    pub(super) stops: bool,
}

/// The answer to a task.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Answered {
    pub(super) answer: Answer,
    pub(super) said: Said,
}

/// The way a task ended.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    /// The task is done, with these records.
    Done(Vec<Entry>),
    /// The task failed.
    Failed(TaskError),
    /// The worker process died.
    Died {
        /// The status in words.
        status: String,
        /// True if the operating system killed it.
        is_killed: bool,
    },
}

impl Answer {
    pub(super) fn of(ended: Result<Result<Vec<Entry>>, Death>) -> Self {
        match ended {
            Ok(Ok(entries)) => Self::Done(entries),
            Ok(Err(error)) => Self::Failed(error.into()),
            Err(Death { status, is_killed }) => Self::Died { status, is_killed },
        }
    }
}

/// The reports of a task: every message and commit, and of progress and figures the newest alone.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Said {
    /// The executor.
    pub(super) by: String,
    /// A number that grows each time that it is written.
    pub(super) beat: u64,
    /// Messages and commits, oldest first.
    lines: Vec<Report>,
    progress: Option<Report>,
    figure: Option<Report>,
    unfinished: Option<Report>,
}

impl Said {
    pub(super) fn by(executor: &str) -> Self {
        Self { by: executor.to_owned(), ..Self::default() }
    }

    pub(super) fn add(&mut self, report: Report) {
        match report {
            Report::Progress { .. } => self.progress = Some(report),
            Report::Figure { .. } => self.figure = Some(report),
            Report::Unfinished { .. } => self.unfinished = Some(report),
            Report::Committed { .. } | Report::Log { .. } => self.lines.push(report),
        }
    }

    /// Returns the number of messages and commits.
    pub(super) fn lines(&self) -> usize {
        self.lines.len()
    }

    /// Returns the reports without the first `known` messages and commits.
    pub(super) fn after(self, known: usize) -> impl Iterator<Item = Report> {
        let newest = [self.progress, self.figure, self.unfinished].into_iter().flatten();
        self.lines.into_iter().skip(known).chain(newest)
    }
}

/// Returns the name of a task's object. Names sort as numbers do.
pub(super) fn name(folder: &str, number: usize) -> String {
    format!("{folder}/{number:08}")
}

/// The part that all tasks of a job share, as it lies in the store: without secrets, which the executor takes from its own
/// environment.
#[derive(Serialize, Deserialize)]
struct Common {
    job: Value,
    secrets: Vec<(String, Digest)>,
}

fn unreadable(error: serde_json::Error) -> Error {
    Error::Worker(format!("a job that cannot be read: {error}"))
}

/// Returns the object `job`.
pub(super) fn pack_job(job: &Job) -> Result<Vec<u8>> {
    let open = Job { secrets: Secrets::default(), ..job.clone() };
    let value = serde_json::to_value(open).map_err(unreadable)?;
    let common = Common { job: job.secrets.name_in(value)?, secrets: job.secrets.digests() };
    serde_json::to_vec(&common).map_err(unreadable)
}

/// Reads the object `job`, with secrets of this process's environment.
pub(super) fn unpack_job(bytes: &[u8]) -> Result<Job> {
    let common: Common = serde_json::from_slice(bytes).map_err(unreadable)?;
    let secrets = Secrets::from_environment(&common.secrets)?;
    let job: Job = serde_json::from_value(secrets.fill_in(common.job)).map_err(unreadable)?;
    Ok(Job { secrets, ..job })
}

/// Returns a task without what it has in common with the others.
pub(super) fn pack_task(task: &Task) -> Result<Vec<u8>> {
    let mut value = serde_json::to_value(task).map_err(unreadable)?;
    if let Some(fields) = value.as_object_mut() {
        fields.shift_remove(JOB);
    }
    serde_json::to_vec(&value).map_err(unreadable)
}

/// Reads a task of a job.
pub(super) fn unpack_task(bytes: &[u8], job: &Job) -> Result<Task> {
    let mut value: Value = serde_json::from_slice(bytes).map_err(unreadable)?;
    if let Some(fields) = value.as_object_mut() {
        fields.insert(JOB.into(), serde_json::to_value(job).map_err(unreadable)?);
    }
    serde_json::from_value(value).map_err(unreadable)
}

/// The beginning of what a driver reads of a refusal.
const REFUSAL: &str = "[refusal:";

/// Makes the text of an executor's refusal. Ballista carries a task's error as text that it quotes in several ways, so what the
/// driver reads of it is encoded.
pub(super) fn refusal(message: &str) -> String {
    format!("{message} {REFUSAL}{}]", URL_SAFE.encode(message))
}

/// Finds an executor's refusal in the error of a job.
pub(super) fn refusal_in(error: &str) -> Option<String> {
    let (_, rest) = error.split_once(REFUSAL)?;
    let bytes = URL_SAFE.decode(rest.split_once(']')?.0).ok()?;
    String::from_utf8(bytes).ok()
}

/// Reads bytes that a digest identifies.
pub(super) fn checked(
    folder: &JobFolder,
    name: &str,
    digest: Digest,
    range: Option<(u64, u64)>,
) -> Result<bytes::Bytes> {
    let found = match range {
        Some((start, end)) => folder.range(name, start..end)?,
        None => folder.get(name)?,
    };
    match found {
        Some(bytes) if Digest::of(&bytes) == digest => Ok(bytes),
        Some(_) => Err(Error::Damaged(format!("the object `{name}` of a job does not match its digest"))),
        None => Err(Error::Damaged(format!("the object `{name}` of a job is missing; its driver has ended"))),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::engine::stage::{Output, Unit};

    fn job() -> Job {
        let path = std::env::var("PATH").unwrap();
        Job {
            stage: "command".into(),
            params: serde_json::json!({ "run": format!("curl {path}") }),
            makes: Output::RowPerRow,
            output: String::new(),
            input_schemas: Vec::new(),
            row_schemas: Vec::new(),
            tables: Vec::new(),
            model: None,
            files: Vec::new(),
            save_every: Duration::ZERO,
            secrets: Secrets::among([("PATH".to_owned(), path)]),
        }
    }

    #[test]
    fn job_travels_without_its_secrets() {
        let job = job();
        let packed = pack_job(&job).unwrap();
        assert!(!String::from_utf8_lossy(&packed).contains(&std::env::var("PATH").unwrap()));
        assert!(unpack_job(&packed).unwrap() == job);
    }

    #[test]
    fn task_is_whole_again_with_its_job() {
        let task = Task {
            job: job(),
            stage_key: Digest::of(b"stage"),
            run: "run".into(),
            after: 3,
            ids: vec!["a".into()],
            keys: vec![Digest::of(b"a")],
            rows: Vec::new(),
            pieces: None,
            listed: None,
        };
        let packed = pack_task(&task).unwrap();
        assert!(!String::from_utf8_lossy(&packed).contains("curl"));
        let again = unpack_task(&packed, &task.job).unwrap();
        assert_eq!(serde_json::to_value(again).unwrap(), serde_json::to_value(task).unwrap());
    }

    #[test]
    fn refusal_is_found_in_whatever_quotes_it() {
        let message = "executor a: \"quoted\" \\ and\nlines";
        let error = format!("Job failed: {:?}", format!("{:?}", refusal(message)));
        assert_eq!(refusal_in(&error).as_deref(), Some(message));
        assert_eq!(refusal_in("Job failed: disk full"), None);
    }

    #[test]
    fn reports_are_told_once_and_the_newest_of_a_kind() {
        let mut said = Said::by("executor");
        let log = |text: &str| Report::Log { message: text.into() };
        let progress = |done| Report::Progress { done, total: 9, unit: Unit::Rows };
        [log("a"), progress(1), progress(2)].into_iter().for_each(|report| said.add(report));
        let known = said.lines();
        assert_eq!((said.clone().after(0).count(), known), (2, 1));
        said.add(log("b"));
        let told: Vec<Report> = said.after(known).collect();
        assert!(matches!(&told[0], Report::Log { message } if message == "b"));
        assert!(matches!(told[1], Report::Progress { done: 2, .. }) && told.len() == 2);
    }
}
