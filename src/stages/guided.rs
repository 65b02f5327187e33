//! Predictions of a denoiser for the rows of a batch, conditioned on their captions and images, and guided.

use tch::{Device, Kind, Tensor};

use super::tensors::{context, normalise, tensor};
use crate::{
    diffusion::{guidance::Guidance, noise_per_key},
    engine::{
        Result,
        stage::{Batch, Misfit, Schemas},
    },
    models::denoiser::Denoiser,
    tables::{
        embeddings::{self, TEXT, UNCONDITIONAL},
        images::PIXELS,
    },
};

/// The advice where a sampler asks the network below the timesteps of its training.
pub(super) const FEW_STEPS: &str =
    "few steps with `timestep_spacing: trailing` and a later second timestep of `inversion` stay above";

/// Checks that the captions have one shape and that a `guidance_scale` other than 1, of `parameter`, has a caption to lead away
/// from. Returns the port that the captions come from.
pub(super) fn captions(inputs: &Schemas, guidance_scale: f64, parameter: &'static str) -> Result<&'static str, Misfit> {
    let shape = |port| embeddings::shape(inputs, port);
    match [TEXT, UNCONDITIONAL].map(|port| inputs.get(port).is_some()) {
        [false, false] => Err(Misfit::stage(format!(
            "captions come from `{TEXT}`, `{UNCONDITIONAL}` or both, and `from:` names neither"
        ))),
        [true, true] if shape(TEXT)? != shape(UNCONDITIONAL)? => {
            let (own, other) = (shape(TEXT)?, shape(UNCONDITIONAL)?);
            let message = format!("`{TEXT}` are {own:?} and `{UNCONDITIONAL}` is {other:?}");
            Err(Misfit::input(UNCONDITIONAL, message))
        }
        [true, false] if guidance_scale != 1. => {
            let message = format!(
                "a `guidance_scale` of {guidance_scale} leads away from the empty caption: name in `from:` as `{UNCONDITIONAL}` a \
                 table of encode_text whose first row is that, or write `guidance_scale: 1`"
            );
            Err(Misfit::parameter(parameter, message))
        }
        [true, _] => Ok(TEXT),
        [false, true] => Ok(UNCONDITIONAL),
    }
}

/// A denoiser with the conditions of a batch.
#[derive(Debug)]
pub(super) struct Guided<'d> {
    denoiser: &'d Denoiser,
    guidance: Guidance,
    /// The encoded images, for a denoiser with a control branch.
    hint: Option<Tensor>,
    device: Device,
}

impl<'d> Guided<'d> {
    /// Reads the conditions of `batch`. `unconditional` [1, 77, D] is the caption that guidance leads away from, and that of all
    /// rows where these have none of their own.
    pub(super) fn new(
        denoiser: &'d Denoiser,
        batch: &Batch,
        unconditional: Option<&Tensor>,
        guidance_scale: f64,
        device: Device,
    ) -> Result<Self> {
        let context = context(batch, unconditional, device)?;
        let guidance = match unconditional {
            Some(unconditional) => Guidance::new(&context, unconditional, guidance_scale)?,
            None => Guidance::none(&context),
        };
        let hint = if denoiser.has_control() {
            let images = normalise(&tensor(batch, "images", PIXELS)?.to_device(device));
            denoiser.hint(&images).map(|hint| guidance.extend(&hint)).transpose()?
        } else {
            None
        };
        Ok(Self { denoiser, guidance, hint, device })
    }

    /// Returns the prediction for noisy latents `x` [B, C, h, w] at timestep `t`.
    pub(super) fn predict(&self, x: &Tensor, t: i64) -> Result<Tensor> {
        let model = |x: &Tensor, contexts: &Tensor| {
            let t = Tensor::f_full([x.size()[0]], t, (Kind::Int64, self.device))?;
            Ok(self.denoiser.forward(x, &t, contexts, self.hint.as_ref()))
        };
        Ok(self.guidance.predict(x, model)?)
    }
}

/// Draws the standard normal values of `what` for each row of a batch, [B, shape…]; those of a row depend on `seed`, `what` and
/// its id alone.
pub(super) fn noise(seed: u64, what: &str, batch: &Batch, shape: &[i64], device: Device) -> Result<Tensor> {
    let keys: Vec<String> = batch.ids.iter().map(|id| format!("{what}/{id}")).collect();
    Ok(noise_per_key(seed, &keys, shape)?.to_device(device))
}
