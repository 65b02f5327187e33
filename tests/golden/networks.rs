//! The common functions of the cases of all networks.

use super::Case;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use tch::{
    Device, Tensor,
    nn::{Path, VarStore},
};
use vlmdiff::models::{
    checkpoint::{Checkpoint, to_safetensors},
    initialisation::skip_init,
    nn::ConfigError,
    unet::UNet2DConditionConfig,
};

/// Builds a network and fills it, strictly.
pub(crate) fn filled<N>(weights: &Checkpoint, build: impl FnOnce(Path<'_>) -> Result<N, ConfigError>) -> N {
    let vs = VarStore::new(Device::Cpu);
    let network = skip_init(|| build(vs.root())).unwrap_or_else(|e| panic!("{e}"));
    weights.load_into(&vs).unwrap_or_else(|e| panic!("{e}"));
    network
}

/// Makes a file in which each name has the shape of its tensor as content. It shows the renaming of a file of real size
/// by a loader without the weights.
pub(crate) fn shapes(shapes: impl IntoIterator<Item = (String, Vec<i64>)>) -> Checkpoint {
    let tensors = shapes.into_iter().map(|(name, shape)| (name, Tensor::from_slice(&shape)));
    Checkpoint::from_safetensors(to_safetensors(tensors, HashMap::new()).unwrap()).unwrap()
}

/// Returns the [`shapes`] that are listed for a published file.
pub(crate) fn manifest(case: &Case, file: &str) -> Checkpoint {
    let listed: BTreeMap<String, (Vec<i64>, String)> = case.json(file);
    shapes(listed.into_iter().map(|(name, (shape, _))| (name, shape)))
}

/// Compares the variables of a network with [`shapes`] that a loader has renamed. A 1×1 convolution counts as a matrix.
pub(crate) fn compare_shapes<N>(
    case: &Case,
    what: &str,
    theirs: &Checkpoint,
    build: impl FnOnce(Path<'_>) -> Result<N, ConfigError>,
) -> BTreeMap<String, Vec<i64>> {
    let vs = VarStore::new(Device::Cpu);
    let _network = skip_init(|| build(vs.root())).unwrap_or_else(|e| panic!("{e}"));
    let ours: BTreeMap<String, Vec<i64>> = vs.variables().into_iter().map(|(name, x)| (name, x.size())).collect();
    let significant = |mut shape: Vec<i64>| {
        shape.truncate(shape.iter().rposition(|size| *size != 1).map_or(0, |last| last + 1));
        shape
    };
    let their = |name: &str| theirs.tensor(name).ok().map(|shape| significant(Vec::try_from(shape).unwrap()));
    for name in theirs.names().chain(ours.keys().map(String::as_str).filter(|name| !theirs.contains(name))) {
        case.equal(&format!("{what}: {name}"), &ours.get(name).cloned().map(significant), &their(name));
    }
    ours
}

/// Returns the configuration of the U-Net in a latent-diffusion yaml.
pub(crate) fn unet_of_yaml(yaml: &Value) -> UNet2DConditionConfig {
    let params = &yaml["model"]["unet_config"]["params"];
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
