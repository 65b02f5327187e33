//! Compares with scikit-learn and anomalib, whose results on fixed maps are kept as fixtures.
//!
//! The fixtures' maps are f32. Every metric here depends on the order of the scores alone, so each score is replaced by
//! the f16 whose place among the f16 numbers is the score's place among the distinct scores: the same order and the
//! same ties, and nothing lost. The maps with ties hold eighths, which are f16 as they stand, and are compared as such
//! too.

use super::{PixelMetrics, Ranking};
use half::f16;
use safetensors::SafeTensors;
use serde_json::Value;
use std::path::{Path, PathBuf};

const SCIKIT: f64 = 1e-6;
/// anomalib adds up in f32.
const ANOMALIB: f64 = 1e-5;

struct Fixtures {
    inputs: Vec<u8>,
    expected: Value,
}

impl Fixtures {
    /// From the folder named by `VLMDIFF_GOLDEN`, else `shared/golden` beside the checkout; None, and a line on stderr,
    /// where there is no such folder.
    fn open() -> Option<Self> {
        let named = std::env::var_os("VLMDIFF_GOLDEN").map(PathBuf::from);
        let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/golden");
        let folder = named.clone().unwrap_or(beside).join("models/metrics");
        if named.is_none() && !folder.exists() {
            eprintln!("not compared: no {}", folder.display());
            return None;
        }
        let read =
            |name| std::fs::read(folder.join(name)).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let expected: Value = serde_json::from_slice(&read("expected.json")).unwrap();
        Some(Self { inputs: read("inputs.safetensors"), expected: expected["results"].clone() })
    }

    /// `[N, H, W]` scores and masks as flat lists, with `[H, W]`.
    fn maps(&self, maps: &str, masks: &str) -> (Vec<f32>, Vec<bool>, [usize; 2]) {
        let tensors = SafeTensors::deserialize(&self.inputs).unwrap();
        let (maps, masks) = (tensors.tensor(maps).unwrap(), tensors.tensor(masks).unwrap());
        let scores = maps.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        (scores, masks.data().iter().map(|pixel| *pixel != 0).collect(), [maps.shape()[1], maps.shape()[2]])
    }
}

/// An f16 for each score, equally ordered. There are 31,744 f16 from 0 to below infinity, in the order of their bits.
fn ranks(scores: &[f32]) -> Vec<f16> {
    let mut distinct = scores.to_vec();
    distinct.sort_by(f32::total_cmp);
    distinct.dedup();
    assert!(distinct.len() < usize::from(f16::INFINITY.to_bits()), "{} distinct scores", distinct.len());
    scores.iter().map(|score| f16::from_bits(distinct.partition_point(|other| other < score) as u16)).collect()
}

fn state(scores: &[f16], masks: &[bool], [height, width]: [usize; 2]) -> PixelMetrics {
    let mut state = PixelMetrics::new();
    for (map, mask) in scores.chunks(height * width).zip(masks.chunks(height * width)) {
        state.update(map, mask, width).unwrap();
    }
    state
}

fn check(case: &Value, metric: &str, got: Option<f64>, tolerance: f64) {
    let (got, want) = (got.unwrap(), case[metric].as_f64().unwrap());
    assert!((got - want).abs() <= tolerance, "{metric}: {got}, not {want}");
}

fn check_pixels(case: &Value, state: &PixelMetrics) {
    check(case, "pixel_auroc", state.auroc(), SCIKIT);
    check(case, "pixel_ap", state.average_precision(), SCIKIT);
    check(case, "pixel_f1_max", state.f1_max(), SCIKIT);
    for (metric, limit) in [("anomalib_aupro_0.05", 0.05), ("anomalib_aupro_0.3", 0.3), ("anomalib_aupro_1.0", 1.0)] {
        check(case, metric, state.aupro(limit), ANOMALIB);
    }
    assert_eq!(state.regions(), case["regions_8conn"].as_u64().unwrap());
}

#[test]
fn pixels_equal_scikit_learn_and_anomalib() {
    let Some(fixtures) = Fixtures::open() else { return };
    for (case, maps, masks) in
        [("random", "maps", "masks"), ("ties", "maps_ties", "masks"), ("diagonal", "diag_maps", "diag_masks")]
    {
        let (scores, masks, size) = fixtures.maps(maps, masks);
        check_pixels(&fixtures.expected[case], &state(&ranks(&scores), &masks, size));
    }
}

#[test]
fn ties_equal_as_they_stand() {
    let Some(fixtures) = Fixtures::open() else { return };
    let (scores, masks, size) = fixtures.maps("maps_ties", "masks");
    let halves: Vec<f16> = scores.iter().map(|score| f16::from_f32(*score)).collect();
    assert!(halves.iter().zip(&scores).all(|(half, score)| half.to_f32() == *score));
    check_pixels(&fixtures.expected["ties"], &state(&halves, &masks, size));
}

#[test]
fn images_equal_scikit_learn() {
    let Some(fixtures) = Fixtures::open() else { return };
    for case in fixtures.expected.as_object().unwrap().values() {
        let scores = case["image_scores_max"].as_array().unwrap().iter().map(|score| score.as_f64().unwrap());
        let labels = case["image_labels"].as_array().unwrap().iter().map(|label| label == 1);
        let ranking = Ranking::from_scores(scores.zip(labels)).unwrap();
        check(case, "image_auroc", ranking.auroc(), SCIKIT);
        check(case, "image_ap", ranking.average_precision(), SCIKIT);
    }
}
