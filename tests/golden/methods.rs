//! Methods that are fitted on normal images, beside the authors' programs and anomalib.

use std::collections::BTreeMap;

use image::{RgbImage, imageops};
use serde::Deserialize;
use tch::{Device, Kind, Tensor, no_grad};
use vlmdiff::{
    features::embedding::{Pooling, Upsample},
    methods::{
        Bank, Distance, Knn, Method, Patchcore, Protocol,
        coreset::{Start, greedy, select},
    },
    models::{
        preprocessing::Preprocessing,
        resnet::ResNet,
        vit::{Interpolation, VisionTransformer, VitConfig, names},
    },
    vision::{
        blur::{self, Border},
        resize::{self, Filter},
    },
};

use super::{Case, tolerance::share};

/// The tolerance of distances as a share of the largest: |q|² - 2 q · b + |b|² in f32, whose terms are larger than
/// their sum by up to a factor of a hundred, of features that differ by 1e-6 already.
const DISTANCE: f64 = 1e-4;

/// Returns the joined patches of all images [N, 3, H, W].
fn embedded(features: &dyn Fn(&Tensor) -> Vec<Tensor>, pooling: Pooling, images: &Tensor) -> Tensor {
    let one = |image: i64| pooling.patches(&features(&images.narrow(0, image, 1))).values;
    Tensor::cat(&(0..images.size()[0]).map(one).collect::<Vec<_>>(), 0)
}

/// Returns what a scorer of a bank makes of each image of joined patches: all patch scores, and the images' scores.
fn scored(method: &Method, bank: &Tensor, patches: &Tensor, images: i64) -> (Tensor, Vec<f64>) {
    let fitted = BTreeMap::from([("bank".to_owned(), bank.shallow_clone())]);
    let scorer = method.scorer(&fitted, Device::Cpu).unwrap();
    let scores: Vec<_> = patches.chunk(images, 0).iter().map(|image| scorer.score(image).unwrap()).collect();
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
            let (scores, of_images) = scored(&Method::Patchcore(method), &coreset, &queries, images);
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
        let method = |reweight| Method::Patchcore(Patchcore { reweight: Some(reweight), ..Patchcore::default() });
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
            let method = Method::Knn(Knn { neighbors, distance: of });
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
    // Neither the rotated pictures and the background mask of the authors nor anomalib's model are here.
    for prefix in ["cosine_rotated.", "rotated.", "mask.", "anomalib."] {
        expected.skip(prefix);
        inputs.skip(prefix);
    }
}
