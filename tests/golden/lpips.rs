//! LPIPS with VGG16.

use super::{
    Case,
    networks::{compare_shapes, manifest},
    tolerance::NETWORK,
};
use std::collections::HashMap;
use tch::{Device, Kind, Tensor, nn::VarStore, no_grad};
use vlmdiff::models::{
    checkpoint::{Checkpoint, to_safetensors},
    lpips::Lpips,
};

pub(super) fn compare(case: &Case) {
    no_grad(|| {
        let (a, b) = (case.input("a"), case.input("b"));
        if case.has("narrow.safetensors") {
            let file = case.checkpoint("narrow.safetensors");
            let narrow = Lpips::load(file.clone(), file, Device::Cpu).unwrap();
            let features = [&a, &b].map(|x| narrow.features(x));
            case.close("narrow.relu3_3", &features[0][2], 1.);
            distances(case, "narrow.", &narrow, &a, &b);
        }
        if case.has("lpips_vgg_v0.1.pth") {
            let network = Lpips::load(by_formula(), case.checkpoint("lpips_vgg_v0.1.pth"), Device::Cpu).unwrap();
            let features = network.features(&a);
            let corner = features[0].get(0).narrow(0, 0, 4).narrow(1, 0, 6).narrow(2, 0, 6);
            case.close("relu1_2[0,:4,:6,:6]", &corner, 1.);
            case.close("relu5_3[0,:16]", &features[4].get(0).narrow(0, 0, 16), 1.);
            distances(case, "", &network, &a, &b);
            // with normalize=True, the package maps the scale 0 to 1 to -1 to 1
            let [a, b] = [a, b].map(|x| (x + 1.) / 2. * 2. - 1.);
            case.expect("lpips_01_range(normalize=True)", &network.forward(&a, &b), distance);
        }
    });
}

/// Returns the tolerance of a distance d. It is the square of a difference of two unit vectors that are each wrong by
/// [`NETWORK`], so it is wrong by (√d + ε)² − d with ε = 2 · [`NETWORK`], however near zero d is.
fn distance(want: &Tensor) -> Tensor {
    let error = 2. * NETWORK;
    want.abs().sqrt() * (2. * error) + error * error
}

fn distances(case: &Case, set: &str, network: &Lpips, a: &Tensor, b: &Tensor) {
    let layers = network.distances(&network.features(a), &network.features(b));
    layers.iter().enumerate().for_each(|(i, layer)| case.expect(&format!("{set}layer{i}"), layer, distance));
    case.expect(&format!("{set}lpips"), &network.forward(a, b), distance);
}

/// Makes the features of a full-width VGG16 from the formula of the case's `meta.json`, whose gain is 1 for weights and
/// 0.05 for biases, with a fan-in of 1.
fn by_formula() -> Checkpoint {
    let [vgg, lin] = [(); 2].map(|()| VarStore::new(Device::Cpu));
    let _ = Lpips::new(&vgg.root(), &lin.root(), [64, 128, 256, 512, 512]);
    let fill = |(name, like): (String, Tensor)| {
        let size = like.size();
        let amplitude =
            if size.len() > 1 { (2. / size[1..].iter().product::<i64>() as f64).sqrt() } else { 0.05 * 2_f64.sqrt() };
        let i = Tensor::arange(like.numel() as i64, (Kind::Double, Device::Cpu));
        let phase = (&i + 1.) * 0.7 + i * (0.001 * f64::from(crc32(&name) % 1000));
        (name, (phase.sin() * amplitude).to_kind(Kind::Float).reshape(size))
    };
    let tensors: Vec<(String, Tensor)> = vgg.variables().into_iter().map(fill).collect();
    Checkpoint::from_safetensors(to_safetensors(tensors, HashMap::new()).unwrap()).unwrap()
}

fn crc32(text: &str) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(text.as_bytes());
    crc.sum()
}

/// Compares the published list of VGG16 without the classifier, which LPIPS does not use.
pub(super) fn vgg16(case: &Case) {
    let theirs = manifest(case, "torchvision_vgg16.json.gz").retain(|name| name.starts_with("features."));
    let lin = VarStore::new(Device::Cpu);
    compare_shapes(case, "vgg16", &theirs, |vgg| Ok(Lpips::new(&vgg, &lin.root(), [64, 128, 256, 512, 512])));
}
