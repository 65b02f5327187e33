//! Published weights of an autoencoder.

use tch::nn;

use super::network::PublishedNetwork;
use crate::{
    engine::Result,
    models::{
        checkpoint::Checkpoint,
        initialisation::skip_init,
        nn::ConfigError,
        vae::{AutoencoderKl, AutoencoderKlConfig},
    },
    published::{AUTOENCODER, input},
    stages::tensors::save_weights,
};

/// AutoencoderKL.
pub(super) struct PublishedAutoencoder;

impl PublishedNetwork for PublishedAutoencoder {
    type Config = AutoencoderKlConfig;

    const LAYOUTS: &'static [&'static str] = AUTOENCODER;

    fn published_config() -> AutoencoderKlConfig {
        AutoencoderKlConfig::default()
    }

    fn parse_config(text: &str, _: bool) -> serde_json::Result<Option<AutoencoderKlConfig>> {
        serde_json::from_str(text).map(Some)
    }

    fn check_config(config: &AutoencoderKlConfig) -> Result<(), ConfigError> {
        config.validate()
    }

    fn load(published: Checkpoint, config: AutoencoderKlConfig, _: &str, vs: &nn::VarStore) -> Result<Vec<u8>> {
        skip_init(|| AutoencoderKl::new(vs.root(), &config))?;
        config.canonical(published).and_then(|weights| weights.load_into(vs)).map_err(input)?;
        save_weights(vs.variables(), &config, &[])
    }
}
