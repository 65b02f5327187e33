//! Anomaly scores of samples from a denoiser that was trained on normal samples alone. None of them is a generated
//! sample; each takes a few evaluations of the network.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, TchError, Tensor};

use super::schedule::Schedule;

/// A rule by which a denoiser scores a sample, cell by cell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
}

impl Rule {
    /// Returns the timesteps of the rule if none are chosen.
    pub fn default_timesteps(self) -> Vec<u32> {
        match self {
            Self::Noise => vec![1],
            Self::Inversion | Self::Reconstruction => vec![150, 300, 450],
        }
    }

    /// Returns the lowest of the timesteps, which ascend, at which the network is asked. An inversion begins at 0, whatever its
    /// timesteps are.
    pub fn lowest_timestep(self, timesteps: &[u32]) -> u32 {
        match self {
            Self::Noise | Self::Reconstruction => timesteps.first().copied().unwrap_or_default(),
            Self::Inversion => 0,
        }
    }

    /// Scores samples `x` [B, C, h, w] -> [B, h, w], means over the channels. `model` predicts for a noisy sample and a
    /// timestep what `schedule` says; `noise` returns standard normal numbers like `x` for a timestep.
    pub fn scores<E: From<TchError>>(
        self,
        schedule: &Schedule,
        timesteps: &[i64],
        x: &Tensor,
        model: impl Fn(&Tensor, i64) -> Result<Tensor, E>,
        noise: impl Fn(i64) -> Result<Tensor, E>,
    ) -> Result<Tensor, E> {
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
                    let noisy = x * signal + noise(t)? * sigma;
                    sum += schedule.interpret(&model(&noisy, t)?, &noisy, t).sample;
                }
                Ok(energy(&(sum / count - x))?)
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

    fn normal(key: &str) -> Tensor {
        Noise::new(1, key).normal(&[2, 3, 4, 4]).unwrap()
    }

    /// Scores a sample by a network that takes everything for noise except the part `known`.
    fn scores(rule: Rule, timesteps: &[i64], x: &Tensor, known: &Tensor) -> Tensor {
        let schedule = ScheduleConfig::default().build().unwrap();
        let model = |noisy: &Tensor, t: i64| {
            let alpha = schedule.alpha_cumprod(t);
            Ok::<_, TchError>((noisy - known * alpha.sqrt()) / (1. - alpha).sqrt())
        };
        rule.scores(&schedule, timesteps, x, model, |t| Ok(normal(&t.to_string()))).unwrap()
    }

    #[test]
    fn what_the_network_knows_has_no_reconstruction_error() {
        let (x, other) = (normal("x"), normal("other"));
        // The prediction divides a rounding of 2⁻²⁴ · 5 by √ᾱ, which is above 0.5, and the square is smaller still.
        let error = |known: &Tensor| scores(Rule::Reconstruction, &[150, 300], &x, known);
        assert!(error(&x).max().double_value(&[]) < 1e-9);
        let distance = (&x - &other).square().mean_dim([1_i64].as_slice(), false, Kind::Float);
        // A mean of three squares up to 50, each rounded by some 2⁻²².
        assert!((error(&other) - distance).abs().max().double_value(&[]) < 1e-4);
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
        let found = scores(Rule::Noise, &[10, 100], &x, &known);
        let relative = (found / ((at(10) + at(100)) / 2.) - 1.).abs().max().double_value(&[]);
        // Sums of three squares, rounded a few times by 2⁻²⁴ each.
        assert!(relative < 1e-5, "{relative}");
    }

    #[test]
    fn inversion_leads_a_known_sample_to_the_noise_that_is_seen_in_it() {
        let x = normal("x");
        let schedule = ScheduleConfig::default().build().unwrap();
        // A network that sees no noise: the sample only shrinks.
        let none = |noisy: &Tensor, _: i64| Ok::<_, TchError>(noisy.zeros_like());
        let found = Rule::Inversion.scores(&schedule, &[150, 300], &x, none, |_| Ok(x.shallow_clone())).unwrap();
        let share = schedule.alpha_cumprod(300) / schedule.alpha_cumprod(0);
        let wanted = x.square().mean_dim([1_i64].as_slice(), false, Kind::Float) * share;
        // Sums of three squares times two factors, rounded a few times by 2⁻²⁴ each.
        assert!((found / wanted - 1.).abs().max().double_value(&[]) < 1e-5);
    }
}
