//! The executors of a cluster as a run uses them.

use std::{
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use datafusion_proto::{physical_plan::AsExecutionPlan, protobuf::PhysicalPlanNode};
use serde_json::Value;
use tonic::{Code, Status};

use super::{
    build_id::build_id,
    client::{Client, JobState},
    files,
    job::{DRIVER, JOB, Order, Sign, TASKS, Ticket, pack_job, pack_task, refusal_in},
    node::{Codec, plan},
    security::Security,
    submitted::{Listener, Submitted},
};
use crate::engine::{
    Digest, Error, Result, Stop, is_url, local_path,
    plan::TableWork,
    run::{Executor, Settings, Update},
    stage::{Job, Report, Stage, Task},
    store::{JobFolder, Store},
};

/// The number of tables that are made side by side. The tasks of one table alone occupy all executors.
const TABLES: usize = 8;

/// The most tasks of a job, and the most bytes of their texts, which are in memory until they are written.
const MOST_TASKS: usize = 10_000;
const MOST_BYTES: usize = 64 << 20;

/// The shortest and the longest time between two looks for answers.
const LOOK: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(250));

/// The interval at which the scheduler is asked, and at which the reports of long tasks are read.
const ASK: Duration = Duration::from_secs(1);

/// The time for which a scheduler may be silent.
const PATIENCE: Duration = Duration::from_secs(60);

/// The time after which tasks of which nothing is heard are handed out again. It doubles each time: they may wait for others.
const SILENCE: Duration = Duration::from_secs(10);

/// The time in which executors notice a request to stop, and that in which they have to follow it.
const NOTICE: Duration = Duration::from_secs(3);
const LAST_WORK: Duration = Duration::from_secs(120);

/// The executors of a cluster. Tasks are given to whichever is idle.
pub struct Cluster {
    store: Store,
    client: Client,
    url: String,
    build: String,
    settings: Settings,
    stop: Stop,
    /// The beginning of the names of this process's jobs, and the number of the next.
    prefix: String,
    next: AtomicU64,
}

impl Cluster {
    /// Connects to a scheduler. `worker` is the path of `vlmdiff-worker`, by which builds are told apart.
    pub fn connect(
        store: &Store,
        url: &str,
        security: &Security,
        worker: &Path,
        settings: Settings,
        stop: &Stop,
    ) -> Result<Self> {
        let client = {
            let _in_runtime = store.runtime().enter();
            Client::new(url, security)?
        };
        store.runtime().block_on(client.check())?;
        Ok(Self {
            store: store.clone(),
            client,
            url: url.to_owned(),
            build: build_id(worker)?,
            settings,
            stop: stop.clone(),
            prefix: format!("{:016x}", rand::random::<u64>()),
            next: AtomicU64::new(0),
        })
    }

    /// Asks the scheduler again as long as it does not answer, but not for ever.
    fn patiently<T>(&self, mut ask: impl FnMut() -> Result<T, Status>) -> Result<T> {
        let began = Instant::now();
        loop {
            match ask() {
                Ok(answer) => return Ok(answer),
                Err(status) if is_final(&status) || began.elapsed() > PATIENCE => {
                    return Err(self.client.error(&status));
                }
                Err(_) if self.stop.is_requested() => return Err(Error::Interrupted),
                Err(_) => std::thread::sleep(ASK),
            }
        }
    }

    /// Takes tasks for one job: those that have a stage, its parameters and its tables in common.
    fn gather(&self, tasks: &mut Tasks<'_>) -> Result<Option<Gathered>> {
        let mut gathered = Gathered { began: Instant::now(), job: None, texts: Vec::new(), ends: Vec::new() };
        let Some(first) = tasks.next() else { return Ok(None) };
        gathered.add(first?)?;
        while gathered.ends.len() < MOST_TASKS && gathered.texts.len() < MOST_BYTES {
            match tasks.next() {
                None => break,
                Some(Ok(task)) if gathered.job.as_ref() != Some(&task.job) => {
                    tasks.back = Some(Ok(task));
                    break;
                }
                Some(task) => gathered.add(task?)?,
            }
        }
        Ok(Some(gathered))
    }

    /// Writes a job to the store and submits it.
    fn submit(&self, Gathered { job, texts, ends, began }: Gathered) -> Result<Submitted> {
        let job = job.ok_or_else(|| Error::Worker("a job without tasks".into()))?;
        let id = format!("{}-{}", self.prefix, self.next.fetch_add(1, Ordering::Relaxed));
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let ticket = |(number, (start, end)): (usize, (usize, usize))| Ticket {
            number,
            start: start as u64,
            end: end as u64,
            digest: Digest::of(&texts[start..end]),
        };
        let tickets: Vec<Ticket> = starts.zip(ends.iter().copied()).enumerate().map(ticket).collect();
        files::send(&job, &self.store)?;
        let common = pack_job(&job)?;
        let order = Order {
            build: self.build.clone(),
            store: self.store.url.clone(),
            job: id.clone(),
            digest: Digest::of(&common),
            batch_size: self.settings.batch_size,
            verify: self.settings.verify,
        };
        let folder = JobFolder::new(&self.store, &id);
        folder.seal(DRIVER, &Sign { beat: 0, stops: false })?;
        folder.put(JOB, common)?;
        folder.put(TASKS, texts)?;
        let name = self.send(&order, &tickets).inspect_err(|_| _ = remove(&folder))?;
        Ok(Submitted::new(folder, order, tickets, name, began))
    }

    /// Submits a plan of tickets, and returns the name that the scheduler gives it.
    fn send(&self, order: &Order, tickets: &[Ticket]) -> Result<String> {
        let unsent = |e: &dyn std::fmt::Display| Error::Worker(format!("a plan that cannot be sent: {e}"));
        let plan = plan(order, tickets).map_err(|e| unsent(&e))?;
        let sent = PhysicalPlanNode::try_from_physical_plan(plan, &Codec::default()).map_err(|e| unsent(&e))?;
        let mut bytes = Vec::new();
        sent.try_encode(&mut bytes).map_err(|e| unsent(&e))?;
        let runtime = self.store.runtime();
        self.patiently(|| runtime.block_on(self.client.submit(bytes.clone())))
    }

    /// Hands the open tasks of a job out again. Those that run nevertheless are done twice, which changes nothing.
    fn send_again(&self, job: &mut Submitted, why: &str, taken: usize, on: &mut Listener<'_>) -> Result<()> {
        let message = format!("{why}; handing out {} again", tasks_of(job.open.len()));
        on(Update::Report { task: taken, report: Report::Log { message } })?;
        // A scheduler that does not know the job has nothing to cancel.
        _ = self.store.runtime().block_on(self.client.cancel(&job.name));
        job.name = self.send(&job.order, &job.open_tickets())?;
        job.news = Instant::now();
        Ok(())
    }

    /// Follows a job to its end: answers become updates as they come, and tasks without one are lost.
    fn follow(&self, job: &mut Submitted, taken: usize, on: &mut Listener<'_>) -> Result<()> {
        let (mut wait, mut silence) = (LOOK.0, SILENCE);
        loop {
            if self.stop.is_requested() {
                return Err(Error::Interrupted);
            }
            // The scheduler is asked before the answers are read: those of a job that has ended are then all there.
            let state = self.ask(job)?;
            let looked = Instant::now();
            let is_news = job.hear(state.is_some(), taken, on)?;
            if job.open.is_empty() {
                return Ok(());
            }
            match state {
                Some(JobState::Done) => return job.lose("it ended without an answer", taken, on),
                Some(JobState::Failed(why)) => match refusal_in(&why) {
                    Some(refusal) => return Err(Error::Input(refusal)),
                    None => return job.lose(&why, taken, on),
                },
                Some(JobState::Unknown) => {
                    self.send_again(job, "the scheduler was started again and has forgotten its tasks", taken, on)?;
                }
                Some(JobState::Open) | None => {}
            }
            // A message that is lost between the scheduler and an executor leaves a task with neither.
            if job.news.elapsed() > silence {
                silence *= 2;
                let url = &self.url;
                let why = format!(
                    "no executor has said anything about the tasks; `vlmdiff cluster executor --scheduler {url}` starts one more"
                );
                self.send_again(job, &why, taken, on)?;
            }
            job.beat_sometimes()?;
            // Answers that come one after another are looked for soon, but a long listing is not made all the time.
            wait = if is_news { LOOK.0 } else { (2 * wait).min(LOOK.1) };
            wait = wait.max(2 * looked.elapsed());
            std::thread::sleep(wait);
        }
    }

    /// Asks for the state of a job from time to time; `None` in between, and while the scheduler is silent.
    fn ask(&self, job: &mut Submitted) -> Result<Option<JobState>> {
        if job.asked.elapsed() < ASK {
            return Ok(None);
        }
        job.asked = Instant::now();
        match self.store.runtime().block_on(self.client.state(&job.name)) {
            Ok(state) => {
                job.silent = None;
                Ok(Some(state))
            }
            Err(status) => {
                let since = *job.silent.get_or_insert_with(Instant::now);
                if is_final(&status) || since.elapsed() > PATIENCE { Err(self.client.error(&status)) } else { Ok(None) }
            }
        }
    }

    /// Ends a job early: no more of its tasks are started, and those that run are asked to save what they have and waited for.
    fn give_up(&self, job: &mut Submitted, taken: usize, on: &mut Listener<'_>) -> Result<()> {
        job.beat(true)?;
        // A scheduler that does not answer starts no tasks either.
        _ = self.store.runtime().block_on(self.client.cancel(&job.name));
        let began = Instant::now();
        loop {
            job.hear_results(taken, on)?;
            let is_noticed = began.elapsed() > NOTICE;
            if job.open.is_empty() || (is_noticed && !job.is_running()?) || began.elapsed() > LAST_WORK {
                return Ok(());
            }
            std::thread::sleep(LOOK.1);
        }
    }
}

/// Returns true if asking again is of no use.
fn is_final(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unauthenticated
            | Code::PermissionDenied
            | Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::Unimplemented
    )
}

/// The tasks of a call; one that was taken and is of another job can be put back.
struct Tasks<'t> {
    tasks: &'t mut dyn Iterator<Item = Result<Task>>,
    back: Option<Result<Task>>,
}

impl Iterator for Tasks<'_> {
    type Item = Result<Task>;

    fn next(&mut self) -> Option<Result<Task>> {
        self.back.take().or_else(|| self.tasks.next())
    }
}

/// Tasks that become one job.
struct Gathered {
    began: Instant,
    job: Option<Job>,
    texts: Vec<u8>,
    /// The end of each task's text.
    ends: Vec<usize>,
}

impl Gathered {
    fn add(&mut self, task: Task) -> Result<()> {
        self.texts.extend(pack_task(&task)?);
        self.ends.push(self.texts.len());
        self.job.get_or_insert(task.job);
        Ok(())
    }
}

impl Executor for Cluster {
    fn slots(&self) -> usize {
        TABLES
    }

    /// Takes row-wise work that is not quick and that another machine can do: its files can be sent, and rows that lie outside
    /// the store lie at URLs.
    fn takes(&self, work: &TableWork<'_>) -> bool {
        let (table, stage) = (work.table, &work.table.stage);
        let is_elsewhere = |address: &str| !is_url(address) && local_path(address).exists();
        table.is_keyed()
            && !stage.is_quick()
            && !stage.is_bound()
            && (!table.inputs.is_empty() || !any_text(&stage.params(), &is_elsewhere))
            && work.files.iter().all(|(address, _)| is_url(address) || is_below_a_location(&**stage, address))
    }

    fn run(
        &self,
        tasks: &mut dyn Iterator<Item = Result<Task>>,
        on: &mut dyn FnMut(Update) -> Result<()>,
    ) -> Result<()> {
        let mut tasks = Tasks { tasks, back: None };
        let mut taken = 0;
        while let Some(gathered) = self.gather(&mut tasks)? {
            let mut job = self.submit(gathered)?;
            let count = job.open.len();
            let message =
                format!("{} went to the cluster in {:.1} s", tasks_of(count), job.began.elapsed().as_secs_f64());
            let told = on(Update::Report { task: taken, report: Report::Log { message } });
            let ended = told.and_then(|()| self.follow(&mut job, taken, on));
            if ended.is_err() {
                // The first error is the one that counts.
                _ = self.give_up(&mut job, taken, on);
            }
            // Files of the job that cannot be removed now are removed by a later clean-up (`gc`).
            _ = remove(&job.folder);
            ended?;
            taken += count;
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.store.runtime().block_on(self.client.leave());
    }
}

/// Formats a number of tasks.
fn tasks_of(count: usize) -> String {
    format!("{count} task{}", if count == 1 { "" } else { "s" })
}

/// Returns true if any text in a value is of this kind.
fn any_text(value: &Value, is: &dyn Fn(&str) -> bool) -> bool {
    match value {
        Value::String(text) => is(text),
        Value::Array(items) => items.iter().any(|item| any_text(item, is)),
        Value::Object(fields) => fields.values().any(|field| any_text(field, is)),
        _ => false,
    }
}

/// Returns true if a parameter says where a file lies, so that an executor can put another place there.
fn is_below_a_location(stage: &dyn Stage, address: &str) -> bool {
    let params = stage.params();
    let value = |path: &&'static str| params.pointer(&format!("/{}", path.replace('.', "/"))).and_then(Value::as_str);
    let below = |place: &str| {
        let beside = Path::new(address).parent() == Path::new(place).parent();
        address == place || beside || Path::new(address).starts_with(place) || !local_path(place).exists()
    };
    stage.locations().iter().filter_map(value).any(below)
}

/// Removes a job, the driver's sign of life first: an executor that writes to the job after its objects were listed finds no sign
/// then, and deletes what it wrote.
fn remove(folder: &JobFolder) -> Result<()> {
    folder.delete(DRIVER)?;
    folder.remove()
}
