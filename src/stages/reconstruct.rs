//! Images -> their reconstructions as if they were normal.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch, StringArray, new_null_array},
    datatypes::{DataType, Float16Type, Float32Type, Schema, SchemaRef},
};
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, nn::VarStore, no_grad};

use super::{
    column,
    tensors::{checkpoint, device, first_embedding, floats, halves, load_weights, normalise, tensor, torch},
    train_denoiser::{Denoiser, DenoiserConfig},
    training::config_of,
};
use crate::{
    diffusion::{
        guidance::Guidance,
        noise_per_key,
        sampler::{Ddim, DdimConfig},
    },
    engine::{
        Error, Result,
        stage::{Context, Open, Operator, Output, Port, Ports, Schemas, Stage},
        task::{Batch, Rows, Sink},
        tensor_field,
    },
    models::{
        nn::skip_init,
        vae::{AutoencoderKl, AutoencoderKlConfig, Posterior},
    },
};

/// Noises the latent of each image and denoises it by DDIM, conditioned on the caption and on the image itself.
///
/// The noise of an image depends on `seed` and its id alone: the result does not depend on batch, order or machine. With
/// `guidance_scale` other than 1 the first row of the input `unconditional` is the caption to lead away from, as a rule the empty
/// one; images whose own caption equals it are not computed twice. Without `text_embeddings` it is the caption of all images.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
pub struct Reconstruct {
    /// The sampler.
    #[garde(skip)]
    #[serde(default)]
    pub sampler: DdimConfig,
    /// Classifier-free guidance: what the caption changes, times this. 1: no guidance. The authors have 9, which changes nothing
    /// where the caption is empty, as it is in their industrial tests.
    #[garde(range(min = 0., max = 100.))]
    #[serde(default = "default_guidance_scale")]
    pub guidance_scale: f64,
    /// Whether to also show each image after the autoencoder alone, as `autoencoded`: one more decoding.
    #[garde(skip)]
    #[serde(default)]
    pub autoencoded: bool,
    /// Whether the latent is drawn from its moments or is their mean.
    #[garde(skip)]
    #[serde(default)]
    pub latent: Latent,
    /// Seed of all noise.
    #[garde(skip)]
    #[serde(default)]
    pub seed: u64,
}

fn default_guidance_scale() -> f64 {
    9.
}

/// Which latent stands for an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Latent {
    /// A draw from the posterior, as the authors do.
    #[default]
    Sample,
    /// The posterior's mean.
    Mode,
}

const TEXT: &str = "text_embeddings";
const UNCONDITIONAL: &str = "unconditional";

impl Stage for Reconstruct {
    const NAME: &'static str = "reconstruct";
    const REVISION: u32 = 2;
    const PORTS: Ports = Ports::Named(&[
        Port::rows("images", &["pixels"]),
        Port::rows("latents", &["mean", "logvar"]),
        Port::rows(TEXT, &["embedding"]).optional(),
        Port::table("autoencoder", &["weights"]),
        Port::table("denoiser", &["weights"]),
        Port::table(UNCONDITIONAL, &["embedding"]).optional(),
    ]);
    const OUTPUT: &'static [Output] = &[Output::RowPerRow];

    fn output(&self, inputs: &Schemas) -> Result<SchemaRef, String> {
        let latent: [usize; 3] = column::shape(inputs.field("latents", "mean")?, &DataType::Float32, "[C, h, w]")?;
        let [height, width, _] = column::pixels(inputs)?;
        let denoiser: DenoiserConfig = config_of(inputs.field("denoiser", "weights")?)?;
        denoiser
            .schedule
            .build()
            .and_then(|schedule| self.sampler.build(&schedule))
            .map_err(|e| format!("`sampler`: {e}"))?;
        let shape = |port| column::shape::<2>(inputs.field(port, "embedding")?, &DataType::Float32, "[77, D]");
        match [TEXT, UNCONDITIONAL].map(|port| inputs.get(port).is_some()) {
            [false, false] => {
                return Err(format!(
                    "captions come from `{TEXT}`, `{UNCONDITIONAL}` or both, and `from:` names neither"
                ));
            }
            [true, true] if shape(TEXT)? != shape(UNCONDITIONAL)? => {
                return Err(format!(
                    "`{TEXT}` are {:?} and `{UNCONDITIONAL}` is {:?}",
                    shape(TEXT)?,
                    shape(UNCONDITIONAL)?
                ));
            }
            [true, false] if self.guidance_scale != 1. => {
                return Err(format!(
                    "`guidance_scale` {} leads away from the empty caption: name in `from:` as `{UNCONDITIONAL}` a table of \
                     encode_text whose first row is that, or write `guidance_scale: 1`",
                    self.guidance_scale
                ));
            }
            _ => {}
        }
        Ok(Arc::new(Schema::new(vec![
            column::image_id(),
            tensor_field("latent", DataType::Float32, &latent, false),
            tensor_field("pixels", DataType::Float16, &[3, height, width], false),
            tensor_field("autoencoded", DataType::Float16, &[3, height, width], !self.autoencoded),
        ])))
    }
}

impl Open for Reconstruct {
    fn open(self, context: &Context) -> Result<Box<dyn Operator>> {
        let device = device(context)?;
        let (config, weights) = load_weights::<DenoiserConfig>(context, "denoiser")?;
        let vs = VarStore::new(device);
        let denoiser = skip_init(|| Denoiser::new(&vs.root(), &config))?;
        weights.load_into(&vs).map_err(checkpoint)?;
        let (vae_config, weights) = load_weights::<AutoencoderKlConfig>(context, "autoencoder")?;
        let vs = VarStore::new(device);
        let vae = skip_init(|| AutoencoderKl::new(vs.root(), &vae_config)).map_err(|e| Error::Stage(e.to_string()))?;
        weights.load_into(&vs).map_err(checkpoint)?;
        let schedule = config.schedule.build().map_err(|e| Error::Input(e.to_string()))?;
        let sampler = self.sampler.build(&schedule).map_err(|e| Error::Input(e.to_string()))?;
        let field = |port, name| context.schemas.field(port, name).map_err(Error::Stage);
        let captions = if context.schemas.get(TEXT).is_some() { TEXT } else { UNCONDITIONAL };
        let text = column::shape(field(captions, "embedding")?, &DataType::Float32, "[77, D]").map_err(Error::Stage)?;
        let unconditional =
            first_embedding(context, UNCONDITIONAL, &text)?.map(|embedding| embedding.to_device(device));
        Ok(Box::new(Reconstructor {
            pixels: column::pixels(&context.schemas).map_err(Error::Stage)?,
            moments: column::shape(field("latents", "mean")?, &DataType::Float32, "[C, h, w]").map_err(Error::Stage)?,
            text,
            unconditional,
            batch_size: context.batch_size.unwrap_or(16),
            stage: self,
            denoiser,
            vae,
            scale: config.scaling_factor,
            sampler,
            device,
            output: context.output.clone(),
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
    pixels: [usize; 3],
    moments: [usize; 3],
    text: [usize; 2],
    /// [1, 77, D].
    unconditional: Option<Tensor>,
    batch_size: usize,
    output: SchemaRef,
}

impl Operator for Reconstructor {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        while let Some(batch) = rows.next(self.batch_size)? {
            let Reconstruction { latent, pixels, autoencoded } = no_grad(|| self.reconstruct(&batch))?;
            let (latent, pixels) = (floats(&latent)?, halves(&pixels)?);
            let ids: ArrayRef = Arc::new(StringArray::from_iter_values(&batch.ids));
            let (a, b) = (latent.len() / batch.len(), pixels.len() / batch.len());
            let autoencoded = match autoencoded {
                Some(shown) => column::tensors::<Float16Type>(halves(&shown)?, b, None)?,
                None => new_null_array(self.output.field(3).data_type(), batch.len()),
            };
            let columns = vec![
                ids,
                column::tensors::<Float32Type>(latent, a, None)?,
                column::tensors::<Float16Type>(pixels, b, None)?,
                autoencoded,
            ];
            out.write(&RecordBatch::try_new(self.output.clone(), columns)?)?;
        }
        Ok(())
    }
}

/// What comes of a batch; pictures are [B, 3, H, W] in the space of [`normalise`].
struct Reconstruction {
    /// The latent without its defect, [B, 4, h, w].
    latent: Tensor,
    /// Its picture.
    pixels: Tensor,
    /// The picture of the latent as it was.
    autoencoded: Option<Tensor>,
}

impl Reconstructor {
    fn reconstruct(&self, batch: &Batch) -> Result<Reconstruction> {
        let read = |port, name, shape: &[usize]| {
            Ok::<_, Error>(tensor(batch.column(port, name)?, shape)?.to_device(self.device))
        };
        let image = normalise(&read("images", "pixels", &self.pixels)?);
        let posterior = Posterior {
            mean: read("latents", "mean", &self.moments)?,
            logvar: read("latents", "logvar", &self.moments)?,
        };
        let rows = batch.len() as i64;
        let context = match &self.unconditional {
            Some(unconditional) if batch.port(TEXT).is_none() => {
                unconditional.f_expand([rows, -1, -1], true).map_err(torch)?
            }
            _ => read(TEXT, "embedding", &self.text)?,
        };
        let shape: Vec<i64> = self.moments.iter().map(|n| *n as i64).collect();
        let noise = |what: &str| {
            let keys: Vec<String> = batch.ids.iter().map(|id| format!("{what}/{id}")).collect();
            noise_per_key(self.stage.seed, &keys, &shape).map(|noise| noise.to_device(self.device)).map_err(torch)
        };
        let z = match self.stage.latent {
            Latent::Sample => posterior.sample(&noise("posterior")?),
            Latent::Mode => posterior.mean,
        };
        let autoencoded = self.stage.autoencoded.then(|| self.vae.decode(&z));
        let x = self.sampler.start(&(z * self.scale), &noise("start")?);
        let guidance = match &self.unconditional {
            Some(unconditional) => Guidance::new(&context, unconditional, self.stage.guidance_scale).map_err(torch)?,
            None => Guidance::none(&context),
        };
        let hint = guidance.extend(&self.denoiser.hint(&image)).map_err(torch)?;
        let model = |x: &Tensor, t: i64| {
            let model = |x: &Tensor, contexts: &Tensor| {
                let t = Tensor::f_full([x.size()[0]], t, (Kind::Int64, self.device))?;
                Ok(self.denoiser.forward(x, &t, contexts, &hint))
            };
            guidance.predict(x, model).map_err(torch)
        };
        let latent = self.sampler.sample(x, model, |t| noise(&format!("step {t}")))? / self.scale;
        let pixels = self.vae.decode(&latent);
        Ok(Reconstruction { latent, pixels, autoencoded })
    }
}
