//! Published weights of a denoiser.

use serde_json::Value;
use tch::nn;

use super::network::PublishedNetwork;
use crate::{
    engine::{Error, Result},
    models::{
        checkpoint::Checkpoint,
        denoiser::{Denoiser, Published},
        nn::ConfigError,
    },
    published::{UNET, input},
    stages::{tensors::save_weights, train_denoiser::DenoiserConfig},
};

/// The U-Net with its control branch, or alone where its form is none.
pub(super) struct PublishedDenoiser;

impl PublishedNetwork for PublishedDenoiser {
    type Config = DenoiserConfig;

    const LAYOUTS: &'static [&'static str] = UNET;

    fn published_config() -> DenoiserConfig {
        DenoiserConfig::published()
    }

    fn parse_config(text: &str, is_parameter: bool) -> serde_json::Result<Option<DenoiserConfig>> {
        // Configurations of whole denoisers are not published. A `config.json` beside the weights is that of another
        // network, such as a U-Net.
        let config: Value = serde_json::from_str(text)?;
        let is_own = is_parameter || config.get("control").is_some();
        is_own.then(|| serde_json::from_value(config)).transpose()
    }

    fn check_config(config: &DenoiserConfig) -> Result<(), ConfigError> {
        config.control.validate()
    }

    fn load(published: Checkpoint, mut config: DenoiserConfig, _: &str, vs: &nn::VarStore) -> Result<Vec<u8>> {
        let place = published.path().display().to_string();
        let published = Published::new(published, &config.control)
            .and_then(|weights| weights.fit_fusion(&mut config.control))
            .map_err(input)?;
        if !published.has_control() && config.control.has_branch() {
            return Err(Error::Input(format!(
                "{place} has no control branch (control_model.* or control.*): for a denoiser without one write `config: {{ control: \
                 {{ form: none }}, schedule: {{}}, scaling_factor: 0.18215 }}`; `init:` of a training starts from a U-Net alone too"
            )));
        }
        Denoiser::open(vs, &config.control, published)?;
        save_weights(vs.variables(), &config, &[])
    }
}
