//! BLIP-2 (Li et al. 2023): the tower ViT-g, a Q-Former that reads it by 32 queries, and OPT or flan-T5, which continue
//! the projected queries and a prompt. For inference, in the layout of transformers (Salesforce/blip2-*).

pub mod config;
pub mod opt;
mod qformer;
pub mod t5;

pub use config::{Blip2Config, TextConfig};

use super::{
    checkpoint::{self, Checkpoint, CheckpointError, Mapped},
    image_block::{BlockConfig, ImageBlock},
    language::{
        beam::{BeamAnswer, BeamSearch},
        cache::CacheFull,
        linear::Linear,
        norm::{Norm, NormKind},
        weights::{Arithmetic, Use, WeightBytes, Weights, shared_matrix_bytes, weight_bytes},
    },
    nn::show,
};
use config::VisionConfig;
use opt::{Opt, OptBeams};
use qformer::QFormer;
use std::path::Path;
use t5::{T5, T5Beams};
use tch::{Device, Kind, Tensor};

/// Epsilon of the tower's normalisations. Old configs state another by mistake.
const VISION_EPS: f64 = 1e-6;

/// Parts of names in the tower, and in [`ImageBlock`].
const PARTS: [(&str, &str); 3] =
    [(".self_attn.projection.", ".attn.proj."), (".layer_norm1.", ".norm1."), (".layer_norm2.", ".norm2.")];

/// The begin of the names of the language model's parameters.
const LANGUAGE: &str = "language_model.";

/// The language model.
#[derive(Debug)]
pub enum Language {
    /// A decoder alone.
    Opt(Box<Opt>),
    /// An encoder of the prompt and a decoder of the answer.
    T5(Box<T5>),
}

/// The network.
#[derive(Debug)]
pub struct Blip2 {
    config: Blip2Config,
    vision: VisionTower,
    qformer: QFormer,
    projection: Linear,
    language: Language,
}

/// Reads the config beside the weights of a folder.
///
/// # Errors
/// [`CheckpointError::Io`] if there is none, and [`CheckpointError::Format`] if it is not understood.
pub fn read_config(folder: impl AsRef<Path>) -> Result<Blip2Config, CheckpointError> {
    checkpoint::read_config(folder, Blip2Config::from_json)
}

/// Returns the same weights with the names of [`ImageBlock`] in the tower.
fn canonical(published: Checkpoint) -> Result<Checkpoint, CheckpointError> {
    if !published.contains("query_tokens") {
        return Err(published.foreign("BLIP-2", "no query_tokens"));
    }
    let renamed = published.rename(|name| {
        let is_tower = name.starts_with("vision_model.");
        let rename = |name: String, (from, to): &(&str, &str)| name.replace(from, to);
        Some(if is_tower { PARTS.iter().fold(name.to_owned(), rename) } else { name.to_owned() })
    })?;
    renamed.split(|name| {
        let (layer, end) = name.strip_prefix("vision_model.")?.rsplit_once(".self_attn.qkv.")?;
        Some(["q", "k", "v"].map(|x| format!("vision_model.{layer}.attn.{x}.{end}")).to_vec())
    })
}

/// Returns the bytes that the published weights take in memory with this arithmetic, without reading them.
///
/// # Errors
/// [`CheckpointError::Format`] for weights of another network.
pub fn memory(
    published: Checkpoint,
    config: &Blip2Config,
    arithmetic: Arithmetic,
) -> Result<WeightBytes, CheckpointError> {
    let weights = canonical(published)?;
    let exact = Arithmetic { int8: false, ..arithmetic };
    let tables: &[&str] = match config.text {
        TextConfig::Opt(_) => &["model.decoder.embed_tokens"],
        TextConfig::T5(_) => &t5::TABLES,
    };
    let full = |table: &&str| format!("{LANGUAGE}{table}.weight");
    let table = tables.iter().map(full).find(|table| weights.contains(table)).unwrap_or_default();
    let text = |name: &str| {
        if name == table {
            return Some(Use::Table);
        }
        let is_copy = tables.iter().any(|other| full(other) == name);
        (name.starts_with(LANGUAGE) && !is_copy).then(|| use_in_language(name))
    };
    let text = weight_bytes(&weights, arithmetic, text);
    let rest = weight_bytes(&weights, exact, |name| (!name.starts_with(LANGUAGE)).then_some(Use::Other));
    let has_head = weights.contains(&format!("{LANGUAGE}lm_head.weight"));
    let head = if has_head { 0 } else { shared_matrix_bytes(&weights, &table, arithmetic) };
    Ok(WeightBytes { in_file: text.in_file + rest.in_file, held: text.held + rest.held + head })
}

/// Returns how a tensor of the language model is used that is not its table of tokens.
fn use_in_language(name: &str) -> Use {
    let others = ["norm", "embed_positions", "relative_attention_bias"];
    let is_matrix = name.ends_with(".weight") && !others.iter().any(|other| name.contains(other));
    if is_matrix { Use::Matrix } else { Use::Other }
}

impl Blip2 {
    /// Opens a folder with `config.json` and weights, in one file or in shards.
    ///
    /// # Errors
    /// The errors of [`read_config`], [`Checkpoint::open`] and [`Blip2::load`].
    pub fn open(folder: impl AsRef<Path>, arithmetic: Arithmetic, device: Device) -> Result<Self, CheckpointError> {
        let config = read_config(&folder)?;
        Self::load(Checkpoint::open(folder)?.state_dict(), &config, arithmetic, device)
    }

    /// Builds the network of published weights. Only the language model is held in int8, if the arithmetic says so.
    ///
    /// # Errors
    /// [`CheckpointError::NoTensor`] and [`CheckpointError::Format`] for weights that are not those of the config.
    pub fn load(
        published: Checkpoint,
        config: &Blip2Config,
        arithmetic: Arithmetic,
        device: Device,
    ) -> Result<Self, CheckpointError> {
        let checkpoint = canonical(published)?;
        let weights = Weights::new(&checkpoint, arithmetic, device);
        let exact = weights.exact();
        let text = weights.below("language_model");
        let (language, width) = match &config.text {
            TextConfig::Opt(opt) => (Language::Opt(Box::new(Opt::load(&text, opt)?)), opt.hidden_size),
            TextConfig::T5(t5) => (Language::T5(Box::new(T5::load(&text, t5)?)), t5.d_model),
        };
        Ok(Self {
            vision: VisionTower::load(&exact.below("vision_model"), &config.vision)?,
            qformer: QFormer::load(&exact, &config.qformer, config.queries, config.vision.hidden_size)?,
            projection: Linear::load(&exact, "language_projection", [config.qformer.hidden_size, width], true)?,
            language,
            config: config.clone(),
        })
    }

    /// Returns the sizes of the network.
    pub fn config(&self) -> &Blip2Config {
        &self.config
    }

    /// Returns the language model.
    pub fn language(&self) -> &Language {
        &self.language
    }

    fn options(&self) -> (Kind, Device) {
        match &self.language {
            Language::Opt(opt) => opt.options(),
            Language::T5(t5) => t5.options(),
        }
    }

    /// Maps normalised pictures [B, 3, S, S] to visual tokens [B, queries, width of the language model].
    pub fn visual_tokens(&self, images: &Tensor) -> Tensor {
        let (kind, device) = self.options();
        let states = self.vision.forward(&images.to_device(device).to_kind(kind)); // [B, 1 + N, D]
        show("vision", &states);
        let queries = self.qformer.forward(&states); // [B, Q, D]
        show("qformer", &queries);
        self.projection.forward(&queries)
    }

    /// Returns the embeddings of a prompt: the visual tokens [queries, width] of a picture, then the ids of the text,
    /// with its special tokens. Image tokens, with which newer tokenizers hold places for the former, are left out.
    pub fn prompt(&self, visual: &Tensor, ids: &[i64]) -> Tensor {
        let ids = Tensor::from_slice(ids);
        let text = match &self.language {
            Language::Opt(opt) => opt.embed(&ids),
            Language::T5(t5) => t5.embed(&ids),
        };
        Tensor::cat(&[&visual.to_kind(text.kind()), &text], 0)
    }

    /// Answers a prompt [tokens, width].
    ///
    /// # Errors
    /// [`CacheFull`] if OPT has too few positions for the prompt and its answer.
    pub fn answer(&self, prompt: &Tensor, search: &BeamSearch) -> Result<BeamAnswer, CacheFull> {
        let _no_grad = tch::no_grad_guard();
        Ok(match &self.language {
            Language::Opt(opt) => search.search(&mut OptBeams::new(opt, prompt, search.beams, search.max_new_tokens)?),
            Language::T5(t5) => search.search(&mut T5Beams::new(t5, prompt)),
        })
    }
}

/// ViT-g of EVA-CLIP, without its last layer: every token after the last normalisation.
#[derive(Debug)]
struct VisionTower {
    patch: i64,
    class: Mapped,
    positions: Mapped,
    /// [D, 3, P, P] and \[D\]
    patches: [Mapped; 2],
    blocks: Vec<ImageBlock>,
    norm: Norm,
}

impl VisionTower {
    fn load(weights: &Weights<'_>, config: &VisionConfig) -> Result<Self, CheckpointError> {
        let (width, patch, grid) = (config.hidden_size, config.patch_size, config.image_size / config.patch_size);
        let embeddings = weights.below("embeddings");
        let block = BlockConfig {
            width,
            hidden: config.intermediate_size,
            heads: config.num_attention_heads,
            norm: NormKind::Layer,
            eps: VISION_EPS,
            qkv_bias: config.qkv_bias,
            qk_norm: false,
            layer_scale: false,
        };
        let layers = weights.below("encoder.layers");
        let layer = |i: i64| ImageBlock::load(&layers.below(i), &block);
        Ok(Self {
            patch,
            class: embeddings.tensor("class_embedding", &[1, 1, width])?,
            positions: embeddings.tensor("position_embedding", &[1, 1 + grid * grid, width])?,
            patches: [
                embeddings.tensor("patch_embedding.weight", &[width, 3, patch, patch])?,
                embeddings.tensor("patch_embedding.bias", &[width])?,
            ],
            blocks: (0..config.num_hidden_layers).map(layer).collect::<Result<_, _>>()?,
            norm: Norm::load(weights, "post_layernorm", width, VISION_EPS, NormKind::Layer)?,
        })
    }

    fn forward(&self, images: &Tensor) -> Tensor {
        let [weight, bias] = self.patches.each_ref().map(Mapped::tensor);
        let x = images.conv2d(weight, Some(bias), [self.patch, self.patch], [0, 0], [1, 1], 1); // [B, D, h, w]
        let patches = x.flatten(2, 3).transpose(1, 2); // [B, N, D]
        let class = self.class.tensor().expand([images.size()[0], -1, -1], false);
        let start = Tensor::cat(&[class, patches], 1) + self.positions.tensor(); // [B, 1 + N, D]
        self.norm.forward(&self.blocks.iter().fold(start, |x, block| block.forward(&x)))
    }
}
