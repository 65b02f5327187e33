//! The loss of latent diffusion's autoencoder: the error of pixels, a perceptual distance, the divergence of the latent
//! from the normal distribution, and the verdict of a discriminator (Esser et al. 2021, Rombach et al. 2022;
//! `LPIPSWithDiscriminator` of the published code).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{TchError, Tensor};

/// The reduction of an image's error over its values: sum or mean. With a plain Adam, the choice has no effect; with
/// clipping, and in the balance between reconstruction and discriminator, it has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reduction {
    /// The sum over channels and pixels, as in latent diffusion.
    #[default]
    Sum,
    /// The mean over them; the Kullback-Leibler term is divided by the same number.
    Mean,
}

/// The loss by which a discriminator learns to distinguish pictures from reconstructions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AdversarialLoss {
    /// Hinge: logits beyond 1 on the right side add nothing.
    #[default]
    Hinge,
    /// Cross-entropy.
    Vanilla,
}

/// The weights of the terms.
#[derive(Debug, Clone, PartialEq)]
pub struct TermWeights {
    /// Sum or mean.
    pub reduction: Reduction,
    /// The weight of the squared error, relative to the absolute error.
    pub mse: f64,
    /// The weight of the perceptual distance, which counts as an error of every single value of the image.
    pub perceptual: f64,
    /// The weight of the Kullback-Leibler divergence, which is in nats per image.
    pub kl: f64,
}

/// The discriminator's side of the autoencoder's loss.
#[derive(Debug)]
pub struct Adversary<'a> {
    /// The logits of the reconstructions, [B, 1, h, w].
    pub fake: Tensor,
    /// The weight of the decoder's last layer, at which the gradients are balanced.
    pub last_layer: &'a Tensor,
    /// The weight of the balanced term.
    pub weight: f64,
    /// 0 before the discriminator is used, then 1.
    pub factor: f64,
}

/// The terms of the autoencoder's loss, scalars.
#[derive(Debug)]
pub struct Terms {
    /// The loss that is minimised.
    pub total: Tensor,
    /// The mean over all values of the absolute error, plus the weighted squared error and perceptual distance.
    pub reconstruction: Tensor,
    /// The divergence in nats per value of the image.
    pub kl: Tensor,
    /// The mean perceptual distance; None without a perceptual network.
    pub perceptual: Option<Tensor>,
    /// Minus the mean logit of the reconstructions, and its weight; None without a discriminator.
    pub adversarial: Option<(Tensor, Tensor)>,
}

/// Computes the autoencoder's loss on images `x` and their reconstructions `y`, [B, C, H, W]: with N = C·H·W,
///
/// N · (|x − y| + perceptual) + kl_weight · kl + d_weight · factor · g, each a mean over the batch, where g is minus
/// the mean logit; all but the last divided by N under [`Reduction::Mean`].
///
/// `kl` `[B]` are nats, `perceptual` `[B]` distances. Fails only with an adversary, if libtorch does.
pub fn autoencoder_loss(
    x: &Tensor,
    y: &Tensor,
    kl: &Tensor,
    perceptual: Option<&Tensor>,
    adversary: Option<&Adversary<'_>>,
    weights: &TermWeights,
) -> Result<Terms, TchError> {
    let values = (x.numel() as i64 / x.size()[0]) as f64;
    let error = y - x;
    let kind = error.kind();
    let mut reconstruction = error.abs().mean(kind) + error.square().mean(kind) * weights.mse;
    let perceptual = perceptual.map(|distances| distances.mean(kind));
    if let Some(distance) = &perceptual {
        reconstruction += distance * weights.perceptual;
    }
    let kl = kl.mean(kind) / values;
    let scaled = |term: &Tensor| match weights.reduction {
        Reduction::Sum => term * values,
        Reduction::Mean => term.shallow_clone(),
    };
    let mut total = scaled(&(&reconstruction + &kl * weights.kl));
    let mut adversarial = None;
    if let Some(Adversary { fake, last_layer, weight, factor }) = adversary {
        let g = -fake.mean(kind);
        let d_weight = adaptive_weight(&scaled(&reconstruction), &g, last_layer)? * *weight;
        total += &d_weight * &g * *factor;
        adversarial = Some((g, d_weight));
    }
    Ok(Terms { total, reconstruction, kl, perceptual, adversarial })
}

/// Returns the factor that gives the loss `g` as much influence on the last layer as the loss `nll`: the ratio of the
/// norms of their gradients there, at most 10,000; a scalar without gradient. The graphs of both losses are kept.
pub fn adaptive_weight(nll: &Tensor, g: &Tensor, last_layer: &Tensor) -> Result<Tensor, TchError> {
    let norm = |loss: &Tensor| {
        let gradients = Tensor::f_run_backward(&[loss], &[last_layer], true, false)?;
        gradients[0].f_norm()
    };
    Ok((norm(nll)? / (norm(g)? + 1e-4)).clamp(0., 1e4).detach())
}

/// Computes the discriminator's loss on its logits of pictures and of reconstructions.
pub fn discriminator_loss(real: &Tensor, fake: &Tensor, loss: AdversarialLoss) -> Tensor {
    let (real, fake) = match loss {
        AdversarialLoss::Hinge => ((-real + 1.).relu(), (fake + 1.).relu()),
        AdversarialLoss::Vanilla => ((-real).softplus(), fake.softplus()),
    };
    let kind = real.kind();
    (real.mean(kind) + fake.mean(kind)) * 0.5
}

#[cfg(test)]
mod tests {
    use super::super::Noise;
    use super::*;
    use tch::Kind;

    #[test]
    fn the_mean_is_the_sum_divided_by_the_values_of_an_image() {
        let of = |key: &str, shape: &[i64]| Noise::new(1, key).normal(shape).unwrap();
        let (x, y) = (of("x", &[2, 3, 4, 4]), of("y", &[2, 3, 4, 4]).set_requires_grad(true));
        let (kl, distance) = (of("kl", &[2]), of("d", &[2]));
        let loss = |reduction| {
            let weights = TermWeights { reduction, mse: 0.3, perceptual: 2., kl: 1e-2 };
            autoencoder_loss(&x, &y, &kl, Some(&distance), None, &weights).unwrap().total.double_value(&[])
        };
        // per image the sum over all values, the distance broadcast to each of them
        let rec = (&x - &y).abs() + (&x - &y).square() * 0.3 + distance.view([2, 1, 1, 1]) * 2.;
        let by_hand = (rec.sum(Kind::Float) / 2. + kl.sum(Kind::Float) / 2. * 1e-2).double_value(&[]);
        // Sums of 96 positive values in f32, each rounded by 2⁻²⁴, in two orders.
        assert!((loss(Reduction::Sum) / by_hand - 1.).abs() < 1e-5, "{} {by_hand}", loss(Reduction::Sum));
        assert!((loss(Reduction::Mean) * 48. / by_hand - 1.).abs() < 1e-5);
    }

    #[test]
    fn the_adversary_is_balanced_at_the_last_layer() {
        let w = Tensor::from_slice(&[1_f32, 2.]).set_requires_grad(true);
        let (nll, g) = ((&w * 3.).sum(Kind::Float), (&w * 0.5).sum(Kind::Float));
        let weight = adaptive_weight(&nll, &g, &w).unwrap();
        // 1e-4 beside a norm of 0.7 takes 8.5e-4 of 6.
        assert!((weight.double_value(&[]) - 6.).abs() < 1e-3 && !weight.requires_grad());
        // the weight is bounded if the discriminator has almost no gradient
        assert_eq!(adaptive_weight(&nll, &(&g * 1e-9), &w).unwrap().double_value(&[]), 1e4);
    }
}
