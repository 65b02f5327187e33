//! Training steps of the authors' network, by the stage's own objective.

use super::{
    Case,
    networks::{filled, unet_of_yaml},
    schedule::noised,
    tolerance::{GRADIENT, NETWORK},
    training::AdamDefaults,
    vae,
};
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use tch::{Device, Kind, TchError, Tensor, nn::VarStore, no_grad};
use vlmdiff::{
    diffusion::{loss::mse_per_row, schedule::ScheduleConfig},
    models::{
        checkpoint::{Checkpoint, to_safetensors},
        control::{ControlForm, ControlNetConfig},
        denoiser::{Denoiser, Published},
        vae::AutoencoderKl,
    },
    stages::train_denoiser::{DenoisingObjective, Trainable},
    training::{
        Trainer,
        optim::{Optimizer, OptimizerConfig, Rule, train_only},
        step,
    },
};

/// The tolerance of a loss, a mean of squares of numbers that are each wrong by a share of [`NETWORK`]. The errors are
/// independent of each other over more than a hundred cells, so that a tenth of 2 · [`NETWORK`] is left; the reserve is
/// a factor of two.
pub(super) const LOSS: f64 = 0.4 * NETWORK;
/// The tolerance of a loss after steps along gradients that are wrong by [`GRADIENT`]: if a loss changes by about
/// itself, the change is wrong by as much.
pub(super) const STEPPED: f64 = GRADIENT;

/// A part of `training.json`.
#[derive(Deserialize)]
struct Steps {
    losses: Vec<f64>,
    grad_norm_group: BTreeMap<String, f64>,
    grad_norm_param: BTreeMap<String, f64>,
    no_grad_params: Vec<String>,
    delta_norm_group_after_step1: BTreeMap<String, f64>,
    delta_norm_group_after_step3: BTreeMap<String, f64>,
    vlb: f64,
    frozen_unchanged: bool,
}

#[derive(Deserialize)]
struct Recomputed {
    loss: f64,
    grad_norm_group: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
struct Golden {
    adamw_defaults: AdamDefaults,
    only_mid_control_true: Option<Steps>,
    only_mid_control_false: Option<Steps>,
    checkpointing_check: Option<Recomputed>,
}

/// The network, the trainer of the parameters that the authors train, and one batch.
pub(super) struct Training {
    objective: DenoisingObjective,
    trainer: [Trainer; 1],
    vs: VarStore,
    /// The published name of every parameter, and ours.
    names: BTreeMap<String, String>,
    /// z, noise, t, context, hint.
    batch: [Tensor; 5],
}

impl Training {
    /// Makes the training of the network of `reference`, which lies at this path from the case, from published weights.
    pub(super) fn new(
        case: &Case,
        reference: &str,
        published: Checkpoint,
        batch: impl Fn(&str) -> Tensor,
        only_mid_control: bool,
        adamw: &AdamDefaults,
    ) -> Self {
        let yaml: Value = case.json(&format!("{reference}config.json"));
        let config = ControlNetConfig {
            unet: unet_of_yaml(&yaml),
            form: ControlForm::SemanticGuided,
            fusion: true,
            only_mid_control,
            ..Default::default()
        };
        let names = names(&case.weights(&format!("{reference}weights")), &config);
        let vs = VarStore::new(Device::Cpu);
        let objective = DenoisingObjective {
            denoiser: Denoiser::open(&vs, &config, Published::new(published, &config).unwrap()).unwrap(),
            schedule: ScheduleConfig::default().build().unwrap(),
            min_snr_gamma: None,
            kind: Kind::Float,
            gradient_checkpointing: false,
        };
        let AdamDefaults { lr, betas, eps, weight_decay } = *adamw;
        let config = OptimizerConfig { rule: Rule::AdamW, lr, betas, eps, weight_decay };
        let optimizer = Optimizer::new(train_only(&vs, |name| Trainable::ControlAndDecoder.trains(name)), config);
        let trainer = [Trainer { optimizer, max_grad_norm: f64::INFINITY, ema: None }];
        let batch = ["z", "noise", "t", "context", "hint"].map(batch);
        Self { objective, trainer, vs, names, batch }
    }

    /// Takes one step; returns the loss before it.
    pub(super) fn step(&mut self) -> f64 {
        let (objective, [z, noise, t, context, hint]) = (&self.objective, &self.batch);
        let mut value = f64::NAN;
        let loss = |_, _| {
            let loss = objective.loss(z, noise, t, context, Some(hint));
            value = loss.value.double_value(&[]);
            Ok::<_, TchError>(loss)
        };
        step(&mut self.trainer, 1, 1, loss).unwrap();
        value
    }

    pub(super) fn loss(&self) -> f64 {
        let [z, noise, t, context, hint] = &self.batch;
        no_grad(|| self.objective.loss(z, noise, t, context, Some(hint))).value.double_value(&[])
    }

    /// Returns the gradients of the trained parameters in the last step, by published name.
    pub(super) fn gradients(&self) -> BTreeMap<&str, Option<&Tensor>> {
        let ours: BTreeMap<&str, Option<&Tensor>> = self.trainer[0].optimizer.gradients().collect();
        let names = self.names.iter().map(|(published, name)| (published.as_str(), name.as_str()));
        names.filter_map(|(published, name)| Some((published, *ours.get(name)?))).collect()
    }

    /// Returns copies of all weights by published name.
    pub(super) fn weights(&self) -> BTreeMap<String, Tensor> {
        let variables = self.vs.variables();
        self.names.iter().map(|(published, name)| (published.clone(), variables[name].detach().copy())).collect()
    }
}

/// Returns the published name of every parameter and ours, as the loaders translate them.
fn names(weights: &Checkpoint, config: &ControlNetConfig) -> BTreeMap<String, String> {
    let published: Vec<&str> = weights.names().collect();
    let numbered = published.iter().enumerate().map(|(i, name)| ((*name).to_owned(), Tensor::from_slice(&[i as i64])));
    let numbered = Checkpoint::from_safetensors(to_safetensors(numbered, HashMap::new()).unwrap()).unwrap();
    let unet = config.unet.canonical(numbered.clone()).unwrap();
    let control = config.canonical(numbered).unwrap();
    let mut names = BTreeMap::new();
    for (part, ours) in [("unet", unet), ("control", control)] {
        for name in ours.names() {
            let i = ours.tensor(name).unwrap().int64_value(&[0]) as usize;
            names.insert(published[i].to_owned(), format!("{part}.{name}"));
        }
    }
    names
}

/// Returns true if a published name belongs to a group of `training.json`: a module, or several with numbered names.
fn is_in(name: &str, group: &str) -> bool {
    name.strip_prefix(group).is_some_and(|rest| rest.starts_with(|c: char| c == '.' || c.is_ascii_digit()))
}

pub(super) fn square(x: &Tensor) -> f64 {
    x.to_kind(Kind::Double).square().sum(Kind::Double).double_value(&[])
}

pub(super) fn by_name(tensors: &[(String, Tensor)]) -> impl Iterator<Item = (&str, &Tensor)> {
    tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
}

/// Compares the norms of groups of tensors.
pub(super) fn groups<'t>(
    case: &Case,
    what: &str,
    tensors: impl Iterator<Item = (&'t str, &'t Tensor)>,
    want: &BTreeMap<String, f64>,
) {
    let squares: Vec<(&str, f64)> = tensors.map(|(name, tensor)| (name, square(tensor))).collect();
    for (group, want) in want {
        let got: f64 = squares.iter().filter(|(name, _)| is_in(name, group)).map(|(_, square)| square).sum();
        case.number(&format!("{what} of {group}"), got.sqrt(), *want, GRADIENT * want);
    }
}

/// Compares `reference/training`.
pub(super) fn steps(case: &Case) {
    let golden: Golden = case.json("training.json");
    latents(case);
    let weights = case.weights("weights");
    let tensors = case.tensors("training.safetensors");
    let batch = |name: &str| tensors.get(name);
    for (only_mid_control, want) in [(true, &golden.only_mid_control_true), (false, &golden.only_mid_control_false)] {
        let name = |what: &str| format!("only_mid_control {only_mid_control}: {what}");
        let Some(want) = want else {
            case.absent(&name("all of it"));
            continue;
        };
        let mut training = Training::new(case, "", weights.clone(), batch, only_mid_control, &golden.adamw_defaults);
        let start = training.weights();
        let moved = |training: &Training| -> Vec<(String, Tensor)> {
            let now = training.weights();
            now.into_iter().map(|(name, now)| (name.clone(), now - &start[&name])).collect()
        };
        let relative = |what: &str, got: f64, want: f64, by: f64| case.number(&name(what), got, want, by * want.abs());
        predictions(case, &training, only_mid_control, want);

        relative("loss before", training.step(), want.losses[0], LOSS);
        let gradients = training.gradients();
        let defined = gradients.iter().filter_map(|(name, gradient)| Some((*name, (*gradient)?)));
        groups(case, &name("gradient"), defined, &want.grad_norm_group);
        let none: Vec<&str> = gradients.iter().filter(|(_, g)| g.is_none()).map(|(name, _)| *name).collect();
        let mut without: Vec<&str> = want.no_grad_params.iter().map(String::as_str).collect();
        without.sort_unstable();
        case.equal(&name("parameters without gradient"), &none, &without);
        let largest = want.grad_norm_param.values().copied().fold(0., f64::max);
        for (parameter, want) in &want.grad_norm_param {
            let got = gradients.get(parameter.as_str()).copied().flatten().map_or(f64::NAN, |g| square(g).sqrt());
            // If the true gradient is zero, the norm is only rounding, of sums of √n · L terms as large as those of the
            // others.
            let bound = if *want > 1e-6 * largest { 10. * GRADIENT * want } else { 1e-6 * largest };
            case.number(&name(&format!("gradient of {parameter}")), got, *want, bound);
        }
        let prefix = format!("grad.omc_{only_mid_control}.");
        let tensors = case.tensors("training.safetensors");
        for parameter in tensors.names().filter_map(|name| name.strip_prefix(&prefix)) {
            case.near(&format!("{prefix}{parameter}"), gradients[parameter].unwrap(), GRADIENT);
        }
        let deltas = moved(&training);
        groups(case, &name("first step"), by_name(&deltas), &want.delta_norm_group_after_step1);

        for after in 1..want.losses.len() - 1 {
            relative(&format!("loss after {after}"), training.step(), want.losses[after], STEPPED);
        }
        let after = want.losses.len() - 1;
        relative(&format!("loss after {after}"), training.loss(), want.losses[after], STEPPED);
        let deltas = moved(&training);
        groups(case, &name("three steps"), by_name(&deltas), &want.delta_norm_group_after_step3);
        let trained: Vec<&str> = training.gradients().into_keys().collect();
        let frozen = deltas.iter().filter(|(name, _)| !trained.contains(&name.as_str()));
        let unchanged = frozen.map(|(_, delta)| square(delta)).sum::<f64>() == 0.;
        case.equal(&name("frozen weights"), &unchanged, &want.frozen_unchanged);
    }

    let Some(want) = &golden.checkpointing_check else { return case.absent("checkpointing_check") };
    let mut training = Training::new(case, "", weights, batch, true, &golden.adamw_defaults);
    training.objective.gradient_checkpointing = true;
    case.number("loss with gradient checkpointing", training.step(), want.loss, LOSS * want.loss);
    let gradients = training.gradients();
    let defined = gradients.iter().filter_map(|(name, gradient)| Some((*name, (*gradient)?)));
    groups(case, "gradient with gradient checkpointing", defined, &want.grad_norm_group);
}

/// Compares the latents of the batch: a draw from the moments, and its noisy sample.
fn latents(case: &Case) {
    let yaml: Value = case.json("config.json");
    let config = vae::of_yaml(&yaml);
    let tensors = case.tensors("training.safetensors");
    let network = filled(&config.canonical(case.weights("weights")).unwrap(), |vs| AutoencoderKl::new(vs, &config));
    let posterior = no_grad(|| network.encode(&tensors.get("jpg")));
    case.near("z", &(posterior.sample(&tensors.get("posterior_noise")) * config.scaling_factor), NETWORK);
    let schedule = ScheduleConfig::default().build().unwrap();
    let [z, noise, t] = ["z", "noise", "t"].map(|name| tensors.get(name));
    case.within("x_noisy", &schedule.q_sample(&z, &noise, &t), noised(&z, &noise));
}

/// Compares the prediction before the first step, and its weighted error, which the authors' program logs.
fn predictions(case: &Case, training: &Training, only_mid_control: bool, want: &Steps) {
    let [z, noise, t, context, hint] = &training.batch;
    let prediction = no_grad(|| training.objective.predict(None, z, noise, t, context, Some(hint)));
    case.near(&format!("eps_pred.omc_{only_mid_control}"), &prediction, NETWORK);
    let schedule = &training.objective.schedule;
    let weight = |t: i64| {
        let (now, before) = (schedule.alpha_cumprod(t), schedule.alpha_cumprod(t - 1));
        let alpha = now / before;
        // β² / (2 σ² α (1 − ᾱ)) with the variance of the posterior, β (1 − ᾱ_before) / (1 − ᾱ)
        (1. - alpha) / (2. * alpha * (1. - before))
    };
    let weights: Vec<f64> = Vec::<i64>::try_from(t).unwrap().into_iter().map(weight).collect();
    let errors = Vec::<f32>::try_from(mse_per_row(&prediction, noise)).unwrap();
    let vlb = errors.iter().zip(&weights).map(|(error, weight)| f64::from(*error) * weight).sum::<f64>();
    let vlb = vlb / weights.len() as f64;
    case.number(&format!("only_mid_control {only_mid_control}: vlb"), vlb, want.vlb, 2. * NETWORK * want.vlb);
}

/// A part of `zero_init_experiment.json`: the weights that start at zero, by whether training moves them.
#[derive(Deserialize)]
struct Experiment {
    zero_at_init: Vec<String>,
    still_exactly_zero_grad_none: Vec<String>,
    still_exactly_zero_grad_zero: Vec<String>,
    moved: Vec<String>,
}

/// Compares `reference/zero_init_experiment`: from Stable Diffusion's U-Net, as the authors start.
pub(super) fn zero_init(case: &Case) {
    let golden: BTreeMap<String, Value> = case.json("zero_init_experiment.json");
    case.tensors("training.safetensors").skip(""); // compared in `reference/training`
    let Golden { adamw_defaults, .. } = case.json("training.json");
    let unet = case.weights("weights").retain(|name| !name.starts_with("control_model."));
    // the other tensors of the file are compared by `steps`
    let file = case.checkpoint("training.safetensors");
    let batch = |name: &str| {
        let tensor = file.tensor(name).unwrap();
        if tensor.kind() == Kind::Half { tensor.to_kind(Kind::Float) } else { tensor }
    };
    for only_mid_control in [true, false] {
        let key = format!("only_mid_control_{only_mid_control}");
        let Some(want) = golden.get(&key) else {
            case.absent(&key);
            continue;
        };
        let want: Experiment = serde_json::from_value(want.clone()).unwrap();
        // Only zeros are compared, so the start weights need no seed; the generator is shared by tests that run beside.
        let mut training = Training::new(case, "", unet.clone(), batch, only_mid_control, &adamw_defaults);
        let zeros = |training: &Training| -> Vec<String> {
            let zero = |weight: &Tensor| weight.any().int64_value(&[]) == 0;
            training.weights().into_iter().filter(|(_, weight)| zero(weight)).map(|(name, _)| name).collect()
        };
        let sorted = |names: &[String]| {
            let mut names = names.to_vec();
            names.sort_unstable();
            names
        };
        let start: Vec<String> =
            zeros(&training).into_iter().filter(|name| name.starts_with("control_model")).collect();
        case.equal(&format!("{key}: zero at first"), &start, &sorted(&want.zero_at_init));
        for _ in 0..4 {
            training.step();
        }
        let (still, gradients) = (zeros(&training), training.gradients());
        let moved: Vec<String> = start.iter().filter(|name| !still.contains(name)).cloned().collect();
        case.equal(&format!("{key}: moved"), &moved, &sorted(&want.moved));
        let (none, zero): (Vec<String>, Vec<String>) =
            start.into_iter().filter(|name| still.contains(name)).partition(|name| gradients[name.as_str()].is_none());
        case.equal(&format!("{key}: without gradient"), &none, &sorted(&want.still_exactly_zero_grad_none));
        case.equal(&format!("{key}: zero gradient"), &zero, &sorted(&want.still_exactly_zero_grad_zero));
    }
}
