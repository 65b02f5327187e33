//! TLS between the nodes of a cluster, and the token that requests to the scheduler carry.

use std::path::{Path, PathBuf};

use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::Interceptor,
    transport::{Certificate, ClientTlsConfig, Endpoint, Identity, ServerTlsConfig},
};

use crate::engine::{Digest, Error, Result};

/// The header of the token.
const HEADER: &str = "authorization";

/// The minimum length of a token in characters.
const SHORTEST: usize = 16;

/// Certificates and the token of a node. By default there are none, which suits a network that nobody else reaches.
#[derive(Clone, Default)]
pub struct Security {
    authority: Option<Certificate>,
    identity: Option<Identity>,
    token: Option<MetadataValue<Ascii>>,
}

fn read(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).map_err(|e| Error::Input(format!("cannot read {}: {e}", file.display())))
}

impl Security {
    /// Reads the certificate of the authority that signed those of the other nodes, and this node's own certificate and key,
    /// all as PEM.
    pub fn with_tls(mut self, authority: Option<&Path>, own: Option<(&PathBuf, &PathBuf)>) -> Result<Self> {
        self.authority = authority.map(read).transpose()?.map(Certificate::from_pem);
        self.identity = match own {
            Some((certificate, key)) => Some(Identity::from_pem(read(certificate)?, read(key)?)),
            None => None,
        };
        Ok(self)
    }

    /// Takes the token; `place` says where it stands. Spaces and line breaks around it do not belong to it.
    pub fn with_token(mut self, token: &str, place: &str) -> Result<Self> {
        let token = token.trim();
        if token.chars().count() < SHORTEST {
            return Err(Error::Input(format!(
                "the token in {place} has fewer than {SHORTEST} characters; `openssl rand -hex 32` makes a good one"
            )));
        }
        let mut value = MetadataValue::try_from(format!("Bearer {token}")).map_err(|_| {
            Error::Input(format!(
                "the token in {place} has characters that a header cannot carry; letters and digits can"
            ))
        })?;
        // Its bytes are then not shown by debug output.
        value.set_sensitive(true);
        self.token = Some(value);
        Ok(self)
    }

    /// Reads the token from a file.
    pub fn with_token_file(self, file: &Path) -> Result<Self> {
        self.with_token(&read(file)?, &file.display().to_string())
    }

    /// Chooses the cryptography of TLS, of which the dependencies bring two kinds. A choice that was made before stays.
    fn choose_cryptography() {
        _ = rustls::crypto::ring::default_provider().install_default();
    }

    /// Returns true if requests need a token or a certificate.
    pub fn is_closed(&self) -> bool {
        self.token.is_some() || (self.identity.is_some() && self.authority.is_some())
    }

    /// Returns true if the node serves TLS.
    pub(super) fn serves_tls(&self) -> bool {
        self.identity.is_some()
    }

    /// Returns the configuration of a server; `None` if it serves without TLS. With an authority, clients need a certificate of
    /// it.
    pub(super) fn server(&self) -> Option<ServerTlsConfig> {
        Self::choose_cryptography();
        let config = ServerTlsConfig::new().identity(self.identity.clone()?);
        Some(match &self.authority {
            Some(authority) => config.client_ca_root(authority.clone()),
            None => config,
        })
    }

    /// Configures a connection to a node whose URL begins with `https://`.
    pub(super) fn connection(&self, endpoint: Endpoint) -> Result<Endpoint, tonic::transport::Error> {
        if endpoint.uri().scheme_str() != Some("https") {
            return Ok(endpoint);
        }
        Self::choose_cryptography();
        let mut config = ClientTlsConfig::new();
        if let Some(authority) = &self.authority {
            config = config.ca_certificate(authority.clone());
        }
        if let Some(identity) = &self.identity {
            config = config.identity(identity.clone());
        }
        endpoint.tls_config(config)
    }

    /// Returns what puts the token into requests.
    pub(super) fn sender(&self) -> Sender {
        Sender(self.token.clone())
    }

    /// Returns what checks the token of requests.
    pub(super) fn guard(&self) -> Guard {
        Guard(self.token.as_ref().map(|token| Digest::of(token.as_encoded_bytes())))
    }
}

/// Puts the token into requests.
#[derive(Clone)]
pub(super) struct Sender(Option<MetadataValue<Ascii>>);

impl Interceptor for Sender {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert(HEADER, token.clone());
        }
        Ok(request)
    }
}

/// Refuses requests without the token, of which only the digest is kept: the time of a comparison tells nothing about it.
#[derive(Clone)]
pub(super) struct Guard(Option<Digest>);

impl Interceptor for Guard {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let given = request.metadata().get(HEADER).map(|token| Digest::of(token.as_encoded_bytes()));
        match self.0 {
            Some(_) if given.is_none() => Err(Status::unauthenticated("the request carries no token")),
            Some(token) if given != Some(token) => Err(Status::unauthenticated("the request carries another token")),
            _ => Ok(request),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(token: &str) -> Security {
        Security::default().with_token(token, "a file").unwrap()
    }

    #[test]
    fn only_requests_with_the_token_pass() {
        let mut guard = with("0123456789abcdef\n").guard();
        let mut passes = |from: Security| guard.call(from.sender().call(Request::new(())).unwrap());
        assert!(passes(with("0123456789abcdef")).is_ok());
        assert!(passes(with("0123456789abcdeF")).unwrap_err().message().contains("another token"));
        assert!(passes(Security::default()).unwrap_err().message().contains("no token"));
        assert!(Security::default().guard().call(Request::new(())).is_ok(), "an open scheduler asks for none");
    }

    #[test]
    fn short_token_is_refused_and_none_is_shown() {
        let told = Security::default().with_token("secret", "TOKEN").err().unwrap().to_string();
        assert!(told.starts_with("the token in TOKEN has fewer than 16") && !told.contains("secret"), "{told}");
        assert!(!format!("{:?}", with("0123456789abcdef").token).contains("0123456789abcdef"));
    }
}
