//! The layout of CompVis latent-diffusion: all parts of a model in one file.

pub(crate) mod names;
