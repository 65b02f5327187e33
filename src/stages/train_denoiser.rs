//! Latents, captions and images -> the denoiser.

use arrow::datatypes::{DataType, SchemaRef};
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{
    Device, Kind, Tensor,
    nn::{Path, VarStore},
};

use super::{
    column,
    tensors::{device, normalise, save_weights, tensor, torch},
    training::{self, Loss, Training, config_of},
};
use crate::{
    diffusion::{Noise, loss::denoising_loss, optim::train_only, schedule::ScheduleConfig},
    engine::{
        Error, Result,
        stage::{Context, Open, Operator, Output, Port, Ports, Schemas, Stage},
        task::{Rows, Sink},
    },
    models::{
        control::{ControlForm, ControlNet, ControlNetConfig},
        unet::{UNet2DConditionConfig, UNet2DConditionModel},
        vae::AutoencoderKlConfig,
    },
};

/// Trains the denoiser on normal images: the U-Net together with its control branch, which sees the image itself.
///
/// The loss is the mean squared error of what `schedule.prediction_type` names; latents are drawn from their stored moments
/// anew in each step (method: noise prediction, t uniform).
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
pub struct TrainDenoiser {
    /// The U-Net, as in a published `unet/config.json`.
    #[garde(skip)]
    #[serde(default)]
    pub config: UNet2DConditionConfig,
    /// The control branch.
    #[garde(dive)]
    #[serde(default)]
    pub control: Control,
    /// The noise schedule and what the network predicts.
    #[garde(skip)]
    #[serde(default)]
    pub schedule: ScheduleConfig,
    /// The lowest timestep that is trained. A sampler of few steps visits high noise levels alone, and need not be taught others.
    #[garde(skip)]
    #[serde(default)]
    pub min_timestep: u32,
    /// Asks no more of nearly clean latents than a signal-to-noise ratio of this would; absent: all timesteps weigh the same.
    #[garde(range(min = 0.))]
    #[serde(default)]
    pub min_snr_gamma: Option<f64>,
    /// How to train.
    #[garde(dive)]
    #[serde(default)]
    pub training: Training,
}

/// The control branch, a trainable copy of the U-Net's way down that sees the image.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
pub struct Control {
    /// Widths of the hint encoder, which halves the image between two of them: as often as the autoencoder does.
    #[garde(length(min = 1))]
    pub conditioning_embedding_out_channels: Vec<i64>,
    /// How the branch's maps are brought to the U-Net: as they are, or those of the deepest level through a SiLU.
    #[garde(skip)]
    pub form: ControlForm,
    /// Whether a semantic-guided branch has its spatial feature fusion. With `only_mid_control` it stays as it starts, without
    /// effect: it multiplies maps and weights that are both zero at first, so that neither ever receives a gradient.
    #[garde(skip)]
    pub fusion: bool,
    /// Whether only the middle reaches the U-Net and, of a semantic-guided branch, the deepest level; else all levels.
    #[garde(skip)]
    pub only_mid_control: bool,
}

impl Default for Control {
    fn default() -> Self {
        Self {
            conditioning_embedding_out_channels: vec![16, 32, 96, 256],
            form: ControlForm::SemanticGuided,
            fusion: false,
            only_mid_control: true,
        }
    }
}

/// What the weights of a denoiser are built from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct DenoiserConfig {
    pub(super) unet: UNet2DConditionConfig,
    pub(super) control: ControlNetConfig,
    pub(super) schedule: ScheduleConfig,
    /// What latents are multiplied with before noise is added.
    pub(super) scaling_factor: f64,
}

/// The U-Net and its control branch under one root.
pub(super) struct Denoiser {
    unet: UNet2DConditionModel,
    control: ControlNet,
}

impl Denoiser {
    pub(super) fn new(vs: &Path<'_>, config: &DenoiserConfig) -> Result<Self> {
        let wrong = |e: crate::models::nn::ConfigError| Error::Input(e.to_string());
        let unet = UNet2DConditionModel::new(vs / "unet", &config.unet).map_err(wrong)?;
        Ok(Self { unet, control: ControlNet::new(vs / "control", &config.control).map_err(wrong)? })
    }

    /// The hint that [`Denoiser::forward`] takes, the same at all timesteps: normalised images -> [B, C, h, w].
    pub(super) fn hint(&self, images: &Tensor) -> Tensor {
        self.control.hint(images)
    }

    /// Noisy latents [B, 4, h, w], timesteps [B], captions [B, 77, D] and the hint -> the prediction [B, 4, h, w].
    pub(super) fn forward(&self, x: &Tensor, t: &Tensor, context: &Tensor, hint: &Tensor) -> Tensor {
        let residuals = self.control.forward_hint(x, t, context, hint);
        self.unet.forward(x, t, context, Some(&residuals))
    }
}

impl TrainDenoiser {
    fn denoiser(&self, scaling_factor: f64) -> DenoiserConfig {
        let control = ControlNetConfig {
            unet: self.config.clone(),
            conditioning_channels: 3,
            conditioning_embedding_out_channels: self.control.conditioning_embedding_out_channels.clone(),
            form: self.control.form,
            fusion: self.control.fusion,
            only_mid_control: self.control.only_mid_control,
        };
        DenoiserConfig { unet: self.config.clone(), control, schedule: self.schedule.clone(), scaling_factor }
    }
}

impl Stage for TrainDenoiser {
    const NAME: &'static str = "train_denoiser";
    const REVISION: u32 = 1;
    const PORTS: Ports = Ports::Named(&[
        Port::rows("images", &["pixels"]),
        Port::rows("latents", &["mean", "logvar"]),
        Port::rows("text_embeddings", &["embedding"]),
        Port::table("autoencoder", &["weights"]),
    ]);
    const OUTPUT: &'static [Output] = &[Output::Table];

    fn output(&self, inputs: &Schemas) -> Result<SchemaRef, String> {
        let config = self.denoiser(1.);
        config.control.validate().map_err(|e| format!("`config`: {e}"))?;
        config.schedule.build().map_err(|e| format!("`schedule`: {e}"))?;
        if self.min_timestep >= config.schedule.num_train_timesteps {
            return Err(format!("`min_timestep`: the schedule ends before {}", self.min_timestep));
        }
        let [channels, h, w] = column::shape(inputs.field("latents", "mean")?, &DataType::Float32, "[C, h, w]")?;
        let [height, _, _] = column::pixels(inputs)?;
        let [_, width] = column::shape(inputs.field("text_embeddings", "embedding")?, &DataType::Float32, "[77, D]")?;
        let vae: AutoencoderKlConfig = config_of(inputs.field("autoencoder", "weights")?)?;
        if config.control.factor() != vae.factor() {
            let (hint, vae) = (config.control.factor(), vae.factor());
            return Err(format!(
                "`control`: the hint encoder shrinks images by {hint} and the autoencoder by {vae}; conditioning_embedding_out_channels needs {} widths",
                vae.ilog2() + 1
            ));
        }
        if self.config.in_channels != channels as i64 || self.config.out_channels != channels as i64 {
            return Err(format!("`config`: in_channels and out_channels are {channels} with this autoencoder"));
        }
        if self.config.cross_attention_dim != width as i64 {
            return Err(format!(
                "`config`: cross_attention_dim is {} and the captions are {width} wide",
                self.config.cross_attention_dim
            ));
        }
        let deepest = 1 << (self.config.block_out_channels.len() - 1);
        if h % deepest != 0 || w % deepest != 0 {
            return Err(format!(
                "`config`: latents of {h}x{w} (images of {height}) do not divide by {deepest}, the factor of {} levels",
                self.config.block_out_channels.len()
            ));
        }
        Ok(training::schema(&[], &config))
    }
}

impl Open for TrainDenoiser {
    fn open(self, context: &Context) -> Result<Box<dyn Operator>> {
        let field = |port, name| context.schemas.field(port, name).map_err(Error::Stage);
        let (vae, _) = super::tensors::load_weights::<AutoencoderKlConfig>(context, "autoencoder")?;
        Ok(Box::new(Trainer {
            config: self.denoiser(vae.scaling_factor),
            min_timestep: self.min_timestep,
            min_snr_gamma: self.min_snr_gamma,
            training: self.training,
            device: device(context)?,
            pixels: column::pixels(&context.schemas).map_err(Error::Stage)?,
            latent: column::shape(field("latents", "mean")?, &DataType::Float32, "[C, h, w]").map_err(Error::Stage)?,
            text: column::shape(field("text_embeddings", "embedding")?, &DataType::Float32, "[77, D]")
                .map_err(Error::Stage)?,
            output: context.output.clone(),
        }))
    }
}

struct Trainer {
    config: DenoiserConfig,
    min_timestep: u32,
    min_snr_gamma: Option<f64>,
    training: Training,
    device: Device,
    pixels: [usize; 3],
    latent: [usize; 3],
    text: [usize; 2],
    output: SchemaRef,
}

impl Operator for Trainer {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        let mut columns: [Vec<Tensor>; 4] = Default::default();
        while let Some(batch) = rows.next(256)? {
            let read = [
                tensor(batch.column("images", "pixels")?, &self.pixels)?,
                tensor(batch.column("latents", "mean")?, &self.latent)?,
                tensor(batch.column("latents", "logvar")?, &self.latent)?,
                tensor(batch.column("text_embeddings", "embedding")?, &self.text)?,
            ];
            columns.iter_mut().zip(read).for_each(|(column, part)| column.push(part));
        }
        let count: usize = columns[0].iter().map(|part| part.size()[0] as usize).sum();
        let whole = |parts: &Vec<Tensor>| {
            if parts.is_empty() {
                Ok(Tensor::zeros([0], (Kind::Float, Device::Cpu)))
            } else {
                Tensor::f_cat(parts, 0).map_err(torch)
            }
        };
        let [pixels, mean, logvar, text] =
            [whole(&columns[0])?, whole(&columns[1])?, whole(&columns[2])?, whole(&columns[3])?];
        drop(columns);
        let schedule = self.config.schedule.build().map_err(|e| Error::Input(e.to_string()))?;
        let (seed, steps) = (self.training.seed, self.config.schedule.num_train_timesteps);
        tch::manual_seed(seed as i64);
        let vs = VarStore::new(self.device);
        let network = Denoiser::new(&vs.root(), &self.config)?;
        let log = self.training.run(&vs, train_only(&vs, |_| true), count, out, |step, indices| {
            let chosen = Tensor::from_slice(indices);
            let pick = |tensor: &Tensor| tensor.index_select(0, &chosen).to_device(self.device);
            let mut random = Noise::new(seed, step.to_le_bytes());
            let shape = [indices.len() as i64, self.latent[0] as i64, self.latent[1] as i64, self.latent[2] as i64];
            let mut normal = || random.normal(&shape).map(|noise| noise.to_device(self.device)).map_err(torch);
            let z = (pick(&mean) + (pick(&logvar) * 0.5).exp() * normal()?) * self.config.scaling_factor; // [B, 4, h, w]
            let noise = normal()?;
            let t = random.timesteps(indices.len(), steps - self.min_timestep) + i64::from(self.min_timestep);
            let t = t.to_device(self.device); // [B]
            let hint = network.hint(&normalise(&pick(&pixels)));
            let prediction = network.forward(&schedule.q_sample(&z, &noise, &t), &t, &pick(&text), &hint);
            Ok(Loss {
                total: denoising_loss(&schedule, &prediction, &z, &noise, &t, self.min_snr_gamma),
                parts: Vec::new(),
            })
        })?;
        let weights = out.blob(save_weights(vs.variables(), &self.config, &[])?)?;
        out.write(&log.batch(&self.output, weights)?)
    }
}
