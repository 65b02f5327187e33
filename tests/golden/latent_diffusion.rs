//! Files with all parts of a model.

use super::{
    Case,
    networks::{compare_shapes, filled, shapes},
};
use serde::Deserialize;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor, nn::VarStore};
use vlmdiff::models::{
    checkpoint::Checkpoint,
    clip::{ClipTextConfig, ClipTextModel},
    control::{ControlForm, ControlNet, ControlNetConfig},
    denoiser::{Denoiser, Published},
    latent_diffusion::{self, AUTOENCODER, CONTROL, TEXT_ENCODER, UNET},
    unet::{UNet2DConditionConfig, UNet2DConditionModel},
    vae::{AutoencoderKl, AutoencoderKlConfig},
};

#[derive(Deserialize)]
struct Manifest {
    keys: BTreeMap<String, Key>,
}

#[derive(Deserialize)]
struct Key {
    shape: Vec<i64>,
    /// The source from which `build_model.py` takes the weight.
    source: String,
}

/// Compares `reference/full_manifest`: the authors' checkpoint at its real size, and the source of each weight.
pub(crate) fn full_manifest(case: &Case) {
    let Manifest { keys } = case.json("full_manifest.json");
    let file = shapes(keys.iter().map(|(name, key)| (name.clone(), key.shape.clone())));
    latent_diffusion::check(&file, &[UNET, CONTROL, AUTOENCODER, TEXT_ENCODER]).unwrap();
    let mut control_config =
        ControlNetConfig { form: ControlForm::SemanticGuided, only_mid_control: true, ..Default::default() };
    let unet_config = control_config.unet.clone();
    let control = control_config.canonical(file.clone()).unwrap();
    let control = control_config.fit_fusion(control).unwrap();
    let unet = unet_config.canonical(file.clone()).unwrap();
    let unet = compare_shapes(case, "unet", &unet, |vs| UNet2DConditionModel::new(vs, &unet_config));
    compare_shapes(case, "control", &control, |vs| ControlNet::new(vs, &control_config));

    // the sources say which weights are copied from the U-Net and which start anew
    let sources = keys.iter().map(|(name, key)| (name.clone(), vec![i64::from(key.source.starts_with("sd15:"))]));
    let sources = control_config.canonical(shapes(sources)).unwrap();
    for name in control.names() {
        let copied = sources.tensor(name).unwrap().int64_value(&[0]) == 1;
        case.equal(&format!("control: {name} is copied"), &unet.contains_key(name), &copied);
    }

    let vae = AutoencoderKlConfig::default();
    let theirs = vae.canonical(file.clone()).unwrap();
    compare_shapes(case, "autoencoder", &theirs, |vs| AutoencoderKl::new(vs, &vae));
    let text =
        ClipTextConfig { hidden_size: 768, intermediate_size: 3072, num_attention_heads: 12, ..Default::default() };
    let theirs = text.canonical(file);
    compare_shapes(case, "text encoder", &theirs, |vs| ClipTextModel::new(vs, &text));
}

/// Compares the single file of `models/sd_ddim_loop`, which has the weights of the folders beside it, as a training
/// program pickles them.
pub(crate) fn single_file(case: &Case) {
    if !case.has("v1-5-tiny.ckpt") {
        return;
    }
    let _no_grad = tch::no_grad_guard();
    let file = Checkpoint::open(case.path("v1-5-tiny.ckpt")).unwrap().state_dict();
    latent_diffusion::check(&file, &[UNET, AUTOENCODER, TEXT_ENCODER]).unwrap();
    case.equal("has a control branch", &file.has_part(CONTROL), &false);
    let unet: UNet2DConditionConfig = case.json("../unet/config.json");
    let vae: AutoencoderKlConfig = case.json("../vae/config.json");
    let compare = |what: &str, ours: Checkpoint, beside: Checkpoint| {
        for name in beside.names() {
            let (got, want) = (ours.tensor(name).unwrap(), beside.tensor(name).unwrap());
            let [got, want] = [got, want].map(|tensor| tensor.to_kind(Kind::Half).flatten(0, -1));
            case.equal(&format!("{what}: {name}"), &(got == want), &true);
        }
        case.equal(&format!("{what}: number of tensors"), &ours.len(), &beside.len());
    };
    let diffusers = |folder: &str| case.checkpoint(&format!("../{folder}/diffusion_pytorch_model.safetensors"));
    compare("unet", unet.canonical(file.clone()).unwrap(), unet.canonical(diffusers("unet")).unwrap());
    compare("vae", vae.canonical(file.clone()).unwrap(), vae.canonical(diffusers("vae")).unwrap());

    let weights = file.clone().select(TEXT_ENCODER);
    let shape = |name: &str| weights.shape(&format!("transformer.text_model.{name}")).unwrap().to_vec();
    let layers = weights.names().filter(|name| name.ends_with("mlp.fc1.weight")).count() as i64;
    let text = ClipTextConfig {
        vocab_size: shape("embeddings.token_embedding.weight")[0],
        hidden_size: shape("final_layer_norm.weight")[0],
        intermediate_size: shape("encoder.layers.0.mlp.fc1.weight")[0],
        num_hidden_layers: layers,
        num_attention_heads: 1,
        max_position_embeddings: shape("embeddings.position_embedding.weight")[0],
        ..Default::default()
    };
    let model = filled(&text.canonical(weights), |vs| ClipTextModel::new(vs, &text));
    let ids = Tensor::zeros([1, text.max_position_embeddings], (Kind::Int64, Device::Cpu));
    let states = model.forward(&ids).last_hidden_state;
    case.equal("the text encoder runs", &states.isfinite().all().int64_value(&[]), &1);

    // start weights: the U-Net, and a copy of half of it
    let config = ControlNetConfig { unet, form: ControlForm::SemanticGuided, ..Default::default() };
    let vs = VarStore::new(Device::Cpu);
    Denoiser::open(&vs, &config, Published::new(file, &config).unwrap()).unwrap();
    let (unet, control): (BTreeMap<_, _>, BTreeMap<_, _>) =
        vs.variables().into_iter().partition(|(name, _)| name.starts_with("unet."));
    for (name, variable) in &control {
        let name = name.strip_prefix("control.").unwrap();
        match unet.get(&format!("unet.{name}")) {
            Some(original) => case.equal(&format!("control: {name}"), &(variable == original), &true),
            None => case.equal(&format!("{name} is new"), &name.starts_with("controlnet_"), &true),
        }
    }
}
