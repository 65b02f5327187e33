//! What the cases of all networks share.

use serde_json::Value;
use tch::{
    Device,
    nn::{Path, VarStore},
};
use vlmdiff::models::{checkpoint::Checkpoint, nn::ConfigError, unet::UNet2DConditionConfig};

/// Builds a network and fills it, strictly.
pub(crate) fn filled<N>(weights: &Checkpoint, build: impl FnOnce(Path<'_>) -> Result<N, ConfigError>) -> N {
    let vs = VarStore::new(Device::Cpu);
    let network = build(vs.root()).unwrap_or_else(|e| panic!("{e}"));
    weights.load_into(&vs).unwrap_or_else(|e| panic!("{e}"));
    network
}

/// The U-Net of a latent-diffusion yaml, `unet_config.params`.
pub(crate) fn unet_of_yaml(params: &Value) -> UNet2DConditionConfig {
    let number = |name: &str| params[name].as_i64().unwrap();
    let list = |name: &str| params[name].as_array().unwrap().iter().map(|value| value.as_i64().unwrap());
    let level = |i: usize| match list("attention_resolutions").any(|factor| factor == 1 << i) {
        true => "CrossAttnDownBlock2D",
        false => "DownBlock2D",
    };
    let widths: Vec<i64> = list("channel_mult").map(|factor| factor * number("model_channels")).collect();
    serde_json::from_value(serde_json::json!({
        "in_channels": params["in_channels"], "out_channels": params["out_channels"],
        "layers_per_block": params["num_res_blocks"], "attention_head_dim": params["num_heads"],
        "transformer_layers_per_block": params["transformer_depth"], "cross_attention_dim": params["context_dim"],
        "down_block_types": (0..widths.len()).map(level).collect::<Vec<_>>(), "block_out_channels": widths,
    }))
    .unwrap()
}
