//! Images -> their latents.

use arrow::datatypes::{Float32Type, SchemaRef};
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor, no_grad};

use super::tensors::{device, floats, network, normalise, tensor};
use crate::{
    engine::{
        Result, is_url,
        stage::{Context, Misfit, Open, Operator, Output, Port, Ports, Rows, Schemas, Sink, Stage},
    },
    features::{Extractor, FeatureOptions, LoadedExtractor, resize::Dinov2Resize},
    models::vae::{AutoencoderKl, AutoencoderKlConfig},
    published::{Weights, not_here},
    tables::{
        images, latents,
        tensor::tensor_column,
        weights::{config_of, weights_column},
    },
};

/// Encodes images by an autoencoder, or by the features of a pretrained network.
///
/// An autoencoder makes the mean and the log-variance of each latent, unscaled. An `extractor`, named in place of an
/// `autoencoder` in `from:`, makes exact latents: the map of each layer is averaged over 3x3 cells and brought to the
/// grid of the first layer, and the channels of all layers lie side by side.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
#[schemars(extend("examples" = [{}, { "extractor": "efficientnet-lite0", "layers": [8, 4, 16] }]))]
pub struct EncodeLatents {
    /// The network whose features are the latents. Absent: the autoencoder encodes.
    #[garde(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extractor: Option<Extractor>,
    /// The extractor's weights, named as in `anomaly_maps`. Absent: those that are known under its name.
    #[garde(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
    /// The layers, counted as `extractor` says. The grid is that of the first. Absent: the extractor's own.
    #[garde(inner(length(min = 1)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<usize>>,
    /// For transformers: if true, the final layer norm is applied to each layer. Absent: true.
    #[garde(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub final_norm: Option<bool>,
    /// For `dinov2`: the way an image is resized for the network. Absent: `resample`.
    #[garde(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dinov2_resize: Option<Dinov2Resize>,
}

impl EncodeLatents {
    fn weights(&self, extractor: Extractor) -> Weights<'_> {
        Weights(self.weights.as_deref().unwrap_or_else(|| extractor.default_weights()))
    }

    fn options(&self) -> FeatureOptions {
        FeatureOptions { layers: self.layers.clone(), final_norm: self.final_norm, dinov2_resize: self.dinov2_resize }
    }

    /// Returns the schema of the features of images.
    fn features(&self, extractor: Extractor, size: [usize; 2]) -> Result<SchemaRef, Misfit> {
        let options = self.options();
        extractor.check(&options).map_err(|(option, why)| Misfit::parameter(option, why))?;
        let weights = self.weights(extractor);
        let wrong = |e: String| Misfit::parameter("weights", e);
        let path = match extractor.has_several_sizes() {
            true if is_url(weights.0) => {
                let name = extractor.name();
                return Err(wrong(format!("the size of a {name} at a URL is not known; name weights on this machine")));
            }
            true => Some(weights.path().map_err(|e| not_here("weights", &e))?),
            false => None,
        };
        let shape = extractor.patches_shape(path.as_deref(), &options, size).map_err(|e| wrong(e.to_string()))?;
        Ok(latents::feature_schema(shape))
    }
}

impl Stage for EncodeLatents {
    fn revision(&self) -> u32 {
        1
    }

    fn ports(&self) -> Ports {
        Ports::Named(vec![
            Port::rows("images", [images::pixels_column()]),
            Port::table("autoencoder", [weights_column()]).optional(),
        ])
    }

    fn makes(&self) -> Output {
        Output::RowPerRow
    }

    fn locations(&self) -> &'static [&'static str] {
        &["weights"]
    }

    fn output(&self, inputs: &Schemas) -> Result<SchemaRef, Misfit> {
        let [height, width, _] = images::pixels(inputs)?;
        match (self.extractor, inputs.get("autoencoder")) {
            (Some(extractor), None) => return self.features(extractor, [height, width]),
            (None, Some(_)) => {}
            _ => {
                let message = "latents come from one of an `autoencoder` in `from:` and the parameter `extractor`";
                return Err(Misfit::stage(message.to_owned()));
            }
        }
        for (name, is_given) in [
            ("weights", self.weights.is_some()),
            ("layers", self.layers.is_some()),
            ("final_norm", self.final_norm.is_some()),
            ("dinov2_resize", self.dinov2_resize.is_some()),
        ] {
            if is_given {
                return Err(Misfit::parameter(name, "it belongs to an `extractor`, and the autoencoder encodes"));
            }
        }
        let config: AutoencoderKlConfig = config_of(inputs, "autoencoder")?;
        let factor = config.factor() as usize;
        if height % factor != 0 || width % factor != 0 {
            let message =
                format!("images of {height}x{width} do not divide by {factor}, the factor of the autoencoder");
            return Err(Misfit::input("images", message));
        }
        let shape = [config.latent_channels as usize, height / factor, width / factor];
        Ok(latents::schema(shape))
    }

    fn files(&self) -> Result<Vec<String>, Misfit> {
        let files = |extractor: Extractor| self.weights(extractor).files_of("weights", extractor.layouts());
        self.extractor.map_or(Ok(Vec::new()), files)
    }
}

impl Open for EncodeLatents {
    fn open(self, context: &Context) -> Result<Box<dyn Operator>> {
        let device = device(context)?;
        let network = match self.extractor {
            Some(extractor) => {
                let weights = self.weights(extractor).local(&context.sources)?;
                Network::Extractor(extractor.open(&weights, &self.options(), device)?)
            }
            None => Network::Autoencoder(Box::new(network(context, "autoencoder", device, AutoencoderKl::new)?.0)),
        };
        Ok(Box::new(Encoder { network, device, batch_size: context.batch_size.unwrap_or(16) }))
    }
}

/// The network that encodes.
enum Network {
    Autoencoder(Box<AutoencoderKl>),
    Extractor(LoadedExtractor),
}

impl Network {
    /// Encodes normalised images [B, 3, H, W]: the tensors of a table's columns, [B, C, h, w].
    fn encode(&self, images: &Tensor) -> Vec<Tensor> {
        match self {
            Self::Autoencoder(network) => {
                let posterior = network.encode(images);
                vec![posterior.mean, posterior.logvar]
            }
            Self::Extractor(network) => vec![network.patches(images)],
        }
    }
}

struct Encoder {
    network: Network,
    device: Device,
    batch_size: usize,
}

impl Operator for Encoder {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        while let Some(batch) = rows.next(self.batch_size)? {
            let pixels = tensor(&batch, "images", images::PIXELS)?.to_device(self.device);
            let encoded = no_grad(|| self.network.encode(&normalise(&pixels)));
            let column = |latents: &Tensor| {
                let values = floats(latents)?;
                let size = values.len() / batch.len();
                tensor_column::<Float32Type>(values, size, None)
            };
            out.write_rows(&batch, encoded.iter().map(column).collect::<Result<_>>()?)?;
        }
        Ok(())
    }
}
