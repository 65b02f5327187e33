//! Images -> their reconstructions as if they were normal.

use arrow::{
    array::new_null_array,
    datatypes::{Float16Type, Float32Type, SchemaRef},
};
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor, nn, no_grad};

use super::{
    guided::{self, Guided},
    likeness,
    tensors::{device, first_embedding, floats, halves, network, tensor},
    train_denoiser::{DenoiserConfig, was_trained_at},
};
use crate::{
    diffusion::sampler::{Ddim, DdimConfig},
    engine::{
        Error, Result,
        stage::{Batch, Context, Misfit, Open, Operator, Output, Port, Ports, Rows, Sample, Schemas, Sink, Stage},
        store::Note,
    },
    models::{
        denoiser::Denoiser,
        vae::{AutoencoderKl, Posterior},
    },
    tables::{
        embeddings::{self, TEXT, UNCONDITIONAL},
        images,
        latents::{self, LOGVAR, MEAN},
        reconstructions,
        tensor::tensor_column,
        weights::{config_of, weights_column},
    },
};

/// Adds noise to the latent of each image and denoises it by DDIM, conditioned on the caption and on the image
/// itself. With `sampler.inversion` the latent is led to noise by the network instead.
///
/// The noise of an image depends on `seed` and its id alone: the result does not depend on batch, order or machine.
/// With `guidance_scale` other than 1 the first row of the input `unconditional` is the caption to lead away from, as
/// a rule the empty one; images whose own caption equals it are not computed twice. Without `text_embeddings` it is
/// the caption of all images.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
#[schemars(extend("examples" = [{}]))]
pub struct Reconstruct {
    /// The sampler.
    #[garde(skip)]
    #[serde(default)]
    pub sampler: DdimConfig,
    /// Classifier-free guidance: the factor on the change that the caption makes. 1: no guidance. The authors have 9,
    /// which changes nothing if the caption is empty, as it is in their industrial tests.
    #[garde(range(min = 0., max = 100.))]
    #[serde(default = "default_guidance_scale")]
    pub guidance_scale: f64,
    /// If true, each image is also decoded after the autoencoder alone, as `autoencoded`, which costs one more
    /// decoding.
    #[garde(skip)]
    #[serde(default)]
    pub autoencoded: bool,
    /// The latent of an image: drawn from its moments, or their mean.
    #[garde(skip)]
    #[serde(default)]
    pub latent: Latent,
    /// The number of runs of the sampler from different noise; the reconstruction is the mean of their results. More
    /// runs make it depend less on chance.
    #[garde(range(min = 1, max = 256))]
    #[serde(default = "one")]
    pub draws: u32,
    /// Seed of all noise.
    #[garde(skip)]
    #[serde(default)]
    pub seed: u64,
}

fn one() -> u32 {
    1
}

fn default_guidance_scale() -> f64 {
    9.
}

/// The latent that represents an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Latent {
    /// A draw from the posterior, as the authors do.
    #[default]
    Sample,
    /// The posterior's mean.
    Mode,
}

impl Stage for Reconstruct {
    fn revision(&self) -> u32 {
        2
    }

    fn ports(&self) -> Ports {
        Ports::Named(vec![
            Port::rows("images", [images::pixels_column()]),
            Port::rows("latents", [latents::mean_column(), latents::logvar_column()]),
            Port::rows(TEXT, [embeddings::embedding_column()]).optional(),
            Port::table("autoencoder", [weights_column()]),
            Port::table("denoiser", [weights_column()]),
            Port::table(UNCONDITIONAL, [embeddings::embedding_column()]).optional(),
        ])
    }

    fn makes(&self) -> Output {
        Output::RowPerRow
    }

    fn output(&self, inputs: &Schemas) -> Result<SchemaRef, Misfit> {
        let latent = latents::shape(inputs)?;
        let [height, width, _] = images::pixels(inputs)?;
        let denoiser: DenoiserConfig = config_of(inputs, "denoiser")?;
        let sampler = denoiser
            .schedule
            .build()
            .and_then(|schedule| self.sampler.build(&schedule))
            .map_err(|e| Misfit::parameter("sampler", e))?;
        was_trained_at(denoiser.min_timestep, sampler.lowest_timestep(), guided::FEW_STEPS)
            .map_err(|why| Misfit::parameter("sampler", why))?;
        if self.sampler.inversion.is_some() && self.sampler.eta == 0. && self.draws > 1 {
            let message = "an inversion without `eta` draws no noise, and all draws are the same; leave `draws` out";
            return Err(Misfit::parameter("draws", message));
        }
        let captions = guided::captions(inputs, self.guidance_scale, "guidance_scale")?;
        denoiser.fits(inputs, captions, None)?;
        Ok(reconstructions::schema(latent, [height, width], !self.autoencoded))
    }

    fn review(&self, table: &Sample<'_>) -> Result<Vec<Note>> {
        likeness::review(table)
    }
}

impl Open for Reconstruct {
    fn open(self, context: &Context) -> Result<Box<dyn Operator>> {
        let device = device(context)?;
        let build = |vs: nn::Path<'_>, config: &DenoiserConfig| Denoiser::new(vs, &config.control);
        let (denoiser, config, _) = network(context, "denoiser", device, build)?;
        let (vae, ..) = network(context, "autoencoder", device, AutoencoderKl::new)?;
        Ok(Box::new(Reconstructor {
            sampler: self.sampler.build(&config.schedule.build()?)?,
            unconditional: first_embedding(context, UNCONDITIONAL)?.map(|embedding| embedding.to_device(device)),
            batch_size: context.batch_size.unwrap_or(16),
            stage: self,
            denoiser,
            vae,
            scale: config.scaling_factor,
            device,
        }))
    }
}

struct Reconstructor {
    stage: Reconstruct,
    denoiser: Denoiser,
    vae: AutoencoderKl,
    scale: f64,
    sampler: Ddim,
    device: Device,
    /// The embedding of the unconditional caption, [1, 77, D].
    unconditional: Option<Tensor>,
    batch_size: usize,
}

impl Operator for Reconstructor {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        while let Some(batch) = rows.next(self.batch_size)? {
            let Reconstruction { latent, pixels, autoencoded } = no_grad(|| self.reconstruct(&batch))?;
            let (latent, pixels) = (floats(&latent)?, halves(&pixels)?);
            let (a, b) = (latent.len() / batch.len(), pixels.len() / batch.len());
            let autoencoded = match autoencoded {
                Some(shown) => tensor_column::<Float16Type>(halves(&shown)?, b, None)?,
                None => new_null_array(out.schema().field(3).data_type(), batch.len()),
            };
            let columns = vec![
                tensor_column::<Float32Type>(latent, a, None)?,
                tensor_column::<Float16Type>(pixels, b, None)?,
                autoencoded,
            ];
            out.write_rows(&batch, columns)?;
        }
        Ok(())
    }
}

/// The results of a batch; pictures are [B, 3, H, W] in the space of [`normalise`](super::tensors::normalise).
struct Reconstruction {
    /// The denoised latent, [B, 4, h, w].
    latent: Tensor,
    /// The picture of the denoised latent.
    pixels: Tensor,
    /// The picture of the original latent.
    autoencoded: Option<Tensor>,
}

impl Reconstructor {
    fn reconstruct(&self, batch: &Batch) -> Result<Reconstruction> {
        let read = |port, name| Ok::<_, Error>(tensor(batch, port, name)?.to_device(self.device));
        let posterior = Posterior { mean: read("latents", MEAN)?, logvar: read("latents", LOGVAR)? };
        let size = posterior.mean.size(); // [B, C, h, w]
        let noise = |what: &str| guided::noise(self.stage.seed, what, batch, &size[1..], self.device);
        let z = match self.stage.latent {
            Latent::Sample => posterior.sample(&noise("posterior")?),
            Latent::Mode => posterior.mean,
        };
        let autoencoded = self.stage.autoencoded.then(|| self.vae.decode(&z));
        let z = z * self.scale;
        let Reconstruct { guidance_scale, draws, .. } = self.stage;
        let guided = Guided::new(&self.denoiser, batch, self.unconditional.as_ref(), guidance_scale, self.device)?;
        let model = |x: &Tensor, t: i64| guided.predict(x, t);
        let inverted = self.sampler.invert(&z, model)?;
        let draw = |draw: u32| {
            let of = |what: &str| if draw == 0 { noise(what) } else { noise(&format!("{what}, draw {draw}")) };
            let start = match &inverted {
                Some(inverted) => inverted.shallow_clone(),
                None => self.sampler.start(&z, &of("start")?),
            };
            self.sampler.sample(start, model, |t| of(&format!("step {t}")))
        };
        let mut latent = draw(0)?;
        for i in 1..draws {
            latent += draw(i)?;
        }
        let latent = latent / f64::from(draws) / self.scale;
        let pixels = self.vae.decode(&latent);
        Ok(Reconstruction { latent, pixels, autoencoded })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::{DataType, Schema};
    use serde_json::{Value, json};

    use super::*;
    use crate::{engine::store::tensor_field, models::vae::AutoencoderKlConfig, tables::weights::weights_field};

    /// Returns the error about a denoiser of such widths and a table of such captions, for images of 32x32 whose
    /// latents are 8x8.
    fn problem(denoiser: &Value, latents: [usize; 3], captions: usize) -> Option<String> {
        let tensor = |name: &str, item, shape: &[usize]| tensor_field(name, item, shape, false);
        let float = |name: &str, shape: &[usize]| tensor(name, DataType::Float32, shape);
        let vae: AutoencoderKlConfig =
            serde_json::from_value(json!({ "block_out_channels": [8, 8, 8], "norm_num_groups": 4 })).unwrap();
        let denoiser: DenoiserConfig =
            serde_json::from_value(json!({ "control": denoiser, "schedule": {}, "scaling_factor": 1 })).unwrap();
        let all = [
            ("images", vec![tensor("pixels", DataType::UInt8, &[32, 32, 3])]),
            ("latents", vec![float("mean", &latents), float("logvar", &latents)]),
            (TEXT, vec![float("embedding", &[77, captions])]),
            ("autoencoder", vec![weights_field(&vae)]),
            ("denoiser", vec![weights_field(&denoiser)]),
        ];
        let all = all.map(|(port, fields)| (port.to_owned(), Arc::new(Schema::new(fields)) as SchemaRef));
        let stage: Reconstruct = serde_json::from_value(json!({ "guidance_scale": 1 })).unwrap();
        stage.output(&Schemas { all: all.into(), by_row: vec![] }).err().map(|misfit| misfit.to_string())
    }

    #[test]
    fn error_of_networks_that_do_not_fit_each_other() {
        let fits = json!({
            "block_out_channels": [8, 16], "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
            "cross_attention_dim": 12, "norm_num_groups": 4, "conditioning_embedding_out_channels": [4, 8, 8],
        });
        let with = |key: &str, value: Value| {
            let mut config = fits.clone();
            config[key] = value;
            problem(&config, [4, 8, 8], 12).unwrap()
        };
        assert_eq!(problem(&fits, [4, 8, 8], 12), None);
        assert!(with("in_channels", json!(8)).starts_with("in_channels and out_channels are 4"));
        let hint = with("conditioning_embedding_out_channels", json!([4, 8]));
        assert!(hint.starts_with("the hint encoder shrinks images by 2 and the autoencoder by 4"), "{hint}");
        let captions = problem(&fits, [4, 8, 8], 16).unwrap();
        assert_eq!(captions, "cross_attention_dim is 12 and the captions are 16 wide");
        for latents in [[4, 4, 4], [8, 8, 8]] {
            let told = problem(&fits, latents, 12).unwrap();
            assert!(told.starts_with("`latents` are ") && told.ends_with("4 channels, smaller by 4"), "{told}");
        }
    }
}
