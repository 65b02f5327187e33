//! The architecture of every file of weights is recognised.

use super::{Case, set};
use serde::Deserialize;
use serde_json::Value;
use std::{collections::BTreeMap, path::Path, process::Command};
use tch::Tensor;
use vlmdiff::models::{
    architecture::{self, Recognised},
    checkpoint::Checkpoint,
};

/// The end of a file's path, and the layout of the file; None for tensors that are not those of a network.
const LAYOUTS: [(&str, Option<&str>); 40] = [
    ("blip2_opt/model.safetensors", Some("blip2-opt")),
    ("blip2_t5/model.safetensors", Some("blip2-t5")),
    ("clip_full/model.safetensors", Some("clip")),
    ("clip_text/model.safetensors", Some("clip-text")),
    ("controlnet/diffusion_pytorch_model.safetensors", Some("controlnet")),
    ("deepseek_vl/hf/model.safetensors", Some("deepseek-vl-hf")),
    ("deepseek_vl/orig/model.safetensors", Some("deepseek-vl")),
    ("dino_vit/dino_deitsmall8_pretrain.pth", Some("dino")),
    ("dino_vit/hf/model.safetensors", Some("dino-hf")),
    ("dinov2/dinov2_vits14_pretrain.pth", Some("dinov2")),
    ("dinov2/hf/model.safetensors", Some("dinov2-hf")),
    ("internvl2_internlm2/model.safetensors.index.json", Some("internvl-internlm2")),
    ("internvl2_qwen2/model.safetensors", Some("internvl-qwen2")),
    ("internvl_hf/model.safetensors", Some("internvl-hf")),
    ("lpips_vgg/lpips_vgg_v0.1.pth", Some("lpips-lins")),
    ("lpips_vgg/narrow.safetensors", Some("lpips-vgg")),
    ("patchgan/model.safetensors", Some("patchgan")),
    ("pickles/dino_full_checkpoint.pth", Some("dino-training")),
    ("pickles/nested.ckpt", None),
    ("pickles/nested_legacy.ckpt", None),
    ("pickles/parameters.pth", None),
    ("pickles/plain.pth", None),
    ("pickles/plain.safetensors", None),
    ("pickles/plain_legacy.pth", None),
    ("pickles/views.pth", None),
    ("pickles/views_legacy.pth", None),
    ("resnet50/dino_resnet50_pretrain.pth", Some("resnet")),
    ("resnet50/model.safetensors", Some("resnet")),
    ("resnet50/resnet50-tiny.pth", Some("resnet")),
    ("sd_ddim_loop/v1-5-tiny.ckpt", Some("stable-diffusion")),
    ("unet/diffusion_pytorch_model.safetensors", Some("unet")),
    ("vae/diffusion_pytorch_model.oldkeys.safetensors", Some("vae-old")),
    ("vae/diffusion_pytorch_model.safetensors", Some("vae")),
    ("vae/ldm.safetensors", Some("vae-ldm")),
    ("reference/ae_loss_weights_i8.safetensors", Some("vae-ldm-loss")),
    ("reference/dino_weights_i8.safetensors", Some("dino")),
    ("reference/weights_i8.safetensors", Some("vlmdiff")),
    // these files have a few tensors of that layout, which other layouts have too
    ("reference/sample_flat.ckpt", Some("vlmdiff")),
    ("reference/sample_legacy_format.ckpt", Some("vlmdiff")),
    ("reference/sample_pl.ckpt", Some("vlmdiff")),
];

/// Returns true if a file of the set holds weights and is not a shard of another.
fn is_weights(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let torch = [".pth", ".ckpt", ".bin", ".index.json"].iter().any(|end| name.ends_with(end));
    let given = ["inputs.safetensors", "expected.safetensors"].contains(&&*name);
    let reference = path.parent().is_some_and(|folder| folder.ends_with("reference"));
    let safe = name.ends_with(".safetensors") && !given && !name.contains("-of-");
    torch || safe && (!reference || name.ends_with("weights_i8.safetensors"))
}

#[test]
fn the_architecture_of_every_file_of_weights_is_recognised() {
    let files = ["models", "reference"].map(|part| walkdir::WalkDir::new(set().0.join(part)).sort_by_file_name());
    let files = files.into_iter().flatten().map_while(Result::ok);
    let files: Vec<_> = files.map(walkdir::DirEntry::into_path).filter(|path| is_weights(path)).collect();
    let mut wrong = Vec::new();
    for path in &files {
        let output = Command::new(env!("CARGO_BIN_EXE_vlmdiff"))
            .args(["models", "inspect", "--format", "json"])
            .arg(path)
            .output()
            .unwrap();
        let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let layout = |value: &Value| value["layout"].as_str().map(str::to_owned);
        let around = said["around"].as_array().and_then(|parts| layout(parts.first()?));
        let exact =
            said["architecture"].as_array().filter(|parts| parts.len() == 1).and_then(|parts| layout(&parts[0]));
        let near = || {
            let also = said["nearest"]["also"].as_array().into_iter().flatten().filter_map(Value::as_str);
            layout(&said["nearest"]).into_iter().chain(also.map(str::to_owned)).collect()
        };
        let got: Vec<String> = exact.or(around).map_or_else(near, |layout| vec![layout]);
        let known = LAYOUTS.iter().find(|(end, _)| path.ends_with(end));
        // Another set may have more files, which have to be recognised too.
        let right = match known {
            Some((_, None)) => got.is_empty(),
            Some((_, Some(want))) => got.iter().any(|got| got == want),
            None => !got.is_empty(),
        };
        if !right || !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            wrong.push(format!("{} is {got:?}, not {:?} {error}", path.display(), known.map(|(_, want)| want)));
        }
        equals_another_reader(path);
    }
    eprintln!("{} files of weights", files.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Compares every tensor of a safetensors file, whole or in shards, with libtorch's own reader.
fn equals_another_reader(path: &Path) {
    let files = Checkpoint::files(path);
    let shards = files.iter().filter(|file| file.extension().is_some_and(|end| end == "safetensors"));
    let others: BTreeMap<String, Tensor> = shards.flat_map(|file| Tensor::read_safetensors(file).unwrap()).collect();
    if others.is_empty() {
        return;
    }
    let ours = Checkpoint::open(path).unwrap().tensors().unwrap();
    assert!(ours.keys().eq(others.keys()), "{}", path.display());
    for (name, tensor) in ours {
        assert_eq!((tensor.kind(), &tensor), (others[&name].kind(), &others[&name]), "{} {name}", path.display());
    }
}

/// Recognises names and shapes of published checkpoints at their full size.
pub(super) fn manifests(case: &Case) {
    let layouts = [
        ("blip2_flan_t5_xl", "blip2-t5"),
        ("blip2_opt_2.7b", "blip2-opt"),
        ("clip_vit_large_patch14", "clip"),
        ("dino_vitb16", "dino-hf"),
        ("dino_vitb8", "dino-hf"),
        ("dino_vits16", "dino-hf"),
        ("dino_vits8", "dino-hf"),
        ("dinov2_small", "dinov2-hf"),
        ("internvl2_1b", "internvl-qwen2"),
        ("internvl2_2b", "internvl-internlm2"),
        ("internvl2_8b", "internvl-internlm2"),
        ("patchgan_ndf64_l3", "patchgan"),
        ("sd15_controlnet", "controlnet"),
        ("sd15_text_encoder", "clip-text"),
        ("sd15_unet", "unet"),
        ("sd15_vae", "vae"),
        ("torchvision_resnet50", "resnet"),
        ("torchvision_vgg16", "vgg16"),
    ];
    for (name, layout) in layouts {
        let file = format!("{name}.json.gz");
        if case.has(&file) {
            let shapes: BTreeMap<String, (Vec<i64>, String)> = case.json(&file);
            fits(case, name, shapes.iter().map(|(name, (shape, _))| (name.as_str(), shape.as_slice())), layout);
        }
    }
}

/// Recognises names and shapes of VLMDiff at its full size.
pub(super) fn full_manifest(case: &Case) {
    #[derive(Deserialize)]
    struct Manifest {
        keys: BTreeMap<String, Key>,
    }
    #[derive(Deserialize)]
    struct Key {
        shape: Vec<i64>,
    }
    let Manifest { keys } = case.json("full_manifest.json");
    fits(case, "full", keys.iter().map(|(name, key)| (name.as_str(), key.shape.as_slice())), "vlmdiff");
}

fn fits<'a>(case: &Case, name: &str, shapes: impl Iterator<Item = (&'a str, &'a [i64])>, layout: &str) {
    let found: Recognised = architecture::recognise(shapes);
    case.equal(name, &found.layout(), &Some(layout));
    case.equal(name, &found.rest, &vec![]);
    if let Some(near) = found.nearest {
        case.fail(format!("{name} is near {}: {}", near.title, near.mismatch.listed(5)));
    }
    eprintln!("{name}: {}", found.parts.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "));
}
