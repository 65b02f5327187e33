//! Counts per distinct score, from which every metric of a ranking follows exactly.

use super::{
    Components, halves,
    pixel::{Counted, Found},
};
use half::f16;
use std::{fmt::Debug, ops::AddAssign};

/// A type of the values of anomaly maps.
pub trait Score: Copy + Debug + PartialOrd + Into<f64> + Send + Sync + 'static {
    /// True if there are few enough different scores, 65,536, for a count of each.
    const FEW: bool;

    /// Returns the place of a score among all scores of its type, smallest first; -0 and 0 share one.
    fn key(self) -> u64;

    /// Returns the score at a place.
    fn at(key: u64) -> f64;

    /// Returns true if the score has no place in an order.
    fn is_nan(self) -> bool;

    /// Rounds the result of an operation as the arithmetic of this type does; that of f16 is done in f64.
    fn round(x: f64) -> f64;

    /// Counts the pixels of a map by score, those of `regions` as anomalous; `None` if one is NaN. Both have the same size.
    fn count(map: &[Self], regions: &Components) -> Option<Counted> {
        if map.iter().any(|score| score.is_nan()) {
            return None;
        }
        let (mut normal, mut anomalous) = (Levels::sparse(), Levels::sparse());
        let (shares, mut seen) = (regions.shares(), 0);
        for run in &regions.runs {
            let found = Found { pixels: 1, covered: shares[run.region as usize - 1] };
            normal.add(map[seen..run.pixels.start].iter().map(|score| (score.key(), 1)));
            anomalous.add(map[run.pixels.clone()].iter().map(|score| (score.key(), found)));
            seen = run.pixels.end;
        }
        normal.add(map[seen..].iter().map(|score| (score.key(), 1)));
        Some(Counted { normal: normal.ascending(), anomalous: anomalous.ascending() })
    }

    /// Sorts scores that are no NaN, the highest first.
    fn sort_descending(scores: &mut [Self]) {
        scores.sort_unstable_by_key(|score| std::cmp::Reverse(score.key()));
    }
}

impl Score for f16 {
    const FEW: bool = true;

    fn key(self) -> u64 {
        const SIGN: u16 = 0x8000;
        let bits = if self.to_bits() == SIGN { 0 } else { self.to_bits() };
        u64::from(if bits & SIGN == 0 { bits | SIGN } else { !bits })
    }

    fn at(key: u64) -> f64 {
        let key = key as u16;
        f16::from_bits(if key & 0x8000 == 0 { !key } else { key & 0x7fff }).into()
    }

    fn is_nan(self) -> bool {
        self.is_nan()
    }

    fn round(x: f64) -> f64 {
        x
    }

    fn count(map: &[Self], regions: &Components) -> Option<Counted> {
        halves::count(map, regions)
    }

    fn sort_descending(scores: &mut [Self]) {
        halves::sort_descending(scores);
    }
}

impl Score for f64 {
    const FEW: bool = false;

    fn key(self) -> u64 {
        const SIGN: u64 = 1 << 63;
        let bits = (self + 0.).to_bits(); // -0 + 0 is 0
        if bits & SIGN == 0 { bits | SIGN } else { !bits }
    }

    fn at(key: u64) -> f64 {
        f64::from_bits(if key >> 63 == 0 { !key } else { key & !(1 << 63) })
    }

    fn is_nan(self) -> bool {
        self.is_nan()
    }

    fn round(x: f64) -> f64 {
        x
    }
}

impl Score for f32 {
    const FEW: bool = false;

    fn key(self) -> u64 {
        f64::from(self).key()
    }

    fn at(key: u64) -> f64 {
        f64::at(key)
    }

    fn is_nan(self) -> bool {
        self.is_nan()
    }

    fn round(x: f64) -> f64 {
        f64::from(x as f32)
    }
}

/// The pixels or images that are counted per score.
pub(super) trait Count: Copy + Debug + Default + PartialEq + AddAssign {}

impl<C: Copy + Debug + Default + PartialEq + AddAssign> Count for C {}

/// A part of a state in bytes.
pub(super) trait Record: Sized {
    fn write(&self, out: &mut Vec<u8>);

    /// Takes a record from the front; None if the bytes are too few.
    fn read(from: &mut &[u8]) -> Option<Self>;
}

impl Record for u64 {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.to_le_bytes());
    }

    fn read(from: &mut &[u8]) -> Option<Self> {
        let (bytes, rest) = from.split_first_chunk()?;
        *from = rest;
        Some(Self::from_le_bytes(*bytes))
    }
}

/// A count per score.
#[derive(Debug, Clone)]
pub(super) enum Levels<C> {
    /// Counts at the index of their keys, in pages of [`PAGE`] keys. A page is empty before its first count, and so are all
    /// before the first one.
    All(Vec<Vec<C>>),
    /// Counts with their keys. Up to `settled` they are in ascending order, each key once; after that, in the order of
    /// adding.
    Occurring { counts: Vec<(u64, C)>, settled: usize },
}

/// The number of scores of a type that has few, and the number of counts up to which settling is not worth its cost.
const ALL: usize = 1 << 16;
/// The number of scores of a page: of 16 bits, those between one power of two and the next. Maps have few of these.
const PAGE: usize = 1 << 10;

impl<C: Count> Levels<C> {
    pub(super) fn new<S: Score>() -> Self {
        if S::FEW { Self::All(Vec::new()) } else { Self::sparse() }
    }

    /// Makes counts that are fast for a few scores of any type.
    pub(super) fn sparse() -> Self {
        Self::Occurring { counts: Vec::new(), settled: 0 }
    }

    pub(super) fn add(&mut self, more: impl Iterator<Item = (u64, C)>) {
        match self {
            Self::All(pages) => {
                for (key, count) in more {
                    if pages.is_empty() {
                        pages.resize(ALL / PAGE, Vec::new());
                    }
                    let page = &mut pages[key as usize / PAGE];
                    if page.is_empty() {
                        page.resize(PAGE, C::default());
                    }
                    page[key as usize % PAGE] += count;
                }
            }
            Self::Occurring { counts, settled } => {
                counts.extend(more);
                if counts.len() > ALL.max(2 * *settled) {
                    settle(counts);
                    *settled = counts.len();
                }
            }
        }
    }

    /// Returns the keys of the scores that occur, ascending, with their counts.
    pub(super) fn ascending(&self) -> Vec<(u64, C)> {
        match self {
            Self::All(pages) => {
                let mut all = Vec::new();
                for (first, page) in (0..).step_by(PAGE).zip(pages) {
                    let counted = (first..).zip(page).filter(|(_, count)| **count != C::default());
                    all.extend(counted.map(|(key, count)| (key, *count)));
                }
                all
            }
            Self::Occurring { counts, settled } => {
                let mut counts = counts.clone();
                if *settled < counts.len() {
                    settle(&mut counts);
                }
                counts
            }
        }
    }

    /// Returns the size in bytes.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::All(pages) => {
                let counts: usize = pages.iter().map(|page| page.capacity() * size_of::<C>()).sum();
                pages.capacity() * size_of::<Vec<C>>() + counts
            }
            Self::Occurring { counts, .. } => counts.capacity() * size_of::<(u64, C)>(),
        }
    }
}

impl<C: Count + Record> Levels<C> {
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let counts = self.ascending();
        (counts.len() as u64).write(out);
        for (key, count) in counts {
            key.write(out);
            count.write(out);
        }
    }

    pub(super) fn read<S: Score>(from: &mut &[u8]) -> Option<Self> {
        let mut levels = Self::new::<S>();
        for _ in 0..u64::read(from)? {
            let (key, count) = (u64::read(from)?, C::read(from)?);
            if S::FEW && key >= ALL as u64 {
                return None;
            }
            levels.add(std::iter::once((key, count)));
        }
        Some(levels)
    }
}

/// Sorts counts by key and adds those of equal keys. The stable sort is fast on the part that is in order already.
fn settle<C: Count>(counts: &mut Vec<(u64, C)>) {
    counts.sort_by_key(|(key, _)| *key);
    counts.dedup_by(|(key, count), (kept, sum)| {
        let same = key == kept;
        if same {
            *sum += *count;
        }
        same
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_of_all_f16_keep_their_order() {
        let mut scores: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).filter(|score| !score.is_nan()).collect();
        scores.sort_by(|a, b| a.partial_cmp(b).unwrap());
        assert!(scores.windows(2).all(|pair| (pair[0] < pair[1]) == (pair[0].key() < pair[1].key())));
        assert!(scores.iter().all(|score| f16::at(score.key()) == f64::from(*score)));
        assert_eq!(f16::NEG_ZERO.key(), f16::ZERO.key());
    }

    proptest! {
        #[test]
        fn keys_of_f64_and_f32_keep_their_order(a in any::<f64>(), b in any::<f64>(), c in any::<f32>(), d in any::<f32>()) {
            prop_assert_eq!((a < b, a == b), (a.key() < b.key(), a.key() == b.key()));
            prop_assert_eq!((c < d, c == d), (c.key() < d.key(), c.key() == d.key()));
            prop_assert_eq!((f64::at(a.key()), f32::at(c.key())), (a, f64::from(c)));
        }

        #[test]
        fn counts_of_equal_keys_are_added(keys in prop::collection::vec(0..40u64, 0..200)) {
            let mut levels = Levels::new::<f64>();
            for (at, chunk) in keys.chunks(7).enumerate() {
                levels.add(chunk.iter().map(|key| (*key, 1u64)));
                if let (0, Levels::Occurring { counts, settled }) = (at % 3, &mut levels) {
                    settle(counts);
                    *settled = counts.len();
                }
            }
            let mut want = std::collections::BTreeMap::new();
            keys.iter().for_each(|key| *want.entry(*key).or_insert(0) += 1);
            prop_assert_eq!(levels.ascending(), want.into_iter().collect::<Vec<_>>());
        }
    }
}
