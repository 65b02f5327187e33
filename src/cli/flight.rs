//! `vlmdiff flight`

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::Result;
use clap::Args;

use super::{
    EXIT_DONE, EXIT_INTERRUPTED, StoreArgs,
    run::{next, signals},
    serve::token,
    text::{listen_address, print, say},
};
use crate::{
    engine::Error,
    flight::{self, Limits, Options},
    query::Bounds,
};

/// Answer SQL of other programs over the published tables, by Arrow Flight SQL.
///
/// DBeaver, Superset, R, Python and whatever else speaks Flight SQL, ADBC or JDBC read every published table and the history
/// of runs. A statement sees what is published when it comes. Nothing is written.
#[derive(Args)]
#[command(after_help = "\
Examples:
  vlmdiff flight
  vlmdiff flight --store s3://bucket/prefix --pipeline quickstart
  vlmdiff flight --listen 0.0.0.0:8815 --token-file token --certificate server.pem --key server.key

Addresses that clients take: grpc://127.0.0.1:8815 and, with a certificate, grpc+tls://HOST:8815 (ADBC, pyarrow);
jdbc:arrow-flight-sql://127.0.0.1:8815?useEncryption=false (JDBC, DBeaver).

The first Ctrl-C or SIGTERM ends the server when the statements that run have ended, the second ends it at once.")]
pub(super) struct Flight {
    /// The address and port to listen on; port 0 stands for any free one.
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = listen_address, default_value = "127.0.0.1:8815")]
    listen: SocketAddr,
    /// A file with a token that requests have to carry, as a bearer token or as the password of any user. Default: the
    /// variable VLMDIFF_TOKEN if it is set.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Answer anybody, also at an address that other machines reach.
    #[arg(long, conflicts_with = "token_file")]
    without_token: bool,
    /// The certificate of TLS, a PEM file, with those by which it was signed behind it.
    #[arg(long, value_name = "FILE", requires = "key")]
    certificate: Option<PathBuf>,
    /// The key of the certificate, a PEM file.
    #[arg(long, value_name = "FILE", requires = "certificate")]
    key: Option<PathBuf>,
    /// The pipeline to which bare table names refer; by default the one that ran last when a statement comes. A client names
    /// another one by the header `pipeline`.
    #[arg(long)]
    pipeline: Option<String>,
    /// Bytes of memory in which a statement sorts, groups and joins. Sorting and grouping go on in temporary files.
    #[arg(long, value_name = "N", default_value_t = 1 << 30, value_parser = clap::value_parser!(u64).range(1 << 20..))]
    max_memory: u64,
    /// Bytes of temporary files of a statement.
    #[arg(long, value_name = "N", default_value_t = 16 << 30, value_parser = clap::value_parser!(u64).range(0..))]
    max_disk: u64,
    /// Bytes of memory for columns that statements have read, all together, so that later ones need not read them; as much
    /// again is collected while statements read. Images and tensors are not kept.
    #[arg(long, value_name = "N", default_value_t = 256 << 20, value_parser = clap::value_parser!(u64).range(0..))]
    max_kept: u64,
    /// The time in seconds for which a client waits for a statement, all together, and for which a statement waits for a client
    /// that takes no rows.
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..))]
    max_seconds: u32,
    /// The number of statements that run at once. More wait for their turn.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    max_statements: u32,
    #[command(flatten)]
    store: StoreArgs,
}

impl Flight {
    pub(super) fn run(self) -> Result<u8> {
        let token = if self.without_token { None } else { token(self.token_file.as_deref())? };
        let is_local = self.listen.ip().is_loopback();
        if token.is_none() && !is_local && !self.without_token {
            return Err(Error::Input(format!(
                "other machines reach {}: --token-file asks them for a token, --without-token answers anybody",
                self.listen
            ))
            .into());
        }
        let store = self.store.open()?;
        let identity = self.certificate.zip(self.key);
        if token.is_some() && identity.is_none() && !is_local {
            say("the token and all rows go over the network as they are; --certificate and --key encrypt them");
        }
        let scheme = if identity.is_some() { "grpc+tls" } else { "grpc" };
        let limits = Limits {
            bounds: Bounds { memory: usize::try_from(self.max_memory).unwrap_or(usize::MAX), disk: self.max_disk },
            time: Duration::from_secs(self.max_seconds.into()),
            kept: usize::try_from(self.max_kept).unwrap_or(usize::MAX),
            at_once: self.max_statements as usize,
        };
        let options = Options { listen: self.listen, token, identity, pipeline: self.pipeline, limits };
        let _in_runtime = store.runtime().enter();
        let mut signals = signals()?;
        let stop = async move {
            next(&mut signals).await;
            say("stopping: the statements that run are finished; a second signal ends the server at once");
            tokio::spawn(async move {
                next(&mut signals).await;
                std::process::exit(EXIT_INTERRUPTED.into());
            });
        };
        flight::serve(&store, options, stop, |address| {
            // A closed output does not end the server.
            let _ = print(format!("listening on {scheme}://{address}"));
        })?;
        Ok(EXIT_DONE)
    }
}
