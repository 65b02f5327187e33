//! Images -> an image autoencoder.

use arrow::datatypes::SchemaRef;
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, nn::VarStore, no_grad};

use super::{
    journal::{READ_ROWS, train, training_rows},
    tensors::{device, normalise, save_weights, tensor},
};
use crate::{
    diffusion::{
        Noise,
        vae_gan::{self, AdversarialLoss, Adversary, Reduction, TermWeights, Terms},
    },
    engine::{
        Error, Result,
        source::Sources,
        stage::{Context, Misfit, Open, Operator, Output, Port, Ports, Rows, Schemas, Sink, Stage},
    },
    models::{
        lpips::Lpips,
        patchgan::{PatchGan, PatchGanConfig},
        vae::{AutoencoderKl, AutoencoderKlConfig},
    },
    published::{self, Weights, input},
    tables::{
        images::{self, PIXELS},
        training_log,
    },
    training::{
        self, Judge, LoggedLoss, MicroBatch, Training, TrainingRun,
        optim::{Named, train_only},
    },
};

/// Trains an AutoencoderKL on images, from random or from published weights. The loss has an absolute error, a
/// perceptual term (LPIPS), a small pull of the latents towards a normal distribution, and a discriminator.
///
/// The loss is that of latent diffusion; `perceptual` and `discriminator` may be left out. The authors fine-tune for
/// each dataset, with both, by `training: { optimizer: adam, betas: [0.5, 0.9], weight_decay: 0, lr: 4.5e-5,
/// accumulate: 8 }`; a small network that starts from random weights learns faster by `reduction: mean` and AdamW.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
#[schemars(extend("examples" = [{ "training": { "steps": 100 } }]))]
pub struct TrainAutoencoder {
    /// The network, as in a published `vae/config.json`.
    #[garde(skip)]
    #[serde(default)]
    pub config: AutoencoderKlConfig,
    /// Weights to go on from: a name that `vlmdiff models list` shows, or a file, folder or URL of an AutoencoderKL
    /// in the layout of diffusers or of latent diffusion, alone or with all parts of a model; the discriminator's,
    /// where the file has them. Absent: random weights.
    #[garde(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<String>,
    /// The error of an image: the sum or the mean over its values.
    #[garde(skip)]
    #[serde(default)]
    pub reduction: Reduction,
    /// Weight of the Kullback-Leibler term, which is summed per image over the latent as the absolute error is over
    /// the pixels.
    #[garde(range(min = 0.))]
    #[serde(default = "default_kl_weight")]
    pub kl_weight: f64,
    /// Weight of the squared error beside the absolute error. It makes a short training learn strong colours first.
    #[garde(range(min = 0.))]
    #[serde(default)]
    pub mse_weight: f64,
    /// The perceptual term's weights, named as `init` is: VGG16 as torchvision publishes it and the linear layers of
    /// LPIPS (`vgg.pth`), or one file with both, such as an autoencoder of latent diffusion. Absent: no perceptual
    /// term.
    #[garde(length(max = 2))]
    #[serde(default)]
    pub perceptual: Vec<String>,
    /// Weight of the perceptual term.
    #[garde(range(min = 0.))]
    #[serde(default = "default_perceptual_weight")]
    pub perceptual_weight: f64,
    /// The discriminator, which learns to tell reconstructions from pictures and is trained beside the autoencoder.
    /// Absent: none.
    #[garde(dive)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discriminator: Option<Discriminator>,
    /// Side of the random square of an image that each step uses; absent: the whole image. The network is
    /// convolutional, so it learns as much per pixel from small squares, in more steps.
    #[garde(inner(range(min = 8)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crop: Option<u32>,
    /// The factor by which the denoiser will multiply latents. Absent: that of `config` with `init`, else measured.
    #[garde(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling_factor: Option<ScalingFactor>,
    /// The parameters of the training.
    #[garde(dive)]
    #[serde(default)]
    pub training: Training,
}

fn default_kl_weight() -> f64 {
    1e-6
}

fn default_perceptual_weight() -> f64 {
    1.
}

/// A PatchGAN and its part in the loss.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
pub struct Discriminator {
    /// The first step in which it takes part and is trained.
    #[garde(skip)]
    pub start: u64,
    /// Its weight, on top of the factor that makes its gradients at the decoder's last layer as strong as those of
    /// the reconstruction.
    #[garde(range(min = 0.))]
    pub weight: f64,
    /// The loss by which it is trained.
    #[garde(skip)]
    pub loss: AdversarialLoss,
    /// The statistics that its batch normalisations use.
    #[garde(skip)]
    pub batch_norm: Statistics,
    /// The network.
    #[garde(skip)]
    pub config: PatchGanConfig,
}

impl Default for Discriminator {
    fn default() -> Self {
        Self {
            start: 50_001,
            weight: 0.5,
            loss: AdversarialLoss::Hinge,
            batch_norm: Statistics::Eval,
            config: PatchGanConfig::default(),
        }
    }
}

/// The statistics of a batch normalisation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Statistics {
    /// The initial statistics, which do not change. The authors' program does this, because its picture logger leaves
    /// the network in this mode.
    #[default]
    Eval,
    /// The statistics of the batch.
    Train,
}

/// The factor by which latents are multiplied before noise is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScalingFactor {
    /// `config.scaling_factor`.
    Config,
    /// One over the standard deviation of the training images' latents, so that the denoiser sees about unit variance
    /// (latent diffusion's `scale_by_std`).
    Measured,
}

/// Log-variance of the latents before the first step, if training starts from random weights.
const FIRST_LOGVAR: f64 = -6.;
/// The least number of images on which the scaling factor is measured, if there are as many. Every n-th is taken, which are fewer
/// than twice as many.
const MEASURED: usize = 128;
/// The prefix of the discriminator's variables in a saved state.
const DISCRIMINATOR: &str = "discriminator.";

impl TrainAutoencoder {
    /// Returns the names of the loss's parts in the table.
    fn parts(&self) -> Vec<&'static str> {
        let perceptual = (!self.perceptual.is_empty()).then_some("perceptual_loss");
        let adversarial = ["g_loss", "d_weight", "disc_loss", "logits_real", "logits_fake"];
        let adversarial = self.discriminator.iter().flat_map(|_| adversarial);
        ["reconstruction_loss", "kl_loss"].into_iter().chain(perceptual).chain(adversarial).collect()
    }

    fn weights(&self) -> TermWeights {
        let Self { reduction, mse_weight: mse, perceptual_weight: perceptual, kl_weight: kl, .. } = *self;
        TermWeights { reduction, mse, perceptual, kl }
    }

    /// Returns true if the scaling factor is measured.
    fn measures(&self) -> bool {
        let default = if self.init.is_some() { ScalingFactor::Config } else { ScalingFactor::Measured };
        self.scaling_factor.unwrap_or(default) == ScalingFactor::Measured
    }

    /// Returns the networks with their initial weights. The discriminator's variables are in a store of their own.
    fn objective(
        &self,
        vs: &VarStore,
        judge_vs: &VarStore,
        sources: &Sources,
        out: &mut Sink<'_>,
    ) -> Result<AutoencoderObjective> {
        let network = AutoencoderKl::new(vs.root(), &self.config)?;
        let adversary = self.discriminator.clone().unwrap_or_default();
        let judge = |_: &Discriminator| PatchGan::new(judge_vs.root(), &adversary.config);
        let discriminator = self.discriminator.as_ref().map(judge).transpose()?;
        match &self.init {
            Some(place) => {
                let published = Weights(place).open(sources)?;
                let own = self.config.canonical(published.clone()).and_then(|own| own.load_into(vs));
                own.map_err(input)?;
                let judge = PatchGan::canonical(published).map_err(input)?;
                if discriminator.is_some() && judge.is_empty() {
                    out.log(format!("the discriminator starts from random weights: {place} has none"));
                } else if discriminator.is_some() {
                    judge.load_into(judge_vs).map_err(input)?;
                }
            }
            // A standard normal posterior would hide the code in noise until training has shrunk its variance,
            // thousands of steps later.
            None => no_grad(|| {
                if let Some(bias) = vs.variables().get("quant_conv.bias") {
                    let latent = self.config.latent_channels;
                    let _ = bias.narrow(0, latent, latent).fill_(FIRST_LOGVAR);
                }
            }),
        }
        let perceptual = match self.perceptual.as_slice() {
            [] => {
                out.log("no perceptual term: `perceptual` names no weights");
                None
            }
            [vgg, .., lin] | [vgg @ lin] => {
                let open = |place: &String| Weights(place).open(sources);
                Some(Lpips::load(open(vgg)?, open(lin)?, vs.device()).map_err(input)?)
            }
        };
        Ok(AutoencoderObjective { network, perceptual, discriminator, weights: self.weights(), adversary })
    }
}

impl Stage for TrainAutoencoder {
    fn revision(&self) -> u32 {
        2
    }

    fn ports(&self) -> Ports {
        Ports::Named(vec![Port::rows("images", [images::pixels_column()])])
    }

    fn makes(&self) -> Output {
        Output::Table
    }

    fn locations(&self) -> &'static [&'static str] {
        &["init", "perceptual"]
    }

    fn memory_advice(&self) -> &'static str {
        training::MEMORY
    }

    fn needs_rows(&self) -> bool {
        true
    }

    fn output(&self, inputs: &Schemas) -> Result<SchemaRef, Misfit> {
        self.config.validate().map_err(|e| Misfit::parameter("config", e))?;
        let [height, width, _] = images::pixels(inputs)?;
        let factor = self.config.factor() as usize;
        if height % factor != 0 || width % factor != 0 {
            return Err(Misfit::parameter(
                "config",
                format!(
                    "images of {height}x{width} do not divide by {factor}, the factor of {} levels",
                    self.config.block_out_channels.len()
                ),
            ));
        }
        if let Some(crop) =
            self.crop.map(|crop| crop as usize).filter(|crop| crop % factor != 0 || *crop > height.min(width))
        {
            return Err(Misfit::parameter(
                "crop",
                format!("{crop} is to be a multiple of {factor} and at most the images' {height}x{width}"),
            ));
        }
        let side = self.crop.map_or(height.min(width), |crop| crop as usize);
        if let Some(Discriminator { config, .. }) = &self.discriminator {
            config.validate().map_err(|e| Misfit::parameter("discriminator.config", e))?;
            if (side as i64) < config.smallest() {
                return Err(Misfit::parameter(
                    "discriminator.config",
                    format!(
                        "with {} layers it sees nothing of images below {1}x{1}",
                        config.n_layers,
                        config.smallest()
                    ),
                ));
            }
        }
        if !self.perceptual.is_empty() && side < Lpips::SMALLEST {
            return Err(Misfit::parameter(
                "perceptual",
                format!("VGG16 sees nothing of images below {0}x{0}", Lpips::SMALLEST),
            ));
        }
        Ok(training_log::schema(&self.parts(), &[], &self.config))
    }

    fn files(&self) -> Result<Vec<String>, Misfit> {
        let init = self.init.iter().map(|place| Weights(place).files_of("init", published::AUTOENCODER));
        let perceptual = self.perceptual.iter().map(|place| Weights(place).files_of("perceptual", published::LPIPS));
        Ok(init.chain(perceptual).collect::<Result<Vec<_>, _>>()?.concat())
    }
}

impl Open for TrainAutoencoder {
    fn open(self, context: &Context) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Trainer { stage: self, device: device(context)?, sources: context.sources.clone() }))
    }
}

/// An autoencoder in training, with the networks that its loss needs.
pub struct AutoencoderObjective {
    /// The autoencoder.
    pub network: AutoencoderKl,
    /// Measures how different two pictures look.
    pub perceptual: Option<Lpips>,
    /// Tells reconstructions from pictures.
    pub discriminator: Option<PatchGan>,
    /// The weights of the autoencoder's terms.
    pub weights: TermWeights,
    /// The discriminator's part in the loss; its `config` is that of the network.
    pub adversary: Discriminator,
}

/// The terms of the discriminator's loss, scalars.
#[derive(Debug)]
pub struct Judgement {
    /// The value that the discriminator minimises.
    pub total: Tensor,
    /// The mean logit of pictures.
    pub real: Tensor,
    /// The mean logit of reconstructions.
    pub fake: Tensor,
}

impl AutoencoderObjective {
    /// Returns the autoencoder's loss on images `x` [B, 3, H, W], with `noise` of the latent's shape. The
    /// discriminator's term is multiplied by `factor`; with `None` it is not computed.
    pub fn autoencoder_loss(&self, x: &Tensor, noise: &Tensor, factor: Option<f64>) -> Result<Terms, tch::TchError> {
        let posterior = self.network.encode(x);
        let y = self.network.decode(&posterior.sample(noise)); // [B, 3, H, W]
        let perceptual = self.perceptual.as_ref().map(|lpips| lpips.forward(x, &y)); // [B]
        let adversary = factor.zip(self.judge(&y)).map(|(factor, fake)| Adversary {
            fake,
            last_layer: self.network.last_layer(),
            weight: self.adversary.weight,
            factor,
        });
        vae_gan::autoencoder_loss(x, &y, &posterior.kl(), perceptual.as_ref(), adversary.as_ref(), &self.weights)
    }

    /// Returns true if the discriminator takes part in a step, counted from 0.
    fn takes_part(&self, step: u64) -> bool {
        self.discriminator.is_some() && step >= self.adversary.start
    }

    /// Returns the discriminator's loss on the same images, times `factor`; `None` without a discriminator. The
    /// reconstructions are computed again.
    pub fn discriminator_loss(&self, x: &Tensor, noise: &Tensor, factor: f64) -> Option<Judgement> {
        let y = no_grad(|| self.network.decode(&self.network.encode(x).sample(noise)));
        let (real, fake) = (self.judge(x)?, self.judge(&y)?);
        let total = vae_gan::discriminator_loss(&real, &fake, self.adversary.loss) * factor;
        let mean = |logits: &Tensor| logits.detach().mean(Kind::Float);
        Some(Judgement { total, real: mean(&real), fake: mean(&fake) })
    }

    /// Returns the discriminator's logits of pictures: [B, 3, H, W] -> [B, 1, h, w].
    fn judge(&self, x: &Tensor) -> Option<Tensor> {
        let train = self.adversary.batch_norm == Statistics::Train;
        Some(self.discriminator.as_ref()?.forward(x, train))
    }
}

struct Trainer {
    stage: TrainAutoencoder,
    device: Device,
    sources: Sources,
}

impl Operator for Trainer {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        let mut pixels = training_rows()?;
        while let Some(batch) = rows.next(READ_ROWS)? {
            pixels.push(&tensor(&batch, "images", PIXELS)?)?;
        }
        let count = pixels.len();
        let training = &self.stage.training;
        tch::manual_seed(training.seed as i64);
        let [vs, judge_vs] = [(); 2].map(|()| VarStore::new(self.device));
        let objective = self.stage.objective(&vs, &judge_vs, &self.sources, out)?;
        let mut trainers = vec![training.trainer(train_only(&vs, |_| true))];
        let mut variables: Named = vs.variables().into_iter().collect();
        let judge_parameters = train_only(&judge_vs, PatchGan::is_parameter);
        if objective.discriminator.is_some() {
            let parameters = judge_parameters.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone()));
            trainers.push(training::Trainer { ema: None, ..training.trainer(parameters.collect()) });
            let named = |(name, tensor)| (format!("{DISCRIMINATOR}{name}"), tensor);
            variables.extend(judge_vs.variables().into_iter().map(named));
        }
        let images = |rows: &[i64]| Ok::<_, Error>(normalise(&pixels.at(rows)?.f_to_device(self.device)?)); // [B, 3, H, W]
        let loss = |trainer: usize, batch: &MicroBatch| {
            let x = images(&batch.rows)?;
            match trainer {
                0 => self.autoencoder_loss(&objective, x, batch),
                _ if objective.takes_part(batch.step) => self.discriminator_loss(&objective, x, batch),
                // Gradients are zero instead of undefined, so that Adam counts the step, as in the authors' program.
                _ => {
                    let total =
                        judge_parameters.values().map(|parameter| parameter.sum(Kind::Float)).sum::<Tensor>() * 0.;
                    Ok(LoggedLoss { total: total.into(), parts: [(); 3].map(|()| Some(Tensor::from(0_f32))).into() })
                }
            }
        };
        let weights = || {
            let mut config = self.stage.config.clone();
            if self.stage.measures() {
                let some: Vec<i64> = (0..count as i64).step_by((count / MEASURED).max(1)).collect();
                let encode = |rows| Ok::<_, Error>(objective.network.encode(&images(rows)?).mean);
                let means: Vec<Tensor> = no_grad(|| some.chunks(32).map(encode).collect::<Result<_>>())?;
                config.scaling_factor = 1. / Tensor::cat(&means, 0).std(true).double_value(&[]);
            }
            save_weights(vs.variables(), &config, &[])
        };
        // Progress is judged by the error of the reconstruction, because the whole loss may rise once the
        // discriminator takes part.
        let judge = if self.stage.init.is_some() { Judge::Nothing } else { Judge::StartOfPart(0) };
        train(training, TrainingRun { trainers, variables, rows: count, loss, weights, judge }, out)
    }
}

impl Trainer {
    /// Returns the same random square of every image of a batch.
    fn cropped(&self, x: Tensor, random: &mut Noise) -> Tensor {
        let Some(side) = self.stage.crop.map(i64::from) else { return x };
        let offset = |size: i64, random: &mut Noise| random.timesteps(1, (size - side + 1) as u32).int64_value(&[0]);
        let (top, left) = (offset(x.size()[2], random), offset(x.size()[3], random));
        x.narrow(2, top, side).narrow(3, left, side)
    }

    /// Draws noise for the latents of images [B, 3, H, W].
    fn noise(&self, x: &Tensor, random: &mut Noise) -> Result<Tensor> {
        let (config, size) = (&self.stage.config, x.size());
        let shape = [size[0], config.latent_channels, size[2] / config.factor(), size[3] / config.factor()];
        Ok(random.normal(&shape)?.to_device(self.device))
    }

    fn autoencoder_loss(
        &self,
        objective: &AutoencoderObjective,
        x: Tensor,
        batch: &MicroBatch,
    ) -> Result<LoggedLoss<'static>> {
        let mut random = batch.noise(self.stage.training.seed);
        let x = self.cropped(x, &mut random);
        let noise = self.noise(&x, &mut random)?;
        let factor = objective.takes_part(batch.step).then_some(1.);
        let terms = objective.autoencoder_loss(&x, &noise, factor)?;
        let mut parts = vec![terms.reconstruction, terms.kl];
        parts.extend(terms.perceptual);
        if objective.discriminator.is_some() {
            let nothing = || Tensor::from(0_f32);
            let (g, weight) = terms.adversarial.unwrap_or_else(|| (nothing(), nothing()));
            parts.extend([g, weight]);
        }
        Ok(LoggedLoss { total: terms.total.into(), parts: parts.into_iter().map(Some).collect() })
    }

    fn discriminator_loss(
        &self,
        objective: &AutoencoderObjective,
        x: Tensor,
        batch: &MicroBatch,
    ) -> Result<LoggedLoss<'static>> {
        // The authors' program computes both halves anew, each with its own noise.
        let mut random = batch.noise_of(self.stage.training.seed, "discriminator");
        let x = self.cropped(x, &mut random);
        let noise = self.noise(&x, &mut random)?;
        let Judgement { total, real, fake } = objective
            .discriminator_loss(&x, &noise, 1.)
            .ok_or_else(|| Error::Stage("there is no discriminator to train".into()))?;
        let value = total.detach();
        Ok(LoggedLoss { total: total.into(), parts: [value, real, fake].map(Some).into() })
    }
}
