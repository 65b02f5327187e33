//! The interface between the stage `pretrained` and the networks whose weights it reads.

use serde::Serialize;
use tch::nn;

use crate::{
    engine::Result,
    models::{checkpoint::Checkpoint, nn::ConfigError},
};

/// A network whose weights are published.
///
/// The driver plans with everything but [`load`](Self::load), which only the worker may call: the driver must not be
/// linked to libtorch. The trait is therefore used through generics and not as `dyn`, whose vtable would name `load`.
pub(super) trait PublishedNetwork {
    /// The sizes of the network, which stand beside its weights in the table.
    type Config: Serialize;

    /// The layouts of its weights, as [`architecture`](crate::models::architecture) calls them.
    const LAYOUTS: &'static [&'static str];

    /// True if a tokenizer belongs to the network.
    const HAS_TOKENIZER: bool = false;

    /// Returns the configuration that weights without one have.
    fn published_config() -> Self::Config;

    /// Reads a configuration; `None` if it is that of another network, which is to be ignored. `is_parameter` is true
    /// for the parameter `config`, and false for a `config.json` beside the weights.
    fn parse_config(text: &str, is_parameter: bool) -> serde_json::Result<Option<Self::Config>>;

    /// Checks that a configuration describes a network.
    fn check_config(config: &Self::Config) -> Result<(), ConfigError>;

    /// Loads published weights into the network, whose variables are declared in `vs`, and returns them as a weights
    /// file of this program. `tokenizer` is the place of the tokenizer, if one [belongs](Self::HAS_TOKENIZER) to the
    /// network.
    fn load(published: Checkpoint, config: Self::Config, tokenizer: &str, vs: &nn::VarStore) -> Result<Vec<u8>>;
}
