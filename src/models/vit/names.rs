//! The names of the weights of DINO and DINOv2: the original ones, which the network uses, and Hugging Face's.

use crate::models::checkpoint::{Checkpoint, CheckpointError};

/// The prefixes of the names in Hugging Face's models with a head.
const PREFIXES: [&str; 3] = ["vit.", "dinov2.", "dinov2_with_registers."];

/// The beginnings of names after `encoder.layer.N.`, and of the original ones after `blocks.N.`.
const BLOCK: [(&str, &str); 12] = [
    ("attention.attention.", "attn."),
    ("attention.output.dense.", "attn.proj."),
    ("layernorm_before.", "norm1."),
    ("layernorm_after.", "norm2."),
    ("intermediate.dense.", "mlp.fc1."),
    ("output.dense.", "mlp.fc2."),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
    ("mlp.weights_in.", "mlp.w12."),
    ("mlp.weights_out.", "mlp.w3."),
    ("norm", "norm"),
    ("mlp.fc", "mlp.fc"),
];

/// The beginnings of names outside of blocks, and of the original ones.
const OUTSIDE: [(&str, &str); 5] = [
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.register_tokens", "register_tokens"),
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("layernorm.", "norm."),
];

/// Renames weights to the names of the network: the original ones, with `attn.qkv` in thirds. From a full checkpoint of
/// DINO, the backbone is taken. The mask token and the pooler, on which no feature depends, are left out; names of
/// neither layout remain.
///
/// # Errors
/// [`CheckpointError::Format`] if an `attn.qkv` does not split into three.
pub fn original(weights: Checkpoint) -> Result<Checkpoint, CheckpointError> {
    let weights = weights.part("backbone").split(|name| {
        let (block, part) = name.split_once(".attn.qkv.")?;
        Some(["query", "key", "value"].map(|third| format!("{block}.attn.{third}.{part}")).to_vec())
    })?;
    weights.rename(rename)
}

/// Returns the original name of a tensor, or None for one that is left out.
fn rename(name: &str) -> Option<String> {
    let name = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
    if name.ends_with("mask_token") || name.starts_with("pooler.") {
        return None;
    }
    let (block, rest, parts) = match name.strip_prefix("encoder.layer.").and_then(|name| name.split_once('.')) {
        Some((index, rest)) => (format!("blocks.{index}."), rest, &BLOCK[..]),
        None => (String::new(), name, &OUTSIDE[..]),
    };
    let part = parts.iter().find_map(|(theirs, original)| Some(format!("{original}{}", rest.strip_prefix(theirs)?)));
    Some(part.map_or_else(|| name.to_owned(), |part| block + &part))
}

#[cfg(test)]
mod tests {
    use super::rename;

    #[test]
    fn names_of_both_hugging_face_layouts_are_translated() {
        let names = [
            ("encoder.layer.3.attention.attention.key.bias", "blocks.3.attn.key.bias"),
            ("vit.encoder.layer.11.output.dense.weight", "blocks.11.mlp.fc2.weight"),
            ("encoder.layer.0.attention.output.dense.weight", "blocks.0.attn.proj.weight"),
            ("encoder.layer.0.layernorm_before.weight", "blocks.0.norm1.weight"),
            ("dinov2.encoder.layer.0.norm2.weight", "blocks.0.norm2.weight"),
            ("encoder.layer.0.layer_scale2.lambda1", "blocks.0.ls2.gamma"),
            ("layernorm.bias", "norm.bias"),
            ("norm.bias", "norm.bias"),
            ("blocks.0.norm1.weight", "blocks.0.norm1.weight"),
            ("classifier.weight", "classifier.weight"),
        ];
        for (theirs, ours) in names {
            assert_eq!(rename(theirs).as_deref(), Some(ours));
        }
        assert!(
            ["embeddings.mask_token", "mask_token", "pooler.dense.weight"].iter().all(|name| rename(name).is_none())
        );
    }
}
