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
        mpsc::{self, Sender},
    },
    task::JoinSet,
    time::timeout,
};
use tonic::Status;

use super::{
    limits::Limits,
    prepared::Statement,
    refusal::{status, unexpected},
};
use crate::{
    engine::{self, store::Store},
    query::{Planned, Rows},
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
}

impl Runner {
    pub(super) fn new(store: &Store, limits: Limits) -> Self {
        Self { store: store.clone(), limits, places: Arc::new(Semaphore::new(limits.at_once)) }
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
        let (work, limit) = (work(self.store.clone()), self.limits.time);
        let mut task = JoinSet::new();
        task.spawn_on(async move { Clock::new(limit).run(work).await }, self.store.runtime().handle());
        match task.join_next().await {
            Some(done) => done.map_err(unexpected)?,
            None => Err(unexpected("no work was done")),
        }
    }

    /// Returns a statement's parameters, and the schema of its result as far as it is known without their values.
    pub(super) async fn described(&self, statement: Statement) -> Result<(Schema, SchemaRef), Status> {
        let limits = self.limits;
        let described = move |store| async move {
            let planned = Self::planned(&store, limits, &statement).await?;
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
    async fn planned(store: &Store, limits: Limits, statement: &Statement) -> engine::Result<Planned> {
        let Statement { sql, pipeline, parameters } = statement;
        let planned = Planned::new(store, pipeline.as_deref(), limits.bounds, sql).await?;
        parameters.iter().try_fold(planned, |planned, row| planned.bind(row))
    }

    /// Returns the schema of a statement's result.
    pub(super) async fn schema(&self, statement: Statement) -> Result<SchemaRef, Status> {
        let limits = self.limits;
        let ready = move |store| async move { Self::planned(&store, limits, &statement).await?.rows().await };
        Ok(sent(&self.work(ready).await?.schema()))
    }

    /// Returns the rows of a statement as messages. It is planned and executed while they are taken, and ends when they are
    /// dropped.
    pub(super) fn messages(&self, statement: Statement) -> impl Stream<Item = Result<FlightData, Status>> + use<> {
        let (sender, messages) = mpsc::channel(AHEAD);
        let mut task = JoinSet::new();
        task.spawn_on(self.clone().send(statement, sender), self.store.runtime().handle());
        // The task tells how it ended: without that, rows that are missing would look like the end.
        futures::stream::unfold((messages, task), |(mut messages, mut task)| async move {
            if let Some(message) = messages.recv().await {
                return Some((Ok(message), (messages, task)));
            }
            let failure = match task.join_next().await? {
                Ok(Ok(())) => return None,
                Ok(Err(status)) => status,
                Err(panicked) => unexpected(panicked),
            };
            Some((Err(failure), (messages, task)))
        })
    }

    /// Executes a statement, sends its rows, and traces it.
    async fn send(self, statement: Statement, messages: Sender<FlightData>) -> Result<(), Status> {
        let mut span = Span::query(&statement.sql);
        let sent = self.execute(statement, messages).await;
        if let Err(status) = &sent {
            span.failed(&status.message());
        }
        sent
    }

    /// Executes a statement and sends its rows.
    async fn execute(self, statement: Statement, messages: Sender<FlightData>) -> Result<(), Status> {
        let _place = self.place().await?;
        let limits = self.limits;
        let mut clock = Clock::new(limits.time);
        let ready = async { Self::planned(&self.store, limits, &statement).await?.rows().await };
        let rows = clock.run(ready).await?;
        let schema = rows.schema();
        let batches = futures::stream::try_unfold((rows, clock), |(mut rows, mut clock): (Rows, Clock)| async move {
            let batch = clock.run(rows.next()).await?;
            Ok::<_, FlightError>(batch.map(|batch| (batch, (rows, clock))))
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

/// The time that a statement has left.
struct Clock {
    limit: Duration,
    left: Duration,
}

impl Clock {
    fn new(limit: Duration) -> Self {
        Self { limit, left: limit }
    }

    /// Does some of its work.
    async fn run<T>(&mut self, work: impl Future<Output = engine::Result<T>>) -> Result<T, Status> {
        let started = Instant::now();
        let done = timeout(self.left, work).await;
        self.left = self.left.saturating_sub(started.elapsed());
        match done {
            Ok(done) => done.map_err(|error| status(&error)),
            Err(_) => Err(Status::deadline_exceeded(format!(
                "the statement takes more than {} s, as long as one may; fewer rows or columns take less, and who runs the \
                 server can raise the limit",
                self.limit.as_secs_f64()
            ))),
        }
    }
}
