//! DeepSeek-VL 1.3B (Lu et al. 2024): a SigLIP tower, an aligner, and a Llama that reads the aligned patches in place of
//! tokens. For inference.
//!
//! It is published by its authors (deepseek-ai/deepseek-vl-1.3b-chat) and in the native layout of transformers
//! (deepseek-community). Variables have the names of the former; [`names`] translates the latter.

pub mod names;

use super::{
    checkpoint::{self, Checkpoint, CheckpointError, Mapped},
    image_block::{BlockConfig, ImageBlock},
    language::{
        config::DecoderConfig,
        decoder::{Decoder, decoder_and_tower_bytes},
        family,
        linear::Linear,
        norm::{Norm, NormKind},
        weights::{Arithmetic, WeightBytes, Weights},
    },
    nn::show,
};
use serde_json::Value;
use std::path::Path;
use tch::{Device, Tensor};

/// Epsilon of SigLIP's normalisations.
const EPS: f64 = 1e-6;
/// Width of a head of SigLIP-L.
const HEAD_DIM: i64 = 64;

/// `config.json` of either layout. The sizes of the tower are those of its weights, since the original layout names the
/// tower only.
#[derive(Debug, Clone, PartialEq)]
pub struct DeepseekVlConfig {
    /// The language model.
    pub text: DecoderConfig,
    /// Number of heads of the tower; None is one per 64 channels.
    pub vision_heads: Option<i64>,
    /// The id whose embeddings are replaced by visual tokens, if the config states it.
    pub image_token: Option<i64>,
}

impl DeepseekVlConfig {
    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// Names the value that is missing or unknown, and what would work.
    pub fn from_json(text: &str) -> Result<Self, String> {
        let whole: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let name = &whole["vision_config"]["params"]["model_name"];
        if whole["vision_config"]["cls"] == "HybridVisionTower" || name.as_str().is_some_and(|n| n.contains("hybrid")) {
            return Err("it has the two towers of DeepSeek-VL 7B, and only 1.3B with its one tower is known".to_owned());
        }
        let mut language = match (&whole["language_config"], &whole["text_config"]) {
            (Value::Null, Value::Null) => {
                return Err(
                    "it has neither language_config nor text_config, and so is no config of DeepSeek-VL".to_owned()
                );
            }
            (Value::Null, text) | (text, _) => text.clone(),
        };
        if let Some(language) = language.as_object_mut() {
            llama_defaults(language);
        }
        Ok(Self {
            text: family::parse(&language)?,
            vision_heads: whole["vision_config"]["num_attention_heads"].as_i64(),
            image_token: whole["image_token_id"].as_i64(),
        })
    }
}

/// Fills in the values that the published config leaves out because they are transformers' defaults of Llama.
fn llama_defaults(language: &mut serde_json::Map<String, Value>) {
    let defaults = [
        ("model_type", Value::from("llama")),
        ("hidden_size", Value::from(4096)),
        ("num_hidden_layers", Value::from(32)),
        ("num_attention_heads", Value::from(32)),
        ("vocab_size", Value::from(32000)),
        ("intermediate_size", Value::from(11008)),
        ("max_position_embeddings", Value::from(2048)),
    ];
    for (name, value) in defaults {
        language.entry(name).or_insert(value);
    }
}

/// The begin of the names of the language model's parameters.
const LANGUAGE: &str = "language_model.";

/// The network.
#[derive(Debug)]
pub struct DeepseekVl {
    config: DeepseekVlConfig,
    vision: Siglip,
    aligner: Vec<Linear>,
    decoder: Decoder,
}

/// Reads the config beside the weights of a folder.
///
/// # Errors
/// [`CheckpointError::Io`] if there is none, and [`CheckpointError::Format`] if it is not understood.
pub fn read_config(folder: impl AsRef<Path>) -> Result<DeepseekVlConfig, CheckpointError> {
    checkpoint::read_config(folder, DeepseekVlConfig::from_json)
}

/// Returns the bytes that the published weights take in memory with this arithmetic, without reading them.
///
/// # Errors
/// The errors of [`names::canonical`].
pub fn memory(
    published: Checkpoint,
    config: &DeepseekVlConfig,
    arithmetic: Arithmetic,
) -> Result<WeightBytes, CheckpointError> {
    let weights = names::canonical(published)?;
    Ok(decoder_and_tower_bytes(&weights, LANGUAGE, &config.text, arithmetic))
}

/// The pictures of the tower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PictureSize {
    /// The side of a picture, in pixels.
    pub side: i64,
    /// The visual tokens of a picture.
    pub tokens: i64,
}

/// Returns the pictures of the tower, by the shapes of published weights alone.
///
/// # Errors
/// The errors of [`names::canonical`], and [`CheckpointError::NoTensor`].
pub fn picture_size(published: &Checkpoint) -> Result<PictureSize, CheckpointError> {
    let checkpoint = names::canonical(published.clone())?;
    let weights = Weights::new(&checkpoint, Arithmetic::default(), Device::Cpu).below("vision_model.vision_tower");
    let kernel = weights.shape("patch_embed.proj.weight")?;
    let (width, patch) = (kernel[0], kernel[kernel.len() - 1]);
    let tokens = weights.shape("pos_embed")?.iter().product::<i64>() / width.max(1);
    Ok(PictureSize { side: tokens.isqrt() * patch, tokens })
}

impl DeepseekVl {
    /// Opens a folder with `config.json` and weights.
    ///
    /// # Errors
    /// The errors of [`read_config`], [`Checkpoint::open`] and [`DeepseekVl::load`].
    pub fn open(folder: impl AsRef<Path>, arithmetic: Arithmetic, device: Device) -> Result<Self, CheckpointError> {
        let config = read_config(&folder)?;
        Self::load(Checkpoint::open(folder)?.state_dict(), &config, arithmetic, device)
    }

    /// Builds the network of published weights. Only the language model is held in int8, if the arithmetic says so.
    ///
    /// # Errors
    /// The errors of [`names::canonical`]; [`CheckpointError::NoTensor`] and [`CheckpointError::Format`] for weights
    /// that are not those of the config.
    pub fn load(
        published: Checkpoint,
        config: &DeepseekVlConfig,
        arithmetic: Arithmetic,
        device: Device,
    ) -> Result<Self, CheckpointError> {
        let checkpoint = names::canonical(published)?;
        let weights = Weights::new(&checkpoint, arithmetic, device);
        let vision = Siglip::load(&weights.exact().below("vision_model.vision_tower"), config.vision_heads)?;
        let aligner = weights.exact().below("aligner.layers");
        let mut maps = vec![];
        // The activations between the maps are counted too: 0, 2, …
        for i in (0..).step_by(2).take_while(|i| aligner.has(&format!("{i}.weight"))) {
            let inputs = if i == 0 { vision.width } else { config.text.hidden_size };
            maps.push(Linear::load(&aligner, &i.to_string(), [inputs, config.text.hidden_size], true)?);
        }
        if maps.is_empty() {
            return Err(CheckpointError::NoTensor {
                path: checkpoint.path().to_owned(),
                name: "aligner.layers.0.weight".to_owned(),
            });
        }
        let decoder = Decoder::load(&weights.below("language_model"), &config.text)?;
        Ok(Self { config: config.clone(), vision, aligner: maps, decoder })
    }

    /// Returns the sizes of the network.
    pub fn config(&self) -> &DeepseekVlConfig {
        &self.config
    }

    /// Returns the language model.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Maps normalised pictures [B, 3, S, S] of the [side](picture_size) of the tower to visual tokens [B, tokens, width of
    /// the language model].
    pub fn visual_tokens(&self, images: &Tensor) -> Tensor {
        let (kind, device) = self.decoder.options();
        let mut x = self.vision.forward(&images.to_device(device).to_kind(kind)); // [B, tokens, D]
        for (i, map) in self.aligner.iter().enumerate() {
            x = map.forward(&if i == 0 { x } else { x.gelu("none") });
        }
        x
    }
}

/// The tower of SigLIP without its pooling: every patch token after the last block and normalisation.
#[derive(Debug)]
struct Siglip {
    width: i64,
    patch: i64,
    /// [1, N, D]
    positions: Mapped,
    /// [D, 3, P, P] and \[D\]
    patches: [Mapped; 2],
    blocks: Vec<ImageBlock>,
    norm: Norm,
}

impl Siglip {
    fn load(weights: &Weights<'_>, heads: Option<i64>) -> Result<Self, CheckpointError> {
        let kernel = weights.shape("patch_embed.proj.weight")?;
        let (width, patch) = (kernel[0], kernel[kernel.len() - 1]);
        let heads = heads.unwrap_or(width / HEAD_DIM).max(1);
        let hidden = weights.shape("blocks.0.mlp.fc1.weight")?[0];
        let config = BlockConfig {
            width,
            hidden,
            heads,
            norm: NormKind::Layer,
            eps: EPS,
            qkv_bias: true,
            qk_norm: false,
            layer_scale: false,
        };
        let blocks = (0..).map(|i| format!("blocks.{i}")).take_while(|b| weights.has(&format!("{b}.norm1.weight")));
        Ok(Self {
            width,
            patch,
            positions: weights.tensor("pos_embed", &weights.shape("pos_embed")?)?,
            patches: [
                weights.tensor("patch_embed.proj.weight", &[width, 3, patch, patch])?,
                weights.tensor("patch_embed.proj.bias", &[width])?,
            ],
            blocks: blocks.map(|b| ImageBlock::load(&weights.below(b), &config)).collect::<Result<_, _>>()?,
            norm: Norm::load(weights, "norm", width, EPS, NormKind::Layer)?,
        })
    }

    fn forward(&self, images: &Tensor) -> Tensor {
        let [weight, bias] = self.patches.each_ref().map(Mapped::tensor);
        let x = images.conv2d(weight, Some(bias), [self.patch, self.patch], [0, 0], [1, 1], 1); // [B, D, h, w]
        let mut x = x.flatten(2, 3).transpose(1, 2) + self.positions.tensor(); // [B, N, D]
        for block in &self.blocks {
            x = block.forward(&x);
        }
        let x = self.norm.forward(&x);
        show("vision", &x);
        x
    }
}
