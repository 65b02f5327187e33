//! DINOv2 (Oquab et al. 2023), a vision transformer whose patch tokens describe an image without further training.
//!
//! Names and numerics are those of Hugging Face's `Dinov2Model` and `Dinov2WithRegistersModel` (`facebook/dinov2-*`). The
//! original files (`dinov2_vits14_pretrain.pth` and its like) are brought to these names by [`huggingface_names`].

use super::checkpoint::{Checkpoint, CheckpointError, Preprocessing};
use serde::{Deserialize, Serialize};
use std::path::Path;
use tch::{
    Device, Kind, Tensor,
    nn::{self, Init},
};

/// The published `config.json`; keys that do not change the computation are ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dinov2Config {
    /// Width of a token.
    pub hidden_size: i64,
    /// Transformer blocks.
    pub num_hidden_layers: i64,
    /// Attention heads; they divide `hidden_size`.
    pub num_attention_heads: i64,
    /// Width of the hidden layer of a block, in `hidden_size`.
    pub mlp_ratio: f64,
    /// Only `gelu` is published.
    pub hidden_act: String,
    /// Added to variances.
    pub layer_norm_eps: f64,
    /// Height and width, in pixels, that the position table is made for.
    pub image_size: i64,
    /// Height and width of a patch in pixels.
    pub patch_size: i64,
    /// Channels of the image.
    pub num_channels: i64,
    /// Whether query, key and value have a bias.
    pub qkv_bias: bool,
    /// Whether the blocks are gated (SwiGLU), as in the giant model.
    pub use_swiglu_ffn: bool,
    /// Extra tokens behind the class token (Darcet et al. 2023); 0 in the models of the first paper.
    pub num_register_tokens: i64,
}

impl Default for Dinov2Config {
    /// What Hugging Face assumes where a key is missing.
    fn default() -> Self {
        Self {
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            mlp_ratio: 4.,
            hidden_act: "gelu".to_owned(),
            layer_norm_eps: 1e-6,
            image_size: 224,
            patch_size: 14,
            num_channels: 3,
            qkv_bias: true,
            use_swiglu_ffn: false,
            num_register_tokens: 0,
        }
    }
}

impl Dinov2Config {
    /// Reads the sizes off weights with Hugging Face names. The heads of every published model are 64 wide.
    pub fn of(checkpoint: &Checkpoint) -> Option<Self> {
        let &[hidden_size, num_channels, patch_size, _] =
            checkpoint.shape("embeddings.patch_embeddings.projection.weight")?
        else {
            return None;
        };
        let positions = *checkpoint.shape("embeddings.position_embeddings")?.get(1)? - 1;
        let has = |layer: i64| checkpoint.contains(&format!("encoder.layer.{layer}.norm1.weight"));
        let registers = checkpoint.shape("embeddings.register_tokens").and_then(|shape| shape.get(1));
        Some(Self {
            hidden_size,
            num_hidden_layers: (0..).take_while(|&layer| has(layer)).count() as i64,
            num_attention_heads: hidden_size / 64,
            image_size: positions.isqrt() * patch_size,
            patch_size,
            num_channels,
            qkv_bias: checkpoint.contains("encoder.layer.0.attention.attention.query.bias"),
            use_swiglu_ffn: checkpoint.contains("encoder.layer.0.mlp.weights_in.weight"),
            num_register_tokens: registers.copied().unwrap_or(0),
            ..Self::default()
        })
    }

    /// What is wrong with the values, if anything.
    fn problem(&self) -> Option<String> {
        let positive =
            [self.hidden_size, self.num_hidden_layers, self.num_attention_heads, self.patch_size, self.num_channels];
        if positive.iter().any(|&size| size <= 0) || self.mlp_ratio <= 0. || self.num_register_tokens < 0 {
            return Some("a size is not positive".to_owned());
        }
        let (width, heads) = (self.hidden_size, self.num_attention_heads);
        if width % heads != 0 {
            return Some(format!("hidden_size {width} is no multiple of num_attention_heads {heads}"));
        }
        if self.image_size < self.patch_size {
            return Some(format!("image_size {} is below patch_size {}", self.image_size, self.patch_size));
        }
        (self.hidden_act != "gelu").then(|| format!("hidden_act is {}, but only gelu is known", self.hidden_act))
    }

    /// Cells of the position table in a row.
    fn grid(&self) -> i64 {
        self.image_size / self.patch_size
    }
}

/// How the position table is resized to the grid of an image; the three give slightly different features.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interpolation {
    /// Bicubic to the exact size: Hugging Face without registers.
    Exact,
    /// Bicubic to the exact size with antialiasing: Hugging Face with registers.
    Antialias,
    /// Bicubic by the factor (size + 0.1) / table: the original code of the models without registers.
    Offset,
}

/// The network, for inference.
#[derive(Debug)]
pub struct Dinov2 {
    config: Dinov2Config,
    interpolation: Interpolation,
    cls_token: Tensor,
    register_tokens: Option<Tensor>,
    position_embeddings: Tensor,
    projection: nn::Conv2D,
    layers: Vec<Layer>,
    layernorm: nn::LayerNorm,
}

impl Dinov2 {
    /// Names the variables as Hugging Face does. They are zero until weights are loaded.
    pub fn new(vs: &nn::Path, config: &Dinov2Config, interpolation: Interpolation) -> Self {
        let (width, patch, registers) = (config.hidden_size, config.patch_size, config.num_register_tokens);
        let embeddings = vs / "embeddings";
        let zero = |name: &str, tokens: i64| embeddings.var(name, &[1, tokens, width], Init::Const(0.));
        let convolution =
            nn::ConvConfig { stride: patch, ws_init: Init::Const(0.), bs_init: Init::Const(0.), ..Default::default() };
        let projection = &embeddings / "patch_embeddings" / "projection";
        let layer = vs / "encoder" / "layer";
        Self {
            interpolation,
            cls_token: zero("cls_token", 1),
            register_tokens: (registers > 0).then(|| zero("register_tokens", registers)),
            position_embeddings: zero("position_embeddings", 1 + config.grid() * config.grid()),
            projection: nn::conv2d(projection, config.num_channels, width, patch, convolution),
            layers: (0..config.num_hidden_layers).map(|index| Layer::new(&(&layer / index), config)).collect(),
            layernorm: layer_norm(vs / "layernorm", config),
            config: config.clone(),
        }
    }

    /// Opens a folder with `config.json` and weights, or an original weight file, which needs no config. The positions
    /// are interpolated as by the code that published the names in the file. The weights are frozen float32.
    ///
    /// # Errors
    /// Those of [`Checkpoint::open`] and [`Checkpoint::load_into`], and [`CheckpointError::Format`] for a bad config.
    pub fn open(path: impl AsRef<Path>, device: Device) -> Result<Self, CheckpointError> {
        let path = path.as_ref();
        let weights = Checkpoint::open(path)?.state_dict();
        let original = weights.contains("pos_embed");
        let weights = huggingface_names(weights)?;
        let config = if path.is_dir() {
            let path = path.join("config.json");
            let text = std::fs::read(&path).map_err(|source| CheckpointError::Io { path: path.clone(), source })?;
            let format = |error: serde_json::Error| CheckpointError::Format { path, reason: error.to_string() };
            serde_json::from_slice(&text).map_err(format)?
        } else {
            let reason = "it has no patch_embed.proj.weight and pos_embed of DINOv2; \
                          with other names, a folder with config.json would work";
            let format = || CheckpointError::Format { path: path.to_owned(), reason: reason.to_owned() };
            Dinov2Config::of(&weights).ok_or_else(format)?
        };
        let interpolation = match (config.num_register_tokens, original) {
            (0, true) => Interpolation::Offset,
            (0, false) => Interpolation::Exact,
            _ => Interpolation::Antialias,
        };
        Self::load(&weights, &config, interpolation, device)
    }

    /// Builds the network and fills it from weights with Hugging Face names.
    ///
    /// # Errors
    /// Those of [`Checkpoint::load_into`], and [`CheckpointError::Format`] for a bad config.
    pub fn load(
        weights: &Checkpoint,
        config: &Dinov2Config,
        interpolation: Interpolation,
        device: Device,
    ) -> Result<Self, CheckpointError> {
        if let Some(problem) = config.problem() {
            let reason = format!("its config is wrong: {problem}");
            return Err(CheckpointError::Format { path: weights.path().to_owned(), reason });
        }
        let mut vs = nn::VarStore::new(device);
        let model = Self::new(&vs.root(), config, interpolation);
        weights.load_into(&vs)?;
        vs.freeze();
        Ok(model)
    }

    /// The sizes of the network.
    pub fn config(&self) -> &Dinov2Config {
        &self.config
    }

    /// ImageNet's mean and deviation; height and width in whole patches.
    pub fn preprocessing(&self) -> Preprocessing {
        Preprocessing::imagenet(self.config.patch_size)
    }

    /// Patch tokens of normalised images \[B, 3, H, W\]: per entry of `blocks`, \[B, H/14 · W/14, D\], row by row, without
    /// the class and register tokens.
    ///
    /// `blocks` counts as Hugging Face's `hidden_states` does: 0 is the embedding, n is after n blocks. `norm` applies the
    /// final layer norm to each of them, as the original `get_intermediate_layers` does and Hugging Face does not.
    ///
    /// # Panics
    /// If H or W is no multiple of the patch size, or if there is no such block.
    pub fn hidden_states(&self, x: &Tensor, blocks: &[usize], norm: bool) -> Vec<Tensor> {
        let first = 1 + self.config.num_register_tokens;
        let patches = |tokens: Tensor| tokens.narrow(1, first, tokens.size()[1] - first);
        self.tokens(x, blocks, norm).into_iter().map(patches).collect()
    }

    /// Every token after the last block and norm, \[B, 1 + registers + patches, D\]: class, registers, patches.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.tokens(x, &[self.layers.len()], true).remove(0)
    }

    fn tokens(&self, x: &Tensor, blocks: &[usize], norm: bool) -> Vec<Tensor> {
        let last = blocks.iter().copied().max().unwrap_or(0);
        assert!(last <= self.layers.len(), "there is no block {last}; the network has {}", self.layers.len());
        let mut states = vec![self.embed(x)];
        for layer in &self.layers[..last] {
            // A state that nobody asked for is freed by its successor.
            let state = layer.forward(&states[states.len() - 1]);
            if !blocks.contains(&(states.len() - 1)) {
                let done = states.len() - 1;
                states[done] = Tensor::new();
            }
            states.push(state);
        }
        let finish = |state: &Tensor| if norm { state.apply(&self.layernorm) } else { state.shallow_clone() };
        blocks.iter().map(|&block| finish(&states[block])).collect()
    }

    /// \[B, 3, H, W\] to \[B, 1 + registers + patches, D\].
    fn embed(&self, x: &Tensor) -> Tensor {
        let (b, _, h, w) = x.size4().unwrap();
        let patch = self.config.patch_size;
        assert!(h % patch == 0 && w % patch == 0, "{h}×{w} pixels are no multiple of the patch size {patch}");
        let patches = x.apply(&self.projection).flatten(2, 3).transpose(1, 2); // [B, N, D]
        let cls = self.cls_token.expand([b, -1, -1], false); // [B, 1, D]
        let tokens = Tensor::cat(&[cls, patches], 1) + self.positions(h / patch, w / patch); // [B, 1 + N, D]
        match &self.register_tokens {
            None => tokens,
            Some(registers) => {
                let registers = registers.expand([b, -1, -1], false);
                Tensor::cat(&[tokens.narrow(1, 0, 1), registers, tokens.narrow(1, 1, tokens.size()[1] - 1)], 1)
            }
        }
    }

    /// The position table for a grid of `h`×`w` patches: \[1, 1 + h · w, D\].
    fn positions(&self, h: i64, w: i64) -> Tensor {
        let grid = self.config.grid();
        if (h, w) == (grid, grid) {
            return self.position_embeddings.shallow_clone();
        }
        let cls = self.position_embeddings.narrow(1, 0, 1);
        let table = self.position_embeddings.narrow(1, 1, grid * grid);
        let table = table.reshape([1, grid, grid, -1]).permute([0, 3, 1, 2]).to_kind(Kind::Float); // [1, D, grid, grid]
        let table = match self.interpolation {
            Interpolation::Exact => table.upsample_bicubic2d([h, w], false, None, None),
            Interpolation::Antialias => table.internal_upsample_bicubic2d_aa([h, w], false, None, None),
            Interpolation::Offset => {
                let scale = |size: i64| Some((size as f64 + 0.1) / grid as f64);
                table.upsample_bicubic2d([h, w], false, scale(h), scale(w))
            }
        };
        let table = table.to_kind(cls.kind()).permute([0, 2, 3, 1]).reshape([1, h * w, -1]);
        Tensor::cat(&[cls, table], 1)
    }
}

/// One transformer block.
#[derive(Debug)]
struct Layer {
    norm1: nn::LayerNorm,
    query: nn::Linear,
    key: nn::Linear,
    value: nn::Linear,
    dense: nn::Linear,
    scale1: Tensor,
    norm2: nn::LayerNorm,
    mlp: Mlp,
    scale2: Tensor,
    heads: i64,
}

impl Layer {
    fn new(vs: &nn::Path, config: &Dinov2Config) -> Self {
        let width = config.hidden_size;
        let attention = vs / "attention" / "attention";
        let projection = |name: &str| linear(&attention / name, width, width, config.qkv_bias);
        let scale = |name: &str| (vs / name).var("lambda1", &[width], Init::Const(0.));
        Self {
            norm1: layer_norm(vs / "norm1", config),
            query: projection("query"),
            key: projection("key"),
            value: projection("value"),
            dense: linear(vs / "attention" / "output" / "dense", width, width, true),
            scale1: scale("layer_scale1"),
            norm2: layer_norm(vs / "norm2", config),
            mlp: Mlp::new(&(vs / "mlp"), config),
            scale2: scale("layer_scale2"),
            heads: config.num_attention_heads,
        }
    }

    /// \[B, T, D\] to \[B, T, D\].
    fn forward(&self, x: &Tensor) -> Tensor {
        let (b, t, d) = x.size3().unwrap();
        let normed = x.apply(&self.norm1);
        let heads = |layer: &nn::Linear| normed.apply(layer).view([b, t, self.heads, -1]).transpose(1, 2); // [B, heads, T, d]
        let (query, key, value) = (heads(&self.query), heads(&self.key), heads(&self.value));
        let mixed = Tensor::scaled_dot_product_attention::<&Tensor>(&query, &key, &value, None, 0., false, None, false);
        let mixed = mixed.transpose(1, 2).reshape([b, t, d]).apply(&self.dense); // [B, T, D]
        let x = x + mixed * &self.scale1;
        let y = self.mlp.forward(&x.apply(&self.norm2));
        x + y * &self.scale2
    }
}

/// The position-wise half of a block.
#[derive(Debug)]
enum Mlp {
    Gelu { fc1: nn::Linear, fc2: nn::Linear },
    SwiGlu { weights_in: nn::Linear, weights_out: nn::Linear },
}

impl Mlp {
    fn new(vs: &nn::Path, config: &Dinov2Config) -> Self {
        let width = config.hidden_size;
        let hidden = (width as f64 * config.mlp_ratio) as i64;
        if config.use_swiglu_ffn {
            // Two thirds, for there are two matrices in, rounded up to a multiple of 8.
            let hidden = (hidden as f64 * 2. / 3.) as i64;
            let hidden = (hidden + 7) / 8 * 8;
            let weights_in = linear(vs / "weights_in", width, 2 * hidden, true);
            Self::SwiGlu { weights_in, weights_out: linear(vs / "weights_out", hidden, width, true) }
        } else {
            Self::Gelu { fc1: linear(vs / "fc1", width, hidden, true), fc2: linear(vs / "fc2", hidden, width, true) }
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        match self {
            Self::Gelu { fc1, fc2 } => x.apply(fc1).gelu("none").apply(fc2),
            Self::SwiGlu { weights_in, weights_out } => {
                let halves = x.apply(weights_in).chunk(2, -1);
                (halves[0].silu() * &halves[1]).apply(weights_out)
            }
        }
    }
}

fn layer_norm(vs: nn::Path, config: &Dinov2Config) -> nn::LayerNorm {
    let eps = config.layer_norm_eps;
    nn::layer_norm(vs, vec![config.hidden_size], nn::LayerNormConfig { eps, ..Default::default() })
}

/// Zeros: the weights are always loaded, and drawing random ones for a large model takes seconds.
fn linear(vs: nn::Path, inputs: i64, outputs: i64, bias: bool) -> nn::Linear {
    let config = nn::LinearConfig { ws_init: Init::Const(0.), bs_init: Some(Init::Const(0.)), bias };
    nn::linear(vs, inputs, outputs, config)
}

/// Brings the names of original weights to those of Hugging Face, which are left as they are, and drops the mask token,
/// which only training reads.
///
/// # Errors
/// [`CheckpointError::Format`] if an `attn.qkv` does not split into three.
pub fn huggingface_names(weights: Checkpoint) -> Result<Checkpoint, CheckpointError> {
    let weights = weights.split(|name| {
        let (block, part) = name.split_once(".attn.qkv.")?;
        Some(["query", "key", "value"].map(|third| format!("{block}.attention.attention.{third}.{part}")).to_vec())
    })?;
    weights.rename(|name| {
        let (block, rest) = match name.strip_prefix("blocks.").and_then(|name| name.split_once('.')) {
            Some((index, rest)) => (format!("encoder.layer.{index}."), rest),
            None => (String::new(), name),
        };
        const PARTS: [(&str, &str); 11] = [
            ("cls_token", "embeddings.cls_token"),
            ("pos_embed", "embeddings.position_embeddings"),
            ("register_tokens", "embeddings.register_tokens"),
            ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
            ("attn.proj.", "attention.output.dense."),
            ("ls1.gamma", "layer_scale1.lambda1"),
            ("ls2.gamma", "layer_scale2.lambda1"),
            ("mlp.w12.", "mlp.weights_in."),
            ("mlp.w3.", "mlp.weights_out."),
            ("norm.", "layernorm."),
            ("dinov2.", ""),
        ];
        let part = PARTS.iter().find_map(|(original, new)| Some(format!("{new}{}", rest.strip_prefix(original)?)));
        let name = format!("{block}{}", part.as_deref().unwrap_or(rest));
        (!name.ends_with("mask_token")).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::checkpoint::golden;

    fn config(folder: &Path) -> Dinov2Config {
        serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap()
    }

    #[test]
    fn hugging_face_layout_gives_hugging_face_numbers() {
        let Some(folder) = golden::path("models/dinov2") else { return };
        let (inputs, want) =
            (Checkpoint::open(folder.join("inputs.safetensors")), golden::open("models/dinov2/expected.safetensors"));
        let (inputs, want) = (inputs.unwrap(), want.unwrap());
        let model = Dinov2::open(folder.join("hf"), Device::Cpu).unwrap();
        let x = inputs.tensor("pixel_values").unwrap();
        let compare = |got: &Tensor, name: &str| golden::assert_close(got, &want.tensor(name).unwrap(), name);
        compare(&model.forward(&x), "hf.last_hidden_state");
        let states = model.tokens(&x, &[1, 0], false);
        compare(&states[1], "hf.embeddings");
        compare(&states[0], "hf.layer0");
        for size in ["3x7", "6x6"] {
            let x = inputs.tensor(&format!("pixel_values_{size}")).unwrap();
            compare(&model.hidden_states(&x, &[3], true)[0], &format!("hf.tokens_{size}"));
        }
    }

    #[test]
    fn original_names_give_original_numbers() {
        let Some(folder) = golden::path("models/dinov2") else { return };
        let (inputs, want) =
            (Checkpoint::open(folder.join("inputs.safetensors")), golden::open("models/dinov2/expected.safetensors"));
        let (inputs, want) = (inputs.unwrap(), want.unwrap());
        let weights = Checkpoint::open(folder.join("dinov2_vits14_pretrain.pth")).unwrap();
        let weights = huggingface_names(weights).unwrap();
        let model = Dinov2::load(&weights, &config(&folder.join("hf")), Interpolation::Offset, Device::Cpu).unwrap();
        let x = inputs.tensor("pixel_values").unwrap();
        let compare = |got: &Tensor, name: &str| golden::assert_close(got, &want.tensor(name).unwrap(), name);
        compare(&model.tokens(&x, &[3], false)[0], "orig.x_prenorm");
        let states = model.hidden_states(&x, &[2, 3], true);
        compare(&states[1], "orig.x_norm_patchtokens");
        compare(&states[0].transpose(1, 2).reshape([1, 36, 5, 5]), "orig.layer_minus2_normed");
        for size in ["3x7", "6x6"] {
            let x = inputs.tensor(&format!("pixel_values_{size}")).unwrap();
            compare(&model.hidden_states(&x, &[3], true)[0], &format!("orig.tokens_{size}"));
        }
    }

    /// A small network with everything that the published small one lacks: registers, gated blocks, no biases.
    fn giant_like() -> Dinov2Config {
        let sizes = Dinov2Config {
            hidden_size: 128,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            image_size: 56,
            ..Default::default()
        };
        Dinov2Config { qkv_bias: false, use_swiglu_ffn: true, num_register_tokens: 4, ..sizes }
    }

    #[test]
    fn sizes_are_read_off_the_weights() {
        let config = giant_like();
        let vs = nn::VarStore::new(Device::Cpu);
        Dinov2::new(&vs.root(), &config, Interpolation::Antialias);
        let bytes = super::super::checkpoint::to_safetensors(vs.variables(), Default::default()).unwrap();
        assert_eq!(Dinov2Config::of(&Checkpoint::from_safetensors(bytes).unwrap()), Some(config));
    }

    #[test]
    fn registers_are_not_returned_and_do_take_part() {
        let mut vs = nn::VarStore::new(Device::Cpu);
        let model = Dinov2::new(&vs.root(), &giant_like(), Interpolation::Antialias);
        vs.freeze();
        tch::manual_seed(0);
        for (_, mut variable) in vs.variables() {
            let _ = variable.normal_(0., 0.3);
        }
        let x = Tensor::randn([2, 3, 28, 70], tch::kind::FLOAT_CPU);
        let before = model.hidden_states(&x, &[2], false).remove(0);
        assert_eq!(before.size(), [2, 10, 128]);
        assert_eq!(model.forward(&x).size(), [2, 1 + 4 + 10, 128]);
        let _ = vs.variables().remove("embeddings.register_tokens").unwrap().zero_();
        let after = model.hidden_states(&x, &[2], false).remove(0);
        assert!((before - after).abs().max().double_value(&[]) > 1e-3);
    }

    #[test]
    fn a_config_that_cannot_be_is_refused() {
        let weights =
            Checkpoint::from_safetensors(super::super::checkpoint::to_safetensors([], Default::default()).unwrap());
        let heads = Dinov2Config { num_attention_heads: 3, hidden_size: 128, ..Default::default() };
        let error = Dinov2::load(&weights.unwrap(), &heads, Interpolation::Exact, Device::Cpu).unwrap_err();
        assert!(error.to_string().ends_with("hidden_size 128 is no multiple of num_attention_heads 3"), "{error}");
    }
}
