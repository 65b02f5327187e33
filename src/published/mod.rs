//! Published weights, as a pipeline names them: where they lie, which files count, and whether they can be what is asked for.

use std::path::{Path, PathBuf};

use crate::{
    engine::{Error, Result, is_url, local_path, source::Sources, stage::Misfit},
    models::{
        architecture,
        catalogue::{NotHere, locate},
        checkpoint::{Checkpoint, CheckpointError},
        language_tokenizer,
    },
};

/// The layouts of an autoencoder.
pub(crate) const AUTOENCODER: &[&str] =
    &["vae", "vae-old", "vae-ldm", "vae-ldm-loss", "stable-diffusion", "stable-diffusion-controlnet", "vlmdiff"];
/// The layouts of a text encoder.
pub(crate) const TEXT_ENCODER: &[&str] =
    &["clip-text", "clip", "stable-diffusion", "stable-diffusion-controlnet", "vlmdiff"];
/// The layouts of a U-Net, with a control branch or without.
pub(crate) const UNET: &[&str] = &["unet", "unet-ldm", "stable-diffusion", "stable-diffusion-controlnet", "vlmdiff"];
/// The layouts of the parts of a perceptual loss.
pub(crate) const LPIPS: &[&str] = &["vgg16", "lpips-lins", "lpips-vgg", "lpips", "vae-ldm-loss"];

/// Weights as a parameter names them: the path of a file, or of a folder in Hugging Face layout; a URL of either, where
/// that of a folder ends in `/`; a name that `vlmdiff models list` shows; or `ORG/NAME[/FILE]` of the Hugging Face hub.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weights<'a>(pub(crate) &'a str);

impl Weights<'_> {
    fn is_remote_folder(&self) -> bool {
        is_url(self.0) && self.0.ends_with('/')
    }

    /// Returns the path of the weights on this machine. They must not be named by a URL.
    pub(crate) fn path(&self) -> Result<PathBuf, NotHere> {
        locate(&local_path(self.0).to_string_lossy())
    }

    /// Returns the folder of the weights: the folder itself, or that of the file.
    pub(crate) fn beside(&self) -> Result<PathBuf, NotHere> {
        let path = self.path()?;
        Ok(if path.is_dir() { path } else { path.parent().map(PathBuf::from).unwrap_or_default() })
    }

    /// Returns the files whose content decides what a network computes. For a remote folder these are `config.json` and
    /// `model.safetensors`.
    pub(crate) fn files(&self) -> Result<Vec<String>, String> {
        if self.is_remote_folder() {
            return Ok(["config.json", "model.safetensors"].map(|name| format!("{}{name}", self.0)).into());
        }
        if is_url(self.0) {
            return Ok(vec![self.0.to_owned()]);
        }
        let path = self.path().map_err(|e| e.to_string())?;
        let config = Some(path.join("config.json")).filter(|config| config.is_file());
        let files = config.into_iter().chain(Checkpoint::files(&path));
        Ok(files.map(|file| file.to_string_lossy().into_owned()).collect())
    }

    /// Does as [`Weights::files`], for a parameter that takes weights of these [layouts](architecture); errors name the
    /// parameter. Weights on this machine must be readable, and must not be of another published architecture.
    pub(crate) fn files_of(&self, parameter: &str, layouts: &[&str]) -> Result<Vec<String>, Misfit> {
        let wrong = |e: String| Misfit::parameter(parameter, e);
        if !is_url(self.0) {
            let path = self.path().map_err(|e| not_here(parameter, &e))?;
            check(&path, layouts).map_err(wrong)?;
        }
        self.files().map_err(wrong)
    }

    /// Reads the `config.json` in the folder or beside the file; None if there is none, or if it would have to be
    /// fetched. [`Weights::files`] reports weights that are not on this machine.
    pub(crate) fn config(&self) -> Result<Option<Vec<u8>>, String> {
        let Some(folder) = self.beside().ok().filter(|_| !is_url(self.0)) else { return Ok(None) };
        let config = folder.join("config.json");
        match std::fs::read(&config) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("{}: {error}", config.display())),
        }
    }

    /// Returns the files of a tokenizer, in a folder or beside the weights.
    pub(crate) fn tokenizer_files(&self) -> Result<Vec<String>, String> {
        let folder = self.beside().map_err(|e| e.to_string())?;
        // CLIP's token that pads short texts stands in the last file, or in that before it.
        let files = language_tokenizer::FILES.into_iter().chain(["special_tokens_map.json"]);
        let files = files.map(|name| folder.join(name));
        Ok(files.filter(|file| file.is_file()).map(|file| file.to_string_lossy().into_owned()).collect())
    }

    /// Returns the path of the file or folder, which is fetched if it is remote.
    pub(crate) fn local(&self, sources: &Sources) -> Result<PathBuf> {
        if self.is_remote_folder() {
            sources.local_folder(&self.files().map_err(Error::Input)?)
        } else if is_url(self.0) {
            sources.local(self.0)
        } else {
            self.path().map_err(|e| Error::Input(e.to_string()))
        }
    }

    /// Opens the weights, without the levels that a training program puts above them.
    pub(crate) fn open(&self, sources: &Sources) -> Result<Checkpoint> {
        Ok(Checkpoint::open(self.local(sources)?).map_err(input)?.state_dict())
    }
}

/// Makes the misfit of a parameter that names weights which are not on this machine. A name that nothing has is wrong; other
/// weights can be fetched.
pub(crate) fn not_here(parameter: &str, reason: &NotHere) -> Misfit {
    match reason {
        NotHere::Unknown { .. } => Misfit::parameter(parameter, reason),
        NotHere::NotFetched { .. } | NotHere::NotFound { .. } | NotHere::Partial { .. } => {
            Misfit::absent(parameter, reason)
        }
    }
}

/// Checks that weights can be read, and are of one of these layouts or of none that is known.
fn check(path: &Path, layouts: &[&str]) -> Result<(), String> {
    let weights = Checkpoint::open(path).map_err(|e| e.to_string())?.state_dict();
    match weights.architecture() {
        Some(other) if !layouts.contains(&other.layout.as_str()) => {
            let titles: Vec<&str> = layouts.iter().filter_map(|layout| architecture::title(layout)).collect();
            Err(format!("{} is {other}; what fits is {}", weights.path().display(), titles.join(", ")))
        }
        // Parts of a model and unknown files are accepted here, because loading is strict.
        _ => Ok(()),
    }
}

/// Makes the error about weights that the user names. Weights that do not fit are wrong input; memory that runs out
/// while they are loaded is not.
pub(crate) fn input(error: CheckpointError) -> Error {
    match error {
        CheckpointError::Torch { .. } => Error::of_library(error.to_string()),
        other => Error::Input(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_another_network_are_refused_before_anything_runs() {
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/data/golden/models/");
        let place = format!("{golden}dinov2/dinov2_vits14_pretrain.pth");
        assert_eq!(Weights(&place).files_of("weights", &["dinov2"]), Ok(vec![place.clone()]));
        let told = Weights(&place).files_of("weights", &["efficientnet-lite"]).unwrap_err().to_string();
        assert!(told.starts_with(&format!("`weights`: {place} is DINOv2 (original names)")), "{told}");
        assert!(told.ends_with("; what fits is EfficientNet-Lite (names of efficientnet_lite_pytorch)"), "{told}");
        let told = Weights(golden).files_of("init", AUTOENCODER).unwrap_err().to_string();
        assert!(told.starts_with("`init`: ") && told.contains("model.safetensors"), "{told}");
    }

    #[test]
    fn the_files_that_are_loaded_are_identity() {
        let files = |address: &str| Weights(address).files().unwrap();
        assert_eq!(files("s3://b/w.pth"), ["s3://b/w.pth"]);
        assert_eq!(files("s3://b/dino/"), ["s3://b/dino/config.json", "s3://b/dino/model.safetensors"]);
        assert!(
            Weights("w.pth").files().unwrap_err().starts_with("there is no file w.pth, and no checkpoint of this name")
        );
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
