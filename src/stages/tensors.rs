//! Arrow columns <-> tensors, and trained weights in and out of tables. For operators, which run in the worker.

use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::{DataType, Float16Type, Float32Type, UInt8Type},
};
use bytes::Bytes;
use half::{f16, slice::HalfFloatSliceExt};
use serde::{Serialize, de::DeserializeOwned};
use tch::{Device, Kind, Tensor, nn};

use crate::{
    diffusion::schedule::ScheduleError,
    engine::{
        Digest, Error, Result,
        stage::{Batch, Context},
        store::{Store, tensor_shape},
    },
    features::ExtractorError,
    models::{
        checkpoint::{Checkpoint, CheckpointError, to_safetensors},
        denoiser::DenoiserError,
        device,
        initialisation::skip_init,
        nn::ConfigError,
        preprocessing::Preprocessing,
        tokenizer::TokenizerError,
    },
    published::input,
    tables::{
        column::missing,
        embeddings::{EMBEDDING, TEXT},
        weights::{CONFIG, WEIGHTS},
    },
};

impl From<tch::TchError> for Error {
    /// Makes the failure of a stage from an error of libtorch, of which the first line is kept.
    fn from(error: tch::TchError) -> Self {
        Self::of_library(error.to_string().lines().next().unwrap_or_default().to_owned())
    }
}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        Self::Input(error.to_string())
    }
}

impl From<ScheduleError> for Error {
    fn from(error: ScheduleError) -> Self {
        Self::Input(error.to_string())
    }
}

impl From<TokenizerError> for Error {
    fn from(error: TokenizerError) -> Self {
        Self::Input(error.to_string())
    }
}

impl From<DenoiserError> for Error {
    fn from(error: DenoiserError) -> Self {
        match error {
            DenoiserError::Config(error) => error.into(),
            DenoiserError::Checkpoint(error) => input(error),
        }
    }
}

impl From<ExtractorError> for Error {
    fn from(error: ExtractorError) -> Self {
        match error {
            ExtractorError::Checkpoint(error) => input(error),
            other => Self::Input(other.to_string()),
        }
    }
}

/// Opens the device of a run.
pub(super) fn device(context: &Context) -> Result<Device> {
    device::open(&context.device).map_err(|e| Error::Input(e.to_string()))
}

/// Returns a tensor column of a batch as a tensor [B, shape…] of its own type. A row without a value is an error.
pub(super) fn tensor(batch: &Batch, port: &str, name: &str) -> Result<Tensor> {
    let column = batch.column(port, name)?;
    match (0..column.len()).find(|row| column.is_null(*row)) {
        Some(row) => Err(missing(&batch.ids[row], port, name)),
        None => stacked(batch.rows(port)?, name),
    }
}

/// Returns the values of a tensor column as one tensor [rows, shape…].
fn stacked(rows: &RecordBatch, name: &str) -> Result<Tensor> {
    let schema = rows.schema();
    let (at, field) =
        schema.column_with_name(name).ok_or_else(|| Error::Stage(format!("there is no column `{name}`")))?;
    let list = rows.column(at).as_fixed_size_list_opt();
    let (list, shape) = list.zip(tensor_shape(field)).ok_or_else(|| {
        Error::Stage(format!("column `{name}` is {}, where a tensor was expected", field.data_type()))
    })?;
    // `values` is the child of the list before it was sliced.
    let size = list.value_length() as usize;
    let values = list.values().slice(list.value_offset(0) as usize, list.len() * size);
    let shape: Vec<i64> = std::iter::once(list.len()).chain(shape).map(|n| n as i64).collect();
    let flat = match list.value_type() {
        DataType::UInt8 => Tensor::f_from_slice(values.as_primitive::<UInt8Type>().values()),
        DataType::Float32 => Tensor::f_from_slice(values.as_primitive::<Float32Type>().values()),
        DataType::Float16 => Tensor::f_from_slice(values.as_primitive::<Float16Type>().values()),
        other => return Err(Error::Stage(format!("a tensor of {other} cannot be read"))),
    };
    Ok(flat?.f_view(shape.as_slice())?)
}

/// Returns the embedding [1, 77, D] of the first row of the table at `port`; None if `from:` names none.
pub(super) fn first_embedding(context: &Context, port: &str) -> Result<Option<Tensor>> {
    let Some(table) = context.tables.get(port) else { return Ok(None) };
    match table.column_by_name(EMBEDDING) {
        Some(column) if !column.is_empty() && column.is_valid(0) => stacked(&table.slice(0, 1), EMBEDDING).map(Some),
        _ => Err(Error::Input(format!("the table at `{port}` has no embedding in its first row, which is taken"))),
    }
}

/// Returns the captions of a batch, [B, 77, D]: each row's own or, if `from:` names none, `unconditional` [1, 77, D].
pub(super) fn context(batch: &Batch, unconditional: Option<&Tensor>, device: Device) -> Result<Tensor> {
    match unconditional {
        Some(unconditional) if batch.port(TEXT).is_none() => {
            Ok(unconditional.f_expand([batch.len() as i64, -1, -1], true)?)
        }
        _ => Ok(tensor(batch, TEXT, EMBEDDING)?.to_device(device)),
    }
}

/// Returns the values of a tensor in row-major order, as f32.
pub(super) fn floats(tensor: &Tensor) -> Result<Vec<f32>> {
    let flat = tensor.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?.f_view([-1])?;
    Ok(Vec::try_from(flat)?)
}

/// Returns the values of a tensor in row-major order, as f16.
pub(super) fn halves(tensor: &Tensor) -> Result<Vec<f16>> {
    let values = floats(tensor)?;
    let mut halves = vec![f16::ZERO; values.len()];
    // A slice is converted by several values at a time.
    halves.convert_from_f32_slice(&values);
    Ok(halves)
}

/// The normalisation of pixels for the autoencoder, the hint and the reconstruction. It is that of the authors' code;
/// latent diffusion scales to [-1, 1] instead.
const PIXELS: Preprocessing = Preprocessing::imagenet(1);

/// Converts pixels u8 [B, H, W, 3] -> f32 [B, 3, H, W], normalised by ImageNet's mean and standard deviation.
pub(super) fn normalise(pixels: &Tensor) -> Tensor {
    PIXELS.normalize(&(pixels.permute([0, 3, 1, 2]).to_kind(Kind::Float) / 255.))
}

/// Writes a network's variables and configuration as a safetensors file.
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
    Ok(to_safetensors(tensors, metadata.collect())?)
}

pub(super) fn checkpoint(error: CheckpointError) -> Error {
    Error::of_library(error.to_string())
}

/// Opens a file of tensors that a table names. In a store on this machine's disk the tensors stay in their file.
pub(super) fn open_blob(store: &Store, digest: Digest) -> Result<Checkpoint> {
    let opened = match store.blob_file(digest)? {
        Some(path) => Checkpoint::open(path),
        None => Checkpoint::from_safetensors(store.blob(digest)?),
    };
    opened.map_err(checkpoint)
}

/// Reads the weights that the table at `port` names, and the configuration with which they were trained.
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

/// Builds the network that the table at `port` names, on a device. Returns it with its configuration and the file of
/// its weights.
pub(super) fn network<C: DeserializeOwned, N>(
    context: &Context,
    port: &str,
    device: Device,
    build: impl FnOnce(nn::Path<'_>, &C) -> Result<N, ConfigError>,
) -> Result<(N, C, Checkpoint)> {
    let (config, weights) = load_weights(context, port)?;
    let vs = nn::VarStore::new(device);
    let network = skip_init(|| build(vs.root(), &config))?;
    weights.load_into(&vs).map_err(checkpoint)?;
    Ok((network, config, weights))
}

fn weights_of(context: &Context, port: &str) -> Result<Bytes> {
    let none = || Error::Stage(format!("the table at `{port}` names no weights"));
    let column = context.tables.get(port).and_then(|table| table.column_by_name(WEIGHTS)).ok_or_else(none)?;
    let digest = column.as_string::<i32>().iter().flatten().next_back().ok_or_else(none)?;
    context.store.blob(digest.parse::<Digest>().map_err(Error::Damaged)?)
}

#[cfg(test)]
mod tests {
    use std::{path::PathBuf, sync::Arc};

    use arrow::datatypes::Schema;

    use super::*;
    use crate::{engine::store::tensor_field, tables::tensor::tensor_column};

    /// Makes three rows of two numbers; if `valid` is false, the second row is null.
    fn batch(valid: bool) -> Batch {
        let pixels = tensor_column::<UInt8Type>((0..6).collect(), 2, Some(vec![true, valid, true])).unwrap();
        let schema = Schema::new(vec![tensor_field("pixels", DataType::UInt8, &[1, 2], true)]);
        let rows = RecordBatch::try_new(Arc::new(schema), vec![pixels]).unwrap();
        Batch::new(["a", "b", "c"].map(str::to_owned).into(), vec![("images".into(), rows)])
    }

    #[test]
    fn null_tensor_is_an_error_not_zeros() {
        let rows = batch(true).slice(1, 2);
        let pixels = tensor(&rows, "images", "pixels").unwrap();
        assert_eq!(pixels.size(), [2, 1, 2]);
        assert_eq!(Vec::<u8>::try_from(pixels.flatten(0, -1)).unwrap(), [2, 3, 4, 5]);
        let error = tensor(&batch(false), "images", "pixels").unwrap_err();
        assert!(error.is_input() && error.to_string().starts_with("b: `images` has no `pixels`"), "{error}");
        assert!(tensor(&batch(false).slice(2, 1), "images", "pixels").is_ok());
    }
    #[test]
    fn memory_error_while_weights_load_is_not_an_input_error() {
        let source = tch::TchError::Torch("CUDA out of memory.".into());
        let error = input(CheckpointError::Torch { path: PathBuf::from("w"), name: "x".into(), source });
        assert!(!error.is_input() && matches!(error, Error::Memory(_)), "{error}");
        assert!(input(CheckpointError::NoTensor { path: PathBuf::from("w"), name: "x".into() }).is_input());
    }
}
