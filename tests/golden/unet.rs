//! The U-Net against diffusers.

use super::{
    Case,
    networks::{compare_shapes, filled, manifest, shapes},
    tolerance::sinusoids,
};
use std::collections::BTreeMap;
use vlmdiff::models::{
    checkpoint::{Checkpoint, CheckpointError},
    nn::observe,
    unet::{UNet2DConditionConfig, UNet2DConditionModel},
};

/// Compares `models/unet`.
pub(crate) fn unet(case: &Case) {
    let _no_grad = tch::no_grad_guard();
    let config: UNet2DConditionConfig = case.config();
    let weights = case.checkpoint("diffusion_pytorch_model.safetensors");
    let unet = filled(&config.canonical(weights).unwrap(), |vs| UNet2DConditionModel::new(vs, &config));
    let context = case.input("encoder_hidden_states");
    case.part(|| {
        let (x, t) = (case.input("sample"), case.input("timestep"));
        let (sample, maps) = observe(|| unet.forward(&x, &t, &context, None));
        case.close("sample", &sample, 1.);
        let file = case.tensors("expected.safetensors");
        for name in file.names().filter(|name| !name.starts_with("sample")) {
            match maps.get(&module(name)) {
                Some(map) if name == "time_proj" => case.expect(name, map, |_| sinusoids(&t)),
                Some(map) => case.close(name, map, 1.),
                None => {} // no module makes this map; that it is not compared is a failure
            }
        }
    });
    case.part(|| {
        let (x, t) = (case.input("sample_odd"), case.input("timestep_odd"));
        case.close("sample_odd", &unet.forward(&x, &t, &context.narrow(0, 0, 1), None), 1.);
    });
    ldm_names(case, |file| config.canonical(file));
}

/// Returns the module that makes a map of the set: `down_blocks.0.resnets.1` for `down0.resnet1`, `up_blocks.3` for
/// `up3`.
fn module(name: &str) -> String {
    let (block, layer) = name.split_once('.').map_or((name, None), |(block, layer)| (block, Some(layer)));
    let block = match block {
        "mid" => "mid_block".to_owned(),
        block => block.replace("down", "down_blocks.").replace("up", "up_blocks."),
    };
    match layer {
        None => block,
        Some(layer) => format!("{block}.{}", layer.replace("resnet", "resnets.").replace("attn", "attentions.")),
    }
}

/// Compares the names of latent-diffusion in a file with all parts: each tensor is a number, and has to get the name
/// with that number.
pub(crate) fn ldm_names(case: &Case, canonical: impl FnOnce(Checkpoint) -> Result<Checkpoint, CheckpointError>) {
    if !case.has("diffusers_to_ldm_keys.json") {
        return;
    }
    let names: BTreeMap<String, String> = case.json("diffusers_to_ldm_keys.json");
    let ldm = names.values().enumerate().map(|(i, theirs)| (theirs.clone(), vec![i as i64]));
    let other = ("first_stage_model.encoder.conv_in.weight".to_owned(), vec![-1]);
    let renamed = canonical(shapes(ldm.chain([other]))).unwrap_or_else(|e| panic!("{e}"));
    case.equal("number of names", &renamed.len(), &names.len());
    for (i, (ours, theirs)) in names.iter().enumerate() {
        let number = renamed.tensor(ours).ok().map(|number| number.int64_value(&[0]));
        case.equal(&format!("{theirs} is {ours}"), &number, &Some(i as i64));
    }
}

/// Compares the network of the published size with `models/manifests`.
pub(crate) fn published_shapes(case: &Case) {
    if case.has("sd15_unet.json.gz") {
        let config = UNet2DConditionConfig::default();
        let theirs = config.canonical(manifest(case, "sd15_unet.json.gz")).unwrap();
        compare_shapes(case, "sd15_unet", &theirs, |vs| UNet2DConditionModel::new(vs, &config));
    }
}
