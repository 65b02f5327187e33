//! Whether a training has learned anything, told from the course of its losses.

use super::{LogRow, MicroBatch};

/// What the losses of a training are compared with.
#[derive(Clone, Copy, Debug)]
pub(in crate::stages) enum Judge {
    /// The loss of the first step.
    Start,
    /// As `Start`, of one part of the loss, by its index: the whole loss may rise, for example once a discriminator joins in.
    StartOfPart(usize),
    /// What guessing costs on a batch of so many rows.
    Guessing(fn(usize) -> f64),
    /// Nothing: weights that were trained before begin where others end.
    Nothing,
}

impl Judge {
    /// Where the judged number stands among the loss and its parts.
    pub(super) fn column(self) -> usize {
        match self {
            Self::StartOfPart(part) => part + 1,
            _ => 0,
        }
    }

    /// What guessing costs on these batches.
    pub(super) fn guessing(self, batches: &[MicroBatch]) -> Option<f64> {
        let Self::Guessing(of_rows) = self else { return None };
        let sum: f64 = batches.iter().map(|batch| of_rows(batch.rows.len())).sum();
        Some(sum / batches.len() as f64)
    }

    /// The remark on a training that has learned nothing.
    pub(super) fn remark(self, first: Option<f32>, log: &[LogRow]) -> Option<String> {
        let loss = |row: &LogRow| match self {
            Self::StartOfPart(part) => row.parts.get(part).copied().flatten(),
            _ => Some(row.loss),
        };
        let logged = |row| Some(Logged { loss: f64::from(loss(row)?), guessing: row.guessing });
        let log: Vec<Logged> = log.iter().filter_map(logged).collect();
        match self {
            Self::Nothing => None,
            _ => remark(first.map(f64::from), &log),
        }
    }
}

/// A loss that fell by a smaller share than this stayed where it began.
const SMALLEST_FALL: f64 = 0.05;
/// A loss that is not below guessing by this share is at guessing.
const SMALLEST_GAIN: f64 = 0.03;
/// So many standard deviations of the last losses are no fall, either.
const NOISE: f64 = 2.;

/// A logged loss, and what guessing would have cost on the same batches.
#[derive(Clone, Copy, Debug)]
struct Logged {
    loss: f64,
    guessing: Option<f64>,
}

/// The remark on a training whose loss began at `first` and was logged as `log`; none where it fell.
fn remark(first: Option<f64>, log: &[Logged]) -> Option<String> {
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
    let first = first.filter(|first| *first > 0.)?;
    let spread = mean(&|row| (row.loss - loss).powi(2)).sqrt();
    (first - loss < (first * SMALLEST_FALL).max(NOISE * spread)).then(|| {
        format!(
            "the loss began at {first:.3} and ended at {loss:.3}: the network has learned next to nothing; try more \
             `training.steps` or another `training.lr`"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(losses: &[f64], guessing: Option<f64>) -> Vec<Logged> {
        losses.iter().map(|loss| Logged { loss: *loss, guessing }).collect()
    }

    #[test]
    fn a_loss_that_stays_where_it_began_is_told() {
        let remark = |first, losses: &[f64]| remark(Some(first), &log(losses, None));
        assert_eq!(remark(1., &[0.9, 0.6, 0.4, 0.3]), None);
        assert!(
            remark(1., &[0.99, 1.01, 0.98, 0.99]).unwrap().starts_with("the loss began at 1.000 and ended at 0.990")
        );
        assert!(remark(1., &[1.5, 2., 3., 4.]).is_some());
        // a fall that is smaller than the noise of the losses is none
        let noisy = [1.1, 0.7, 1.2, 0.8, 1.1, 0.7, 1.2, 0.8, 1.1, 0.7, 1.2, 0.8];
        assert!(remark(1.2, &noisy).is_some());
        assert_eq!(remark(1., &[]), None);
    }

    #[test]
    fn a_loss_at_guessing_is_told_whatever_it_began_at() {
        let chance = Some(32_f64.ln());
        let told = remark(Some(9.), &log(&[3.469, 3.46, 3.455, 3.45], chance)).unwrap();
        assert!(told.starts_with("the loss ended at 3.450 and guessing has 3.466"), "{told}");
        assert_eq!(remark(Some(3.47), &log(&[3.4, 2., 1., 0.8], chance)), None);
        // the last batch of an epoch is smaller, and so is what guessing costs on it
        let small = [Logged { loss: 2.64, guessing: Some(14_f64.ln()) }];
        assert!(remark(Some(3.47), &small).is_some());
    }
}
