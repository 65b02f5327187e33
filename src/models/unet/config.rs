//! The configuration of the denoiser, as it is published.

use super::super::{
    checkpoint::{Checkpoint, CheckpointError},
    latent_diffusion::{
        UNET,
        names::{self, Names},
    },
    nn::{ConfigError, MAX_LAYERS, MAX_SIZE, require, require_sizes, require_widths},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

const NAME: &str = "UNet2DConditionModel";

/// A level on the way down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DownBlockType {
    /// Residual blocks, each followed by self-attention and attention to the context.
    CrossAttnDownBlock2D,
    /// Residual blocks alone.
    DownBlock2D,
}

/// A level on the way up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum UpBlockType {
    /// Residual blocks, each followed by self-attention and attention to the context.
    CrossAttnUpBlock2D,
    /// Residual blocks alone.
    UpBlock2D,
}

/// One number for all levels, or one per level.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum PerLevel {
    /// The same at every level.
    Same(i64),
    /// One per level, the widest map first.
    Each(Vec<i64>),
}

impl PerLevel {
    fn at(&self, level: usize) -> i64 {
        match self {
            Self::Same(value) => *value,
            Self::Each(values) => values[level],
        }
    }

    fn fits(&self, levels: usize) -> bool {
        matches!(self, Self::Each(values) if values.len() == levels) || matches!(self, Self::Same(_))
    }
}

/// `unet/config.json`; the defaults are Stable Diffusion 1.5.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct UNet2DConditionConfig {
    /// Channels of the noisy latent.
    pub in_channels: i64,
    /// Channels of the prediction.
    pub out_channels: i64,
    /// Width of each level; the map shrinks by 2 between two levels.
    pub block_out_channels: Vec<i64>,
    /// The kind of each level on the way down.
    pub down_block_types: Vec<DownBlockType>,
    /// The kind of each level on the way up, deepest first; absent: the mirror of `down_block_types`.
    pub up_block_types: Option<Vec<UpBlockType>>,
    /// Residual blocks per level on the way down; one more on the way up.
    pub layers_per_block: i64,
    /// Transformer blocks after each residual block that has attention.
    pub transformer_layers_per_block: i64,
    /// Width of a token of the context.
    pub cross_attention_dim: i64,
    /// The number of heads, despite the name.
    pub attention_head_dim: PerLevel,
    /// The number of heads, in configs that name it so; overrides `attention_head_dim`.
    pub num_attention_heads: Option<PerLevel>,
    /// True if the projections around the transformers are stored as matrices (SD 2), false if as 1×1 convolutions (SD
    /// 1).
    pub use_linear_projection: bool,
    /// Groups of each group normalisation; divides every width.
    pub norm_num_groups: i64,
    /// Epsilon of the group normalisations of the residual blocks and of the output.
    pub norm_eps: f64,
    /// True if the time embedding is [cos, sin] instead of [sin, cos].
    pub flip_sin_to_cos: bool,
    /// The shift of the slowest frequency of the time embedding.
    pub freq_shift: f64,
}

impl Default for UNet2DConditionConfig {
    fn default() -> Self {
        use DownBlockType::{CrossAttnDownBlock2D, DownBlock2D};
        Self {
            in_channels: 4,
            out_channels: 4,
            block_out_channels: vec![320, 640, 1280, 1280],
            down_block_types: vec![CrossAttnDownBlock2D, CrossAttnDownBlock2D, CrossAttnDownBlock2D, DownBlock2D],
            up_block_types: None,
            layers_per_block: 2,
            transformer_layers_per_block: 1,
            cross_attention_dim: 768,
            attention_head_dim: PerLevel::Same(8),
            num_attention_heads: None,
            use_linear_projection: false,
            norm_num_groups: 32,
            norm_eps: 1e-5,
            flip_sin_to_cos: true,
            freq_shift: 0.,
        }
    }
}

impl UNet2DConditionConfig {
    pub(super) fn heads(&self, level: usize) -> i64 {
        self.num_attention_heads.as_ref().unwrap_or(&self.attention_head_dim).at(level)
    }

    /// Returns for each level on the way up, deepest first, true if it has attention.
    pub(in super::super) fn up_attends(&self) -> Vec<bool> {
        match &self.up_block_types {
            Some(types) => types.iter().map(|kind| *kind == UpBlockType::CrossAttnUpBlock2D).collect(),
            None => {
                self.down_block_types.iter().rev().map(|kind| *kind == DownBlockType::CrossAttnDownBlock2D).collect()
            }
        }
    }

    /// Returns the width of the time embedding.
    pub(super) fn time_embed_dim(&self) -> i64 {
        4 * self.block_out_channels[0]
    }

    /// Returns the channels of the skips, in the order in which they are made: that of the input convolution, then
    /// those of each layer and each downsampling of each level.
    pub(in super::super) fn skip_channels(&self) -> Vec<i64> {
        let widths = &self.block_out_channels;
        let per_level = |(level, width): (usize, &i64)| {
            let downsample = usize::from(level + 1 < widths.len());
            vec![*width; self.layers_per_block as usize + downsample]
        };
        std::iter::once(widths[0]).chain(widths.iter().enumerate().flat_map(per_level)).collect()
    }

    /// Returns the same weights under the names of this network, which are those of diffusers, from any layout in which
    /// they are published: diffusers', or latent-diffusion's, alone or below `model.diffusion_model.` of a file with
    /// all parts.
    ///
    /// # Errors
    /// [`CheckpointError::Format`] if two tensors would get one name.
    pub fn canonical(&self, published: Checkpoint) -> Result<Checkpoint, CheckpointError> {
        names::canonical(published, UNET, &self.names())
    }

    /// Checks that a network can be built from these values.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let widths = &self.block_out_channels;
        require_widths(NAME, widths, self.norm_num_groups)?;
        require(widths[0] % 2 == 0, NAME, || format!("the first width {} has to be even", widths[0]))?;
        require(self.down_block_types.len() == widths.len() && self.up_attends().len() == widths.len(), NAME, || {
            let levels = widths.len();
            format!(
                "block_out_channels has {levels} levels, so down_block_types and up_block_types need {levels} entries each"
            )
        })?;
        let heads = self.num_attention_heads.as_ref().unwrap_or(&self.attention_head_dim);
        require(heads.fits(widths.len()), NAME, || {
            format!("attention_head_dim needs one number, or {} of them", widths.len())
        })?;
        for (level, width) in widths.iter().enumerate() {
            let heads = heads.at(level);
            require(heads > 0 && width % heads == 0, NAME, || {
                format!("attention_head_dim {heads} is the number of heads and has to divide the width {width}")
            })?;
        }
        let sizes = [
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("cross_attention_dim", self.cross_attention_dim),
        ];
        require_sizes(NAME, MAX_SIZE, &sizes)?;
        let layers = [
            ("layers_per_block", self.layers_per_block),
            ("transformer_layers_per_block", self.transformer_layers_per_block),
        ];
        require_sizes(NAME, MAX_LAYERS, &layers)
    }
}

impl UNet2DConditionConfig {
    /// Returns the modules of the way down and the middle in a file of latent-diffusion, which numbers blocks through
    /// all levels and counts a downsampling as a block of its own.
    pub(crate) fn encoder_names(&self) -> Names {
        let mut names = Names::default();
        names.add("time_embed.0", "time_embedding.linear_1");
        names.add("time_embed.2", "time_embedding.linear_2");
        names.add("input_blocks.0.0", "conv_in");
        let levels = self.block_out_channels.len();
        let mut block = 0;
        for level in 0..levels {
            for layer in 0..self.layers_per_block {
                block += 1;
                names.resnet(&format!("input_blocks.{block}.0"), &format!("down_blocks.{level}.resnets.{layer}"));
                names.add(format!("input_blocks.{block}.1"), format!("down_blocks.{level}.attentions.{layer}"));
            }
            if level + 1 < levels {
                block += 1;
                let ours = format!("down_blocks.{level}.downsamplers.0.conv");
                names.add(format!("input_blocks.{block}.0.op"), ours);
            }
        }
        names.resnet("middle_block.0", "mid_block.resnets.0");
        names.add("middle_block.1", "mid_block.attentions.0");
        names.resnet("middle_block.2", "mid_block.resnets.1");
        names
    }

    /// Returns the modules of `model.diffusion_model`.
    fn names(&self) -> Names {
        let mut names = self.encoder_names();
        let layers = self.layers_per_block + 1;
        for (level, attends) in self.up_attends().into_iter().enumerate() {
            for layer in 0..layers {
                let block = level as i64 * layers + layer;
                names.resnet(&format!("output_blocks.{block}.0"), &format!("up_blocks.{level}.resnets.{layer}"));
                if attends {
                    names.add(format!("output_blocks.{block}.1"), format!("up_blocks.{level}.attentions.{layer}"));
                }
            }
            // the upsampling is the last part of a level's last block
            let (block, part) = ((level as i64 + 1) * layers - 1, if attends { 2 } else { 1 });
            names.add(format!("output_blocks.{block}.{part}.conv"), format!("up_blocks.{level}.upsamplers.0.conv"));
        }
        names.add("out.0", "conv_norm_out");
        names.add("out.2", "conv_out");
        names
    }
}
