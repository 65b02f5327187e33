//! Qwen2 (`Qwen2ForCausalLM`), the language model of InternVL2-1B and InternVL3.

use super::config::{CommonConfig, DecoderConfig, Names, QkvNames};
use serde::Deserialize;
use serde_json::Value;

/// The published names.
pub const NAMES: Names = Names {
    embedding: "model.embed_tokens",
    layers: "model.layers",
    attention_norm: "input_layernorm",
    qkv: QkvNames::Separate(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    output: "self_attn.o_proj",
    feed_forward_norm: "post_attention_layernorm",
    feed_forward: ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"],
    norm: "model.norm",
    head: "lm_head",
};

/// Reads a config. Query, key and value always have a bias, the other maps never.
///
/// # Errors
/// Names the value that is missing or unknown.
pub fn parse(config: &Value) -> Result<DecoderConfig, String> {
    let common = CommonConfig::deserialize(config).map_err(|error| error.to_string())?;
    Ok(DecoderConfig { qkv_bias: true, ..common.decoder(NAMES, 10_000.)? })
}
