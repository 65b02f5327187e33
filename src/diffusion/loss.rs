//! What a denoiser is trained to minimise.

use super::schedule::{PredictionType, Schedule};
use tch::{Kind, Tensor};

/// Mean squared error of each row of `output` and `target` [B, …] -> [B] f32.
pub fn mse_per_row(output: &Tensor, target: &Tensor) -> Tensor {
    let error = (output.to_kind(Kind::Float) - target.to_kind(Kind::Float)).square();
    error.flatten(1, -1).mean_dim([1].as_slice(), false, Kind::Float)
}

/// Min-SNR-γ (Hang et al. 2023): the weight of each row's error [B] at timesteps `t` [B], which asks no more of nearly clean
/// samples than a signal-to-noise ratio of `gamma` would.
pub fn min_snr_weight(schedule: &Schedule, t: &Tensor, gamma: f64) -> Tensor {
    let snr = schedule.snr(t);
    let capped = snr.clamp_max(gamma);
    match schedule.prediction_type() {
        PredictionType::Epsilon => capped / snr,
        PredictionType::VPrediction => capped / (snr + 1.),
        PredictionType::Sample => capped,
    }
}

/// The mean over the batch of the squared error between the network's `output` at `t` [B] and its target, a scalar; with
/// `min_snr_gamma`, each row weighed by [`min_snr_weight`].
pub fn denoising_loss(
    schedule: &Schedule, output: &Tensor, x0: &Tensor, noise: &Tensor, t: &Tensor, min_snr_gamma: Option<f64>,
) -> Tensor {
    let errors = mse_per_row(output, &schedule.target(x0, noise, t));
    match min_snr_gamma {
        Some(gamma) => (errors * min_snr_weight(schedule, t, gamma)).mean(Kind::Float),
        None => errors.mean(Kind::Float),
    }
}
