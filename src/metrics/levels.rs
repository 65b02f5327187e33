//! Counts per distinct score: what every metric of a ranking follows from, without a loss.

use half::f16;
use std::{fmt::Debug, ops::AddAssign};

/// A type that anomaly maps come in.
pub trait Score: Copy + Debug + PartialOrd + Into<f64> + Send + Sync + 'static {
    /// Whether there are few enough scores, 65,536, for a count of each.
    const FEW: bool;

    /// The place of a score among all scores of its type, smallest first; -0 and 0 share one.
    fn key(self) -> u64;

    /// The score at a place.
    fn at(key: u64) -> f64;

    /// Whether it has no place in an order.
    fn is_nan(self) -> bool;

    /// The result of an operation as arithmetic of this type has it; that of f16 is done in f64.
    fn round(x: f64) -> f64;
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

/// What is counted.
pub(super) trait Count: Copy + Debug + Default + PartialEq + AddAssign {}

impl<C: Copy + Debug + Default + PartialEq + AddAssign> Count for C {}

/// What a state in bytes consists of.
pub(super) trait Record: Sized {
    fn write(&self, out: &mut Vec<u8>);

    /// Takes it from the front; None where it is not whole.
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
    /// At its key; empty before the first.
    All(Vec<C>),
    /// With its key; in ascending order, each key once, up to `settled`, and beyond it as they came.
    Occurring { counts: Vec<(u64, C)>, settled: usize },
}

/// All scores of a type that has few, and how many counts are too few to be worth settling.
const ALL: usize = 1 << 16;

impl<C: Count> Levels<C> {
    pub(super) fn new<S: Score>() -> Self {
        if S::FEW { Self::All(Vec::new()) } else { Self::Occurring { counts: Vec::new(), settled: 0 } }
    }

    pub(super) fn add(&mut self, more: impl Iterator<Item = (u64, C)>) {
        match self {
            Self::All(counts) => {
                let mut more = more.peekable();
                if more.peek().is_some() {
                    counts.resize(ALL, C::default());
                }
                more.for_each(|(key, count)| counts[key as usize] += count);
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

    /// The scores that occur, in ascending order, by their keys.
    pub(super) fn ascending(&self) -> Vec<(u64, C)> {
        match self {
            Self::All(counts) => {
                let all = counts.iter().enumerate().map(|(key, count)| (key as u64, *count));
                all.filter(|(_, count)| *count != C::default()).collect()
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

    /// Bytes that it takes.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::All(counts) => counts.capacity() * size_of::<C>(),
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

/// The sort is stable, so it finds the part that is in order.
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
    fn keys_keep_the_order_of_all_f16() {
        let mut scores: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).filter(|score| !score.is_nan()).collect();
        scores.sort_by(|a, b| a.partial_cmp(b).unwrap());
        assert!(scores.windows(2).all(|pair| (pair[0] < pair[1]) == (pair[0].key() < pair[1].key())));
        assert!(scores.iter().all(|score| f16::at(score.key()) == f64::from(*score)));
        assert_eq!(f16::NEG_ZERO.key(), f16::ZERO.key());
    }

    proptest! {
        #[test]
        fn keys_keep_the_order_of_floats(a in any::<f64>(), b in any::<f64>(), c in any::<f32>(), d in any::<f32>()) {
            prop_assert_eq!((a < b, a == b), (a.key() < b.key(), a.key() == b.key()));
            prop_assert_eq!((c < d, c == d), (c.key() < d.key(), c.key() == d.key()));
            prop_assert_eq!((f64::at(a.key()), f32::at(c.key())), (a, f64::from(c)));
        }

        #[test]
        fn levels_are_sums(keys in prop::collection::vec(0..40u64, 0..200)) {
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
