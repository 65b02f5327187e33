//! ResNet-50 in every layout in which it is published.

use super::{Case, networks};
use serde::Deserialize;
use std::collections::HashMap;
use tch::{Device, Tensor};
use vlmdiff::models::{
    checkpoint::{Checkpoint, to_safetensors},
    resnet::{ResNet, ResNetConfig, torchvision_names},
};

pub(super) fn resnet50(case: &Case) {
    #[derive(Deserialize)]
    struct Config {
        stem_width: i64,
        planes: [i64; 4],
        layers: [i64; 4],
        num_classes: i64,
    }
    let Config { stem_width: stem, planes, layers, num_classes } = case.config();
    let sizes = |num_classes| ResNetConfig { stem, planes, expansion: 4, layers, num_classes };
    let x = case.input("pixel_values");
    // These are outputs of batch normalisation in training mode, which this program does not have.
    case.tensors("expected.safetensors").skip("train.");
    let compare = |model: &ResNet| {
        case.close("maxpool", &model.forward_stem(&x), 1.);
        let maps = model.forward_features(&x, 4);
        for (level, map) in maps.iter().enumerate() {
            case.close(&format!("layer{}", level + 1), map, 1.);
        }
        let head = if model.config().num_classes.is_some() { "logits" } else { "pooled" };
        case.close(head, &model.forward_head(&maps[3]), 1.);
    };
    let files = [
        ("resnet50-tiny.pth", Some(num_classes)),
        ("dino_resnet50_pretrain.pth", None),
        ("model.safetensors", Some(num_classes)),
    ];
    for (file, classes) in files.into_iter().filter(|(file, _)| case.has(file)) {
        let model = ResNet::open(case.path(file), Device::Cpu).unwrap_or_else(|e| panic!("{e}"));
        case.equal(file, model.config(), &sizes(classes));
        compare(&model);
    }
    // The other layouts are made from the first file with a head.
    let Some((whole, _)) = files.iter().find(|(file, classes)| classes.is_some() && case.path(file).exists()) else {
        return;
    };
    let weights = case.checkpoint(whole);
    let folder = tempfile::tempdir().unwrap();
    let theirs = weights.clone().rename(|name| Some(huggingface(name))).unwrap().tensors().unwrap();
    std::fs::write(folder.path().join("model.safetensors"), to_safetensors(theirs, HashMap::new()).unwrap()).unwrap();
    compare(&ResNet::open(folder.path(), Device::Cpu).unwrap_or_else(|e| panic!("{e}")));

    // A file without counts of batches, as old ones are; and one whose first level has one block, for the output of
    // that block.
    let uncounted = weights.retain(|name| !name.ends_with("num_batches_tracked"));
    let open = |weights: &Checkpoint, sizes: &ResNetConfig| ResNet::load(weights, sizes, Device::Cpu).unwrap();
    let uncounted = torchvision_names(uncounted).unwrap();
    compare(&open(&uncounted, &sizes(Some(num_classes))));
    let short = uncounted.retain(|name| !name.starts_with("layer1.") || name.starts_with("layer1.0."));
    let [_, rest @ ..] = layers;
    let sizes = ResNetConfig { layers: [1, rest[0], rest[1], rest[2]], ..sizes(Some(num_classes)) };
    let maps: Vec<Tensor> = open(&short, &sizes).forward_features(&x, 1);
    case.close("layer1.0", &maps[0], 1.);
}

/// Returns the name in transformers' `ResNetForImageClassification` for a variable of torchvision's.
fn huggingface(name: &str) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    let number = |text: &str| text[text.len() - 1..].parse::<usize>().unwrap();
    let of = |layer: &str| if layer.starts_with("conv") { "convolution" } else { "normalization" };
    match parts[..] {
        ["fc", part] => format!("classifier.1.{part}"),
        [layer, part] => format!("resnet.embedder.embedder.{}.{part}", of(layer)),
        [level, block, "downsample", index, part] => {
            let layer = if index == "0" { "convolution" } else { "normalization" };
            format!("resnet.encoder.stages.{}.layers.{block}.shortcut.{layer}.{part}", number(level) - 1)
        }
        [level, block, layer, part] => {
            let (stage, index) = (number(level) - 1, number(layer) - 1);
            format!("resnet.encoder.stages.{stage}.layers.{block}.layer.{index}.{}.{part}", of(layer))
        }
        _ => panic!("{name}"),
    }
}

/// Compares the network of the real size with the list of the published file.
pub(super) fn manifest(case: &Case) {
    let file = "torchvision_resnet50.json.gz";
    if case.has(file) {
        let theirs = torchvision_names(networks::manifest(case, file)).unwrap();
        let config = ResNetConfig::resnet50(Some(1000));
        networks::compare_shapes(case, "resnet50", &theirs, |vs| Ok(ResNet::new(&vs, &config)));
    }
}
