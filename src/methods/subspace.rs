//! The subspace in which normal patches vary.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, TchError, Tensor};

use super::{
    MethodParameters,
    patches::{Fitted, Fitter, PatchMethod, Scorer, Scores, mean_of_largest},
};
use crate::models::checkpoint::{Checkpoint, CheckpointError};

/// Principal component analysis of the patches. The score of a patch is the squared length of what the components do
/// not explain; the image's score is the mean of the largest hundredth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Subspace {
    /// The share of the variance that the components explain.
    pub explained_variance: f64,
}

impl Default for Subspace {
    fn default() -> Self {
        Self { explained_variance: 0.99 }
    }
}

const MEAN: &str = "mean";
const COMPONENTS: &str = "components";

impl MethodParameters for Subspace {
    fn check(&self) -> Result<(), (String, String)> {
        let share = self.explained_variance;
        if share > 0. && share < 1. {
            return Ok(());
        }
        let why = format!("{share} is no share of the variance; it is above 0 and below 1");
        Err(("explained_variance".into(), why))
    }

    fn memory(&self, _: u64, channels: u64) -> Option<u64> {
        // Sums, covariance, its eigenvectors, and the working memory of their computation.
        Some(6 * size_of::<f64>() as u64 * channels * channels)
    }
}

impl PatchMethod for Subspace {
    fn fitter(&self) -> Box<dyn Fitter> {
        Box::new(Covariance { share: self.explained_variance, count: 0, moments: None })
    }

    fn scorer(&self, fitted: &Checkpoint, device: Device) -> Result<Box<dyn Scorer>, CheckpointError> {
        let read = |name| fitted.converted(name, Kind::Float, device);
        Ok(Box::new(Residual { mean: read(MEAN)?, components: read(COMPONENTS)? }))
    }
}

/// The sums from which mean and covariance follow, in f64.
struct Covariance {
    share: f64,
    count: i64,
    /// The sum of the patches, `[C]`, and of their products [C, C].
    moments: Option<(Tensor, Tensor)>,
}

impl Fitter for Covariance {
    fn add(&mut self, patches: &Tensor) -> Result<(), TchError> {
        let x = patches.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?;
        let (sum, products) = (x.f_sum_dim_intlist([0].as_slice(), false, Kind::Double)?, x.tr().f_matmul(&x)?);
        self.count += x.size()[0];
        self.moments = Some(match self.moments.take() {
            None => (sum, products),
            Some(before) => (before.0 + sum, before.1 + products),
        });
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Fitted, TchError> {
        let Some((sum, products)) = self.moments else { return Ok(Fitted::default()) };
        let count = self.count as f64;
        let mean = sum / count;
        let covariance = products / count - mean.f_outer(&mean)?;
        let (variances, vectors) = covariance.f_linalg_eigh("L")?; // ascending; vectors are columns
        let variances: Vec<f64> = Vec::try_from(variances.clamp_min(0.))?;
        let total: f64 = variances.iter().sum();
        let mut explained = 0.;
        let is_short = |variance: &&f64| {
            let short = explained < self.share * total;
            explained += **variance;
            short
        };
        let components = variances.iter().rev().take_while(is_short).count() as i64;
        let all = variances.len() as i64;
        let components_of = vectors.f_narrow(1, all - components, components)?.f_contiguous()?;
        let tensors = [(MEAN, mean), (COMPONENTS, components_of)];
        let tensors = tensors.map(|(name, tensor)| (name.to_owned(), tensor.to_kind(Kind::Float)));
        Ok(Fitted { tensors: tensors.into(), vectors: components })
    }
}

struct Residual {
    mean: Tensor,
    components: Tensor,
}

impl Scorer for Residual {
    fn score(&self, patches: &Tensor, _: [i64; 2], judged: Option<&Tensor>) -> Result<Scores, TchError> {
        let x = patches.f_to_device(self.mean.device())?.f_to_kind(Kind::Float)?.f_sub(&self.mean)?; // [P, C]
        let explained = x.f_matmul(&self.components)?.f_matmul(&self.components.tr())?;
        let patches = (x - explained).f_square()?.f_sum_dim_intlist([1].as_slice(), false, Kind::Float)?;
        let image = mean_of_largest(&patches, judged, 0.01)?;
        Ok(Scores { patches, image })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::models::checkpoint::to_safetensors;

    /// Patches on a plane in space: two components, and the score is the squared distance from the plane.
    #[test]
    fn score_is_the_squared_distance_from_the_subspace() {
        tch::manual_seed(5);
        let plane = Tensor::randn([500, 2], tch::kind::FLOAT_CPU) * Tensor::from_slice(&[3_f32, 1.]);
        let flat = Tensor::cat(&[plane, Tensor::ones([500, 1], tch::kind::FLOAT_CPU)], 1);
        let method = Subspace { explained_variance: 0.999 };
        let mut fitter = method.fitter();
        fitter.add(&flat.narrow(0, 0, 200)).unwrap();
        fitter.add(&flat.narrow(0, 200, 300)).unwrap();
        let fitted = fitter.finish().unwrap();
        assert_eq!(fitted.vectors, 2);
        let file = to_safetensors(fitted.tensors, HashMap::new()).unwrap();
        let scorer = method.scorer(&Checkpoint::from_safetensors(file).unwrap(), Device::Cpu).unwrap();
        let scores = scorer.score(&Tensor::from_slice2(&[[0_f32, 0., 1.], [5., -2., 4.]]), [1, 2], None).unwrap();
        let found = Vec::<f32>::try_from(&scores.patches).unwrap();
        assert!(found[0].abs() < 1e-4 && (found[1] - 9.).abs() < 1e-2, "{found:?}");
        assert!((scores.image - 9.).abs() < 1e-2);
    }
}
