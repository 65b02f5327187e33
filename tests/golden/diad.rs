//! DiAD (He et al. 2024): the authors' networks without captions, and three levels of a ResNet that compare an image with its
//! reconstruction.

use std::collections::BTreeMap;

use serde::Deserialize;
use tch::{Device, Tensor};
use vlmdiff::{
    diffusion::{guidance::Guidance, sampler::DdimConfig, schedule::ScheduleConfig},
    features::distance::{Combine, MapOrder, anomaly_map},
    models::resnet::{ResNet, ResNetConfig, torchvision_names},
};
use vlmdiff_metrics::{
    blur::{self, Border},
    windows,
};

use super::{
    Case,
    denoising::{LOSS, STEPPED, Training, by_name, groups, square},
    diffusion::Authors,
    tolerance::{F32, GRADIENT, NETWORK},
    training::AdamDefaults,
    weights,
};

/// The path of the networks' weights from the case.
const REFERENCE: &str = "../../reference/";
/// The tolerance of what is made of a reconstruction, in multiples of [`NETWORK`]: denoiser, decoder and extractor follow
/// one another, as do the extractor's two passes in a map. That is as many roundings as four networks have, √4.
const CHAIN: f64 = 2.;

#[derive(Deserialize)]
struct Config {
    only_mid_control: bool,
    optimizer: Optimizer,
    map: Map,
}

#[derive(Deserialize)]
struct Optimizer {
    #[serde(rename = "AdamW")]
    adamw: Rates,
}

#[derive(Deserialize)]
struct Rates {
    lr: f64,
    weight_decay: f64,
}

#[derive(Deserialize)]
struct Map {
    sigma: f64,
}

#[derive(Deserialize)]
struct Expected {
    image_score: f64,
    training: Steps,
}

/// The losses before each of three steps and after the last, and the norms of groups of gradients and changes.
#[derive(Deserialize)]
struct Steps {
    losses: Vec<Loss>,
    grad_norm_group: BTreeMap<String, f64>,
    delta_norm_group_after_step1: BTreeMap<String, f64>,
    delta_norm_group_after_step3: BTreeMap<String, f64>,
    n_no_grad_params: usize,
    n_zero_gradient_params: usize,
}

#[derive(Deserialize)]
struct Loss {
    total: f64,
}

/// Compares `methods/diad`, whose denoiser and autoencoder have the weights of `reference`.
pub(super) fn compare(case: &Case) {
    case.part(|| reconstruction(case));
    case.part(|| training(case));
}

/// Compares the reconstruction of the first image, its features, its map and its score.
fn reconstruction(case: &Case) {
    let _no_grad = tch::no_grad_guard();
    let Config { map: Map { sigma }, .. } = case.config();
    let Expected { image_score, .. } = case.json("expected.json");
    let Authors { unet, control, vae, scaling_factor } = Authors::new(case, REFERENCE);
    let images = case.input("jpg");
    let z = vae.encode(&images).sample(&case.input("posterior_noise")) * scaling_factor;
    case.close("z", &z, 1.);

    let [image, z, noise] = [images, z, case.input("noise")].map(|of_both| of_both.narrow(0, 0, 1));
    let context = case.input("empty_context");
    let guidance = Guidance::new(&context, &context, 9.).unwrap();
    let hint = control.hint(&image);
    let model = |x: &Tensor, t: i64| {
        guidance.predict(x, |x, contexts| {
            let t = Tensor::from_slice(&[t]);
            let residuals = control.forward(x, &t, contexts, &hint);
            Ok(unet.forward(x, &t, contexts, Some(&residuals)))
        })
    };
    let ddim = DdimConfig::default().build(&ScheduleConfig::default().build().unwrap()).unwrap();
    let x = ddim.sample(ddim.start(&z, &noise), model, |_| unreachable!("eta is 0")).unwrap();
    let reconstruction = vae.decode(&(x / scaling_factor));
    case.close("samples", &reconstruction, CHAIN);

    let weights = torchvision_names(weights::stored(case, "model").select("resnet")).unwrap();
    let sizes = ResNetConfig::of(&weights).expect("the weights are those of a ResNet");
    let extractor = ResNet::load(&weights, &sizes, Device::Cpu).unwrap();
    let [input, sample] = [&image, &reconstruction].map(|image| extractor.forward_features(image, 3));
    for level in 0..3 {
        case.close(&format!("features_input.{level}"), &input[level], 1.);
        case.close(&format!("features_sample.{level}"), &sample[level], CHAIN);
    }

    let size = [image.size()[2], image.size()[3]];
    let map = anomaly_map(&input, &sample, size, MapOrder::default(), Combine::Sum).squeeze_dim(0);
    case.close("map_before_smoothing", &map, CHAIN);
    let [height, width] = size.map(|side| side as usize);
    let values = Vec::<f64>::try_from(map.flatten(0, -1)).unwrap();
    let smooth = blur::gaussian(&values, width, height, sigma, Border::Symmetric);
    case.close("map_smoothed", &Tensor::from_slice(&smooth).view(size), CHAIN);
    let score = windows::largest_mean(&smooth, width, height, 8, 8);
    case.number("image_score", score, image_score, CHAIN * NETWORK * image_score);
}

/// Compares three steps of the denoiser on both images, whose caption is the empty one.
fn training(case: &Case) {
    let Config { only_mid_control, optimizer: Optimizer { adamw: Rates { lr, weight_decay } }, .. } = case.config();
    let adamw = AdamDefaults { lr, betas: [0.9, 0.999], eps: 1e-8, weight_decay };
    let Expected { training: want, .. } = case.json("expected.json");
    let file = case.tensors("expected.safetensors");
    let batch = |name: &str| match name {
        "z" => file.get("z"),
        "t" => case.input("train_t"),
        "context" => case.input("empty_context").repeat([case.input("jpg").size()[0], 1, 1]),
        "hint" => case.input("jpg"),
        _ => case.input(name),
    };
    let weights = case.weights(&format!("{REFERENCE}weights"));
    let mut training = Training::new(case, REFERENCE, weights, batch, only_mid_control, &adamw);
    let start = training.weights();
    let moved = |training: &Training| -> Vec<(String, Tensor)> {
        training.weights().into_iter().map(|(name, now)| (name.clone(), now - &start[&name])).collect()
    };
    let loss = |at: usize, got: f64, by: f64| {
        let want = want.losses[at].total;
        case.number(&format!("loss after {at} steps"), got, want, by * want);
    };

    loss(0, training.step(), LOSS);
    let none = training.gradients().values().filter(|gradient| gradient.is_none()).count();
    case.equal("parameters without gradient", &none, &want.n_no_grad_params);
    let defined = training.gradients().into_iter();
    let gradients: Vec<(String, Tensor)> =
        defined.filter_map(|(name, gradient)| Some((name.to_owned(), gradient?.shallow_clone()))).collect();
    // If the true gradient is zero, Adam turns its rounding into a whole step, and the set leaves the parameter out.
    let largest = gradients.iter().map(|(_, gradient)| square(gradient)).fold(0., f64::max).sqrt();
    let is_rounding = |gradient: &Tensor| square(gradient).sqrt() < 1e-6 * largest;
    let zeros: Vec<String> =
        gradients.iter().filter(|(_, gradient)| is_rounding(gradient)).map(|(name, _)| name.clone()).collect();
    case.equal("parameters whose gradient is zero", &zeros.len(), &want.n_zero_gradient_params);
    let counted = |(name, _): &(&str, &Tensor)| !zeros.iter().any(|zero| zero == name);
    groups(case, "gradient", by_name(&gradients).filter(counted), &published(&want.grad_norm_group));
    for (name, gradient) in by_name(&gradients) {
        if file.find(&format!("train.grad.{name}")).is_some() {
            case.close(&format!("train.grad.{name}"), gradient, GRADIENT / NETWORK);
        }
    }

    let changes = |training: &Training, steps: u32, want: &BTreeMap<String, f64>| {
        let deltas = moved(training);
        groups(case, &format!("change after {steps} steps"), by_name(&deltas).filter(counted), &published(want));
        for (name, delta) in by_name(&deltas) {
            let key = format!("train.delta{steps}.{name}");
            let Some(want) = file.find(&key) else { continue };
            // A gradient as small as Adam's epsilon may be wrong as a whole, and few are. A step rounds a weight twice.
            let rounded = 2. * f64::from(steps) * F32 * square(&start[name]).sqrt();
            let bound = 10. * GRADIENT * square(&want).sqrt() + rounded;
            case.number(&key, square(&(delta - &want)).sqrt(), 0., bound);
        }
    };
    changes(&training, 1, &want.delta_norm_group_after_step1);
    loss(1, training.step(), STEPPED);
    loss(2, training.step(), STEPPED);
    changes(&training, 3, &want.delta_norm_group_after_step3);
    loss(3, training.loss(), STEPPED);
}

/// Returns groups under the names that the modules have in a file of the authors.
fn published(groups: &BTreeMap<String, f64>) -> BTreeMap<String, f64> {
    let name = |group: &str| match group {
        "control_model" => group.to_owned(),
        part => format!("model.diffusion_model.{part}"),
    };
    groups.iter().map(|(group, norm)| (name(group), *norm)).collect()
}
