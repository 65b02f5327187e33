//! DDIM (Song et al. 2021): from noise to a sample in few steps.

use super::schedule::{Schedule, ScheduleError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// The choice of the schedule's timesteps that are visited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    /// 0, c, 2c, … + offset with c = T / steps rounded down, as many as there are steps (diffusers).
    #[default]
    Leading,
    /// T, T − T/steps, … − 1 (diffusers).
    Trailing,
    /// Evenly from 0 to T − 1 (diffusers).
    Linspace,
    /// 0, c, 2c, … below T, + offset: more than `num_inference_steps` if these do not divide T (CompVis
    /// latent-diffusion).
    Uniform,
}

/// The amount of noise that a step adds if eta > 0 (Song et al. 2021, section 4.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VarianceType {
    /// The noise that the step takes away: at eta 1 that of DDPM's posterior.
    #[default]
    FixedSmall,
    /// The noise of the forward process: β at eta 1 if every timestep is visited.
    FixedLarge,
}

/// The settings of sampling; the defaults are those of VLMDiff.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DdimConfig {
    /// Steps over the whole schedule.
    pub num_inference_steps: u32,
    /// 0: deterministic; 1: as noisy as DDPM.
    pub eta: f64,
    /// The amount of noise that a step adds if eta > 0.
    pub variance_type: VarianceType,
    /// True if the predicted sample is clamped to [-1, 1] and the noise follows from it, as in DDPM and in diffusers'
    /// `use_clipped_model_output`; for networks over pixels.
    pub clip_sample: bool,
    /// The choice of the timesteps that are visited.
    pub timestep_spacing: TimestepSpacing,
    /// The number that is added to the timesteps of the spacings `leading` and `uniform`.
    pub steps_offset: u32,
    /// True if the last step ends at ᾱ = 1 instead of at that of timestep 0.
    pub set_alpha_to_one: bool,
    /// Steps above this timestep are left out; absent: none.
    pub first_step: Option<u32>,
    /// The timestep to which a known sample is noised before the first step; absent: the first step's. VLMDiff noises
    /// to 999 and yet begins at 901, as its published code does.
    pub noise_level: Option<u32>,
    /// The timesteps, ascending, along which DDIM's inversion leads a known sample to the last of them, in place of noise
    /// (DIVAD, Hicsonmez et al.); the sample counts as one at the first. `noise_level` is then not used. Absent: noise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inversion: Option<Vec<u32>>,
}

impl Default for DdimConfig {
    fn default() -> Self {
        Self {
            num_inference_steps: 10,
            eta: 0.,
            variance_type: VarianceType::FixedSmall,
            clip_sample: false,
            timestep_spacing: TimestepSpacing::Leading,
            steps_offset: 1,
            set_alpha_to_one: false,
            first_step: None,
            noise_level: Some(999),
            inversion: None,
        }
    }
}

impl DdimConfig {
    /// Returns the timesteps in the order in which they are visited, descending.
    pub fn timesteps(&self, schedule: &Schedule) -> Vec<i64> {
        let (total, steps) = (schedule.num_train_timesteps(), self.num_inference_steps as usize);
        let (ratio, offset) = (total / steps.max(1), i64::from(self.steps_offset));
        let mut timesteps: Vec<i64> = match self.timestep_spacing {
            TimestepSpacing::Leading => (0..steps).rev().map(|i| (i * ratio) as i64 + offset).collect(),
            TimestepSpacing::Uniform => (0..total).step_by(ratio.max(1)).rev().map(|t| t as i64 + offset).collect(),
            TimestepSpacing::Trailing => {
                let stride = total as f64 / steps as f64;
                (0..steps).map(|i| (total as f64 - i as f64 * stride).round_ties_even() as i64 - 1).collect()
            }
            TimestepSpacing::Linspace => {
                let stride = (total - 1) as f64 / (steps.max(2) - 1) as f64;
                (0..steps).rev().map(|i| (i as f64 * stride).round_ties_even() as i64).collect()
            }
        };
        timesteps.retain(|t| self.first_step.is_none_or(|first| *t <= i64::from(first)));
        timesteps
    }

    /// Binds the sampler to `schedule`; fails if it would visit no timestep or one that the schedule does not have.
    pub fn build(&self, schedule: &Schedule) -> Result<Ddim, ScheduleError> {
        let total = schedule.num_train_timesteps();
        let fail = |message: String| Err(ScheduleError(message));
        if self.num_inference_steps == 0 || self.num_inference_steps as usize > total {
            return fail(format!("num_inference_steps {} has to be within 1 to {total}", self.num_inference_steps));
        }
        if !(0. ..=1.).contains(&self.eta) {
            return fail(format!("eta {} has to be within 0 to 1", self.eta));
        }
        let timesteps = self.timesteps(schedule);
        let Some(first) = timesteps.first().copied() else {
            return fail(format!("first_step {} leaves no step", self.first_step.unwrap_or_default()));
        };
        let noise_level = match self.inversion.as_deref() {
            Some(inversion @ [_, .., last]) if inversion.is_sorted_by(|a, b| a < b) => i64::from(*last),
            Some(inversion) => {
                return fail(format!("inversion {inversion:?} has to be two or more timesteps that ascend"));
            }
            None => self.noise_level.map_or(first, i64::from),
        };
        if first.max(noise_level) >= total as i64 {
            return fail(format!(
                "timestep {} lies beyond the schedule's last, {}: lower noise_level, inversion, steps_offset or num_inference_steps",
                first.max(noise_level),
                total - 1
            ));
        }
        let final_alpha = if self.set_alpha_to_one { 1. } else { schedule.alpha_cumprod(0) };
        let ratio = (total / self.num_inference_steps as usize) as i64;
        Ok(Ddim { config: self.clone(), schedule: schedule.clone(), timesteps, ratio, final_alpha, noise_level })
    }
}

/// The coefficients of a step (Song et al., eq. 12 and 16).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepCoefficients {
    /// ᾱ at the timestep at which the step begins.
    pub alpha: f64,
    /// ᾱ at the lower timestep at which the step ends.
    pub alpha_prev: f64,
    /// Standard deviation that is replaced by new noise: η √((1 − ᾱ_prev) / (1 − ᾱ)) √(1 − ᾱ / ᾱ_prev).
    pub sigma: f64,
}

/// A DDIM sampler over one schedule.
#[derive(Debug, Clone)]
pub struct Ddim {
    config: DdimConfig,
    schedule: Schedule,
    timesteps: Vec<i64>,
    /// Training timesteps per step, rounded down.
    ratio: i64,
    final_alpha: f64,
    noise_level: i64,
}

impl Ddim {
    /// Returns the timesteps in the order in which they are visited, descending.
    pub fn timesteps(&self) -> &[i64] {
        &self.timesteps
    }

    /// Returns the lowest timestep at which the network is asked. An inversion asks where its steps end, and so not at its first.
    pub fn lowest_timestep(&self) -> i64 {
        let inverted = self.config.inversion.iter().flatten().skip(1).map(|t| i64::from(*t));
        self.timesteps.iter().copied().chain(inverted).min().unwrap_or_default()
    }

    /// Noises the known sample `x0` to the level from which sampling starts; `noise` is standard normal of its shape.
    pub fn start(&self, x0: &Tensor, noise: &Tensor) -> Tensor {
        let t = Tensor::from_slice(&[self.noise_level]).to_device(x0.device());
        self.schedule.q_sample(x0, noise, &t)
    }

    /// Leads the known sample `x0` to the level from which sampling starts by DDIM's inversion; `None` if noise is to lead
    /// it there. A step takes the noise that the network sees at the timestep at which the step ends.
    pub fn invert<E>(
        &self,
        x0: &Tensor,
        mut model: impl FnMut(&Tensor, i64) -> Result<Tensor, E>,
    ) -> Result<Option<Tensor>, E> {
        let Some(inversion) = &self.config.inversion else { return Ok(None) };
        let mut x = x0.shallow_clone();
        for step in inversion.windows(2) {
            let (from, to) = (i64::from(step[0]), i64::from(step[1]));
            let told = self.schedule.interpret(&model(&x, to)?, &x, from);
            let alpha = self.schedule.alpha_cumprod(to);
            x = told.sample * alpha.sqrt() + told.epsilon * (1. - alpha).sqrt();
        }
        Ok(Some(x))
    }

    /// Takes step `i`: from `x` at `timesteps()[i]`, with the network's `output` there, to the next timestep (Song et
    /// al., eq. 12). `noise` is called only if the step adds noise (eta > 0).
    pub fn step<E>(
        &self,
        i: usize,
        x: &Tensor,
        output: &Tensor,
        noise: impl FnOnce(i64) -> Result<Tensor, E>,
    ) -> Result<Tensor, E> {
        let t = self.timesteps[i];
        let StepCoefficients { alpha, alpha_prev, sigma } = self.coefficients(i);
        let mut told = self.schedule.interpret(output, x, t);
        if self.config.clip_sample {
            told.sample = told.sample.clamp(-1., 1.);
            told.epsilon = (x - &told.sample * alpha.sqrt()) / (1. - alpha).sqrt();
        }
        let direction = told.epsilon * (1. - alpha_prev - sigma * sigma).max(0.).sqrt();
        let mean = told.sample * alpha_prev.sqrt() + direction;
        let std = match self.config.variance_type {
            VarianceType::FixedSmall => sigma,
            VarianceType::FixedLarge => self.config.eta * (1. - alpha / alpha_prev).max(0.).sqrt(),
        };
        if std == 0. { Ok(mean) } else { Ok(mean + noise(t)? * std) }
    }

    /// Returns the coefficients of step `i`.
    pub fn coefficients(&self, i: usize) -> StepCoefficients {
        let alpha = self.schedule.alpha_cumprod(self.timesteps[i]);
        let end = match self.config.timestep_spacing {
            TimestepSpacing::Uniform => self.timesteps.get(i + 1).copied(),
            // as in diffusers, this is not always the timestep that is visited next
            _ => Some(self.timesteps[i] - self.ratio).filter(|end| *end >= 0),
        };
        let alpha_prev = end.map_or(self.final_alpha, |t| self.schedule.alpha_cumprod(t));
        let sigma = self.config.eta * ((1. - alpha_prev) / (1. - alpha) * (1. - alpha / alpha_prev)).max(0.).sqrt();
        StepCoefficients { alpha, alpha_prev, sigma }
    }

    /// Takes all steps from `x` [B, …]. `model` returns its output at (x, t), `noise` standard normal values of the
    /// shape of `x` at t; the first error of either ends the loop.
    pub fn sample<E>(
        &self,
        x: Tensor,
        mut model: impl FnMut(&Tensor, i64) -> Result<Tensor, E>,
        mut noise: impl FnMut(i64) -> Result<Tensor, E>,
    ) -> Result<Tensor, E> {
        self.timesteps.iter().enumerate().try_fold(x, |x, (i, t)| {
            let output = model(&x, *t)?;
            self.step(i, &x, &output, &mut noise)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Noise, schedule::ScheduleConfig};
    use super::*;
    use std::convert::Infallible;

    fn schedule() -> Schedule {
        ScheduleConfig::default().build().unwrap()
    }

    fn silent(_: i64) -> Result<Tensor, Infallible> {
        unreachable!("eta is 0")
    }

    /// Noised to 999, ten steps from 901, ending at the ᾱ of timestep 0: `log_images_test` of the published code.
    #[test]
    fn the_defaults_are_those_of_vlmdiff() {
        let ddim = DdimConfig::default().build(&schedule()).unwrap();
        assert_eq!(ddim.timesteps(), [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]);
        let one = Tensor::from_slice(&[1_f32]);
        // The authors' numbers are known to five digits, half of the last of which is 5e-6.
        assert!((ddim.start(&one, &(&one * 0.)).double_value(&[0]) - 0.06826).abs() < 6e-6);
        assert!((ddim.final_alpha - 0.99915).abs() < 6e-6);
    }

    /// `DDIMScheduler.step` of diffusers.
    #[test]
    fn a_step_ends_where_diffusers_ends_it() {
        use TimestepSpacing::{Leading, Linspace, Trailing};
        for (timestep_spacing, num_inference_steps, t, end) in
            [(Leading, 10, 901, 801), (Linspace, 10, 444, 344), (Trailing, 7, 856, 714), (Trailing, 10, 999, 899)]
        {
            let config = DdimConfig { timestep_spacing, num_inference_steps, ..Default::default() };
            let ddim = config.build(&schedule()).unwrap();
            let i = ddim.timesteps().iter().position(|other| *other == t).unwrap();
            assert_eq!(ddim.coefficients(i).alpha_prev, schedule().alpha_cumprod(end), "{timestep_spacing:?}");
        }
    }

    #[test]
    fn a_perfect_model_recovers_the_sample() {
        let x0 = Noise::new(1, "x").normal(&[2, 4, 3, 3]).unwrap();
        let noise = Noise::new(1, "noise").normal(&[2, 4, 3, 3]).unwrap();
        let schedule = schedule();
        let config = DdimConfig { noise_level: None, set_alpha_to_one: true, ..Default::default() };
        let ddim = config.build(&schedule).unwrap();
        let x = ddim.sample(ddim.start(&x0, &noise), |_, _| Ok(noise.shallow_clone()), silent).unwrap();
        // x0 is x, up to 5, less the noise, divided by √ᾱ, which is 0.12 at the first step: four roundings of 2⁻²⁴ · 5
        // / 0.12, and less at each of the nine steps after it.
        assert!((x - x0).abs().max().double_value(&[]) < 2e-5);
    }

    /// `invert` of DIVAD's code, with three of its timesteps.
    #[test]
    fn inversion_ascends_by_the_noise_that_is_seen_where_a_step_ends() {
        let [signal, noise] = ["signal", "noise"].map(|key| Noise::new(1, key).normal(&[2, 4, 3, 3]).unwrap());
        let schedule = schedule();
        let at = |t: i64| {
            let alpha = schedule.alpha_cumprod(t);
            &signal * alpha.sqrt() + &noise * (1. - alpha).sqrt()
        };
        let ddim = DdimConfig { inversion: Some(vec![1, 21, 41]), ..Default::default() }.build(&schedule).unwrap();
        let mut asked = Vec::new();
        let model = |_: &Tensor, t: i64| {
            asked.push(t);
            Ok::<_, Infallible>(noise.shallow_clone())
        };
        let inverted = ddim.invert(&at(1), model).unwrap().unwrap();
        assert_eq!(asked, [21, 41]);
        let late = DdimConfig { steps_offset: 50, num_inference_steps: 1, ..DdimConfig::default() };
        let lowest = |inversion| DdimConfig { inversion, ..late.clone() }.build(&schedule).unwrap().lowest_timestep();
        assert_eq!([lowest(None), lowest(Some(vec![1, 21, 41])), lowest(Some(vec![1, 61]))], [50, 21, 50]);
        // A sample up to 5 is rounded by 2⁻²⁴ of itself five times in each of two steps; √ᾱ is above 0.95.
        assert!((inverted - at(41)).abs().max().double_value(&[]) < 4e-6);

        let noised = DdimConfig::default().build(&schedule).unwrap();
        assert!(noised.invert(&at(1), |_, t| Err(t)).unwrap().is_none());
    }

    /// One step from timestep 300 ends at the sample that the network predicts, noised to the ᾱ of timestep 0.
    #[test]
    fn one_step_begins_where_its_offset_says() {
        let config = DdimConfig { num_inference_steps: 1, steps_offset: 300, noise_level: None, ..Default::default() };
        let ddim = config.build(&schedule()).unwrap();
        assert_eq!((ddim.timesteps(), ddim.noise_level), (&[300][..], 300));
        assert_eq!(ddim.coefficients(0).alpha_prev, schedule().alpha_cumprod(0));
    }

    #[test]
    fn the_first_error_ends_the_loop() {
        let mut calls = 0;
        let model = |x: &Tensor, t: i64| {
            calls += 1;
            if t < 901 { Err(t) } else { Ok(x.shallow_clone()) }
        };
        let ddim = DdimConfig::default().build(&schedule()).unwrap();
        let end = ddim.sample(Tensor::from_slice(&[1_f32]), model, |_| unreachable!("eta is 0"));
        assert_eq!((end.unwrap_err(), calls), (801, 2));
    }

    #[test]
    fn settings_that_cannot_be_sampled_are_refused() {
        let refusal = |config: DdimConfig| config.build(&schedule()).unwrap_err().to_string();
        let with = DdimConfig::default;
        assert!(refusal(DdimConfig { num_inference_steps: 0, ..with() }).contains("within 1 to 1000"));
        assert!(refusal(DdimConfig { eta: 1.5, ..with() }).contains("eta 1.5"));
        assert!(refusal(DdimConfig { first_step: Some(0), ..with() }).contains("leaves no step"));
        assert!(refusal(DdimConfig { noise_level: Some(1000), ..with() }).contains("timestep 1000 lies beyond"));
        assert!(refusal(DdimConfig { num_inference_steps: 1000, ..with() }).contains("timestep 1000 lies beyond"));
        for steps in [vec![], vec![5], vec![5, 5], vec![1, 30, 20]] {
            let told = refusal(DdimConfig { inversion: Some(steps), ..with() });
            assert!(told.ends_with("has to be two or more timesteps that ascend"), "{told}");
        }
        assert!(refusal(DdimConfig { inversion: Some(vec![1, 1000]), ..with() }).contains("timestep 1000 lies beyond"));
    }
}
