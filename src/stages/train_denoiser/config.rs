//! The configuration of a denoiser, and the check that it fits a stage's latents, images and captions.

use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::nn;

use crate::{
    diffusion::schedule::ScheduleConfig,
    engine::stage::{Misfit, Schemas},
    models::{
        control::{ControlForm, ControlNetConfig},
        denoiser::{Denoiser, Standardisation},
        feature_unet::FeatureUNetConfig,
        nn::ConfigError,
        unet::UNet2DConditionConfig,
        vae::AutoencoderKlConfig,
    },
    tables::{embeddings, images, latents, weights::config_of},
};

/// The control branch, a trainable copy of the U-Net's encoder half that receives the image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
pub struct Control {
    /// Widths of the hint encoder, which halves the image between two of them. The number of halvings must be that of
    /// the autoencoder.
    #[garde(length(min = 1))]
    pub conditioning_embedding_out_channels: Vec<i64>,
    /// The way in which the branch's maps are added to the U-Net: as they are, or those of the deepest level through
    /// a SiLU; or none, for a U-Net without a control branch.
    #[garde(skip)]
    pub form: ControlForm,
    /// If true, a semantic-guided branch has its spatial feature fusion. With `only_mid_control` it stays as it
    /// starts, without effect: it multiplies maps and weights that are both zero at first, so that neither ever
    /// receives a gradient.
    #[garde(skip)]
    pub fusion: bool,
    /// If true, only the middle reaches the U-Net and, in a semantic-guided branch, the deepest level; else all
    /// levels.
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

impl Control {
    /// Returns the configuration of the branch of a U-Net.
    pub(in crate::stages) fn of(self, unet: UNet2DConditionConfig) -> ControlNetConfig {
        let Self { conditioning_embedding_out_channels, form, fusion, only_mid_control } = self;
        ControlNetConfig {
            unet,
            conditioning_channels: 3,
            conditioning_embedding_out_channels,
            form,
            fusion,
            only_mid_control,
        }
    }
}

/// The configuration from which the weights of a denoiser are built.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DenoiserConfig {
    /// The control branch, with the U-Net.
    pub control: ControlNetConfig,
    /// The noise schedule and the kind of value that the network predicts.
    pub schedule: ScheduleConfig,
    /// The factor by which latents are multiplied before noise is added.
    pub scaling_factor: f64,
    /// The lowest timestep of the training.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub min_timestep: u32,
}

impl DenoiserConfig {
    /// Returns the authors' configuration, from Stable Diffusion 1.5, with the fusion that their files contain.
    pub(in crate::stages) fn published() -> Self {
        Self {
            control: Control { fusion: true, ..Control::default() }.of(UNet2DConditionConfig::default()),
            schedule: ScheduleConfig::default(),
            scaling_factor: AutoencoderKlConfig::default().scaling_factor,
            min_timestep: 0,
        }
    }

    /// Checks that the network fits a stage's images, latents, autoencoder and captions, those at the port
    /// `captions`. The misfit is reported at the configuration: `own` names the parameters of the U-Net's and of the
    /// control branch's; without it, the configuration is that of the table at the port `denoiser`.
    pub(in crate::stages) fn fits(
        &self,
        inputs: &Schemas,
        captions: &str,
        own: Option<[&str; 2]>,
    ) -> Result<(), Misfit> {
        let vae: AutoencoderKlConfig = config_of(inputs, "autoencoder")?;
        let [height, width, _] = images::pixels(inputs)?;
        let [channels, h, w] = latents::shape(inputs)?;
        let [_, text] = embeddings::shape(inputs, captions)?;
        let (factor, config) = (vae.factor(), &self.control.unet);
        let misfit = |parameter: usize, message: String| match own {
            Some(own) => Err(Misfit::parameter(own[parameter], message)),
            None => Err(Misfit::input("denoiser", message)),
        };
        let (unet, control) = (0, 1);
        if self.control.has_branch() && self.control.factor() != factor {
            let message = format!(
                "the hint encoder shrinks images by {} and the autoencoder by {factor}; conditioning_embedding_out_channels needs {} widths",
                self.control.factor(),
                factor.ilog2() + 1
            );
            return misfit(control, message);
        }
        if vae.latent_channels != channels as i64 || [height, width] != [h, w].map(|side| side * factor as usize) {
            let message = format!(
                "`latents` are {channels}x{h}x{w}, not what the autoencoder makes of images of {height}x{width}: {} channels, \
                 smaller by {factor}",
                vae.latent_channels
            );
            return Err(Misfit::input("latents", message));
        }
        fits(config, channels, text).or_else(|why| misfit(unet, why))
    }

    /// Checks that the network fits a stage's images, latents and captions, those at the port `captions`, where nothing is
    /// decoded and no autoencoder is named.
    pub(in crate::stages) fn fits_latents(&self, inputs: &Schemas, captions: &str) -> Result<(), Misfit> {
        let [height, width, _] = images::pixels(inputs)?;
        let [channels, h, w] = latents::shape(inputs)?;
        let [_, text] = embeddings::shape(inputs, captions)?;
        let factor = self.control.factor();
        if self.control.has_branch() && [height, width] != [h, w].map(|side| side * factor as usize) {
            let message = format!(
                "its hint encoder shrinks images by {factor}, and `latents` are {h}x{w} for images of {height}x{width}"
            );
            return Err(Misfit::input("denoiser", message));
        }
        fits(&self.control.unet, channels, text).map_err(|why| Misfit::input("denoiser", why))
    }
}

/// The configuration from which the weights of a denoiser of features are built.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FeatureDenoiserConfig {
    /// The U-Net.
    pub unet: FeatureUNetConfig,
    /// The noise schedule and the kind of value that the network predicts.
    pub schedule: ScheduleConfig,
    /// The lowest timestep of the training.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub min_timestep: u32,
}

impl FeatureDenoiserConfig {
    /// Declares the network and the standardisation of its latents.
    pub(in crate::stages) fn build(
        vs: nn::Path<'_>,
        config: &Self,
    ) -> Result<(Denoiser, Standardisation), ConfigError> {
        let standardisation = Standardisation::new(&vs, config.unet.in_channels);
        Ok((Denoiser::of_features(vs, &config.unet)?, standardisation))
    }

    /// Checks that the network fits a stage's latents and captions, those at the port `captions`.
    pub(in crate::stages) fn fits(&self, inputs: &Schemas, captions: &str) -> Result<(), Misfit> {
        let [channels, height, width] = latents::shape(inputs)?;
        self.unet.size.check_grid([height, width]).map_err(|why| Misfit::input("denoiser", why))?;
        let [_, text] = embeddings::shape(inputs, captions)?;
        let FeatureUNetConfig { in_channels, caption_dim, .. } = self.unet;
        if (in_channels, caption_dim) != (channels as i64, text as i64) {
            let message = format!(
                "it was trained on features of {in_channels} channels and captions {caption_dim} wide, and these are of {channels} \
                 channels and {text} wide"
            );
            return Err(Misfit::input("denoiser", message));
        }
        Ok(())
    }
}

/// Checks that a denoiser whose training has no timestep below `min_timestep` is asked at none, `lowest` being the lowest at which
/// it is. The error is the reason, with `remedy`, which says what is asked from `min_timestep` on.
pub(in crate::stages) fn was_trained_at(min_timestep: u32, lowest: i64, remedy: &str) -> Result<(), String> {
    if lowest >= i64::from(min_timestep) {
        return Ok(());
    }
    Err(format!(
        "the denoiser is asked at timestep {lowest}, and its training has none below {min_timestep}: {remedy}, or train it with \
         `min_timestep: {lowest}`"
    ))
}

fn is_zero(timestep: &u32) -> bool {
    *timestep == 0
}

/// Checks that a U-Net takes latents of so many channels and captions so wide. The error is the reason.
fn fits(config: &UNet2DConditionConfig, channels: usize, text: usize) -> Result<(), String> {
    if config.in_channels != channels as i64 || config.out_channels != channels as i64 {
        return Err(format!("in_channels and out_channels are {channels} with these latents"));
    }
    if config.cross_attention_dim != text as i64 {
        let width = config.cross_attention_dim;
        return Err(format!("cross_attention_dim is {width} and the captions are {text} wide"));
    }
    Ok(())
}

/// The configuration of what is trained.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Config {
    /// The U-Net, as a rule with a control branch, over latents of an autoencoder.
    Images(DenoiserConfig),
    /// The U-Net alone, over features.
    Features(FeatureDenoiserConfig),
}

impl Config {
    /// Declares the parameters of the network, without weights to start from.
    pub(super) fn build(&self, vs: nn::Path<'_>) -> Result<Denoiser, ConfigError> {
        match self {
            Self::Images(config) => Denoiser::new(vs, &config.control),
            Self::Features(config) => Denoiser::of_features(vs, &config.unet),
        }
    }
}
