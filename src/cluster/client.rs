//! The scheduler, as drivers and executors see it.

use std::time::Duration;

use ballista_core::{
    config::BALLISTA_SCHEDULER_MAX_PARTITIONS_PER_TASK,
    extension::{SessionConfigExt, SessionConfigHelperExt},
    serde::protobuf::{
        CancelJobParams, ExecuteQueryParams, GetJobStatusParams, RemoveSessionParams, execute_query_params::Query,
        execute_query_result, job_status::Status as JobStatus, scheduler_grpc_client::SchedulerGrpcClient,
    },
    version::insert_version_header,
};
use datafusion::prelude::SessionConfig;
use tonic::{
    Code, Request, Status,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};

use super::security::{Security, Sender};
use crate::engine::{Digest, Error, Result};

/// The greatest size of a message. The plan of a job has some hundred bytes per task.
pub(super) const MESSAGE: usize = 64 << 20;

/// Time for making a connection, and for the answer to a request.
const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(20);

/// The interval of the messages by which a connection that was cut silently is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// The port of a scheduler whose URL names none.
pub(super) const PORT: u16 = 50050;

/// The client that Ballista's own code uses.
pub(super) type Grpc = SchedulerGrpcClient<InterceptedService<Channel, Sender>>;

/// The state of a job.
#[derive(Debug, PartialEq)]
pub(super) enum JobState {
    /// The job waits or runs.
    Open,
    /// All of its tasks have ended well.
    Done,
    /// The job was given up, for this reason.
    Failed(String),
    /// The scheduler does not know it, because it was started again.
    Unknown,
}

/// A client of a scheduler. The connection is made at the first request, and again after it was cut.
#[derive(Clone)]
pub(super) struct Client {
    url: String,
    grpc: Grpc,
    /// The session of this process at the scheduler.
    session: String,
}

impl Client {
    /// Makes a client. A runtime has been entered.
    pub(super) fn new(url: &str, security: &Security) -> Result<Self> {
        let wrong = |why: &dyn std::fmt::Display| {
            Error::Input(format!("the scheduler `{url}`: {why}; http://HOST:{PORT}, or https:// with TLS, would work"))
        };
        let mut parsed = url::Url::parse(url).map_err(|e| wrong(&e))?;
        if !["http", "https"].contains(&parsed.scheme()) || parsed.host_str().is_none() {
            return Err(wrong(&"it is no URL of a host"));
        }
        if parsed.port().is_none() {
            _ = parsed.set_port(Some(PORT));
        }
        let endpoint = Endpoint::from_shared(parsed.to_string()).map_err(|e| wrong(&e))?;
        let endpoint = endpoint
            .connect_timeout(CONNECT)
            .timeout(ANSWER)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        let channel = security.connection(endpoint).map_err(|e| wrong(&source_of(&e)))?.connect_lazy();
        let grpc = SchedulerGrpcClient::with_interceptor(channel, security.sender())
            .max_encoding_message_size(MESSAGE)
            .max_decoding_message_size(MESSAGE);
        let session = Digest::of(&rand::random::<[u8; 16]>()).to_string();
        Ok(Self { url: url.to_owned(), grpc, session })
    }

    /// Returns the client that Ballista's own code uses.
    pub(super) fn grpc(&self) -> Grpc {
        self.grpc.clone()
    }

    /// Makes the error of a request that failed.
    pub(super) fn error(&self, status: &Status) -> Error {
        let url = &self.url;
        let why = source_of(status);
        Error::Input(match status.code() {
            Code::Unauthenticated => format!(
                "the scheduler {url} refuses: {why}; --token-file, or the variable VLMDIFF_CLUSTER_TOKEN, has to have its token"
            ),
            _ => format!(
                "the scheduler {url} does not answer: {why}; `vlmdiff cluster scheduler` starts one, and with TLS its URL begins \
                 with https:// and --tls-ca names the authority of its certificate"
            ),
        })
    }

    /// Checks that the scheduler answers, and accepts this node.
    pub(super) async fn check(&self) -> Result<()> {
        let asked = self.grpc.clone().get_job_status(GetJobStatusParams { job_id: "none".into() }).await;
        asked.map(|_| ()).map_err(|status| self.error(&status))
    }

    /// Submits a plan, and returns the name that the scheduler gives to the job.
    pub(super) async fn submit(&self, plan: Vec<u8>) -> Result<String, Status> {
        let config = SessionConfig::new_with_ballista()
            // A plan without an exchange gains nothing by adaptation.
            .with_ballista_adaptive_query_planner(false)
            // A task of several tickets would be repeated as a whole, and would occupy one executor.
            .set_usize(BALLISTA_SCHEDULER_MAX_PARTITIONS_PER_TASK, 1);
        let query = ExecuteQueryParams {
            session_id: self.session.clone(),
            settings: config.to_key_value_pairs(),
            operation_id: String::new(),
            query: Some(Query::PhysicalPlan(plan)),
        };
        let mut request = Request::new(query);
        insert_version_header(request.metadata_mut());
        match self.grpc.clone().execute_query(request).await?.into_inner().result {
            Some(execute_query_result::Result::Success(success)) => Ok(success.job_id),
            Some(execute_query_result::Result::Failure(failure)) => {
                Err(Status::invalid_argument(format!("it cannot read the plan: {failure:?}")))
            }
            None => Err(Status::internal("an empty answer")),
        }
    }

    /// Asks for the state of a job.
    pub(super) async fn state(&self, job: &str) -> Result<JobState, Status> {
        let answer = self.grpc.clone().get_job_status(GetJobStatusParams { job_id: job.to_owned() }).await?;
        Ok(match answer.into_inner().status {
            None => JobState::Unknown,
            Some(status) => match status.status {
                None | Some(JobStatus::Queued(_) | JobStatus::Running(_)) => JobState::Open,
                Some(JobStatus::Successful(_)) => JobState::Done,
                Some(JobStatus::Failed(failed)) => JobState::Failed(failed.error),
            },
        })
    }

    /// Asks the scheduler to give a job up: no more of its tasks are started.
    pub(super) async fn cancel(&self, job: &str) -> Result<(), Status> {
        self.grpc.clone().cancel_job(CancelJobParams { job_id: job.to_owned() }).await.map(|_| ())
    }

    /// Lets the scheduler forget this process.
    pub(super) async fn leave(&self) {
        // A scheduler that does not answer has nothing to forget.
        _ = self.grpc.clone().remove_session(RemoveSessionParams { session_id: self.session.clone() }).await;
    }
}

/// Returns the innermost cause of an error, which says what happened: `Connection refused` and not `transport error`.
fn source_of(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    match error.source() {
        Some(_) => cause.to_string(),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn url_of_another_kind_is_refused_with_one_that_works() {
        for url in ["localhost:50050", "s3://bucket", "nonsense"] {
            let told = Client::new(url, &Security::default()).err().unwrap().to_string();
            assert!(told.contains(url) && told.contains("http://HOST:50050"), "{told}");
        }
    }

    #[tokio::test]
    async fn scheduler_that_does_not_run_is_named_with_the_cause() {
        let client = Client::new("http://127.0.0.1:1", &Security::default()).unwrap();
        let told = client.check().await.unwrap_err().to_string();
        assert!(told.contains("http://127.0.0.1:1 does not answer: Connection refused"), "{told}");
    }
}
