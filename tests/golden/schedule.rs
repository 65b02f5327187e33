//! Noise schedules and single steps.

use super::{
    Case,
    tolerance::{F32, Table, each, share, sinusoids},
};
use serde_json::Value;
use std::convert::Infallible;
use tch::{Kind, Tensor};
use vlmdiff::{
    diffusion::{
        sampler::{Ddim, DdimConfig, TimestepSpacing, VarianceType},
        schedule::{PredictionType, Schedule, ScheduleConfig},
    },
    models::unet::timestep_embedding,
};

fn floats(values: impl IntoIterator<Item = f64>) -> Tensor {
    Tensor::from_slice(&values.into_iter().collect::<Vec<f64>>())
}

/// Reads a word of the published configurations.
fn named<T: serde::de::DeserializeOwned>(word: &str) -> Option<T> {
    serde_json::from_value(Value::from(word)).ok()
}

/// Compares `models/schedules`: diffusers' tables, timesteps and single steps. The name of a tensor holds its settings.
pub(super) fn schedules(case: &Case) {
    let file = case.tensors("expected.safetensors");
    let names: Vec<String> = file.names().map(str::to_owned).collect();
    let steps = Steps::new(case, &names);
    for name in &names {
        case.part(|| match name.split_once('.') {
            Some(("timestep_embedding", options)) => embedding(case, name, options),
            Some(("ddim_timesteps" | "ldm_ddim_timesteps", rest)) => timesteps(case, name, rest),
            Some(("ddim", rest)) => _ = steps.ddim(name, rest),
            Some(("ddpm", rest)) if rest.starts_with("fixed_") => _ = steps.ddpm(name, rest),
            Some((schedule, rest)) => _ = steps.table(name, schedule, rest),
            None => {}
        });
    }
}

/// Compares sinusoids of timesteps: `timestep_embedding.320.flip`, `timestep_embedding.32.noflip_shift1`. The timesteps
/// are found from the sine of the lowest frequency.
fn embedding(case: &Case, name: &str, options: &str) {
    let (width, options) = options.split_once('.').unwrap_or((options, ""));
    let (width, flip) = (width.parse::<i64>().unwrap(), options.starts_with("flip"));
    let shift = options.split_once("_shift").map_or(0., |(_, shift)| shift.parse().unwrap());
    let half = width / 2;
    let want = case.tensors("expected.safetensors").get(name).to_kind(Kind::Double);
    let lowest = (-(1e4_f64.ln()) * (half - 1) as f64 / (half as f64 - shift)).exp();
    let sine = want.select(1, if flip { width - 1 } else { half - 1 });
    let t = (sine.asin() / lowest).round().to_kind(Kind::Int64);
    case.expect(name, &timestep_embedding(&t, width, flip, shift), |_| sinusoids(&t));
}

/// Compares the timesteps that samplers visit, `leading.20`; those of latent-diffusion ascend.
fn timesteps(case: &Case, name: &str, rest: &str) {
    let Some((spacing, steps)) = rest.split_once('.') else { return };
    let (Some(timestep_spacing), Ok(num_inference_steps)) = (named(spacing), steps.parse()) else { return };
    let config = DdimConfig { num_inference_steps, timestep_spacing, ..Default::default() };
    let mut timesteps = config.timesteps(&ScheduleConfig::default().build().unwrap());
    if name.starts_with("ldm_") {
        timesteps.reverse();
    }
    case.exact(name, &Tensor::from_slice(&timesteps));
}

/// The settings from which the steps of the set are computed.
struct Steps<'a> {
    case: &'a Case,
    betas: Value,
    /// The number of steps of the sampler.
    num_inference_steps: u32,
}

impl<'a> Steps<'a> {
    /// Reads the number of steps from the note in `meta.json`, `set_timesteps(20)`. Without it, the number follows from
    /// the first step, T − T / steps + offset.
    fn new(case: &'a Case, names: &[String]) -> Self {
        let meta: Value = case.json("meta.json");
        let note = meta["note"].as_str().unwrap_or_default();
        let said = note.split_once("set_timesteps(").and_then(|(_, rest)| rest.split(')').next()?.parse().ok());
        let first = names.iter().filter_map(|name| {
            let (_, rest) = name.strip_prefix("ddim.plain.")?.split_once(".t")?;
            rest.split('.').next()?.parse::<u32>().ok()
        });
        let guessed = || 1000 / (1000 - first.max().unwrap_or(950).min(999));
        Self { case, betas: meta["betas"].clone(), num_inference_steps: said.unwrap_or_else(guessed) }
    }

    fn config(&self, name: &str) -> Option<ScheduleConfig> {
        serde_json::from_value(self.betas.get(name)?.clone()).ok()
    }

    /// Compares `sd.betas`, `sd.alphas_cumprod`, `sd.add_noise.250` or `sd.velocity.250`. None for any other name.
    fn table(&self, name: &str, schedule: &str, rest: &str) -> Option<()> {
        let (case, config) = (self.case, self.config(schedule)?);
        let table = Table::new(&config);
        match rest {
            "betas" => case.expect(name, &floats(config.betas()), |_| Tensor::from(table.beta)),
            "alphas_cumprod" => case.expect(name, &floats(table.alphas.iter().copied()), |_| table.absolute()),
            _ => {
                let (what, t) = rest.split_once('.')?;
                let t: usize = t.parse().ok()?;
                let (x, noise, at) = (case.input("x"), case.input("noise"), Tensor::from_slice(&[t as i64]));
                let velocity = ScheduleConfig { prediction_type: PredictionType::VPrediction, ..config.clone() };
                let (got, of) = match what {
                    "add_noise" => (config.build().ok()?.q_sample(&x, &noise, &at), [&x, &noise]),
                    "velocity" => (velocity.build().ok()?.target(&x, &noise, &at), [&noise, &x]),
                    _ => return None,
                };
                let factors = |[alpha, _]: [f64; 2]| vec![vec![alpha.sqrt()], vec![(1. - alpha).sqrt()]];
                let bound = table.combination([Some(t), None], [table.alphas[t], 1.], &of, factors);
                case.expect(name, &got, |_| Tensor::from(bound));
            }
        }
        Some(())
    }

    /// Compares the end of a step, `sd.epsilon.t951.eta0.7.prev`, or the sample that it predicts, `….x0`.
    fn ddim(&self, name: &str, rest: &str) -> Option<()> {
        let (rest, what) = rest.rsplit_once('.')?;
        let (rest, eta) = rest.split_once(".eta")?;
        let (rest, t) = rest.rsplit_once(".t")?;
        let (set, prediction) = rest.split_once('.')?;
        // `plain` is DDPM's own way of counting: from timestep 0, to a clean sample.
        let (steps_offset, set_alpha_to_one) = match set {
            "sd" => (1, false),
            "plain" => (0, true),
            _ => return None,
        };
        let sampler = DdimConfig {
            num_inference_steps: self.num_inference_steps,
            eta: eta.parse().ok()?,
            steps_offset,
            set_alpha_to_one,
            ..Default::default()
        };
        let prediction_type: PredictionType = named(prediction)?;
        let schedule = ScheduleConfig { prediction_type, ..self.config("sd")? };
        self.step(name, &schedule, &sampler, t.parse().ok()?, what == "x0", 0.)
    }

    /// Compares `fixed_small.t500.prev` or `fixed_large_clip.t500.prev`: DDPM is DDIM at eta 1 that visits every
    /// timestep.
    fn ddpm(&self, name: &str, rest: &str) -> Option<()> {
        let (variance, rest) = rest.split_once(".t")?;
        let (variance, clip_sample) = variance.strip_suffix("_clip").map_or((variance, false), |name| (name, true));
        let variance_type: VarianceType = named(variance)?;
        let sampler = DdimConfig { variance_type, clip_sample, ..every_timestep() };
        let (schedule, t) = (self.config("ddpm")?, rest.strip_suffix(".prev")?.parse().ok()?);
        // diffusers weighs the sample and the predicted one by β and 1 − ᾱ of the step before, each over 1 − ᾱ. All
        // three are differences of f32 numbers near 1, and so wrong by a rounding of 1.
        let alpha = *Table::new(&schedule).alphas.get(t as usize)?;
        let size = |x: &Tensor| x.abs().max().double_value(&[]);
        let sizes = size(&self.case.input("x")) * (1. + 1. / alpha.sqrt()) + size(&self.case.input("eps"));
        self.step(name, &schedule, &sampler, t, false, 3. * F32 / (1. - alpha) * sizes)
    }

    /// Compares the step that begins at `t`. `beside` is added to the tolerance that follows from the table.
    fn step(
        &self,
        name: &str,
        schedule: &ScheduleConfig,
        sampler: &DdimConfig,
        t: i64,
        x0: bool,
        beside: f64,
    ) -> Option<()> {
        let case = self.case;
        let (x, noise, output) = (case.input("x"), case.input("noise"), case.input("eps"));
        let (table, built) = (Table::new(schedule), schedule.build().ok()?);
        let ddim = sampler.build(&built).ok()?;
        let Some(i) = ddim.timesteps().iter().position(|at| *at == t) else {
            case.fail(format!("{name}: a sampler of {} steps has none at {t}", sampler.num_inference_steps));
            return Some(());
        };
        let coefficients = ddim.coefficients(i);
        let alphas = [coefficients.alpha, coefficients.alpha_prev];
        let end = table.alphas.iter().position(|alpha| *alpha == coefficients.alpha_prev);
        let terms = |alphas| factors(schedule.prediction_type, sampler, alphas, x0);
        let bound = table.combination([Some(t as usize), end], alphas, &[&x, &output, &noise], terms) + beside;
        let got = if x0 {
            built.interpret(&output, &x, t).sample
        } else {
            ddim.step(i, &x, &output, |_| Ok::<_, Infallible>(noise.shallow_clone())).unwrap()
        };
        case.expect(name, &got, |_| Tensor::from(bound));
        Some(())
    }
}

fn every_timestep() -> DdimConfig {
    DdimConfig { num_inference_steps: 1000, eta: 1., steps_offset: 0, set_alpha_to_one: true, ..Default::default() }
}

/// Returns the factors of the sample, of the network's output and of the noise in a step, each a sum (Song et al., eq.
/// 12); with `x0`, those in the predicted sample.
fn factors(prediction: PredictionType, sampler: &DdimConfig, [alpha, end]: [f64; 2], x0: bool) -> Vec<Vec<f64>> {
    let (signal, sigma) = (alpha.sqrt(), (1. - alpha).max(0.).sqrt());
    let (sample, epsilon) = match prediction {
        PredictionType::Epsilon => ([1. / signal, -sigma / signal], [0., 1.]),
        PredictionType::Sample => ([0., 1.], [1. / sigma, -signal / sigma]),
        PredictionType::VPrediction => ([signal, -sigma], [sigma, signal]),
    };
    if x0 {
        return vec![vec![sample[0]], vec![sample[1]], vec![]];
    }
    let grown = (1. - alpha / end).max(0.);
    let small = sampler.eta * ((1. - end).max(0.) / (1. - alpha) * grown).sqrt();
    let std = if sampler.variance_type == VarianceType::FixedSmall { small } else { sampler.eta * grown.sqrt() };
    let (signal, sigma) = (end.sqrt(), (1. - end - small * small).max(0.).sqrt());
    let of = |i: usize| vec![signal * sample[i], sigma * epsilon[i]];
    vec![of(0), of(1), vec![std]]
}

/// Returns the tolerance of values of `reference/schedule` that were computed in f64 and rounded to f32 once.
fn rounded(want: &Tensor) -> Tensor {
    each(want, 1.01 * F32)
}

/// Compares `reference/schedule`: the buffers of the authors' model, and the values that their sampler derives from
/// them.
pub(super) fn reference(case: &Case) {
    let config = ScheduleConfig::default();
    let (betas, schedule) = (config.betas(), config.build().unwrap());
    let alphas = Table::new(&config).alphas;
    case.within("betas", &floats(betas.iter().copied()), rounded);
    case.within("alphas_cumprod", &floats(alphas.iter().copied()), rounded);
    let previous: Vec<f64> = std::iter::once(1.).chain(alphas.iter().copied()).take(alphas.len()).collect();
    case.within("alphas_cumprod_prev", &floats(previous.iter().copied()), rounded);
    case.within("sqrt_alphas_cumprod", &floats(alphas.iter().map(|a| a.sqrt())), rounded);
    case.within("sqrt_one_minus_alphas_cumprod", &floats(alphas.iter().map(|a| (1. - a).sqrt())), rounded);
    // The deviation of DDPM's posterior at timestep t is the sigma of a step at eta 1 that visits every timestep.
    let ddpm = every_timestep().build(&schedule).unwrap();
    let last = alphas.len() - 1;
    let variance: Vec<f64> = (0..=last).map(|t| ddpm.coefficients(last - t).sigma.powi(2)).collect();
    case.within("posterior_variance", &floats(variance.iter().copied()), rounded);
    let logs = variance.iter().map(|v| v.max(1e-20).ln());
    case.within("posterior_log_variance_clipped", &floats(logs), rounded);
    // The authors compute these from the buffers, in f32, and so from 1 − ᾱ of an ᾱ that was rounded near 1.
    let vlb = |t: usize| betas[t].powi(2) / (2. * variance[t] * (1. - betas[t]) * (1. - alphas[t]));
    let weights = floats((0..=last).map(|t| vlb(t.max(1))));
    let lost = floats((0..=last).map(|t| F32 * (8. + 1. / (1. - alphas[t.max(1)]))));
    case.within("lvlb_weights", &weights, |want| want.abs() * lost);

    // `ddim20.sigmas`, `ddim10_eta0.5.sigmas`
    let file = case.tensors("schedule.safetensors");
    for name in file.names().filter(|name| name.starts_with("ddim")) {
        let Some((sampler, what)) = name.rsplit_once('.') else { continue };
        let (steps, eta) = sampler.split_once("_eta").unwrap_or((sampler, "0"));
        let (Ok(steps), Ok(eta)) = (steps["ddim".len()..].parse(), eta.parse()) else { continue };
        derived(case, &schedule, name, what, steps, eta);
    }
}

/// Compares a value that the authors' sampler derives from the table in f32.
fn derived(case: &Case, schedule: &Schedule, name: &str, what: &str, num_inference_steps: u32, eta: f64) {
    let timestep_spacing = TimestepSpacing::Uniform;
    let sampler = DdimConfig { num_inference_steps, eta, timestep_spacing, ..Default::default() };
    let ddim = sampler.build(schedule).unwrap();
    let of = |f: &dyn Fn(usize) -> f64| floats((0..ddim.timesteps().len()).rev().map(f));
    let alphas = |ddim: &Ddim, i: usize| (ddim.coefficients(i).alpha, ddim.coefficients(i).alpha_prev);
    match what {
        "timesteps" => case.within(name, &of(&|i| ddim.timesteps()[i] as f64), |_| Tensor::from(0_f64)),
        "alphas" => case.within(name, &of(&|i| alphas(&ddim, i).0), rounded),
        "alphas_prev" => case.within(name, &of(&|i| alphas(&ddim, i).1), rounded),
        "sqrt_one_minus_alphas" => {
            // A rounding of ᾱ moves √(1 − ᾱ) by ᾱ / (2 √(1 − ᾱ)) roundings.
            let lost = of(&|i| F32 * (1. + alphas(&ddim, i).0 / (2. * (1. - alphas(&ddim, i).0))));
            case.within(name, &of(&|i| (1. - alphas(&ddim, i).0).sqrt()), |want| want * lost);
        }
        "sigmas" => {
            // Each of the four differences and ratios of rounded ᾱ is wrong by a rounding of it over its size.
            let lost = of(&|i| {
                let (alpha, end) = alphas(&ddim, i);
                F32 * (4. + 1. / (1. - alpha) + 1. / (1. - end) + 2. / (1. - alpha / end)) / 2.
            });
            case.within(name, &of(&|i| ddim.coefficients(i).sigma), |want| want * lost);
        }
        _ => {}
    }
}

/// Returns the tolerance of the values of `x` noised to any timestep.
pub(super) fn noised(x: &Tensor, noise: &Tensor) -> impl Fn(&Tensor) -> Tensor {
    // Two products and a sum, of a factor that was rounded once.
    let bound = 4. * F32 * (share(&x.to_kind(Kind::Double), 1.) + share(&noise.to_kind(Kind::Double), 1.));
    move |_| bound.shallow_clone()
}
