//! The names of InternVL's parameters: those of `InternVLChatModel`, with `attn.qkv` in thirds.

use super::super::checkpoint::{Checkpoint, CheckpointError};

/// Parts of names in the native layout of transformers, and in the original one.
const PARTS: [(&str, &str); 14] = [
    ("multi_modal_projector.layer_norm.", "mlp1.0."),
    ("multi_modal_projector.linear_1.", "mlp1.1."),
    ("multi_modal_projector.linear_2.", "mlp1.3."),
    ("vision_tower.embeddings.cls_token", "vision_model.embeddings.class_embedding"),
    ("vision_tower.embeddings.position_embeddings", "vision_model.embeddings.position_embedding"),
    ("vision_tower.embeddings.patch_embeddings.projection.", "vision_model.embeddings.patch_embedding."),
    ("vision_tower.encoder.layer.", "vision_model.encoder.layers."),
    ("vision_tower.layernorm.", "vision_model.norm."),
    (".attention.projection_layer.", ".attn.proj."),
    (".attention.", ".attn."),
    (".lambda_1", ".ls1"),
    (".lambda_2", ".ls2"),
    (".layernorm_before.", ".norm1."),
    (".layernorm_after.", ".norm2."),
];

/// Returns the original name of a tensor of the native layout.
fn original(name: &str) -> String {
    let name = match name.strip_prefix("model.") {
        Some(rest) => match rest.strip_prefix("language_model.") {
            Some(rest) => format!("language_model.model.{rest}"),
            None => rest.to_owned(),
        },
        None if name.starts_with("lm_head.") => format!("language_model.{name}"),
        None => name.to_owned(),
    };
    if name.starts_with("language_model.") {
        return name;
    }
    let renamed = PARTS.iter().fold(name, |name, (native, original)| name.replace(native, original));
    ["q", "k", "v"].iter().fold(renamed, |name, x| name.replace(&format!(".attn.{x}_proj."), &format!(".attn.{x}.")))
}

/// Returns the same weights under the names of this network, from either layout.
///
/// # Errors
/// [`CheckpointError::Format`] for weights that are neither.
pub fn canonical(published: Checkpoint) -> Result<Checkpoint, CheckpointError> {
    let is_native = published.has_part("vision_tower") || published.has_part("model.vision_tower");
    if !is_native && !published.has_part("vision_model.encoder") {
        return Err(published.foreign("InternVL", "no vision_model and no vision_tower"));
    }
    let named = if is_native { published.rename(|name| Some(original(name)))? } else { published };
    named.split(|name| {
        let (layer, end) = name.strip_prefix("vision_model.")?.rsplit_once(".attn.qkv.")?;
        Some(["q", "k", "v"].map(|x| format!("vision_model.{layer}.attn.{x}.{end}")).to_vec())
    })
}
