//! Judges photographs over HTTP: verdicts, regions and pictures, and a page that shows them.
//!
//! A request takes a place in the queue, its photograph is received into a file, and one thread judges all photographs that
//! wait as one batch through one run of the engine. The last photographs are kept with their answers and maps.

mod answer;
mod archive;
mod connections;
mod figures;
mod judging;
mod memory;
mod now;
mod openapi;
mod page;
mod pictures;
mod queue;
mod routes;
mod selection;
mod shared;
mod token;
mod upload;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use tokio::{net::TcpListener, runtime::Builder, sync::Semaphore};

use self::{archive::Archive, connections::is_true, figures::Figures, now::Now, queue::Queue, shared::Shared};
pub use self::{
    token::{Token, password},
    upload::Limits,
};
use crate::{
    engine::{
        Error, Result, now_ms,
        pipeline::Pipeline,
        stage::StageKind,
        store::{Lock, Store},
    },
    inspect::Inspector,
    report,
};

/// Bytes of the stack of the thread that judges: as many as a main thread has.
const STACK: usize = 8 << 20;
/// The number of pictures that are drawn at once. Each has a decoded photograph in memory.
const DRAWN_AT_ONCE: usize = 2;
/// The time within which the head of a request has to be received.
const HEAD: Duration = Duration::from_secs(30);
/// The time that clients have to take their answers, after the last photograph was judged and the server ends.
const PATIENCE: Duration = Duration::from_secs(10);

/// Options of a server.
#[derive(Debug)]
pub struct Options {
    /// The address to listen on. The port 0 stands for any free one.
    pub listen: SocketAddr,
    /// The greatest number of photographs that wait or are being judged.
    pub queue: usize,
    /// The greatest size of a photograph.
    pub limits: Limits,
    /// The number of photographs that are kept.
    pub keep: usize,
    /// The folder in which they are kept.
    pub folder: PathBuf,
    /// The token that requests have to carry.
    pub token: Option<Token>,
}

/// A server that is not running yet.
pub struct Server {
    shared: Shared,
    listen: SocketAddr,
    jobs: std::sync::mpsc::Receiver<queue::Job>,
    /// Keeps other servers from publishing tables under the same name.
    _claim: Lock,
}

impl Server {
    /// Prepares a server that judges by an inspector of a pipeline.
    ///
    /// # Errors
    /// [`Error::Input`] if another server uses the name of the inspector's tables, or the folder.
    pub fn new(
        store: &Store,
        pipeline: &Pipeline,
        inspector: Inspector,
        kinds: &'static [StageKind],
        options: Options,
    ) -> Result<Self> {
        let name = inspector.name();
        let claim = store.claim(name)?.ok_or_else(|| {
            Error::Input(format!(
                "another server publishes its tables as `{name}` in the store {}; --name gives this one tables of its own",
                store.url
            ))
        })?;
        let scales = inspector.scales(pipeline)?;
        let archive = Archive::open(&options.folder, options.keep, &inspector.digest())?;
        let source = report::Source::open(store, Some(&pipeline.name), kinds)?;
        let (queue, jobs) = Queue::new(options.queue);
        let shared = Shared {
            store: store.clone(),
            inspector_digest: inspector.digest(),
            inspector: inspector.without_regions(),
            pipeline: pipeline.name.clone(),
            scales,
            archive,
            queue,
            figures: Figures::default(),
            now: Now::default(),
            templates: page::templates()?,
            own_verdicts: report::verdicts(&source)?,
            limits: options.limits,
            token: options.token,
            drawing: Arc::new(Semaphore::new(DRAWN_AT_ONCE)),
            started_ms: now_ms(),
        };
        Ok(Self { shared, listen: options.listen, jobs, _claim: claim })
    }

    /// Answers requests until `stop` is ready, and finishes what was accepted until then. `ready` is called with the address
    /// once it listens.
    ///
    /// # Errors
    /// [`Error::Input`] if the address cannot be used.
    pub fn run(self, stop: impl Future<Output = ()> + Send + 'static, ready: impl FnOnce(SocketAddr)) -> Result<()> {
        let Self { shared, listen, jobs, _claim } = self;
        memory::give_back_large_blocks();
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let cannot = |e| Error::Input(format!("cannot listen on {listen}: {e}; --listen names another address"));
        let listener = runtime.block_on(TcpListener::bind(listen)).map_err(cannot)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(shared);
        let judging = shared.clone();
        let thread = std::thread::Builder::new().name("judge".into()).stack_size(STACK);
        let judge = thread.spawn(move || judging::judge_all(&judging, &jobs))?;
        ready(address);
        let (say, heard) = tokio::sync::watch::channel(false);
        runtime.spawn(async move {
            stop.await;
            let _ = say.send(true);
        });
        let serve = connections::serve(listener, routes::router(shared.clone()), heard.clone(), HEAD);
        let waiting = shared.clone();
        runtime.block_on(async move {
            tokio::select! {
                () = serve => {}
                // Clients that do not take their answers are not waited for without end.
                () = async {
                    is_true(heard).await;
                    while waiting.queue.length() > 0 {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    tokio::time::sleep(PATIENCE).await;
                } => {}
            }
        });
        shared.queue.close();
        let judged = judge.join();
        runtime.shutdown_timeout(PATIENCE);
        judged.map_err(|_| Error::Stage("the thread that judges photographs ended unexpectedly".into()))
    }
}
