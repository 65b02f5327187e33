//! The layout of CompVis latent-diffusion: all parts of a model in one file, as Stable Diffusion 1.x
//! (`v1-5-pruned.ckpt`) and VLMDiff are published.

pub(crate) mod names;

use super::checkpoint::{Checkpoint, CheckpointError, Mismatch};

/// The prefix of the U-Net.
pub const UNET: &str = "model.diffusion_model";
/// The prefix of the control branch; Stable Diffusion's files have none.
pub const CONTROL: &str = "control_model";
/// The prefix of the autoencoder.
pub const AUTOENCODER: &str = "first_stage_model";
/// The prefix of the text encoder.
pub const TEXT_ENCODER: &str = "cond_stage_model";

/// The other tensors and prefixes of such a file, which are not read: the noise schedule, which its configuration
/// gives; a variance that is not trained; the averaged copy of the U-Net.
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

/// Checks that all of a file, flat or stepped into ([`Checkpoint::state_dict`]), belongs to a model, and that it has
/// the parts that `needs` names.
///
/// # Errors
/// [`CheckpointError::Format`] lists the names that belong to no part of a model, or names the part that is missing.
pub fn check(file: &Checkpoint, needs: &[&str]) -> Result<(), CheckpointError> {
    let error = |reason| Err(CheckpointError::Format { path: file.path().to_owned(), reason });
    let parts = [UNET, CONTROL, AUTOENCODER, TEXT_ENCODER];
    let known = |name: &&str| {
        let within = |part: &&str| name.strip_prefix(part).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        parts.iter().chain(&IGNORED).any(within)
    };
    let unexpected: Vec<String> = file.names().filter(|name| !known(name)).map(str::to_owned).collect();
    if !unexpected.is_empty() {
        let mismatch = Mismatch { unexpected, ..Mismatch::default() };
        return error(format!("it is no file of latent-diffusion: {mismatch}"));
    }
    match needs.iter().find(|part| !file.has_part(part)) {
        Some(part) => error(format!("it has no tensors below {part}")),
        None => Ok(()),
    }
}
