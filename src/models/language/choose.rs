//! The choice of a token from logits.

use rand_chacha::{
    ChaCha12Rng,
    rand_core::{Rng, SeedableRng},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Drawing tokens at random in place of the likeliest.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Sampling {
    /// The logits are divided by this number above 0.
    pub temperature: f64,
    /// Only the likeliest tokens that together have at least this probability are drawn from; 1 takes all.
    pub top_p: f64,
    /// Together with a row's key, decides its tokens.
    pub seed: u64,
}

/// The random numbers of one row. Number n depends on the seed, the row's key and n alone: not on the batch, nor on the
/// numbers drawn before.
#[derive(Debug, Clone)]
pub(super) struct Draws([u8; 32]);

impl Draws {
    pub(super) fn new(seed: u64, key: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes()).update(key.as_bytes());
        Self(*hasher.finalize().as_bytes())
    }

    /// Returns number n, uniform in [0, 1) with 24 bits.
    fn uniform(&self, n: usize) -> f32 {
        let mut stream = ChaCha12Rng::from_seed(self.0);
        stream.set_word_pos(n as u128);
        (stream.next_u32() >> 8) as f32 / (1 << 24) as f32
    }
}

/// Divides the positive and multiplies the negative logits of tokens that were given before by `penalty` (Keskar et al.
/// 2019).
pub(super) fn penalise(logits: &mut [f32], given: &[i64], penalty: f64) {
    for &token in given.iter().collect::<BTreeSet<_>>() {
        if let Some(logit) = usize::try_from(token).ok().and_then(|token| logits.get_mut(token)) {
            *logit = if *logit > 0. { *logit / penalty as f32 } else { *logit * penalty as f32 };
        }
    }
}

/// Returns the first of the largest logits.
pub(super) fn likeliest(logits: &[f32]) -> i64 {
    let better = |best: usize, i: usize| if logits[i] > logits[best] { i } else { best };
    (0..logits.len()).reduce(better).unwrap_or(0) as i64
}

/// Draws the token of step n.
pub(super) fn draw(logits: &[f32], sampling: Sampling, draws: &Draws, n: usize) -> i64 {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    let Some(&first) = order.first() else { return 0 };
    let weight = |i: usize| (f64::from(logits[i] - logits[first]) / sampling.temperature).exp();
    let total: f64 = order.iter().map(|&i| weight(i)).sum();
    // A token is kept if those before it have less than `top_p`; the likeliest always is.
    let mut kept = Vec::new();
    let mut mass = 0.;
    for &i in &order {
        if mass >= sampling.top_p * total && !kept.is_empty() {
            break;
        }
        mass += weight(i);
        kept.push((i, mass));
    }
    let target = f64::from(draws.uniform(n)) * mass;
    kept.iter().find(|(_, sum)| target < *sum).or(kept.last()).map_or(first, |(i, _)| *i) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_tokens_lose_likelihood() {
        let mut logits = [2., -1., 3.];
        penalise(&mut logits, &[1, 0, 0, 9], 2.);
        assert_eq!(logits, [1., -2., 3.]);
        assert_eq!(likeliest(&[1., 5., 5.]), 1);
    }

    #[test]
    fn draws_follow_the_probabilities_of_the_kept_tokens() {
        let logits = [0.5_f32, 0.3, 0.2].map(f32::ln);
        let count = |top_p, temperature| {
            let sampling = Sampling { temperature, top_p, seed: 1 };
            let draws = Draws::new(1, "a");
            let mut counts = [0; 3];
            (0..10_000).for_each(|n| counts[draw(&logits, sampling, &draws, n) as usize] += 1);
            counts.map(|count| f64::from(count) / 1e4)
        };
        // five standard errors: 5 · √(p(1 - p) / 10⁴) ≤ 0.025
        let near = |got: [f64; 3], want: [f64; 3]| got.iter().zip(want).all(|(a, b)| (a - b).abs() < 0.025);
        assert!(near(count(1., 1.), [0.5, 0.3, 0.2]));
        assert!(near(count(0.7, 1.), [0.625, 0.375, 0.]));
        assert!(near(count(0., 1.), [1., 0., 0.]));
        let squares = [0.25, 0.09, 0.04].map(|square| square / 0.38);
        assert!(near(count(1., 0.5), squares));
    }

    #[test]
    fn a_number_depends_on_seed_key_and_count_alone() {
        let draws = Draws::new(1, "a");
        assert_eq!(draws.uniform(7), Draws::new(1, "a").uniform(7));
        let all = [draws.uniform(7), draws.uniform(8), Draws::new(2, "a").uniform(7), Draws::new(1, "b").uniform(7)];
        assert!(all.iter().enumerate().all(|(i, a)| all[..i].iter().all(|b| a != b)), "{all:?}");
    }
}
