//! Llama (`LlamaForCausalLM`), the language model of DeepSeek-VL.

use super::{
    config::{CommonConfig, DecoderConfig},
    qwen2::NAMES,
};
use serde::Deserialize;
use serde_json::Value;

/// Reads a config. The names are those of Qwen2; biases are as `attention_bias` and `mlp_bias` say, and absent without
/// these.
///
/// # Errors
/// Names the value that is missing or unknown.
pub fn parse(config: &Value) -> Result<DecoderConfig, String> {
    let common = CommonConfig::deserialize(config).map_err(|error| error.to_string())?;
    let flag = |name: &str| config[name].as_bool().unwrap_or(false);
    let (attention, feed_forward) = (flag("attention_bias"), flag("mlp_bias"));
    Ok(DecoderConfig {
        qkv_bias: attention,
        output_bias: attention,
        feed_forward_bias: feed_forward,
        ..common.decoder(NAMES, 10_000.)?
    })
}
