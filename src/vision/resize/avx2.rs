//! The sums of both passes with instructions for eight of them. Beside decoding, resampling is what reading photographs costs, and
//! the profile that builds this crate leaves plain loops as they are written.

use super::{PRECISION_BITS, ROUND, Taps, clip8};
use std::arch::x86_64::*;

const SHIFT: i32 = PRECISION_BITS as i32;

/// Four pixels at a time, two in each register: lanes are r, g, b and nothing of one, then of the next.
#[target_feature(enable = "avx2")]
pub(super) fn horizontal_rgb(src: &[u8], dst: &mut [u8], width: usize, taps: &[Taps<i32>]) {
    // Each byte of two pixels to a lane of its own; -1 is 0.
    let lanes = |pixel: i8| {
        let [r, g, b, u, v, w] = std::array::from_fn(|i| i32::from(3 * pixel + i as i8) | !0xff);
        _mm256_setr_epi32(r, g, b, -1, u, v, w, -1)
    };
    let (first_two, last_two) = (lanes(0), lanes(2));
    let mut weights: Vec<[[i32; 8]; 2]> = Vec::new();
    let mut spans = Vec::with_capacity(taps.len());
    for taps in taps {
        let fours = taps.weights.chunks(4).map(|four| {
            let w = |i: usize| four.get(i).copied().unwrap_or(0);
            [[w(0), w(0), w(0), 0, w(1), w(1), w(1), 0], [w(2), w(2), w(2), 0, w(3), w(3), w(3), 0]]
        });
        spans.push((3 * taps.first, fours.len()));
        weights.extend(fours);
    }
    // Behind the last pixel are bytes that weigh nothing.
    let mut row = vec![0; 3 * width + 16];
    for (line, out) in src.chunks_exact(3 * width).zip(dst.chunks_exact_mut(3 * taps.len())) {
        row[..3 * width].copy_from_slice(line);
        let mut rest = weights.as_slice();
        for (out, (first, fours)) in out.as_chunks_mut::<3>().0.iter_mut().zip(&spans) {
            let (fours, others) = rest.split_at(*fours);
            rest = others;
            let mut pixels = &row[*first..];
            let mut sums = _mm256_setzero_si256();
            for [a, b] in fours {
                let bytes = _mm256_broadcastsi128_si256(load_bytes(pixels));
                sums = _mm256_add_epi32(sums, _mm256_mullo_epi32(_mm256_shuffle_epi8(bytes, first_two), load(a)));
                sums = _mm256_add_epi32(sums, _mm256_mullo_epi32(_mm256_shuffle_epi8(bytes, last_two), load(b)));
                pixels = &pixels[12..];
            }
            let sum = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
            let levels = _mm_srai_epi32::<SHIFT>(_mm_add_epi32(sum, _mm_set1_epi32(ROUND)));
            let words = _mm_packs_epi32(levels, levels);
            let [r, g, b, _] = _mm_cvtsi128_si32(_mm_packus_epi16(words, words)).to_le_bytes();
            *out = [r, g, b];
        }
    }
}

/// Sixteen bytes of a row at a time.
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
            // Packing takes turns between the halves.
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

/// The first sixteen bytes, of at least as many.
#[target_feature(enable = "avx2")]
fn load_bytes(bytes: &[u8]) -> __m128i {
    let sixteen = &bytes[..16];
    // SAFETY: they are there, and need no alignment.
    unsafe { _mm_loadu_si128(sixteen.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
fn load(values: &[i32; 8]) -> __m256i {
    // SAFETY: 256 bits are 256 bits, and need no alignment.
    unsafe { _mm256_loadu_si256(values.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
fn store(to: &mut [u8; 16], bytes: __m128i) {
    // SAFETY: 128 bits are 128 bits, and need no alignment.
    unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), bytes) }
}
