//! The module names of CompVis latent-diffusion, each with ours, which are those of diffusers.

use super::super::{
    checkpoint::{Checkpoint, CheckpointError},
    control::ControlNetConfig,
    unet::UNet2DConditionConfig,
    vae::AutoencoderKlConfig,
};
use std::collections::BTreeMap;

/// Names of modules: another layout's -> ours.
#[derive(Debug, Default)]
pub(crate) struct Names(BTreeMap<String, String>);

impl Names {
    /// Our name of a parameter; None where the table has no module that it lies in.
    pub(crate) fn translate(&self, key: &str) -> Option<String> {
        // the innermost module that has an entry
        let within = |(dot, _): (usize, &str)| Some(format!("{}{}", self.0.get(&key[..dot])?, &key[dot..]));
        key.rmatch_indices('.').find_map(within)
    }

    fn add(&mut self, theirs: impl Into<String>, ours: impl Into<String>) {
        self.0.insert(theirs.into(), ours.into());
    }

    fn resnet(&mut self, theirs: &str, ours: &str) {
        for (their, our) in [
            ("in_layers.0", "norm1"),
            ("in_layers.2", "conv1"),
            ("emb_layers.1", "time_emb_proj"),
            ("out_layers.0", "norm2"),
            ("out_layers.3", "conv2"),
            ("skip_connection", "conv_shortcut"),
        ] {
            self.add(format!("{theirs}.{their}"), format!("{ours}.{our}"));
        }
    }

    /// The way down and the middle. Latent-diffusion counts through all levels, a downsampling being a block of its own.
    fn encoder(config: &UNet2DConditionConfig) -> Self {
        let mut names = Self::default();
        names.add("time_embed.0", "time_embedding.linear_1");
        names.add("time_embed.2", "time_embedding.linear_2");
        names.add("input_blocks.0.0", "conv_in");
        let levels = config.block_out_channels.len();
        let mut block = 0;
        for level in 0..levels {
            for layer in 0..config.layers_per_block {
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

    /// Of `model.diffusion_model`.
    pub(crate) fn unet(config: &UNet2DConditionConfig) -> Self {
        let mut names = Self::encoder(config);
        let layers = config.layers_per_block + 1;
        for (level, attends) in config.up_attends().into_iter().enumerate() {
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

    /// Of `control_model`: a ControlNet, or a semantic-guided network with or without its fusion block.
    pub(crate) fn control(config: &ControlNetConfig) -> Self {
        let mut names = Self::encoder(&config.unet);
        let blocks = 2 * (config.conditioning_embedding_out_channels.len() - 1);
        names.add("input_hint_block.0", "controlnet_cond_embedding.conv_in");
        for block in 0..blocks {
            let theirs = format!("input_hint_block.{}", 2 * (block + 1));
            names.add(theirs, format!("controlnet_cond_embedding.blocks.{block}"));
        }
        names.add(format!("input_hint_block.{}", 2 * (blocks + 1)), "controlnet_cond_embedding.conv_out");
        for skip in 0..config.unet.skip_channels().len() {
            names.add(format!("zero_convs.{skip}.0"), format!("controlnet_down_blocks.{skip}"));
        }
        names.add("middle_block_out.0", "controlnet_mid_block");
        for (from, to) in config.fusion_pairs() {
            names.add(format!("down{from}{to}.0"), format!("fusion.down{from}{to}"));
        }
        names
    }

    /// Of `first_stage_model`, and the names that the attention had in diffusers before 0.17.
    pub(crate) fn autoencoder(config: &AutoencoderKlConfig) -> Self {
        let mut names = Self::default();
        let levels = config.block_out_channels.len();
        for (side, theirs, ours, resize, layers) in [
            ("encoder", "down", "down_blocks", "downsample", config.layers_per_block),
            ("decoder", "up", "up_blocks", "upsample", config.layers_per_block + 1),
        ] {
            for level in 0..levels {
                // latent-diffusion counts the decoder's levels from the image, diffusers from the latent
                let our_level = if side == "decoder" { levels - 1 - level } else { level };
                let (theirs, ours) = (format!("{side}.{theirs}.{level}"), format!("{side}.{ours}.{our_level}"));
                for layer in 0..layers {
                    let (theirs, ours) = (format!("{theirs}.block.{layer}"), format!("{ours}.resnets.{layer}"));
                    names.add(format!("{theirs}.nin_shortcut"), format!("{ours}.conv_shortcut"));
                    names.add(theirs, ours);
                }
                names.add(format!("{theirs}.{resize}"), format!("{ours}.{resize}rs.0"));
            }
            let mid = format!("{side}.mid_block");
            names.add(format!("{side}.mid.block_1"), format!("{mid}.resnets.0"));
            names.add(format!("{side}.mid.block_2"), format!("{mid}.resnets.1"));
            names.add(format!("{side}.norm_out"), format!("{side}.conv_norm_out"));
            for (theirs, old, ours) in [
                ("norm", "group_norm", "group_norm"),
                ("q", "query", "to_q"),
                ("k", "key", "to_k"),
                ("v", "value", "to_v"),
                ("proj_out", "proj_attn", "to_out.0"),
            ] {
                names.add(format!("{side}.mid.attn_1.{theirs}"), format!("{mid}.attentions.0.{ours}"));
                names.add(format!("{mid}.attentions.0.{old}"), format!("{mid}.attentions.0.{ours}"));
            }
        }
        names
    }
}

/// The part of `file` below `prefix` under our names. What is in no table keeps its name: it is ours already, or loading
/// says that it is unexpected.
pub(crate) fn canonical(file: Checkpoint, prefix: &str, names: &Names) -> Result<Checkpoint, CheckpointError> {
    file.part(prefix).rename(|key| Some(names.translate(key).unwrap_or_else(|| key.to_owned())))
}
