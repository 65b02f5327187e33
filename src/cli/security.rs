//! Options of TLS and the token, which the programs of a cluster and its runs share.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::cluster::Security;

/// TLS and the token of a cluster.
#[derive(Args)]
pub(super) struct SecurityArgs {
    /// A certificate (PEM) of the authority that signed those of the other nodes. A scheduler that has one asks the others
    /// for certificates too.
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// The certificate (PEM) of this node; a scheduler that has one serves https.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The key (PEM) of this certificate.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// A file with the token that requests to the scheduler carry. Default: the variable VLMDIFF_CLUSTER_TOKEN if it is set.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// The variable with the token.
const TOKEN: &str = "VLMDIFF_CLUSTER_TOKEN";

impl SecurityArgs {
    pub(super) fn read(&self) -> Result<Security> {
        let own = self.tls_cert.as_ref().zip(self.tls_key.as_ref());
        let security = Security::default().with_tls(self.tls_ca.as_deref(), own)?;
        Ok(match (&self.token_file, std::env::var(TOKEN)) {
            (Some(file), _) => security.with_token_file(file)?,
            (None, Ok(token)) => security.with_token(&token, TOKEN)?,
            (None, Err(_)) => security,
        })
    }
}
