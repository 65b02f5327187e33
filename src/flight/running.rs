//! Runs statements within limits: on the threads of the store, so many at once, each for so long, and no longer than its
//! client is there.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::datatypes::{Schema, SchemaRef};
use arrow_flight::{FlightData, encode::FlightDataEncoderBuilder, error::FlightError};
use futures::{Stream, StreamExt};
use tokio::{
    sync::{
        OwnedSemaphorePermit, Semaphore,
        mpsc::{self, Receiver, Sender},
    },
    task::JoinSet,
    time::timeout,
};
use tonic::Status;

use super::{
    limits::Limits,
    prepared::Statement,
    ready::Ready,
    refusal::{status, unexpected},
};
use crate::{
    engine::{self, store::Store},
    query::{Kept, Planned, Rows},
    telemetry::Span,
};

/// The number of messages that are encoded before the client takes them. Each has about 2 MiB, or one row if that is larger.
const AHEAD: usize = 2;

/// Runs statements.
#[derive(Clone)]
pub(super) struct Runner {
    store: Store,
    limits: Limits,
    places: Arc<Semaphore>,
    ready: Arc<Ready>,
    kept: Arc<Kept>,
}

impl Runner {
    pub(super) fn new(store: &Store, limits: Limits) -> Self {
        let places = Arc::new(Semaphore::new(limits.at_once));
        let kept = Arc::new(Kept::new(limits.kept));
        Self { store: store.clone(), limits, places, ready: Arc::default(), kept }
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// Does some work that a statement or a listing of tables takes, such as planning it, within the time of a statement. It
    /// ends when the returned future is dropped, as it is when the client has gone.
    pub(super) async fn work<T, F>(&self, work: impl FnOnce(Store) -> F) -> Result<T, Status>
    where
        T: Send + 'static,
        F: Future<Output = engine::Result<T>> + Send + 'static,
    {
        let mut task = JoinSet::new();
        task.spawn_on(work(self.store.clone()), self.store.runtime().handle());
        match timeout(self.limits.time, task.join_next()).await {
            Ok(Some(Ok(done))) => done.map_err(|error| status(&error)),
            Ok(Some(Err(panicked))) => Err(unexpected(panicked)),
            Ok(None) => Err(unexpected("no work was done")),
            Err(_) => Err(too_long(self.limits.time)),
        }
    }

    /// Returns a statement's parameters, and the schema of its result as far as it is known without their values.
    pub(super) async fn described(&self, statement: Statement) -> Result<(Schema, SchemaRef), Status> {
        let runner = self.clone();
        let described = move |_| async move {
            let planned = runner.planned(&statement).await?;
            let parameters = planned.parameters()?;
            let schema = match parameters.fields().len() {
                0 => planned.rows().await?.schema(),
                _ => planned.expected_schema(),
            };
            Ok((parameters, schema))
        };
        let (parameters, schema) = self.work(described).await?;
        Ok((parameters, sent(&schema)))
    }

    /// Plans a statement and puts the values of its parameters in their places.
    async fn planned(&self, statement: &Statement) -> engine::Result<Planned> {
        let Statement { sql, pipeline, parameters, .. } = statement;
        let Self { store, limits, kept, .. } = self;
        let planned = Planned::new(store, pipeline.as_deref(), limits.bounds, kept, sql).await?;
        parameters.iter().try_fold(planned, |planned, row| planned.bind(row))
    }

    /// Returns the schema of a statement's result. The plan is kept for [`Runner::messages`].
    pub(super) async fn schema(&self, statement: Statement) -> Result<SchemaRef, Status> {
        let (runner, key) = (self.clone(), statement.key);
        let planned = move |_| async move { runner.planned(&statement).await?.rows().await };
        let rows = self.work(planned).await?;
        let schema = sent(&rows.schema());
        self.ready.keep(key, rows);
        Ok(schema)
    }

    /// Returns the rows of a statement as messages, as soon as it may run. It is planned, unless its plan was kept, and executed
    /// while they are taken, and ends when they are dropped.
    pub(super) async fn messages(
        &self,
        statement: Statement,
    ) -> Result<impl Stream<Item = Result<FlightData, Status>> + use<>, Status> {
        let place = self.place().await?;
        let span = Span::query(&statement.sql);
        let (sender, messages) = mpsc::channel(AHEAD);
        let mut task = JoinSet::new();
        task.spawn_on(self.clone().send(statement, sender, place), self.store.runtime().handle());
        let limit = self.limits.time;
        let running = Running { messages, task, limit, left: limit, span };
        Ok(futures::stream::unfold(running, |mut running| async move { Some((running.next().await?, running)) }))
    }

    /// Executes a statement and sends its rows. It has its place until then, also where its client has long gone and it has not
    /// noticed yet.
    async fn send(
        self,
        statement: Statement,
        messages: Sender<FlightData>,
        _place: OwnedSemaphorePermit,
    ) -> Result<(), Status> {
        let limits = self.limits;
        let rows = match self.ready.take(statement.key) {
            Some(rows) => rows,
            None => {
                let planned = async { self.planned(&statement).await?.rows().await };
                planned.await.map_err(|error| status(&error))?
            }
        };
        let schema = rows.schema();
        let batches = futures::stream::try_unfold(rows, |mut rows: Rows| async move {
            let batch = rows.next().await.map_err(|error| status(&error))?;
            Ok::<_, FlightError>(batch.map(|batch| (batch, rows)))
        });
        let mut encoded = std::pin::pin!(FlightDataEncoderBuilder::new().with_schema(schema).build(batches));
        while let Some(message) = encoded.next().await {
            match timeout(limits.time, messages.send(message?)).await {
                Ok(Ok(())) => {}
                // The client has gone.
                Ok(Err(_)) => return Ok(()),
                Err(_) => {
                    return Err(Status::deadline_exceeded(format!(
                        "the client took no rows for {} s, which is as long as a statement is kept for it",
                        limits.time.as_secs_f64()
                    )));
                }
            }
        }
        Ok(())
    }

    /// Waits until one more statement may run.
    async fn place(&self) -> Result<OwnedSemaphorePermit, Status> {
        let Limits { time, at_once, .. } = self.limits;
        match timeout(time, self.places.clone().acquire_owned()).await {
            Ok(place) => place.map_err(unexpected),
            Err(_) => Err(Status::resource_exhausted(format!(
                "{at_once} statements are running, as many as may at once, and none ended within {} s; try again later",
                time.as_secs_f64()
            ))),
        }
    }
}

/// Returns a schema as it is sent: dictionaries are sent as their values.
fn sent(schema: &SchemaRef) -> SchemaRef {
    let encoder = FlightDataEncoderBuilder::new().with_schema(schema.clone()).build(futures::stream::empty());
    encoder.known_schema().unwrap_or_else(|| schema.clone())
}

fn too_long(limit: Duration) -> Status {
    Status::deadline_exceeded(format!(
        "the statement takes more than {} s, as long as one may; fewer rows or columns take less, and who runs the server can \
         raise the limit",
        limit.as_secs_f64()
    ))
}

/// A statement that runs. The time is watched where its messages are taken, and not where it is computed: an operator that is
/// long at a batch would notice the end of the time as late.
struct Running {
    messages: Receiver<FlightData>,
    task: JoinSet<Result<(), Status>>,
    limit: Duration,
    /// What is left of the limit after the client has waited for messages.
    left: Duration,
    /// Its trace, which ends with it.
    span: Span,
}

impl Running {
    /// Returns the next message, or `None` at the end.
    async fn next(&mut self) -> Option<Result<FlightData, Status>> {
        let started = Instant::now();
        let next = timeout(self.left, self.message()).await;
        self.left = self.left.saturating_sub(started.elapsed());
        let next = next.unwrap_or_else(|_| Some(Err(too_long(self.limit))));
        if let Some(Err(status)) = &next {
            self.span.failed(&status.message());
        }
        next
    }

    async fn message(&mut self) -> Option<Result<FlightData, Status>> {
        if let Some(message) = self.messages.recv().await {
            return Some(Ok(message));
        }
        // The task tells how it ended: without that, rows that are missing would look like the end.
        match self.task.join_next().await? {
            Ok(Ok(())) => None,
            Ok(Err(status)) => Some(Err(status)),
            Err(panicked) => Some(Err(unexpected(panicked))),
        }
    }
}
