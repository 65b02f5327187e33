//! Published weights -> a table that names them, as that of a training does.
//!
//! [`Network`] lists the networks; each has a file here with its layouts, configuration and loading.

mod autoencoder;
mod denoiser;
mod network;
mod text_encoder;

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

use crate::{
    engine::{
        Result,
        source::Sources,
        stage::{Context, Misfit, Open, Operator, Output, Ports, Rows, Schemas, Sink, Stage},
    },
    published::Weights,
    tables::weights::weights_field,
};
use network::PublishedNetwork;

/// Brings published weights into a pipeline, as a table that other stages read like that of a training.
///
/// The weights are safetensors or files of torch.save; all names and shapes must match. An autoencoder or a text
/// encoder is read from a folder of diffusers or transformers, or from a file of latent-diffusion, with all parts of
/// a model or alone; a denoiser from a file with its U-Net and its control branch: the authors'
/// (`model.diffusion_model.*`, `control_model.*`) or one that `train_denoiser` wrote (`unet.*`, `control.*`); or, with
/// `control.form: none` in `config`, from one with a U-Net.
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

/// Defines [`Network`] with a variant for each type that implements [`PublishedNetwork`], and the functions that differ
/// between networks. The network is chosen by a `match`; [`PublishedNetwork`] states why.
macro_rules! networks {
    ($($(#[$about:meta])* $name:ident => $network:ty;)*) => {
        /// A network that other stages read from a table.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum Network {
            $($(#[$about])* $name,)*
        }

        impl Network {
            /// Returns the layouts of its weights.
            fn layouts(self) -> &'static [&'static str] {
                match self {
                    $(Self::$name => <$network>::LAYOUTS,)*
                }
            }

            /// Returns true if a tokenizer belongs to the network.
            fn has_tokenizer(self) -> bool {
                match self {
                    $(Self::$name => <$network>::HAS_TOKENIZER,)*
                }
            }

            /// Returns the column that names the weights, with their configuration.
            fn field(self, stage: &Pretrained) -> Result<Field, Misfit> {
                match self {
                    $(Self::$name => stage.field::<$network>(),)*
                }
            }

            /// Loads the published weights into the network in `vs`, and returns them as a weights file of this
            /// program. The driver must not name this: it would then be linked to libtorch.
            fn load(self, loader: &Loader, vs: &nn::VarStore) -> Result<Vec<u8>> {
                match self {
                    $(Self::$name => loader.load::<$network>(vs),)*
                }
            }
        }
    };
}

networks! {
    /// AutoencoderKL, for `encode_latents` and `reconstruct`.
    Autoencoder => autoencoder::PublishedAutoencoder;
    /// CLIP's text transformer with its tokenizer, for `encode_text`.
    TextEncoder => text_encoder::PublishedTextEncoder;
    /// The U-Net, with its control branch or alone, for `reconstruct` and `score_latents`.
    Denoiser => denoiser::PublishedDenoiser;
}

impl Pretrained {
    /// Returns the network's configuration: the parameter, or that beside the weights, or else the published one.
    fn config<N: PublishedNetwork>(&self) -> Result<N::Config, Misfit> {
        let (text, at, of) = match &self.config {
            Some(config) => (Value::Object(config.clone()).to_string(), "config", ""),
            None => match Weights(&self.weights).config().map_err(|e| Misfit::parameter("weights", e))? {
                Some(text) => (String::from_utf8_lossy(&text).into_owned(), "weights", "its config.json: "),
                None => return Ok(N::published_config()),
            },
        };
        let config = N::parse_config(&text, self.config.is_some());
        config
            .map(|config| config.unwrap_or_else(N::published_config))
            .map_err(|e| Misfit::parameter(at, format!("{of}{e}")))
    }

    fn field<N: PublishedNetwork>(&self) -> Result<Field, Misfit> {
        let config = self.config::<N>()?;
        N::check_config(&config).map_err(|e| Misfit::parameter("config", e))?;
        Ok(weights_field(&config))
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
        let weights = self.network.field(self)?;
        if self.tokenizer.is_some() && !self.network.has_tokenizer() {
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
        if self.network.has_tokenizer() {
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
        let weights = out.put_blob(self.stage.network.load(self, &vs)?)?;
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
    fn load<N: PublishedNetwork>(&self, vs: &nn::VarStore) -> Result<Vec<u8>> {
        let published = Weights(&self.stage.weights).open(&self.sources)?;
        N::load(published, self.stage.config::<N>()?, self.stage.tokenizer(), vs)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::models::architecture;

    #[test]
    fn every_network_is_documented_and_its_published_configuration_fits() {
        let schema = serde_json::to_value(schemars::schema_for!(Network)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        for variant in schema["oneOf"].as_array().unwrap() {
            let name = variant["const"].as_str().unwrap();
            assert!(variant["description"].as_str().is_some_and(|text| !text.is_empty()), "{name} has a description");
            let params = json!({ "network": name, "weights": folder.path().join("model.safetensors") });
            let stage: Pretrained = serde_json::from_value(params).unwrap();
            assert_eq!(serde_json::to_value(stage.network).unwrap(), name);
            assert!(!stage.network.layouts().is_empty(), "{name} has layouts");
            for layout in stage.network.layouts() {
                assert!(architecture::title(layout).is_some(), "{name}: {layout} is a layout");
            }
            let no_inputs = Schemas { all: [].into(), by_row: vec![] };
            let schema = stage.output(&no_inputs).unwrap_or_else(|misfit| panic!("{name}: {misfit}"));
            // The configuration that the table carries, given as the parameter, describes the same network.
            let config = schema.field_with_name("weights").unwrap().metadata()["config"].clone();
            let written: Pretrained = serde_json::from_value(json!({
                "network": name,
                "weights": stage.weights,
                "config": serde_json::from_str::<Value>(&config).unwrap(),
            }))
            .unwrap();
            assert_eq!(written.output(&no_inputs), Ok(schema), "{name}");
        }
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
            stage.config::<denoiser::PublishedDenoiser>().map(|config| config.control.unet.block_out_channels)
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
