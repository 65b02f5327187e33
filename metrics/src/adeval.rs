//! The rules of ADEval: curves at the edges of strips of equal width between the lowest and the highest score, without
//! points at the ends that no edge hits.

use super::{FPR_LIMIT, ImageMetrics, Kind, PixelMetrics, Score, pixel::Pixels};

/// The number of strips, ADEval's default.
const STRIPS: u16 = 1000;

/// The images or pixels with one score.
struct Counted {
    score: f64,
    normal: f64,
    anomalous: f64,
    /// The sum over anomalous pixels of 1 / area of their region; 0 for images.
    covered: f64,
}

/// A point of the curves: what is anomalous by "score >= threshold".
#[derive(Clone, Copy)]
struct Point {
    fpr: f64,
    recall: f64,
    precision: f64,
    overlap: f64,
}

/// Computes a metric of images. None if it is not defined, or if all scores are equal.
pub(super) fn of_images(kind: Kind, images: &ImageMetrics) -> Option<f64> {
    images.ranking().defined()?;
    let counted = images.descending().map(|(score, level)| Counted {
        score,
        normal: level.negatives as f64,
        anomalous: level.positives as f64,
        covered: 0.,
    });
    of_points(kind, &points(&counted.collect::<Vec<_>>())?)
}

/// Computes a metric of pixels; None as for images.
pub(super) fn of_pixels<S: Score>(kind: Kind, pixels: &PixelMetrics<S>) -> Option<f64> {
    let total = pixels.total()?;
    let counted = pixels.descending().map(|bin: Pixels| Counted {
        score: S::at(bin.key),
        normal: bin.normal as f64,
        anomalous: bin.found.pixels as f64,
        covered: pixels.rates(&bin, &total).1,
    });
    of_points(kind, &points(&counted.collect::<Vec<_>>())?)
}

fn of_points(kind: Kind, points: &[Point]) -> Option<f64> {
    match kind {
        Kind::Auroc => Some(area(points.iter().map(|point| (point.fpr, point.recall)))),
        Kind::AveragePrecision => Some(area(points.iter().map(|point| (point.recall, point.precision)))),
        Kind::Aupro => aupro(points),
        Kind::F1Max | Kind::F1 => None,
    }
}

/// Returns the points at the edges of the strips, the highest threshold first. Edges are computed in f32, as ADEval
/// does. None if all scores are equal.
fn points(descending: &[Counted]) -> Option<Vec<Point>> {
    let (highest, lowest) = (descending.first()?.score, descending.last()?.score);
    if highest == lowest {
        return None;
    }
    let total = |of: fn(&Counted) -> f64| descending.iter().map(of).sum::<f64>();
    let (normal, anomalous) = (total(|counted| counted.normal), total(|counted| counted.anomalous));
    let covered = total(|counted| counted.covered);
    let (mut above, mut seen) = ((0., 0., 0.), descending.iter().peekable());
    let edges = (0..=STRIPS).rev().map(|edge| {
        let share = (f64::from(edge) * (1. / f64::from(STRIPS))) as f32;
        f64::from(share * (highest - lowest) as f32 + lowest as f32)
    });
    let point = |edge: f64| {
        while let Some(counted) = seen.next_if(|counted| counted.score >= edge) {
            above = (above.0 + counted.normal, above.1 + counted.anomalous, above.2 + counted.covered);
        }
        let called = above.0 + above.1;
        Point {
            fpr: above.0 / normal,
            recall: above.1 / anomalous,
            precision: if called > 0. { above.1 / called } else { 1. },
            overlap: if covered > 0. { above.2 / covered } else { 0. },
        }
    };
    Some(edges.map(point).collect())
}

/// Returns the area below a curve of trapezoids.
fn area(curve: impl Iterator<Item = (f64, f64)>) -> f64 {
    let curve: Vec<(f64, f64)> = curve.collect();
    curve.windows(2).map(|ends| (ends[1].0 - ends[0].0) * (ends[0].1 + ends[1].1) / 2.).sum()
}

/// Returns the area below the curve of overlaps from its first point up to [`FPR_LIMIT`], where it is linear, divided by
/// that limit. None if the first point lies beyond it.
fn aupro(points: &[Point]) -> Option<f64> {
    let within = points.partition_point(|point| point.fpr <= FPR_LIMIT);
    let (last, next) = (points[..within].last()?, points.get(within)?);
    let overlap = last.overlap + (next.overlap - last.overlap) * (FPR_LIMIT - last.fpr) / (next.fpr - last.fpr);
    let curve = points[..within].iter().map(|point| (point.fpr, point.overlap)).chain([(FPR_LIMIT, overlap)]);
    Some(area(curve) / FPR_LIMIT)
}
