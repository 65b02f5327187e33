//! Nearest neighbours among the patches of normal images.

use half::f16;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, TchError, Tensor};

use super::{
    MethodParameters,
    bank::{Bank, Distance},
    patches::{Fitted, Fitter, PatchMethod, Scorer, Scores, mean_of_largest},
};
use crate::models::checkpoint::{Checkpoint, CheckpointError};

/// The bank of a fit.
pub(super) const BANK: &str = "bank";

/// All patches are kept, and the score of a patch is its mean distance to the nearest of them. The image's score is
/// the mean of the largest hundredth of its patches' scores.
///
/// The bank is the rows of the table that it is fitted on, one after another. `keep` of the stage `extract` bounds
/// what a photograph adds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Knn {
    /// The number of nearest patches over which squared distances are averaged.
    pub neighbors: u32,
    /// The measure of distance.
    pub distance: Distance,
}

impl Default for Knn {
    fn default() -> Self {
        Self { neighbors: 1, distance: Distance::Cosine }
    }
}

impl MethodParameters for Knn {
    fn check(&self) -> Result<(), (String, String)> {
        if self.neighbors == 0 { Err(("neighbors".into(), "at least 1 is compared".into())) } else { Ok(()) }
    }

    fn memory(&self, patches: u64, channels: u64) -> Option<u64> {
        Some(Collector::memory(patches, channels))
    }
}

impl PatchMethod for Knn {
    fn fitter(&self) -> Box<dyn Fitter> {
        Box::new(Collector::default())
    }

    fn distance(&self) -> Distance {
        self.distance
    }

    fn scorer(&self, fitted: &Checkpoint, device: Device) -> Result<Box<dyn Scorer>, CheckpointError> {
        // The mean is taken over squared distances, as AnomalyDINO does.
        let (distance, is_root) = match self.distance {
            Distance::Euclidean => (Distance::SquaredEuclidean, true),
            distance => (distance, false),
        };
        let bank = Bank::open(fitted, BANK, distance, device)?;
        Ok(Box::new(NearestPatches { bank, neighbors: i64::from(self.neighbors), is_root }))
    }
}

/// Keeps all patches, in f16.
#[derive(Debug, Default)]
pub(super) struct Collector {
    images: Vec<Tensor>,
}

impl Collector {
    /// Returns the most bytes that so many patches take: they are collected image by image, and joined.
    pub(super) const fn memory(patches: u64, channels: u64) -> u64 {
        2 * size_of::<f16>() as u64 * patches * channels
    }

    /// Returns the patches of all images, f16 [M, C].
    pub(super) fn joined(self) -> Result<Tensor, TchError> {
        if self.images.is_empty() {
            Tensor::f_zeros([0, 1], (Kind::Half, Device::Cpu))
        } else {
            Tensor::f_cat(&self.images, 0)
        }
    }
}

impl Fitter for Collector {
    fn add(&mut self, patches: &Tensor) -> Result<(), TchError> {
        self.images.push(patches.f_to_device(Device::Cpu)?.f_to_kind(Kind::Half)?);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Fitted, TchError> {
        let bank = self.joined()?;
        Ok(Fitted { vectors: bank.size()[0], tensors: [(BANK.to_owned(), bank)].into() })
    }
}

struct NearestPatches {
    bank: Bank,
    neighbors: i64,
    /// True if a score is the root of the mean.
    is_root: bool,
}

impl Scorer for NearestPatches {
    fn score(&self, patches: &Tensor, _: [i64; 2], judged: Option<&Tensor>) -> Result<Scores, TchError> {
        let nearest = self.bank.nearest(patches, self.neighbors)?;
        let mean = nearest.distances.f_mean_dim([1].as_slice(), false, Kind::Float)?;
        let patches = if self.is_root { mean.f_sqrt()? } else { mean };
        let image = mean_of_largest(&patches, judged, 0.01)?;
        Ok(Scores { patches, image })
    }
}
