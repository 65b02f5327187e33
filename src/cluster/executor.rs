//! `vlmdiff cluster executor`: takes tasks from a scheduler, one at a time, and runs them by its [`Slot`].

use std::{future::Future, path::PathBuf, sync::Arc, time::Duration};

use ballista_core::{
    BALLISTA_PROTOCOL_VERSION,
    extension::SessionConfigExt,
    serde::{
        BallistaCodec, BallistaLogicalExtensionCodec,
        protobuf::{
            ExecutorOperatingSystemSpecification, ExecutorRegistration, ExecutorResource, ExecutorSpecification,
            ExecutorStoppedParams, executor_resource::Resource,
        },
    },
};
use ballista_executor::{
    execution_loop::poll_loop, executor::Executor, health::ExecutorHealth, metrics::LoggingMetricsCollector,
};
use datafusion::{execution::runtime_env::RuntimeEnvBuilder, prelude::SessionConfig};
use datafusion_proto::protobuf::{LogicalPlanNode, PhysicalPlanNode};

use super::{
    build_id::build_id,
    client::Client,
    node::Codec,
    security::Security,
    slot::{Means, Slot},
};
use crate::engine::{Error, Result, stage::StageKind};

/// The interval at which the connection to the scheduler is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The time in which the end of the last task is told to the scheduler.
const FAREWELL: Duration = Duration::from_millis(500);

/// Options of an executor.
pub struct ExecutorOptions {
    /// The URL of the scheduler.
    pub scheduler: String,
    /// The device of networks.
    pub device: String,
    /// The number of threads.
    pub threads: usize,
    /// The path of `vlmdiff-worker`.
    pub worker: PathBuf,
    /// The stages.
    pub kinds: &'static [StageKind],
    /// The name of this machine.
    pub host: String,
    /// TLS and the token.
    pub security: Security,
}

/// Takes tasks until `stop` ends. The finished rows of a task are then saved, and the others go to another executor.
/// `say` is told about the connection to the scheduler.
pub async fn execute(options: ExecutorOptions, stop: impl Future<Output = ()>, say: impl Fn(&str)) -> Result<()> {
    let ExecutorOptions { scheduler, device, threads, worker, kinds, host, security } = options;
    let client = Client::new(&scheduler, &security)?;
    client.check().await?;
    let build = build_id(&worker)?;
    let id = format!("{host}-{}-{:08x}", std::process::id(), rand::random::<u32>());
    let name = format!("the executor {}:{}", host, std::process::id());
    let slot = Slot::start(Means { name, build: build.clone(), device: device.clone(), threads, worker, kinds })?;
    // Tickets of tasks that have ended are kept here for a while.
    let folder = tempfile::tempdir()?;
    let registration = ExecutorRegistration {
        id: id.clone(),
        host: Some(host),
        // Nobody connects to an executor.
        port: 0,
        grpc_port: 0,
        specification: Some(ExecutorSpecification {
            resources: vec![ExecutorResource { resource: Some(Resource::Vcores(1)) }],
        }),
        os_info: Some(ExecutorOperatingSystemSpecification::default()),
        ballista_protocol_version: BALLISTA_PROTOCOL_VERSION,
    };
    let temporary = folder.path().to_owned();
    let executor = Executor::with_default_execution_engine(
        registration,
        &folder.path().to_string_lossy(),
        Arc::new(move |_: &SessionConfig| {
            Ok(Arc::new(RuntimeEnvBuilder::new().with_temp_file_path(temporary.clone()).build()?))
        }),
        Arc::new(SessionConfig::new_with_ballista),
        Arc::default(),
        Arc::new(LoggingMetricsCollector::default()),
        1,
    );
    let codec: BallistaCodec<LogicalPlanNode, PhysicalPlanNode> = BallistaCodec::new(
        Arc::new(BallistaLogicalExtensionCodec::default()),
        Arc::new(Codec::of_executor(slot.clone())),
    );
    let health = ExecutorHealth::new();
    let polls = tokio::spawn(poll_loop(client.grpc(), Arc::new(executor), codec, None, None, health.clone()));
    say(&format!("takes tasks of {scheduler} on {device}, as build {build}"));
    let watch = async {
        let mut was_heard = true;
        loop {
            tokio::time::sleep(LOOK).await;
            let is_heard = health.is_ready();
            if was_heard != is_heard {
                say(&match is_heard {
                    true => format!("the scheduler {scheduler} answers again"),
                    false => format!("the scheduler {scheduler} does not answer; asking again until it does"),
                });
            }
            was_heard = is_heard;
        }
    };
    tokio::pin!(stop);
    tokio::select! {
        () = &mut stop => {}
        () = watch => {}
        ended = polls => {
            let why = match ended {
                Ok(Err(error)) => error.to_string(),
                Ok(Ok(())) => "it ended".into(),
                Err(error) => error.to_string(),
            };
            return Err(Error::Worker(format!("the executor cannot ask for tasks: {why}")));
        }
    }
    slot.end();
    while slot.is_busy() {
        tokio::time::sleep(FAREWELL / 10).await;
    }
    tokio::time::sleep(FAREWELL).await;
    let farewell = ExecutorStoppedParams { executor_id: id, reason: "asked to end".into() };
    // A scheduler that is not told notices the silence.
    _ = tokio::time::timeout(FAREWELL, client.grpc().executor_stopped(farewell)).await;
    Ok(())
}
