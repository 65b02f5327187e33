//! The names of DeepSeek-VL's parameters: those of its authors, with `attn.qkv` in thirds.

use super::super::checkpoint::{Checkpoint, CheckpointError};

const TOWER: &str = "vision_model.vision_tower.";

/// Parts of names in the native layout of transformers, and in the original one.
const PARTS: [(&str, &str); 12] = [
    ("model.aligner.linear1.", "aligner.layers.0."),
    ("model.aligner.linear2.", "aligner.layers.2."),
    ("model.vision_model.vision_model.embeddings.patch_embedding.", "vision_model.vision_tower.patch_embed.proj."),
    ("model.vision_model.vision_model.embeddings.position_embedding.weight", "vision_model.vision_tower.pos_embed"),
    ("model.vision_model.vision_model.encoder.layers.", "vision_model.vision_tower.blocks."),
    ("model.vision_model.vision_model.post_layernorm.", "vision_model.vision_tower.norm."),
    (".layer_norm1.", ".norm1."),
    (".layer_norm2.", ".norm2."),
    (".self_attn.q_proj.", ".attn.q."),
    (".self_attn.k_proj.", ".attn.k."),
    (".self_attn.v_proj.", ".attn.v."),
    (".self_attn.out_proj.", ".attn.proj."),
];

/// Returns the original name of a tensor of the native layout.
fn original(name: &str) -> String {
    if let Some(rest) = name.strip_prefix("model.language_model.") {
        return format!("language_model.model.{rest}");
    }
    if name.starts_with("lm_head.") {
        return format!("language_model.{name}");
    }
    PARTS.iter().fold(name.to_owned(), |name, (native, original)| name.replace(native, original))
}

/// Returns the same weights under the names of this network, from either layout. The pooling of the tower is left out.
///
/// # Errors
/// [`CheckpointError::Format`] for weights that are neither.
pub fn canonical(published: Checkpoint) -> Result<Checkpoint, CheckpointError> {
    let is_native = published.has_part("model.vision_model.vision_model");
    if !is_native && !published.has_part("vision_model.vision_tower") {
        return Err(published.foreign("DeepSeek-VL", "no vision_model.vision_tower and no model.vision_model"));
    }
    let named = if is_native { published.rename(|name| Some(original(name)))? } else { published };
    let is_pooling = |name: &str| {
        name.strip_prefix(TOWER).is_some_and(|rest| rest.starts_with("attn_pool.") || rest.starts_with("head."))
    };
    named.retain(|name| !is_pooling(name) && !name.contains("vision_model.head.")).split(|name| {
        let (block, end) = name.strip_prefix(TOWER)?.rsplit_once(".attn.qkv.")?;
        Some(["q", "k", "v"].map(|x| format!("{TOWER}{block}.attn.{x}.{end}")).to_vec())
    })
}
