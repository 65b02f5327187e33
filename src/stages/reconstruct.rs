//! Images -> their reconstructions as if they were normal.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch, StringArray},
    datatypes::{DataType, Float16Type, Float32Type, Schema, SchemaRef},
};
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, nn::VarStore, no_grad};

use super::{
    column,
    tensors::{checkpoint, device, floats, halves, load_weights, normalise, tensor, torch},
    train_denoiser::{Denoiser, DenoiserConfig},
    training::config_of,
};
use crate::{
    diffusion::{
        noise_per_key,
        sampler::{Ddim, DdimConfig},
    },
    engine::{
        Error, Result,
        stage::{Context, Open, Operator, Output, Port, Ports, Schemas, Stage},
        task::{Batch, Rows, Sink},
        tensor_field,
    },
    models::vae::{AutoencoderKl, AutoencoderKlConfig, Posterior},
};

/// Noises the latent of each image and denoises it by DDIM, guided by the caption and by the image itself.
///
/// The noise of an image depends on `seed` and its id alone: the result does not depend on batch, order or machine.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
pub struct Reconstruct {
    /// The sampler.
    #[garde(skip)]
    #[serde(default)]
    pub sampler: DdimConfig,
    /// Whether the latent is drawn from its moments or is their mean.
    #[garde(skip)]
    #[serde(default)]
    pub latent: Latent,
    /// Seed of all noise.
    #[garde(skip)]
    #[serde(default)]
    pub seed: u64,
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

impl Stage for Reconstruct {
    const NAME: &'static str = "reconstruct";
    const REVISION: u32 = 1;
    const PORTS: Ports = Ports::Named(&[
        Port::rows("images", &["pixels"]),
        Port::rows("latents", &["mean", "logvar"]),
        Port::rows("text_embeddings", &["embedding"]),
        Port::table("autoencoder", &["weights"]),
        Port::table("denoiser", &["weights"]),
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
        Ok(Arc::new(Schema::new(vec![
            column::image_id(),
            tensor_field("latent", DataType::Float32, &latent, false),
            tensor_field("pixels", DataType::Float16, &[3, height, width], false),
            tensor_field("autoencoded", DataType::Float16, &[3, height, width], false),
        ])))
    }
}

impl Open for Reconstruct {
    fn open(self, context: &Context) -> Result<Box<dyn Operator>> {
        let device = device(context)?;
        let (config, weights) = load_weights::<DenoiserConfig>(context, "denoiser")?;
        let vs = VarStore::new(device);
        let denoiser = Denoiser::new(&vs.root(), &config)?;
        weights.load_into(&vs).map_err(checkpoint)?;
        let (vae_config, weights) = load_weights::<AutoencoderKlConfig>(context, "autoencoder")?;
        let vs = VarStore::new(device);
        let vae = AutoencoderKl::new(vs.root(), &vae_config).map_err(|e| Error::Stage(e.to_string()))?;
        weights.load_into(&vs).map_err(checkpoint)?;
        let schedule = config.schedule.build().map_err(|e| Error::Input(e.to_string()))?;
        let sampler = self.sampler.build(&schedule).map_err(|e| Error::Input(e.to_string()))?;
        let field = |port, name| context.schemas.field(port, name).map_err(Error::Stage);
        Ok(Box::new(Reconstructor {
            pixels: column::pixels(&context.schemas).map_err(Error::Stage)?,
            moments: column::shape(field("latents", "mean")?, &DataType::Float32, "[C, h, w]").map_err(Error::Stage)?,
            text: column::shape(field("text_embeddings", "embedding")?, &DataType::Float32, "[77, D]")
                .map_err(Error::Stage)?,
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
    output: SchemaRef,
}

impl Operator for Reconstructor {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        while let Some(batch) = rows.next(16)? {
            let [latent, pixels, autoencoded] = no_grad(|| self.reconstruct(&batch))?;
            let (latent, pixels, autoencoded) = (floats(&latent)?, halves(&pixels)?, halves(&autoencoded)?);
            let ids: ArrayRef = Arc::new(StringArray::from_iter_values(&batch.ids));
            let (a, b) = (latent.len() / batch.len(), pixels.len() / batch.len());
            let columns = vec![
                ids,
                column::tensors::<Float32Type>(latent, a, None)?,
                column::tensors::<Float16Type>(pixels, b, None)?,
                column::tensors::<Float16Type>(autoencoded, b, None)?,
            ];
            out.write(&RecordBatch::try_new(self.output.clone(), columns)?)?;
        }
        Ok(())
    }
}

impl Reconstructor {
    /// The latent without its defect [B, 4, h, w]; its picture, and the picture of the latent as it was, [B, 3, H, W] in the
    /// space of [`normalise`].
    fn reconstruct(&self, batch: &Batch) -> Result<[Tensor; 3]> {
        let read = |port, name, shape: &[usize]| {
            Ok::<_, Error>(tensor(batch.column(port, name)?, shape)?.to_device(self.device))
        };
        let image = normalise(&read("images", "pixels", &self.pixels)?);
        let posterior = Posterior {
            mean: read("latents", "mean", &self.moments)?,
            logvar: read("latents", "logvar", &self.moments)?,
        };
        let context = read("text_embeddings", "embedding", &self.text)?;
        let shape: Vec<i64> = self.moments.iter().map(|n| *n as i64).collect();
        let noise = |what: &str| {
            let keys: Vec<String> = batch.ids.iter().map(|id| format!("{what}/{id}")).collect();
            noise_per_key(self.stage.seed, &keys, &shape).map(|noise| noise.to_device(self.device)).map_err(torch)
        };
        let z = match self.stage.latent {
            Latent::Sample => posterior.sample(&noise("posterior")?),
            Latent::Mode => posterior.mean,
        };
        let autoencoded = self.vae.decode(&z);
        let x = self.sampler.start(&(z * self.scale), &noise("start")?);
        let hint = self.denoiser.hint(&image);
        let rows = batch.len() as i64;
        let model = |x: &Tensor, t: i64| {
            Ok(self.denoiser.forward(x, &Tensor::full([rows], t, (Kind::Int64, self.device)), &context, &hint))
        };
        let z = self.sampler.sample(x, model, |t| noise(&format!("step {t}")))? / self.scale;
        let pixels = self.vae.decode(&z);
        Ok([z, pixels, autoencoded])
    }
}
