//! Weights outside the store, as a pipeline names them.

use std::path::PathBuf;

use super::tensors::input;
use crate::{
    engine::{
        Result, Sources,
        source::{is_url, local_path},
    },
    models::checkpoint::Checkpoint,
};

/// What lies at an address in a pipeline: a file or, in Hugging Face layout, a folder; on a disk or at a URL, where a folder's
/// ends in `/`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weights<'a>(pub(super) &'a str);

impl Weights<'_> {
    fn is_remote_folder(&self) -> bool {
        is_url(self.0) && self.0.ends_with('/')
    }

    /// The files whose content decides what a network computes. Of a remote folder `config.json` and `model.safetensors`.
    pub(super) fn files(&self) -> Vec<String> {
        if self.is_remote_folder() {
            return ["config.json", "model.safetensors"].map(|name| format!("{}{name}", self.0)).into();
        }
        if is_url(self.0) {
            return vec![self.0.to_owned()];
        }
        let path = local_path(self.0);
        let config = Some(path.join("config.json")).filter(|config| config.is_file());
        let files = config.into_iter().chain(Checkpoint::files(&path));
        files.map(|file| file.to_string_lossy().into_owned()).collect()
    }

    /// The `config.json` in the folder, or beside the file; None where there is none, or where it would have to be fetched.
    pub(super) fn config(&self) -> Result<Option<Vec<u8>>, String> {
        if is_url(self.0) {
            return Ok(None);
        }
        let path = local_path(self.0);
        let beside = if path.is_dir() { path.join("config.json") } else { path.with_file_name("config.json") };
        match std::fs::read(&beside) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("{}: {error}", beside.display())),
        }
    }

    /// The files of a tokenizer, in a folder or beside the weights.
    pub(super) fn tokenizer_files(&self) -> Vec<String> {
        let folder = self.beside();
        let files = ["tokenizer.json", "vocab.json", "merges.txt"].map(|name| folder.join(name));
        files.iter().filter(|file| file.is_file()).map(|file| file.to_string_lossy().into_owned()).collect()
    }

    /// The folder itself, or that of the file.
    pub(super) fn beside(&self) -> PathBuf {
        let path = local_path(self.0);
        if path.is_dir() { path } else { path.parent().map(PathBuf::from).unwrap_or_default() }
    }

    /// The path of the file or folder, fetched where it is remote.
    pub(super) fn local(&self, sources: &Sources) -> Result<PathBuf> {
        if self.is_remote_folder() { sources.local_folder(&self.files()) } else { sources.local(self.0) }
    }

    /// The weights themselves, without the levels that a training program puts above them.
    pub(super) fn open(&self, sources: &Sources) -> Result<Checkpoint> {
        Ok(Checkpoint::open(self.local(sources)?).map_err(input)?.state_dict())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_that_are_loaded_are_identity() {
        let files = |address: &str| Weights(address).files();
        assert_eq!(files("s3://b/w.pth"), ["s3://b/w.pth"]);
        assert_eq!(files("s3://b/dino/"), ["s3://b/dino/config.json", "s3://b/dino/model.safetensors"]);
        assert_eq!(files("w.pth"), ["w.pth"]);
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(place("pytorch_model.bin"), "").unwrap();
        assert_eq!(files(&place("")), [place("pytorch_model.bin")]);
        std::fs::write(place("config.json"), "{}").unwrap();
        assert_eq!(files(&place("")), [place("config.json"), place("pytorch_model.bin")]);
        std::fs::write(place("model.safetensors"), "").unwrap();
        assert_eq!(files(&place("")), [place("config.json"), place("model.safetensors")]);
    }
}
