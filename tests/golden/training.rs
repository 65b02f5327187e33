//! Optimisers, losses and training steps.

use super::{
    Case,
    tolerance::{GRADIENT, NETWORK},
    vae,
};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use tch::{Device, Kind, TchError, Tensor, nn::VarStore};
use vlmdiff::{
    diffusion::{
        loss::denoising_loss,
        schedule::ScheduleConfig,
        vae_gan::{Reduction, TermWeights},
    },
    models::{
        checkpoint::Checkpoint,
        lpips::Lpips,
        patchgan::{PatchGan, PatchGanConfig},
        unet::UNet2DConditionModel,
        vae::AutoencoderKl,
    },
    stages::train_autoencoder::{AutoencoderObjective, Discriminator, Statistics},
    training::{
        Trainer,
        optim::{Ema, Named, Optimizer, OptimizerConfig, Rule, train_only},
        step,
    },
};

/// Compares a linear layer fitted by each optimiser, with clipping and an average; and the gradients of a denoising
/// loss.
pub(super) fn steps(case: &Case) {
    let file = case.tensors("expected.safetensors");
    let last = file.names().filter_map(|name| name.split_once(".w.")?.1.parse::<u32>().ok()).max();
    let steps = last.map_or(0, |last| last + 1);
    let expect = |name: &str, got: &Tensor| {
        if file.names().any(|other| other == name) {
            case.close(name, got, 10.);
        }
    };
    for (name, config) in [
        ("adamw", OptimizerConfig { lr: 0.01, weight_decay: 0.05, ..Default::default() }),
        (
            "adam_l2",
            OptimizerConfig { rule: Rule::Adam, lr: 0.01, betas: [0.5, 0.9], weight_decay: 0.02, ..Default::default() },
        ),
        (
            "sgd",
            OptimizerConfig { rule: Rule::Sgd, lr: 0.025, betas: [0.9, 0.], weight_decay: 0.002, ..Default::default() },
        ),
    ] {
        let w = case.input("w").copy().set_requires_grad(true);
        let parameters = || Named::from([("w".to_owned(), w.shallow_clone())]);
        let ema = Some(Ema::new(&parameters(), 0.99));
        let mut trainer = Trainer { optimizer: Optimizer::new(parameters(), config), max_grad_norm: 1., ema };
        for i in 0..steps {
            let mut value = Tensor::new();
            let norms = step(std::slice::from_mut(&mut trainer), 1, 1, |_, _| {
                let output = case.input("x").linear(&w, None::<Tensor>);
                let loss = (output - case.input("y")).square().mean(Kind::Float);
                value = loss.detach();
                Ok::<_, TchError>(loss)
            });
            for (what, got) in [("loss", &value), ("gradnorm", &Tensor::from(norms.unwrap()[0])), ("w", &w)] {
                expect(&format!("{name}.{what}.{i}"), got);
            }
            expect(&format!("{name}.ema.{i}"), &trainer.ema.as_ref().unwrap().averages()["w"]);
        }
    }
    if case.has("../unet/diffusion_pytorch_model.safetensors") {
        denoising_gradients(case);
    }
}

fn denoising_gradients(case: &Case) {
    let vs = VarStore::new(Device::Cpu);
    let unet = UNet2DConditionModel::new(vs.root(), &case.json("../unet/config.json")).unwrap();
    case.checkpoint("../unet/diffusion_pytorch_model.safetensors").load_into(&vs).unwrap();
    let schedule = ScheduleConfig::default().build().unwrap();
    let [z, eps, t, context] = ["z", "eps", "t", "context"].map(|name| case.input(name));
    let zt = schedule.q_sample(&z, &eps, &t);
    case.close("ldm.zt", &zt, 10.);
    let loss = denoising_loss(&schedule, &unet.forward(&zt, &t, &context, None), &z, &eps, &t, None);
    case.close("ldm.loss", &loss, 10.);
    let mut optimizer = Optimizer::new(train_only(&vs, |_| true), OptimizerConfig::default());
    optimizer.backward(&loss).unwrap();
    let gradients: BTreeMap<&str, Option<&Tensor>> = optimizer.gradients().collect();
    for (name, parameter) in [
        ("conv_in.weight", "conv_in.weight"),
        ("down0.attn2.to_k", "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"),
        ("conv_out.bias", "conv_out.bias"),
    ] {
        case.close(&format!("ldm.grad.{name}"), gradients[parameter].unwrap(), 10.);
    }
}

/// The content of `ae_loss.json`.
#[derive(Deserialize)]
struct AeLoss {
    config: AeConfig,
    adam_defaults: AdamDefaults,
    #[serde(rename = "three_iterations_lr2e-5_global_step_50001")]
    iterations: Vec<BTreeMap<String, f64>>,
    #[serde(flatten)]
    cases: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct AeConfig {
    ddconfig: Value,
    lossconfig: LossConfig,
    patchgan_ndf: i64,
}

#[derive(Deserialize)]
struct LossConfig {
    params: LossParams,
}

#[derive(Deserialize)]
struct LossParams {
    kl_weight: f64,
    disc_weight: f64,
}

#[derive(Deserialize)]
pub(super) struct AdamDefaults {
    pub(super) lr: f64,
    pub(super) betas: [f64; 2],
    pub(super) eps: f64,
    pub(super) weight_decay: f64,
}

/// One of the four settings of `ae_loss.json`.
#[derive(Deserialize)]
struct Setting {
    opt0: BTreeMap<String, f64>,
    opt1: BTreeMap<String, f64>,
    grad_norm_opt0: BTreeMap<String, f64>,
    grad_norm_opt1: BTreeMap<String, f64>,
}

/// The autoencoder with its losses and its two optimisers, before the first step.
struct Start {
    objective: AutoencoderObjective,
    trainers: [Trainer; 2],
}

impl Start {
    fn new(golden: &AeLoss, weights: &Checkpoint, batch_norm: Statistics) -> Self {
        let AeConfig { ddconfig, lossconfig: LossConfig { params }, patchgan_ndf } = &golden.config;
        let config = vae::of_ddconfig(ddconfig);
        let [vs, judge_vs] = [(); 2].map(|()| VarStore::new(Device::Cpu));
        let network = AutoencoderKl::new(vs.root(), &config).unwrap();
        config.canonical(weights.clone()).unwrap().load_into(&vs).unwrap();
        let judge = PatchGanConfig { ndf: *patchgan_ndf, ..Default::default() };
        let discriminator = Some(PatchGan::new(judge_vs.root(), &judge).unwrap());
        PatchGan::canonical(weights.clone()).unwrap().load_into(&judge_vs).unwrap();
        let perceptual = Some(Lpips::load(weights.clone(), weights.clone(), Device::Cpu).unwrap());
        let weights = TermWeights { reduction: Reduction::Sum, mse: 0., perceptual: 1., kl: params.kl_weight };
        let adversary = Discriminator { weight: params.disc_weight, batch_norm, config: judge, ..Default::default() };
        let AdamDefaults { lr, betas, eps, weight_decay } = golden.adam_defaults;
        let config = OptimizerConfig { rule: Rule::Adam, lr, betas, eps, weight_decay };
        let trainer = |parameters| Trainer {
            optimizer: Optimizer::new(parameters, config.clone()),
            max_grad_norm: f64::INFINITY,
            ema: None,
        };
        let trainers = [train_only(&vs, |_| true), train_only(&judge_vs, PatchGan::is_parameter)].map(trainer);
        Self { objective: AutoencoderObjective { network, perceptual, discriminator, weights, adversary }, trainers }
    }
}

/// The tolerance of the distance of images whose features, as unit vectors, differ by a fifth of their length or more.
/// Each is wrong by 2 · [`NETWORK`], which counts ten times in the square of the difference. The images are made by a
/// network, so three networks follow one another.
const DISTANCE: f64 = 20. * NETWORK;
/// The tolerance of a term of the loss, a mean over maps that are wrong by three networks in a row, and of the weight
/// of the adversarial one, which is the ratio of two gradients.
const TERM: f64 = 2. * GRADIENT;
/// The tolerance that each step adds. A step of Adam is as long for a gradient that is only rounding as for any other,
/// and then its direction depends on the machine. Terms move by the learning rate over the size of a weight, 2e-5 over
/// a few hundredths.
const STEP: f64 = 1e-3;

/// Returns the norm of the gradients of the parameters whose names begin with `prefix`.
fn norm(trainer: &Trainer, prefix: &str) -> f64 {
    let squares = trainer
        .optimizer
        .gradients()
        .filter(|(name, _)| name.starts_with(prefix))
        .filter_map(|(_, g)| Some(g?.to_kind(Kind::Double).square().sum(Kind::Double).double_value(&[])));
    squares.sum::<f64>().sqrt()
}

pub(super) fn autoencoder(case: &Case) {
    let golden: AeLoss = case.json("ae_loss.json");
    let weights = case.weights("ae_loss_weights");
    let tensors = case.tensors("ae_loss.safetensors");
    let x = tensors.get("x");
    let noises = ["opt0", "opt1"].map(|which| tensors.get(&format!("posterior_noise.{which}")));
    let near = |name: &str, got: f64, want: f64, tolerance: f64| {
        case.number(name, got, want, tolerance * want.abs().max(1e-3))
    };

    // the outputs of the autoencoder and of the networks of its loss
    let start = Start::new(&golden, &weights, Statistics::Eval);
    tch::no_grad(|| {
        let network = &start.objective.network;
        let posterior = network.encode(&x);
        case.near("moments", &Tensor::cat(&[&posterior.mean, &posterior.logvar], 1), NETWORK);
        let y = network.decode(&posterior.sample(&noises[0]));
        case.near("reconstruction.opt0", &y, 2. * NETWORK);
        let distances = start.objective.perceptual.as_ref().unwrap().forward(&x, &y);
        case.near("lpips", &distances.view([-1, 1, 1, 1]), DISTANCE);
        let fake = start.objective.discriminator.as_ref().unwrap().forward(&y, false);
        for name in ["logits_fake.gs0", "logits_fake.gs50001"] {
            case.near(name, &fake, 3. * NETWORK);
        }
    });

    // each term, and the gradients
    let values = (x.numel() as i64 / x.size()[0]) as f64;
    for (name, setting) in &golden.cases {
        let Some((batch_norm, global_step)) = name.split_once(".global_step_") else { continue };
        let setting: Setting = serde_json::from_value(setting.clone()).unwrap();
        let batch_norm = if batch_norm == "eval" { Statistics::Eval } else { Statistics::Train };
        let factor = if global_step.parse::<u64>().unwrap() >= 50_001 { 1. } else { 0. };
        let mut start = Start::new(&golden, &weights, batch_norm);
        let terms = start.objective.autoencoder_loss(&x, &noises[0], Some(factor)).unwrap();
        let (g, d_weight) = terms.adversarial.as_ref().unwrap();
        let value = |x: &Tensor| x.double_value(&[]);
        let nll = value(&terms.reconstruction) * values;
        for (term, want) in &setting.opt0 {
            let got = match term.as_str() {
                "loss" | "total_loss" => value(&terms.total),
                "kl_loss" => value(&terms.kl) * values,
                "nll_loss" => nll,
                "rec_loss" => value(&terms.reconstruction),
                "d_weight" => value(d_weight),
                "g_loss" => value(g),
                "disc_factor" => factor,
                "logvar" => 0., // a constant of the published code that ours lacks
                other => panic!("{name} has a term {other}"),
            };
            near(&format!("{name}.opt0.{term}"), got, *want, TERM);
        }
        let [autoencoder, judge] = &mut start.trainers;
        autoencoder.optimizer.backward(&terms.total).unwrap();
        for (part, want) in &setting.grad_norm_opt0 {
            // the derivative with respect to the constant is the number of values less the loss
            let got = if part == "loss.logvar" { (values - nll).abs() } else { norm(autoencoder, &format!("{part}.")) };
            near(&format!("{name}.grad_norm_opt0.{part}"), got, *want, 2. * GRADIENT);
        }
        let judgement = start.objective.discriminator_loss(&x, &noises[1], factor).unwrap();
        for (term, want) in &setting.opt1 {
            let got = match term.as_str() {
                "disc_loss" => value(&judgement.total),
                "logits_real" => value(&judgement.real),
                "logits_fake" => value(&judgement.fake),
                other => panic!("{name} has a term {other}"),
            };
            near(&format!("{name}.opt1.{term}"), got, *want, TERM);
        }
        judge.optimizer.backward(&judgement.total).unwrap();
        for (part, want) in &setting.grad_norm_opt1 {
            near(&format!("{name}.grad_norm_opt1.{part}"), norm(judge, ""), *want, GRADIENT);
        }
    }

    // both optimisers take turns, the second after the step of the first
    let Start { objective, mut trainers } = Start::new(&golden, &weights, Statistics::Eval);
    for (i, want) in golden.iterations.iter().enumerate() {
        let mut got = BTreeMap::new();
        let mut note = |name: &str, value: &Tensor| _ = got.insert(name.to_owned(), value.double_value(&[]));
        step(&mut trainers, 1, 1, |which, _| {
            if which == 0 {
                let terms = objective.autoencoder_loss(&x, &noises[0], Some(1.))?;
                let (g, d_weight) = terms.adversarial.as_ref().unwrap();
                note("opt0", &terms.total);
                note("opt0.total_loss", &terms.total);
                note("opt0.kl_loss", &(&terms.kl * values));
                note("opt0.nll_loss", &(&terms.reconstruction * values));
                note("opt0.rec_loss", &terms.reconstruction);
                note("opt0.d_weight", d_weight);
                note("opt0.g_loss", g);
                return Ok::<_, TchError>(terms.total);
            }
            let judgement = objective.discriminator_loss(&x, &noises[1], 1.).unwrap();
            note("opt1", &judgement.total);
            note("opt1.disc_loss", &judgement.total);
            note("opt1.logits_real", &judgement.real);
            note("opt1.logits_fake", &judgement.fake);
            Ok(judgement.total)
        })
        .unwrap();
        got.extend([("opt0.disc_factor".to_owned(), 1.), ("opt0.logvar".to_owned(), 0.)]);
        for (term, want) in want {
            near(&format!("iteration {i}: {term}"), got[term], *want, TERM + i as f64 * STEP);
        }
    }
}
