//! The authors' anomaly maps and their blur.

use super::Case;
use tch::{Kind, Tensor};
use vlmdiff::{
    models::anomaly_map::{Combine, MapOrder, anomaly_map, distance},
    vision::blur,
};

const SIGMA: f64 = 5.;
const ORDER: MapOrder = MapOrder::CompareThenUpsample;

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
                case.near(&format!("{features}.a_map.{index}"), &got, 1e-6);
            }
            let got = anomaly_map(&a, &b, [height, width], ORDER, combine).squeeze_dim(0);
            case.near(&format!("{name}.map"), &got, 1e-6);
        }
        for (blurred, kind, tolerance) in [("gauss5", Kind::Double, 1e-12), ("gauss5_f32_in", Kind::Float, 1e-6)] {
            let blurred = format!("{name}.{blurred}");
            if file.find(&blurred).is_none() {
                continue;
            }
            let values: Vec<f64> = map.to_kind(kind).to_kind(Kind::Double).flatten(0, -1).try_into().unwrap();
            let smooth = blur::gaussian(&values, width as usize, height as usize, SIGMA);
            case.near(&blurred, &Tensor::from_slice(&smooth).view([height, width]), tolerance);
        }
    }
}
