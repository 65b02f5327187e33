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
    schedule: &Schedule,
    output: &Tensor,
    x0: &Tensor,
    noise: &Tensor,
    t: &Tensor,
    min_snr_gamma: Option<f64>,
) -> Tensor {
    let errors = mse_per_row(output, &schedule.target(x0, noise, t));
    match min_snr_gamma {
        Some(gamma) => (errors * min_snr_weight(schedule, t, gamma)).mean(Kind::Float),
        None => errors.mean(Kind::Float),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Noise, schedule::ScheduleConfig};
    use super::*;

    /// An error in the signal is one in the noise, scaled: the weights make the three predictions ask for the same.
    #[test]
    fn min_snr_asks_the_same_of_every_prediction_type() {
        let of = |key: &str| Noise::new(1, key).normal(&[3, 2, 4, 4]).unwrap();
        let (x0, noise, t) = (of("x"), of("noise"), Tensor::from_slice(&[10_i64, 300, 900]));
        let losses =
            [PredictionType::Epsilon, PredictionType::VPrediction, PredictionType::Sample].map(|prediction_type| {
                let schedule = ScheduleConfig { prediction_type, ..Default::default() }.build().unwrap();
                // a model that believes the signal to be 0.1 more than it is, and the noise to be what then remains
                let snr = schedule.snr(&t).view([-1, 1, 1, 1]);
                let output = schedule.target(&(&x0 + 0.1), &(&noise - snr.sqrt() * 0.1), &t);
                denoising_loss(&schedule, &output, &x0, &noise, &t, Some(5.)).double_value(&[])
            });
        // The error of 0.1 · √snr, 0.012 at the noisiest, is a difference of f32 numbers up to 4: 4 · 2⁻²⁴ / 0.012, squared, is 4e-5.
        assert!(losses.iter().all(|loss| (loss / losses[2] - 1.).abs() < 1e-4), "{losses:?}");
        let schedule = ScheduleConfig::default().build().unwrap();
        let weight = Vec::<f32>::try_from(min_snr_weight(&schedule, &t, 5.)).unwrap();
        assert!(weight[0] < 0.2 && weight[2] == 1., "{weight:?}");
    }
}
