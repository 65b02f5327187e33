//! PatchGAN (Isola et al. 2017), the discriminator of latent diffusion's autoencoder: it distinguishes patches of
//! pictures from patches of reconstructions.

use super::{
    checkpoint::{Checkpoint, CheckpointError},
    nn::{ConfigError, MAX_SIZE, require_sizes},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{
    Tensor,
    nn::{self, BatchNorm, BatchNormConfig, Conv2D, ConvConfig, Init, Module, ModuleT},
};

const NAME: &str = "NLayerDiscriminator";
/// The largest width, in multiples of the first.
const WIDEST: i64 = 8;
/// The slope of the leaky ReLU below 0.
const SLOPE: f32 = 0.2;

/// The arguments of taming-transformers' `NLayerDiscriminator`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct PatchGanConfig {
    /// Channels of the image.
    pub input_nc: i64,
    /// Width of the first convolution.
    pub ndf: i64,
    /// Convolutions that halve the image.
    pub n_layers: i64,
}

impl Default for PatchGanConfig {
    fn default() -> Self {
        Self { input_nc: 3, ndf: 64, n_layers: 3 }
    }
}

impl PatchGanConfig {
    /// Checks that a network can be built from these values.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let Self { input_nc, ndf, n_layers } = *self;
        require_sizes(NAME, MAX_SIZE, &[("input_nc", input_nc), ("ndf", ndf)])?;
        require_sizes(NAME, 15, &[("n_layers", n_layers)])
    }

    /// Returns the smallest side of an image that has a patch.
    pub fn smallest(&self) -> i64 {
        3 << self.n_layers
    }
}

/// A convolution and, except in the first and the last layer, a batch normalisation.
#[derive(Debug)]
struct Layer {
    conv: Conv2D,
    norm: Option<BatchNorm>,
}

/// 4×4 convolutions with a leaky ReLU between them; one logit per patch.
#[derive(Debug)]
pub struct PatchGan {
    layers: Vec<Layer>,
}

impl PatchGan {
    /// Declares the parameters under `vs` by their published names (`main.0.weight`), with the initial values of
    /// pix2pix; fails if the config describes no network.
    pub fn new(vs: nn::Path, config: &PatchGanConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        let PatchGanConfig { input_nc, ndf, n_layers } = *config;
        let draw = |mean| Init::Randn { mean, stdev: 0.02 };
        let width = |layer: i64| ndf * (1 << layer).min(WIDEST);
        let conv = |index: i64, inputs, outputs, stride, bias| {
            let config = ConvConfig { stride, padding: 1, bias, ws_init: draw(0.), ..Default::default() };
            nn::conv2d(&vs / "main" / index, inputs, outputs, 4, config)
        };
        let mut layers = vec![Layer { conv: conv(0, input_nc, ndf, 2, true), norm: None }];
        for layer in 1..=n_layers {
            // behind the first convolution and its ReLU, each layer is three modules
            let index = 3 * layer - 1;
            let stride = if layer < n_layers { 2 } else { 1 };
            let options = BatchNormConfig { ws_init: draw(1.), bs_init: Init::Const(0.), ..Default::default() };
            let norm = nn::batch_norm2d(&vs / "main" / (index + 1), width(layer), options);
            layers.push(Layer { conv: conv(index, width(layer - 1), width(layer), stride, false), norm: Some(norm) });
        }
        layers.push(Layer { conv: conv(3 * n_layers + 2, width(n_layers), 1, 1, true), norm: None });
        Ok(Self { layers })
    }

    /// Maps images [B, input_nc, H, W] to a logit per patch, [B, 1, h, w], which is positive for patches that look like
    /// a picture. With `train` the normalisations use and record the statistics of the batch, else the recorded ones.
    pub fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        let last = self.layers.len() - 1;
        let slope = Tensor::from_slice(&[SLOPE]).to_device(x.device()).to_kind(x.kind());
        let layer = |x: Tensor, (i, Layer { conv, norm }): (usize, &Layer)| {
            let x = conv.forward(&x);
            let x = norm.as_ref().map_or_else(|| x.shallow_clone(), |norm| norm.forward_t(&x, train));
            if i < last { x.prelu(&slope) } else { x }
        };
        self.layers.iter().enumerate().fold(x.shallow_clone(), layer)
    }

    /// Returns true if the variable `name` is learnt by gradients; the others are statistics.
    pub fn is_parameter(name: &str) -> bool {
        !name.contains(".running_")
    }

    /// Returns the weights of a discriminator under the names of this network: those of a file of its own, or those
    /// below `loss.discriminator.` of a latent-diffusion autoencoder. The result is empty if the file has none.
    ///
    /// # Errors
    /// [`CheckpointError::Format`] if two tensors would get one name.
    pub fn canonical(published: Checkpoint) -> Result<Checkpoint, CheckpointError> {
        published.rename(|name| {
            let name = name.strip_prefix("loss.discriminator.").unwrap_or(name);
            (name.starts_with("main.") && !name.ends_with(".num_batches_tracked")).then(|| name.to_owned())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind, nn::VarStore};

    #[test]
    fn a_picture_of_256_has_30_by_30_patches() {
        let vs = VarStore::new(Device::Cpu);
        let network = PatchGan::new(vs.root(), &PatchGanConfig { ndf: 4, ..Default::default() }).unwrap();
        let x = Tensor::rand([2, 3, 256, 256], (Kind::Float, Device::Cpu));
        let (before, mean) = (network.forward(&x, false), vs.variables()["main.3.running_mean"].copy());
        assert_eq!(before.size(), [2, 1, 30, 30]);
        let _ = network.forward(&x, true);
        assert_ne!(vs.variables()["main.3.running_mean"], mean);
        assert_eq!(vs.variables()["main.9.weight"].size(), [32]);
        for n_layers in 1..=3 {
            let config = PatchGanConfig { ndf: 4, n_layers, ..Default::default() };
            let network = PatchGan::new(VarStore::new(Device::Cpu).root(), &config).unwrap();
            let least = Tensor::zeros([1, 3, config.smallest(), config.smallest()], (Kind::Float, Device::Cpu));
            assert_eq!(network.forward(&least, false).size(), [1, 1, 1, 1]);
        }
        assert!(PatchGan::is_parameter("main.3.weight") && !PatchGan::is_parameter("main.3.running_var"));
        assert!(PatchGan::new(vs.root(), &PatchGanConfig { n_layers: 0, ..Default::default() }).is_err());
    }
}
