//! Images -> the moments of their latents.

use arrow::datatypes::{Float32Type, SchemaRef};
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, no_grad};

use super::tensors::{device, floats, network, normalise, tensor};
use crate::{
    engine::{
        Result,
        stage::{Context, Misfit, Open, Operator, Output, Port, Ports, Rows, Schemas, Sink, Stage},
    },
    models::vae::{AutoencoderKl, AutoencoderKlConfig},
    tables::{
        images, latents,
        tensor::tensor_column,
        weights::{config_of, weights_column},
    },
};

/// Encodes images by the autoencoder: mean and log-variance of each latent, unscaled.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
#[schemars(extend("examples" = [{}]))]
pub struct EncodeLatents {}

impl Stage for EncodeLatents {
    fn revision(&self) -> u32 {
        1
    }

    fn ports(&self) -> Ports {
        Ports::Named(vec![
            Port::rows("images", [images::pixels_column()]),
            Port::table("autoencoder", [weights_column()]),
        ])
    }

    fn makes(&self) -> Output {
        Output::RowPerRow
    }

    fn output(&self, inputs: &Schemas) -> Result<SchemaRef, Misfit> {
        let [height, width, _] = images::pixels(inputs)?;
        let config: AutoencoderKlConfig = config_of(inputs, "autoencoder")?;
        let factor = config.factor() as usize;
        if height % factor != 0 || width % factor != 0 {
            let message =
                format!("images of {height}x{width} do not divide by {factor}, the factor of the autoencoder");
            return Err(Misfit::input("images", message));
        }
        let shape = [config.latent_channels as usize, height / factor, width / factor];
        Ok(latents::schema(shape))
    }
}

impl Open for EncodeLatents {
    fn open(self, context: &Context) -> Result<Box<dyn Operator>> {
        let device = device(context)?;
        let (network, ..) = network(context, "autoencoder", device, AutoencoderKl::new)?;
        Ok(Box::new(Encoder { network, device, batch_size: context.batch_size.unwrap_or(16) }))
    }
}

struct Encoder {
    network: AutoencoderKl,
    device: Device,
    batch_size: usize,
}

impl Operator for Encoder {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        while let Some(batch) = rows.next(self.batch_size)? {
            let pixels = tensor(&batch, "images", images::PIXELS)?.to_device(self.device);
            let posterior = no_grad(|| self.network.encode(&normalise(&pixels)));
            let (mean, logvar) = (floats(&posterior.mean)?, floats(&posterior.logvar)?);
            let size = mean.len() / batch.len();
            let columns = [mean, logvar].map(|moment| tensor_column::<Float32Type>(moment, size, None));
            out.write_rows(&batch, columns.into_iter().collect::<Result<_>>()?)?;
        }
        Ok(())
    }
}
