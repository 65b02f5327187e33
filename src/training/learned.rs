//! Judges from the course of its losses whether a training has learned anything.

use super::{config::MicroBatch, log::LogRow};

/// The value with which the losses of a training are compared.
#[derive(Clone, Copy, Debug)]
pub enum Judge {
    /// The loss of the first steps.
    Start,
    /// The part of the loss with this index in the first steps. The whole loss may rise, for example once a
    /// discriminator joins in.
    StartOfPart(usize),
    /// The loss of guessing on a batch of so many rows.
    Guessing(fn(usize) -> f64),
    /// No value, because weights that were trained before begin at losses at which other trainings end.
    Nothing,
}

impl Judge {
    /// Returns the position of the judged number among the loss and its parts.
    pub(super) fn column(self) -> usize {
        match self {
            Self::StartOfPart(part) => part + 1,
            _ => 0,
        }
    }

    /// Returns the loss of guessing on these batches.
    pub(super) fn guessing(self, batches: &[MicroBatch]) -> Option<f64> {
        let Self::Guessing(of_rows) = self else { return None };
        let sum: f64 = batches.iter().map(|batch| of_rows(batch.rows.len())).sum();
        Some(sum / batches.len() as f64)
    }

    /// Returns the note on a training that has learned nothing.
    pub(super) fn note(self, first: &[f32], log: &[LogRow]) -> Option<String> {
        let loss = |row: &LogRow| match self {
            Self::StartOfPart(part) => row.parts.get(part).copied().flatten(),
            _ => Some(row.loss),
        };
        let logged = |row| Some(Logged { loss: f64::from(loss(row)?), guessing: row.guessing });
        let log: Vec<Logged> = log.iter().filter_map(logged).collect();
        match self {
            Self::Nothing => None,
            _ => note(first, &log),
        }
    }
}

/// The share by which a loss must fall. A smaller fall counts as none.
const SMALLEST_FALL: f64 = 0.05;
/// The share by which a loss must be below that of guessing.
const SMALLEST_GAIN: f64 = 0.03;
/// The number of standard deviations, estimated from the losses of single steps, that a fall must exceed.
const NOISE: f64 = 2.;
/// The median of the distance between two normal numbers, in standard deviations.
const MEDIAN_DISTANCE: f64 = 0.954;

/// Returns the number of first steps, of `steps`, whose mean loss is the initial loss of a training.
pub(super) fn first_steps(steps: u64) -> u64 {
    (steps / 8).clamp(1, 16)
}

/// A logged loss, and the loss of guessing on the same batches.
#[derive(Clone, Copy, Debug)]
struct Logged {
    loss: f64,
    guessing: Option<f64>,
}

/// Returns the note on a training with these losses in the first steps and the log `log`; `None` if the loss fell.
fn note(first: &[f32], log: &[Logged]) -> Option<String> {
    let last = &log[log.len() - log.len().div_ceil(4)..];
    if last.is_empty() {
        return None;
    }
    let mean = |of: &dyn Fn(&Logged) -> f64| last.iter().map(of).sum::<f64>() / last.len() as f64;
    let loss = mean(&|row| row.loss);
    if last.iter().all(|row| row.guessing.is_some()) {
        let guessing = mean(&|row| row.guessing.unwrap_or_default());
        return (loss > guessing * (1. - SMALLEST_GAIN)).then(|| {
            format!(
                "the loss ended at {loss:.3} and guessing has {guessing:.3}: the network has learned nothing that tells the rows \
                 apart; try more `training.steps` or another `training.lr`, and look at what the rows say"
            )
        });
    }
    let began = first.iter().map(|loss| f64::from(*loss)).sum::<f64>() / first.len() as f64;
    let of_means = (1. / first.len() as f64 + 1. / last.len() as f64).sqrt();
    // A state that was saved before first steps were recorded has none. Then `began` is NaN and there is no note.
    (began > 0. && began - loss < (began * SMALLEST_FALL).max(NOISE * noise(log) * of_means)).then(|| {
        format!(
            "the loss began at {began:.3} and ended at {loss:.3}: the network has learned next to nothing; try more \
             `training.steps` or another `training.lr`"
        )
    })
}

/// Returns the standard deviation of a single loss, estimated from the differences of successive losses, which a
/// trend hardly changes.
fn noise(log: &[Logged]) -> f64 {
    let mut distances: Vec<f64> = log.windows(2).map(|pair| (pair[1].loss - pair[0].loss).abs()).collect();
    distances.sort_by(f64::total_cmp);
    distances.get(distances.len() / 2).map_or(0., |median| median / MEDIAN_DISTANCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(losses: &[f64], guessing: Option<f64>) -> Vec<Logged> {
        losses.iter().map(|loss| Logged { loss: *loss, guessing }).collect()
    }

    #[test]
    fn note_on_a_loss_that_does_not_fall() {
        let note = |first: &[f32], losses: &[f64]| note(first, &log(losses, None));
        assert_eq!(note(&[1.], &[0.9, 0.6, 0.4, 0.3]), None);
        let told = note(&[1.], &[0.99, 1.01, 0.98, 0.99]).unwrap();
        assert!(told.starts_with("the loss began at 1.000 and ended at 0.990"), "{told}");
        assert!(note(&[1.], &[1.5, 2., 3., 4.]).is_some());
        assert_eq!((note(&[1.], &[]), note(&[], &[1., 1.])), (None, None));
    }

    /// The losses resemble those of an autoencoder with a learning rate of 0 whose first batch happened to be the
    /// hardest.
    #[test]
    fn fall_within_the_noise_of_single_batches_counts_as_none() {
        let losses =
            [0.785, 0.864, 0.826, 0.807, 0.881, 0.886, 0.803, 0.904, 0.787, 0.808, 0.881, 0.878, 0.811, 0.841, 0.851];
        assert!(note(&[0.905, 0.785], &log(&losses, None)).is_some());
        // a fall as large as the noise
        let falling: Vec<f64> = losses.iter().enumerate().map(|(i, loss)| loss - 0.03 * i as f64).collect();
        assert_eq!(note(&[0.905, 0.785], &log(&falling, None)), None);
    }

    #[test]
    fn note_on_a_loss_of_guessing_whatever_it_began_at() {
        let chance = Some(32_f64.ln());
        let told = note(&[9.], &log(&[3.469, 3.46, 3.455, 3.45], chance)).unwrap();
        assert!(told.starts_with("the loss ended at 3.450 and guessing has 3.466"), "{told}");
        assert_eq!(note(&[3.47], &log(&[3.4, 2., 1., 0.8], chance)), None);
        // the last batch of an epoch is smaller, and therefore the loss of guessing on it too
        let small = [Logged { loss: 2.64, guessing: Some(14_f64.ln()) }];
        assert!(note(&[3.47], &small).is_some());
    }
}
