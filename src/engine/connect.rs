//! Connections to the servers of stores and sources. Credentials and endpoints come from the usual environment
//! variables; network failures that `object_store` does not retry are retried here.

use std::{
    fmt,
    future::Future,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use object_store::{
    CopyOptions, Error as Fault, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, ObjectStoreScheme, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    Result as Answer,
    client::{HttpError, HttpErrorKind},
    local::LocalFileSystem,
    path::Path,
};
use url::Url;

use crate::engine::{
    Error, Result,
    address::{local_path, url_of},
};

/// Time after which a request is cancelled and sent again. `AWS_TIMEOUT` and its counterparts for other clouds change
/// it.
const TIMEOUT: &str = "2 minutes";

/// Time after which an operation that keeps failing on the network is given up.
const PATIENCE: Duration = Duration::from_secs(300);

/// Wait before the second attempt. It doubles before each further attempt.
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// Number of objects that are deleted at the same time.
const DELETES: usize = 32;

/// Bytes per request. Larger requests might not finish within `TIMEOUT`.
const PIECE: u64 = 32 << 20;

/// The kinds of addresses that a store may have, for messages.
pub(in crate::engine) const PLACES: &str =
    "a folder, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX would work";

/// Connects to the server of a URL. Returns it with the path of the URL on it.
pub(in crate::engine) fn connect(url: &Url) -> Result<(Arc<dyn ObjectStore>, Path)> {
    // A URL with `http://` permits unencrypted connections.
    let plain = (url.scheme() == "http").then(|| ("allow_http".to_owned(), "true".to_owned()));
    let (objects, path) = object_store::parse_url_opts(url, settings().chain(plain))
        .map_err(|e| Error::Input(format!("cannot reach {url}: {e}; {}", hint(url))))?;
    Ok((Arc::new(Steady { objects: objects.into(), url: url.as_str().into() }), path))
}

/// Connects to the place of an address: the file system of this machine, or the server of a URL. Returns it with the path
/// of the place on it, and the URL of the place.
pub fn objects_at(address: &str) -> Result<(Arc<dyn ObjectStore>, Path, Url)> {
    if let Some(url) = url_of(address)? {
        let (objects, path) = connect(&url)?;
        return Ok((objects, path, url));
    }
    let wrong = |e: &dyn fmt::Display| Error::Input(format!("`{address}`: {e}; {PLACES}"));
    let path = std::path::absolute(local_path(address)).map_err(|e| wrong(&e))?;
    let url = Url::from_directory_path(&path).map_err(|()| wrong(&"it is no path"))?;
    let prefix = Path::from_absolute_path(&path).map_err(|e| wrong(&e))?;
    Ok((Arc::new(LocalFileSystem::new()), prefix, url))
}

/// Returns the settings for clouds in the environment: `AWS_*`, `GOOGLE_*` and `AZURE_*` without names that only
/// resemble settings.
fn settings() -> impl Iterator<Item = (String, String)> {
    let text = |(key, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((key.to_str()?.to_ascii_lowercase(), value.into_string().ok()?))
    };
    let cloud = |(key, _): &(String, String)| ["aws_", "google_", "azure_"].iter().any(|c| key.starts_with(c));
    let default = ("timeout".to_owned(), TIMEOUT.to_owned());
    std::iter::once(default).chain(std::env::vars_os().filter_map(text).filter(cloud))
}

/// Returns the advice on which variables to set for a kind of URL.
fn hint(url: &Url) -> &'static str {
    match ObjectStoreScheme::parse(url) {
        Ok((ObjectStoreScheme::AmazonS3, _)) => {
            "the bucket must exist; set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION, and for a server other \
             than Amazon's AWS_ENDPOINT (with AWS_ALLOW_HTTP=true where that is http://)"
        }
        Ok((ObjectStoreScheme::GoogleCloudStorage, _)) => {
            "the bucket must exist; set GOOGLE_SERVICE_ACCOUNT to the path of a key file"
        }
        Ok((ObjectStoreScheme::MicrosoftAzure, _)) => {
            "the container must exist; set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"
        }
        Ok((ObjectStoreScheme::Http, _)) => "check the address, and that this machine can reach the server",
        _ => PLACES,
    }
}

/// An object store on a network. Requests are repeated if the answer is incomplete, late or missing, and errors name
/// the variables to set.
#[derive(Clone, Debug)]
struct Steady {
    objects: Arc<dyn ObjectStore>,
    url: Arc<str>,
}

/// The server refused a write because of a conflicting write that is not yet visible.
#[derive(Debug, thiserror::Error)]
#[error("another write of the same object is under way")]
struct Conflict;

impl Steady {
    /// Repeats attempts until one succeeds or fails for a reason that a further attempt cannot change.
    async fn steadily<T, F: Future<Output = Answer<T>>>(&self, mut attempt: impl FnMut() -> F) -> Answer<T> {
        let (started, mut wait) = (Instant::now(), FIRST_WAIT);
        loop {
            match attempt().await {
                Err(e) if is_transient(&e) && started.elapsed() < PATIENCE => tokio::time::sleep(wait).await,
                answer => return answer.map_err(|e| self.explain(e)),
            }
            wait *= 2;
        }
    }

    /// Adds the address and the variables to set to a failure. Answers about the state of an object, such as that it
    /// already exists, stay as they are.
    fn explain(&self, error: Fault) -> Fault {
        match error {
            Fault::AlreadyExists { .. } | Fault::Precondition { .. } | Fault::NotModified { .. } => error,
            _ => {
                let hint = Url::parse(&self.url).map_or("", |url| hint(&url));
                Fault::Generic { store: "remote", source: format!("{}: {error}; {hint}", self.url).into() }
            }
        }
    }

    /// Reads a large body piece by piece, so that a broken connection costs one piece.
    fn pieces(&self, object: ObjectMeta, range: Range<u64>, options: GetOptions) -> BoxStream<'static, Answer<Bytes>> {
        let this = self.clone();
        let same = object.e_tag.filter(|tag| !tag.starts_with("W/"));
        let piece = move |start: u64| {
            let part = start..range.end.min(start + PIECE);
            let options = GetOptions { range: Some(part.into()), if_match: same.clone(), ..options.clone() };
            let (this, location) = (this.clone(), object.location.clone());
            async move { this.get_opts(&location, options).await?.bytes().await }
        };
        stream::iter((range.start..range.end).step_by(PIECE as usize)).then(piece).boxed()
    }

    /// Creates an object. If an attempt succeeded but its answer was lost, the next attempt finds an equal object,
    /// which counts as created.
    async fn create(&self, location: &Path, payload: &PutPayload, options: &PutOptions) -> Answer<PutResult> {
        let exists = match self.objects.put_opts(location, payload.clone(), options.clone()).await {
            Err(e @ Fault::AlreadyExists { .. }) => e,
            other => return other,
        };
        match self.objects.get(location).await {
            Ok(found) => {
                let equal = found.bytes().await? == Bytes::from(payload.clone());
                if equal { Ok(PutResult { e_tag: None, version: None }) } else { Err(exists) }
            }
            Err(Fault::NotFound { .. }) => Err(Fault::Generic { store: "remote", source: Box::new(Conflict) }),
            Err(e) => Err(e),
        }
    }
}

/// Treats a missing object as an answer, so that it is not retried.
fn or_absent<T>(answer: Answer<T>) -> Answer<Answer<T>> {
    match answer {
        Err(absent @ Fault::NotFound { .. }) => Ok(Err(absent)),
        other => other.map(Ok),
    }
}

/// Returns true if the same request may succeed later. `object_store` itself has already repeated requests that got
/// no connection or a status of 500 and above, and reads that timed out.
fn is_transient(error: &Fault) -> bool {
    use HttpErrorKind::{Decode, Interrupted, Request, Timeout};
    let mut causes = std::iter::successors(Some(error as &dyn std::error::Error), |e| e.source());
    causes.any(|cause| match cause.downcast_ref::<HttpError>() {
        Some(http) => matches!(http.kind(), Decode | Interrupted | Request | Timeout),
        None => cause.is::<Conflict>(),
    })
}

impl fmt::Display for Steady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.objects.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for Steady {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Answer<PutResult> {
        if options.mode == PutMode::Create {
            return self.steadily(|| self.create(location, &payload, &options)).await;
        }
        self.steadily(|| self.objects.put_opts(location, payload.clone(), options.clone())).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Answer<Box<dyn MultipartUpload>> {
        self.objects.put_multipart_opts(location, options).await
    }

    /// Reads the whole body within the attempt, or in pieces with an attempt each. A body that ends early is
    /// requested again.
    async fn get_opts(&self, location: &Path, options: GetOptions) -> Answer<GetResult> {
        let get = || async {
            let found = self.objects.get_opts(location, options.clone()).await?;
            let (meta, range, attributes) = (found.meta.clone(), found.range.clone(), found.attributes.clone());
            let body = if !options.head && range.end - range.start > PIECE {
                self.pieces(meta.clone(), range.clone(), options.clone())
            } else {
                let bytes = if options.head { Bytes::new() } else { found.bytes().await? };
                stream::once(async { Ok(bytes) }).boxed()
            };
            Ok(GetResult { payload: GetResultPayload::Stream(body), meta, range, attributes })
        };
        self.steadily(async || or_absent(get().await)).await?
    }

    fn delete_stream(&self, locations: BoxStream<'static, Answer<Path>>) -> BoxStream<'static, Answer<Path>> {
        let this = self.clone();
        let delete = move |location: Answer<Path>| {
            let this = this.clone();
            async move {
                let location = location?;
                this.steadily(async || or_absent(this.objects.delete(&location).await)).await??;
                Ok(location)
            }
        };
        locations.map(delete).buffered(DELETES).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Answer<ObjectMeta>> {
        let (this, prefix) = (self.clone(), prefix.cloned());
        let list = async move {
            let list = || this.objects.list(prefix.as_ref()).try_collect::<Vec<_>>();
            this.steadily(list).await.map(|found| stream::iter(found.into_iter().map(Ok)))
        };
        stream::once(list).try_flatten().boxed()
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Answer<ObjectMeta>> {
        let (this, prefix, offset) = (self.clone(), prefix.cloned(), offset.clone());
        let list = async move {
            let list = || this.objects.list_with_offset(prefix.as_ref(), &offset).try_collect::<Vec<_>>();
            this.steadily(list).await.map(|found| stream::iter(found.into_iter().map(Ok)))
        };
        stream::once(list).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Answer<ListResult> {
        self.steadily(|| self.objects.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Answer<()> {
        self.steadily(|| self.objects.copy_opts(from, to, options.clone())).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::memory::InMemory;

    #[tokio::test]
    async fn large_object_is_read_in_pieces() {
        let steady = Steady { objects: Arc::new(InMemory::new()), url: "memory:///".into() };
        let (path, end) = (Path::from("weights"), 2 * PIECE as usize + 5);
        let bytes: Vec<u8> = (0..end).map(|i| (i % 251) as u8).collect();
        steady.put(&path, bytes.clone().into()).await.unwrap();
        let pieces: Vec<Bytes> = steady.get(&path).await.unwrap().into_stream().try_collect().await.unwrap();
        assert_eq!(pieces.iter().map(Bytes::len).collect::<Vec<_>>(), [PIECE as usize, PIECE as usize, 5]);
        assert!(pieces.concat() == bytes);
        let range = 7..end as u64 - 1;
        assert!(steady.get_range(&path, range).await.unwrap() == bytes[7..end - 1]);
    }
}
