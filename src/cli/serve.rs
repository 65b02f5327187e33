//! `vlmdiff serve`

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::Result;
use clap::Args;

use super::{
    EXIT_DONE, EXIT_INTERRUPTED, PipelineArgs,
    run::{next, signals, worker_program},
    text::{LogArgs, listen_address, print, say},
};
use crate::{
    driver::{device, inspector},
    engine::{Stop, source::served_folder},
    serving::{Limits, Options, Server, Token},
    stages::KINDS,
};

/// Judge photographs over HTTP by a pipeline that has run, and show them on a page.
///
/// Photographs that wait are judged together. Models, banks and thresholds are taken as the last run left them when
/// the server started; the server is started again after another run. The last photographs are kept with their verdicts
/// and maps; one of them that comes again costs nothing.
#[derive(Args)]
#[command(after_help = "\
Examples:
  vlmdiff serve pipelines/inspect.yaml
  curl --data-binary @new.png -H 'content-type: image/png' '127.0.0.1:8080/v1/predict?class=gear'
  vlmdiff serve pipelines/inspect.yaml --listen 0.0.0.0:8080 --token-file token

The first Ctrl-C or SIGTERM ends the server when it has judged what it accepted, the second ends it at once.")]
pub(super) struct Serve {
    #[command(flatten)]
    pipeline: PipelineArgs,
    /// The address and port to listen on; port 0 stands for any free one.
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = listen_address, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// A file with a token that requests have to carry (`Authorization: Bearer TOKEN`). Default: the variable
    /// VLMDIFF_TOKEN if it is set.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The greatest number of photographs that wait or are being judged; more are refused with 429.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    queue: u32,
    /// The greatest size of a photograph in bytes.
    #[arg(long, value_name = "N", default_value_t = 32 << 20, value_parser = clap::value_parser!(u64).range(1..))]
    max_bytes: u64,
    /// The greatest size of a photograph in pixels.
    #[arg(long, value_name = "N", default_value_t = 64_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    max_pixels: u64,
    /// The number of photographs that are kept; older ones are forgotten.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    keep: u32,
    /// The folder in which they are kept, new or empty at first. Default: one below ~/.cache/vlmdiff (or VLMDIFF_CACHE), by
    /// store and name.
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// The pipeline under which the server's tables are published. Default: the name of the pipeline, and `_serve`.
    #[arg(long)]
    name: Option<String>,
    /// The table of decisions by which photographs are judged. Default: the only one of the pipeline.
    #[arg(long, value_name = "TABLE")]
    decisions: Option<String>,
    /// The device to compute on: auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto", value_parser = device)]
    device: String,
    #[command(flatten)]
    log: LogArgs,
}

/// The variable with the token.
const TOKEN: &str = "VLMDIFF_TOKEN";

impl Serve {
    pub(super) fn run(self) -> Result<u8> {
        self.log.choose();
        let token = token(self.token_file.as_deref())?;
        let (pipeline, store) = self.pipeline.open()?;
        let name = self.name.clone().unwrap_or_else(|| format!("{}_serve", pipeline.name));
        let folder = self.folder.clone().unwrap_or_else(|| served_folder(&store.url, &name));
        let (named, program, stop) = (self.pipeline.named(), worker_program()?, Stop::default());
        let inspector =
            inspector(&named, (&pipeline, &store), name, self.decisions.clone(), &self.device, program, &stop)?;
        let options = Options {
            listen: self.listen,
            queue: self.queue as usize,
            limits: Limits { bytes: self.max_bytes, pixels: self.max_pixels },
            keep: self.keep as usize,
            folder,
            token,
        };
        let server = Server::new(&store, &pipeline, inspector, KINDS, options)?;
        if token.is_none() && !self.listen.ip().is_loopback() {
            say(format!(
                "anybody who reaches {} can send and see photographs; --token-file asks for a token",
                self.listen
            ));
        }
        let _in_runtime = store.runtime().enter();
        let mut signals = signals()?;
        let asked = async move {
            next(&mut signals).await;
            say("stopping: what was accepted is judged; a second signal ends the server at once");
            tokio::spawn(async move {
                next(&mut signals).await;
                std::process::exit(EXIT_INTERRUPTED.into());
            });
        };
        server.run(asked, |address| {
            // A closed output does not end the server.
            let _ = print(format!("listening on http://{address}"));
        })?;
        Ok(EXIT_DONE)
    }
}

/// Returns the token that requests have to carry: that in a file, else that in the variable.
pub(super) fn token(file: Option<&Path>) -> Result<Option<Token>> {
    Ok(match file {
        Some(file) => Some(Token::read(file)?),
        None => std::env::var(TOKEN).ok().map(|text| Token::new(&text, TOKEN)).transpose()?,
    })
}
