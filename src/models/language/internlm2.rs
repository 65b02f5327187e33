//! InternLM2 (`InternLM2ForCausalLM`), the language model of InternVL2-2B and 8B.

use super::config::{CommonConfig, DecoderConfig, Names, QkvNames};
use serde::Deserialize;
use serde_json::Value;

/// The published names. Query, key and value are one matrix.
pub const NAMES: Names = Names {
    embedding: "model.tok_embeddings",
    layers: "model.layers",
    attention_norm: "attention_norm",
    qkv: QkvNames::Packed("attention.wqkv"),
    output: "attention.wo",
    feed_forward_norm: "ffn_norm",
    feed_forward: ["feed_forward.w1", "feed_forward.w3", "feed_forward.w2"],
    norm: "model.norm",
    head: "output",
};

/// Reads a config. `bias` is about the maps of the attention.
///
/// # Errors
/// Names the value that is missing or unknown.
pub fn parse(config: &Value) -> Result<DecoderConfig, String> {
    let common = CommonConfig::deserialize(config).map_err(|error| error.to_string())?;
    // transformers' default is true, and every published config says false
    let bias = config["bias"].as_bool().unwrap_or(true);
    Ok(DecoderConfig { qkv_bias: bias, output_bias: bias, ..common.decoder(NAMES, 10_000.)? })
}
