//! Layers that several published models share, initialised as by PyTorch.
//!
//! Parameters drawn at random come from libtorch's global generator: call `tch::manual_seed` before building a network
//! that is trained from scratch.

use super::{
    conv::{Conv2d, conv2d, conv3x3},
    initialisation::uniform,
};
use std::{cell::RefCell, collections::BTreeMap, fmt::Display};
use tch::{
    Device, Tensor,
    nn::{self, Module},
};

thread_local! {
    static OBSERVED: RefCell<Option<BTreeMap<String, Tensor>>> = const { RefCell::new(None) };
}

/// Runs `f`, and returns its result and the maps inside of the networks that it ran, by the names of the modules that
/// made them, as a forward hook would see them in PyTorch.
pub fn observe<T>(f: impl FnOnce() -> T) -> (T, BTreeMap<String, Tensor>) {
    OBSERVED.set(Some(BTreeMap::new()));
    let result = f();
    (result, OBSERVED.take().unwrap_or_default())
}

/// Records a map for [`observe`].
pub(crate) fn show(name: impl Display, map: &Tensor) {
    OBSERVED.with_borrow_mut(|observed| {
        if let Some(observed) = observed {
            observed.insert(name.to_string(), map.shallow_clone());
        }
    });
}

/// A configuration that describes no network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{network}: {problem}")]
pub struct ConfigError {
    /// The network, as its published config names it (`_class_name`).
    pub network: &'static str,
    /// The reason, and what would work.
    pub problem: String,
}

/// Fails with `problem` unless `right`.
pub(crate) fn require(right: bool, network: &'static str, problem: impl FnOnce() -> String) -> Result<(), ConfigError> {
    if right { Ok(()) } else { Err(ConfigError { network, problem: problem() }) }
}

/// The largest size of a network that is taken: a width, or a number of channels, tokens or pixels. Published networks stay
/// below a third of it, and products of three such numbers do not overflow.
pub(crate) const MAX_SIZE: i64 = 1 << 20;
/// The largest number of layers that is taken, and of levels, between two of which a map shrinks by 2.
pub(crate) const MAX_LAYERS: i64 = 1000;
pub(crate) const MAX_LEVELS: usize = 16;

/// Checks that sizes, with their names, are from 1 to a highest value.
pub(crate) fn require_sizes(network: &'static str, highest: i64, sizes: &[(&str, i64)]) -> Result<(), ConfigError> {
    match sizes.iter().find(|(_, size)| !(1..=highest).contains(size)) {
        None => Ok(()),
        Some((name, size)) => {
            Err(ConfigError { network, problem: format!("{name} {size} has to be from 1 to {highest}") })
        }
    }
}

/// Checks the widths of the levels: at least one, each from 1 to [`MAX_SIZE`] and divisible into `groups`.
pub(crate) fn require_widths(network: &'static str, widths: &[i64], groups: i64) -> Result<(), ConfigError> {
    require((1..=MAX_LEVELS).contains(&widths.len()), network, || {
        format!("block_out_channels has {} widths, give one per level, of 1 to {MAX_LEVELS} levels", widths.len())
    })?;
    widths
        .iter()
        .try_for_each(|width| require_sizes(network, MAX_SIZE, &[("a width in block_out_channels", *width)]))?;
    require(groups > 0 && widths.iter().all(|width| width % groups == 0), network, || {
        format!(
            "every width in block_out_channels {widths:?} has to be a positive multiple of norm_num_groups {groups}"
        )
    })
}

/// Declares a fully connected layer: `weight` [out, in], `bias` `[out]`.
pub(crate) fn linear(vs: nn::Path, inputs: i64, outputs: i64) -> nn::Linear {
    let init = uniform(inputs);
    nn::linear(vs, inputs, outputs, nn::LinearConfig { ws_init: init, bs_init: Some(init), bias: true })
}

/// Declares a fully connected layer without bias.
pub(crate) fn linear_no_bias(vs: nn::Path, inputs: i64, outputs: i64) -> nn::Linear {
    nn::linear(vs, inputs, outputs, nn::LinearConfig { ws_init: uniform(inputs), bs_init: None, bias: false })
}

/// Declares a fully connected layer that starts at zero.
pub(crate) fn zero_linear(vs: nn::Path, inputs: i64, outputs: i64) -> nn::Linear {
    let zero = nn::Init::Const(0.);
    nn::linear(vs, inputs, outputs, nn::LinearConfig { ws_init: zero, bs_init: Some(zero), bias: true })
}

/// Group normalisation with an affine output.
#[derive(Debug)]
pub(crate) struct GroupNorm {
    norm: nn::GroupNorm,
    /// True if each group is one channel.
    single: bool,
}

/// Declares a group normalisation of maps [B, channels, H, W].
pub(crate) fn group_norm(vs: nn::Path, groups: i64, channels: i64, eps: f64) -> GroupNorm {
    let norm = nn::group_norm(vs, groups, channels, nn::GroupNormConfig { eps, ..Default::default() });
    GroupNorm { norm, single: groups == channels }
}

impl Module for GroupNorm {
    /// Normalises a map [B, channels, H, W].
    ///
    /// If a group is one channel, most terms of the sums in the backward pass cancel. libtorch's sums over
    /// channels-last maps on the CPU keep too few digits of the rest: gradients differ by 2e-4 from those of the
    /// reference implementation. Such maps are therefore normalised in the plain layout [B, C, H, W].
    fn forward(&self, x: &Tensor) -> Tensor {
        if self.single && x.requires_grad() && x.device() == Device::Cpu {
            return channels_last(&self.norm.forward(&x.contiguous()));
        }
        self.norm.forward(x)
    }
}

/// Normalises each channel of each row of [B, C, H, W] to mean 0 and variance 1.
///
/// The map is flattened first, because libtorch normalises the view [1, B·C, H, W] of a map of four dimensions. If B is
/// 1, the gradient of that view may be channels-last although its strides do not say so, and batch normalisation on the
/// CPU reads it as plain: every channel gets the gradients of others. Maps of three dimensions have only one layout.
pub(crate) fn instance_norm(x: &Tensor, eps: f64) -> Tensor {
    let none = None::<&Tensor>;
    x.flatten(2, 3).instance_norm(none, none, none, none, true, 0., eps, false).view_as(x)
}

/// Declares a layer normalisation over the last dimension.
pub(crate) fn layer_norm(vs: nn::Path, width: i64, eps: f64) -> nn::LayerNorm {
    nn::layer_norm(vs, vec![width], nn::LayerNormConfig { eps, ..Default::default() })
}

/// Returns the SiLU of a map that the caller gives up: computed in place, unless a gradient needs the map. Fresh memory
/// for a large map costs more than the arithmetic.
pub(crate) fn silu(mut x: Tensor) -> Tensor {
    if x.requires_grad() { x.silu() } else { x.silu_() }
}

/// Computes multi-head attention of `q` [B, N, C] over `k`, `v` [B or 1, M, C] -> [B, N, C]; scale 1/sqrt(C / heads).
pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: i64, causal: bool) -> Tensor {
    let (b, n, c) = q.size3().unwrap();
    // [B, heads, tokens, C / heads]; a context that the rows share is expanded, not copied
    let split = |x: &Tensor| x.view([x.size()[0], -1, heads, c / heads]).transpose(1, 2);
    let shared = |x: &Tensor| split(x).expand([b, -1, -1, -1], false);
    let mask = None::<&Tensor>;
    let out = Tensor::scaled_dot_product_attention(&split(q), &shared(k), &shared(v), mask, 0., causal, None, false);
    out.transpose(1, 2).reshape([b, n, c])
}

/// Reshapes [B, C, H, W] -> [B, H·W, C]; without a copy if the memory is channels-last.
pub(crate) fn to_tokens(x: &Tensor) -> Tensor {
    let (b, c, _, _) = x.size4().unwrap();
    x.permute([0, 2, 3, 1]).reshape([b, -1, c])
}

/// Reshapes [B, H·W, C] to the [B, C, H, W] of `like`, in channels-last memory, without a copy.
pub(crate) fn to_image(tokens: &Tensor, like: &Tensor) -> Tensor {
    let (b, c, h, w) = like.size4().unwrap();
    tokens.view([b, h, w, c]).permute([0, 3, 1, 2])
}

/// Lays [B, C, H, W] out channels-last, in which convolutions, group normalisation and attention need no reordering.
pub(crate) fn channels_last(x: &Tensor) -> Tensor {
    x.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}

/// The residual block of diffusers' VAE and UNet. Its `emb` is the time embedding after the SiLU.
#[derive(Debug)]
pub(crate) struct ResnetBlock2D {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Option<nn::Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
}

impl ResnetBlock2D {
    /// Declares the parameters; `temb_channels` is None in the VAE.
    pub(crate) fn new(
        vs: nn::Path,
        inputs: i64,
        outputs: i64,
        temb_channels: Option<i64>,
        groups: i64,
        eps: f64,
    ) -> Self {
        Self {
            norm1: group_norm(&vs / "norm1", groups, inputs, eps),
            conv1: conv3x3(&vs / "conv1", inputs, outputs),
            time_emb_proj: temb_channels.map(|channels| linear(&vs / "time_emb_proj", channels, outputs)),
            norm2: group_norm(&vs / "norm2", groups, outputs, eps),
            conv2: conv3x3(&vs / "conv2", outputs, outputs),
            conv_shortcut: (inputs != outputs).then(|| conv2d(&vs / "conv_shortcut", inputs, outputs, 1, 1, 0)),
        }
    }

    /// Maps `x` [B, inputs, H, W] and `emb` [B, temb_channels] to [B, outputs, H, W].
    pub(crate) fn forward(&self, x: &Tensor, emb: Option<&Tensor>) -> Tensor {
        let mut h = self.conv1.forward(&silu(self.norm1.forward(x)));
        if let Some((proj, emb)) = self.time_emb_proj.as_ref().zip(emb) {
            h += proj.forward(emb).unsqueeze(-1).unsqueeze(-1);
        }
        let mut h = self.conv2.forward(&silu(self.norm2.forward(&h)));
        match &self.conv_shortcut {
            Some(shortcut) => h += shortcut.forward(x),
            None => h += x,
        }
        h
    }
}

/// Nearest-neighbour upsampling to [H, W], then a 3×3 convolution.
#[derive(Debug)]
pub(crate) struct Upsample2D {
    conv: Conv2d,
}

impl Upsample2D {
    pub(crate) fn new(vs: nn::Path, channels: i64) -> Self {
        Self { conv: conv3x3(&vs / "conv", channels, channels) }
    }

    pub(crate) fn forward(&self, x: &Tensor, size: [i64; 2]) -> Tensor {
        self.conv.forward(&x.upsample_nearest2d(size, None, None))
    }
}

/// Runs `f` without gradients, on one thread; for tests.
#[cfg(test)]
pub(crate) fn quietly<T>(f: impl FnOnce() -> T) -> T {
    tch::set_num_threads(1);
    tch::no_grad(f)
}
