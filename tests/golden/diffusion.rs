//! Schedules, samplers and guidance.

use super::{
    Case,
    networks::{filled, unet_of_yaml},
    vae,
};
use serde_json::Value;
use std::convert::Infallible;
use tch::{Device, Tensor, nn::VarStore};
use vlmdiff::{
    diffusion::{
        guidance::Guidance,
        sampler::{Ddim, DdimConfig, TimestepSpacing, VarianceType},
        schedule::{PredictionType, Schedule, ScheduleConfig},
    },
    models::{
        control::{ControlForm, ControlNet, ControlNetConfig},
        unet::UNet2DConditionModel,
        vae::{AutoencoderKl, AutoencoderKlConfig},
    },
};

const PREDICTIONS: [(&str, PredictionType); 3] = [
    ("epsilon", PredictionType::Epsilon),
    ("v_prediction", PredictionType::VPrediction),
    ("sample", PredictionType::Sample),
];

fn floats(values: impl IntoIterator<Item = f64>) -> Tensor {
    Tensor::from_slice(&values.into_iter().collect::<Vec<f64>>())
}

fn alphas_cumprod(schedule: &Schedule) -> Vec<f64> {
    (0..schedule.num_train_timesteps() as i64).map(|t| schedule.alpha_cumprod(t)).collect()
}

/// The sampler that visits `t` within `steps` steps, and the step that begins there.
fn step_at(config: &DdimConfig, schedule: &Schedule, t: i64) -> (Ddim, usize) {
    let ddim = config.build(schedule).unwrap();
    let i = ddim.timesteps().iter().position(|at| *at == t).unwrap_or_else(|| panic!("no step at {t}"));
    (ddim, i)
}

/// `models/schedules`: diffusers' tables, timesteps and single steps.
pub(super) fn schedules(case: &Case) {
    super::unet::timestep_embeddings(case);
    let meta: Value = case.json("meta.json");
    let (x, noise, eps) = (case.input("x"), case.input("noise"), case.input("eps"));
    let build = |name: &str, prediction_type| {
        let config: ScheduleConfig = serde_json::from_value(meta["betas"][name].clone()).unwrap();
        let config = ScheduleConfig { prediction_type, ..config };
        (config.betas(), config.build().unwrap())
    };
    for name in meta["betas"].as_object().unwrap().keys() {
        let (betas, schedule) = build(name, PredictionType::Epsilon);
        case.close(&format!("{name}.betas"), &floats(betas), 1.);
        case.close(&format!("{name}.alphas_cumprod"), &floats(alphas_cumprod(&schedule)), 1.);
        let (_, velocity) = build(name, PredictionType::VPrediction);
        for t in [0, 1, 250, 999] {
            let at = Tensor::from_slice(&[t]);
            case.close(&format!("{name}.add_noise.{t}"), &schedule.q_sample(&x, &noise, &at), 1.);
            case.close(&format!("{name}.velocity.{t}"), &velocity.target(&x, &noise, &at), 1.);
        }
    }
    for (name, timestep_spacing) in [
        ("ddim_timesteps.leading", TimestepSpacing::Leading),
        ("ddim_timesteps.trailing", TimestepSpacing::Trailing),
        ("ddim_timesteps.linspace", TimestepSpacing::Linspace),
        ("ldm_ddim_timesteps.uniform", TimestepSpacing::Uniform),
    ] {
        for num_inference_steps in [50, 20, 10, 7] {
            let config = DdimConfig { num_inference_steps, timestep_spacing, ..Default::default() };
            let mut timesteps = config.timesteps(&build("sd", PredictionType::Epsilon).1);
            let name = format!("{name}.{num_inference_steps}");
            if name.starts_with("ldm") {
                timesteps.reverse();
            }
            case.close(&name, &Tensor::from_slice(&timesteps), 0.);
        }
    }
    // near the clean end diffusers' 1 − ᾱ is what two f32 near 1 leave, 1e-4 and less; ours is computed in f64
    let slack = |t: i64| if t <= 1 { 10. } else { 1. };
    let draw = |_| Ok::<_, Infallible>(noise.shallow_clone());
    for (prediction, prediction_type) in PREDICTIONS {
        let (_, schedule) = build("sd", prediction_type);
        // `plain` is DDPM's own way of counting: from timestep 0, to a clean sample
        for (set, steps_offset, set_alpha_to_one) in [("sd", 1, false), ("plain", 0, true)] {
            for (t, eta) in [950, 450, 0]
                .into_iter()
                .flat_map(|t| [(t + i64::from(steps_offset), 0.), (t + i64::from(steps_offset), 0.7)])
            {
                let config =
                    DdimConfig { num_inference_steps: 20, eta, steps_offset, set_alpha_to_one, ..Default::default() };
                let (ddim, i) = step_at(&config, &schedule, t);
                let key = format!("ddim.{set}.{prediction}.t{t}.eta{eta:.1}");
                case.close(&format!("{key}.prev"), &ddim.step(i, &x, &eps, draw).unwrap(), slack(t));
                case.close(&format!("{key}.x0"), &schedule.interpret(&eps, &x, t).sample, 1.);
            }
        }
    }
    // DDPM is DDIM at eta 1 that visits every timestep
    let (_, schedule) = build("ddpm", PredictionType::Epsilon);
    let ddpm = DdimConfig {
        num_inference_steps: 1000,
        eta: 1.,
        steps_offset: 0,
        set_alpha_to_one: true,
        ..Default::default()
    };
    for (name, variance_type, clip_sample, timesteps) in [
        ("fixed_small", VarianceType::FixedSmall, false, &[0, 1, 500, 999][..]),
        ("fixed_large_clip", VarianceType::FixedLarge, true, &[1, 500, 999]),
    ] {
        for t in timesteps {
            let (ddim, i) = step_at(&DdimConfig { variance_type, clip_sample, ..ddpm.clone() }, &schedule, *t);
            case.close(&format!("ddpm.{name}.t{t}.prev"), &ddim.step(i, &x, &eps, draw).unwrap(), slack(*t));
        }
    }
}

/// `models/sd_ddim_loop`: text to image and image to image under guidance, with the networks of the set.
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
            case.close(&format!("{name}.{i}"), &x, 10.);
        }
        x
    };
    tch::no_grad(|| {
        let steps = meta["steps"].as_u64().unwrap() as u32;
        let config = DdimConfig { num_inference_steps: steps, noise_level: None, ..Default::default() };
        let ddim = config.build(&schedule).unwrap();
        case.close("timesteps", &Tensor::from_slice(ddim.timesteps()), 0.);
        let x = run(&ddim, "t2i", case.input("latents"));
        case.close("t2i.image", &vae.decode(&(x / vae_config.scaling_factor)), 10.);

        let skipped = steps as usize - (f64::from(steps) * meta["strength"].as_f64().unwrap()) as usize;
        let first = ddim.timesteps()[skipped] as u32;
        let ddim = DdimConfig { first_step: Some(first), ..config }.build(&schedule).unwrap();
        case.close("i2i.timesteps", &Tensor::from_slice(ddim.timesteps()), 0.);
        let latents = vae.encode(&case.input("image")).mean * vae_config.scaling_factor;
        let x = ddim.start(&latents, &case.input("noise"));
        case.close("i2i.noised", &x, 10.);
        let _ = run(&ddim, "i2i", x);
    });
}

/// `reference/schedule`: the buffers of the authors' model, and what their sampler derives from them.
pub(super) fn reference_schedule(case: &Case) {
    const TOLERANCE: f64 = 1e-7;
    let config = ScheduleConfig::default();
    let (betas, schedule) = (config.betas(), config.build().unwrap());
    let alphas = alphas_cumprod(&schedule);
    case.near("betas", &floats(betas.iter().copied()), TOLERANCE);
    case.near("alphas_cumprod", &floats(alphas.iter().copied()), TOLERANCE);
    let previous: Vec<f64> = std::iter::once(1.).chain(alphas.iter().copied()).take(alphas.len()).collect();
    case.near("alphas_cumprod_prev", &floats(previous.iter().copied()), TOLERANCE);
    case.near("sqrt_alphas_cumprod", &floats(alphas.iter().map(|a| a.sqrt())), TOLERANCE);
    case.near("sqrt_one_minus_alphas_cumprod", &floats(alphas.iter().map(|a| (1. - a).sqrt())), TOLERANCE);
    // what DDPM's posterior adds at timestep t is the sigma of a step at eta 1 that visits every timestep
    let every = DdimConfig {
        num_inference_steps: 1000,
        eta: 1.,
        steps_offset: 0,
        set_alpha_to_one: true,
        ..Default::default()
    };
    let ddpm = every.build(&schedule).unwrap();
    let last = alphas.len() - 1;
    let variance: Vec<f64> = (0..=last).map(|t| ddpm.coefficients(last - t).sigma.powi(2)).collect();
    case.near("posterior_variance", &floats(variance.iter().copied()), 1e-5);
    let logs = variance.iter().map(|v| v.max(1e-20).ln());
    case.near("posterior_log_variance_clipped", &floats(logs), 1e-6);
    let vlb = |t: usize| betas[t].powi(2) / (2. * variance[t] * (1. - betas[t]) * (1. - alphas[t]));
    case.near("lvlb_weights", &floats((0..=last).map(|t| vlb(t.max(1)))), 1e-4);

    for (name, num_inference_steps, eta) in
        [("ddim10", 10, 0.), ("ddim7", 7, 0.), ("ddim20", 20, 0.), ("ddim50", 50, 0.), ("ddim10_eta0.5", 10, 0.5)]
    {
        let timestep_spacing = TimestepSpacing::Uniform;
        let ddim =
            DdimConfig { num_inference_steps, eta, timestep_spacing, ..Default::default() }.build(&schedule).unwrap();
        let of = |f: &dyn Fn(usize) -> f64| floats((0..ddim.timesteps().len()).rev().map(f));
        case.near(&format!("{name}.sigmas"), &of(&|i| ddim.coefficients(i).sigma), 1e-6);
        if eta > 0. {
            continue;
        }
        case.near(&format!("{name}.timesteps"), &of(&|i| ddim.timesteps()[i] as f64), 0.);
        case.near(&format!("{name}.alphas"), &of(&|i| ddim.coefficients(i).alpha), TOLERANCE);
        case.near(&format!("{name}.alphas_prev"), &of(&|i| ddim.coefficients(i).alpha_prev), TOLERANCE);
        let sigma = |i: usize| (1. - ddim.coefficients(i).alpha).sqrt();
        case.near(&format!("{name}.sqrt_one_minus_alphas"), &of(&sigma), TOLERANCE);
    }
}

/// The authors' networks, filled from a file in the layout of their checkpoints.
struct Authors {
    unet: UNet2DConditionModel,
    control: ControlNet,
    vae: AutoencoderKl,
    scaling_factor: f64,
}

impl Authors {
    fn new(case: &Case) -> Self {
        let yaml: Value = case.json("config.json");
        let unet_config = unet_of_yaml(&yaml);
        let mut control_config = ControlNetConfig {
            unet: unet_config.clone(),
            form: ControlForm::SemanticGuided,
            only_mid_control: true,
            ..Default::default()
        };
        let vae_config = vae::of_yaml(&yaml);
        let weights = case.weights("weights");
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

/// `reference/sampling`: `log_images_test` of the authors, with the empty caption, with a caption under guidance, and with noise.
pub(super) fn reference_sampling(case: &Case) {
    const TOLERANCE: f64 = 5e-5;
    let _no_grad = tch::no_grad_guard();
    let Authors { unet, control, vae, scaling_factor } = Authors::new(case);
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
        let key = |what: &str| format!("{name}.{what}");
        let setting = &settings[name];
        let ddim = DdimConfig { noise_level: setting["q_sample_t"].as_u64().map(|t| t as u32), ..Default::default() };
        let ddim = ddim.build(&schedule).unwrap();
        case.equal(&key("ddim_timesteps"), &serde_json::json!(ddim.timesteps()), &setting["ddim_timesteps"]);
        let (z, noise) = (file.get(&key("z")), file.get(&key("noise")));
        let x = ddim.start(&z, &noise);
        case.near(&key("x_T"), &x, TOLERANCE);
        let (predictions, trajectory, x) = run(&ddim, &guidance(name, &setting["guidance_scale"]), x, None);
        case.near(&key("eps_uncond_cond"), &predictions, TOLERANCE);
        case.near(&key("trajectory"), &trajectory, TOLERANCE);
        case.near(&key("samples"), &vae.decode(&(x / scaling_factor)), TOLERANCE);
        if name == "empty" {
            case.near(&key("reconstruction"), &vae.decode(&(z / scaling_factor)), TOLERANCE);
        }
    }
    let setting = &settings["eta"];
    let config = DdimConfig {
        num_inference_steps: setting["steps_asked"].as_u64().unwrap() as u32,
        eta: setting["eta"].as_f64().unwrap(),
        timestep_spacing: TimestepSpacing::Uniform,
        ..Default::default()
    };
    let ddim = config.build(&schedule).unwrap();
    let mut timesteps = ddim.timesteps().to_vec();
    timesteps.reverse();
    case.equal("eta.timesteps_run", &serde_json::json!(timesteps), &setting["timesteps_run"]);
    let guidance = guidance("caption", &setting["guidance_scale"]);
    let (_, trajectory, _) = run(&ddim, &guidance, file.get("empty.x_T"), Some(file.get("eta.noises")));
    case.near("eta.trajectory", &trajectory, TOLERANCE);
}
