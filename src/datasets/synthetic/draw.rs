//! Random choices from a portable stream: the same label gives the same numbers on every machine.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A stream of random choices, ChaCha8 seeded by a number and a label.
pub(super) struct Draw(ChaCha8Rng);

impl Draw {
    /// Opens the stream `stream` of those of `(seed, label)`; different streams are independent.
    pub(super) fn new(seed: u64, label: &str, stream: u64) -> Self {
        // FNV-1a is enough to distinguish labels, because ChaCha does the mixing.
        let hash =
            label.bytes().fold(0xcbf2_9ce4_8422_2325 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15), |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
            });
        let mut rng = ChaCha8Rng::seed_from_u64(hash);
        rng.set_stream(stream);
        Self(rng)
    }

    pub(super) fn bits(&mut self) -> u32 {
        self.0.next_u32()
    }

    /// Draws a number uniform in [0, 1) from 24 random bits, which `f32` holds exactly.
    pub(super) fn unit(&mut self) -> f32 {
        (self.bits() >> 8) as f32 / (1 << 24) as f32
    }

    pub(super) fn range(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.unit()
    }

    /// Draws a number between `-reach` and `reach`, the middle more often than the ends (the sum of two uniforms).
    pub(super) fn around(&mut self, reach: f32) -> f32 {
        (self.unit() + self.unit() - 1.0) * reach
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        ((u64::from(self.bits()) * n as u64) >> 32) as usize
    }

    pub(super) fn chance(&mut self, probability: f32) -> bool {
        self.unit() < probability
    }

    pub(super) fn sign(&mut self) -> f32 {
        if self.chance(0.5) { 1.0 } else { -1.0 }
    }

    pub(super) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_repeat_and_differ() {
        let take = |seed, label, stream| {
            let mut draw = Draw::new(seed, label, stream);
            [draw.bits(), draw.bits()]
        };
        assert_eq!(take(1, "a", 0), take(1, "a", 0));
        assert_ne!(take(1, "a", 0), take(2, "a", 0));
        assert_ne!(take(1, "a", 0), take(1, "b", 0));
        assert_ne!(take(1, "a", 0), take(1, "a", 1));
    }

    #[test]
    fn drawn_numbers_stay_in_their_ranges() {
        let mut draw = Draw::new(0, "ranges", 0);
        for _ in 0..1000 {
            assert!((0.0..1.0).contains(&draw.unit()));
            assert!(draw.around(2.0).abs() <= 2.0);
            assert!(draw.below(3) < 3);
        }
    }
}
