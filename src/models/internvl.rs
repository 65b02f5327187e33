//! InternVL (Chen et al. 2024), which describes pictures: a vision transformer, a projector, and a language model that
//! reads the projected patches in place of tokens. For inference.
//!
//! It is published as `InternVLChatModel` (OpenGVLab/InternVL2-*, InternVL2_5-*) and in the native layout of
//! transformers (InternVL3-*-hf). Variables have the names of the former; [`names`] translates the latter.

pub mod config;
pub mod names;
pub mod vision;

pub use config::{InternVlConfig, VisionConfig};

use super::{
    checkpoint::{self, Checkpoint, CheckpointError},
    language::{
        decoder::{Decoder, decoder_and_tower_bytes},
        linear::Linear,
        norm::{Norm, NormKind},
        weights::{Arithmetic, WeightBytes, Weights},
    },
    nn::show,
};
use std::path::Path;
use tch::{Device, Kind, Tensor};
use vision::VisionTower;

/// Epsilon of the projector's normalisation: PyTorch's default, which no config states.
const PROJECTOR_EPS: f64 = 1e-5;

/// The begin of the names of the language model's parameters.
const LANGUAGE: &str = "language_model.";

/// The network.
#[derive(Debug)]
pub struct InternVl {
    config: InternVlConfig,
    vision: VisionTower,
    projector: Projector,
    decoder: Decoder,
}

/// Reads the config beside the weights of a folder.
///
/// # Errors
/// [`CheckpointError::Io`] if there is none, and [`CheckpointError::Format`] if it is not understood.
pub fn read_config(folder: impl AsRef<Path>) -> Result<InternVlConfig, CheckpointError> {
    checkpoint::read_config(folder, InternVlConfig::from_json)
}

/// Returns the bytes that the published weights take in memory with this arithmetic, without reading them.
///
/// # Errors
/// The errors of [`names::canonical`].
pub fn memory(
    published: Checkpoint,
    config: &InternVlConfig,
    arithmetic: Arithmetic,
) -> Result<WeightBytes, CheckpointError> {
    let weights = names::canonical(published)?;
    Ok(decoder_and_tower_bytes(&weights, LANGUAGE, &config.text, arithmetic))
}

impl InternVl {
    /// Opens a folder with `config.json` and weights, in one file or in shards.
    ///
    /// # Errors
    /// The errors of [`read_config`], [`Checkpoint::open`] and [`InternVl::load`].
    pub fn open(folder: impl AsRef<Path>, arithmetic: Arithmetic, device: Device) -> Result<Self, CheckpointError> {
        let config = read_config(&folder)?;
        Self::load(Checkpoint::open(folder)?.state_dict(), &config, arithmetic, device)
    }

    /// Builds the network of published weights. Those of the language model are held in int8 if the arithmetic says
    /// so; the vision tower computes much with each weight, and gains nothing by it.
    ///
    /// # Errors
    /// The errors of [`names::canonical`]; [`CheckpointError::NoTensor`] and [`CheckpointError::Format`] for weights
    /// that are not those of the config.
    pub fn load(
        published: Checkpoint,
        config: &InternVlConfig,
        arithmetic: Arithmetic,
        device: Device,
    ) -> Result<Self, CheckpointError> {
        let checkpoint = names::canonical(published)?;
        let weights = Weights::new(&checkpoint, arithmetic, device);
        Ok(Self {
            vision: VisionTower::load(&weights.exact().below("vision_model"), &config.vision)?,
            projector: Projector::load(&weights.exact().below("mlp1"), config)?,
            decoder: Decoder::load(&weights.below("language_model"), &config.text)?,
            config: config.clone(),
        })
    }

    /// Returns the sizes of the network.
    pub fn config(&self) -> &InternVlConfig {
        &self.config
    }

    /// Returns the language model.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Maps normalised tiles [B, 3, H, W] to visual tokens [B, tokens, width of the language model].
    pub fn visual_tokens(&self, tiles: &Tensor) -> Tensor {
        let (kind, device) = self.decoder.options();
        let (_, _, height, width) = tiles.size4().unwrap();
        let patch = self.config.vision.patch_size;
        let tiles = tiles.to_device(device).to_kind(kind);
        let states = self.vision.forward(&tiles); // [B, 1 + h · w, D]
        let patches = states.narrow(1, 1, states.size()[1] - 1);
        let shuffled = pixel_shuffle(&patches, [height / patch, width / patch], &self.config);
        self.projector.forward(&shuffled)
    }
}

/// Joins squares of patches [B, h · w, D] into one token each: [B, h · w / s², s² · D].
fn pixel_shuffle(patches: &Tensor, [h, w]: [i64; 2], config: &InternVlConfig) -> Tensor {
    let (b, _, d) = patches.size3().unwrap();
    let s = config.shuffle;
    // The authors call the first of the two sides the width.
    let x = patches.reshape([b, h, w / s, s * d]).permute([0, 2, 1, 3]); // [B, w/s, h, s · D]
    let x = x.reshape([b, w / s, h / s, s * s * d]); // [B, w/s, h/s, s² · D]
    let x = if config.is_shuffle_v2 { x.permute([0, 2, 1, 3]) } else { x };
    show("pixel_shuffle", &x);
    x.flatten(1, 2)
}

/// `mlp1`: a normalisation and two linear maps.
#[derive(Debug)]
struct Projector {
    norm: Norm,
    first: Linear,
    second: Linear,
}

impl Projector {
    fn load(weights: &Weights<'_>, config: &InternVlConfig) -> Result<Self, CheckpointError> {
        let inputs = config.vision.hidden_size * config.shuffle.pow(2);
        let width = config.text.hidden_size;
        Ok(Self {
            norm: Norm::load(weights, "0", inputs, PROJECTOR_EPS, NormKind::Layer)?,
            first: Linear::load(weights, "1", [inputs, width], true)?,
            second: Linear::load(weights, "3", [width, width], true)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        self.second.forward(&self.first.forward(&self.norm.forward(x)).gelu("none"))
    }
}

/// Returns the bytes of the keys and values of `rows` texts of `tokens` tokens each.
pub fn cache_bytes(config: &InternVlConfig, rows: usize, tokens: i64, kind: Kind) -> u64 {
    config.text.cache_bytes(rows, tokens, kind)
}
