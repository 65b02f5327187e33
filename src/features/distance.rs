//! Anomaly maps: the distance between the features of two images at every place.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// The order in which the features of a layer are compared and brought to the image's size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MapOrder {
    /// Features are compared at their own resolution, and the distances are brought to the image's size: the authors'
    /// code.
    #[default]
    CompareThenUpsample,
    /// Features are brought to the image's size and compared there: the text of the paper.
    UpsampleThenCompare,
}

/// The way in which the maps of several layers are combined into one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Combine {
    /// Their sum: the authors' code.
    #[default]
    Sum,
    /// Their mean: the ADer benchmark.
    Mean,
    /// Their product.
    Product,
}

/// The smallest norm by which a cosine divides. Smaller norms count as this one, so that a vector of zeros is at a
/// distance of 1 from every vector.
const EPS: f64 = 1e-8;

/// Returns one minus the cosine similarity of the features `a` and `b` [B, C, h, w] of one layer, at the image's size:
/// f32 [B, H, W], from 0 to 2.
pub fn distance(a: &Tensor, b: &Tensor, size: [i64; 2], order: MapOrder) -> Tensor {
    match order {
        MapOrder::CompareThenUpsample => {
            let distance: Tensor = 1. - Tensor::cosine_similarity(a, b, 1, EPS); // [B, h, w]
            upsample(&distance.unsqueeze(1), size).squeeze_dim(1)
        }
        MapOrder::UpsampleThenCompare => {
            let between = Between::new(a, size);
            let norm = |x: &Tensor| between.inner(x, x).sqrt().clamp_min(EPS);
            let distance: Tensor = 1. - between.inner(a, b) / (norm(a) * norm(b)); // [B, H, W]
            distance.to_kind(Kind::Float)
        }
    }
}

/// Returns the combined map of several layers: f64 [B, H, W] on the CPU.
///
/// # Panics
/// If there is no layer, or `a` and `b` have different numbers of layers.
pub fn anomaly_map(a: &[Tensor], b: &[Tensor], size: [i64; 2], order: MapOrder, combine: Combine) -> Tensor {
    assert!(!a.is_empty() && a.len() == b.len(), "{} layers are compared with {}", a.len(), b.len());
    let maps = a.iter().zip(b).map(|(a, b)| distance(a, b, size, order).to_device(Device::Cpu).to_kind(Kind::Double));
    match combine {
        Combine::Sum => maps.reduce(|a, b| a + b).unwrap(),
        Combine::Mean => maps.reduce(|a, b| a + b).unwrap() / a.len() as f64,
        Combine::Product => maps.reduce(|a, b| a * b).unwrap(),
    }
}

/// Upsamples [B, C, h, w] to [B, C, H, W], bilinearly, with the corner cells on the corner pixels (`align_corners`).
pub fn upsample(x: &Tensor, size: [i64; 2]) -> Tensor {
    x.upsample_bilinear2d(size, true, None, None)
}

/// Inner products of features that are interpolated between cells, computed from the inner products of neighbouring
/// cells. Interpolation is linear, so no channel has to be brought to the image's size, which would take 100 MB an
/// image for a transformer.
struct Between {
    rows: Axis,
    columns: Axis,
}

/// The two cells between which each pixel lies along one axis, and their weights (`align_corners`).
struct Axis {
    cells: [Tensor; 2],
    weights: [Tensor; 2],
}

impl Axis {
    fn new(cells: i64, pixels: i64, device: Device) -> Self {
        let last = cells - 1;
        let at = |pixel: i64| pixel as f64 * last as f64 / (pixels - 1).max(1) as f64;
        let cell = |pixel: i64| (at(pixel) as i64).min(last);
        let index = |further: i64| (0..pixels).map(|pixel| (cell(pixel) + further).min(last)).collect::<Vec<i64>>();
        let further = (0..pixels).map(|pixel| at(pixel) - cell(pixel) as f64).collect::<Vec<f64>>();
        let further = Tensor::from_slice(&further).to_device(device);
        Self {
            cells: [0, 1].map(|further| Tensor::from_slice(&index(further)).to_device(device)),
            weights: [1. - &further, further],
        }
    }
}

impl Between {
    fn new(features: &Tensor, [height, width]: [i64; 2]) -> Self {
        let (_, _, h, w) = features.size4().unwrap();
        let device = features.device();
        Self { rows: Axis::new(h, height, device), columns: Axis::new(w, width, device) }
    }

    /// Returns the inner products over the channels at every pixel: `a` and `b` [B, C, h, w] to f64 [B, H, W].
    fn inner(&self, a: &Tensor, b: &Tensor) -> Tensor {
        // The product of each cell of `a` with the cell of `b` that lies `rows` and `columns` further: [B, h, w].
        let product = |rows: i64, columns: i64| {
            let b = b.roll([-rows, -columns].as_slice(), [2i64, 3].as_slice());
            (a * b).sum_dim_intlist([1i64].as_slice(), false, Kind::Double)
        };
        let offsets = [-1, 0, 1].map(|rows| [-1, 0, 1].map(|columns| product(rows, columns)));
        let pairs = [(0, 0), (0, 1), (1, 0), (1, 1)];
        let terms = pairs.iter().flat_map(|rows| pairs.iter().map(move |columns| (rows, columns)));
        let term = |(&(i, k), &(j, l)): (&(usize, usize), &(usize, usize))| {
            let product = &offsets[1 + k - i][1 + l - j];
            let at = product.index_select(1, &self.rows.cells[i]).index_select(2, &self.columns.cells[j]); // [B, H, W]
            let rows = (&self.rows.weights[i] * &self.rows.weights[k]).unsqueeze(1);
            at * rows * (&self.columns.weights[j] * &self.columns.weights[l])
        };
        terms.map(term).reduce(|a, b| a + b).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tolerance of a cosine: three sums of up to 70 products, their roots and bilinear interpolation, 2⁻²⁴ · (3 ·
    /// √70 + 8).
    const COSINE: f64 = 2e-6;

    fn features(channels: i64, side: i64) -> [Tensor; 2] {
        tch::manual_seed(channels);
        [0, 1].map(|_| Tensor::randn([2, channels, side, side], tch::kind::FLOAT_CPU))
    }

    fn difference(a: &Tensor, b: &Tensor) -> f64 {
        (a - b).abs().max().double_value(&[])
    }

    #[test]
    fn upsampling_first_equals_upsampling_all_channels_at_once() {
        for (side, size) in [(1, [4, 5]), (3, [3, 3]), (4, [2, 1])] {
            let [a, b] = features(5, side);
            let got = distance(&a, &b, size, MapOrder::UpsampleThenCompare);
            let want = 1. - Tensor::cosine_similarity(&upsample(&a, size), &upsample(&b, size), 1, EPS);
            assert!(difference(&got, &want) < COSINE, "{side} {size:?}");
        }
        let [a, b] = features(70, 4);
        let got = distance(&a, &b, [9, 13], MapOrder::UpsampleThenCompare);
        assert_eq!(got.size(), [2, 9, 13]);
        let want = 1. - Tensor::cosine_similarity(&upsample(&a, [9, 13]), &upsample(&b, [9, 13]), 1, EPS);
        assert!(difference(&got, &want) < COSINE);
        let other = distance(&a, &b, [9, 13], MapOrder::CompareThenUpsample);
        assert!(difference(&got, &other) > 1e-2, "the orders differ between patches");
        assert!(difference(&got.get(0).get(0).get(0), &other.get(0).get(0).get(0)) < COSINE, "and agree on them");
    }

    #[test]
    fn a_vector_of_zeros_is_at_a_distance_of_one() {
        let [a, _] = features(8, 2);
        for order in [MapOrder::CompareThenUpsample, MapOrder::UpsampleThenCompare] {
            assert_eq!(difference(&distance(&a, &a.zeros_like(), [2, 2], order), &Tensor::from(1f32)), 0.);
            assert!(distance(&a, &a, [2, 2], order).abs().max().double_value(&[]) < COSINE);
        }
    }

    #[test]
    fn layers_are_summed_averaged_or_multiplied() {
        let layers = [features(8, 2), features(6, 3)];
        let (a, b) = ([0, 1].map(|i: usize| layers[i][0].copy()), [0, 1].map(|i: usize| layers[i][1].copy()));
        let order = MapOrder::CompareThenUpsample;
        let each = [0, 1].map(|i: usize| distance(&a[i], &b[i], [5, 5], order).to_kind(Kind::Double));
        let map = |combine| anomaly_map(&a, &b, [5, 5], order, combine);
        assert_eq!(map(Combine::Sum), &each[0] + &each[1]);
        assert_eq!(map(Combine::Mean), (&each[0] + &each[1]) / 2.);
        assert_eq!(map(Combine::Product), &each[0] * &each[1]);
    }
}
