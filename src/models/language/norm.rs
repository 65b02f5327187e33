//! Normalisations over the last dimension.

use super::{
    super::checkpoint::{CheckpointError, Mapped},
    weights::Weights,
};
use tch::{Kind, Tensor};

/// The kind of a normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// Takes away the mean and divides by the standard deviation; weight and bias.
    Layer,
    /// Divides by the root of the mean square; weight only.
    Rms,
}

/// A normalisation.
#[derive(Debug)]
pub struct Norm {
    weight: Mapped,
    /// The bias of a layer normalisation.
    bias: Option<Mapped>,
    eps: f64,
}

impl Norm {
    /// Takes `NAME.weight` and, for a layer normalisation, `NAME.bias`, each \[width\].
    ///
    /// # Errors
    /// The errors of [`Weights::tensor`].
    pub fn load(
        weights: &Weights<'_>,
        name: &str,
        width: i64,
        eps: f64,
        kind: NormKind,
    ) -> Result<Self, CheckpointError> {
        let weight = weights.tensor(&format!("{name}.weight"), &[width])?;
        let bias = match kind {
            NormKind::Layer => Some(weights.tensor(&format!("{name}.bias"), &[width])?),
            NormKind::Rms => None,
        };
        Ok(Self { weight, bias, eps })
    }

    /// Normalises `x` [.., width]. The root mean square is computed in f32, and the result is rounded to the type of
    /// `x` before it is multiplied by the weight, as in the authors' code of Qwen2, InternLM2 and Llama.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let weight = self.weight.tensor();
        if let Some(bias) = &self.bias {
            return x.layer_norm(weight.size(), Some(weight), Some(bias.tensor()), self.eps, false);
        }
        let wide = x.to_kind(Kind::Float);
        let mean_square = wide.square().mean_dim([-1].as_slice(), true, Kind::Float);
        (wide * (mean_square + self.eps).rsqrt()).to_kind(x.kind()) * weight
    }
}
