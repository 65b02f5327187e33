//! Images -> the moments of their latents.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch, StringArray},
    datatypes::{DataType, Float32Type, Schema, SchemaRef},
};
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, nn::VarStore, no_grad};

use super::{
    column,
    tensors::{checkpoint, device, floats, load_weights, normalise, tensor},
    training::config_of,
};
use crate::{
    engine::{
        Error, Result,
        stage::{Context, Open, Operator, Output, Port, Ports, Schemas, Stage},
        task::{Rows, Sink},
        tensor_field,
    },
    models::{
        nn::skip_init,
        vae::{AutoencoderKl, AutoencoderKlConfig},
    },
};

/// Encodes images by the autoencoder: mean and log-variance of each latent, unscaled.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
pub struct EncodeLatents {}

impl Stage for EncodeLatents {
    const NAME: &'static str = "encode_latents";
    const REVISION: u32 = 1;
    const PORTS: Ports = Ports::Named(&[Port::rows("images", &["pixels"]), Port::table("autoencoder", &["weights"])]);
    const OUTPUT: &'static [Output] = &[Output::RowPerRow];

    fn output(&self, inputs: &Schemas) -> Result<SchemaRef, String> {
        let [height, width, _] = column::pixels(inputs)?;
        let config: AutoencoderKlConfig = config_of(inputs.field("autoencoder", "weights")?)?;
        let factor = config.factor() as usize;
        let shape = [config.latent_channels as usize, height / factor, width / factor];
        let moment = |name| tensor_field(name, DataType::Float32, &shape, false);
        Ok(Arc::new(Schema::new(vec![column::image_id(), moment("mean"), moment("logvar")])))
    }
}

impl Open for EncodeLatents {
    fn open(self, context: &Context) -> Result<Box<dyn Operator>> {
        let (config, weights) = load_weights::<AutoencoderKlConfig>(context, "autoencoder")?;
        let device = device(context)?;
        let vs = VarStore::new(device);
        let network = skip_init(|| AutoencoderKl::new(vs.root(), &config)).map_err(|e| Error::Stage(e.to_string()))?;
        weights.load_into(&vs).map_err(checkpoint)?;
        let shape = column::pixels(&context.schemas).map_err(Error::Stage)?;
        let batch_size = context.batch_size.unwrap_or(16);
        Ok(Box::new(Encoder { network, device, batch_size, shape, output: context.output.clone() }))
    }
}

struct Encoder {
    network: AutoencoderKl,
    device: Device,
    batch_size: usize,
    shape: [usize; 3],
    output: SchemaRef,
}

impl Operator for Encoder {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        while let Some(batch) = rows.next(self.batch_size)? {
            let pixels = tensor(batch.column("images", "pixels")?, &self.shape)?.to_device(self.device);
            let posterior = no_grad(|| self.network.encode(&normalise(&pixels)));
            let (mean, logvar) = (floats(&posterior.mean)?, floats(&posterior.logvar)?);
            let size = mean.len() / batch.len();
            let ids: ArrayRef = Arc::new(StringArray::from_iter_values(&batch.ids));
            let columns = vec![
                ids,
                column::tensors::<Float32Type>(mean, size, None)?,
                column::tensors::<Float32Type>(logvar, size, None)?,
            ];
            out.write(&RecordBatch::try_new(self.output.clone(), columns)?)?;
        }
        Ok(())
    }
}
