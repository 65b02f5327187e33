//! Counting and sorting f16 scores, of which at most 65,536 differ. Functions without type parameters are compiled with
//! the optimisation of this crate.

use half::f16;

use super::{
    Components, Score,
    pixel::{Counted, Found},
};

/// The places of the infinities; those of NaN are further out.
const INFINITIES: (i16, i16) = (place(f16::NEG_INFINITY), place(f16::INFINITY));
/// The number of pixels whose extremes are found side by side.
const LANES: usize = 32;

/// Returns the place of a score in the order of all; that of -0 is one below that of 0.
const fn place(score: f16) -> i16 {
    let bits = score.to_bits() as i16;
    bits ^ ((bits >> 15) & i16::MAX)
}

/// Returns [`Score::key`] of a place.
fn key(place: i16) -> u64 {
    const SIGN: u16 = 0x8000;
    u64::from(if place == -1 { SIGN } else { place as u16 ^ SIGN })
}

/// Returns the lowest and the highest place; `None` without scores.
fn range(scores: &[f16]) -> Option<(i16, i16)> {
    let first = place(*scores.first()?);
    let (mut lowest, mut highest) = ([first; LANES], [first; LANES]);
    let (lanes, rest) = scores.as_chunks::<LANES>();
    for scores in lanes {
        for ((lowest, highest), score) in lowest.iter_mut().zip(&mut highest).zip(scores) {
            (*lowest, *highest) = ((*lowest).min(place(*score)), (*highest).max(place(*score)));
        }
    }
    let rest = || rest.iter().map(|score| place(*score));
    Some((lowest.into_iter().chain(rest()).min()?, highest.into_iter().chain(rest()).max()?))
}

/// Does as [`Score::count`].
pub(super) fn count(map: &[f16], regions: &Components) -> Option<Counted> {
    let Some((lowest, highest)) = range(map) else { return Some(Counted::default()) };
    if lowest < INFINITIES.0 || highest > INFINITIES.1 {
        return None;
    }
    // All pixels are counted first, and then those of the regions, which are few, are taken away.
    let mut counts = histogram(map, lowest, highest);
    let anomalous = anomalous(map, regions, lowest, &mut counts);
    let counted = (lowest..=highest).zip(&counts).filter(|(_, count)| **count > 0);
    let mut normal: Vec<(u64, u64)> = Vec::with_capacity(counts.len());
    for (place, count) in counted {
        add(&mut normal, key(place), u64::from(*count));
    }
    Some(Counted { normal, anomalous })
}

/// Returns the largest score; NaN if one is NaN, negative infinity without scores.
pub(super) fn largest(scores: &[f16]) -> f64 {
    match range(scores) {
        None => f64::NEG_INFINITY,
        Some((lowest, highest)) if lowest < INFINITIES.0 || highest > INFINITIES.1 => f64::NAN,
        Some((_, highest)) => f16::at(key(highest)),
    }
}

/// Returns the largest distance of a score from 0; NaN if one is NaN.
pub(super) fn magnitude(scores: &[f16]) -> f64 {
    match range(scores) {
        None => 0.,
        Some((lowest, highest)) if lowest < INFINITIES.0 || highest > INFINITIES.1 => f64::NAN,
        Some((lowest, highest)) => f16::at(key(lowest)).abs().max(f16::at(key(highest)).abs()),
    }
}

/// Adds to the last count if that is of the same key.
fn add<C: std::ops::AddAssign>(counts: &mut Vec<(u64, C)>, key: u64, count: C) {
    match counts.last_mut() {
        Some((last, sum)) if *last == key => *sum += count,
        _ => counts.push((key, count)),
    }
}

/// Counts scores by their distance from the lowest place. Several histograms in turns, so that equal neighbours do not wait for each
/// other, took longer to add up than they saved.
fn histogram(scores: &[f16], lowest: i16, highest: i16) -> Vec<u32> {
    let mut counts = vec![0; highest.abs_diff(lowest) as usize + 1];
    scores.iter().for_each(|score| counts[place(*score).wrapping_sub(lowest) as u16 as usize] += 1);
    counts
}

/// Counts the pixels of regions, and takes them away from the counts of all.
fn anomalous(map: &[f16], regions: &Components, lowest: i16, counts: &mut [u32]) -> Vec<(u64, Found)> {
    let of_run = |pixels: &std::ops::Range<usize>| range(&map[pixels.clone()]);
    let ranges = regions.runs.iter().filter_map(|run| of_run(&run.pixels));
    let Some((low, high)) = ranges.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))) else { return Vec::new() };
    let mut found = vec![Found::default(); high.abs_diff(low) as usize + 1];
    let shares = regions.shares();
    for run in &regions.runs {
        let one = Found { pixels: 1, covered: shares[run.region as usize - 1] };
        for score in &map[run.pixels.clone()] {
            counts[place(*score).abs_diff(lowest) as usize] -= 1;
            found[place(*score).abs_diff(low) as usize] += one;
        }
    }
    let mut anomalous = Vec::new();
    for (place, found) in (low..=high).zip(found).filter(|(_, found)| found.pixels > 0) {
        add(&mut anomalous, key(place), found);
    }
    anomalous
}

/// Does as [`Score::sort_descending`].
pub(super) fn sort_descending(scores: &mut [f16]) {
    scores.sort_unstable_by_key(|score| std::cmp::Reverse(place(*score)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_have_the_keys_of_their_scores() {
        for score in (0..=u16::MAX).map(f16::from_bits) {
            let is_outside = !(INFINITIES.0..=INFINITIES.1).contains(&place(score));
            assert_eq!(is_outside, score.is_nan(), "{score}");
            assert!(score.is_nan() || key(place(score)) == score.key(), "{score}");
        }
    }
}
