//! The sums of both passes with instructions for eight of them. Beside decoding, resampling is what reading photographs costs, and
//! the profile that builds this crate leaves plain loops as they are written.

use super::{PRECISION_BITS, ROUND, Taps, clip8};
use std::arch::x86_64::*;

const SHIFT: i32 = PRECISION_BITS as i32;
/// Rows that are summed side by side, and bytes of a register.
const LANES: usize = 16;

/// Sixteen rows at a time: they are turned into columns, of which one is a register, summed, and turned back.
#[target_feature(enable = "avx2")]
pub(super) fn horizontal<const C: usize>(src: &[u8], dst: &mut [u8], width: usize, taps: &[Taps<i32>]) {
    let (stride, out_stride) = (width * C, taps.len() * C);
    let mut columns = vec![[0; LANES]; stride.next_multiple_of(LANES)];
    let mut out_columns = vec![[0; LANES]; out_stride.next_multiple_of(LANES)];
    for (rows, out) in src.chunks(LANES * stride).zip(dst.chunks_mut(LANES * out_stride)) {
        for (at, columns) in (0..stride).step_by(LANES).zip(columns.as_chunks_mut::<LANES>().0) {
            let is_whole = rows.len() == LANES * stride && at + LANES <= stride;
            *columns =
                if is_whole { transposed(&rows[at..], stride) } else { transposed(&block(rows, stride, at), LANES) };
        }
        for (outs, Taps { first, weights }) in out_columns.chunks_exact_mut(C).zip(taps) {
            for (channel, out) in outs.iter_mut().enumerate() {
                let (mut low, mut high) = (_mm256_set1_epi32(ROUND), _mm256_set1_epi32(ROUND));
                let mut at = first * C + channel;
                for weight in weights {
                    add(&mut low, &mut high, load(&columns[at]), *weight);
                    at += C;
                }
                *out = packed(low, high);
            }
        }
        for (at, columns) in (0..out_stride).step_by(LANES).zip(out_columns.as_chunks::<LANES>().0) {
            let width = LANES.min(out_stride - at);
            let mut to = at;
            for line in transposed(columns.as_flattened(), LANES) {
                // The last rows may be fewer.
                let Some(row) = out.get_mut(to..to + width) else { break };
                match row.as_mut_array() {
                    Some(row) => *row = line,
                    None => row.copy_from_slice(&line[..width]),
                }
                to += out_stride;
            }
        }
    }
}

/// Sixteen bytes of a row at a time.
#[target_feature(enable = "avx2")]
pub(super) fn vertical(src: &[u8], dst: &mut [u8], stride: usize, taps: &[Taps<i32>]) {
    for (out, Taps { first, weights }) in dst.chunks_exact_mut(stride).zip(taps) {
        let mut rows = &src[first * stride..];
        let (blocks, last) = out.as_chunks_mut::<LANES>();
        for block in blocks {
            let (mut low, mut high) = (_mm256_set1_epi32(ROUND), _mm256_set1_epi32(ROUND));
            let mut at = 0;
            for weight in weights {
                let bytes = rows[at..].first_chunk().unwrap_or(&[0; LANES]);
                add(&mut low, &mut high, load(bytes), *weight);
                at += stride;
            }
            *block = packed(low, high);
            rows = &rows[LANES..];
        }
        for (x, out) in last.iter_mut().enumerate() {
            let values = rows[x..].iter().step_by(stride).zip(weights);
            *out = clip8(ROUND + values.map(|(value, weight)| i32::from(*value) * weight).sum::<i32>());
        }
    }
}

/// Sixteen columns of up to sixteen rows; zeros where there are none.
fn block(rows: &[u8], stride: usize, at: usize) -> [u8; LANES * LANES] {
    let mut block = [0; LANES * LANES];
    let width = LANES.min(stride - at);
    for (line, row) in block.chunks_exact_mut(LANES).zip(rows.chunks_exact(stride)) {
        line[..width].copy_from_slice(&row[at..][..width]);
    }
    block
}

/// Adds sixteen bytes, each as often as the weight says, to sums of which the first eight are `low`.
#[inline]
#[target_feature(enable = "avx2")]
fn add(low: &mut __m256i, high: &mut __m256i, bytes: __m128i, weight: i32) {
    let weight = _mm256_set1_epi32(weight);
    let upper = _mm_unpackhi_epi64(bytes, bytes);
    *low = _mm256_add_epi32(*low, _mm256_mullo_epi32(_mm256_cvtepu8_epi32(bytes), weight));
    *high = _mm256_add_epi32(*high, _mm256_mullo_epi32(_mm256_cvtepu8_epi32(upper), weight));
}

/// [`clip8`] of sixteen sums.
#[inline]
#[target_feature(enable = "avx2")]
fn packed(low: __m256i, high: __m256i) -> [u8; LANES] {
    // Packing takes turns between the halves.
    let words = _mm256_packs_epi32(_mm256_srai_epi32::<SHIFT>(low), _mm256_srai_epi32::<SHIFT>(high));
    let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
    store(_mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words)))
}

/// Of sixteen rows, each `stride` bytes after the one before it, the first sixteen columns.
#[inline]
#[target_feature(enable = "avx2")]
fn transposed(rows: &[u8], stride: usize) -> [[u8; LANES]; LANES] {
    let mut lines = [_mm_setzero_si128(); LANES];
    for (line, row) in lines.iter_mut().zip(rows.chunks(stride)) {
        *line = load(row.first_chunk().unwrap_or(&[0; LANES]));
    }
    // each time a quarter of it: rows `i` and `i + 8` byte by byte in turns
    for _ in 0..4 {
        let before = lines;
        for i in 0..LANES / 2 {
            lines[2 * i] = _mm_unpacklo_epi8(before[i], before[i + LANES / 2]);
            lines[2 * i + 1] = _mm_unpackhi_epi8(before[i], before[i + LANES / 2]);
        }
    }
    let mut columns = [[0; LANES]; LANES];
    for (column, line) in columns.iter_mut().zip(lines) {
        *column = store(line);
    }
    columns
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(bytes: &[u8; LANES]) -> __m128i {
    // SAFETY: 128 bits are 128 bits, and need no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(bytes: __m128i) -> [u8; LANES] {
    let mut stored = [0; LANES];
    // SAFETY: as above.
    unsafe { _mm_storeu_si128(stored.as_mut_ptr().cast(), bytes) };
    stored
}
