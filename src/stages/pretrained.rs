//! Published weights -> a table that names them, as that of a training does.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, Int64Array, RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use tch::{Device, nn};

use super::{
    tensors::{input, save_weights},
    train_denoiser::{Denoiser, DenoiserConfig},
    train_text_encoder::TOKENIZER,
    training::weights_field,
    weights::Weights,
};
use crate::{
    engine::{
        Error, Result, Sources,
        stage::{Context, Open, Operator, Output, Ports, Schemas, Stage},
        task::{Rows, Sink},
    },
    models::{
        clip::{ClipTextConfig, ClipTextModel},
        latent_diffusion::{LatentDiffusion, variables_below},
        nn::{ConfigError, skip_init},
        tokenizer::ClipTokenizer,
        vae::{AutoencoderKl, AutoencoderKlConfig},
    },
};

/// Brings published weights into a pipeline: a table that other stages read as they read that of a training.
///
/// Weights may be in any layout that they are published in, with all names and shapes as they should be: a folder of diffusers or
/// transformers, a file of latent-diffusion with all parts of a model, safetensors or what torch.save writes.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
pub struct Pretrained {
    /// The network that the weights are of.
    #[garde(skip)]
    pub network: Network,
    /// A name that `vlmdiff models list` shows, `ORG/NAME` of the Hugging Face hub, or the path of a file or folder. Identified by
    /// content, not by place.
    #[garde(length(min = 1))]
    pub weights: String,
    /// Of a text encoder, the tokenizer: a name, hub id or folder with `tokenizer.json`, or `vocab.json` and `merges.txt`.
    /// Absent: what lies beside the weights.
    #[garde(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
    /// The sizes of the network. Absent: the `config.json` beside the weights and, where there is none, those of Stable Diffusion 1.5.
    #[garde(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Map<String, Value>>,
}

/// A network that stages of the pipeline take from a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// AutoencoderKL, for `encode_latents` and `reconstruct`.
    Autoencoder,
    /// CLIP's text transformer with its tokenizer, for `encode_text`.
    TextEncoder,
    /// The U-Net with its control branch as the authors save them, for `reconstruct`.
    Denoiser,
}

impl Pretrained {
    /// The network's configuration, or `default`.
    fn settings<C: DeserializeOwned>(&self, default: C) -> Result<C, String> {
        if let Some(config) = &self.config {
            return serde_json::from_value(Value::Object(config.clone())).map_err(|e| format!("`config`: {e}"));
        }
        match Weights(&self.weights).config()? {
            Some(text) => serde_json::from_slice(&text).map_err(|e| format!("`weights`: its config.json: {e}")),
            None => Ok(default),
        }
    }

    fn clip(&self) -> Result<ClipTextConfig, String> {
        let vit_l_14 = ClipTextConfig {
            hidden_size: 768,
            intermediate_size: 3072,
            num_attention_heads: 12,
            projection_dim: 768,
            ..ClipTextConfig::default()
        };
        self.settings(ClipFile(vit_l_14)).map(|file| file.0)
    }

    fn tokenizer(&self) -> &str {
        self.tokenizer.as_deref().unwrap_or(&self.weights)
    }
}

/// A `config.json` of a text model or of a whole CLIP.
#[derive(Deserialize)]
#[serde(try_from = "Value")]
struct ClipFile(ClipTextConfig);

impl TryFrom<Value> for ClipFile {
    type Error = serde_json::Error;
    fn try_from(value: Value) -> Result<Self, Self::Error> {
        ClipTextConfig::from_json(&value.to_string()).map(Self)
    }
}

impl Stage for Pretrained {
    const NAME: &'static str = "pretrained";
    const REVISION: u32 = 1;
    const PORTS: Ports = Ports::Named(&[]);
    const OUTPUT: &'static [Output] = &[Output::Table];
    const LOCATIONS: &'static [&'static str] = &["weights", "tokenizer"];

    fn output(&self, _: &Schemas) -> Result<SchemaRef, String> {
        let weights = match self.network {
            Network::Autoencoder => {
                let config: AutoencoderKlConfig = self.settings(AutoencoderKlConfig::default())?;
                config.validate().map_err(|e| format!("`config`: {e}"))?;
                weights_field(&config)
            }
            Network::TextEncoder => {
                let config = self.clip()?;
                config.validate().map_err(|e| format!("`config`: {e}"))?;
                weights_field(&config)
            }
            Network::Denoiser => {
                let config: DenoiserConfig = self.settings(DenoiserConfig::published())?;
                config.control.validate().map_err(|e| format!("`config`: {e}"))?;
                weights_field(&config)
            }
        };
        if self.tokenizer.is_some() && self.network != Network::TextEncoder {
            return Err("`tokenizer` belongs to `network: text_encoder`".into());
        }
        Ok(Arc::new(Schema::new(vec![
            Field::new("network", DataType::Utf8, false),
            Field::new("n_parameters", DataType::Int64, false),
            weights,
        ])))
    }

    fn files(&self) -> Result<Vec<String>, String> {
        let mut files = Weights(&self.weights).files()?;
        if self.network == Network::TextEncoder {
            files.extend(Weights(self.tokenizer()).tokenizer_files()?);
        }
        files.sort();
        files.dedup();
        Ok(files)
    }
}

impl Open for Pretrained {
    fn open(self, context: &Context) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Loader { stage: self, sources: context.sources.clone(), output: context.output.clone() }))
    }
}

struct Loader {
    stage: Pretrained,
    sources: Sources,
    output: SchemaRef,
}

impl Operator for Loader {
    fn run(&mut self, _: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        let vs = nn::VarStore::new(Device::Cpu);
        let weights = out.blob(self.load(&vs)?)?;
        let parameters: i64 = vs.variables().values().map(|variable| variable.numel() as i64).sum();
        let network = serde_json::to_value(self.stage.network).map_err(std::io::Error::from)?;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from(vec![network.as_str().unwrap_or_default()])),
            Arc::new(Int64Array::from(vec![parameters])),
            Arc::new(StringArray::from(vec![weights.to_string()])),
        ];
        out.write(&RecordBatch::try_new(self.output.clone(), columns)?)
    }
}

impl Loader {
    /// Fills a network in `vs` from the published weights, and gives them as a file of ours.
    fn load(&self, vs: &nn::VarStore) -> Result<Vec<u8>> {
        let stage = &self.stage;
        let published = Weights(&stage.weights).open(&self.sources)?;
        let wrong = |e: ConfigError| Error::Input(e.to_string());
        match stage.network {
            Network::Autoencoder => {
                let config = stage.settings(AutoencoderKlConfig::default()).map_err(Error::Input)?;
                skip_init(|| AutoencoderKl::new(vs.root(), &config)).map_err(wrong)?;
                config.canonical(published).and_then(|weights| weights.load_into(vs)).map_err(input)?;
                save_weights(vs.variables(), &config, &[])
            }
            Network::TextEncoder => {
                let config = stage.clip().map_err(Error::Input)?;
                skip_init(|| ClipTextModel::new(vs.root(), &config)).map_err(wrong)?;
                config.canonical(published).load_into(vs).map_err(input)?;
                let tokenizer = ClipTokenizer::open(Weights(stage.tokenizer()).beside().map_err(Error::Input)?)
                    .and_then(|tokenizer| tokenizer.to_json());
                let json = tokenizer.map_err(|e| Error::Input(e.to_string()))?;
                save_weights(vs.variables(), &config, &[(TOKENIZER, json)])
            }
            Network::Denoiser => {
                let mut config = stage.settings(DenoiserConfig::published()).map_err(Error::Input)?;
                let file = LatentDiffusion::new(published).map_err(input)?;
                let unet = file.unet().and_then(|part| config.unet.canonical(part)).map_err(input)?;
                let control = file.control().and_then(|part| config.control.canonical(part)).map_err(input)?;
                let control = config.control.fit_fusion(control).map_err(input)?;
                skip_init(|| Denoiser::new(&vs.root(), &config))?;
                unet.fill(&variables_below(vs, "unet")).map_err(input)?;
                control.fill(&variables_below(vs, "control")).map_err(input)?;
                save_weights(vs.variables(), &config, &[])
            }
        }
    }
}
