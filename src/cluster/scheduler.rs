//! `vlmdiff cluster scheduler`: Ballista's scheduler, with TLS and a token.

use std::{future::Future, net::SocketAddr, sync::Arc};

use ballista_core::{
    config::TaskSchedulingPolicy, extension::SessionConfigExt,
    serde::protobuf::scheduler_grpc_server::SchedulerGrpcServer,
};
use ballista_scheduler::{cluster::BallistaCluster, config::SchedulerConfig, scheduler_process::create_scheduler};
use datafusion::prelude::SessionConfig;
use datafusion_proto::protobuf::{LogicalPlanNode, PhysicalPlanNode};
use tonic::{
    service::interceptor::InterceptedService,
    transport::{Server, server::TcpIncoming},
};

use super::{client::MESSAGE, node::Codec, security::Security};
use crate::engine::{Error, Result};

/// Seconds for which the result and the state of a job that has ended are kept.
const KEPT: u64 = 120;

/// Options of a scheduler.
pub struct SchedulerOptions {
    /// The address to listen on; port 0 stands for any free one.
    pub bind: SocketAddr,
    /// Seconds of silence after which an executor counts as lost, and its tasks go to others.
    pub lost_after: u64,
    /// TLS and the token.
    pub security: Security,
}

/// Schedules until `stop` ends; `ready` is told the URL.
pub async fn schedule(
    options: SchedulerOptions,
    stop: impl Future<Output = ()>,
    ready: impl FnOnce(&str),
) -> Result<()> {
    let SchedulerOptions { bind, lost_after, security } = options;
    let failed = |e: &dyn std::fmt::Display| Error::Worker(format!("the scheduler cannot start: {e}"));
    let incoming = TcpIncoming::bind(bind)
        .map_err(|e| Error::Input(format!("cannot listen on {bind}: {e}; --bind names another address")))?
        .with_nodelay(Some(true));
    let address = incoming.local_addr()?;
    let config = SchedulerConfig {
        bind_host: bind.ip().to_string(),
        bind_port: address.port(),
        scheduling_policy: TaskSchedulingPolicy::PullStaged,
        executor_timeout_seconds: lost_after,
        expire_dead_executor_interval_seconds: (lost_after / 4).max(1),
        no_executors_grace_period_seconds: 20 * lost_after,
        finished_job_data_clean_up_interval_seconds: KEPT,
        finished_job_state_clean_up_interval_seconds: KEPT,
        grpc_server_max_decoding_message_size: MESSAGE as u32,
        grpc_server_max_encoding_message_size: MESSAGE as u32,
        grpc_client_max_message_size: MESSAGE as u32,
        override_config_producer: Some(Arc::new(SessionConfig::new_with_ballista)),
        override_physical_codec: Some(Arc::new(Codec::default())),
        ..SchedulerConfig::default()
    };
    let cluster = BallistaCluster::new_from_config(&config).await.map_err(|e| failed(&e))?;
    let scheduler = create_scheduler::<LogicalPlanNode, PhysicalPlanNode>(cluster, Arc::new(config));
    let service = SchedulerGrpcServer::new(scheduler.await.map_err(|e| failed(&e))?)
        .max_encoding_message_size(MESSAGE)
        .max_decoding_message_size(MESSAGE);
    let mut server = Server::builder();
    if let Some(tls) = security.server() {
        server = server.tls_config(tls).map_err(|e| Error::Input(format!("the certificate or its key: {e}")))?;
    }
    ready(&format!("{}://{address}", if security.serves_tls() { "https" } else { "http" }));
    let served = server
        .add_service(InterceptedService::new(service, security.guard()))
        .serve_with_incoming_shutdown(incoming, stop);
    served.await.map_err(|e| Error::Worker(format!("the scheduler: {e}")))
}
