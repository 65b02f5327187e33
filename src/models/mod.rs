//! Networks, with the names of parameters under which they are published. They map tensors to tensors.

pub mod architecture;
pub mod catalogue;
pub mod checkpoint;
pub mod clip;
pub mod control;
mod conv;
mod conv_norm;
pub mod denoiser;
pub mod device;
pub mod efficientnet;
pub mod image_tower;
pub mod initialisation;
pub mod language;
pub mod language_tokenizer;
pub mod latent_diffusion;
pub mod lpips;
mod mismatch;
pub mod nn;
pub mod patchgan;
pub mod preprocessing;
pub mod recompute;
pub mod residuals;
pub mod resnet;
pub mod tokenizer;
pub mod unet;
pub mod vae;
pub mod vit;
