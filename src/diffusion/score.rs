//! Anomaly scores of samples from a denoiser that was trained on normal samples alone, by one or a few evaluations of the network;
//! the rule `ddim` takes as many as its sampler has steps.

use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, TchError, Tensor};

use super::{
    sampler::DdimConfig,
    schedule::{Schedule, ScheduleError},
};

/// A rule by which a denoiser scores a sample, cell by cell.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// The noise that the network sees in the sample, which has none: |ε(x, t)|², by default at t = 1.
    #[default]
    Noise,
    /// The distance from the centre of the noise to which DDIM's inversion leads the sample: |z|² after a step to each
    /// timestep, by default 150, 300 and 450 (InvAD, Sakai et al. 2025).
    Inversion,
    /// The distance between the sample and the mean of the samples that the network predicts from it with noise added:
    /// |x0 − x|², by default at t = 150, 300 and 450.
    Reconstruction,
    /// The distance between the sample and the one to which DDIM's steps lead from it with noise added, or after an inversion, as
    /// `reconstruct` takes them: |x0 − x|².
    Ddim(#[garde(dive)] GuidedSampling),
}

/// The sampler and the guidance of the rule `ddim`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
pub struct GuidedSampling {
    /// The sampler.
    #[garde(skip)]
    pub sampler: DdimConfig,
    /// Classifier-free guidance: the factor on the change that the caption makes. 1: no guidance.
    #[garde(range(min = 0., max = 100.))]
    pub guidance_scale: f64,
}

impl Default for GuidedSampling {
    fn default() -> Self {
        Self { sampler: DdimConfig::default(), guidance_scale: 1. }
    }
}

impl Rule {
    /// Returns the timesteps of the rule if none are chosen, and none for `ddim`.
    pub fn default_timesteps(&self) -> Vec<u32> {
        match self {
            Self::Noise => vec![1],
            Self::Inversion | Self::Reconstruction => vec![150, 300, 450],
            Self::Ddim(_) => vec![],
        }
    }

    /// Returns the lowest timestep at which the network is asked; `timesteps` ascend. The rule `inversion` begins at 0.
    ///
    /// # Errors
    /// Those of [`DdimConfig::build`].
    pub fn lowest_timestep(&self, schedule: &Schedule, timesteps: &[u32]) -> Result<i64, ScheduleError> {
        match self {
            Self::Noise | Self::Reconstruction => Ok(timesteps.first().copied().unwrap_or_default().into()),
            Self::Inversion => Ok(0),
            Self::Ddim(GuidedSampling { sampler, .. }) => Ok(sampler.build(schedule)?.lowest_timestep()),
        }
    }

    /// Returns the factor on the change that the caption makes to a prediction of the network.
    pub fn guidance_scale(&self) -> f64 {
        match self {
            Self::Noise | Self::Inversion | Self::Reconstruction => 1.,
            Self::Ddim(sampling) => sampling.guidance_scale,
        }
    }

    /// Scores samples `x` [B, C, h, w] -> [B, h, w], means over the channels. `model` predicts for a noisy sample and a
    /// timestep what `schedule` says; `noise` returns standard normal numbers like `x` for what they are drawn for.
    ///
    /// # Errors
    /// The errors of `model` and `noise`, and those of [`DdimConfig::build`].
    pub fn scores<E: From<TchError> + From<ScheduleError>>(
        &self,
        schedule: &Schedule,
        timesteps: &[i64],
        x: &Tensor,
        model: impl Fn(&Tensor, i64) -> Result<Tensor, E>,
        noise: impl Fn(&str) -> Result<Tensor, E>,
    ) -> Result<Tensor, E> {
        let noise_of_step = |t: i64| noise(&format!("step {t}"));
        let energy = |x: &Tensor| x.f_square()?.f_mean_dim([1_i64].as_slice(), false, Kind::Float);
        let level = |t: i64| {
            let alpha = schedule.alpha_cumprod(t);
            (alpha.sqrt(), (1. - alpha).sqrt())
        };
        let count = timesteps.len().max(1) as f64;
        match self {
            Self::Noise => {
                let mut sum = Tensor::from(0_f32);
                for &t in timesteps {
                    sum = sum + energy(&schedule.interpret(&model(x, t)?, x, t).epsilon)?; // [B, h, w]
                }
                Ok(sum / count)
            }
            Self::Inversion => {
                let (mut z, mut now) = (x.shallow_clone(), 0);
                for &then in timesteps {
                    let predicted = schedule.interpret(&model(&z, now)?, &z, now);
                    let (signal, sigma) = level(then);
                    (z, now) = (predicted.sample * signal + predicted.epsilon * sigma, then);
                }
                Ok(energy(&z)?)
            }
            Self::Reconstruction => {
                let mut sum = x.f_zeros_like()?;
                for &t in timesteps {
                    let (signal, sigma) = level(t);
                    let noisy = x * signal + noise_of_step(t)? * sigma;
                    sum += schedule.interpret(&model(&noisy, t)?, &noisy, t).sample;
                }
                Ok(energy(&(sum / count - x))?)
            }
            Self::Ddim(GuidedSampling { sampler, .. }) => {
                let ddim = sampler.build(schedule)?;
                let start = match ddim.invert(x, &model)? {
                    Some(inverted) => inverted,
                    None => ddim.start(x, &noise("start")?),
                };
                Ok(energy(&(ddim.sample(start, model, noise_of_step)? - x))?)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Noise, schedule::ScheduleConfig},
        *,
    };

    /// Any of the errors that a rule may meet.
    #[derive(Debug, thiserror::Error)]
    enum RuleError {
        #[error(transparent)]
        Tensor(#[from] TchError),
        #[error(transparent)]
        Schedule(#[from] ScheduleError),
    }

    fn normal(key: &str) -> Tensor {
        Noise::new(1, key).normal(&[2, 3, 4, 4]).unwrap()
    }

    /// Scores a sample by a network that takes everything for noise except the part `known`.
    fn scores(rule: &Rule, timesteps: &[i64], x: &Tensor, known: &Tensor) -> Tensor {
        let schedule = ScheduleConfig::default().build().unwrap();
        let model = |noisy: &Tensor, t: i64| {
            let alpha = schedule.alpha_cumprod(t);
            Ok::<_, RuleError>((noisy - known * alpha.sqrt()) / (1. - alpha).sqrt())
        };
        rule.scores(&schedule, timesteps, x, model, |what| Ok(normal(what))).unwrap()
    }

    #[test]
    fn what_the_network_knows_has_no_reconstruction_error() {
        let (x, other) = (normal("x"), normal("other"));
        // The prediction divides a rounding of 2⁻²⁴ · 5 by √ᾱ, which is above 0.5, and the square is smaller still.
        let error = |known: &Tensor| scores(&Rule::Reconstruction, &[150, 300], &x, known);
        assert!(error(&x).max().double_value(&[]) < 1e-9);
        let distance = (&x - &other).square().mean_dim([1_i64].as_slice(), false, Kind::Float);
        // A mean of three squares up to 50, each rounded by some 2⁻²².
        assert!((error(&other) - distance).abs().max().double_value(&[]) < 1e-4);
    }

    #[test]
    fn steps_lead_to_what_the_network_knows() {
        let (x, other) = (normal("x"), normal("other"));
        let sampler =
            DdimConfig { first_step: Some(301), noise_level: Some(300), set_alpha_to_one: true, ..Default::default() };
        let rule = Rule::Ddim(GuidedSampling { sampler, ..GuidedSampling::default() });
        let error = |known: &Tensor| scores(&rule, &[], &x, known);
        // Samples up to 5, rounded by 2⁻²⁴ of themselves a few times in each of four steps and divided by √(1 − ᾱ), which is 0.04
        // at the last: errors below 1e-4, squared.
        assert!(error(&x).max().double_value(&[]) < 1e-8);
        let distance = (&x - &other).square().mean_dim([1_i64].as_slice(), false, Kind::Float);
        assert!((error(&other) - distance).abs().max().double_value(&[]) < 1e-3);
    }

    #[test]
    fn noise_is_what_is_unknown_in_units_of_the_noise_of_the_timestep() {
        let (x, known) = (normal("x"), normal("known"));
        let schedule = ScheduleConfig::default().build().unwrap();
        let at = |t: i64| {
            let alpha = schedule.alpha_cumprod(t);
            let unknown = (&x - &known * alpha.sqrt()) / (1. - alpha).sqrt();
            unknown.square().mean_dim([1_i64].as_slice(), false, Kind::Float)
        };
        let found = scores(&Rule::Noise, &[10, 100], &x, &known);
        let relative = (found / ((at(10) + at(100)) / 2.) - 1.).abs().max().double_value(&[]);
        // Sums of three squares, rounded a few times by 2⁻²⁴ each.
        assert!(relative < 1e-5, "{relative}");
    }

    #[test]
    fn inversion_leads_a_known_sample_to_the_noise_that_is_seen_in_it() {
        let x = normal("x");
        let schedule = ScheduleConfig::default().build().unwrap();
        // A network that sees no noise: the sample only shrinks.
        let none = |noisy: &Tensor, _: i64| Ok::<_, RuleError>(noisy.zeros_like());
        let found = Rule::Inversion.scores(&schedule, &[150, 300], &x, none, |_| Ok(x.shallow_clone())).unwrap();
        let share = schedule.alpha_cumprod(300) / schedule.alpha_cumprod(0);
        let wanted = x.square().mean_dim([1_i64].as_slice(), false, Kind::Float) * share;
        // Sums of three squares times two factors, rounded a few times by 2⁻²⁴ each.
        assert!((found / wanted - 1.).abs().max().double_value(&[]) < 1e-5);
    }
}
