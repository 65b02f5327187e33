//! Arrow columns <-> tensors, and trained weights in and out of tables. For operators, which run in the worker.

use arrow::{
    array::{Array, ArrayRef, AsArray, FixedSizeListArray},
    datatypes::{DataType, Float16Type, Float32Type, UInt8Type},
};
use bytes::Bytes;
use half::f16;
use serde::{Serialize, de::DeserializeOwned};
use tch::{Device, Kind, Tensor};

use crate::{
    engine::{Digest, Error, Result, stage::Context},
    models::{
        checkpoint::{Checkpoint, CheckpointError, to_safetensors},
        device,
        preprocessing::Preprocessing,
    },
};

/// The key of the network's configuration in a weights file's metadata, and of the column that names the file.
pub(super) const CONFIG: &str = "config";

/// What libtorch refuses is a failure of the stage.
pub(super) fn torch(error: tch::TchError) -> Error {
    Error::Stage(error.to_string().lines().next().unwrap_or_default().to_owned())
}

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        torch(error)
    }
}

/// Weights that the user names and that do not fit are a wrong input.
pub(super) fn input(error: CheckpointError) -> Error {
    Error::Input(error.to_string())
}

/// The device of a run.
pub(super) fn device(context: &Context) -> Result<Device> {
    device::open(&context.device).map_err(|e| Error::Input(e.to_string()))
}

/// A tensor column as a tensor [B, shape…] of its own type.
pub(super) fn tensor(column: &ArrayRef, shape: &[usize]) -> Result<Tensor> {
    let list: &FixedSizeListArray =
        column.as_fixed_size_list_opt().ok_or_else(|| Error::Stage("a tensor column was expected".into()))?;
    let size = list.value_length() as usize;
    let (start, end) = (list.offset() * size, (list.offset() + list.len()) * size);
    // `values` is the child as it was before slicing.
    let range = |len: usize| if len == list.len() * size { 0..len } else { start..end };
    let shape: Vec<i64> = std::iter::once(list.len()).chain(shape.iter().copied()).map(|n| n as i64).collect();
    let values = list.values();
    let flat = match list.value_type() {
        DataType::UInt8 => Tensor::f_from_slice(&values.as_primitive::<UInt8Type>().values()[range(values.len())]),
        DataType::Float32 => Tensor::f_from_slice(&values.as_primitive::<Float32Type>().values()[range(values.len())]),
        DataType::Float16 => Tensor::f_from_slice(&values.as_primitive::<Float16Type>().values()[range(values.len())]),
        other => return Err(Error::Stage(format!("a tensor of {other} cannot be read"))),
    };
    flat.and_then(|flat| flat.f_view(shape.as_slice())).map_err(torch)
}

/// A tensor column of all rows of a task, filled batch by batch: no value lies in memory twice.
pub(super) struct Column {
    all: Tensor,
    shape: Vec<usize>,
    filled: i64,
}

impl Column {
    /// For at most so many rows. Memory is taken as it is filled.
    pub(super) fn new(kind: Kind, rows: usize, shape: &[usize]) -> Result<Self> {
        let size: Vec<i64> = std::iter::once(&rows).chain(shape).map(|n| *n as i64).collect();
        Ok(Self { all: Tensor::f_empty(size, (kind, Device::Cpu))?, shape: shape.to_vec(), filled: 0 })
    }

    pub(super) fn push(&mut self, rows: &ArrayRef) -> Result<()> {
        self.all.f_narrow(0, self.filled, rows.len() as i64)?.f_copy_(&tensor(rows, &self.shape)?)?;
        self.filled += rows.len() as i64;
        Ok(())
    }

    /// The rows that were pushed, [N, shape…].
    pub(super) fn done(self) -> Tensor {
        self.all.narrow(0, 0, self.filled)
    }
}

/// The embedding [1, 77, D] of the first row of the table at `port`, where `from:` names one.
pub(super) fn first_embedding(context: &Context, port: &str, shape: &[usize]) -> Result<Option<Tensor>> {
    let Some(table) = context.tables.get(port) else { return Ok(None) };
    match table.column_by_name("embedding") {
        Some(column) if !column.is_empty() => tensor(&column.slice(0, 1), shape).map(Some),
        _ => Err(Error::Input(format!("the table at `{port}` has no row; its first is taken"))),
    }
}

/// The values of a tensor in row-major order, as f32.
pub(super) fn floats(tensor: &Tensor) -> Result<Vec<f32>> {
    let flat = tensor
        .f_to_device(Device::Cpu)
        .and_then(|t| t.f_to_kind(Kind::Float))
        .and_then(|t| t.f_contiguous()?.f_view([-1]))
        .map_err(torch)?;
    Vec::<f32>::try_from(flat).map_err(torch)
}

/// The values of a tensor in row-major order, as f16.
pub(super) fn halves(tensor: &Tensor) -> Result<Vec<f16>> {
    Ok(floats(tensor)?.into_iter().map(f16::from_f32).collect())
}

/// The space of the autoencoder, of the hint and of the reconstruction: that of the authors' code, where latent diffusion has
/// [-1, 1].
const PIXELS: Preprocessing = Preprocessing::imagenet(1);

/// Pixels u8 [B, H, W, 3] -> f32 [B, 3, H, W], normalised by ImageNet's mean and standard deviation.
pub(super) fn normalise(pixels: &Tensor) -> Tensor {
    PIXELS.normalize(&(pixels.permute([0, 3, 1, 2]).to_kind(Kind::Float) / 255.))
}

/// A network's variables and configuration as a safetensors file.
pub(super) fn save_weights(
    variables: impl IntoIterator<Item = (String, Tensor)>,
    config: &impl Serialize,
    more: &[(&str, String)],
) -> Result<Vec<u8>> {
    let json = serde_json::to_string(config).map_err(std::io::Error::from)?;
    let metadata = std::iter::once((CONFIG.to_owned(), json))
        .chain(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    let tensors: Vec<(String, Tensor)> =
        variables.into_iter().map(|(name, tensor)| (name, tensor.detach().to_device(Device::Cpu))).collect();
    to_safetensors(tensors, metadata.collect()).map_err(torch)
}

pub(super) fn checkpoint(error: CheckpointError) -> Error {
    Error::Stage(error.to_string())
}

/// The weights that a training table names, and the configuration they were trained with.
pub(super) fn load_weights<C: DeserializeOwned>(context: &Context, port: &str) -> Result<(C, Checkpoint)> {
    let weights = Checkpoint::from_safetensors(weights_of(context, port)?).map_err(checkpoint)?;
    let config = weights
        .metadata()
        .get(CONFIG)
        .ok_or_else(|| Error::Stage(format!("the weights of `{port}` have no configuration")))?;
    let config = serde_json::from_str(config)
        .map_err(|e| Error::Stage(format!("the configuration in the weights of `{port}`: {e}")))?;
    Ok((config, weights))
}

fn weights_of(context: &Context, port: &str) -> Result<Bytes> {
    let none = || Error::Stage(format!("the table at `{port}` names no weights"));
    let column = context.tables.get(port).and_then(|table| table.column_by_name("weights")).ok_or_else(none)?;
    let digest = column.as_string::<i32>().iter().flatten().next_back().ok_or_else(none)?;
    context.store.blob(digest.parse::<Digest>().map_err(Error::Damaged)?)
}
