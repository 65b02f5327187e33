//! Samplers and guidance.

use super::{
    Case,
    networks::{filled, unet_of_yaml},
    schedule::noised,
    tolerance::NETWORK,
    vae,
};
use serde_json::Value;
use std::convert::Infallible;
use tch::{Device, Tensor, nn::VarStore};
use vlmdiff::{
    diffusion::{
        guidance::Guidance,
        sampler::{Ddim, DdimConfig, TimestepSpacing},
        schedule::ScheduleConfig,
    },
    models::{
        control::{ControlForm, ControlNet, ControlNetConfig},
        unet::UNet2DConditionModel,
        vae::{AutoencoderKl, AutoencoderKlConfig},
    },
};

/// Returns the tolerance under guidance by `scale`. Guidance by w weighs two predictions with w and w − 1, whose errors
/// are independent of each other: √(w² + (w − 1)²) times that of a network. The latents are as large as the guided
/// predictions make them, and the remaining errors of earlier steps grow alike.
fn guided(scale: &Value) -> f64 {
    let scale = scale.as_f64().unwrap_or(1.);
    NETWORK * (scale.powi(2) + (scale - 1.).powi(2)).sqrt()
}

/// Compares `models/sd_ddim_loop`: text to image and image to image under guidance, with the networks of the set.
pub(super) fn loops(case: &Case) {
    let meta: Value = case.json("meta.json");
    let scale = meta["guidance_scale"].as_f64().unwrap();
    let beside = |folder: &str| case.checkpoint(&format!("../{folder}/diffusion_pytorch_model.safetensors"));
    let vae_config: AutoencoderKlConfig = case.json("../vae/config.json");
    let [unet_vs, vae_vs] = [(); 2].map(|()| VarStore::new(Device::Cpu));
    let unet = UNet2DConditionModel::new(unet_vs.root(), &case.json("../unet/config.json")).unwrap();
    let vae = AutoencoderKl::new(vae_vs.root(), &vae_config).unwrap();
    beside("unet").load_into(&unet_vs).unwrap();
    beside("vae").load_into(&vae_vs).unwrap();
    let schedule: ScheduleConfig = case.json("scheduler_config.json");
    let schedule = schedule.build().unwrap();
    let contexts = case.input("context_uncond_cond");
    let (unconditional, conditional) = (contexts.narrow(0, 0, 1), contexts.narrow(0, 1, 1));
    let guidance = Guidance::new(&conditional, &unconditional, scale).unwrap();
    let run = |ddim: &Ddim, name: &str, x: Tensor| {
        let mut x = x;
        for (i, t) in ddim.timesteps().iter().enumerate() {
            let model = |x: &Tensor, context: &Tensor| Ok(unet.forward(x, &Tensor::from_slice(&[*t]), context, None));
            let output = guidance.predict(&x, model).unwrap();
            x = ddim.step(i, &x, &output, |_| Err::<Tensor, _>("eta is 0")).unwrap();
            case.close(&format!("{name}.{i}"), &x, guided(&meta["guidance_scale"]) / NETWORK);
        }
        x
    };
    tch::no_grad(|| {
        let steps = meta["steps"].as_u64().unwrap() as u32;
        let config = DdimConfig { num_inference_steps: steps, noise_level: None, ..Default::default() };
        let ddim = config.build(&schedule).unwrap();
        case.exact("timesteps", &Tensor::from_slice(ddim.timesteps()));
        let x = run(&ddim, "t2i", case.input("latents"));
        let image = vae.decode(&(x / vae_config.scaling_factor));
        case.close("t2i.image", &image, 1. + guided(&meta["guidance_scale"]) / NETWORK);

        let skipped = steps as usize - (f64::from(steps) * meta["strength"].as_f64().unwrap()) as usize;
        let first = ddim.timesteps()[skipped] as u32;
        let ddim = DdimConfig { first_step: Some(first), ..config }.build(&schedule).unwrap();
        case.exact("i2i.timesteps", &Tensor::from_slice(ddim.timesteps()));
        let latents = vae.encode(&case.input("image")).mean * vae_config.scaling_factor;
        let x = ddim.start(&latents, &case.input("noise"));
        case.close("i2i.noised", &x, 1.);
        let _ = run(&ddim, "i2i", x);
    });
}

/// The authors' networks, filled from a file in the layout of their checkpoints.
pub(super) struct Authors {
    pub(super) unet: UNet2DConditionModel,
    pub(super) control: ControlNet,
    pub(super) vae: AutoencoderKl,
    pub(super) scaling_factor: f64,
}

impl Authors {
    /// Reads the networks of `reference`, which lies at this path from the case.
    pub(super) fn new(case: &Case, reference: &str) -> Self {
        let yaml: Value = case.json(&format!("{reference}config.json"));
        let unet_config = unet_of_yaml(&yaml);
        let mut control_config = ControlNetConfig {
            unet: unet_config.clone(),
            form: ControlForm::SemanticGuided,
            only_mid_control: true,
            ..Default::default()
        };
        let vae_config = vae::of_yaml(&yaml);
        let weights = case.weights(&format!("{reference}weights"));
        let [unet, control, vae] = [
            unet_config.canonical(weights.clone()),
            control_config.canonical(weights.clone()).and_then(|control| control_config.fit_fusion(control)),
            vae_config.canonical(weights),
        ]
        .map(Result::unwrap);
        Self {
            unet: filled(&unet, |vs| UNet2DConditionModel::new(vs, &unet_config)),
            control: filled(&control, |vs| ControlNet::new(vs, &control_config)),
            vae: filled(&vae, |vs| AutoencoderKl::new(vs, &vae_config)),
            scaling_factor: yaml["model"]["scale_factor"].as_f64().unwrap(),
        }
    }
}

/// Compares `reference/sampling`: `log_images_test` of the authors, with the empty caption, with a caption under
/// guidance, and with noise.
pub(super) fn reference_sampling(case: &Case) {
    let _no_grad = tch::no_grad_guard();
    let Authors { unet, control, vae, scaling_factor } = Authors::new(case, "");
    let settings: Value = case.json("sampling.json");
    let file = case.tensors("sampling.safetensors");
    let schedule = ScheduleConfig::default().build().unwrap();
    let hint = control.hint(&file.get("jpg_and_hint"));
    // the predictions of each step, [steps, unconditional and conditional, …], and the latent after it, [steps, 1, …]
    let run = |ddim: &Ddim, guidance: &Guidance, mut x: Tensor, noises: Option<Tensor>| {
        let hint = guidance.extend(&hint).unwrap();
        let (mut predictions, mut trajectory) = (vec![], vec![]);
        for (i, t) in ddim.timesteps().iter().enumerate() {
            let model = |x: &Tensor, contexts: &Tensor| {
                let t = Tensor::full([x.size()[0]], *t, (tch::Kind::Int64, tch::Device::Cpu));
                let residuals = control.forward(x, &t, contexts, &hint);
                let output = unet.forward(x, &t, contexts, Some(&residuals));
                let rows = output.size()[0];
                predictions.push(Tensor::cat(&[output.narrow(0, rows - 1, 1), output.narrow(0, 0, 1)], 0));
                Ok(output)
            };
            let output = guidance.predict(&x, model).unwrap();
            let noise = |_| Ok::<_, Infallible>(noises.as_ref().expect("eta is 0").get(i as i64));
            x = ddim.step(i, &x, &output, noise).unwrap();
            trajectory.push(x.shallow_clone());
        }
        (Tensor::stack(&predictions, 0), Tensor::stack(&trajectory, 0), x)
    };
    let guidance = |name: &str, scale: &Value| {
        let of = |what: &str| file.get(&format!("{name}.{what}"));
        Guidance::new(&of("context"), &of("uncond_context"), scale.as_f64().unwrap()).unwrap()
    };
    for name in ["empty", "caption"] {
        case.part(|| {
            let key = |what: &str| format!("{name}.{what}");
            let setting = &settings[name];
            let noise_level = setting["q_sample_t"].as_u64().map(|t| t as u32);
            let ddim = DdimConfig { noise_level, ..Default::default() }.build(&schedule).unwrap();
            let guidance = guidance(name, &setting["guidance_scale"]);
            case.equal(&key("ddim_timesteps"), &serde_json::json!(ddim.timesteps()), &setting["ddim_timesteps"]);
            let (z, noise) = (file.get(&key("z")), file.get(&key("noise")));
            let x = ddim.start(&z, &noise);
            case.within(&key("x_T"), &x, noised(&z, &noise));
            // The empty caption is not guided.
            let tolerance = if name == "empty" { NETWORK } else { guided(&setting["guidance_scale"]) };
            let (predictions, trajectory, x) = run(&ddim, &guidance, x, None);
            case.near(&key("eps_uncond_cond"), &predictions, tolerance);
            case.near(&key("trajectory"), &trajectory, tolerance);
            case.near(&key("samples"), &vae.decode(&(x / scaling_factor)), tolerance + NETWORK);
            if name == "empty" {
                case.near(&key("reconstruction"), &vae.decode(&(z / scaling_factor)), NETWORK);
            }
        });
    }
    case.part(|| {
        let setting = &settings["eta"];
        let steps = setting["steps_asked"].as_u64().unwrap_or_else(|| case.missing("eta of sampling.json"));
        let config = DdimConfig {
            num_inference_steps: steps as u32,
            eta: setting["eta"].as_f64().unwrap(),
            timestep_spacing: TimestepSpacing::Uniform,
            ..Default::default()
        };
        let ddim = config.build(&schedule).unwrap();
        let mut timesteps = ddim.timesteps().to_vec();
        timesteps.reverse();
        let contexts = guidance("caption", &setting["guidance_scale"]);
        case.equal("eta.timesteps_run", &serde_json::json!(timesteps), &setting["timesteps_run"]);
        let (_, trajectory, _) = run(&ddim, &contexts, file.get("empty.x_T"), Some(file.get("eta.noises")));
        case.near("eta.trajectory", &trajectory, guided(&setting["guidance_scale"]));
    });
}
