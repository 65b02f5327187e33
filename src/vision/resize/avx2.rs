//! The sums of both passes with AVX2, eight at a time. Beside decoding, resampling is the largest cost of reading
//! photographs, and the compiler does not vectorise plain loops in the profile of this crate.

use super::{PRECISION_BITS, ROUND, Taps, clip8};
use std::arch::x86_64::*;

const SHIFT: i32 = PRECISION_BITS as i32;

/// The number of lower bits of a weight. Upper and lower bits are summed apart, because each fits a 16-bit
/// multiplication.
const LOWER: i32 = 11;

/// Runs the horizontal pass, four pixels at a time. The lanes are r, g, b and an empty one of two pixels, then of the
/// next two.
#[target_feature(enable = "avx2")]
pub(super) fn horizontal_rgb(src: &[u8], dst: &mut [u8], width: usize, taps: &[Taps<i32>]) {
    // The same channel of two pixels is brought side by side; -1 gives 0.
    let pairs = _mm256_setr_epi8(
        0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1, //
        6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1,
    );
    let mut weights: Vec<[[i16; 16]; 2]> = Vec::new();
    let mut spans = Vec::with_capacity(taps.len());
    for taps in taps {
        let fours = taps.weights.chunks(4).map(|four| {
            let w = |i: usize| four.get(i).copied().unwrap_or(0);
            let laid_out = |part: fn(i32) -> i32| {
                let [a, b, c, d] = [w(0), w(1), w(2), w(3)].map(|weight| part(weight) as i16);
                [a, b, a, b, a, b, 0, 0, c, d, c, d, c, d, 0, 0]
            };
            [laid_out(|weight| weight >> LOWER), laid_out(|weight| weight & ((1 << LOWER) - 1))]
        });
        spans.push((3 * taps.first, fours.len()));
        weights.extend(fours);
    }
    // After the last pixel, the row has bytes with weight 0, so that 16 bytes can be loaded anywhere.
    let mut row = vec![0; 3 * width + 16];
    for (line, out) in src.chunks_exact(3 * width).zip(dst.chunks_exact_mut(3 * taps.len())) {
        row[..3 * width].copy_from_slice(line);
        let mut rest = weights.as_slice();
        for (out, (first, fours)) in out.as_chunks_mut::<3>().0.iter_mut().zip(&spans) {
            let (fours, others) = rest.split_at(*fours);
            rest = others;
            let mut pixels = &row[*first..];
            let (mut upper, mut lower) = (_mm256_setzero_si256(), _mm256_setzero_si256());
            for [a, b] in fours {
                let values = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load_bytes(pixels)), pairs);
                upper = _mm256_add_epi32(upper, _mm256_madd_epi16(values, load(a)));
                lower = _mm256_add_epi32(lower, _mm256_madd_epi16(values, load(b)));
                pixels = &pixels[12..];
            }
            let sums = _mm256_add_epi32(_mm256_slli_epi32::<LOWER>(upper), lower);
            let sum = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
            let levels = _mm_srai_epi32::<SHIFT>(_mm_add_epi32(sum, _mm_set1_epi32(ROUND)));
            let words = _mm_packs_epi32(levels, levels);
            let [r, g, b, _] = _mm_cvtsi128_si32(_mm_packus_epi16(words, words)).to_le_bytes();
            *out = [r, g, b];
        }
    }
}

/// Runs the vertical pass, sixteen bytes of a row at a time.
#[target_feature(enable = "avx2")]
pub(super) fn vertical(src: &[u8], dst: &mut [u8], stride: usize, taps: &[Taps<i32>]) {
    for (out, Taps { first, weights }) in dst.chunks_exact_mut(stride).zip(taps) {
        let mut rows = &src[first * stride..];
        let (blocks, last) = out.as_chunks_mut::<16>();
        for block in blocks {
            let (mut low, mut high) = (_mm256_set1_epi32(ROUND), _mm256_set1_epi32(ROUND));
            let mut at = 0;
            for weight in weights {
                let (bytes, weight) = (load_bytes(&rows[at..]), _mm256_set1_epi32(*weight));
                let upper = _mm_unpackhi_epi64(bytes, bytes);
                low = _mm256_add_epi32(low, _mm256_mullo_epi32(_mm256_cvtepu8_epi32(bytes), weight));
                high = _mm256_add_epi32(high, _mm256_mullo_epi32(_mm256_cvtepu8_epi32(upper), weight));
                at += stride;
            }
            // Packing interleaves the halves of both registers; the permutation restores the order.
            let words = _mm256_packs_epi32(_mm256_srai_epi32::<SHIFT>(low), _mm256_srai_epi32::<SHIFT>(high));
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            store(block, _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words)));
            rows = &rows[16..];
        }
        for (x, out) in last.iter_mut().enumerate() {
            let values = rows[x..].iter().step_by(stride).zip(weights);
            *out = clip8(ROUND + values.map(|(value, weight)| i32::from(*value) * weight).sum::<i32>());
        }
    }
}

/// Loads the first sixteen bytes; panics if there are fewer.
#[target_feature(enable = "avx2")]
fn load_bytes(bytes: &[u8]) -> __m128i {
    let sixteen = &bytes[..16];
    // SAFETY: the load reads 16 bytes at any alignment; `sixteen` is a slice of that length, checked by the line above.
    unsafe { _mm_loadu_si128(sixteen.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
fn load(values: &[i16; 16]) -> __m256i {
    // SAFETY: the load reads 32 bytes at any alignment; the type of `values` guarantees 16 times 2 bytes.
    unsafe { _mm256_loadu_si256(values.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
fn store(to: &mut [u8; 16], bytes: __m128i) {
    // SAFETY: the store writes 16 bytes at any alignment; the type of `to` guarantees 16 bytes, borrowed mutably.
    unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), bytes) }
}
