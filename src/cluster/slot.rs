//! The slot of an executor: a thread that runs one task at a time and writes its answer to the store.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{
    files,
    job::{
        ANSWERS, Answer, Answered, DRIVER, JOB, Order, SAID, Said, Sign, TASKS, Ticket, checked, name, unpack_job,
        unpack_task,
    },
};
use crate::engine::{
    Error, Stop, is_url, local_path,
    run::{Settings, Single},
    stage::{Job, StageKind, Task, TaskError},
    store::{JobFolder, Store},
};

/// The first and the longest interval at which a running task reports and asks whether its driver still waits for it. The
/// interval doubles each time, so that a stop is heard soon and a long task asks seldom.
const WATCH: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(2));

/// The time after which a driver without a new sign of life counts as gone. It gives one every few seconds.
const SILENCE: Duration = Duration::from_secs(60);

/// The number of jobs whose descriptions and drivers' signs are remembered.
const REMEMBERED: usize = 16;

/// Bytes of stack of the thread: as many as the thread of a command has, since predicates of any depth are evaluated.
const STACK: usize = 256 << 20;

/// The reason why a ticket got no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// Another attempt, here or elsewhere, may succeed.
    Passing(String),
    /// No attempt here can succeed; see [`super::job::refusal`].
    Refused(String),
}

impl Failure {
    fn refused(message: impl fmt::Display) -> Self {
        Self::Refused(super::job::refusal(&message.to_string()))
    }

    fn passing(error: Error) -> Self {
        Self::Passing(error.to_string())
    }
}

/// A request to the thread, and where its end is told.
type Request = (Arc<str>, String, oneshot::Sender<Result<(), Failure>>);

/// The identity of an executor and its means of running tasks.
#[derive(Clone)]
pub(super) struct Means {
    /// The name of the executor for messages.
    pub(super) name: String,
    pub(super) build: String,
    pub(super) device: String,
    pub(super) threads: usize,
    /// The path of `vlmdiff-worker`.
    pub(super) worker: PathBuf,
    pub(super) kinds: &'static [StageKind],
}

/// Hands tickets to the thread. Clones share it.
#[derive(Clone)]
pub(super) struct Slot {
    requests: mpsc::Sender<Request>,
    running: Arc<Running>,
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Slot")
    }
}

/// The state of the thread as others see it.
#[derive(Default)]
struct Running {
    /// The request to stop of the task that runs.
    stop: Mutex<Option<Stop>>,
    /// True while a ticket is worked on.
    is_busy: AtomicBool,
    /// The request that the executor ends.
    ends: Stop,
}

impl Running {
    fn stop(&self) -> MutexGuard<'_, Option<Stop>> {
        self.stop.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    /// Starts the thread.
    pub(super) fn start(means: Means) -> std::io::Result<Self> {
        let (requests, received) = mpsc::channel::<Request>();
        let running = Arc::<Running>::default();
        let thread =
            Thread { means, running: running.clone(), opened: None, jobs: VecDeque::new(), signs: HashMap::new() };
        std::thread::Builder::new().name("slot".into()).stack_size(STACK).spawn(move || thread.serve(received))?;
        Ok(Self { requests, running })
    }

    /// Runs the task of a ticket. Returns when its answer is in the store; in an executor that is asked to end, never: its
    /// tasks go to others when it has gone, while a failure would count against them.
    pub(super) async fn perform(&self, order: Arc<str>, ticket: String) -> Result<(), Failure> {
        let ended = || Failure::Passing("the thread of tasks has ended".into());
        let (say, heard) = oneshot::channel();
        self.requests.send((order, ticket, say)).map_err(|_| ended())?;
        let performed = heard.await.map_err(|_| ended())?;
        if performed.is_err() && self.running.ends.is_requested() {
            std::future::pending::<()>().await;
        }
        performed
    }

    /// Asks the task that runs to save what it has, and takes no more.
    pub(super) fn end(&self) {
        self.running.ends.request();
        if let Some(stop) = &*self.running.stop() {
            stop.request();
        }
    }

    /// Returns true if a ticket is worked on.
    pub(super) fn is_busy(&self) -> bool {
        self.running.is_busy.load(Ordering::SeqCst)
    }
}

/// The state of the thread.
struct Thread {
    means: Means,
    running: Arc<Running>,
    /// The store of the last task, and what runs tasks on it.
    opened: Option<Opened>,
    /// Jobs by their digests, the newest last.
    jobs: VecDeque<(String, Job)>,
    /// The last sign of life of each driver, and when it was new.
    signs: HashMap<String, (u64, Instant)>,
}

struct Opened {
    store: Store,
    settings: Settings,
    single: Single,
    stop: Stop,
    /// True if the store could be read.
    is_proven: bool,
}

impl Thread {
    fn serve(mut self, requests: mpsc::Receiver<Request>) {
        for (order, ticket, say) in requests {
            self.running.is_busy.store(true, Ordering::SeqCst);
            let performed = self.perform(&order, &ticket);
            self.running.is_busy.store(false, Ordering::SeqCst);
            // The plan that asked may have been given up.
            _ = say.send(performed);
        }
    }

    fn perform(&mut self, order: &str, ticket: &str) -> Result<(), Failure> {
        if self.running.ends.is_requested() {
            return Err(Failure::Passing(format!("{} is ending", self.means.name)));
        }
        let order = self.order(order)?;
        let ticket: Ticket =
            serde_json::from_str(ticket).map_err(|e| Failure::refused(format!("a ticket that cannot be read: {e}")))?;
        let store = self.open(&order)?;
        let folder = JobFolder::new(&store, &order.job);
        let sign = folder.open::<Sign>(DRIVER).map_err(|error| self.unread(error))?;
        let sign = sign.ok_or_else(|| self.elsewhere(&order))?;
        self.opened.iter_mut().for_each(|opened| opened.is_proven = true);
        if sign.stops {
            return Ok(());
        }
        self.heed(&order.job, sign)?;
        let place = name(ANSWERS, ticket.number);
        // Ballista repeats what a lost executor had done.
        if folder.get(&place).map_err(Failure::passing)?.is_some() {
            return Ok(());
        }
        let began = Instant::now();
        let (answer, said) = match self.task(&order, &ticket, &folder) {
            Ok(task) => self.run(task, &folder, &order.job, ticket.number)?,
            Err(error @ (Error::Store(_) | Error::Io(_))) => return Err(Failure::passing(error)),
            Err(error) => (Answer::Failed(self.named(error)), Said::by(&self.means.name)),
        };
        // The first answer counts, if the task ran twice.
        folder.seal_once(&place, &Answered { answer, said }).map_err(Failure::passing)?;
        // Another executor may have been given the task meanwhile, so that the driver is done with the job and has removed it.
        if began.elapsed() > WATCH.0 && folder.get(DRIVER).map_err(Failure::passing)?.is_none() {
            for place in [place, name(SAID, ticket.number)] {
                folder.delete(&place).map_err(Failure::passing)?;
            }
        }
        Ok(())
    }

    /// Reads the order of a driver of this build.
    fn order(&self, text: &str) -> Result<Order, Failure> {
        #[derive(serde::Deserialize)]
        struct Build {
            build: String,
        }
        let unreadable = |e: serde_json::Error| Failure::refused(format!("an order that cannot be read: {e}"));
        let Build { build } = serde_json::from_str(text).map_err(unreadable)?;
        if build != self.means.build {
            return Err(Failure::refused(format!(
                "{} is of build {}, and the driver of build {build}; a task means what the code says that runs it, so start \
                 executors from the files that the driver has",
                self.means.name, self.means.build
            )));
        }
        serde_json::from_str(text).map_err(unreadable)
    }

    /// Makes the failure of an executor that sees another store than the driver.
    fn elsewhere(&self, order: &Order) -> Failure {
        Failure::refused(format!(
            "{} does not see what the driver wrote to the store {}: it lacks jobs/{}; a folder that all machines mount at this \
             path, or s3://BUCKET/PREFIX, would work",
            self.means.name, order.store, order.job
        ))
    }

    /// Makes the failure of a store that cannot be read. An error of a store that could be read before is that of a network; at
    /// first it is one of credentials or of the address, which another attempt does not change.
    fn unread(&self, error: Error) -> Failure {
        match self.opened.as_ref().is_some_and(|opened| opened.is_proven) {
            true => Failure::passing(error),
            false => Failure::refused(format!("{} cannot read the store: {error}", self.means.name)),
        }
    }

    /// Returns the store of an order, which is opened with what runs tasks on it unless the last task had them.
    fn open(&mut self, order: &Order) -> Result<Store, Failure> {
        let settings = order.settings(&self.means.device);
        let (mut store, mut is_proven) = (None, false);
        if let Some(opened) = self.opened.take().filter(|opened| opened.store.url == order.store) {
            store = Some(opened.store.clone());
            is_proven = opened.is_proven;
            if opened.settings == settings && !opened.stop.is_requested() {
                self.opened = Some(opened);
            }
        }
        let store = match store {
            Some(store) => store,
            None if !is_url(&order.store) && !local_path(&order.store).is_dir() => return Err(self.elsewhere(order)),
            None => Store::open(&order.store)
                .map_err(|error| Failure::refused(format!("{} cannot open the store: {error}", self.means.name)))?,
        };
        if self.opened.is_none() {
            let Means { worker, threads, kinds, .. } = &self.means;
            let stop = Stop::default();
            let single = Single::new(&store, worker.clone(), &settings, *threads, kinds, &stop);
            self.opened = Some(Opened { store: store.clone(), settings, single, stop, is_proven });
        }
        Ok(store)
    }

    /// Remembers a driver's sign of life. It is an error if it has been the same for long.
    fn heed(&mut self, job: &str, sign: Sign) -> Result<(), Failure> {
        if self.signs.len() > REMEMBERED {
            self.signs.retain(|_, (_, since)| since.elapsed() < 2 * SILENCE);
        }
        match self.signs.get(job) {
            Some((beat, since)) if *beat == sign.beat && since.elapsed() > SILENCE => {
                Err(Failure::refused("the driver of the job has ended"))
            }
            Some((beat, _)) if *beat == sign.beat => Ok(()),
            _ => {
                self.signs.insert(job.to_owned(), (sign.beat, Instant::now()));
                Ok(())
            }
        }
    }

    /// Reads a task.
    fn task(&mut self, order: &Order, ticket: &Ticket, folder: &JobFolder) -> Result<Task, Error> {
        let key = format!("{}/{}", order.job, order.digest);
        if !self.jobs.iter().any(|(known, _)| *known == key) {
            let bytes = checked(folder, JOB, order.digest, None)?;
            let mut job = unpack_job(&bytes)?;
            if let Some(Opened { store, .. }) = &self.opened {
                files::place(&mut job, store, self.means.kinds, order.verify)?;
            }
            self.jobs.push_back((key.clone(), job));
            if self.jobs.len() > REMEMBERED {
                self.jobs.pop_front();
            }
        }
        let bytes = checked(folder, TASKS, ticket.digest, Some((ticket.start, ticket.end)))?;
        match self.jobs.iter().find(|(known, _)| *known == key) {
            Some((_, job)) => unpack_task(&bytes, job),
            None => Err(Error::Worker("a job was forgotten".into())),
        }
    }

    /// Runs a task to its end. Meanwhile another thread tells what it reports, and ends it early if its driver is gone.
    fn run(&mut self, task: Task, folder: &JobFolder, job: &str, number: usize) -> Result<(Answer, Said), Failure> {
        let Some(Opened { single, stop, .. }) = &mut self.opened else {
            return Err(Failure::Passing("no store is open".into()));
        };
        *self.running.stop() = Some(stop.clone());
        // The request to end may have come before the task was known.
        if self.running.ends.is_requested() {
            stop.request();
        }
        let said = Mutex::new(Said::by(&self.means.name));
        let lock = || said.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = self.signs.get(job).copied();
        let ended = std::thread::scope(|scope| {
            let (over, is_over) = mpsc::channel::<()>();
            let stop = stop.clone();
            let watch = scope.spawn(move || {
                let (mut seen, mut wait) = (seen, WATCH.0);
                while is_over.recv_timeout(wait) == Err(mpsc::RecvTimeoutError::Timeout) {
                    wait = (2 * wait).min(WATCH.1);
                    // A failure to read or write is that of a network, and the next attempt may succeed.
                    match folder.open::<Sign>(DRIVER) {
                        Ok(sign) if is_given_up(sign, &mut seen) => stop.request(),
                        Ok(_) => {
                            let mut said = lock();
                            said.beat += 1;
                            _ = folder.seal(&name(SAID, number), &*said);
                        }
                        Err(_) => {}
                    }
                }
                seen
            });
            let ended = single.run(task, &mut |report| lock().add(report));
            drop(over);
            (ended, watch.join().ok().flatten())
        });
        let (ended, seen) = ended;
        *self.running.stop() = None;
        if let Some(seen) = seen {
            self.signs.insert(job.to_owned(), seen);
        }
        if matches!(ended, Ok(Err(Error::Interrupted))) && self.running.ends.is_requested() {
            return Err(Failure::Passing(format!("{} is ending; what the task had is saved", self.means.name)));
        }
        Ok((Answer::of(ended), said.into_inner().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Names the executor in an error that may be its machine's.
    fn named(&self, error: Error) -> TaskError {
        match error {
            Error::Input(message) => TaskError::Input(format!("{}: {message}", self.means.name)),
            error => error.into(),
        }
    }
}

/// Returns true if the driver asks its tasks to stop, has removed the job, or has given no new sign of life for long.
fn is_given_up(sign: Option<Sign>, seen: &mut Option<(u64, Instant)>) -> bool {
    let Some(sign) = sign else { return true };
    match seen {
        Some((beat, since)) if *beat == sign.beat => sign.stops || since.elapsed() > SILENCE,
        _ => {
            *seen = Some((sign.beat, Instant::now()));
            sign.stops
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Digest;

    fn thread() -> Thread {
        let means = Means {
            name: "the executor a:1".into(),
            build: "1-b".into(),
            device: "cpu".into(),
            threads: 1,
            worker: "vlmdiff-worker".into(),
            kinds: &[],
        };
        Thread { means, running: Arc::default(), opened: None, jobs: VecDeque::new(), signs: HashMap::new() }
    }

    fn order(build: &str, store: &str) -> String {
        let (batch_size, verify) = (None, false);
        let digest = Digest::of(b"job");
        let (build, store, job) = (build.into(), store.into(), "j".into());
        serde_json::to_string(&Order { build, store, job, digest, batch_size, verify }).unwrap()
    }

    const TICKET: &str = r#"{"number":0,"start":0,"end":1,"digest":"00000000000000000000000000000000"}"#;

    /// Returns the refusal of an order as the driver reads it.
    fn refusal(order: &str) -> String {
        match thread().perform(order, TICKET) {
            Err(Failure::Refused(message)) => super::super::job::refusal_in(&message).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn order_of_another_build_is_refused_whatever_it_says() {
        for order in [order("1-c", "nowhere"), r#"{"build":"1-c","new":true}"#.into()] {
            let told = refusal(&order);
            assert!(told.starts_with("the executor a:1 is of build 1-b, and the driver of build 1-c;"), "{told}");
        }
    }

    #[test]
    fn store_that_is_not_the_drivers_is_refused_and_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let absent = folder.path().join("absent");
        for store in [&absent, folder.path()] {
            let told = refusal(&order("1-b", &store.to_string_lossy()));
            assert!(
                told.contains("does not see what the driver wrote") && told.contains("s3://BUCKET/PREFIX"),
                "{told}"
            );
        }
        assert!(!absent.exists());
    }

    #[test]
    fn ticket_that_has_an_answer_is_done() {
        let folder = tempfile::tempdir().unwrap();
        let address = folder.path().canonicalize().unwrap().to_string_lossy().into_owned();
        let job = JobFolder::new(&Store::open(&address).unwrap(), "j");
        job.seal(DRIVER, &Sign { beat: 0, stops: false }).unwrap();
        let run = || thread().perform(&order("1-b", &address), TICKET);
        assert!(run().is_ok(), "the job is missing, which is answered");
        let answered = job.open::<Answered>(&name(ANSWERS, 0)).unwrap().unwrap();
        assert!(
            matches!(&answered.answer, Answer::Failed(TaskError::Stage(told)) if told.contains("`job` of a job is missing"))
        );
        job.seal(JOB, &Sign { beat: 0, stops: false }).unwrap();
        assert!(run().is_ok());
        let again = job.open::<Answered>(&name(ANSWERS, 0)).unwrap().unwrap();
        assert_eq!(format!("{:?}", again.answer), format!("{:?}", answered.answer), "the first answer counts");
    }

    #[test]
    fn task_is_given_up_at_the_request_or_without_a_driver() {
        let sign = |beat, stops| Some(Sign { beat, stops });
        let mut seen = None;
        assert!(!is_given_up(sign(1, false), &mut seen));
        assert!(is_given_up(sign(2, true), &mut seen));
        assert!(is_given_up(None, &mut seen));
        let long_ago = Instant::now().checked_sub(2 * SILENCE).unwrap();
        assert!(is_given_up(sign(2, false), &mut Some((2, long_ago))));
        let mut old = Some((2, long_ago));
        assert!(!is_given_up(sign(3, false), &mut old) && old.unwrap().0 == 3, "a new sign counts from now");
    }
}
