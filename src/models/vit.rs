//! Vision transformers as published by DINO (Caron et al. 2021) and DINOv2 (Oquab et al. 2023), whose patch tokens
//! describe an image without further training. For inference.
//!
//! Variables have the names of the original files (`dino_deitsmall8_pretrain.pth`, `dinov2_vits14_pretrain.pth`), with
//! `attn.qkv` in thirds; Hugging Face's names (`facebook/dino-*`, `facebook/dinov2-*`) are translated to these.

mod config;
pub mod names;

pub use config::VitConfig;

use super::{
    checkpoint::{Checkpoint, CheckpointError},
    initialisation::skip_init,
    nn::{attention, layer_norm, linear},
};
use std::{collections::BTreeMap, path::Path, sync::OnceLock};
use tch::{
    Device, Kind, Tensor,
    nn::{self, Init},
};

/// The way in which the position table is resized to the grid of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interpolation {
    /// Bicubic to the exact size: Hugging Face without registers.
    Exact,
    /// Bicubic to the exact size with antialiasing: with registers.
    Antialias,
    /// Bicubic by the factor (size + 0.1) / table: the original code of the models without registers.
    Offset,
}

/// The network.
#[derive(Debug)]
pub struct VisionTransformer {
    config: VitConfig,
    interpolation: Interpolation,
    cls_token: Tensor,
    register_tokens: Option<Tensor>,
    pos_embed: Tensor,
    proj: nn::Conv2D,
    blocks: Vec<Block>,
    norm: nn::LayerNorm,
}

impl VisionTransformer {
    /// Declares the variables. Weights have to be loaded before the first forward pass, which folds the layer scales
    /// into the projections.
    pub fn new(vs: &nn::Path, config: &VitConfig, interpolation: Interpolation) -> Self {
        let (width, patch, registers) = (config.hidden_size, config.patch_size, config.num_register_tokens);
        let zero = |name: &str, tokens: i64| vs.var(name, &[1, tokens, width], Init::Const(0.));
        let convolution =
            nn::ConvConfig { stride: patch, ws_init: Init::Const(0.), bs_init: Init::Const(0.), ..Default::default() };
        let blocks = vs / "blocks";
        Self {
            interpolation,
            cls_token: zero("cls_token", 1),
            register_tokens: (registers > 0).then(|| zero("register_tokens", registers)),
            pos_embed: zero("pos_embed", 1 + config.grid() * config.grid()),
            proj: nn::conv2d(vs / "patch_embed" / "proj", config.num_channels, width, patch, convolution),
            blocks: (0..config.num_hidden_layers).map(|index| Block::new(&(&blocks / index), config)).collect(),
            norm: layer_norm(vs / "norm", width, config.layer_norm_eps),
            config: config.clone(),
        }
    }

    /// Opens a weight file, or a folder in Hugging Face layout. Sizes come from the folder's `config.json` if there is
    /// one, else from the weights. The weights are frozen float32. The network computes as the authors' own code does,
    /// whatever names the weights have: transformers adds another epsilon to the variances of DINO, and resizes
    /// positions in another way.
    ///
    /// # Errors
    /// The errors of [`Checkpoint::open`] and [`Checkpoint::load_into`], and [`CheckpointError::Format`] for a bad
    /// config and for weights of another architecture.
    pub fn open(path: impl AsRef<Path>, device: Device) -> Result<Self, CheckpointError> {
        let (config, weights) = VitConfig::read(path.as_ref())?;
        let config = VitConfig { layer_norm_eps: 1e-6, ..config };
        let interpolation =
            if config.num_register_tokens == 0 { Interpolation::Offset } else { Interpolation::Antialias };
        Self::load(&weights, &config, interpolation, device)
    }

    /// Builds the network and fills it from weights with its own names (see [`names::original`]).
    ///
    /// # Errors
    /// The errors of [`Checkpoint::load_into`], and [`CheckpointError::Format`] for a bad config.
    pub fn load(
        weights: &Checkpoint,
        config: &VitConfig,
        interpolation: Interpolation,
        device: Device,
    ) -> Result<Self, CheckpointError> {
        let wrong = |error: super::nn::ConfigError| CheckpointError::Format {
            path: weights.path().to_owned(),
            reason: format!("its config is wrong: {}", error.problem),
        };
        config.check().map_err(wrong)?;
        let mut vs = nn::VarStore::new(device);
        let model = skip_init(|| Self::new(&vs.root(), config, interpolation));
        weights.load_into(&vs)?;
        vs.freeze();
        Ok(model)
    }

    /// Returns the sizes of the network.
    pub fn config(&self) -> &VitConfig {
        &self.config
    }

    /// Returns the patch tokens of normalised images [B, 3, H, W] as maps: per entry of `blocks`, [B, D, H/P, W/P] with
    /// patches of P pixels. Pixels at the right and lower border that fill no whole patch are not read.
    ///
    /// `blocks` counts as Hugging Face's `hidden_states`: 0 is the embedding, n is the output of the n-th block. `norm`
    /// applies the final layer norm to each of them, as the original `get_intermediate_layers` does and Hugging Face
    /// does not.
    ///
    /// # Panics
    /// If the image is smaller than a patch, or if there is no such block.
    pub fn features(&self, x: &Tensor, blocks: &[usize], norm: bool) -> Vec<Tensor> {
        let (b, _, height, width) = x.size4().unwrap();
        let (h, w) = (height / self.config.patch_size, width / self.config.patch_size);
        let first = 1 + self.config.num_register_tokens;
        let map = |tokens: Tensor| tokens.narrow(1, first, h * w).transpose(1, 2).reshape([b, -1, h, w]);
        self.tokens(x, blocks, norm).into_iter().map(map).collect()
    }

    /// Does as [`features`](Self::features), but returns all tokens in order: class, registers, patches, [B, N, D].
    pub fn tokens(&self, x: &Tensor, blocks: &[usize], norm: bool) -> Vec<Tensor> {
        let last = blocks.iter().copied().max().unwrap_or(0);
        assert!(last <= self.blocks.len(), "there is no block {last}; the network has {}", self.blocks.len());
        let mut x = self.embed(x);
        let mut states = BTreeMap::new();
        for block in 0..=last {
            if block > 0 {
                self.blocks[block - 1].forward(&mut x);
            }
            if blocks.contains(&block) {
                states.insert(block, if norm { x.apply(&self.norm) } else { x.copy() });
            }
        }
        blocks.iter().map(|block| states[block].shallow_clone()).collect()
    }

    /// Returns all tokens after the last block and norm, [B, N, D].
    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.tokens(x, &[self.blocks.len()], true).remove(0)
    }

    /// Returns the attention of each token of the last block to all tokens, [B, heads, N, N] (DINO's
    /// `get_last_selfattention`).
    pub fn last_self_attention(&self, x: &Tensor) -> Tensor {
        let before = self.tokens(x, &[self.blocks.len() - 1], false).remove(0);
        self.blocks[self.blocks.len() - 1].attention_weights(&before)
    }

    /// Maps [B, 3, H, W] to tokens [B, N, D].
    fn embed(&self, x: &Tensor) -> Tensor {
        let (b, _, h, w) = x.size4().unwrap();
        let patches = x.apply(&self.proj).flatten(2, 3).transpose(1, 2); // [B, h · w, D]
        let cls = self.cls_token.expand([b, -1, -1], false); // [B, 1, D]
        let mut tokens = Tensor::cat(&[cls, patches], 1);
        let _ = tokens.g_add_(&self.positions(h, w)); // [B, 1 + h · w, D]
        match &self.register_tokens {
            None => tokens,
            Some(registers) => {
                let registers = registers.expand([b, -1, -1], false);
                Tensor::cat(&[tokens.narrow(1, 0, 1), registers, tokens.narrow(1, 1, tokens.size()[1] - 1)], 1)
            }
        }
    }

    /// Returns the position table for an image of `height`×`width` pixels: [1, 1 + h · w, D].
    pub fn positions(&self, height: i64, width: i64) -> Tensor {
        let (grid, patch) = (self.config.grid(), self.config.patch_size);
        if height == width && height / patch == grid {
            return self.pos_embed.shallow_clone();
        }
        interpolate(&self.pos_embed, [height / patch, width / patch], self.interpolation)
    }
}

/// Resizes a square position table [1, 1 + g · g, D] to [1, 1 + h · w, D]; the first position, of the class token,
/// stays.
pub fn interpolate(positions: &Tensor, [h, w]: [i64; 2], interpolation: Interpolation) -> Tensor {
    let (_, n, d) = positions.size3().unwrap();
    let grid = (n - 1).isqrt();
    let table = positions.narrow(1, 1, n - 1).reshape([1, grid, grid, d]).permute([0, 3, 1, 2]); // [1, D, g, g]
    let table = table.to_kind(Kind::Float);
    let table = match interpolation {
        Interpolation::Exact => table.upsample_bicubic2d([h, w], false, None, None),
        Interpolation::Antialias => table.internal_upsample_bicubic2d_aa([h, w], false, None, None),
        Interpolation::Offset => {
            let scale = |size: i64| Some((size as f64 + 0.1) / grid as f64);
            table.upsample_bicubic2d([h, w], false, scale(h), scale(w))
        }
    };
    let table = table.to_kind(positions.kind()).permute([0, 2, 3, 1]).reshape([1, h * w, d]);
    Tensor::cat(&[positions.narrow(1, 0, 1), table], 1)
}

/// One transformer block.
#[derive(Debug)]
struct Block {
    norm1: nn::LayerNorm,
    /// Query, key and value in one layer, of which the variables are thirds: one product is faster than three.
    qkv: nn::Linear,
    proj: Residual,
    norm2: nn::LayerNorm,
    fc1: nn::Linear,
    fc2: Residual,
    gated: bool,
    heads: i64,
}

impl Block {
    fn new(vs: &nn::Path, config: &VitConfig) -> Self {
        let (width, hidden, gated) = (config.hidden_size, config.hidden(), config.use_swiglu_ffn);
        let zeros = |shape: &[i64]| Tensor::zeros(shape, (vs.kind(), vs.device()));
        let qkv = nn::Linear { ws: zeros(&[3 * width, width]), bs: config.qkv_bias.then(|| zeros(&[3 * width])) };
        let attn = vs / "attn";
        for (third, name) in ["query", "key", "value"].iter().enumerate() {
            for (part, whole) in [("weight", Some(&qkv.ws)), ("bias", qkv.bs.as_ref())] {
                let view = whole.map(|whole| whole.narrow(0, third as i64 * width, width));
                let _ = view.map(|view| (&attn / name).add(part, view, false));
            }
        }
        let mlp = vs / "mlp";
        let [first, second] = if gated { ["w12", "w3"] } else { ["fc1", "fc2"] };
        let scale = |name: &str| config.layer_scale().then(|| (vs / name).var("gamma", &[width], Init::Const(0.)));
        Self {
            norm1: layer_norm(vs / "norm1", width, config.layer_norm_eps),
            qkv,
            proj: Residual::new(&attn / "proj", [width, width], scale("ls1")),
            norm2: layer_norm(vs / "norm2", width, config.layer_norm_eps),
            fc1: linear(&mlp / first, width, if gated { 2 * hidden } else { hidden }),
            fc2: Residual::new(&mlp / second, [hidden, width], scale("ls2")),
            gated,
            heads: config.num_attention_heads,
        }
    }

    /// Changes the tokens [B, N, D] in place.
    fn forward(&self, x: &mut Tensor) {
        let [query, key, value] = self.query_key_value(x);
        self.proj.add_to(x, &attention(&query, &key, &value, self.heads, false));
        let mut hidden = x.apply(&self.norm2).apply(&self.fc1); // [B, N, hidden or twice of it]
        if self.gated {
            let halves = hidden.chunk(2, -1);
            hidden = halves[0].silu() * &halves[1];
        } else {
            let _ = hidden.gelu_("none");
        }
        self.fc2.add_to(x, &hidden);
    }

    /// Maps [B, N, D] to queries, keys and values, [B, N, D] each.
    fn query_key_value(&self, x: &Tensor) -> [Tensor; 3] {
        let qkv = x.apply(&self.norm1).apply(&self.qkv); // [B, N, 3 · D]
        let width = qkv.size()[2] / 3;
        [0, 1, 2].map(|third| qkv.narrow(2, third * width, width))
    }

    /// Maps [B, N, D] to [B, heads, N, N].
    fn attention_weights(&self, x: &Tensor) -> Tensor {
        let [query, key, _] = self.query_key_value(x);
        let (b, n, d) = query.size3().unwrap();
        let heads = |x: &Tensor| x.view([b, n, self.heads, -1]).transpose(1, 2); // [B, heads, N, d]
        let scale = ((d / self.heads) as f64).sqrt();
        (heads(&query).matmul(&heads(&key).transpose(2, 3)) / scale).softmax(-1, Kind::Float)
    }
}

/// A linear layer whose output is scaled and added to the tokens.
#[derive(Debug)]
struct Residual {
    linear: nn::Linear,
    gamma: Option<Tensor>,
    /// γW and γb, computed from the loaded weights at the first use.
    folded: OnceLock<(Tensor, Tensor)>,
}

impl Residual {
    fn new(vs: nn::Path, [inputs, outputs]: [i64; 2], gamma: Option<Tensor>) -> Self {
        Self { linear: linear(vs, inputs, outputs), gamma, folded: OnceLock::new() }
    }

    /// Computes x += γ(Wh + b) for `x` [B, N, D] and `h` [B, N, inputs], without a tensor in between.
    fn add_to(&self, x: &mut Tensor, h: &Tensor) {
        let (weight, bias) = self.folded.get_or_init(|| {
            let (weight, bias) = (&self.linear.ws, self.linear.bs.as_ref().unwrap());
            match &self.gamma {
                Some(gamma) => (gamma.unsqueeze(1) * weight, gamma * bias),
                None => (weight.shallow_clone(), bias.shallow_clone()),
            }
        });
        let mut rows = x.view([-1, bias.size()[0]]);
        let _ = rows.g_add_(bias).addmm_(&h.flatten(0, 1), &weight.tr());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::checkpoint::to_safetensors;

    /// Returns the sizes of a small network with everything that the published small ones lack: registers, gated
    /// blocks, no biases.
    fn giant_like() -> VitConfig {
        VitConfig {
            model_type: "dinov2".to_owned(),
            hidden_size: 128,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            intermediate_size: Some(344),
            layer_norm_eps: 1e-6,
            image_size: 56,
            patch_size: 14,
            qkv_bias: false,
            use_swiglu_ffn: true,
            num_register_tokens: 4,
            ..Default::default()
        }
    }

    #[test]
    fn sizes_are_read_from_the_weights() {
        for config in [giant_like(), VitConfig { intermediate_size: Some(3072), ..Default::default() }] {
            let vs = nn::VarStore::new(Device::Cpu);
            VisionTransformer::new(&vs.root(), &config, Interpolation::Antialias);
            let bytes = to_safetensors(vs.variables(), Default::default()).unwrap();
            assert_eq!(VitConfig::of(&Checkpoint::from_safetensors(bytes).unwrap()), Some(config));
        }
    }

    #[test]
    fn the_hidden_width_comes_from_intermediate_size_or_mlp_ratio() {
        let config =
            |hidden, gated| VitConfig { intermediate_size: hidden, use_swiglu_ffn: gated, ..Default::default() };
        assert_eq!(config(None, false).hidden(), 3072);
        assert_eq!(config(Some(100), false).hidden(), 100);
        assert_eq!(config(None, true).hidden(), 2048);
    }

    #[test]
    fn sizes_that_no_network_has_are_refused() {
        let refused = |config: VitConfig| config.check().unwrap_err().to_string();
        assert!(giant_like().check().is_ok());
        let wide = VitConfig { hidden_size: i64::MAX, num_attention_heads: 1, ..Default::default() };
        assert!(refused(wide).contains("hidden_size 9223372036854775807 has to be from 1 to 1048576"));
        let deep = VitConfig { num_hidden_layers: i64::MAX, ..Default::default() };
        assert!(refused(deep).contains("num_hidden_layers 9223372036854775807 has to be from 1 to 1000"));
        let registers = VitConfig { num_register_tokens: -1, ..Default::default() };
        assert!(refused(registers).contains("num_register_tokens -1 has to be from 0 to 1048576"));
    }

    #[test]
    fn registers_are_not_returned_but_change_the_features() {
        let mut vs = nn::VarStore::new(Device::Cpu);
        let model = VisionTransformer::new(&vs.root(), &giant_like(), Interpolation::Antialias);
        vs.freeze();
        tch::manual_seed(0);
        for (_, mut variable) in vs.variables() {
            let _ = variable.normal_(0., 0.3);
        }
        let x = Tensor::randn([2, 3, 28, 70], tch::kind::FLOAT_CPU);
        let before = model.features(&x, &[2], false).remove(0);
        assert_eq!(before.size(), [2, 128, 2, 5]);
        assert_eq!(model.forward(&x).size(), [2, 1 + 4 + 10, 128]);
        let _ = vs.variables().remove("register_tokens").unwrap().zero_();
        let after = model.features(&x, &[2], false).remove(0);
        assert!((before - after).abs().max().double_value(&[]) > 1e-3);
    }

    #[test]
    fn a_config_from_impossible_shapes_is_refused() {
        let shapes: [(&str, &[i64]); 4] = [
            ("patch_embed.proj.weight", &[64, 3, 8, 8]),
            ("pos_embed", &[1, 0, 64]),
            ("register_tokens", &[4]),
            ("blocks.0.mlp.fc1.weight", &[256, 64]),
        ];
        let tensors = shapes.map(|(name, shape)| (name.to_owned(), Tensor::zeros(shape, tch::kind::FLOAT_CPU)));
        let weights = Checkpoint::from_safetensors(to_safetensors(tensors, Default::default()).unwrap()).unwrap();
        assert!(VitConfig::of(&weights).unwrap().check().is_err());
    }

    #[test]
    fn a_config_whose_heads_do_not_divide_the_width_is_refused() {
        let weights = Checkpoint::from_safetensors(to_safetensors([], Default::default()).unwrap()).unwrap();
        let heads = VitConfig { num_attention_heads: 3, hidden_size: 128, ..Default::default() };
        let error = VisionTransformer::load(&weights, &heads, Interpolation::Exact, Device::Cpu).unwrap_err();
        assert!(error.to_string().ends_with("hidden_size 128 is no multiple of num_attention_heads 3"), "{error}");
    }
}
