//! Published weights -> a table that names them, as that of a training does.

use std::sync::Arc;

use arrow::{
    array::{Int64Array, StringArray},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tch::{Device, nn};

use super::{
    tensors::{input, save_weights},
    train_denoiser::DenoiserConfig,
    weights::{self, Weights},
};
use crate::{
    engine::{
        Error, Result,
        source::Sources,
        stage::{Context, Misfit, Open, Operator, Output, Ports, Rows, Schemas, Sink, Stage},
    },
    models::{
        clip::{ClipTextConfig, ClipTextModel},
        denoiser::{Denoiser, Published},
        initialisation::skip_init,
        nn::ConfigError,
        tokenizer::ClipTokenizer,
        vae::{AutoencoderKl, AutoencoderKlConfig},
    },
    tables::weights::{TOKENIZER, weights_field},
};

/// Brings published weights into a pipeline, as a table that other stages read like that of a training.
///
/// The weights are safetensors or files of torch.save; all names and shapes must match. An autoencoder or a text
/// encoder is read from a folder of diffusers or transformers, or from a file of latent-diffusion, with all parts of
/// a model or alone; a denoiser from a file with its U-Net and its control branch: the authors'
/// (`model.diffusion_model.*`, `control_model.*`) or one that `train_denoiser` wrote (`unet.*`, `control.*`).
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
#[schemars(extend("examples" = [{ "network": "autoencoder", "weights": "vae.safetensors" }]))]
pub struct Pretrained {
    /// The network to which the weights belong.
    #[garde(skip)]
    pub network: Network,
    /// A name that `vlmdiff models list` shows, `ORG/NAME` of the Hugging Face hub, or the path of a file or folder.
    /// Identified by content, not by place.
    #[garde(length(min = 1))]
    pub weights: String,
    /// For a text encoder, the tokenizer: a name, hub id or folder with `tokenizer.json`, or `vocab.json` and
    /// `merges.txt`. Absent: the files beside the weights.
    #[garde(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
    /// The sizes of the network. Absent: the `config.json` beside the weights or, if there is none, those of Stable
    /// Diffusion 1.5. For a denoiser `control` (a ControlNet's config), `schedule` and `scaling_factor`; a
    /// `config.json` without `control` is not that of a denoiser and is ignored.
    #[garde(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Map<String, Value>>,
}

/// A network that other stages read from a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// AutoencoderKL, for `encode_latents` and `reconstruct`.
    Autoencoder,
    /// CLIP's text transformer with its tokenizer, for `encode_text`.
    TextEncoder,
    /// The U-Net with its control branch, for `reconstruct`.
    Denoiser,
}

impl Network {
    /// Returns the layouts of its weights.
    fn layouts(self) -> &'static [&'static str] {
        match self {
            Self::Autoencoder => weights::AUTOENCODER,
            Self::TextEncoder => weights::TEXT_ENCODER,
            Self::Denoiser => weights::UNET,
        }
    }
}

impl Pretrained {
    /// Returns the network's configuration, or `default` if there is none that `parse` accepts.
    fn settings<C>(&self, default: C, parse: impl Fn(&str) -> serde_json::Result<Option<C>>) -> Result<C, Misfit> {
        let (text, at, of) = match &self.config {
            Some(config) => (Value::Object(config.clone()).to_string(), "config", ""),
            None => match Weights(&self.weights).config().map_err(|e| Misfit::parameter("weights", e))? {
                Some(text) => (String::from_utf8_lossy(&text).into_owned(), "weights", "its config.json: "),
                None => return Ok(default),
            },
        };
        parse(&text).map(|config| config.unwrap_or(default)).map_err(|e| Misfit::parameter(at, format!("{of}{e}")))
    }

    fn autoencoder(&self) -> Result<AutoencoderKlConfig, Misfit> {
        self.settings(AutoencoderKlConfig::default(), |text| serde_json::from_str(text).map(Some))
    }

    fn text_encoder(&self) -> Result<ClipTextConfig, Misfit> {
        self.settings(ClipTextConfig::vit_l_14(), |text| ClipTextConfig::from_json(text).map(Some))
    }

    fn denoiser(&self) -> Result<DenoiserConfig, Misfit> {
        self.settings(DenoiserConfig::published(), |text| {
            // Configurations of whole denoisers are not published. A `config.json` beside the weights is that of
            // another network, such as a U-Net.
            let config: Value = serde_json::from_str(text)?;
            let is_own = self.config.is_some() || config.get("control").is_some();
            is_own.then(|| serde_json::from_value(config)).transpose()
        })
    }

    fn tokenizer(&self) -> &str {
        self.tokenizer.as_deref().unwrap_or(&self.weights)
    }
}

impl Stage for Pretrained {
    fn revision(&self) -> u32 {
        1
    }

    fn ports(&self) -> Ports {
        Ports::Named(Vec::new())
    }

    fn makes(&self) -> Output {
        Output::Table
    }

    fn locations(&self) -> &'static [&'static str] {
        &["weights", "tokenizer"]
    }

    fn output(&self, _: &Schemas) -> Result<SchemaRef, Misfit> {
        let wrong = |e: ConfigError| Misfit::parameter("config", e);
        let weights = match self.network {
            Network::Autoencoder => {
                let config = self.autoencoder()?;
                config.validate().map_err(wrong)?;
                weights_field(&config)
            }
            Network::TextEncoder => {
                let config = self.text_encoder()?;
                config.validate().map_err(wrong)?;
                weights_field(&config)
            }
            Network::Denoiser => {
                let config = self.denoiser()?;
                config.control.validate().map_err(wrong)?;
                weights_field(&config)
            }
        };
        if self.tokenizer.is_some() && self.network != Network::TextEncoder {
            return Err(Misfit::parameter("tokenizer", "it belongs to `network: text_encoder`"));
        }
        Ok(Arc::new(Schema::new(vec![
            Field::new("network", DataType::Utf8, false),
            Field::new("n_parameters", DataType::Int64, false),
            weights,
        ])))
    }

    fn files(&self) -> Result<Vec<String>, Misfit> {
        let mut files = Weights(&self.weights).files_of("weights", self.network.layouts())?;
        if self.network == Network::TextEncoder {
            files.extend(Weights(self.tokenizer()).tokenizer_files().map_err(|e| Misfit::parameter("tokenizer", e))?);
        }
        files.sort();
        files.dedup();
        Ok(files)
    }
}

impl Open for Pretrained {
    fn open(self, context: &Context) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Loader { stage: self, sources: context.sources.clone() }))
    }
}

struct Loader {
    stage: Pretrained,
    sources: Sources,
}

impl Operator for Loader {
    fn run(&mut self, _: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        let vs = nn::VarStore::new(Device::Cpu);
        let weights = out.put_blob(self.load(&vs)?)?;
        let parameters: i64 = vs.variables().values().map(|variable| variable.numel() as i64).sum();
        let network = serde_json::to_value(self.stage.network).map_err(std::io::Error::from)?;
        out.write_columns(vec![
            Arc::new(StringArray::from(vec![network.as_str().unwrap_or_default()])),
            Arc::new(Int64Array::from(vec![parameters])),
            Arc::new(StringArray::from(vec![weights.to_string()])),
        ])
    }
}

impl Loader {
    /// Loads the published weights into the network in `vs`, and returns them as a weights file of this program.
    fn load(&self, vs: &nn::VarStore) -> Result<Vec<u8>> {
        let stage = &self.stage;
        let published = Weights(&stage.weights).open(&self.sources)?;
        match stage.network {
            Network::Autoencoder => {
                let config = stage.autoencoder()?;
                skip_init(|| AutoencoderKl::new(vs.root(), &config))?;
                config.canonical(published).and_then(|weights| weights.load_into(vs)).map_err(input)?;
                save_weights(vs.variables(), &config, &[])
            }
            Network::TextEncoder => {
                let config = stage.text_encoder()?;
                let place = Weights(stage.tokenizer()).beside().map_err(Error::Input)?;
                let tokenizer = ClipTokenizer::open(&place)?;
                fits(&tokenizer, &config)
                    .map_err(|e| Error::Input(format!("`tokenizer`: {}: {e}", place.display())))?;
                skip_init(|| ClipTextModel::new(vs.root(), &config))?;
                config.canonical(published).load_into(vs).map_err(input)?;
                save_weights(vs.variables(), &config, &[(TOKENIZER, tokenizer.to_json()?)])
            }
            Network::Denoiser => {
                let mut config = stage.denoiser()?;
                let place = published.path().display().to_string();
                let published = Published::new(published, &config.control)
                    .and_then(|weights| weights.fit_fusion(&mut config.control))
                    .map_err(input)?;
                if !published.has_control() {
                    return Err(Error::Input(format!(
                        "{place} has no control branch (control_model.* or control.*), without which a U-Net is no denoiser; \
                         `init:` of a training starts from a U-Net alone"
                    )));
                }
                Denoiser::open(vs, &config.control, published)?;
                save_weights(vs.variables(), &config, &[])
            }
        }
    }
}

/// Checks that a tokenizer has the same tokens as a text encoder.
fn fits(tokenizer: &ClipTokenizer, config: &ClipTextConfig) -> Result<(), String> {
    let (tokens, end) = (tokenizer.vocab_size() as i64, i64::from(tokenizer.end()));
    if tokens > config.vocab_size {
        return Err(format!("it has {tokens} tokens, and the text encoder knows {}", config.vocab_size));
    }
    // Old configurations contain 2 by mistake.
    if ![2, end].contains(&config.eos_token_id) {
        return Err(format!("it ends texts by token {end}, and the text encoder's end is {}", config.eos_token_id));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tokenizer_of_another_vocabulary_is_refused() {
        let tokenizer = ClipTokenizer::train(&["a gear".into()], 300).unwrap();
        let (vocab_size, eos_token_id) = (tokenizer.vocab_size() as i64, i64::from(tokenizer.end()));
        let fits = |vocab_size, eos_token_id| {
            fits(&tokenizer, &ClipTextConfig { vocab_size, eos_token_id, ..Default::default() })
        };
        assert_eq!(fits(vocab_size, eos_token_id), Ok(()));
        assert_eq!(fits(vocab_size + 1, 2), Ok(()));
        let few = format!("it has {vocab_size} tokens, and the text encoder knows {}", vocab_size - 1);
        assert_eq!(fits(vocab_size - 1, eos_token_id), Err(few));
        assert!(fits(vocab_size, eos_token_id + 2).unwrap_err().starts_with("it ends texts by token"));
    }

    #[test]
    fn config_beside_a_denoiser_is_its_own_or_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let weights = folder.path().join("model.safetensors");
        std::fs::write(&weights, "").unwrap();
        let widths = |config: Value| {
            std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
            let stage = json!({ "network": "denoiser", "weights": weights });
            let stage: Pretrained = serde_json::from_value(stage).unwrap();
            stage.denoiser().map(|config| config.control.unet.block_out_channels)
        };
        assert_eq!(widths(json!({ "block_out_channels": [8, 8] })), Ok(vec![320, 640, 1280, 1280]), "of a U-Net");
        let own = json!({ "control": { "block_out_channels": [8, 8] }, "schedule": {}, "scaling_factor": 1 });
        assert_eq!(widths(own), Ok(vec![8, 8]));
        assert!(
            widths(json!({ "control": {} }))
                .unwrap_err()
                .to_string()
                .contains("`weights`: its config.json: missing field")
        );
    }
}
