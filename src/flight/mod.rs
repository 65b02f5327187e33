//! SQL for other programs: Arrow Flight SQL over everything that a store has published. It only reads.
//!
//! A client sends a statement, is told the schema of its result, and fetches the rows as Arrow batches, which are sent as they
//! are computed. Each statement has a session of its own ([`crate::query`]), so that it sees what is published when it comes.
//! Requests are received on threads of their own, statements run on those of the store, so that a long one delays no other
//! client. `service.rs` has the requests, `running.rs` the limits.

mod catalogue;
mod facts;
mod limits;
mod prepared;
mod ready;
mod refusal;
mod running;
mod schemas;
mod service;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use arrow_flight::flight_service_server::FlightServiceServer;
use tokio::{net::TcpListener, runtime::Builder};
use tonic::{
    Request, Status,
    service::Interceptor,
    transport::{Identity, ServerTlsConfig, server::TcpIncoming},
};

pub use self::limits::Limits;
use self::{schemas::WithSchemas, service::Service};
use crate::{
    engine::{Error, Result, store::Store},
    serving::Token,
};

/// The number of threads that receive requests and send rows.
const THREADS: usize = 2;
/// The time between two messages that find out if a client is still there, and the time that it has to answer one.
const ALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));
/// The time that a client has for the handshake of TLS.
const HANDSHAKE: Duration = Duration::from_secs(20);

/// Options of a server.
#[derive(Debug)]
pub struct Options {
    /// The address to listen on. The port 0 stands for any free one.
    pub listen: SocketAddr,
    /// The token that requests have to carry.
    pub token: Option<Token>,
    /// The files with the certificate and the key of TLS, as PEM; without them connections are not encrypted.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The pipeline to which bare table names refer; `None` for the one that ran last when a statement comes.
    pub pipeline: Option<String>,
    /// The limits of statements.
    pub limits: Limits,
}

/// Answers requests until `stop` is ready, and then finishes the statements that run. `ready` is called with the address once
/// the server listens.
///
/// # Errors
/// [`Error::Input`] if the address, the certificate or the key cannot be used.
pub fn serve(
    store: &Store,
    options: Options,
    stop: impl Future<Output = ()> + Send + 'static,
    ready: impl FnOnce(SocketAddr),
) -> Result<()> {
    let Options { listen, token, identity, pipeline, limits } = options;
    let mut server = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(ALIVE.0))
        .http2_keepalive_timeout(Some(ALIVE.1));
    if let Some((certificate, key)) = &identity {
        server = server.tls_config(encryption(certificate, key)?).map_err(|e| unusable(certificate, key, &e))?;
    }
    let service = WithSchemas(Service::new(store, pipeline, limits)?);
    let service = FlightServiceServer::with_interceptor(service, Guard(token));
    let runtime = Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?;
    let served = runtime.block_on(async {
        let cannot = |e| Error::Input(format!("cannot listen on {listen}: {e}; --listen names another address"));
        let listener = TcpListener::bind(listen).await.map_err(cannot)?;
        ready(listener.local_addr()?);
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let ended = server.add_service(service).serve_with_incoming_shutdown(incoming, stop).await;
        ended.map_err(|e| Error::Io(std::io::Error::other(e)))
    });
    runtime.shutdown_background();
    served
}

/// Reads certificate and key.
fn encryption(certificate: &Path, key: &Path) -> Result<ServerTlsConfig> {
    let read =
        |file: &Path| std::fs::read(file).map_err(|e| Error::Input(format!("cannot read {}: {e}", file.display())));
    let identity = Identity::from_pem(read(certificate)?, read(key)?);
    // Something else may have chosen for the process before, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Ok(ServerTlsConfig::new().identity(identity).timeout(HANDSHAKE))
}

fn unusable(certificate: &Path, key: &Path, error: &dyn std::error::Error) -> Error {
    let why = std::iter::successors(Some(error), |error| error.source()).last().map(ToString::to_string);
    Error::Input(format!(
        "{} and {} are no certificate and its key: {}; both are PEM files, as `openssl req -x509 -newkey rsa:2048 -nodes` makes them",
        certificate.display(),
        key.display(),
        why.unwrap_or_default()
    ))
}

/// Refuses requests without the token.
#[derive(Clone)]
struct Guard(Option<Token>);

impl Interceptor for Guard {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let header = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        match self.0 {
            Some(token) if !header.is_some_and(|header| token.is_in(header)) => Err(Status::unauthenticated(
                "the request carries no token, or another one; the header `authorization: Bearer TOKEN` would work, or the \
                 token as the password of any user",
            )),
            _ => Ok(request),
        }
    }
}
