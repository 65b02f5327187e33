//! Metrics compared with scikit-learn, anomalib, ADer and the authors' code.

use super::{
    Case,
    tolerance::{F32, F64, share},
};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use tch::{Kind, Tensor};
use vlmdiff_metrics::{self as metrics, Components, Given, ImageMetrics, PixelMetrics, Protocol, Score, blur, windows};

/// The largest number of pixels in a set, which are the terms of a sum.
const PIXELS: f64 = 1e5;
/// The tolerance of scikit-learn's metrics, and of ADer's once its grid is reproduced. Both compute in f64: shares of
/// 1, as sums of so many roundings.
const SCIKIT: f64 = PIXELS * F64;
/// The tolerance of anomalib's metrics. It sums in f32, where the roundings of so many terms are independent of each
/// other: √1e5 · 2⁻²⁴ = 1.9e-5.
const ANOMALIB: f64 = 316.3 * F32;
/// The tolerance of the authors' metrics, which are computed in f64.
const REFERENCE: f64 = PIXELS * F64;

/// The tolerance of a blur in f32, which rounds the values between and after its two passes; the terms of its sums are
/// positive.
pub(super) const BLURRED: f64 = 4. * F32;

/// Maps and masks [N, H, W], each as a list of its pixels.
struct Maps<S> {
    maps: Vec<Vec<S>>,
    masks: Vec<Vec<bool>>,
    width: usize,
}

impl<S: Score + tch::kind::Element> Maps<S> {
    fn new(maps: &Tensor, masks: &Tensor) -> Self {
        let rows = |x: &Tensor| x.unbind(0).into_iter().map(|x| x.flatten(0, -1)).collect::<Vec<_>>();
        let map = |x: &Tensor| Vec::<S>::try_from(x).unwrap();
        let mask = |x: &Tensor| Vec::<bool>::try_from(x.gt(0.)).unwrap();
        let width = maps.size()[2] as usize;
        Self { maps: rows(maps).iter().map(map).collect(), masks: rows(masks).iter().map(mask).collect(), width }
    }

    fn pixels(&self) -> PixelMetrics<S> {
        let mut state = PixelMetrics::new();
        self.maps.iter().zip(&self.masks).for_each(|(map, mask)| state.update(map, mask, self.width).unwrap());
        state
    }

    fn labels(&self) -> Vec<bool> {
        self.masks.iter().map(|mask| mask.contains(&true)).collect()
    }

    fn regions(&self) -> Vec<u64> {
        self.masks.iter().map(|mask| Components::label(mask, self.width).unwrap().areas.len() as u64).collect()
    }
}

fn images(scores: &[f64], labels: &[bool]) -> ImageMetrics {
    let mut state = ImageMetrics::new();
    scores.iter().zip(labels).for_each(|(score, label)| state.update(*score, *label).unwrap());
    state
}

fn of_images(protocol: Protocol, images: &ImageMetrics) -> [Option<f64>; 3] {
    let kinds = [metrics::Kind::Auroc, metrics::Kind::AveragePrecision, metrics::Kind::F1Max];
    kinds.map(|kind| protocol.of_images(kind, images))
}

fn of_pixels(protocol: Protocol, pixels: &PixelMetrics<impl Score>) -> [Option<f64>; 4] {
    let kinds = [metrics::Kind::Auroc, metrics::Kind::AveragePrecision, metrics::Kind::F1Max, metrics::Kind::Aupro];
    kinds.map(|kind| protocol.of_pixels(kind, pixels, &Given::limit(0.3)))
}

pub(super) fn metrics(case: &Case) {
    let expected: Value = case.json("expected.json");
    for (name, maps, masks) in
        [("random", "maps", "masks"), ("ties", "maps_ties", "masks"), ("diagonal", "diag_maps", "diag_masks")]
    {
        let want = &expected["results"][name];
        if want.is_null() {
            case.absent(name);
            continue;
        }
        let maps: Maps<f32> = Maps::new(&case.input(maps), &case.input(masks));
        let check = |metric: &str, got: Option<f64>, tolerance| match want[metric].as_f64() {
            Some(want) => case.number(&format!("{name} {metric}"), got.unwrap(), want, tolerance),
            None => case.absent(&format!("{name} {metric}")),
        };
        let pixels = maps.pixels();
        let [auroc, ap, f1, aupro] = of_pixels(Protocol::Exact, &pixels);
        check("pixel_auroc", auroc, SCIKIT);
        check("pixel_ap", ap, SCIKIT);
        check("pixel_f1_max", f1, SCIKIT);
        check("anomalib_aupro_0.3", aupro, ANOMALIB);
        check("anomalib_aupro_0.05", pixels.aupro(0.05), ANOMALIB);
        check("anomalib_aupro_1.0", pixels.aupro(1.), ANOMALIB);
        let [auroc, ap, f1, aupro] = of_pixels(Protocol::Ader, &pixels);
        check("pixel_auroc", auroc, SCIKIT);
        check("pixel_ap", ap, SCIKIT);
        check("ader_mF1_max_px", f1, SCIKIT);
        check("ader_aupro_200", aupro, SCIKIT);
        check("ader_aupro_1000", pixels.aupro_ader(1000), SCIKIT);
        check("regions_8conn", Some(pixels.regions() as f64), 0.);
        let scores: Vec<f64> =
            maps.maps.iter().map(|map| map.iter().copied().fold(f32::NEG_INFINITY, f32::max).into()).collect();
        let want_scores: Vec<f64> = serde_json::from_value(want["image_scores_max"].clone()).unwrap();
        let want_labels: Vec<u8> = serde_json::from_value(want["image_labels"].clone()).unwrap();
        case.equal(&format!("{name} image_scores_max"), &scores, &want_scores);
        case.equal(&format!("{name} image_labels"), &maps.labels().into_iter().map(u8::from).collect(), &want_labels);
        let [auroc, ap, _] = of_images(Protocol::Exact, &images(&scores, &maps.labels()));
        check("image_auroc", auroc, SCIKIT);
        check("image_ap", ap, SCIKIT);
    }
    // the blur of scipy, on some of the maps
    let blurred = case.input("gaussian4");
    let (count, height, width) = blurred.size3().unwrap();
    let map = |index: i64| -> Vec<f64> {
        let map = case.input("maps").get(index).to_kind(Kind::Double).flatten(0, -1);
        blur::gaussian(&Vec::try_from(map).unwrap(), width as usize, height as usize, 4., blur::Border::Symmetric)
    };
    let got = Tensor::from_slice(&(0..count).flat_map(map).collect::<Vec<f64>>()).view([count, height, width]);
    case.compare("inputs.safetensors", "gaussian4", &got, |want| share(want, BLURRED));
}

pub(super) fn reference(case: &Case) {
    let expected: Value = case.json("metrics.json");
    let file = case.tensors("metrics.safetensors");
    let (maps, masks) = (file.get("maps"), file.get("masks"));
    let classes: Vec<String> = serde_json::from_value(expected["classes"].clone()).unwrap();
    let mut sums: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for class in classes.iter().collect::<BTreeSet<_>>() {
        let rows: Vec<i64> = (0..).zip(&classes).filter(|(_, other)| *other == class).map(|(row, _)| row).collect();
        let of = |x: &Tensor| x.index_select(0, &Tensor::from_slice(&rows));
        let (class_maps, height) = (of(&maps), maps.size()[1] as usize);
        let measured: Maps<f64> = Maps::new(&class_maps, &of(&masks));
        let labels = measured.labels();
        let (side, repeats) = Protocol::Reference.windows().unwrap();
        let score = |map: &Vec<f64>| windows::largest_mean(map, measured.width, height, side, repeats);
        let scores: Vec<f64> = measured.maps.iter().map(score).collect();
        let (images, pixels) = (images(&scores, &labels), measured.pixels());
        case.near(&format!("image_score.{class}"), &Tensor::from_slice(&scores), REFERENCE);
        let labels_i64: Vec<i64> = labels.iter().map(|label| i64::from(*label)).collect();
        case.near(&format!("image_label.{class}"), &Tensor::from_slice(&labels_i64), 0.);

        let detail = &expected["detail"][class];
        let check = |name: String, got: Option<f64>, want: &Value| match want.as_f64() {
            Some(want) => case.number(&name, got.unwrap(), want, REFERENCE),
            None => case.absent(&name),
        };
        let detailed = |name: &str, got| check(format!("{class} {name}"), got, &detail[name]);
        detailed("image_auc_unflipped", images.ranking().auroc());
        detailed("pixel_auc_unflipped", pixels.auroc());
        detailed("pro", pixels.aupro_reference());
        let curve = pixels.pro_curve(200).unwrap();
        detailed("pro_thresholds_kept", Some(curve.len() as f64));
        let regions: Vec<u64> = serde_json::from_value(detail["regions"].clone()).unwrap();
        case.equal(&format!("{class} regions"), &measured.regions(), &regions);
        let (fpr, pro): (Vec<f64>, Vec<f64>) = curve.into_iter().unzip();
        let fpr = Tensor::from_slice(&fpr);
        case.near(&format!("pro_curve.{class}.fpr_normalised"), &(&fpr / fpr.max()), REFERENCE);
        case.near(&format!("pro_curve.{class}.pro"), &Tensor::from_slice(&pro), REFERENCE);

        // The table also has the mean and the deviation of a map as its score, and areas below 200 points of the
        // precision-recall curves, rounded (auprpx, auprsp); the authors print none of these, and the latter two are
        // left out.
        let [max_auc, apsp, f1sp] = of_images(Protocol::Reference, &images);
        let [pixel_auc, appx, f1px, pro] = of_pixels(Protocol::Reference, &pixels);
        let auroc_by = |score: Tensor| {
            let scores = Vec::<f64>::try_from(score).unwrap();
            of_images(Protocol::Reference, &self::images(&scores, &labels))[0]
        };
        let mean = auroc_by(class_maps.mean_dim([1, 2].as_slice(), false, None));
        let std = auroc_by(class_maps.std_dim([1, 2].as_slice(), false, false));
        for (name, got) in [
            ("max", max_auc),
            ("apsp", apsp),
            ("f1sp", f1sp),
            ("pixel", pixel_auc),
            ("appx", appx),
            ("f1px", f1px),
            ("pro", pro),
            ("mean", mean),
            ("std", std),
        ] {
            let key = format!("{class}_{name}_auc");
            check(key.clone(), got, &expected["metrics"][key]);
            sums.entry(name).or_default().push(got.unwrap());
        }
    }
    for (name, values) in sums {
        let key = format!("mean_{name}_auc");
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        match expected["metrics"][&key].as_f64() {
            Some(want) => case.number(&key, mean, want, REFERENCE),
            None => case.absent(&key),
        }
    }
}
