//! Methods that are fitted on normal images, beside the authors' programs and anomalib.

use std::collections::{BTreeMap, HashMap};

use image::{RgbImage, imageops};
use serde::Deserialize;
use serde_json::json;
use tch::{Device, Kind, Tensor, nn::VarStore, no_grad};
use vlmdiff::{
    features::embedding::{Pooling, Upsample},
    methods::{
        Bank, CombinedLevels, Distance, Knn, PatchMethod, Patchcore, Protocol, Rad, ReverseDistillation, TrainedMethod,
        coreset::{Start, greedy, select},
        distillation_loss,
    },
    models::{
        checkpoint::{Checkpoint, to_safetensors},
        initialisation::skip_init,
        preprocessing::Preprocessing,
        resnet::{ResNet, ResNetConfig, torchvision_names},
        reverse_distillation::{DistillationConfig, DistillationStudent},
        vit::{Interpolation, VisionTransformer, VitConfig, names},
    },
    training::{MicroBatch, step},
    vision::resize::{self, Filter},
};
use vlmdiff_metrics::blur::{self, Border};

use super::{
    Case, networks,
    tolerance::{F32, GRADIENT, NETWORK, share},
};

/// The tolerance of distances as a share of the largest: |q|² - 2 q · b + |b|² in f32, whose terms are larger than
/// their sum by up to a factor of a hundred, of features that differ by 1e-6 already.
const DISTANCE: f64 = 1e-4;

/// Returns the joined patches of all images [N, 3, H, W].
fn embedded(features: &dyn Fn(&Tensor) -> Vec<Tensor>, pooling: Pooling, images: &Tensor) -> Tensor {
    let one = |image: i64| pooling.patches(&features(&images.narrow(0, image, 1))).values;
    Tensor::cat(&(0..images.size()[0]).map(one).collect::<Vec<_>>(), 0)
}

/// Returns what a scorer of a bank makes of each image of joined patches: all patch scores, and the images' scores.
fn scored(method: &dyn PatchMethod, bank: &Tensor, patches: &Tensor, images: i64) -> (Tensor, Vec<f64>) {
    let fitted = to_safetensors([("bank".to_owned(), bank.shallow_clone())], HashMap::new()).unwrap();
    let scorer = method.scorer(&Checkpoint::from_safetensors(fitted).unwrap(), Device::Cpu).unwrap();
    let score = |image: &Tensor| scorer.score(image, [1, image.size()[0]], None).unwrap();
    let scores: Vec<_> = patches.chunk(images, 0).iter().map(score).collect();
    let all = Tensor::cat(&scores.iter().map(|scores| &scores.patches).collect::<Vec<_>>(), 0);
    (all, scores.iter().map(|scores| scores.image).collect())
}

/// Blurs maps [N, H, W].
fn blurred(maps: &Tensor, sigma: f64, border: Border) -> Tensor {
    let (images, height, width) = maps.size3().unwrap();
    let one = |image: i64| {
        let map = Vec::<f64>::try_from(maps.get(image).to_kind(Kind::Double).flatten(0, -1)).unwrap();
        Tensor::from_slice(&blur::gaussian(&map, width as usize, height as usize, sigma, border))
    };
    Tensor::cat(&(0..images).map(one).collect::<Vec<_>>(), 0).view([images, height, width])
}

pub(super) fn patchcore(case: &Case) {
    #[derive(Deserialize)]
    struct Config {
        size: [i64; 2],
        embed: u32,
        target: u32,
        k: u32,
        neighbors: u32,
        smoothing_sigma: f64,
    }
    #[derive(Deserialize)]
    struct Expected {
        #[serde(rename = "grid.layer2")]
        grid: [i64; 2],
        image_scores: BTreeMap<String, Vec<f64>>,
    }
    let Config { size, embed, target, k, neighbors, smoothing_sigma: sigma } = case.config();
    let Expected { grid, image_scores } = case.json("expected.json");
    let expected = case.tensors("expected.safetensors");
    let model = ResNet::open(case.path("model.safetensors"), Device::Cpu).unwrap_or_else(|e| panic!("{e}"));
    let features = |x: &Tensor| model.forward_features(x, 3).split_off(1);
    let (train, test) = (case.input("train"), case.input("test"));
    let images = test.size()[0];
    let distance = |name: &str, got: &Tensor| case.expect(name, got, |want| share(want, DISTANCE));

    // The authors' program.
    no_grad(|| {
        for (layer, map) in features(&test).iter().enumerate() {
            case.close(&format!("feature.layer{}", layer + 2), map, 1.);
        }
        // The windows of the embedding are no tensor here; `embed` is made of them.
        expected.skip("patches.");
        let adaptive = Pooling::Adaptive { embed, target };
        let (bank, queries) = (embedded(&features, adaptive, &train), embedded(&features, adaptive, &test));
        case.close("bank", &bank, 1.);
        case.close("embed.test", &queries, 1.);
        let real = [case.input("real.layer2"), case.input("real.layer3")];
        case.close("real.embed", &Pooling::Adaptive { embed: 1024, target: 1024 }.patches(&real).values, 1.);

        let reduced = bank.matmul(&case.input("projection.weight").tr());
        case.close("reduced", &reduced, 1.);
        let starts = Vec::<i64>::try_from(case.input("start_points")).unwrap();
        let choices = [
            ("approx", reduced.shallow_clone(), Start::MeanDistanceTo(starts), 1),
            ("exact", reduced.shallow_clone(), Start::AllDistances, k),
        ];
        for (name, vectors, start, k) in choices {
            let count = expected.get(&format!("{name}.indices")).size()[0];
            let chosen = greedy(&vectors, count, &start).unwrap();
            case.exact(&format!("{name}.indices"), &Tensor::from_slice(&chosen));
            let coreset = select(&bank, &chosen).unwrap();
            let nearest = Bank::new(&coreset, Distance::SquaredEuclidean, Device::Cpu).unwrap();
            let nearest = nearest.nearest(&queries, i64::from(k)).unwrap();
            distance(&format!("{name}.distances_squared"), &nearest.distances);
            case.exact(&format!("{name}.nearest"), &nearest.indices);
            let method = Patchcore { protocol: Protocol::Authors, neighbors: k, ..Patchcore::default() };
            let (scores, of_images) = scored(&method, &coreset, &queries, images);
            let scores = scores.view([images, 1, grid[0], grid[1]]);
            distance(&format!("{name}.patch_scores"), &scores.squeeze_dim(1));
            for (got, want) in of_images.iter().zip(&image_scores[name]) {
                case.number(&format!("{name}.image_scores"), *got, *want, want * DISTANCE);
            }
            let map = Upsample::Bilinear.to_size(&scores, size).squeeze_dim(1);
            distance(&format!("{name}.map_upsampled"), &map);
            distance(&format!("{name}.map"), &blurred(&map, sigma, Border::Symmetric));
        }
    });

    // anomalib.
    no_grad(|| {
        let (bank, queries) =
            (embedded(&features, Pooling::Average, &train), embedded(&features, Pooling::Average, &test));
        case.close("anomalib.bank", &bank, 1.);
        case.close("anomalib.embed.test", &queries, 1.);
        let reduced = bank.matmul(&case.input("anomalib.projection").tr());
        case.close("anomalib.reduced.first16", &reduced.narrow(0, 0, 16), 1.);
        let first = i64::try_from(case.input("anomalib.start")).unwrap();
        let count = expected.get("anomalib.indices").size()[0];
        let chosen = greedy(&reduced, count, &Start::Vector(first)).unwrap();
        case.exact("anomalib.indices", &Tensor::from_slice(&chosen));
        let coreset = select(&bank, &chosen).unwrap();
        let memory = Bank::new(&coreset, Distance::Euclidean, Device::Cpu).unwrap();
        let nearest = memory.nearest(&queries, 1).unwrap();
        case.exact("anomalib.nearest", &nearest.indices.view([images, grid[0], grid[1]]));
        let method = |reweight| Patchcore { reweight: Some(reweight), ..Patchcore::default() };
        let (scores, reweighted) = scored(&method(neighbors), &coreset, &queries, images);
        let scores = scores.view([images, 1, grid[0], grid[1]]);
        distance("anomalib.patch_scores", &scores);
        distance("anomalib.image_score_reweighted", &Tensor::from_slice(&reweighted));
        let (_, plain) = scored(&method(1), &coreset, &queries, images);
        distance("anomalib.image_score_k1", &Tensor::from_slice(&plain));
        // The patches around the one that is nearest to the patch with the highest score.
        let at = scores.view([images, -1]).argmax(1, true);
        let at = nearest.indices.view([images, -1]).gather(1, &at, false).squeeze_dim(1);
        let around = memory.nearest(&memory.at(&at).unwrap(), i64::from(neighbors)).unwrap();
        case.exact("anomalib.support", &around.indices);
        let map = Upsample::Nearest.to_size(&scores, size);
        distance("anomalib.map_upsampled_nearest", &map);
        distance("anomalib.map", &blurred(&map.squeeze_dim(1), sigma, Border::Reflect).unsqueeze(1));
    });
}

/// Returns a picture u8 [H, W, 3].
fn picture(pixels: &Tensor) -> RgbImage {
    let (height, width, _) = pixels.size3().unwrap();
    let bytes = Vec::<u8>::try_from(pixels.flatten(0, -1)).unwrap();
    RgbImage::from_raw(width as u32, height as u32, bytes).unwrap()
}

pub(super) fn nearest_patches(case: &Case) {
    #[derive(Deserialize)]
    struct Config {
        depth: usize,
        heads: i64,
        patch: u32,
        resolution: u32,
        train: usize,
        test: usize,
        k: u32,
    }
    #[derive(Deserialize)]
    struct Expected {
        scores: BTreeMap<String, BTreeMap<String, f64>>,
    }
    let Config { depth, heads, patch, resolution, train, test, k } = case.config();
    let Expected { scores } = case.json("expected.json");
    let (inputs, expected) = (case.tensors("inputs.safetensors"), case.tensors("expected.safetensors"));
    // The heads are narrower here than in published networks, from whose weights their number follows.
    let weights = names::original(case.checkpoint("model.safetensors")).unwrap();
    let sizes = VitConfig { num_attention_heads: heads, ..VitConfig::of(&weights).unwrap() };
    let model = VisionTransformer::load(&weights, &sizes, Interpolation::Offset, Device::Cpu).unwrap();
    // The smaller edge becomes `resolution`, and the picture is cut to whole patches at its right and lower border.
    let prepared = |pixels: &Tensor| {
        let resized = resize::shortest_edge(&picture(pixels), resolution, Filter::Bicubic);
        let (width, height) = (resized.width() / patch * patch, resized.height() / patch * patch);
        let cut = imageops::crop_imm(&resized, 0, 0, width, height).to_image();
        let x = Tensor::from_slice(cut.as_raw()).view([1, i64::from(height), i64::from(width), 3]);
        Preprocessing::imagenet(1).normalize(&(x.permute([0, 3, 1, 2]).to_kind(Kind::Float) / 255.))
    };
    let patches = |x: &Tensor| Pooling::None.patches(&no_grad(|| model.features(x, &[depth], true)));
    let distance = |name: &str, got: &Tensor| case.expect(name, got, |want| share(want, DISTANCE));
    let mut bank = Vec::new();
    for image in 0..train {
        let found = patches(&prepared(&inputs.get(&format!("train.{image}"))));
        case.close(&format!("features.train.{image}"), &found.values, 1.);
        bank.push(found.values);
    }
    let bank = Tensor::cat(&bank, 0);
    for image in 0..test {
        let pixels = inputs.get(&format!("test.{image}"));
        let (height, width, _) = pixels.size3().unwrap();
        let x = prepared(&pixels);
        if image == 0 {
            case.close("prepared.test.0", &x.squeeze_dim(0), 1.);
        }
        let found = patches(&x);
        case.close(&format!("features.test.{image}"), &found.values, 1.);
        let runs =
            [("cosine", 1, Distance::Cosine), ("cosine_k", k, Distance::Cosine), ("l2_k", k, Distance::Euclidean)];
        for (run, neighbors, of) in runs {
            let method = Knn { neighbors, distance: of };
            let (patch_scores, of_image) = scored(&method, &bank, &found.values, 1);
            let map = patch_scores.view(found.grid);
            distance(&format!("{run}.distances.{image}"), &map);
            let want = scores[run][&format!("bad/00{image}.png")];
            case.number(&format!("{run}.score.{image}"), of_image[0], want, want * DISTANCE);
            if expected.find(&format!("{run}.map.{image}")).is_some() {
                let [h, w] = found.grid;
                let map = Upsample::Bilinear.to_size(&map.view([1, 1, h, w]), [height, width]).squeeze_dim(0);
                distance(&format!("{run}.map_before_smoothing.{image}"), &map.squeeze_dim(0));
                distance(&format!("{run}.map.{image}"), &blurred(&map, 4., Border::Symmetric).squeeze_dim(0));
            }
        }
    }
    // anomalib's model on the same network.
    let features = |x: &Tensor| model.features(x, &[depth], true);
    let of_anomalib = no_grad(|| embedded(&features, Pooling::None, &inputs.get("anomalib.train")));
    case.close("anomalib.bank", &unit(&of_anomalib), 1.);
    for (input, name) in [("anomalib.test", "anomalib"), ("anomalib.uneven", "anomalib.uneven")] {
        middle_by_anomalib(case, name, &features, (&of_anomalib, k), &inputs.get(input), i64::from(patch));
    }
    // The rotated pictures and the background mask of the authors are not here.
    for prefix in ["cosine_rotated.", "rotated.", "mask."] {
        expected.skip(prefix);
        inputs.skip(prefix);
    }
}

/// Scales vectors [N, C] to length 1.
fn unit(vectors: &Tensor) -> Tensor {
    vectors / vectors.norm_scalaropt_dim(2., [1].as_slice(), true)
}

/// Compares `NAME.score` and `NAME.map` of images [N, 3, H, W] with anomalib's AnomalyDINO. It cuts images to whole patches in
/// the middle, and repeats the edge of the map where they were cut.
fn middle_by_anomalib(
    case: &Case,
    name: &str,
    features: &dyn Fn(&Tensor) -> Vec<Tensor>,
    (bank, neighbors): (&Tensor, u32),
    images: &Tensor,
    patch: i64,
) {
    let distance = |name: &str, got: &Tensor| case.expect(name, got, |want| share(want, DISTANCE));
    let (count, _, height, width) = images.size4().unwrap();
    let ([rows, columns], [h, w]) = ([height % patch, width % patch], [height / patch, width / patch]);
    let [above, left] = [rows / 2, columns / 2];
    let middle = images.narrow(2, above, h * patch).narrow(3, left, w * patch);
    let queries = no_grad(|| embedded(features, Pooling::None, &middle));
    let method = Knn { neighbors, distance: Distance::Cosine };
    let (scores, of_images) = scored(&method, bank, &queries, count);
    distance(&format!("{name}.score"), &Tensor::from_slice(&of_images).unsqueeze(1));
    let map = Upsample::Nearest.to_size(&scores.view([count, 1, h, w]), [h * patch, w * patch]);
    let map = blurred(&map.squeeze_dim(1), 4., Border::Reflect).unsqueeze(1);
    distance(&format!("{name}.map"), &map.replication_pad2d([left, columns - left, above, rows - above]));
}

/// anomalib's AnomalyDINO on a transformer of timm, which resizes the table of positions to the exact size.
pub(super) fn anomaly_dino(case: &Case) {
    #[derive(Deserialize)]
    struct Config {
        depth: usize,
        heads: i64,
        patch: i64,
        neighbors: Vec<u32>,
    }
    let Config { depth, heads, patch, neighbors } = case.config();
    let weights = names::original(case.checkpoint("model.safetensors")).unwrap();
    let sizes = VitConfig { num_attention_heads: heads, ..VitConfig::of(&weights).unwrap() };
    let model = VisionTransformer::load(&weights, &sizes, Interpolation::Exact, Device::Cpu).unwrap();
    let features = |x: &Tensor| model.features(x, &[depth], true);
    let normalised = |name: &str| (case.input(name).to_kind(Kind::Float) / 255. - 0.5) * 4.;
    let bank = no_grad(|| embedded(&features, Pooling::None, &normalised("train")));
    case.close("bank", &unit(&bank), 1.);
    for neighbors in neighbors {
        for input in ["test", "uneven"] {
            let name = format!("k{neighbors}.{input}");
            middle_by_anomalib(case, &name, &features, (&bank, neighbors), &normalised(input), patch);
        }
    }
}

/// The tolerance of the scores of RAD, each a mean over layers of one minus the cosine of two vectors of 8 numbers: each length and
/// each product sums 8 terms, which the two programs do in orders of their own, so that a cosine of at most 1 is wrong by
/// 2 · (8 + 2) + 8 roundings in each.
const COSINE: f64 = 2. * 28. * F32;

/// RAD on features, looked up by the means of the patches in the last layer.
pub(super) fn rad(case: &Case) {
    #[derive(Deserialize)]
    struct Config {
        side: i64,
        layers: u32,
        channels: i64,
        runs: BTreeMap<String, Run>,
    }
    #[derive(Deserialize)]
    struct Run {
        images: u32,
        /// Absent where all places are compared.
        radius: Option<u32>,
    }
    let Config { side, layers, channels, runs } = case.config();
    // [N, L, P, C] -> [N, P, L C], as the features of several layers lie side by side.
    let joined =
        |name: &str| case.input(name).permute([0, 2, 1, 3]).reshape([-1, side * side, i64::from(layers) * channels]);
    let (good, test) = (joined("good"), joined("test"));
    for (name, Run { images, radius }) in runs {
        let method = Rad { images, radius: radius.unwrap_or(side as u32), layers };
        let mut fitter = method.fitter();
        for image in 0..good.size()[0] {
            fitter.add(&good.get(image)).unwrap();
        }
        let fitted = to_safetensors(fitter.finish().unwrap().tensors, HashMap::new()).unwrap();
        let scorer = method.scorer(&Checkpoint::from_safetensors(fitted).unwrap(), Device::Cpu).unwrap();
        let scores: Vec<_> =
            (0..test.size()[0]).map(|image| scorer.score(&test.get(image), [side, side], None).unwrap()).collect();
        let patches = Tensor::stack(&scores.iter().map(|scores| &scores.patches).collect::<Vec<_>>(), 0);
        let of_images = Tensor::from_slice(&scores.iter().map(|scores| scores.image).collect::<Vec<_>>());
        case.expect(&format!("{name}.patches"), &patches, |_| Tensor::from(COSINE));
        case.expect(&format!("{name}.images"), &of_images, |_| Tensor::from(COSINE));
    }
}

/// The training of a golden set: before each of three steps of all images, and after the last.
#[derive(Deserialize)]
struct Steps {
    losses: Vec<f64>,
    grad_total_norm_before_clip: Vec<f64>,
    /// By parameter, at the first step.
    grad_norm: BTreeMap<String, f64>,
    /// The length of a parameter's change since the start.
    delta_norm_step1: BTreeMap<String, f64>,
    delta_norm_step3: BTreeMap<String, f64>,
}

/// The tolerance of the gradients of teacher and student, as a share of the largest value: two networks follow one
/// another, and a normalisation over a batch takes away means as one over a group does.
const DISTILLED: f64 = 2. * GRADIENT;
/// The share of the length of a parameter's change by which each step may make it wrong. Adam turns a gradient that is
/// only rounding into a full step of either sign; that moves the arguments of the next ReLUs, and where one of them
/// changes its sign, the gradient jumps while the loss does not.
const CHANGE: f64 = 1e-2;
/// The share by which each step after the first may make the loss wrong, which follows these changes.
const MOVED: f64 = 1e-4;

fn length(x: &Tensor) -> f64 {
    x.to_kind(Kind::Double).norm().double_value(&[])
}

pub(super) fn reverse_distillation(case: &Case) {
    #[derive(Deserialize)]
    struct Config {
        teacher_blocks: [i64; 4],
        decoder_blocks: [i64; 3],
        bottleneck_blocks: i64,
        lr: f64,
        clip: f64,
        betas: [f64; 2],
        smoothing_sigma: f64,
    }
    #[derive(Deserialize)]
    struct Expected {
        loss_eval: f64,
        image_scores_max_of_final: Vec<f64>,
        training: Steps,
    }
    let Config { teacher_blocks, decoder_blocks, bottleneck_blocks, lr, clip, betas, smoothing_sigma } = case.config();
    let Expected { loss_eval, image_scores_max_of_final, training } = case.json("expected.json");
    let weights = torchvision_names(case.checkpoint("model.safetensors")).unwrap();
    let width = |name: &str| weights.shape(name).unwrap()[0];

    // The teacher has three of four levels, and the sizes are read from the weights as far as they say them.
    let inner = |level: usize| width(&format!("net_t.layer{level}.0.conv2.weight"));
    let planes = [inner(1), inner(2), inner(3), 0];
    let sizes = ResNetConfig {
        stem: width("net_t.conv1.weight"),
        planes,
        expansion: width("net_t.layer1.0.conv3.weight") / planes[0],
        layers: [teacher_blocks[0], teacher_blocks[1], teacher_blocks[2], 0],
        num_classes: None,
    };
    let teacher = ResNet::load(&weights.clone().select("net_t"), &sizes, Device::Cpu).unwrap();
    let config = DistillationConfig {
        bottleneck_width: width("mff_oce.bn_layer.0.conv2.weight"),
        bottleneck_blocks,
        decoder_blocks,
        ..DistillationConfig::of(&sizes, 64)
    };
    let vs = VarStore::new(Device::Cpu);
    let student = skip_init(|| DistillationStudent::new(&vs.root(), &config));
    weights.retain(|name| !name.starts_with("net_t.")).load_into(&vs).unwrap_or_else(|e| panic!("{e}"));
    let changes = json!({ "lr": lr, "max_grad_norm": clip, "betas": betas, "steps": 3, "lr_scheduler": "constant" });
    let method: ReverseDistillation = serde_json::from_value(json!({ "training": changes })).unwrap();
    let images = case.input("images");

    // Features, loss, map and score.
    let file = case.tensors("expected.safetensors");
    let shown = images.narrow(0, 0, file.get("teacher.0").size()[0]);
    let maps: [Tensor; 3] = no_grad(|| teacher.forward_features(&shown, 3)).try_into().unwrap();
    no_grad(|| {
        let embedding = student.embed(&maps, false);
        case.close("bottleneck", &embedding, 2.);
        let made = student.decode(&embedding, false);
        for level in 0..3 {
            case.close(&format!("teacher.{level}"), &maps[level], 1.);
            case.close(&format!("student.{level}"), &made[level], 2.);
        }
        let loss = distillation_loss(&maps, &made).unwrap().double_value(&[]);
        case.number("loss_eval", loss, loss_eval, 2. * NETWORK * loss_eval);
        let size = [images.size()[2], images.size()[3]];
        let of_image = |maps: &[Tensor; 3], image: i64| maps.each_ref().map(|map| map.narrow(0, image, 1));
        let map = |image: i64| method.map(&of_image(&maps, image), &of_image(&made, image), size);
        case.close("map.before_smoothing", &map(0).unsqueeze(0), 2.);
        let all: Vec<Tensor> = (0..shown.size()[0]).map(map).collect();
        let smooth = blurred(&Tensor::stack(&all, 0), smoothing_sigma, Border::Symmetric);
        case.close("map.final", &smooth, 2.);
        for (image, want) in image_scores_max_of_final.iter().enumerate() {
            let got = smooth.get(image as i64).max().double_value(&[]);
            case.number(&format!("score of image {image}"), got, *want, 2. * NETWORK * want);
        }
        // The map of one level is nine times the map in which the others are equal.
        for level in 0..3 {
            let one = |maps: &[Tensor; 3]| of_image(maps, 0).map(|_| maps[level].narrow(0, 0, 1));
            let sum = ReverseDistillation { levels: Some(CombinedLevels::Sum), ..method.clone() };
            let map = sum.map(&one(&maps), &one(&made), size) / 3.;
            case.close(&format!("map.level.{level}"), &map.unsqueeze(0), 2.);
        }
    });

    // Three steps on all images.
    let start: BTreeMap<String, Tensor> =
        vs.variables().into_iter().map(|(name, x)| (name, x.detach().copy())).collect();
    let mut trainers = method.trainers(&vs);
    let batch = MicroBatch { number: 0, step: 0, epoch: 0, rows: (0..images.size()[0]).collect(), is_logged: true };
    let loss = || method.loss(&teacher, &student, 0, &images, &batch).map(|loss| loss.total);
    let near = |what: String, got: f64, want: f64, of: f64| case.number(&what, got, want, of * want.abs());
    let largest = training.grad_norm.values().copied().fold(0., f64::max);
    for at in 1..=3 {
        let mut value = 0.;
        let norms = step(&mut trainers, 1, 1, |_, _| {
            let loss = loss()?;
            value = loss.value.double_value(&[]);
            Ok::<_, tch::TchError>(loss)
        });
        let norm = norms.unwrap()[0];
        let before = (at - 1) as f64;
        near(format!("loss {at}"), value, training.losses[at - 1], 2. * NETWORK + before * MOVED);
        let of_norm = 5. * DISTILLED + before * CHANGE;
        near(format!("norm {at}"), norm, training.grad_total_norm_before_clip[at - 1], of_norm);
        if at == 1 {
            // The numbers that the optimiser keeps are clipped.
            let clipped = (norm / clip).max(1.);
            let gradients: BTreeMap<&str, Option<&Tensor>> = trainers[0].optimizer.gradients().collect();
            case.equal("parameters", &gradients.len(), &training.grad_norm.len());
            for (name, want) in &training.grad_norm {
                let got = gradients[name.as_str()].unwrap() * clipped;
                case.number(&format!("norm of {name}"), length(&got), *want, 1e-3 * want.max(1e-5 * largest));
                if file.find(&format!("train.grad.{name}")).is_some() {
                    case.expect(&format!("train.grad.{name}"), &got, |want| share(want, DISTILLED));
                }
            }
        }
        let (moved, of) = match at {
            1 => (&training.delta_norm_step1, "train.param_after1."),
            3 => (&training.delta_norm_step3, "train.param_after3."),
            _ => continue,
        };
        let wrong = at as f64 * CHANGE;
        let variables = vs.variables();
        let change = |name: &str| length(&(&variables[name] - &start[name]));
        for (name, want) in moved.iter().filter(|(name, _)| training.grad_norm[*name] > 1e-5 * largest) {
            near(format!("change of {name} after step {at}"), change(name), *want, wrong);
        }
        for (name, variable) in &variables {
            if let Some(want) = file.find(&format!("{of}{name}")) {
                case.number(&format!("{of}{name}"), length(&(variable - &want)), 0., wrong * change(name));
            }
        }
    }
    for (name, variable) in vs.variables() {
        if file.find(&format!("train.buffer_after3.{name}")).is_some() {
            case.close(&format!("train.buffer_after3.{name}"), &variable, 2.);
        }
    }
    let last = loss().unwrap().value.double_value(&[]);
    near("loss after the last step".into(), last, training.losses[3], 2. * NETWORK + 3. * MOVED);
}

/// Compares the trained networks of the real size, and which of their variables are trained, with the list of ADer's.
pub(super) fn distillation_shapes(case: &Case) {
    #[derive(Deserialize)]
    struct Manifest {
        keys: BTreeMap<String, (Vec<i64>, String)>,
        trained: Vec<String>,
    }
    let file = "ader_rd_wide_resnet50_2.json.gz";
    if !case.has(file) {
        return;
    }
    let Manifest { keys, trained } = case.json(file);
    let is_student = |name: &str| !name.starts_with("net_t.") && !name.ends_with("num_batches_tracked");
    let theirs = keys.into_iter().filter(|(name, _)| is_student(name)).map(|(name, (shape, _))| (name, shape));
    let sizes = DistillationConfig::of(&ResNetConfig::wide_resnet50(None), 64);
    networks::compare_shapes(case, "rd", &networks::shapes(theirs), |vs| Ok(DistillationStudent::new(&vs, &sizes)));
    let vs = VarStore::new(Device::Cpu);
    let _student = skip_init(|| DistillationStudent::new(&vs.root(), &sizes));
    let trainers = ReverseDistillation::default().trainers(&vs);
    let ours: Vec<String> = trainers[0].optimizer.parameters().into_keys().collect();
    case.equal("trained", &ours, &trained);
}
