//! The loss that the training of a denoiser minimises.

use super::schedule::{PredictionType, Schedule};
use tch::{Kind, Tensor};

/// Returns the mean squared error of each row of `output` and `target` [B, …] -> `[B]` f32.
pub fn mse_per_row(output: &Tensor, target: &Tensor) -> Tensor {
    let error = (output.to_kind(Kind::Float) - target.to_kind(Kind::Float)).square();
    error.flatten(1, -1).mean_dim([1].as_slice(), false, Kind::Float)
}

/// Returns the weight of each row's error `[B]` at timesteps `t` `[B]` by Min-SNR-γ (Hang et al. 2023). In terms of the
/// predicted signal, an error weighs the signal-to-noise ratio, but at most `gamma`, so that nearly clean samples do
/// not dominate.
pub fn min_snr_weight(schedule: &Schedule, t: &Tensor, gamma: f64) -> Tensor {
    let snr = schedule.snr(t);
    let capped = snr.clamp_max(gamma);
    match schedule.prediction_type() {
        PredictionType::Epsilon => capped / snr,
        PredictionType::VPrediction => capped / (snr + 1.),
        PredictionType::Sample => capped,
    }
}

/// Returns the mean over the batch of the squared error between the network's `output` at `t` `[B]` and its target, a
/// scalar. With `min_snr_gamma`, each row is weighted by [`min_snr_weight`].
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

    /// An error in the signal is a scaled error in the noise. The weights make the loss the same for all three
    /// predictions.
    #[test]
    fn min_snr_loss_is_the_same_for_every_prediction_type() {
        let of = |key: &str| Noise::new(1, key).normal(&[3, 2, 4, 4]).unwrap();
        let (x0, noise, t) = (of("x"), of("noise"), Tensor::from_slice(&[10_i64, 300, 900]));
        let losses =
            [PredictionType::Epsilon, PredictionType::VPrediction, PredictionType::Sample].map(|prediction_type| {
                let schedule = ScheduleConfig { prediction_type, ..Default::default() }.build().unwrap();
                // a model that predicts a signal that is 0.1 too large, and the noise that then remains
                let snr = schedule.snr(&t).view([-1, 1, 1, 1]);
                let output = schedule.target(&(&x0 + 0.1), &(&noise - snr.sqrt() * 0.1), &t);
                denoising_loss(&schedule, &output, &x0, &noise, &t, Some(5.)).double_value(&[])
            });
        // The error of 0.1 · √snr, 0.012 at the noisiest, is a difference of f32 numbers up to 4: 4 · 2⁻²⁴ / 0.012,
        // squared, is 4e-5.
        assert!(losses.iter().all(|loss| (loss / losses[2] - 1.).abs() < 1e-4), "{losses:?}");
        let schedule = ScheduleConfig::default().build().unwrap();
        let weight = Vec::<f32>::try_from(min_snr_weight(&schedule, &t, 5.)).unwrap();
        assert!(weight[0] < 0.2 && weight[2] == 1., "{weight:?}");
    }
}
