//! PatchCore (Roth et al., Towards Total Recall in Industrial Anomaly Detection, 2022).

use half::f16;
use rand::{RngExt, SeedableRng, seq::index::sample};
use rand_chacha::ChaCha8Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, TchError, Tensor};

use super::{
    MethodParameters,
    bank::{Bank, Distance, Nearest},
    coreset::{Start, dense_projection, greedy, johnson_lindenstrauss, select, sparse_projection},
    knn::{BANK, Collector},
    patches::{Fitted, Fitter, PatchMethod, Scorer, Scores, most_anomalous},
};
use crate::models::checkpoint::{Checkpoint, CheckpointError};

/// A greedy coreset of the patches, in which the score of a patch is its distance to the nearest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Patchcore {
    /// The program whose rules are followed.
    pub protocol: Protocol,
    /// The share of the patches that is kept.
    pub ratio: f64,
    /// The largest number of patches that is kept. Absent: as many as `ratio` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_patches: Option<u32>,
    /// The number of nearest patches whose distances are averaged.
    pub neighbors: u32,
    /// The number of the bank's patches around the nearest one that decide how much its distance counts in the image's
    /// score (equation 7 of the paper); 1 for none. Absent: 9 by `anomalib`, 1 by the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reweight: Option<u32>,
    /// The seed of the projection and of the first choices.
    pub seed: u64,
}

/// The program whose coreset and distances are followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// anomalib: a sparse projection, a first patch at random, distances, and the reweighted score of the image.
    #[default]
    Anomalib,
    /// The authors' code, which ADer uses too: a dense projection to 128 numbers, ten patches whose mean distance begins
    /// the choice, squared distances, and their maximum as the score of the image.
    Authors,
}

/// The dimensions of the authors' projection.
const DIMENSIONS: i64 = 128;
/// The number of patches with which the authors' choice begins.
const STARTS: usize = 10;

impl Default for Patchcore {
    fn default() -> Self {
        Self { protocol: Protocol::Anomalib, ratio: 0.1, max_patches: None, neighbors: 1, reweight: None, seed: 0 }
    }
}

impl MethodParameters for Patchcore {
    fn check(&self) -> Result<(), (String, String)> {
        let wrong = |parameter: &str, why: &str| Err((parameter.to_owned(), why.to_owned()));
        if !(self.ratio > 0. && self.ratio <= 1.) {
            let why = format!("{} is no share of the patches; it is above 0 and at most 1", self.ratio);
            return wrong("ratio", &why);
        }
        if self.neighbors == 0 {
            return wrong("neighbors", "at least 1 is compared");
        }
        if self.reweight == Some(0) {
            return wrong("reweight", "1 is no reweighting, and 9 is the paper's");
        }
        if self.max_patches == Some(0) {
            return wrong("max_patches", "at least 1 is kept");
        }
        Ok(())
    }

    fn memory(&self, patches: u64, channels: u64) -> Option<u64> {
        let projected = match self.protocol {
            Protocol::Anomalib => johnson_lindenstrauss(patches.max(2) as i64).max(1) as u64,
            Protocol::Authors => DIMENSIONS as u64,
        };
        // All patches in f16 and in f32, their projections, and an array of distances with its copy.
        let bytes = size_of::<f16>() as u64 + size_of::<f32>() as u64;
        let chosen = bytes * channels + size_of::<f32>() as u64 * (projected.min(channels) + 2);
        Some(Collector::memory(patches, channels).max(patches * chosen))
    }
}

impl PatchMethod for Patchcore {
    fn fitter(&self) -> Box<dyn Fitter> {
        Box::new(Thinning { method: self.clone(), patches: Collector::default() })
    }

    fn scorer(&self, fitted: &Checkpoint, device: Device) -> Result<Box<dyn Scorer>, CheckpointError> {
        let (distance, reweight) = match self.protocol {
            Protocol::Anomalib => (Distance::Euclidean, 9),
            Protocol::Authors => (Distance::SquaredEuclidean, 1),
        };
        let bank = Bank::open(fitted, BANK, distance, device)?;
        let reweight = i64::from(self.reweight.unwrap_or(reweight));
        Ok(Box::new(Memory { bank, neighbors: i64::from(self.neighbors), reweight }))
    }
}

impl Patchcore {
    /// Returns the positions of the coreset of patches f32 [N, C].
    fn coreset(&self, patches: &Tensor) -> Result<Vec<i64>, TchError> {
        let (total, channels) = patches.size2()?;
        let most = self.max_patches.map_or(i64::MAX, i64::from);
        let count = ((total as f64 * self.ratio) as i64).min(most).clamp(1.min(total), total);
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        let (projection, start) = match self.protocol {
            Protocol::Anomalib => {
                let dimensions = johnson_lindenstrauss(total.max(2)).max(1);
                (sparse_projection(channels, dimensions, self.seed), Start::Vector(random.random_range(0..total)))
            }
            Protocol::Authors => {
                let starts = sample(&mut random, total as usize, STARTS.min(total as usize));
                let starts = starts.into_iter().map(|start| start as i64).collect();
                (dense_projection(channels, DIMENSIONS, self.seed), Start::MeanDistanceTo(starts))
            }
        };
        // Vectors that are no longer than the projection are compared as they are.
        let projected =
            if channels <= projection.size()[1] { patches.shallow_clone() } else { patches.f_matmul(&projection)? };
        greedy(&projected, count, &start)
    }
}

struct Thinning {
    method: Patchcore,
    patches: Collector,
}

impl Fitter for Thinning {
    fn add(&mut self, patches: &Tensor) -> Result<(), TchError> {
        self.patches.add(patches)
    }

    fn finish(self: Box<Self>) -> Result<Fitted, TchError> {
        let Self { method, patches } = *self;
        let all = patches.joined()?;
        let bank = match all.size()[0] {
            0 => all,
            _ => select(&all, &method.coreset(&all.f_to_kind(Kind::Float)?)?)?,
        };
        Ok(Fitted { vectors: bank.size()[0], tensors: [(BANK.to_owned(), bank)].into() })
    }
}

struct Memory {
    bank: Bank,
    neighbors: i64,
    reweight: i64,
}

impl Scorer for Memory {
    fn score(&self, patches: &Tensor, _: [i64; 2], judged: Option<&Tensor>) -> Result<Scores, TchError> {
        let Nearest { distances, indices } = self.bank.nearest(patches, self.neighbors)?;
        let scores = distances.f_mean_dim([1].as_slice(), false, Kind::Float)?; // [P]
        let at = most_anomalous(&scores, judged)?;
        let largest = f64::try_from(scores.f_get(at)?)?;
        let image = if self.reweight == 1 {
            largest
        } else {
            let nearest = indices.f_get(at)?.f_narrow(0, 0, 1)?; // m*
            largest * self.weight(&patches.f_narrow(0, at, 1)?, &nearest)?
        };
        Ok(Scores { patches: scores, image })
    }
}

impl Memory {
    /// Returns the weight of equation 7 for the patch [1, C] whose nearest patch in the bank is at `nearest`, `[1]`: one
    /// minus the softmax of its distance among the distances to the bank's patches that surround that one.
    fn weight(&self, patch: &Tensor, nearest: &Tensor) -> Result<f64, TchError> {
        let nearest = self.bank.at(nearest)?;
        let around = self.bank.nearest(&nearest, self.reweight)?.indices.f_get(0)?;
        let around = self.bank.at(&around)?; // [b, C]
        let patch = patch.f_to_device(around.device())?.f_to_kind(Kind::Float)?;
        let distances = (around - patch).f_square()?.f_sum_dim_intlist([1].as_slice(), false, Kind::Float)?.f_sqrt()?;
        Ok(1. - f64::try_from(distances.f_softmax(0, Kind::Float)?.f_get(0)?)?)
    }
}
