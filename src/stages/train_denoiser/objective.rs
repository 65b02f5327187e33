//! The loss of a denoiser in training.

use tch::{Kind, Tensor};

use crate::{
    diffusion::{loss::denoising_loss, schedule::Schedule},
    models::{
        denoiser::Denoiser,
        recompute::{Pass, Recompute},
    },
    training,
};

/// A denoiser in training, with the parameters of its loss.
#[derive(Debug)]
pub struct DenoisingObjective {
    /// The network.
    pub denoiser: Denoiser,
    /// The noise schedule and the kind of value that the network predicts.
    pub schedule: Schedule,
    /// See [`TrainDenoiser::min_snr_gamma`](super::TrainDenoiser::min_snr_gamma).
    pub min_snr_gamma: Option<f64>,
    /// The type in which the network computes.
    pub kind: Kind,
    /// True if maps are computed again for the gradients.
    pub gradient_checkpointing: bool,
}

impl DenoisingObjective {
    /// The network's prediction for the latents `z` [B, 4, h, w] under `noise` [B, 4, h, w] at timesteps `t` `[B]`,
    /// with the captions `context` [B, 77, D] and, for the control branch, the images [B, 3, H, W] -> [B, 4, h, w].
    pub fn predict<'a>(
        &'a self,
        pass: Pass<'_, 'a>,
        z: &Tensor,
        noise: &Tensor,
        t: &Tensor,
        context: &Tensor,
        images: Option<&Tensor>,
    ) -> Tensor {
        let [x, context] = [&self.schedule.q_sample(z, noise, t), context].map(|tensor| tensor.to_kind(self.kind));
        let images = images.map(|images| images.to_kind(self.kind));
        self.denoiser.forward_with(pass, &x, t, &context, images.as_ref())
    }

    /// Returns the loss of that prediction, in f32.
    pub fn loss(
        &self,
        z: &Tensor,
        noise: &Tensor,
        t: &Tensor,
        context: &Tensor,
        images: Option<&Tensor>,
    ) -> training::Loss<'_> {
        let pass = self.gradient_checkpointing.then(Recompute::new);
        let prediction = self.predict(pass.as_ref(), z, noise, t, context, images);
        let value = denoising_loss(&self.schedule, &prediction, z, noise, t, self.min_snr_gamma);
        let gradients: Option<training::Gradients<'_>> = match pass {
            Some(pass) => Some(Box::new(move |loss, parameters| pass.gradients(loss, parameters))),
            None => None,
        };
        training::Loss { value, gradients }
    }
}
