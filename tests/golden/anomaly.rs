//! The authors' anomaly maps and their blur.

use super::{
    Case,
    tolerance::{F32, F64, share},
};
use tch::{Kind, Tensor};
use vlmdiff::features::distance::{Combine, MapOrder, anomaly_map, distance};
use vlmdiff_metrics::blur;

use super::metrics::BLURRED;

const SIGMA: f64 = 5.;
/// The roundings of a blurred value: two passes of 2 · (4 σ) + 1 products each, and as many roundings of the weights.
const TAPS: f64 = 2. * 2. * (8. * SIGMA + 1.);
const ORDER: MapOrder = MapOrder::CompareThenUpsample;

/// Returns the tolerance of one less the cosine of features [1, C, h, w]: three sums of C products, the roots, and
/// bilinear interpolation. All terms are at most about 1, also if the features are so alike that the distance is next
/// to nothing.
fn cosine(features: &Tensor) -> f64 {
    F32 * (3. * (features.size()[1] as f64).sqrt() + 8.)
}

pub(super) fn maps(case: &Case) {
    let file = case.tensors("anomaly.safetensors");
    for name in file.names().filter_map(|name| name.strip_suffix(".map")) {
        let map = file.get(&format!("{name}.map"));
        let (height, width) = map.size2().unwrap();
        let (features, combine) = match name.strip_suffix("_mul") {
            Some(name) => (name, Combine::Product),
            None => (name, Combine::Sum),
        };
        let level = |side: &str, index: usize| file.find(&format!("{features}.{side}.{index}"));
        let levels = |side: &str| (0..).map_while(|index| level(side, index)).collect::<Vec<Tensor>>();
        let (a, b) = (levels("fs"), levels("ft"));
        if !a.is_empty() {
            for (index, (a, b)) in a.iter().zip(&b).enumerate() {
                let got = distance(a, b, [height, width], ORDER).squeeze_dim(0);
                case.within(&format!("{features}.a_map.{index}"), &got, |_| Tensor::from(cosine(a)));
            }
            let got = anomaly_map(&a, &b, [height, width], ORDER, combine).squeeze_dim(0);
            // A distance is at most 2, so that of a product of n each error counts at most n · 2ⁿ⁻¹ times, and of a sum
            // n times.
            let most = if combine == Combine::Product { 2_f64.powi(a.len() as i32 - 1) } else { 1. };
            let sum: f64 = a.iter().map(cosine).sum();
            case.within(&format!("{name}.map"), &got, |_| Tensor::from(most * sum));
        }
        for (blurred, kind, tolerance) in
            [("gauss5", Kind::Double, F64 * TAPS), ("gauss5_f32_in", Kind::Float, BLURRED)]
        {
            let blurred = format!("{name}.{blurred}");
            if file.find(&blurred).is_none() {
                continue;
            }
            let values: Vec<f64> = map.to_kind(kind).to_kind(Kind::Double).flatten(0, -1).try_into().unwrap();
            let smooth = blur::gaussian(&values, width as usize, height as usize, SIGMA, blur::Border::Symmetric);
            case.within(&blurred, &Tensor::from_slice(&smooth).view([height, width]), |want| share(want, tolerance));
        }
    }
}
