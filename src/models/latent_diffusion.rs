//! The layout of CompVis latent-diffusion: all parts of a model in one file, as Stable Diffusion 1.x (`v1-5-pruned.ckpt`) and
//! VLMDiff are published.

pub(crate) mod names;

use super::{
    checkpoint::{Checkpoint, CheckpointError, Mismatch},
    control::copy_encoder,
    unet::UNet2DConditionConfig,
};
use std::collections::HashMap;
use tch::{Tensor, nn::VarStore};

/// Where the parts lie: U-Net, control branch, autoencoder, text encoder.
const PARTS: [&str; 4] = ["model.diffusion_model", "control_model", "first_stage_model", "cond_stage_model"];

/// What else such a file holds and nobody needs: the noise schedule, which its configuration gives; a variance that is not
/// trained; the averaged copy of the U-Net.
const IGNORED: [&str; 16] = [
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "lvlb_weights",
    "logvar",
    "scale_factor",
    "model_ema",
];

/// A file with the parts of a model. Each is still under its published names; `canonical` of its configuration makes them the
/// network's.
#[derive(Debug, Clone)]
pub struct LatentDiffusion(Checkpoint);

impl LatentDiffusion {
    /// Looks at the names of a file, flat or nested (`state_dict`).
    ///
    /// # Errors
    /// [`CheckpointError::Format`] lists what belongs to no part of a model.
    pub fn new(file: Checkpoint) -> Result<Self, CheckpointError> {
        let file = file.state_dict();
        let known = |name: &&str| {
            let within =
                |part: &&str| name.strip_prefix(part).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
            PARTS.iter().chain(&IGNORED).any(|part| within(part))
        };
        let unexpected: Vec<String> = file.names().filter(|name| !known(name)).map(str::to_owned).collect();
        if unexpected.is_empty() {
            return Ok(Self(file));
        }
        let mismatch = Mismatch { unexpected, ..Mismatch::default() };
        Err(Self(file).error(format!("it is no file of latent-diffusion: {mismatch}")))
    }

    /// The U-Net, its weights as trained and not their average.
    ///
    /// # Errors
    /// [`CheckpointError::Format`] if the file has none; so for the other parts.
    pub fn unet(&self) -> Result<Checkpoint, CheckpointError> {
        self.part(PARTS[0])
    }

    /// The control branch.
    ///
    /// # Errors
    /// As [`LatentDiffusion::unet`].
    pub fn control(&self) -> Result<Checkpoint, CheckpointError> {
        self.part(PARTS[1])
    }

    /// Whether the file has a control branch: Stable Diffusion's has none.
    pub fn has_control(&self) -> bool {
        self.control().is_ok()
    }

    /// The autoencoder.
    ///
    /// # Errors
    /// As [`LatentDiffusion::unet`].
    pub fn autoencoder(&self) -> Result<Checkpoint, CheckpointError> {
        self.part(PARTS[2])
    }

    /// The text encoder.
    ///
    /// # Errors
    /// As [`LatentDiffusion::unet`].
    pub fn text_encoder(&self) -> Result<Checkpoint, CheckpointError> {
        self.part(PARTS[3])
    }

    fn part(&self, prefix: &str) -> Result<Checkpoint, CheckpointError> {
        let part = self.0.clone().select(prefix);
        if part.is_empty() { Err(self.error(format!("it has no tensors below {prefix}"))) } else { Ok(part) }
    }

    fn error(&self, reason: String) -> CheckpointError {
        CheckpointError::Format { path: self.0.path().to_owned(), reason }
    }
}

/// The variables of a network that lies below `prefix`, by the network's own names.
pub fn variables_below(vs: &VarStore, prefix: &str) -> HashMap<String, Tensor> {
    let below = |name: &str| name.strip_prefix(prefix)?.strip_prefix('.').map(str::to_owned);
    vs.variables().into_iter().filter_map(|(name, variable)| Some((below(&name)?, variable))).collect()
}

/// Fills a U-Net and its control branch with what the authors of VLMDiff start from (their `build_model.py`): the U-Net of
/// Stable Diffusion, `published` in any layout; in the branch a copy of the U-Net's way down and middle, while its new layers
/// stay as they are initialised. The autoencoder and the text encoder are published by themselves.
///
/// # Errors
/// As [`Checkpoint::load_into`].
pub fn start_weights(
    published: Checkpoint,
    config: &UNet2DConditionConfig,
    unet: &HashMap<String, Tensor>,
    control: &HashMap<String, Tensor>,
) -> Result<(), CheckpointError> {
    config.canonical(published)?.fill(unet)?;
    copy_encoder(unet, control);
    Ok(())
}
