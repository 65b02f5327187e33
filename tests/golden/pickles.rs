//! Every container that `torch.save` writes.

use super::Case;
use serde::Deserialize;
use std::collections::BTreeMap;
use tch::{Kind, Tensor};
use vlmdiff::models::checkpoint::Checkpoint;

/// Containers of the same tensors: the file, the prefix of its names in `expected`, and true if it holds all of these.
const FILES: [(&str, &str, bool); 8] = [
    ("plain.pth", "base", true),
    ("plain_legacy.pth", "base", true),
    ("nested.ckpt", "base", true),
    ("nested_legacy.ckpt", "base", true),
    ("views.pth", "views", true),
    ("views_legacy.pth", "views", true),
    ("parameters.pth", "base", false),
    ("dino_full_checkpoint.pth", "base", false),
];

/// Compares the tensors of the files with the same tensors in safetensors.
pub(super) fn compare(case: &Case) {
    let expected = case.tensors("expected.safetensors");
    for (file, prefix, all) in FILES.into_iter().filter(|(file, ..)| case.has(file)) {
        let weights = case.checkpoint(file).part("backbone");
        for name in weights.names() {
            let got = weights.tensor(name).unwrap();
            case.exact(&format!("{prefix}.{name}"), &got);
        }
        if all {
            let wanted = expected.names().filter_map(|name| name.strip_prefix(prefix)?.strip_prefix('.'));
            case.equal(&format!("names of {file}"), &weights.names().collect::<Vec<_>>(), &wanted.collect());
        }
    }
    if case.has("plain.safetensors") && case.has("plain.pth") {
        let types = |file| {
            let weights: Checkpoint = case.checkpoint(file);
            weights.names().map(|name| (name.to_owned(), weights.dtype(name))).collect::<Vec<_>>()
        };
        case.equal("element types", &types("plain.pth"), &types("plain.safetensors"));
    }
}

/// Compares common layouts of training checkpoints: Lightning's, a flat dict, the format before PyTorch 1.6.
pub(super) fn samples(case: &Case) {
    #[derive(Deserialize)]
    struct Expected {
        tensors: BTreeMap<String, Vec<f64>>,
        shapes: BTreeMap<String, Vec<i64>>,
        dtypes: BTreeMap<String, String>,
    }
    let Expected { tensors, shapes, dtypes } = case.json("sample_ckpt_expected.json");
    for file in ["sample_pl.ckpt", "sample_flat.ckpt", "sample_legacy_format.ckpt"] {
        if !case.has(file) {
            continue;
        }
        let weights = case.checkpoint(file);
        case.equal(
            &format!("names of {file}"),
            &weights.names().collect::<Vec<_>>(),
            &tensors.keys().map(String::as_str).collect(),
        );
        for (name, values) in &tensors {
            let got: Tensor = weights.tensor(name).unwrap();
            case.equal(name, &got.size(), &shapes[name]);
            case.equal(name, &torch_name(got.kind()), &dtypes[name].as_str());
            case.equal(name, &Vec::<f64>::try_from(got.to_kind(Kind::Double).flatten(0, -1)).unwrap(), values);
        }
    }
}

fn torch_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Float => "torch.float32",
        Kind::Half => "torch.float16",
        Kind::BFloat16 => "torch.bfloat16",
        Kind::Double => "torch.float64",
        Kind::Int64 => "torch.int64",
        Kind::Int => "torch.int32",
        _ => "another",
    }
}
