//! Methods of anomaly detection that are fitted on normal images, one file each: what each is fitted on, what it keeps,
//! and how it scores the patches of an image.
//!
//! A [`Method`] is plain data, which the driver reads as well. Fitting and scoring need libtorch: a [`Fitter`] is given
//! the patches of one image after another and returns tensors, of which a [`Scorer`] is made in any later process.

mod bank;
pub mod coreset;
mod knn;
mod patchcore;
mod subspace;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{TchError, Tensor};

pub use bank::{Bank, Distance};
pub use knn::Knn;
pub use patchcore::{Patchcore, Protocol};
pub use subspace::Subspace;

/// A method, by name, with its parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// PatchCore (Roth et al. 2022): a coreset of the patches, and the distance to the nearest of them.
    Patchcore(Patchcore),
    /// The nearest patches of all that were given, as AnomalyDINO (Damm et al. 2025) compares those of a transformer.
    Knn(Knn),
    /// The distance to the subspace in which the patches vary, found by principal component analysis (SubspaceAD,
    /// PaDiM's relatives).
    Subspace(Subspace),
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
    /// Scores the patches of an image, f32 [P, C].
    fn score(&self, patches: &Tensor) -> Result<Scores, TchError>;
}

impl Method {
    /// Checks the parameters. The error is the name of a parameter and the reason.
    pub fn check(&self) -> Result<(), (String, String)> {
        let (name, checked) = match self {
            Self::Patchcore(method) => ("patchcore", method.check()),
            Self::Knn(method) => ("knn", method.check()),
            Self::Subspace(method) => ("subspace", method.check()),
        };
        checked.map_err(|(parameter, why)| (format!("method.{name}.{parameter}"), why))
    }

    /// Starts a fit.
    pub fn fitter(&self) -> Box<dyn Fitter> {
        match self {
            Self::Patchcore(method) => Box::new(method.fitter()),
            Self::Knn(method) => Box::new(method.fitter()),
            Self::Subspace(method) => Box::new(method.fitter()),
        }
    }

    /// Opens what a fit has kept, on a device.
    pub fn scorer(&self, fitted: &BTreeMap<String, Tensor>, device: tch::Device) -> Result<Box<dyn Scorer>, TchError> {
        Ok(match self {
            Self::Patchcore(method) => Box::new(method.scorer(fitted, device)?),
            Self::Knn(method) => Box::new(method.scorer(fitted, device)?),
            Self::Subspace(method) => Box::new(method.scorer(fitted, device)?),
        })
    }
}

/// Returns a tensor of a fit.
fn kept(fitted: &BTreeMap<String, Tensor>, name: &str) -> Result<Tensor, TchError> {
    let lacks = || TchError::FileFormat(format!("what was fitted has no tensor `{name}`"));
    Ok(fitted.get(name).ok_or_else(lacks)?.shallow_clone())
}

/// Returns the mean of the largest scores of `[P]`: of this share of them, and of at least one.
fn mean_of_largest(scores: &Tensor, share: f64) -> Result<f64, TchError> {
    let count = ((scores.size()[0] as f64 * share) as i64).max(1);
    f64::try_from(scores.f_topk(count, 0, true, false)?.0.f_mean(tch::Kind::Double)?)
}
