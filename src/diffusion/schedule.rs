//! The schedule: the share of the signal that is left at each timestep, and the quantity that the network predicts.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::f64::consts::FRAC_PI_2;
use tch::{Kind, Tensor};

/// The largest number of timesteps that is taken; each takes memory.
const MAX_TIMESTEPS: u32 = 1_000_000;

/// The growth of beta with the timestep.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Linear in the square root, latent diffusion.
    #[default]
    ScaledLinear,
    /// Linear, DDPM.
    Linear,
    /// Derived from a cosine of the remaining signal, capped at 0.999 (Nichol and Dhariwal 2021).
    SquaredcosCapV2,
}

/// The quantity that the network predicts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise.
    #[default]
    Epsilon,
    /// √ᾱ · noise − √(1 − ᾱ) · signal (Salimans and Ho 2022).
    VPrediction,
    /// The signal.
    Sample,
}

/// `scheduler_config.json`; the defaults are Stable Diffusion 1.5.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ScheduleConfig {
    /// Timesteps of training, numbered from 0.
    pub num_train_timesteps: u32,
    /// Beta at timestep 0.
    pub beta_start: f64,
    /// Beta at the last timestep.
    pub beta_end: f64,
    /// The growth of beta between them.
    pub beta_schedule: BetaSchedule,
    /// The quantity that the network predicts.
    pub prediction_type: PredictionType,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: BetaSchedule::ScaledLinear,
            prediction_type: PredictionType::Epsilon,
        }
    }
}

/// A schedule that describes no diffusion.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("schedule: {0}")]
pub struct ScheduleError(pub(super) String);

impl ScheduleConfig {
    /// Returns the variances added at each timestep, computed in f64.
    pub fn betas(&self) -> Vec<f64> {
        let count = self.num_train_timesteps;
        let along = |from: f64, to: f64, i: u32| from + f64::from(i) * (to - from) / f64::from(count.max(2) - 1);
        let signal = |i: u32| (((f64::from(i) / f64::from(count) + 0.008) / 1.008) * FRAC_PI_2).cos().powi(2);
        let beta = |i| match self.beta_schedule {
            BetaSchedule::ScaledLinear => along(self.beta_start.sqrt(), self.beta_end.sqrt(), i).powi(2),
            BetaSchedule::Linear => along(self.beta_start, self.beta_end, i),
            BetaSchedule::SquaredcosCapV2 => (1. - signal(i + 1) / signal(i)).min(0.999),
        };
        (0..count).map(beta).collect()
    }

    /// Builds the schedule; fails if there is no timestep, if there are too many, or if a beta is not between 0 and 1.
    pub fn build(&self) -> Result<Schedule, ScheduleError> {
        let wrong = || {
            ScheduleError(format!(
                "num_train_timesteps has to be from 1 to {MAX_TIMESTEPS}, beta_start and beta_end between 0 and 1"
            ))
        };
        if !(1..=MAX_TIMESTEPS).contains(&self.num_train_timesteps) {
            return Err(wrong());
        }
        let betas = self.betas();
        if !betas.iter().all(|beta| *beta > 0. && *beta < 1.) {
            return Err(wrong());
        }
        let left = |alpha: &mut f64, beta: &f64| {
            *alpha *= 1. - beta;
            Some(*alpha)
        };
        let alphas_cumprod = betas.iter().scan(1., left).collect();
        Ok(Schedule { alphas_cumprod, prediction_type: self.prediction_type })
    }
}

/// A table of ᾱ and the meaning of the network's output.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    alphas_cumprod: Vec<f64>,
    prediction_type: PredictionType,
}

/// The signal and noise that a prediction implies for a noisy sample.
#[derive(Debug)]
pub struct Prediction {
    /// The predicted signal.
    pub sample: Tensor,
    /// The predicted noise.
    pub epsilon: Tensor,
}

impl Schedule {
    /// Returns the number of timesteps of training.
    pub fn num_train_timesteps(&self) -> usize {
        self.alphas_cumprod.len()
    }

    /// Returns the quantity that the network predicts.
    pub fn prediction_type(&self) -> PredictionType {
        self.prediction_type
    }

    /// Returns ᾱ_t, the share of the signal's variance left at `t` in 0..len.
    pub fn alpha_cumprod(&self, t: i64) -> f64 {
        self.alphas_cumprod[t as usize]
    }

    /// Returns ᾱ at `t` `[B]`, i64 -> `[B]` f64.
    fn alphas(&self, t: &Tensor) -> Tensor {
        Tensor::from_slice(&self.alphas_cumprod).to_device(t.device()).index_select(0, t)
    }

    /// Returns √ᾱ and √(1 − ᾱ) of `t` `[B]`, i64, each shaped to multiply `like` [B, …].
    fn factors(&self, t: &Tensor, like: &Tensor) -> (Tensor, Tensor) {
        let mut shape = vec![1; like.dim()];
        shape[0] = -1;
        let alpha = self.alphas(t).view(shape.as_slice());
        let sigma = (-&alpha + 1.).sqrt();
        (alpha.sqrt().to_kind(like.kind()), sigma.to_kind(like.kind()))
    }

    /// Returns the sample at timesteps `t` `[B]`, i64: √ᾱ · x0 + √(1 − ᾱ) · noise, of `x0` and `noise` [B, …] (Ho et
    /// al. 2020, eq. 4).
    pub fn q_sample(&self, x0: &Tensor, noise: &Tensor, t: &Tensor) -> Tensor {
        let (signal, sigma) = self.factors(t, x0);
        x0 * signal + noise * sigma
    }

    /// Returns the output that the network should have for that sample, [B, …].
    pub fn target(&self, x0: &Tensor, noise: &Tensor, t: &Tensor) -> Tensor {
        match self.prediction_type {
            PredictionType::Epsilon => noise.shallow_clone(),
            PredictionType::Sample => x0.shallow_clone(),
            PredictionType::VPrediction => {
                let (signal, sigma) = self.factors(t, x0);
                noise * signal - x0 * sigma
            }
        }
    }

    /// Returns the signal and noise that the network's `output` implies for the sample `x` at timestep `t`.
    pub fn interpret(&self, output: &Tensor, x: &Tensor, t: i64) -> Prediction {
        let alpha = self.alpha_cumprod(t);
        let (signal, sigma) = (alpha.sqrt(), (1. - alpha).sqrt());
        match self.prediction_type {
            PredictionType::Epsilon => {
                Prediction { sample: (x - output * sigma) / signal, epsilon: output.shallow_clone() }
            }
            PredictionType::Sample => {
                Prediction { sample: output.shallow_clone(), epsilon: (x - output * signal) / sigma }
            }
            PredictionType::VPrediction => {
                Prediction { sample: x * signal - output * sigma, epsilon: output * signal + x * sigma }
            }
        }
    }

    /// Returns the signal-to-noise ratio ᾱ / (1 − ᾱ) at `t` `[B]`, i64 -> `[B]` f32.
    pub fn snr(&self, t: &Tensor) -> Tensor {
        let alpha = self.alphas(t);
        (&alpha / (-&alpha + 1.)).to_kind(Kind::Float)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values of the authors' schedule, computed in f64 and kept in f32.
    #[test]
    fn alphas_are_those_of_latent_diffusion() {
        let schedule = ScheduleConfig::default().build().unwrap();
        let known = [(0, 0.999150), (1, 0.998296), (101, 0.892981), (501, 0.274999), (901, 0.014005), (999, 0.004660)];
        for (t, alpha) in known {
            // The values are given to six digits; half of the last digit is 5e-7.
            assert!((schedule.alpha_cumprod(t) - alpha).abs() < 6e-7, "{t}: {}", schedule.alpha_cumprod(t));
        }
    }

    #[test]
    fn schedule_without_timesteps_or_with_more_than_memory_holds_is_refused() {
        for num_train_timesteps in [0, u32::MAX] {
            let error = ScheduleConfig { num_train_timesteps, ..Default::default() }.build().unwrap_err().to_string();
            assert!(error.contains("from 1 to 1000000"), "{error}");
        }
    }

    #[test]
    fn signal_and_noise_follow_from_every_prediction_type() {
        let of = |seed: &str| super::super::Noise::new(1, seed).normal(&[2, 3, 4, 4]).unwrap();
        let (x0, noise, t) = (of("x"), of("noise"), Tensor::from_slice(&[300_i64, 300]));
        for prediction_type in [PredictionType::Epsilon, PredictionType::VPrediction, PredictionType::Sample] {
            let schedule = ScheduleConfig { prediction_type, ..Default::default() }.build().unwrap();
            let x = schedule.q_sample(&x0, &noise, &t);
            let told = schedule.interpret(&schedule.target(&x0, &noise, &t), &x, 300);
            // x up to 5 is rounded four times by 2⁻²⁴, and divided by √ᾱ or √(1 − ᾱ), which are above 0.5 at 300.
            assert!((told.sample - &x0).abs().max().double_value(&[]) < 3e-6, "{prediction_type:?}");
            assert!((told.epsilon - &noise).abs().max().double_value(&[]) < 3e-6, "{prediction_type:?}");
        }
    }

    #[test]
    fn betas_and_timesteps_out_of_range_are_refused() {
        let of = |beta_end| ScheduleConfig { beta_end, ..Default::default() }.build();
        assert!(of(1.5).unwrap_err().to_string().contains("between 0 and 1"));
        assert!(ScheduleConfig { num_train_timesteps: 0, ..Default::default() }.build().is_err());
        assert_eq!(
            ScheduleConfig { num_train_timesteps: 1, ..Default::default() }.build().unwrap().num_train_timesteps(),
            1
        );
    }
}
