//! The safetensors format: a length, a JSON header, the elements.

use super::entry::Entry;
use bytes::Bytes;
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use serde_json::{Map, json};
use std::collections::{BTreeMap, HashMap};
use tch::{Kind, TchError, Tensor};

/// The `__metadata__` of a file.
pub(super) type Metadata = HashMap<String, String>;

/// Reads the tensors by name, and the metadata.
pub(super) fn read(file: &Bytes) -> Result<(BTreeMap<String, Entry>, Metadata), String> {
    let damaged = |error| match error {
        SafeTensorError::MetadataIncompleteBuffer | SafeTensorError::InvalidHeaderLength => {
            format!("it is cut off: {} bytes are less than its header says; download it again", file.len())
        }
        error => format!("its header is damaged ({error}); download it again"),
    };
    let (_, header) = SafeTensors::read_metadata(file).map_err(damaged)?;
    let views = SafeTensors::deserialize(file).map_err(damaged)?;
    let entry = |(name, view): (String, safetensors::tensor::TensorView)| {
        let shape = view.shape().iter().map(|&size| i64::try_from(size).ok()).collect::<Option<_>>();
        let entry = shape.and_then(|shape| Entry::dense(file.slice_ref(view.data()), shape, kind(view.dtype())));
        entry.map(|entry| (name.clone(), entry)).ok_or_else(|| format!("{name} reaches outside of the file"))
    };
    let entries = views.tensors().into_iter().map(entry).collect::<Result<_, _>>()?;
    Ok((entries, header.metadata().clone().unwrap_or_default()))
}

fn kind(dtype: Dtype) -> Result<Kind, String> {
    match dtype {
        Dtype::BOOL => Ok(Kind::Bool),
        Dtype::U8 => Ok(Kind::Uint8),
        Dtype::I8 => Ok(Kind::Int8),
        Dtype::I16 => Ok(Kind::Int16),
        Dtype::I32 => Ok(Kind::Int),
        Dtype::I64 => Ok(Kind::Int64),
        Dtype::F8_E5M2 => Ok(Kind::Float8e5m2),
        Dtype::F8_E4M3 => Ok(Kind::Float8e4m3fn),
        Dtype::F16 => Ok(Kind::Half),
        Dtype::BF16 => Ok(Kind::BFloat16),
        Dtype::F32 => Ok(Kind::Float),
        Dtype::F64 => Ok(Kind::Double),
        Dtype::C64 => Ok(Kind::ComplexFloat),
        other => Err(other.to_string()),
    }
}

/// Returns the format's name of an element type, or libtorch's if the format has none.
pub(super) fn kind_name(kind: Kind) -> String {
    dtype(kind).map_or_else(|_| format!("{kind:?}"), |dtype| dtype.to_string())
}

fn dtype(kind: Kind) -> Result<Dtype, TchError> {
    match kind {
        Kind::Bool => Ok(Dtype::BOOL),
        Kind::Uint8 => Ok(Dtype::U8),
        Kind::Int8 => Ok(Dtype::I8),
        Kind::Int16 => Ok(Dtype::I16),
        Kind::Int => Ok(Dtype::I32),
        Kind::Int64 => Ok(Dtype::I64),
        Kind::Float8e5m2 => Ok(Dtype::F8_E5M2),
        Kind::Float8e4m3fn => Ok(Dtype::F8_E4M3),
        Kind::Half => Ok(Dtype::F16),
        Kind::BFloat16 => Ok(Dtype::BF16),
        Kind::Float => Ok(Dtype::F32),
        Kind::Double => Ok(Dtype::F64),
        Kind::ComplexFloat => Ok(Dtype::C64),
        other => Err(TchError::Kind(format!("safetensors has no {other:?}"))),
    }
}

/// Writes tensors as safetensors bytes: equal tensors and metadata give equal bytes, whatever the order they come in.
///
/// A later tensor replaces an earlier one of the same name. Tensors may lie on any device and have any strides.
///
/// # Errors
/// Fails if the format lacks an element type, or libtorch refuses a copy.
pub fn to_safetensors(
    tensors: impl IntoIterator<Item = (String, Tensor)>,
    metadata: HashMap<String, String>,
) -> Result<Vec<u8>, TchError> {
    let tensors: BTreeMap<String, Tensor> = tensors.into_iter().collect();
    let mut ordered = Vec::with_capacity(tensors.len());
    for (name, tensor) in &tensors {
        ordered.push((dtype(tensor.kind())?, name, tensor));
    }
    // The widest elements come first, as in the format's own library, so that every tensor is aligned.
    ordered.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));

    let mut header = Map::new();
    if !metadata.is_empty() {
        // The header is not written by the library, which writes metadata in the order of a hash map: equal input would
        // not give equal bytes.
        header.insert("__metadata__".to_owned(), json!(metadata.into_iter().collect::<BTreeMap<_, _>>()));
    }
    let mut offset = 0;
    for (dtype, name, tensor) in &ordered {
        let end = offset + tensor.numel() * tensor.kind().elt_size_in_bytes();
        let entry = json!({ "dtype": dtype.to_string(), "shape": tensor.size(), "data_offsets": [offset, end] });
        header.insert((*name).clone(), entry);
        offset = end;
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');

    let mut file = Vec::with_capacity(8 + header.len() + offset);
    file.extend((header.len() as u64).to_le_bytes());
    file.extend(header);
    for (_, _, tensor) in ordered {
        let dense = tensor.f_detach()?.f_to_device(tch::Device::Cpu)?.f_contiguous()?;
        let start = file.len();
        file.resize(start + dense.numel() * dense.kind().elt_size_in_bytes(), 0);
        dense.f_copy_data_u8(&mut file[start..], dense.numel())?;
    }
    Ok(file)
}
