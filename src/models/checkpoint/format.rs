//! The formats of weight files, recognised by the first bytes.

use super::{safe, torch};
use bytes::Bytes;
use std::fmt;

/// The format of a weight file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One safetensors file.
    Safetensors,
    /// Several files and an index of them.
    Sharded,
    /// `torch.save` since PyTorch 1.6: a zip archive.
    TorchZip,
    /// `torch.save` before PyTorch 1.6: pickles and storages one after the other.
    TorchLegacy,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Safetensors => "safetensors",
            Self::Sharded => "several files and an index",
            Self::TorchZip => "PyTorch (zip)",
            Self::TorchLegacy => "PyTorch (before 1.6)",
        })
    }
}

/// The first bytes of files that are not weights, and advice for each.
const OTHERS: [(&[u8], &str); 8] = [
    (b"version https://git-lfs", "it is a Git LFS pointer; fetch the file itself with `git lfs pull`"),
    (b"<", "it is a web page; a download was answered with it in place of the file, so download it again"),
    (b"\x1f\x8b", "it is compressed with gzip; `gunzip` it"),
    (b"7z\xbc\xaf", "it is a 7z archive; unpack it"),
    (b"\x89HDF", "it is HDF5, which Keras writes; PyTorch weights or safetensors would work"),
    (b"GGUF", "it is GGUF; PyTorch weights or safetensors would work"),
    (b"\x93NUMPY", "it is a NumPy array; PyTorch weights or safetensors would work"),
    (b"\x08", "it may be ONNX; PyTorch weights or safetensors would work"),
];

/// Reads one file that is not an index.
pub(super) fn read(bytes: &Bytes) -> Result<(Format, torch::Tensors, safe::Metadata), String> {
    let (format, tensors) = match &bytes[..] {
        [b'P', b'K', 3, 4, ..] => (Format::TorchZip, torch::read_zip(bytes)?),
        [0x80, ..] if bytes.get(8) != Some(&b'{') => (Format::TorchLegacy, torch::read_legacy(bytes)?),
        [_, _, _, _, _, _, _, _, b'{', ..] => {
            let (entries, metadata) = safe::read(bytes)?;
            return Ok((Format::Safetensors, torch::Tensors { entries, ..Default::default() }, metadata));
        }
        [] => return Err("it is empty; download it again".to_owned()),
        _ => {
            let text = bytes.trim_ascii_start();
            let other = OTHERS.iter().find(|(beginning, _)| text.starts_with(beginning));
            return Err(other.map_or("it is neither safetensors nor a file of torch.save", |(_, why)| *why).to_owned());
        }
    };
    if tensors.entries.is_empty() {
        let reason = "it holds no named tensors; a state_dict would work, a pickled module does not";
        return Err(reason.to_owned());
    }
    Ok((format, tensors, safe::Metadata::new()))
}
