//! The shared rooms of language models, for inference: weights that stay in the maps of their files, a decoder-only
//! transformer, its cache, and the generation of text.
//!
//! | file | content |
//! |---|---|
//! | [`weights`] | tensors of a checkpoint, in place or converted, and the memory that they take |
//! | [`linear`], [`norm`] | layers over such tensors |
//! | [`config`] | sizes of a decoder and the names of its parameters |
//! | [`qwen2`], [`internlm2`], [`llama`] | how each family describes and names them; [`family`] finds the family |
//! | [`rotary`] | rotary positions with dynamic scaling |
//! | [`cache`] | keys and values of rows of different lengths |
//! | [`decoder`] | the transformer |
//! | [`generate`] | many texts at once: prefill, decoding, stopping; [`choose`] picks tokens |
//! | [`beam`] | the likeliest text of several that are followed |
//!
//! Networks have no `VarStore`: nothing is initialised, and a weight whose published type is the computing type is not
//! copied.

pub(in crate::models) mod attention;
pub mod beam;
pub mod cache;
pub mod choose;
pub mod config;
pub mod decoder;
pub mod family;
pub mod generate;
pub mod internlm2;
pub mod linear;
pub mod llama;
pub mod norm;
pub mod qwen2;
pub mod rotary;
pub mod weights;
