//! Images -> an image autoencoder.

use arrow::datatypes::SchemaRef;
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, nn::VarStore, no_grad};

use super::{
    column,
    tensors::{device, normalise, save_weights, tensor, torch},
    training::{self, Loss, Training},
};
use crate::{
    diffusion::{Noise, optim::train_only},
    engine::{
        Error, Result,
        stage::{Context, Open, Operator, Output, Port, Ports, Schemas, Stage},
        task::{Rows, Sink},
    },
    models::vae::{AutoencoderKl, AutoencoderKlConfig},
};

/// Trains an AutoencoderKL on images: absolute error plus a small pull of the latents towards a normal distribution.
///
/// Afterwards `scaling_factor` is set to one over the standard deviation of the training images' latents, so that the
/// denoiser sees about unit variance (latent diffusion's `scale_by_std`).
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
pub struct TrainAutoencoder {
    /// The network, as in a published `vae/config.json`.
    #[garde(skip)]
    #[serde(default)]
    pub config: AutoencoderKlConfig,
    /// Weight of the Kullback-Leibler term, per image summed over the latent as the absolute error is over the pixels.
    #[garde(range(min = 0.))]
    #[serde(default = "default_kl_weight")]
    pub kl_weight: f64,
    /// Weight of the mean squared error beside the mean absolute error: it makes a short training learn strong colours first.
    #[garde(range(min = 0.))]
    #[serde(default)]
    pub mse_weight: f64,
    /// Side of the random square that each step sees of an image; absent: all of it. The network is convolutional, so small
    /// squares teach it as much per pixel, in more steps.
    #[garde(inner(range(min = 8)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crop: Option<u32>,
    /// How to train.
    #[garde(dive)]
    #[serde(default)]
    pub training: Training,
}

fn default_kl_weight() -> f64 {
    1e-6
}

/// Log-variance of the latents before the first step.
const FIRST_LOGVAR: f64 = -6.;
const PARTS: &[&str] = &["reconstruction_loss", "kl_loss"];

impl Stage for TrainAutoencoder {
    const NAME: &'static str = "train_autoencoder";
    const REVISION: u32 = 1;
    const PORTS: Ports = Ports::Named(&[Port::rows("images", &["pixels"])]);
    const OUTPUT: &'static [Output] = &[Output::Table];

    fn output(&self, inputs: &Schemas) -> Result<SchemaRef, String> {
        self.config.validate().map_err(|e| format!("`config`: {e}"))?;
        let [height, width, _] = column::pixels(inputs)?;
        let factor = self.config.factor() as usize;
        if height % factor != 0 || width % factor != 0 {
            return Err(format!(
                "`config`: images of {height}x{width} do not divide by {factor}, the factor of {} levels",
                self.config.block_out_channels.len()
            ));
        }
        if let Some(crop) =
            self.crop.map(|crop| crop as usize).filter(|crop| crop % factor != 0 || *crop > height.min(width))
        {
            return Err(format!(
                "`crop`: {crop} is to be a multiple of {factor} and at most the images' {height}x{width}"
            ));
        }
        Ok(training::schema(PARTS, &self.config))
    }
}

impl Open for TrainAutoencoder {
    fn open(self, context: &Context) -> Result<Box<dyn Operator>> {
        let shape = column::pixels(&context.schemas).map_err(Error::Stage)?;
        Ok(Box::new(Trainer { stage: self, device: device(context)?, shape, output: context.output.clone() }))
    }
}

struct Trainer {
    stage: TrainAutoencoder,
    device: Device,
    shape: [usize; 3],
    output: SchemaRef,
}

impl Trainer {
    /// The same random square of every image of a batch.
    fn cropped(&self, x: Tensor, random: &mut Noise) -> Tensor {
        let Some(side) = self.stage.crop.map(i64::from) else { return x };
        let offset = |size: i64, random: &mut Noise| random.timesteps(1, (size - side + 1) as u32).int64_value(&[0]);
        let (top, left) = (offset(x.size()[2], random), offset(x.size()[3], random));
        x.narrow(2, top, side).narrow(3, left, side)
    }
}

impl Operator for Trainer {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        let mut pixels = Vec::new();
        while let Some(batch) = rows.next(256)? {
            pixels.push(tensor(batch.column("images", "pixels")?, &self.shape)?);
        }
        let count = pixels.iter().map(|p| p.size()[0] as usize).sum();
        let pixels = if pixels.is_empty() {
            Tensor::zeros([0], (Kind::Uint8, Device::Cpu))
        } else {
            Tensor::f_cat(&pixels, 0).map_err(torch)?
        };
        let TrainAutoencoder { mut config, kl_weight, mse_weight, training, .. } = self.stage.clone();
        tch::manual_seed(training.seed as i64);
        let vs = VarStore::new(self.device);
        let network = AutoencoderKl::new(vs.root(), &config).map_err(|e| Error::Input(e.to_string()))?;
        // A standard normal posterior would drown the code in noise until training has shrunk it, thousands of steps later.
        no_grad(|| {
            if let Some(bias) = vs.variables().get("quant_conv.bias") {
                let _ = bias.narrow(0, config.latent_channels, config.latent_channels).fill_(FIRST_LOGVAR);
            }
        });
        let images =
            |indices: &[i64]| normalise(&pixels.index_select(0, &Tensor::from_slice(indices)).to_device(self.device));
        let log = training.run(&vs, train_only(&vs, |_| true), count, out, |step, indices| {
            let mut random = Noise::new(training.seed, step.to_le_bytes());
            let x = self.cropped(images(indices), &mut random); // [B, 3, H, W]
            let per_image = (x.numel() as i64 / x.size()[0]) as f64;
            let posterior = network.encode(&x);
            let noise = random.normal(&posterior.mean.size()).map_err(torch)?.to_device(self.device);
            let y = network.decode(&posterior.sample(&noise));
            let error = &y - &x;
            let reconstruction = error.abs().mean(Kind::Float) + error.square().mean(Kind::Float) * mse_weight;
            let kl = posterior.kl().mean(Kind::Float) / per_image;
            Ok(Loss { total: &reconstruction + &kl * kl_weight, parts: vec![reconstruction, kl] })
        })?;
        let some: Vec<i64> = (0..count as i64).step_by((count / 128).max(1)).collect();
        let std = no_grad(|| some.chunks(32).map(|chunk| network.encode(&images(chunk)).mean).collect::<Vec<_>>());
        config.scaling_factor = 1. / Tensor::cat(&std, 0).std(true).double_value(&[]);
        let weights = out.blob(save_weights(vs.variables(), &config, &[])?)?;
        out.write(&log.batch(&self.output, weights)?)
    }
}
