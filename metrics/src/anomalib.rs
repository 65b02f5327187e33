//! The rules of anomalib 1 that differ from the definitions. anomalib 2 (2.7) follows these.

use std::marker::PhantomData;

use super::{Components, FPR_LIMIT, PixelMetrics, Ranking, Score, pixel::Pixels, ranking::Level};

/// The distance from the limit at which a curve counts as having reached it: that of `torch.allclose`.
const CLOSE: f64 = 1e-8 + 1e-5 * FPR_LIMIT;

/// Computes the area of trapezoids below the precision-recall curve (`AUPR`). None if there are no positives or no
/// negatives.
///
/// The points are sorted by recall in a stable way, so that those of one recall ascend in precision: a trapezoid leads
/// from the highest precision of one recall to the lowest of the next. A point with recall 0 and precision 1 comes first.
pub(super) fn average_precision(ranking: &Ranking) -> Option<f64> {
    let total = ranking.defined()?;
    let precision = |called: Level| called.positives as f64 / (called.positives + called.negatives) as f64;
    let mut gains = ranking.above().filter(|(_, level)| level.positives > 0).peekable();
    let (mut area, mut highest) = (0., 1.);
    while let Some((above, level)) = gains.next() {
        // Precision at this recall is lowest just above the next positive.
        let lowest = gains.peek().map_or(total, |(above, _)| *above);
        area += level.positives as f64 * (highest + precision(lowest)) / 2.;
        highest = precision(above + level);
    }
    Some(area / total.positives as f64)
}

/// The scores of the pixels of every region, which anomalib 1 needs beside the counts of [`PixelMetrics`]. Of f16 it grows by
/// little more than a byte per anomalous pixel.
#[derive(Debug, Clone)]
pub struct RegionScores<S> {
    /// The [keys](Score::key) of the scores, region by region, those of a region in descending order: the first one, then the
    /// distance of each to the next. Numbers are written seven bits a byte, the lowest first; all bytes but the last of a number
    /// have the eighth bit. Regions have similar scores, so that most distances take one byte.
    keys: Vec<u8>,
    /// The end of each region in `keys`.
    ends: Vec<usize>,
    scores: PhantomData<S>,
}

impl<S> Default for RegionScores<S> {
    fn default() -> Self {
        Self { keys: Vec::new(), ends: Vec::new(), scores: PhantomData }
    }
}

impl<S: Score> RegionScores<S> {
    /// Takes the regions of one image. `map` has no NaN and is as large as the mask; [`PixelCounts::new`] checks both.
    ///
    /// [`PixelCounts::new`]: super::PixelCounts::new
    pub fn new(map: &[S], regions: &Components) -> Self {
        let mut scores: Vec<Vec<S>> = regions.areas.iter().map(|area| Vec::with_capacity(*area as usize)).collect();
        for run in &regions.runs {
            scores[run.region as usize - 1].extend_from_slice(&map[run.pixels.clone()]);
        }
        let mut taken = Self::default();
        for mut region in scores {
            S::sort_descending(&mut region);
            let mut last = None;
            for key in region.iter().map(|score| score.key()) {
                write_number(&mut taken.keys, last.map_or(key, |last: u64| last - key));
                last = Some(key);
            }
            taken.ends.push(taken.keys.len());
        }
        taken
    }

    /// Adds the regions of other images.
    pub fn merge(&mut self, other: &Self) {
        let first = self.keys.len();
        self.keys.extend_from_slice(&other.keys);
        self.ends.extend(other.ends.iter().map(|end| first + end));
    }

    /// Computes anomalib 1's `AUPRO`. None if there are no regions or no normal pixels, or if no threshold has a false
    /// positive rate up to 0.3.
    ///
    /// The ROC curve of each region against all normal pixels is cut at 0.3 and sampled at as many points as the curve of
    /// all pixels has up to there, at even distances *by number of threshold*; rates and overlaps are averaged over regions
    /// point by point. Points of one number have different rates in different regions, which makes the area larger or
    /// smaller than that of the definition.
    pub fn aupro(&self, pixels: &PixelMetrics<S>) -> Option<f64> {
        let total = pixels.total()?;
        let normal: Vec<(u64, u64)> =
            pixels.descending().filter(|bin| bin.normal > 0).map(|bin| (bin.key, bin.normal)).collect();
        let fpr = |called: u64| called as f64 / total.normal as f64;
        let samples = 1 + pixels
            .descending()
            .scan(Pixels::default(), |seen, bin| {
                *seen += bin;
                Some(fpr(seen.normal))
            })
            .take_while(|fpr| *fpr <= FPR_LIMIT)
            .count();
        if samples == 1 {
            return None;
        }
        let mut sum = vec![(0., 0.); samples];
        for region in self.sorted() {
            let curve = Curve::new(region, &normal, total.normal);
            sum.iter_mut().zip(curve.samples(samples)).for_each(|(sum, (fpr, overlap))| {
                *sum = (sum.0 + fpr, sum.1 + overlap);
            });
        }
        let area: f64 = sum.windows(2).map(|ends| (ends[1].0 - ends[0].0) * (ends[0].1 + ends[1].1) / 2.).sum();
        let (largest, regions) = (sum.last()?.0, pixels.regions() as f64);
        (largest > 0.).then_some(area / largest / regions)
    }

    /// Returns the regions in an order that does not depend on that of the images, so that sums over them do not either.
    fn sorted(&self) -> Vec<Keys<'_>> {
        let starts = std::iter::once(&0).chain(&self.ends);
        let region = |(start, end): (&usize, &usize)| Keys { rest: &self.keys[*start..*end], last: None };
        let mut regions: Vec<Keys<'_>> = starts.zip(&self.ends).map(region).collect();
        regions.sort_unstable_by(|a, b| a.clone().cmp(b.clone()));
        regions
    }
}

/// The keys of the scores of a region, in descending order.
#[derive(Clone)]
struct Keys<'a> {
    rest: &'a [u8],
    last: Option<u64>,
}

impl Iterator for Keys<'_> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let number = read_number(&mut self.rest)?;
        self.last = Some(self.last.map_or(number, |last| last - number));
        self.last
    }
}

/// Writes a number as [`RegionScores`] has it.
fn write_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Takes a number from the front; `None` at the end.
fn read_number(from: &mut &[u8]) -> Option<u64> {
    let last = from.iter().position(|byte| *byte < 0x80)?;
    let (bytes, rest) = from.split_at(last + 1);
    *from = rest;
    Some(bytes.iter().rev().fold(0, |number, byte| number << 7 | u64::from(byte & 0x7f)))
}

/// The ROC curve of one region up to the limit.
struct Curve {
    /// False positive rates and overlaps, from (0, 0).
    points: Vec<(f64, f64)>,
    /// The place of the last sample, in numbers of points.
    end: f64,
}

impl Curve {
    /// `region` and `normal` are in descending order; `normal` has the keys of scores with their counts.
    fn new(region: Keys<'_>, normal: &[(u64, u64)], all_normal: u64) -> Self {
        let area = region.clone().count() as f64;
        let mut found = region.peekable();
        let mut normal = normal.iter().copied().peekable();
        let (mut called, mut covered) = (0, 0u64);
        let mut points = vec![(0., 0.)];
        while let Some(key) = normal.peek().map(|(key, _)| *key).max(found.peek().copied()) {
            called += normal.next_if(|(other, _)| *other == key).map_or(0, |(_, count)| count);
            while found.next_if_eq(&key).is_some() {
                covered += 1;
            }
            let fpr = called as f64 / all_normal as f64;
            let last = points[points.len() - 1].0;
            if fpr > FPR_LIMIT && (FPR_LIMIT - last).abs() <= CLOSE {
                break;
            }
            points.push((fpr, covered as f64 / area));
            if fpr > FPR_LIMIT {
                // The limit lies between the last two points; a curve without points before it is not cut.
                let share = 1. - (fpr - FPR_LIMIT) / (fpr - last);
                let end = if last == 0. { 1. } else { share };
                return Self { end: (points.len() - 2) as f64 + end, points };
            }
        }
        Self { end: (points.len() - 1) as f64, points }
    }

    /// Returns points at even distances by number of point, up to the last one, which lies at the limit.
    fn samples(&self, count: usize) -> impl Iterator<Item = (f64, f64)> {
        let most = (self.points.len() - 1) as f64;
        (0..count).map(move |sample| {
            let last = sample + 1 == count;
            let place = if last { self.end } else { sample as f64 * most / (count - 1) as f64 };
            let before = (place.ceil() as usize).clamp(1, self.points.len() - 1) - 1;
            let ((x0, y0), (x1, y1)) = (self.points[before], self.points[before + 1]);
            let share = place - before as f64;
            (x0 + (x1 - x0) * share, y0 + (y1 - y0) * share)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_have_the_keys_that_were_taken_in_descending_order() {
        let map = [0.5f64, -3., 1e300, 0., -0., f64::MAX, f64::MIN, 0.5];
        let regions = Components::label(&[true, true, true, true, true, true, false, true], 8).unwrap();
        let mut scores = RegionScores::default();
        scores.merge(&RegionScores::new(&[0.25f64], &Components::label(&[true], 1).unwrap()));
        scores.merge(&RegionScores::new(&map, &regions));
        let taken: Vec<Vec<u64>> = scores.sorted().into_iter().map(Iterator::collect).collect();
        let keys = |scores: &[f64]| scores.iter().map(|score| score.key()).collect::<Vec<_>>();
        assert_eq!(taken, [keys(&[0.25]), keys(&[0.5]), keys(&[f64::MAX, 1e300, 0.5, 0., 0., -3.])]);
    }

    /// Two regions are above all nine normal pixels. The curve of all pixels has the five points (0, 0), three at a rate of 0
    /// and one at 1/9; the next lies at 3/9. The first region's curve has as many: (0, 0), (0, 1/2), (0, 1), (1/9, 1), (0.3,
    /// 1). That of the other has one fewer, and its five samples are (0, 0), (0, 3/4), (1/18, 1), (1/6, 1), (0.3, 1). The sums are
    /// (0, 0), (0, 5/4), (1/18, 2), (5/18, 2), (0.6, 2).
    #[test]
    fn perfect_maps_have_no_aupro_of_one_in_any_order() {
        let images = [
            (vec![0.9f32, 0.8, 0.1, 0.2, 0.3, 0.15], vec![true, true, false, false, false, false]),
            (vec![0.3, 0.25, 0.12, 0.7, 0.05, 0.35], vec![false, false, false, true, false, false]),
        ];
        let measured = |order: [usize; 2]| {
            let (mut pixels, mut regions) = (PixelMetrics::<f32>::new(), RegionScores::default());
            for (map, mask) in order.map(|i| &images[i]) {
                let components = Components::label(mask, 3).unwrap();
                pixels.update(map, mask, 3).unwrap();
                regions.merge(&RegionScores::new(map, &components));
            }
            regions.aupro(&pixels)
        };
        let expected = ((1.25 + 2.) / 36. + 2. * (0.6 - 1. / 18.)) / 0.6 / 2.;
        assert!((measured([0, 1]).unwrap() - expected).abs() < 1e-12, "{:?}", measured([0, 1]));
        assert_eq!(measured([0, 1]), measured([1, 0]));
    }
}
