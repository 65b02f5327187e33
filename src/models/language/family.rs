//! The families of decoder-only transformers, by the `model_type` of their configs.

use super::{config::DecoderConfig, internlm2, llama, qwen2};
use serde_json::Value;

/// Reads the config of a language model of any family (`llm_config`, `text_config` or `language_config` of the config
/// of a vision-language model).
///
/// # Errors
/// Names the families, or the value that is missing or unknown.
pub fn parse(config: &Value) -> Result<DecoderConfig, String> {
    match config["model_type"].as_str() {
        Some("qwen2") => qwen2::parse(config),
        Some("internlm2") => internlm2::parse(config),
        Some("llama") => llama::parse(config),
        other => Err(format!(
            "the model_type of its language model is {}, and only qwen2, internlm2 and llama are known",
            other.unwrap_or("not stated")
        )),
    }
}
