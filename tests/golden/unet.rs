//! The U-Net against diffusers.

use super::{
    Case,
    networks::{compare_shapes, filled, manifest, shapes},
};
use std::collections::BTreeMap;
use tch::Tensor;
use vlmdiff::models::{
    checkpoint::{Checkpoint, CheckpointError},
    nn::observe,
    unet::{UNet2DConditionConfig, UNet2DConditionModel, timestep_embedding},
};

/// `models/unet`.
pub(crate) fn unet(case: &Case) {
    let _no_grad = tch::no_grad_guard();
    let config: UNet2DConditionConfig = case.config();
    let weights = case.checkpoint("diffusion_pytorch_model.safetensors");
    let unet = filled(&config.canonical(weights).unwrap(), |vs| UNet2DConditionModel::new(vs, &config));
    let (x, t, context) = (case.input("sample"), case.input("timestep"), case.input("encoder_hidden_states"));
    let (sample, maps) = observe(|| unet.forward(&x, &t, &context, None));
    case.close("sample", &sample, 1.);
    for (name, ours) in [
        ("time_proj", "time_proj"),
        ("time_embedding", "time_embedding"),
        ("conv_in", "conv_in"),
        ("down0.resnet0", "down_blocks.0.resnets.0"),
        ("down0.attn0", "down_blocks.0.attentions.0"),
        ("down0", "down_blocks.0"),
        ("down2", "down_blocks.2"),
        ("mid", "mid_block"),
        ("up0", "up_blocks.0"),
        ("up1", "up_blocks.1"),
        ("up3", "up_blocks.3"),
    ] {
        case.close(name, &maps[ours], 1.);
    }
    let (x, t) = (case.input("sample_odd"), case.input("timestep_odd"));
    case.close("sample_odd", &unet.forward(&x, &t, &context.narrow(0, 0, 1), None), 1.);
    ldm_names(case, |file| config.canonical(file));
}

/// `timestep_embedding.320.flip`, `timestep_embedding.32.noflip_shift1` of `models/schedules`: sinusoids of four timesteps.
pub(crate) fn timestep_embeddings(case: &Case) {
    let t = Tensor::from_slice(&[0_i64, 1, 10, 999]);
    let file = case.tensors("expected.safetensors");
    for name in file.names().filter(|name| name.starts_with("timestep_embedding.")) {
        let [_, width, options] = *name.split('.').collect::<Vec<_>>() else { panic!("{name}") };
        let shift = options.split_once("_shift").map_or(0., |(_, shift)| shift.parse().unwrap());
        let got = timestep_embedding(&t, width.parse().unwrap(), options.starts_with("flip"), shift);
        case.close(name, &got, 1.);
    }
}

/// The names of latent-diffusion, in a file with all parts: each tensor is numbered, and has to come to its name with its
/// number.
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

/// The real size, `models/manifests`.
pub(crate) fn published_shapes(case: &Case) {
    if case.has("sd15_unet.json.gz") {
        let config = UNet2DConditionConfig::default();
        let theirs = config.canonical(manifest(case, "sd15_unet.json.gz")).unwrap();
        compare_shapes(case, "sd15_unet", &theirs, |vs| UNet2DConditionModel::new(vs, &config));
    }
}
