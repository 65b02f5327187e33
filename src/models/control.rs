//! Image conditions for the denoiser: ControlNet (Zhang et al. 2023) and the semantic-guided network of DiAD and
//! VLMDiff.
//!
//! Both run a trainable copy of the UNet's way down on the noisy latent plus an encoded condition image, and send its
//! maps through zero-initialised 1×1 convolutions to the UNet. They differ in the further processing of these maps.

use super::{
    checkpoint::{Checkpoint, CheckpointError},
    conv::{Conv2d, conv2d, conv3x3, zero_conv},
    latent_diffusion::{
        CONTROL,
        names::{self, Names},
    },
    nn::{ConfigError, MAX_LEVELS, MAX_SIZE, channels_last, instance_norm, require, require_sizes, show, silu},
    recompute::{Pass, segment},
    residuals::ControlResiduals,
    unet::{Encoder, UNet2DConditionConfig},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use tch::{
    Tensor,
    nn::{self, Init, Module},
};

const NAME: &str = "ControlNetModel";

/// The way in which the maps of the trainable copy are brought to the UNet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ControlForm {
    /// Each map as its 1×1 convolution leaves it (Zhang et al. 2023).
    #[default]
    #[serde(rename = "controlnet")]
    ControlNet,
    /// The maps of the deepest level through a SiLU, after the spatial feature fusion where there is one (DiAD,
    /// VLMDiff).
    SemanticGuided,
    /// None: the UNet alone, without a control branch.
    None,
}

/// `config.json` of a ControlNet; the defaults fit Stable Diffusion 1.5.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ControlNetConfig {
    /// The way down, as in the UNet.
    #[serde(flatten)]
    pub unet: UNet2DConditionConfig,
    /// Channels of the condition image.
    pub conditioning_channels: i64,
    /// Widths of the condition's encoder, which halves the image between two of them: n widths for an image 2^(n − 1)
    /// times as large as the latent.
    pub conditioning_embedding_out_channels: Vec<i64>,
    /// The way in which the maps are brought to the UNet. This and the following keys are not published ones: a
    /// published ControlNet is of the form `controlnet` and sends all maps.
    pub form: ControlForm,
    /// True if the semantic-guided network has its spatial feature fusion, which adds the maps of the level above the
    /// deepest to those of the deepest.
    pub fusion: bool,
    /// True if only the middle reaches the UNet and, in the semantic-guided network, the maps of the deepest level;
    /// else all maps do.
    pub only_mid_control: bool,
}

impl Default for ControlNetConfig {
    fn default() -> Self {
        Self {
            unet: UNet2DConditionConfig::default(),
            conditioning_channels: 3,
            conditioning_embedding_out_channels: vec![16, 32, 96, 256],
            form: ControlForm::ControlNet,
            fusion: false,
            only_mid_control: false,
        }
    }
}

impl ControlNetConfig {
    /// Returns true if there is a control branch.
    pub fn has_branch(&self) -> bool {
        self.form != ControlForm::None
    }

    /// Returns the pixels of the condition per latent cell, along each side.
    pub fn factor(&self) -> i64 {
        1 << (self.conditioning_embedding_out_channels.len() - 1)
    }

    /// Checks that a network can be built from these values.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.unet.validate()?;
        let widths = &self.conditioning_embedding_out_channels;
        require((1..=MAX_LEVELS).contains(&widths.len()), NAME, || {
            format!(
                "conditioning_embedding_out_channels has {} widths, give one per resolution of the condition, 1 to {MAX_LEVELS}",
                widths.len()
            )
        })?;
        for width in widths {
            require_sizes(NAME, MAX_SIZE, &[("a width in conditioning_embedding_out_channels", *width)])?;
        }
        require_sizes(NAME, MAX_SIZE, &[("conditioning_channels", self.conditioning_channels)])?;
        require(!self.fusion || self.form == ControlForm::SemanticGuided, NAME, || {
            "fusion is a part of the form semantic_guided alone".into()
        })?;
        require(!self.fusion || self.unet.block_out_channels.len() > 1, NAME, || {
            "fusion joins two levels, and block_out_channels has one".into()
        })
    }

    /// Returns the number of skips at the deepest resolution: those of the layers there, and of the downsampling that
    /// led to it.
    fn deepest(&self) -> usize {
        self.unet.layers_per_block as usize + 1
    }

    /// Returns the convolutions of the fusion as the published code counts them: from one map of the level above the
    /// deepest, to one of the deepest.
    pub(super) fn fusion_pairs(&self) -> impl Iterator<Item = (usize, usize)> {
        let deepest = self.deepest();
        (1..=deepest).flat_map(move |from| (1..=deepest).map(move |to| (from, to)))
    }

    /// Returns the same weights under the names of this network, which are those of diffusers, from any layout in which
    /// they are published: diffusers', or latent-diffusion's, alone or below `control_model.` of a file with all parts.
    ///
    /// # Errors
    /// [`CheckpointError::Format`] if two tensors would get one name.
    pub fn canonical(&self, published: Checkpoint) -> Result<Checkpoint, CheckpointError> {
        names::canonical(published, CONTROL, &self.names())
    }

    /// Sets `fusion` to true if `weights`, under the names of this network, have a fusion that adds something, and
    /// returns them without a fusion that adds nothing. If the weights of a fusion are all zero, so are its normalised
    /// maps and their SiLU. That is so in every network that was trained with `only_mid_control` from a fresh start:
    /// the maps that enter the fusion come from convolutions that are zero too, so that neither factor ever receives a
    /// gradient.
    ///
    /// # Errors
    /// The errors of [`Checkpoint::tensor`].
    pub fn fit_fusion(&mut self, weights: Checkpoint) -> Result<Checkpoint, CheckpointError> {
        let adds = |name: &str| Ok(weights.tensor(name)?.any().int64_value(&[]) != 0);
        let fusion: Vec<_> = weights.names().filter(|name| name.starts_with("fusion.")).collect();
        self.fusion = fusion.into_iter().try_fold(false, |found, name| Ok(found || adds(name)?))?;
        if self.fusion {
            return Ok(weights);
        }
        Ok(weights.retain(|name| !name.starts_with("fusion.")))
    }
}

impl ControlNetConfig {
    /// Returns the modules of `control_model`: a ControlNet, or a semantic-guided network with or without its fusion
    /// block.
    fn names(&self) -> Names {
        let mut names = self.unet.encoder_names();
        let blocks = 2 * (self.conditioning_embedding_out_channels.len() - 1);
        names.add("input_hint_block.0", "controlnet_cond_embedding.conv_in");
        for block in 0..blocks {
            let theirs = format!("input_hint_block.{}", 2 * (block + 1));
            names.add(theirs, format!("controlnet_cond_embedding.blocks.{block}"));
        }
        names.add(format!("input_hint_block.{}", 2 * (blocks + 1)), "controlnet_cond_embedding.conv_out");
        for skip in 0..self.unet.skip_channels().len() {
            names.add(format!("zero_convs.{skip}.0"), format!("controlnet_down_blocks.{skip}"));
        }
        names.add("middle_block_out.0", "controlnet_mid_block");
        for (from, to) in self.fusion_pairs() {
            names.add(format!("down{from}{to}.0"), format!("fusion.down{from}{to}"));
        }
        names
    }
}

/// Brings the condition to the size and width of the first map of the UNet.
#[derive(Debug)]
struct ConditioningEmbedding {
    convs: Vec<Conv2d>,
    conv_out: Conv2d,
}

impl ConditioningEmbedding {
    fn new(vs: nn::Path, config: &ControlNetConfig) -> Self {
        let widths = &config.conditioning_embedding_out_channels;
        let mut convs = vec![conv3x3(&vs / "conv_in", config.conditioning_channels, widths[0])];
        for (i, pair) in widths.windows(2).enumerate() {
            convs.push(conv3x3(&vs / "blocks" / (2 * i), pair[0], pair[0]));
            convs.push(conv2d(&vs / "blocks" / (2 * i + 1), pair[0], pair[1], 3, 2, 1));
        }
        let (last, out) = (widths[widths.len() - 1], config.unet.block_out_channels[0]);
        Self { convs, conv_out: zero_conv(&vs / "conv_out", last, out, 3) }
    }

    fn forward(&self, condition: &Tensor) -> Tensor {
        let x = self.convs.iter().fold(channels_last(condition), |x, conv| silu(conv.forward(&x)));
        self.conv_out.forward(&x)
    }
}

/// Adds to each map of the deepest level the outputs of 3×3 convolutions with stride 2 of each map of the level above
/// (DiAD, spatial-aware feature fusion).
#[derive(Debug)]
struct Fusion {
    /// The convolutions, by the map to which they add, then by the map that they read.
    down: Vec<Vec<Conv2d>>,
}

impl Fusion {
    fn new(vs: nn::Path, config: &ControlNetConfig) -> Self {
        let (skips, deepest) = (config.unet.skip_channels(), config.deepest());
        let (sources, targets) = skips[skips.len() - 2 * deepest..].split_at(deepest);
        let zero = Init::Const(0.);
        let options = nn::ConvConfig { stride: 2, padding: 1, bias: false, ws_init: zero, ..Default::default() };
        let conv = |from: usize, to: usize| {
            let name = format!("down{}{}", from + 1, to + 1);
            Conv2d::new(&vs / name, sources[from], targets[to], 3, options)
        };
        Self { down: (0..deepest).map(|to| (0..deepest).map(|from| conv(from, to)).collect()).collect() }
    }

    /// Adds the convolved `sources` [B, Ci, 2h, 2w] to `x` [B, C, h, w], the `to`-th map of the deepest level.
    fn forward(&self, to: usize, x: &Tensor, sources: &[Tensor]) -> Tensor {
        let add =
            |sum: Tensor, (conv, source): (&Conv2d, &Tensor)| sum + instance_norm(&conv.forward(source), 1e-5).silu();
        self.down[to].iter().zip(sources).fold(x.shallow_clone(), add)
    }
}

/// A control network in the published layout of diffusers.
#[derive(Debug)]
pub struct ControlNet {
    encoder: Encoder,
    controlnet_cond_embedding: ConditioningEmbedding,
    controlnet_down_blocks: Vec<Conv2d>,
    controlnet_mid_block: Conv2d,
    form: ControlForm,
    fusion: Option<Fusion>,
    /// The number of skips at the deepest resolution.
    deepest: usize,
    /// The number of skips that reach the UNet: the last ones.
    sent: usize,
}

impl ControlNet {
    /// Declares the parameters under `vs` by their published names; fails if the config describes no network. All
    /// outputs start at zero, so a new control network changes nothing.
    pub fn new(vs: nn::Path, config: &ControlNetConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        require(config.has_branch(), NAME, || "of the form none there is no network".into())?;
        let skips = config.unet.skip_channels();
        let pointwise = |(i, width): (usize, &i64)| zero_conv(&vs / "controlnet_down_blocks" / i, *width, *width, 1);
        let width = skips[skips.len() - 1];
        Ok(Self {
            encoder: Encoder::new(&vs, &config.unet),
            controlnet_cond_embedding: ConditioningEmbedding::new(&vs / "controlnet_cond_embedding", config),
            controlnet_down_blocks: skips.iter().enumerate().map(pointwise).collect(),
            controlnet_mid_block: zero_conv(&vs / "controlnet_mid_block", width, width, 1),
            form: config.form,
            fusion: config.fusion.then(|| Fusion::new(&vs / "fusion", config)),
            deepest: config.deepest(),
            sent: match (config.only_mid_control, config.form) {
                (false, _) => skips.len(),
                (true, ControlForm::SemanticGuided) => config.deepest(),
                (true, ControlForm::ControlNet | ControlForm::None) => 0,
            },
        })
    }

    /// Encodes `condition` [B, conditioning_channels, H, W], with sides [`ControlNetConfig::factor`] times those of the
    /// latent, to [B, C0, h, w]. The result depends on the condition alone, so a sampler needs it once.
    pub fn hint(&self, condition: &Tensor) -> Tensor {
        self.hint_with(None, condition)
    }

    /// Does as [`ControlNet::hint`]; with a `pass`, the maps inside are not kept, see [`Recompute`](super::recompute).
    pub fn hint_with<'a>(&'a self, pass: Pass<'_, 'a>, condition: &Tensor) -> Tensor {
        segment(pass, &[condition], |inputs| self.controlnet_cond_embedding.forward(&inputs[0]))
    }

    /// Computes the residuals for `x` [B, in_channels, h, w], `t` `[B]` and `context` [B or 1, tokens,
    /// cross_attention_dim], as the UNet takes them. `hint` is the result of [`ControlNet::hint`].
    pub fn forward(&self, x: &Tensor, t: &Tensor, context: &Tensor, hint: &Tensor) -> ControlResiduals {
        self.forward_with(None, x, t, context, hint)
    }

    /// Does as [`ControlNet::forward`]; with a `pass`, the maps inside are not kept, see
    /// [`Recompute`](super::recompute).
    pub fn forward_with<'a>(
        &'a self,
        pass: Pass<'_, 'a>,
        x: &Tensor,
        t: &Tensor,
        context: &Tensor,
        hint: &Tensor,
    ) -> ControlResiduals {
        let encoded = self.encoder.forward(pass, x, t, context, Some(hint));
        // maps that neither the UNet nor the fusion reads are not projected, and their convolutions receive no gradient
        let used = if self.fusion.is_some() { self.sent.max(2 * self.deepest) } else { self.sent };
        let first = encoded.skips.len() - used;
        let mut skips = Vec::with_capacity(used);
        for (i, (conv, skip)) in self.controlnet_down_blocks.iter().zip(&encoded.skips).enumerate().skip(first) {
            let projected = segment(pass, &[skip], |inputs| conv.forward(&inputs[0]));
            show(format_args!("controlnet_down_blocks.{i}"), &projected);
            skips.push(projected);
        }
        if self.form == ControlForm::SemanticGuided {
            let (above, deep) = skips.split_at_mut(used - self.deepest);
            for (i, map) in deep.iter_mut().enumerate() {
                let mut inputs = vec![&*map];
                if self.fusion.is_some() {
                    inputs.extend(&above[above.len() - self.deepest..]);
                }
                *map = segment(pass, &inputs, move |inputs| match &self.fusion {
                    Some(fusion) => fusion.forward(i, &inputs[0], &inputs[1..]).silu(),
                    None => inputs[0].silu(),
                });
            }
        }
        let mid = segment(pass, &[&encoded.mid], |inputs| self.controlnet_mid_block.forward(&inputs[0]));
        ControlResiduals { skips: skips.split_off(used - self.sent), mid }
    }
}

/// Copies every parameter of a UNet that a control network has too, by name: a ControlNet starts from this copy. The
/// encoder of the condition, the zero convolutions and the fusion keep their initial values. Returns the number of
/// copied parameters.
pub fn copy_encoder(unet: &HashMap<String, Tensor>, control: &HashMap<String, Tensor>) -> usize {
    let shared = control.iter().filter_map(|(name, to)| Some((unet.get(name)?, to.shallow_clone())));
    tch::no_grad(|| shared.map(|(from, mut to)| to.copy_(from)).count())
}

#[cfg(test)]
mod tests {
    use super::super::{checkpoint::to_safetensors, nn::quietly, unet::UNet2DConditionModel};
    use super::*;
    use tch::{Device, Kind, nn::VarStore};

    fn small(form: ControlForm, fusion: bool, only_mid_control: bool) -> ControlNetConfig {
        serde_json::from_value(serde_json::json!({
            "block_out_channels": [8, 8, 16], "layers_per_block": 1, "cross_attention_dim": 12, "norm_num_groups": 4,
            "down_block_types": ["DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"], "attention_head_dim": 2,
            "conditioning_embedding_out_channels": [4, 8, 8],
            "form": form, "fusion": fusion, "only_mid_control": only_mid_control,
        }))
        .unwrap()
    }

    fn inputs() -> (Tensor, Tensor, Tensor, Tensor) {
        let of = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
        (of(&[2, 4, 8, 8]), Tensor::from_slice(&[1_i64, 901]), of(&[2, 5, 12]), of(&[2, 3, 32, 32]))
    }

    use ControlForm::{ControlNet as Plain, SemanticGuided};

    /// Makes a network of this config whose weights are drawn at random, zero convolutions too.
    fn random(config: &ControlNetConfig) -> (VarStore, ControlNet) {
        let vs = VarStore::new(Device::Cpu);
        let network = ControlNet::new(vs.root(), config).unwrap();
        tch::no_grad(|| vs.variables().into_values().for_each(|mut variable| _ = variable.uniform_(-0.3, 0.3)));
        (vs, network)
    }

    /// Makes a network of another form with the same weights; a fusion that `from` has and the form lacks is left out.
    fn with_weights_of(from: &VarStore, config: &ControlNetConfig) -> ControlNet {
        let vs = VarStore::new(Device::Cpu);
        let network = ControlNet::new(vs.root(), config).unwrap();
        let weights = from.variables();
        tch::no_grad(|| vs.variables().into_iter().for_each(|(name, mut variable)| variable.copy_(&weights[&name])));
        network
    }

    #[test]
    fn a_new_control_network_changes_nothing() {
        for config in [small(Plain, false, false), small(SemanticGuided, true, false)] {
            assert_eq!(config.factor(), 4);
            let [vs, unet_vs] = [(); 2].map(|()| VarStore::new(Device::Cpu));
            let control = ControlNet::new(vs.root(), &config).unwrap();
            let unet = UNet2DConditionModel::new(unet_vs.root(), &config.unet).unwrap();
            quietly(|| {
                let (x, t, context, condition) = inputs();
                let residuals = control.forward(&x, &t, &context, &control.hint(&condition));
                assert_eq!(unet.forward(&x, &t, &context, Some(&residuals)), unet.forward(&x, &t, &context, None));
            });
            let copied = copy_encoder(&unet_vs.variables(), &vs.variables());
            let new = |name: &&String| name.starts_with("controlnet_") || name.starts_with("fusion.");
            assert_eq!(copied, vs.variables().keys().filter(|name| !new(name)).count());
            let name = "mid_block.resnets.0.conv1.weight";
            assert_eq!(vs.variables()[name], unet_vs.variables()[name]);
        }
    }

    #[test]
    fn each_form_sends_its_own_maps() {
        let (vs, fused) = random(&small(SemanticGuided, true, false));
        let of = |form, fusion, only_mid_control| with_weights_of(&vs, &small(form, fusion, only_mid_control));
        quietly(|| {
            let (x, t, context, condition) = inputs();
            let run = |network: &ControlNet| network.forward(&x, &t, &context, &network.hint(&condition));
            let plain = run(&of(Plain, false, false));
            assert_eq!(plain.skips.len(), 6);
            assert!(run(&of(Plain, false, true)).skips.is_empty());

            let guided = run(&of(SemanticGuided, false, false));
            assert_eq!(guided.mid, plain.mid);
            assert_eq!(guided.skips[..4], plain.skips[..4]);
            assert_eq!(guided.skips[4..], [plain.skips[4].silu(), plain.skips[5].silu()]);

            let fused = run(&fused);
            assert_eq!(fused.skips[..4], plain.skips[..4]);
            assert_ne!(fused.skips[4..], guided.skips[4..]);

            for (all, deep) in [(&guided, of(SemanticGuided, false, true)), (&fused, of(SemanticGuided, true, true))] {
                let deep = run(&deep);
                assert_eq!(deep.skips.iter().map(Tensor::size).collect::<Vec<_>>(), [[2, 8, 2, 2], [2, 16, 2, 2]]);
                assert_eq!(deep.skips, all.skips[4..]);
            }
        });
    }

    #[test]
    fn maps_that_are_not_sent_receive_no_gradient() {
        let (vs, network) = random(&small(SemanticGuided, false, true));
        let (x, t, context, condition) = inputs();
        let residuals = network.forward(&x, &t, &context, &network.hint(&condition));
        (residuals.mid.square().mean(Kind::Float) + residuals.skips[1].square().mean(Kind::Float)).backward();
        let variables = vs.variables();
        assert!(!variables["controlnet_down_blocks.3.weight"].grad().defined());
        assert!(variables["controlnet_down_blocks.5.weight"].grad().defined());
        assert!(variables["controlnet_cond_embedding.conv_in.weight"].grad().abs().max().double_value(&[]) > 0.);
    }

    #[test]
    fn a_fusion_that_adds_nothing_is_left_out() {
        let mut config = small(SemanticGuided, true, true);
        let (vs, network) = random(&config);
        let fusion = |vs: &VarStore| {
            let weights = vs.variables().into_iter();
            let weights = weights.map(|(name, tensor)| (name, tensor.detach())).collect::<Vec<_>>();
            Checkpoint::from_safetensors(to_safetensors(weights, Default::default()).unwrap()).unwrap()
        };
        let kept = config.fit_fusion(fusion(&vs)).unwrap();
        assert!(config.fusion && kept.contains("fusion.down22.weight"));
        for (name, mut variable) in vs.variables() {
            if name.starts_with("fusion.") {
                tch::no_grad(|| _ = variable.zero_());
            }
        }
        let rest = config.fit_fusion(fusion(&vs)).unwrap();
        assert!(!config.fusion && rest.len() == kept.len() - 4);
        quietly(|| {
            let (x, t, context, condition) = inputs();
            let [with, without] = [&network, &with_weights_of(&vs, &config)]
                .map(|network| network.forward(&x, &t, &context, &network.hint(&condition)));
            assert_eq!(with.skips, without.skips);
        });
    }

    #[test]
    fn a_config_survives_serde_and_is_checked() {
        let config = small(SemanticGuided, true, true);
        let text = serde_json::to_string(&config).unwrap();
        assert!(text.contains(r#""form":"semantic_guided""#), "{text}");
        assert_eq!(serde_json::from_str::<ControlNetConfig>(&text).unwrap(), config);
        let refused = ControlNetConfig { form: Plain, ..config.clone() }.validate().unwrap_err().to_string();
        assert!(refused.contains("of the form semantic_guided alone"), "{refused}");
        assert!(ControlNetConfig { conditioning_embedding_out_channels: vec![], ..config }.validate().is_err());
    }
}
