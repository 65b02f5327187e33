//! Networks with their published key names: tensors in, tensors out.

pub mod architecture;
pub mod checkpoint;
pub mod clip;
pub mod control;
pub mod device;
pub mod dinov2;
pub mod efficientnet;
pub mod extractor;
pub mod image_tower;
pub mod known;
pub mod nn;
pub mod tokenizer;
pub mod unet;
pub mod vae;
