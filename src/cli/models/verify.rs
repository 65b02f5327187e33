//! `vlmdiff models verify`

use std::{
    fmt::Display,
    path::{Path, PathBuf},
};

use anyhow::Result;
use clap::Args;

use super::{DIFFERENT, digest::Expected, input, locate};
use crate::{
    cli::{EXIT_DONE, EXIT_FAILED, text::print},
    models::{
        architecture,
        catalogue::{self, PublishedCheckpoint, Source},
        checkpoint::Checkpoint,
    },
};

/// Check that fetched files are complete and have the right content.
///
/// Files are hashed and compared with the digest in the hub or in the list (`-` if none is known). Weights have to
/// parse, and their names and shapes have to be those of their architecture.
#[derive(Args)]
#[command(after_help = "Example:\n  vlmdiff models verify dino-vits8 downloads/fs_visa.ckpt")]
pub(super) struct Verify {
    /// Names of `vlmdiff models list`, ORG/NAME[/FILE] that was fetched, files or folders.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

impl Verify {
    pub(super) fn run(self) -> Result<u8> {
        let mut right = true;
        for name in &self.names {
            let path = locate(name)?;
            let known = catalogue::find(name).filter(|known| known.locate().is_ok_and(|known| known == path));
            let files = known.map_or_else(|| files(&path), PublishedCheckpoint::files);
            for file in &files {
                let shown = shown(file, &path);
                match check(file, known)? {
                    Some(found) => right &= tell(name, shown, found)?,
                    None => print(format!("-      {name}  {shown}: no digest is known"))?,
                }
            }
            if known.is_none_or(|known| known.layout.is_some()) {
                let weights = if known.is_some() { &files[0] } else { &path };
                right &= tell(name, shown(&path, &path), fits(weights, known))?;
            }
        }
        Ok(if right { EXIT_DONE } else { EXIT_FAILED })
    }
}

/// Prints one finding. Returns true if it is a good one.
fn tell(name: &str, file: impl Display, found: Result<String, String>) -> Result<bool> {
    let (state, text) = match &found {
        Ok(text) => ("ok", text),
        Err(text) => ("wrong", text),
    };
    print(format!("{state:5}  {name}  {file}: {text}"))?;
    Ok(found.is_ok())
}

/// Returns the path to print: relative to `folder` for a file below it, otherwise the file name.
fn shown<'a>(file: &'a Path, folder: &Path) -> std::path::Display<'a> {
    let below = file.strip_prefix(folder).ok().filter(|below| !below.as_os_str().is_empty());
    below.or(file.file_name().map(Path::new)).unwrap_or(file).display()
}

/// Returns the files to check at a path: a file and its shards, or all files of a folder.
fn files(path: &Path) -> Vec<PathBuf> {
    if !path.is_dir() {
        return Checkpoint::files(path);
    }
    let found = walkdir::WalkDir::new(path).sort_by_file_name().into_iter().filter_map(Result::ok);
    found.map(walkdir::DirEntry::into_path).filter(|path| path.is_file()).collect()
}

/// Compares a file with its known digest; `None` if none is known.
fn check(file: &Path, known: Option<&PublishedCheckpoint>) -> Result<Option<Result<String, String>>> {
    let listed = known.and_then(|known| match &known.source {
        Source::Url { sha256, .. } => sha256.clone().map(Expected::Sha256),
        Source::Package { sha256, .. } => Some(Expected::Sha256(sha256.clone())),
        Source::Hub { .. } => None,
    });
    let Some(expected) = listed.or_else(|| Expected::of_cached(file)) else {
        return Ok(None);
    };
    let want = expected.wanted();
    let how = match &expected {
        Expected::Sha256(want) if want.len() < 64 => "the beginning of its SHA-256",
        Expected::Sha256(_) => "SHA-256",
        Expected::GitBlob(_) => "git's SHA-1",
    };
    Ok(Some(match expected.differs(file)? {
        None => Ok(format!("{how} is {want}")),
        Some(got) => Err(format!("{how} is {got} and should be {want}; delete it and fetch it again")),
    }))
}

/// Checks that weights parse and have the expected layout.
fn fits(path: &Path, known: Option<&PublishedCheckpoint>) -> Result<String, String> {
    let weights = Checkpoint::open(path).map_err(|error| input(error).to_string())?.state_dict();
    let found = weights.recognise();
    let parts = || found.parts.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    let wanted = known.and_then(|known| known.layout.as_deref());
    match (wanted, found.layout()) {
        (Some(wanted), Some(is)) if wanted == is && found.rest.is_empty() => Ok(parts()),
        (None, Some(_)) if found.rest.is_empty() => Ok(parts()),
        (None, None) if !found.parts.is_empty() => Ok(parts()),
        (wanted, _) => {
            let wanted = wanted.and_then(architecture::title).map_or(String::new(), |title| format!("no {title}, "));
            Err(match &found.nearest {
                Some(near) => format!("{wanted}nearest {}: {}", near.titles(), near.mismatch.listed(DIFFERENT)),
                None if found.parts.is_empty() => format!("{wanted}no known architecture fits"),
                None => format!("{wanted}but {}, and {} tensors beside", parts(), found.rest.len()),
            })
        }
    }
}
