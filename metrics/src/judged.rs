//! The counts of one image within the part of it that is judged.

use half::f16;

use super::{Components, MetricError, PixelCounts, RegionScores, Score};

/// Counts the pixels of an anomaly map, row-major `[H, width]`, and its mask (true is anomalous); with `regions` also the scores of
/// each region, which are empty otherwise. `roi` tells the pixels that are judged; `None` for all. The others are left out,
/// whatever their mask is.
///
/// Fails if sizes differ or a pixel is NaN, judged or not.
pub fn count<S: Score>(
    map: &[S],
    mask: &[bool],
    roi: Option<&[bool]>,
    width: usize,
    regions: bool,
) -> Result<(PixelCounts<S>, RegionScores<S>), MetricError> {
    let Some(roi) = roi else { return of(map, &Components::label(mask, width)?, width, regions) };
    if let Some(other) = [mask.len(), roi.len()].into_iter().find(|pixels| *pixels != map.len()) {
        return Err(MetricError::Sizes { map: map.len(), mask: other });
    }
    if let Some(i) = map.iter().position(|score| score.is_nan()) {
        return Err(MetricError::NanPixel { x: i % width, y: i / width });
    }
    let mask: Vec<bool> = mask.iter().zip(roi).map(|(is_anomalous, is_judged)| *is_anomalous && *is_judged).collect();
    let found = Components::label(&mask, width)?.among(roi);
    let map: Vec<S> = map.iter().zip(roi).filter(|(_, is_judged)| **is_judged).map(|(score, _)| *score).collect();
    of(&map, &found, width, regions)
}

/// Does as [`count`] for f16 and a mask of bytes, of which those above 0 are anomalous. A function without type parameters is
/// compiled with the optimisation of this crate, and not with that of the crate that calls it.
pub fn count_bytes(
    map: &[f16],
    mask: &[u8],
    roi: Option<&[bool]>,
    width: usize,
    regions: bool,
) -> Result<(PixelCounts, RegionScores<f16>), MetricError> {
    match roi {
        None => of(map, &Components::of_bytes(mask, width)?, width, regions),
        Some(_) => count(map, &mask.iter().map(|pixel| *pixel > 0).collect::<Vec<_>>(), roi, width, regions),
    }
}

fn of<S: Score>(
    map: &[S],
    found: &Components,
    width: usize,
    regions: bool,
) -> Result<(PixelCounts<S>, RegionScores<S>), MetricError> {
    let counts = PixelCounts::new(map, found, width)?;
    let scores = if regions { RegionScores::new(map, found) } else { RegionScores::default() };
    Ok((counts, scores))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PixelMetrics;

    #[test]
    fn pixels_outside_of_the_judged_ones_are_not_counted() {
        let maps = |values: &[f32]| values.iter().map(|value| f16::from_f32(*value)).collect::<Vec<_>>();
        let state = |map: &[f32], mask: &[bool], roi: Option<&[bool]>| {
            let mut state = PixelMetrics::new();
            state.add(&count(&maps(map), mask, roi, mask.len(), false)?.0);
            Ok::<_, MetricError>(state)
        };
        let (map, mask) = ([0.9, 0.8, 0.5, 0.1, 0.2, 0.7], [true, true, false, false, true, false]);
        let within = state(&map, &mask, Some(&[true, false, true, true, false, false])).unwrap();
        assert!(within == state(&[0.9, 0.5, 0.1], &[true, false, false], None).unwrap());
        assert_eq!(within.regions(), 1);
        let nothing = state(&map, &mask, Some(&[false; 6])).unwrap();
        assert!(nothing == PixelMetrics::new());
        assert_eq!(state(&map, &mask, Some(&[true])).unwrap_err(), MetricError::Sizes { map: 6, mask: 1 });
        assert_eq!(state(&map, &[true; 7], Some(&[true; 6])).unwrap_err(), MetricError::Sizes { map: 6, mask: 7 });
        let broken = state(&[0.5, f32::NAN], &[false; 2], Some(&[true, false]));
        assert_eq!(broken.unwrap_err(), MetricError::NanPixel { x: 1, y: 0 });
    }
}
