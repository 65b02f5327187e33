//! The denoiser of features: a small U-Net that only adds to the map that it is given.
//!
//! The map goes from the input to the output through sums. A residual block adds to it, and the way up adds the map of
//! the way down that has its size, where Stable Diffusion's U-Net appends it. Nothing on this path is normalised, so
//! that a sample of unusual features reaches the prediction at its own scale: samples are scored at low noise levels,
//! where the noise that is seen in them is a small difference, many times enlarged. To add is also less work than to
//! append, after which a convolution reads twice as many channels.
//!
//! The input itself, each channel times a gain, is a summand of the output. A network that predicts the noise then only has to
//! find the features in it, which vary in few directions, where the noise varies in as many as there are channels, which a
//! narrower map inside cannot pass on.
//!
//! A finer map is read as several coarser ones, interleaved: with a `dilation` of 2, the even and the odd rows of the even and the odd
//! columns. Every layer sees as much of the image as on the coarser map, and a training that draws one of the four for each batch takes as
//! long as on it, while every cell of the finer map is scored.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{
    Kind, Tensor,
    nn::{self, Module},
};

use super::{
    conv::{Conv2d, conv2d, conv3x3, zero_conv},
    nn::{
        ConfigError, GroupNorm, MAX_LEVELS, MAX_SIZE, channels_last, group_norm, linear, require, require_sizes, silu,
        zero_linear,
    },
    recompute::{Pass, segment},
    unet::timestep_embedding,
};

const NAME: &str = "FeatureUNet";
const EPS: f64 = 1e-5;

/// The size of a denoiser of features.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FeatureUNetSize {
    /// Channels of the maps inside, at every level.
    pub width: i64,
    /// The number of levels; the map shrinks by 2 between two of them.
    pub levels: usize,
    /// Groups of each group normalisation; divides `width`.
    pub norm_num_groups: i64,
    /// The step in rows and columns between neighbours: a map is read as `dilation`² maps, interleaved, each by itself. Each batch
    /// of the training draws one of them.
    #[serde(skip_serializing_if = "is_one")]
    pub dilation: i64,
}

impl Default for FeatureUNetSize {
    fn default() -> Self {
        Self { width: 128, levels: 3, norm_num_groups: 8, dilation: 1 }
    }
}

fn is_one(dilation: &i64) -> bool {
    *dilation == 1
}

impl FeatureUNetSize {
    /// Checks that a network can be built from these values.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let Self { width, levels, norm_num_groups, dilation } = *self;
        let sizes = [("width", width), ("norm_num_groups", norm_num_groups), ("dilation", dilation)];
        require_sizes(NAME, MAX_SIZE, &sizes)?;
        require(width % 2 == 0 && width % norm_num_groups == 0, NAME, || {
            format!("width {width} has to be even and a multiple of norm_num_groups {norm_num_groups}")
        })?;
        require((1..=MAX_LEVELS).contains(&levels), NAME, || {
            format!("levels {levels} has to be from 1 to {MAX_LEVELS}")
        })
    }

    /// Checks that a grid of this height and width is as large as `dilation`.
    pub fn check_grid(&self, [height, width]: [usize; 2]) -> Result<(), String> {
        let (dilation, side) = (self.dilation, height.min(width));
        if dilation <= side as i64 {
            return Ok(());
        }
        Err(format!(
            "dilation {dilation} is larger than the grid of the latents, {height}x{width}; write one up to {side}"
        ))
    }

    /// The number of maps that are interleaved in one.
    pub fn phases(&self) -> i64 {
        self.dilation * self.dilation
    }

    /// Returns a view of map `phase` of those that are interleaved in `x` [B, C, H, W].
    pub fn phase(&self, x: &Tensor, phase: i64) -> Tensor {
        let every = |x: &Tensor, dim, first| x.slice(dim, first, None, self.dilation);
        every(&every(x, 2, phase / self.dilation), 3, phase % self.dilation)
    }
}

/// A [`FeatureUNet`]: its size, and the widths of what it reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureUNetConfig {
    /// Channels of the features.
    pub in_channels: i64,
    /// Width of a token of the captions.
    pub caption_dim: i64,
    /// The size of the network.
    pub size: FeatureUNetSize,
}

/// A residual block whose second normalisation is scaled and shifted by the timestep and the caption.
#[derive(Debug)]
struct Block {
    norm1: GroupNorm,
    conv1: Conv2d,
    scale_shift: nn::Linear,
    norm2: GroupNorm,
    conv2: Conv2d,
}

impl Block {
    /// Declares the parameters; a new block adds nothing.
    fn new(vs: &nn::Path, size: &FeatureUNetSize) -> Self {
        let FeatureUNetSize { width, norm_num_groups, .. } = *size;
        let norm = |name: &str| group_norm(vs / name, norm_num_groups, width, EPS);
        Self {
            norm1: norm("norm1"),
            conv1: conv3x3(vs / "conv1", width, width),
            scale_shift: linear(vs / "scale_shift", width, 2 * width),
            norm2: norm("norm2"),
            conv2: zero_conv(vs / "conv2", width, width, 3),
        }
    }

    /// Maps `x` [B, width, H, W] and `emb` [B, width] to [B, width, H, W].
    fn forward(&self, x: &Tensor, emb: &Tensor) -> Tensor {
        let h = self.conv1.forward(&silu(self.norm1.forward(x)));
        let scale_shift = self.scale_shift.forward(emb).unsqueeze(-1).unsqueeze(-1).chunk(2, 1);
        let h = self.norm2.forward(&h) * (&scale_shift[0] + 1.) + &scale_shift[1];
        x + self.conv2.forward(&silu(h))
    }
}

/// The maps of one size.
#[derive(Debug)]
struct Level {
    /// Halves the map of the level above; the widest level has none.
    shrink: Option<Conv2d>,
    down: Vec<Block>,
    /// The deepest level has none.
    up: Option<Block>,
}

/// Timestep and caption as one vector.
#[derive(Debug)]
struct Embedding {
    time_1: nn::Linear,
    time_2: nn::Linear,
    /// The weight of a token among those of its caption, before a softmax.
    attend: nn::Linear,
    caption: nn::Linear,
    width: i64,
}

impl Embedding {
    fn new(vs: &nn::Path, config: &FeatureUNetConfig) -> Self {
        let (width, caption_dim) = (config.size.width, config.caption_dim);
        Self {
            time_1: linear(vs / "time_1", width, width),
            time_2: linear(vs / "time_2", width, width),
            attend: linear(vs / "attend", caption_dim, 1),
            caption: linear(vs / "caption", caption_dim, width),
            width,
        }
    }

    /// Maps `t` `[B]` and `context` [B or 1, tokens, caption_dim] to [B, width], after a SiLU.
    fn forward(&self, t: &Tensor, context: &Tensor) -> Tensor {
        let sinusoids = timestep_embedding(t, self.width, true, 0.).to_kind(self.time_1.ws.kind());
        let time = self.time_2.forward(&self.time_1.forward(&sinusoids).silu());
        let weights = self.attend.forward(context).softmax(1, None::<Kind>); // [B, tokens, 1]
        let caption = (weights * context).sum_dim_intlist([1_i64].as_slice(), false, None::<Kind>);
        (time + self.caption.forward(&caption)).silu()
    }
}

/// The network.
#[derive(Debug)]
pub struct FeatureUNet {
    embedding: Embedding,
    conv_in: Conv2d,
    levels: Vec<Level>,
    conv_out: Conv2d,
    /// The gain of each channel of the input, from timestep and caption; 0 in a new network.
    gain: nn::Linear,
    size: FeatureUNetSize,
}

impl FeatureUNet {
    /// Declares the parameters under `vs`; fails if the config describes no network.
    pub fn new(vs: &nn::Path<'_>, config: &FeatureUNetConfig) -> Result<Self, ConfigError> {
        let FeatureUNetConfig { in_channels, caption_dim, ref size } = *config;
        size.validate()?;
        require_sizes(NAME, MAX_SIZE, &[("in_channels", in_channels), ("caption_dim", caption_dim)])?;
        let width = size.width;
        let level = |i: usize| {
            let vs = vs / "levels" / i;
            let shrink = (i > 0).then(|| conv2d(&vs / "shrink", width, width, 3, 2, 1));
            let down = (0..if i == 0 { 1 } else { 2 }).map(|j| Block::new(&(&vs / "down" / j), size)).collect();
            Level { shrink, down, up: (i + 1 < size.levels).then(|| Block::new(&(&vs / "up"), size)) }
        };
        Ok(Self {
            embedding: Embedding::new(&(vs / "embedding"), config),
            conv_in: conv2d(vs / "conv_in", in_channels, width, 1, 1, 0),
            levels: (0..size.levels).map(level).collect(),
            conv_out: conv2d(vs / "conv_out", width, in_channels, 1, 1, 0),
            gain: zero_linear(vs / "gain", width, in_channels),
            size: size.clone(),
        })
    }

    /// Maps noisy features `x` [B, in_channels, H, W], timesteps `t` `[B]` of any kind and the tokens of captions `context` [B or 1,
    /// tokens, caption_dim] to the prediction [B, in_channels, H, W].
    pub fn forward(&self, x: &Tensor, t: &Tensor, context: &Tensor) -> Tensor {
        let prediction = x.empty_like();
        for phase in 0..self.size.phases() {
            let of_phase = self.forward_phase(None, &self.size.phase(x, phase), t, context);
            self.size.phase(&prediction, phase).copy_(&of_phase);
        }
        prediction
    }

    /// Does as [`FeatureUNet::forward`] for one of the interleaved maps, see [`FeatureUNetSize::phase`]. With a `pass`, the maps
    /// inside are not kept, see [`Recompute`](super::recompute).
    pub fn forward_phase<'a>(&'a self, pass: Pass<'_, 'a>, x: &Tensor, t: &Tensor, context: &Tensor) -> Tensor {
        let emb = segment(pass, &[t, context], |inputs| self.embedding.forward(&inputs[0], &inputs[1]));
        let add = |block: &'a Block, x: &Tensor| {
            segment(pass, &[x, &emb], move |inputs| block.forward(&inputs[0], &inputs[1]))
        };
        let input = x;
        let mut x = segment(pass, &[x], |inputs| self.conv_in.forward(&channels_last(&inputs[0])));
        let mut skips = Vec::with_capacity(self.levels.len());
        for level in &self.levels {
            if let Some(shrink) = &level.shrink {
                x = segment(pass, &[&x], |inputs| shrink.forward(&inputs[0]));
            }
            x = level.down.iter().fold(x, |x, block| add(block, &x));
            skips.push(x.shallow_clone());
        }
        for (level, skip) in self.levels.iter().zip(&skips).rev() {
            if let Some(up) = &level.up {
                let (_, _, h, w) = skip.size4().unwrap();
                x = add(up, &(x.upsample_nearest2d([h, w], None, None) + skip));
            }
        }
        segment(pass, &[&x, input, &emb], |inputs| {
            let gain = self.gain.forward(&inputs[2]).unsqueeze(-1).unsqueeze(-1); // [B, in_channels, 1, 1]
            self.conv_out.forward(&inputs[0]) + &inputs[1] * gain
        })
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, nn::VarStore};

    use super::{super::nn::quietly, *};

    fn small() -> FeatureUNetConfig {
        let size = FeatureUNetSize { width: 16, levels: 3, norm_num_groups: 4, dilation: 1 };
        FeatureUNetConfig { in_channels: 6, caption_dim: 12, size }
    }

    fn random(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    #[test]
    fn a_new_network_only_passes_the_map_on() {
        let vs = VarStore::new(Device::Cpu);
        let network = FeatureUNet::new(&vs.root(), &small()).unwrap();
        quietly(|| {
            // Sides that do not divide by the factor of the levels.
            let (x, t, context) = (random(&[3, 6, 7, 5]), Tensor::from_slice(&[1_i64, 500, 999]), random(&[1, 4, 12]));
            let predicted = network.forward(&x, &t, &context);
            assert_eq!(predicted.size(), x.size());
            let twice = network.forward(&(&x * 2.), &t, &context);
            let bias = network.forward(&x.zeros_like(), &t, &context);
            // New blocks add nothing, so that the network is linear. Sums of 16 products of numbers of the order of 1,
            // through two convolutions and two strided ones: 2⁻²⁴ · √(16 · 9) · 4 = 3e-6.
            let error = (twice - &bias - (predicted - &bias) * 2.).abs().max().double_value(&[]);
            assert!(error < 3e-5, "{error}");
        });
    }

    #[test]
    fn timestep_and_caption_change_what_a_trained_network_predicts() {
        tch::manual_seed(5);
        let vs = VarStore::new(Device::Cpu);
        let network = FeatureUNet::new(&vs.root(), &small()).unwrap();
        quietly(|| {
            let variables = vs.variables();
            variables
                .iter()
                .filter(|(name, _)| name.ends_with("conv2.weight"))
                .for_each(|(_, weight)| weight.shallow_clone().copy_(&random(&weight.size())));
            let (x, context) = (random(&[2, 6, 8, 8]), random(&[2, 4, 12]));
            let at = |t: i64, context: &Tensor| network.forward(&x, &Tensor::from_slice(&[t, t]), context);
            let differ = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]) > 1e-3;
            let first = at(1, &context);
            assert!(differ(&first, &at(900, &context)));
            assert!(differ(&first, &at(1, &context.flip([0_i64]))));
            // The order of tokens is the text encoder's matter.
            assert!(!differ(&first, &at(1, &context.flip([1_i64]))));
        });
    }

    #[test]
    fn channels_beyond_the_width_pass_by_their_gain() {
        let size = FeatureUNetSize { width: 4, levels: 1, norm_num_groups: 2, dilation: 1 };
        let vs = VarStore::new(Device::Cpu);
        let network = FeatureUNet::new(&vs.root(), &FeatureUNetConfig { size, ..small() }).unwrap();
        quietly(|| {
            for (name, value) in [("conv_out.weight", 0.), ("conv_out.bias", 0.), ("gain.bias", 2.5)] {
                let _ = vs.variables()[name].shallow_clone().fill_(value);
            }
            let (x, context) = (random(&[1, 6, 3, 3]), random(&[1, 4, 12]));
            let passed = network.forward(&x, &Tensor::from_slice(&[1_i64]), &context);
            assert_eq!(passed, x * 2.5);
        });
    }

    #[test]
    fn interleaved_maps_do_not_see_each_other() {
        let size = FeatureUNetSize { dilation: 2, ..small().size };
        let vs = VarStore::new(Device::Cpu);
        let network = FeatureUNet::new(&vs.root(), &FeatureUNetConfig { size: size.clone(), ..small() }).unwrap();
        quietly(|| {
            // The map has five rows, so that two of the interleaved maps have three and two have two.
            let (x, t, context) = (random(&[2, 6, 5, 8]), Tensor::from_slice(&[1_i64, 9]), random(&[1, 4, 12]));
            let predicted = network.forward(&x, &t, &context);
            for phase in 0..4 {
                let alone = network.forward_phase(None, &size.phase(&x, phase), &t, &context);
                assert_eq!(size.phase(&predicted, phase), alone);
            }
            let (first, last) = (size.phase(&x, 0), size.phase(&x, 3));
            assert_eq!((first.size(), last.size()), (vec![2, 6, 3, 4], vec![2, 6, 2, 4]));
            assert_eq!(last.double_value(&[1, 2, 1, 3]), x.double_value(&[1, 2, 3, 7]));
        });
    }

    #[test]
    fn a_size_that_describes_no_network_is_refused() {
        let refusal = |width, levels, norm_num_groups| {
            let size = FeatureUNetSize { width, levels, norm_num_groups, dilation: 1 };
            size.validate().unwrap_err().to_string()
        };
        assert!(refusal(20, 3, 8).contains("a multiple of norm_num_groups 8"));
        assert!(refusal(0, 3, 8).contains("width 0 has to be from 1"));
        assert!(refusal(16, 0, 8).contains("levels 0 has to be from 1"));
        assert!(refusal(16, 3, 0).contains("norm_num_groups 0 has to be from 1"));
        let apart = FeatureUNetSize { dilation: 0, ..small().size }.validate().unwrap_err().to_string();
        assert!(apart.contains("dilation 0 has to be from 1"), "{apart}");
    }
}
