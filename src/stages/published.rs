//! Published weights that a parameter names.

use super::tensors::input;
use crate::{
    engine::{
        Result, Sources,
        source::{is_url, local_path},
    },
    models::checkpoint::Checkpoint,
};

/// Where published weights lie: a file, a folder in Hugging Face layout, or the URL of a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Published<'a>(pub(super) &'a str);

impl Published<'_> {
    /// The files whose content decides what is loaded.
    pub(super) fn files(self) -> Vec<String> {
        if is_url(self.0) {
            return vec![self.0.to_owned()];
        }
        Checkpoint::files(local_path(self.0)).iter().map(|path| path.to_string_lossy().into_owned()).collect()
    }

    /// The weights, without the levels that a training program puts above them.
    pub(super) fn open(self, sources: &Sources) -> Result<Checkpoint> {
        Ok(Checkpoint::open(sources.local(self.0)?).map_err(input)?.state_dict())
    }
}
