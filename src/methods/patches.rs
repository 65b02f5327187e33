//! The contract of methods that are fitted on the features of patches.

use std::collections::BTreeMap;

use tch::{Device, TchError, Tensor};

use super::bank::Distance;
use crate::models::checkpoint::{Checkpoint, CheckpointError};

/// A method that compares the patches of an image with those of normal images: its doing half. A [`Fitter`] is given the
/// patches of one image after another and returns tensors, of which a [`Scorer`] is made in any later process.
pub trait PatchMethod {
    /// Starts a fit.
    fn fitter(&self) -> Box<dyn Fitter>;

    /// Returns the measure by which the good patch is found that is nearest to a patch.
    fn distance(&self) -> Distance {
        Distance::Euclidean
    }

    /// Opens what a fit has kept, on a device.
    fn scorer(&self, fitted: &Checkpoint, device: Device) -> Result<Box<dyn Scorer>, CheckpointError>;
}

/// The tensors that a method keeps of the images that it was fitted on.
#[derive(Debug, Default)]
pub struct Fitted {
    /// The tensors, by name.
    pub tensors: BTreeMap<String, Tensor>,
    /// The number of vectors that an image's patches are compared with.
    pub vectors: i64,
}

/// The scores of an image.
#[derive(Debug)]
pub struct Scores {
    /// A score per patch, f32 `[P]`; a higher one is more anomalous.
    pub patches: Tensor,
    /// The method's own score of the image.
    pub image: f64,
}

/// Collects the patches of normal images.
pub trait Fitter: Send {
    /// Adds the patches of an image, of any float type [P, C]. Images come in the order of their ids.
    fn add(&mut self, patches: &Tensor) -> Result<(), TchError>;

    /// Ends the fit.
    fn finish(self: Box<Self>) -> Result<Fitted, TchError>;
}

/// Scores patches by what a method has kept. Scores of an image depend on no other image.
pub trait Scorer: Send {
    /// Scores the patches of an image, f32 [P, C], row after row of a grid of this height and width. The image's score is
    /// made of the patches whose numbers are `judged`, i64 `[J]` with at least one; `None` stands for all.
    fn score(&self, patches: &Tensor, grid: [i64; 2], judged: Option<&Tensor>) -> Result<Scores, TchError>;
}

/// Returns the number of the patch with the highest score of `[P]`, of those that are `judged`.
pub fn most_anomalous(scores: &Tensor, judged: Option<&Tensor>) -> Result<i64, TchError> {
    let at = i64::try_from(of_judged(scores, judged)?.f_argmax(0, false)?)?;
    judged.map_or(Ok(at), |judged| i64::try_from(judged.f_get(at)?))
}

/// Returns the mean of the largest scores of `[P]`: of this share of those that are `judged`, and of at least one.
pub(super) fn mean_of_largest(scores: &Tensor, judged: Option<&Tensor>, share: f64) -> Result<f64, TchError> {
    let scores = of_judged(scores, judged)?;
    let count = ((scores.size()[0] as f64 * share) as i64).max(1);
    f64::try_from(scores.f_topk(count, 0, true, false)?.0.f_mean(tch::Kind::Double)?)
}

/// Returns the scores of the patches that are judged.
fn of_judged(scores: &Tensor, judged: Option<&Tensor>) -> Result<Tensor, TchError> {
    match judged {
        Some(judged) => scores.f_index_select(0, &judged.f_to_device(scores.device())?),
        None => Ok(scores.shallow_clone()),
    }
}
