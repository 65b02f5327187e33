//! Control networks: diffusers' ControlNet, and the semantic-guided network of the authors.

use super::{
    Case,
    networks::{compare_shapes, filled, manifest, unet_of_yaml},
    tolerance::{NETWORK, sinusoids},
    unet::ldm_names,
};
use serde_json::Value;
use vlmdiff::models::{
    control::{ControlForm, ControlNet, ControlNetConfig},
    nn::observe,
    residuals::ControlResiduals,
    unet::{UNet2DConditionConfig, UNet2DConditionModel},
};

/// Compares `models/controlnet`: the network, and its effect on the U-Net of the same set.
pub(crate) fn controlnet(case: &Case) {
    let _no_grad = tch::no_grad_guard();
    let config: ControlNetConfig = case.config();
    let weights = case.checkpoint("diffusion_pytorch_model.safetensors");
    let control = filled(&config.canonical(weights).unwrap(), |vs| ControlNet::new(vs, &config));
    let [x, t, context] = ["sample", "timestep", "encoder_hidden_states"].map(|name| case.input(name));
    let condition = case.input("controlnet_cond");
    let hint = control.hint(&condition);
    case.close("cond_embedding", &hint, 1.);
    let scale = case.json::<Value>("meta.json")["conditioning_scale"].as_f64().unwrap();
    let ControlResiduals { skips, mid } = control.forward(&x, &t, &context, &hint);
    let residuals = ControlResiduals { skips: skips.into_iter().map(|skip| skip * scale).collect(), mid: mid * scale };
    for (i, skip) in residuals.skips.iter().enumerate() {
        case.close(&format!("down.{i}"), skip, 1.);
    }
    case.close("mid", &residuals.mid, 1.);
    case.part(|| {
        let unet: UNet2DConditionConfig = case.json("../unet/config.json");
        let weights = unet.canonical(case.checkpoint("../unet/diffusion_pytorch_model.safetensors")).unwrap();
        let unet = filled(&weights, |vs| UNet2DConditionModel::new(vs, &unet));
        case.close("unet_sample", &unet.forward(&x, &t, &context, Some(&residuals)), 1.);
    });
    ldm_names(case, |file| config.canonical(file));
}

/// Compares the network of the published size with `models/manifests`.
pub(crate) fn published_shapes(case: &Case) {
    if case.has("sd15_controlnet.json.gz") {
        let config = ControlNetConfig::default();
        let theirs = config.canonical(manifest(case, "sd15_controlnet.json.gz")).unwrap();
        compare_shapes(case, "sd15_controlnet", &theirs, |vs| ControlNet::new(vs, &config));
    }
}

/// Compares `reference/network`: the authors' network in the layout of their checkpoints.
pub(crate) fn reference(case: &Case) {
    let _no_grad = tch::no_grad_guard();
    let yaml = case.json::<Value>("config.json");
    let unet_config = unet_of_yaml(&yaml);
    let weights = case.weights("weights");
    let unet = unet_config.canonical(weights.clone()).unwrap();
    let unet = filled(&unet, |vs| UNet2DConditionModel::new(vs, &unet_config));
    let file = case.tensors("network.safetensors");
    let [x, t, context, hint] = ["x", "t", "context", "hint"].map(|name| file.get(name));
    for only_mid_control in [false, true] {
        let mut config = ControlNetConfig {
            unet: unet_config.clone(),
            form: ControlForm::SemanticGuided,
            only_mid_control,
            ..Default::default()
        };
        let weights = config.canonical(weights.clone()).unwrap();
        let weights = config.fit_fusion(weights).unwrap();
        assert!(config.fusion, "the fusion of this file is not zero");
        let control = filled(&weights, |vs| ControlNet::new(vs, &config));
        let hint = control.hint(&hint);
        let (residuals, maps) = observe(|| control.forward(&x, &t, &context, &hint));
        let eps = unet.forward(&x, &t, &context, Some(&residuals));
        case.near(&format!("eps.only_mid_control_{only_mid_control}"), &eps, NETWORK);
        if only_mid_control {
            continue;
        }
        case.near("guided_hint", &hint, NETWORK);
        case.within("t_emb", &maps["time_proj"], |_| sinusoids(&t));
        case.near("emb.control", &maps["time_embedding"], NETWORK);
        for (i, out) in residuals.skips.iter().chain([&residuals.mid]).enumerate() {
            case.near(&format!("sgn.out.{i}"), out, NETWORK);
        }
        for i in file.names().filter_map(|name| name.strip_prefix("sgn.pre_sff.")) {
            case.near(&format!("sgn.pre_sff.{i}"), &maps[&format!("controlnet_down_blocks.{i}")], NETWORK);
        }
    }
    case.near("eps.no_control", &unet.forward(&x, &t, &context, None), NETWORK);
}
