//! The module names of CompVis latent-diffusion and, for each, the name in this program, which is that of diffusers.

use super::super::checkpoint::{Checkpoint, CheckpointError};
use std::collections::BTreeMap;

/// A map from the names of modules in another layout to those in this program.
#[derive(Debug, Default)]
pub(crate) struct Names(BTreeMap<String, String>);

impl Names {
    /// Returns the name of a parameter in this program; None if the table lacks every module around it.
    pub(crate) fn translate(&self, key: &str) -> Option<String> {
        // the innermost module that has an entry
        let within = |(dot, _): (usize, &str)| Some(format!("{}{}", self.0.get(&key[..dot])?, &key[dot..]));
        key.rmatch_indices('.').find_map(within)
    }

    pub(crate) fn add(&mut self, theirs: impl Into<String>, ours: impl Into<String>) {
        self.0.insert(theirs.into(), ours.into());
    }

    pub(crate) fn resnet(&mut self, theirs: &str, ours: &str) {
        for (their, our) in [
            ("in_layers.0", "norm1"),
            ("in_layers.2", "conv1"),
            ("emb_layers.1", "time_emb_proj"),
            ("out_layers.0", "norm2"),
            ("out_layers.3", "conv2"),
            ("skip_connection", "conv_shortcut"),
        ] {
            self.add(format!("{theirs}.{their}"), format!("{ours}.{our}"));
        }
    }
}

/// Returns the part of `file` below `prefix` under the names of this program. A name that the table lacks is kept: it
/// is of this program already, or loading reports it as unexpected.
pub(crate) fn canonical(file: Checkpoint, prefix: &str, names: &Names) -> Result<Checkpoint, CheckpointError> {
    file.part(prefix).rename(|key| Some(names.translate(key).unwrap_or_else(|| key.to_owned())))
}
