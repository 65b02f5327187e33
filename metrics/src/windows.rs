//! Means over windows of a map, by whose largest several programs score an image.

use std::ops::Range;

use half::f16;

use super::halves;

/// The number of columns that are summed side by side. The rows of a strip of this width stay in the first cache, and a sum for
/// each column in registers.
const STRIP: usize = 16;
/// The number of running maxima, which do not wait for each other.
const LANES: usize = 8;

/// A row of a strip; the columns beyond the map are 0.
type Row = [f64; STRIP];

/// A value of a map.
trait Value: Copy {
    /// Returns the largest distance of a value from 0; not finite if a value is not.
    fn magnitude(map: &[Self]) -> f64;

    /// Returns a finite value.
    fn wide(self) -> f64;
}

impl Value for f64 {
    fn magnitude(map: &[Self]) -> f64 {
        // Numbers without a sign are in the order of their bits, and infinity and NaN come last.
        map.iter().map(|value| value.abs().to_bits()).max().map_or(0., f64::from_bits)
    }

    #[inline(always)]
    fn wide(self) -> f64 {
        self
    }
}

impl Value for f16 {
    fn magnitude(map: &[Self]) -> f64 {
        halves::magnitude(map)
    }

    /// An f32 has the bits of an f16 at its upper end, and an exponent that is larger by 112. Denormal numbers follow from that
    /// too.
    #[inline(always)]
    fn wide(self) -> f64 {
        const EXPONENT: f32 = (1u128 << 112) as f32;
        let bits = u32::from(self.to_bits());
        f64::from(f32::from_bits((bits & 0x8000) << 16 | (bits & 0x7fff) << 13) * EXPONENT)
    }
}

/// Replaces each `kernel`×`kernel` window inside a `[height, width]` map by its mean, `repeats` times over, and returns
/// the largest value. NaN if one value is NaN or an infinity less another.
///
/// Panics unless `map.len() == width * height` and at least one value is left.
pub fn largest_mean(map: &[f64], width: usize, height: usize, kernel: usize, repeats: usize) -> f64 {
    check(map.len(), width, height, kernel, repeats);
    if kernel == 1 || repeats == 0 {
        return largest(map);
    }
    of_finite(map, width, height, kernel, repeats)
        .unwrap_or_else(|| of_any(map.to_vec(), width, height, kernel, repeats))
}

/// Does as [`largest_mean`] for f16.
pub fn largest_mean_of_halves(map: &[f16], width: usize, height: usize, kernel: usize, repeats: usize) -> f64 {
    check(map.len(), width, height, kernel, repeats);
    if kernel == 1 || repeats == 0 {
        return halves::largest(map);
    }
    of_finite(map, width, height, kernel, repeats).unwrap_or_else(|| {
        let map = map.iter().map(|value| value.to_f64()).collect();
        of_any(map, width, height, kernel, repeats)
    })
}

fn check(values: usize, width: usize, height: usize, kernel: usize, repeats: usize) {
    assert_eq!(values, width * height, "map of {values} values is not {width}x{height}");
    let less = kernel - 1;
    assert!(less * repeats < width.min(height), "{repeats} windows of {kernel} leave nothing of {width}x{height}");
}

/// Averages by running sums: first down the columns, then along the rows. `None` if a value is not finite, because running
/// sums cannot leave an infinity behind.
fn of_finite<V: Value>(map: &[V], width: usize, height: usize, kernel: usize, repeats: usize) -> Option<f64> {
    let magnitude = Some(V::magnitude(map)).filter(|magnitude| magnitude.is_finite())?;
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the line above makes sure that the processor has AVX2.
        return Some(unsafe { in_strips_with_avx2(map, width, height, kernel, repeats, magnitude) });
    }
    Some(in_strips(map, width, height, kernel, repeats, magnitude))
}

/// Is [`in_strips`] with four numbers in a register, in place of two; the same numbers are added in the same order.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn in_strips_with_avx2<V: Value>(
    map: &[V],
    width: usize,
    height: usize,
    kernel: usize,
    repeats: usize,
    magnitude: f64,
) -> f64 {
    in_strips(map, width, height, kernel, repeats, magnitude)
}

#[inline(always)]
fn in_strips<V: Value>(map: &[V], width: usize, height: usize, kernel: usize, repeats: usize, magnitude: f64) -> f64 {
    let rows = height - (kernel - 1) * repeats;
    let mut strip: Vec<Row> = Vec::with_capacity(width.max(height));
    // The sums of columns, strip by strip, and the largest of each row in any of them.
    let mut columns: Vec<Row> = Vec::with_capacity(width.div_ceil(STRIP) * rows);
    let mut highest = vec![[f64::NEG_INFINITY; STRIP]; rows];
    for left in (0..width).step_by(STRIP) {
        cut(map, width, left, &mut strip);
        running_sums(&mut strip, kernel, repeats);
        highest.iter_mut().zip(&strip).for_each(|(highest, row)| raise(highest, row));
        columns.extend_from_slice(&strip);
    }
    // No mean along a row is larger than the largest value of the row, so that most rows need no sums or few. Rounding adds to
    // a mean less than a billionth: each of some thousand sums adds 2^-53 of the largest.
    let grown = |repeats: usize| (kernel as f64).powi(repeats as i32);
    let rounding = magnitude * grown(2 * repeats) * 1e-9;
    let bounds = highest.chunks(STRIP).map(|rows| largest(rows.as_flattened()));
    let mut tops: Vec<(f64, usize)> = bounds.zip((0..rows).step_by(STRIP)).collect();
    tops.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut best = f64::NEG_INFINITY;
    for (bound, top) in tops {
        let count = STRIP.min(rows - top);
        if bound * grown(repeats) + rounding < best {
            break;
        }
        turn(&columns, width, rows, top..top + count, &mut strip);
        running_sums(&mut strip, kernel, 1);
        if largest(&highest_of(&strip)) * grown(repeats - 1) + rounding >= best {
            running_sums(&mut strip, kernel, repeats - 1);
            best = largest(&highest_of(&strip)[..count]).max(best);
        }
    }
    best / ((kernel * kernel) as f64).powi(repeats as i32)
}

/// Copies the columns of a `[_, width]` map from `left` on.
#[inline(always)]
fn cut<V: Value>(map: &[V], width: usize, left: usize, strip: &mut Vec<Row>) {
    strip.clear();
    for row in map.chunks_exact(width) {
        let mut wide = [0.; STRIP];
        match row[left..].first_chunk::<STRIP>() {
            Some(row) => wide.iter_mut().zip(row).for_each(|(wide, value)| *wide = value.wide()),
            None => wide.iter_mut().zip(&row[left..]).for_each(|(wide, value)| *wide = value.wide()),
        }
        strip.push(wide);
    }
}

/// Copies some rows, at most [`STRIP`], of columns that lie strip by strip: a row of the strip is a column.
#[inline(always)]
fn turn(columns: &[Row], width: usize, rows: usize, chosen: Range<usize>, strip: &mut Vec<Row>) {
    strip.clear();
    for (left, of_strip) in (0..width).step_by(STRIP).zip(columns.chunks_exact(rows)) {
        let mut turned = [[0.; STRIP]; STRIP];
        for (y, row) in of_strip[chosen.clone()].iter().enumerate() {
            turned.iter_mut().zip(row).for_each(|(turned, sum)| turned[y] = *sum);
        }
        strip.extend_from_slice(&turned[..STRIP.min(width - left)]);
    }
}

/// Sums the windows of `kernel` rows, `repeats` times over; `(kernel - 1) repeats` rows fewer are left.
///
/// Each repetition goes down the strip with the sums of a window of all columns, which gain the row below the window and
/// lose its first one, and leaves them in the place of that row.
#[inline(always)]
fn running_sums(strip: &mut Vec<Row>, kernel: usize, repeats: usize) {
    for _ in 0..repeats {
        let mut sums = [0.; STRIP];
        for row in &strip[..kernel] {
            sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
        let last = strip.len() - kernel;
        for y in 0..last {
            let next = strip[y + kernel];
            let first = std::mem::replace(&mut strip[y], sums);
            for ((sum, next), first) in sums.iter_mut().zip(next).zip(first) {
                *sum += next - first;
            }
        }
        strip[last] = sums;
        strip.truncate(last + 1);
    }
}

/// Returns the largest value of each column.
#[inline(always)]
fn highest_of(strip: &[Row]) -> Row {
    let mut highest = [f64::NEG_INFINITY; STRIP];
    strip.iter().for_each(|row| raise(&mut highest, row));
    highest
}

/// Replaces values by larger ones.
#[inline(always)]
fn raise(highest: &mut Row, row: &Row) {
    for (highest, value) in highest.iter_mut().zip(row) {
        *highest = if value > highest { *value } else { *highest };
    }
}

/// Averages with a sum for each window.
fn of_any(map: Vec<f64>, width: usize, height: usize, kernel: usize, repeats: usize) -> f64 {
    let less = kernel - 1;
    largest(&(0..repeats).fold(map, |map, repeat| means(&map, width - repeat * less, height - repeat * less, kernel)))
}

/// Returns the larger of two values; NaN if one is NaN, which [`f64::max`] drops.
#[inline(always)]
pub fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

/// Returns the largest value; NaN if one is NaN, negative infinity without values.
pub fn largest(values: &[f64]) -> f64 {
    let (lanes, rest) = values.as_chunks::<LANES>();
    let mut largest = [f64::NEG_INFINITY; LANES];
    for lane in lanes {
        largest.iter_mut().zip(lane).for_each(|(largest, value)| *largest = larger(*largest, *value));
    }
    largest.into_iter().chain(rest.iter().copied()).fold(f64::NEG_INFINITY, larger)
}

/// Averages `[height, width]` to `[height - kernel + 1, width - kernel + 1]`, with a sum for each window.
fn means(map: &[f64], width: usize, height: usize, kernel: usize) -> Vec<f64> {
    let (columns, area) = (width - kernel + 1, (kernel * kernel) as f64);
    let mean = |i: usize| {
        let first = i / columns * width + i % columns;
        (0..kernel).map(|y| map[first + y * width..][..kernel].iter().sum::<f64>()).sum::<f64>() / area
    };
    (0..columns * (height - kernel + 1)).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computes the same with every window by itself.
    fn slow(map: &[f64], width: usize, height: usize, kernel: usize, repeats: usize) -> f64 {
        let Some(rest) = repeats.checked_sub(1) else { return map.iter().copied().fold(f64::MIN, f64::max) };
        let (w, h) = (width - kernel + 1, height - kernel + 1);
        let mean = |x: usize, y: usize| {
            let window = (0..kernel * kernel).map(|i| map[(y + i / kernel) * width + x + i % kernel]);
            window.sum::<f64>() / (kernel * kernel) as f64
        };
        let means: Vec<f64> = (0..w * h).map(|i| mean(i % w, i / w)).collect();
        slow(&means, w, h, kernel, rest)
    }

    #[test]
    fn running_sums_equal_windows_one_by_one() {
        let map: Vec<f64> = (0..12 * 9).map(|i| f64::from(i * i % 31)).collect();
        for (kernel, repeats) in [(1, 1), (1, 4), (3, 1), (3, 4), (5, 2), (9, 1)] {
            let (fast, slow) = (largest_mean(&map, 12, 9, kernel, repeats), slow(&map, 12, 9, kernel, repeats));
            // Running sums of 108 numbers up to 30 in f64: 2⁻⁵³ · 108 · 30 = 4e-13.
            assert!((fast - slow).abs() < 1e-12, "{kernel} {repeats}: {fast} {slow}");
        }
    }

    #[test]
    fn halves_have_the_means_of_their_values() {
        let halves: Vec<f16> = (0..40 * 37).map(|i: u32| f16::from_f32((i * i % 3001) as f32 / 1e3 - 1.5)).collect();
        let odd = [f16::from_bits(1), f16::NEG_ZERO, f16::MIN, f16::from_bits(0x83ff), f16::MIN_POSITIVE];
        let halves: Vec<f16> = odd.into_iter().chain(halves).take(40 * 37).collect();
        let map: Vec<f64> = halves.iter().map(|value| value.to_f64()).collect();
        for (kernel, repeats) in [(1, 1), (3, 4), (8, 5), (16, 1)] {
            let expected = largest_mean(&map, 40, 37, kernel, repeats);
            assert_eq!(largest_mean_of_halves(&halves, 40, 37, kernel, repeats), expected, "{kernel} {repeats}");
        }
        assert!(odd.into_iter().chain(halves).all(|value| value.wide() == value.to_f64()));
        assert_eq!(largest_mean_of_halves(&[f16::INFINITY; 16], 4, 4, 2, 1), f64::INFINITY);
        assert!(largest_mean_of_halves(&[f16::NAN; 16], 4, 4, 1, 1).is_nan());
    }

    #[test]
    fn the_largest_value_is_nan_wherever_one_is() {
        for at in 0..LANES + 1 {
            let mut values = [1.; LANES + 1];
            values[at] = f64::NAN;
            assert!(largest(&values).is_nan(), "{at}");
        }
        assert_eq!((largest(&[-2., -1.]), largest(&[])), (-1., f64::NEG_INFINITY));
        assert!(larger(f64::NAN, 1.).is_nan() && larger(1., f64::NAN).is_nan());
    }

    #[test]
    fn the_largest_mean_of_a_map_with_a_nan_is_nan() {
        let mut map = vec![1.; 16];
        map[5] = f64::NAN;
        assert!(largest_mean(&map, 4, 4, 2, 1).is_nan());
    }

    #[test]
    fn the_largest_mean_of_a_map_with_an_infinity_is_infinite() {
        let mut map = vec![1.; 36];
        map[7] = f64::INFINITY;
        assert_eq!(largest_mean(&map, 6, 6, 2, 2), f64::INFINITY);
        map[7] = f64::NEG_INFINITY;
        assert_eq!(largest_mean(&map, 6, 6, 2, 1), 1.);
    }

    #[test]
    #[should_panic(expected = "8 windows of 8 leave nothing of 56x56")]
    fn windows_that_do_not_fit_panic() {
        largest_mean(&[0.; 56 * 56], 56, 56, 8, 8);
    }
}
