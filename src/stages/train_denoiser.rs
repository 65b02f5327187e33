//! Latents, captions and images -> the denoiser.

mod caption_rows;
mod config;
mod objective;

use arrow::datatypes::SchemaRef;
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, nn::VarStore, no_grad};

use super::{
    journal::{READ_ROWS, train, training_rows},
    tensors::{device, first_embedding, load_weights, normalise, save_weights, tensor},
};
use crate::{
    diffusion::schedule::ScheduleConfig,
    engine::{
        Error, Result,
        source::Sources,
        stage::{Context, Misfit, Open, Operator, Output, Port, Ports, Rows, Schemas, Sink, Stage},
    },
    models::{
        control::ControlForm,
        denoiser::{Denoiser, Published, Standardisation},
        feature_unet::{FeatureUNetConfig, FeatureUNetSize},
        initialisation::skip_init,
        unet::{UNet2DConditionConfig, UNet2DConditionModel},
        vae::AutoencoderKlConfig,
    },
    published::{self, Weights, input},
    tables::{
        embeddings::{self, TEXT, UNCONDITIONAL},
        images::{self, PIXELS},
        latents::{self, LOGVAR, MEAN},
        training_log,
        weights::weights_column,
    },
    training::{self, Judge, LoggedLoss, MicroBatch, Training, TrainingRows, TrainingRun, optim::train_only},
};
use caption_rows::{CaptionRows, Captions};
use config::Config;
pub(super) use config::was_trained_at;
pub use config::{Control, DenoiserConfig, FeatureDenoiserConfig};
pub use objective::DenoisingObjective;

/// Trains the denoiser on normal images: the decoder half of the U-Net together with its control branch, which
/// receives the image itself; `control: { form: none }` leaves the branch out. On latents that are features, without an
/// `autoencoder` in `from:`, it trains a small U-Net of their own, `feature_unet`, and each channel is standardised over the
/// images of the training.
///
/// The loss is the mean squared error of the value that `schedule.prediction_type` names; latents are drawn from
/// their stored moments anew in each step (method: noise prediction, t uniform). Where an image has several captions, which
/// encode_text encodes with `lines`, one of them is drawn in each epoch, by the training's seed. Without captions, leave
/// `text_embeddings` out of `from:` and name as `unconditional` a table of encode_text whose first row is the empty
/// caption, which is then the caption of all images.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
#[schemars(extend("examples" = [{ "training": { "steps": 100 } }]))]
pub struct TrainDenoiser {
    /// The U-Net, as in a published `unet/config.json`.
    #[garde(skip)]
    #[serde(default)]
    pub config: UNet2DConditionConfig,
    /// The U-Net of features, where the latents are features. Absent: its default size.
    #[garde(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feature_unet: Option<FeatureUNetSize>,
    /// The control branch. A denoiser of features has none.
    #[garde(dive)]
    #[serde(default)]
    pub control: Control,
    /// Weights to start from: a name that `vlmdiff models list` shows, such as `stable-diffusion-1.5`, or a file,
    /// folder or URL of a U-Net in the layout of diffusers or of latent diffusion, alone or with all parts of a
    /// model, or of a denoiser that this stage trained. If the file has no control branch, that starts as a copy of
    /// the U-Net's encoder half. Absent: random weights.
    #[garde(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<String>,
    /// The noise schedule and the kind of value that the network predicts.
    #[garde(skip)]
    #[serde(default)]
    pub schedule: ScheduleConfig,
    /// The lowest timestep that is trained, and at which the network can then be asked. A sampler of few steps uses high noise
    /// levels alone, so others need not be trained.
    #[garde(skip)]
    #[serde(default)]
    pub min_timestep: u32,
    /// Limits what is asked of nearly clean latents to what is asked at this signal-to-noise ratio; absent: all
    /// timesteps have the same weight.
    #[garde(range(min = 0.))]
    #[serde(default)]
    pub min_snr_gamma: Option<f64>,
    /// The weights that are trained; the others keep their initial values.
    #[garde(skip)]
    #[serde(default)]
    pub trainable: Trainable,
    /// The type in which the network computes. The weights that are trained, their averages and the loss stay in f32.
    #[garde(skip)]
    #[serde(default)]
    pub dtype: Dtype,
    /// If true, the maps inside the network are computed again for the gradients instead of being kept. This saves
    /// most of a step's memory and takes a third more time.
    #[garde(skip)]
    #[serde(default)]
    pub gradient_checkpointing: bool,
    /// The parameters of the training.
    #[garde(dive)]
    #[serde(default)]
    pub training: Training,
}

/// The weights of the denoiser that are trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Trainable {
    /// The control branch and the decoder half of the U-Net, as the authors do.
    #[default]
    ControlAndDecoder,
    /// The control branch alone (ControlNet's `sd_locked`).
    Control,
    /// Everything.
    All,
}

impl Trainable {
    /// Returns true if the parameter `name` of a [`Denoiser`] is trained.
    pub fn trains(self, name: &str) -> bool {
        let decodes = |name: &str| name.strip_prefix("unet.").is_some_and(UNet2DConditionModel::is_decoder);
        self == Self::All || name.starts_with("control.") || (self == Self::ControlAndDecoder && decodes(name))
    }
}

/// A type to compute in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits with the range of 32: half the memory for computed values.
    Bf16,
}

impl TrainDenoiser {
    fn denoiser(&self, scaling_factor: f64) -> DenoiserConfig {
        let control = self.control.clone().of(self.config.clone());
        let (schedule, min_timestep) = (self.schedule.clone(), self.min_timestep);
        DenoiserConfig { control, schedule, scaling_factor, min_timestep }
    }

    /// Returns the configuration of a denoiser of the features and captions of `schemas`.
    fn feature_denoiser(&self, schemas: &Schemas) -> Result<FeatureDenoiserConfig, Misfit> {
        let [in_channels, ..] = latents::shape(schemas)?;
        let [_, caption_dim] = embeddings::shape(schemas, captions(schemas)?)?;
        let size = self.feature_unet.clone().unwrap_or_default();
        let unet = FeatureUNetConfig { in_channels: in_channels as i64, caption_dim: caption_dim as i64, size };
        Ok(FeatureDenoiserConfig { unet, schedule: self.schedule.clone(), min_timestep: self.min_timestep })
    }

    /// Returns the configuration, checked against the inputs. Latents without variance are features.
    fn checked_config(&self, inputs: &Schemas) -> Result<Config, Misfit> {
        match (latents::has_variance(inputs), inputs.get("autoencoder").is_some()) {
            (true, true) => {
                let config = self.denoiser(1.);
                config.control.validate().map_err(|e| Misfit::parameter("config", e))?;
                config.fits(inputs, captions(inputs)?, Some(["config", "control"]))?;
                if !config.control.has_branch() {
                    let alone = Control { form: ControlForm::None, ..Control::default() };
                    if self.control != alone {
                        let message = "of the form none there is no control branch; leave its other parameters out";
                        return Err(Misfit::parameter("control", message));
                    }
                    if self.trainable == Trainable::Control {
                        let message = "of the form none there is no control branch to train; write `control_and_decoder` or `all`";
                        return Err(Misfit::parameter("trainable", message));
                    }
                }
                if self.feature_unet.is_some() {
                    return Err(Misfit::parameter(
                        "feature_unet",
                        "these latents are no features; their U-Net is `config`",
                    ));
                }
                let [_, h, w] = latents::shape(inputs)?;
                let levels = self.config.block_out_channels.len();
                let deepest = 1 << (levels - 1);
                if h % deepest != 0 || w % deepest != 0 {
                    return Err(Misfit::parameter(
                        "config",
                        format!("latents of {h}x{w} do not divide by {deepest}, the factor of {levels} levels"),
                    ));
                }
                Ok(Config::Images(config))
            }
            (false, false) => {
                let config = self.feature_denoiser(inputs)?;
                let size = &config.unet.size;
                size.validate().map_err(|e| Misfit::parameter("feature_unet", e))?;
                let [_, h, w] = latents::shape(inputs)?;
                size.check_grid([h, w]).map_err(|why| Misfit::parameter("feature_unet", why))?;
                if self.config != UNet2DConditionConfig::default() {
                    return Err(Misfit::parameter(
                        "config",
                        "the latents are features; the size of their U-Net is `feature_unet`",
                    ));
                }
                if self.control != Control::default() {
                    return Err(Misfit::parameter("control", "a denoiser of features has no control branch"));
                }
                if self.init.is_some() {
                    return Err(Misfit::parameter("init", "a denoiser of features starts from random weights"));
                }
                Ok(Config::Features(config))
            }
            (true, false) => {
                Err(Misfit::stage("the latents are those of an autoencoder; name it in `from:` too".to_owned()))
            }
            (false, true) => Err(Misfit::input(
                "autoencoder",
                "the latents are features, which no autoencoder decodes; leave it out of `from:`",
            )),
        }
    }
}

/// Returns the port that the captions come from.
fn captions(inputs: &Schemas) -> Result<&'static str, Misfit> {
    match [TEXT, UNCONDITIONAL].map(|port| inputs.get(port).is_some()) {
        [true, false] => Ok(TEXT),
        [false, true] => Ok(UNCONDITIONAL),
        _ => Err(Misfit::stage(format!(
            "captions come from one of `{TEXT}` and `{UNCONDITIONAL}`: each image's own, or for all images the first row's, as a \
             rule the empty caption's"
        ))),
    }
}

impl Stage for TrainDenoiser {
    fn revision(&self) -> u32 {
        4
    }

    fn ports(&self) -> Ports {
        Ports::Named(vec![
            Port::rows("images", [images::pixels_column()]),
            Port::rows("latents", [latents::mean_column(), latents::logvar_column().optional()]),
            Port::rows(TEXT, [embeddings::embeddings_column()]).optional(),
            Port::table("autoencoder", [weights_column()]).optional(),
            Port::table(UNCONDITIONAL, [embeddings::embedding_column()]).optional(),
        ])
    }

    fn makes(&self) -> Output {
        Output::Table
    }

    fn locations(&self) -> &'static [&'static str] {
        &["init"]
    }

    fn memory_advice(&self) -> &'static str {
        "lower `training.batch_size` and raise `training.accumulate` as much, or set \
                                  `gradient_checkpointing: true` or `dtype: bf16`"
    }

    fn needs_rows(&self) -> bool {
        true
    }

    fn output(&self, inputs: &Schemas) -> Result<SchemaRef, Misfit> {
        self.schedule.build().map_err(|e| Misfit::parameter("schedule", e))?;
        if self.init.is_none() && self.trainable != Trainable::All {
            return Err(Misfit::parameter(
                "trainable",
                "what is not trained stays random without `init`; name weights to start from, or set \
                        `trainable: all`",
            ));
        }
        if self.min_timestep >= self.schedule.num_train_timesteps {
            return Err(Misfit::parameter("min_timestep", format!("the schedule ends before {}", self.min_timestep)));
        }
        Ok(training_log::schema(&[], &[], &self.checked_config(inputs)?))
    }

    fn files(&self) -> Result<Vec<String>, Misfit> {
        self.init.as_ref().map_or(Ok(Vec::new()), |place| Weights(place).files_of("init", published::UNET))
    }
}

impl Open for TrainDenoiser {
    fn open(self, context: &Context) -> Result<Box<dyn Operator>> {
        let config = if context.tables.contains_key("autoencoder") {
            let (vae, _) = load_weights::<AutoencoderKlConfig>(context, "autoencoder")?;
            Config::Images(self.denoiser(vae.scaling_factor))
        } else {
            Config::Features(self.feature_denoiser(&context.schemas).map_err(|misfit| Error::Stage(misfit.message))?)
        };
        let captions = match first_embedding(context, UNCONDITIONAL)? {
            Some(embedding) => Captions::Shared(embedding),
            None => Captions::Own(embeddings::shape_of_row(&context.schemas, TEXT)?),
        };
        let (device, sources) = (device(context)?, context.sources.clone());
        Ok(Box::new(Trainer { config, device, sources, captions, stage: self }))
    }
}

struct Trainer {
    stage: TrainDenoiser,
    config: Config,
    device: Device,
    sources: Sources,
    captions: Captions,
}

/// The rows to train on.
struct Data {
    /// Pixels, u8 [N, H, W, 3]; empty without a control branch.
    pixels: TrainingRows,
    /// Means of the latents, [N, 4, h, w].
    mean: TrainingRows,
    /// Log-variances of the latents, [N, 4, h, w]; empty for features.
    logvar: TrainingRows,
    /// Embeddings of the captions.
    captions: CaptionRows,
}

impl Trainer {
    fn read(&self, rows: &mut Rows) -> Result<Data> {
        let (mut pixels, mut mean, mut logvar) = (training_rows()?, training_rows()?, training_rows()?);
        let mut captions = CaptionRows::new(&self.captions, rows.len(), training_rows()?)?;
        while let Some(batch) = rows.next(READ_ROWS)? {
            mean.push(&tensor(&batch, "latents", MEAN)?)?;
            if let Config::Images(config) = &self.config {
                if config.control.has_branch() {
                    pixels.push(&tensor(&batch, "images", PIXELS)?)?;
                }
                logvar.push(&tensor(&batch, "latents", LOGVAR)?)?;
            }
            if let Captions::Own(shape) = self.captions {
                captions.push(&batch, shape)?;
            }
        }
        Ok(Data { pixels, mean, logvar, captions })
    }

    /// Returns the network that computes, and the trainer of the weights. The network has the trained weights
    /// themselves, or in another type a copy of them.
    fn networks(&self, vs: &VarStore, copies: &mut VarStore) -> Result<(Denoiser, training::Trainer)> {
        let TrainDenoiser { init, trainable, dtype, training, .. } = &self.stage;
        let network = match (init, &self.config) {
            (Some(place), Config::Images(DenoiserConfig { control, .. })) => {
                let published = Weights(place).open(&self.sources)?;
                Denoiser::open(vs, control, Published::new(published, control).map_err(input)?)?
            }
            _ => self.config.build(vs.root())?,
        };
        let trainer = training.trainer(train_only(vs, |name| trainable.trains(name)));
        if *dtype == Dtype::F32 {
            return Ok((network, trainer));
        }
        let network = skip_init(|| self.config.build(copies.root()))?;
        copies.bfloat16();
        let weights = vs.variables();
        no_grad(|| copies.variables().into_iter().for_each(|(name, mut copy)| copy.copy_(&weights[&name])));
        let computing = train_only(copies, |name| trainable.trains(name));
        Ok((network, training::Trainer { optimizer: trainer.optimizer.computing_with(computing), ..trainer }))
    }
}

/// The scaling of latents before noise is added.
pub(super) enum Scale {
    /// By one factor: latents of an autoencoder.
    Factor(f64),
    /// Channel by channel: features.
    Channels(Standardisation),
}

impl Scale {
    /// Scales latents [B, C, h, w].
    pub(super) fn apply(&self, latents: &Tensor) -> Tensor {
        match self {
            Self::Factor(factor) => latents * *factor,
            Self::Channels(standardisation) => standardisation.apply(latents),
        }
    }
}

/// Measures the mean and the standard deviation of each channel over all rows and cells. The variables are declared in
/// `vs`, to be stored with the weights.
fn measured(vs: &VarStore, rows: &TrainingRows) -> Result<Standardisation> {
    let positions: Vec<i64> = (0..rows.len() as i64).collect();
    let (mut sums, mut count) = (Vec::new(), 0);
    for positions in positions.chunks(READ_ROWS) {
        let x = rows.at(positions)?.f_to_kind(Kind::Double)?; // [B, C, h, w]
        let sum = |x: &Tensor| x.f_sum_dim_intlist([0_i64, 2, 3].as_slice(), false, Kind::Double);
        sums.push(Tensor::f_stack(&[sum(&x)?, sum(&x.f_square()?)?], 0)?); // [2, C]
        count += x.numel() as i64 / x.size()[1];
    }
    let moments = Tensor::f_stack(&sums, 0)?.f_sum_dim_intlist([0_i64].as_slice(), false, Kind::Double)? / count as f64;
    let (mean, square) = (moments.f_get(0)?, moments.f_get(1)?);
    let variance = (square - mean.f_square()?).f_clamp_min(0.)?;
    Ok(Standardisation::with(&vs.root(), &mean, &variance.f_sqrt()?))
}

impl Operator for Trainer {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        let data = self.read(rows)?;
        let TrainDenoiser { min_timestep, min_snr_gamma, dtype, gradient_checkpointing, ref training, .. } = self.stage;
        let schedule = self.stage.schedule.build()?;
        tch::manual_seed(training.seed as i64);
        let [vs, mut copies, scales] = [(); 3].map(|()| VarStore::new(self.device));
        let (denoiser, trainer) = self.networks(&vs, &mut copies)?;
        let variables = trainer.optimizer.parameters();
        let kind = if dtype == Dtype::F32 { Kind::Float } else { Kind::BFloat16 };
        let objective = DenoisingObjective { denoiser, schedule, min_snr_gamma, kind, gradient_checkpointing };
        let timesteps = self.stage.schedule.num_train_timesteps - min_timestep;
        let scale = match &self.config {
            Config::Images(config) => Scale::Factor(config.scaling_factor),
            Config::Features(_) => Scale::Channels(measured(&scales, &data.mean)?),
        };
        let loss = |_, batch: &MicroBatch| {
            let pick = |rows: &TrainingRows| Ok::<_, Error>(rows.at(&batch.rows)?.f_to_device(self.device)?);
            let mut random = batch.noise(training.seed);
            let whole = pick(&data.mean)?; // [B, C, h, w]
            // A number is drawn only where there are maps to choose from, which keeps the noise of other trainings as it was.
            let mean = match &self.config {
                Config::Features(FeatureDenoiserConfig { unet: FeatureUNetConfig { size, .. }, .. })
                    if size.dilation > 1 =>
                {
                    size.phase(&whole, random.below(size.phases() as u32).into())
                }
                _ => whole,
            };
            let mut normal = || Ok::<_, Error>(random.normal(&mean.size())?.to_device(self.device));
            let (latents, images) = match &self.config {
                Config::Images(config) => {
                    let drawn = &mean + (pick(&data.logvar)? * 0.5).exp() * normal()?;
                    let images = config.control.has_branch().then(|| pick(&data.pixels)).transpose()?;
                    (drawn, images.map(|images| normalise(&images)))
                }
                Config::Features(_) => (mean.shallow_clone(), None),
            };
            let z = scale.apply(&latents);
            let noise = normal()?;
            let t = random.timesteps(batch.rows.len(), timesteps) + i64::from(min_timestep); // [B]
            let context = data.captions.drawn(batch, training.seed)?.f_to_device(self.device)?;
            let total = objective.loss(&z, &noise, &t.to_device(self.device), &context, images.as_ref());
            Ok(LoggedLoss { total, parts: Vec::new() })
        };
        let weights = || save_weights(vs.variables().into_iter().chain(scales.variables()), &self.config, &[]);
        let judge = if self.stage.init.is_some() { Judge::Nothing } else { Judge::Start };
        let rows = data.mean.len();
        train(training, TrainingRun { trainers: vec![trainer], variables, rows, loss, weights, judge }, out)
    }
}
