//! Means over windows of a map.

/// Replaces each `kernel`×`kernel` window inside a `[height, width]` map by its mean, `repeats` times over, and returns
/// the largest value. NaN if one value is NaN.
///
/// Panics unless `map.len() == width * height` and at least one value is left.
pub fn largest_mean(map: &[f64], width: usize, height: usize, kernel: usize, repeats: usize) -> f64 {
    assert_eq!(map.len(), width * height, "map of {} values is not {width}x{height}", map.len());
    let less = kernel - 1;
    assert!(less * repeats < width.min(height), "{repeats} windows of {kernel} leave nothing of {width}x{height}");
    let means = (0..repeats).fold(map.to_vec(), |map, repeat| {
        let (width, height) = (width - repeat * less, height - repeat * less);
        along_rows(&along_columns(&map, width, height, kernel), width, kernel)
    });
    means.into_iter().fold(f64::NEG_INFINITY, |a, b| if a.is_nan() || a > b { a } else { b })
}

/// Averages `[height, width]` to `[height - kernel + 1, width]`.
fn along_columns(map: &[f64], width: usize, height: usize, kernel: usize) -> Vec<f64> {
    let mut out = Vec::with_capacity((height - kernel + 1) * width);
    for y in 0..=height - kernel {
        let mut sums = map[y * width..][..width].to_vec();
        for row in map[(y + 1) * width..(y + kernel) * width].chunks_exact(width) {
            sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
        out.extend(sums.iter().map(|sum| sum / kernel as f64));
    }
    out
}

/// Averages `[_, width]` to `[_, width - kernel + 1]`.
fn along_rows(map: &[f64], width: usize, kernel: usize) -> Vec<f64> {
    let mean = |window: &[f64]| window.iter().sum::<f64>() / kernel as f64;
    map.chunks_exact(width).flat_map(|row| row.windows(kernel).map(mean)).collect()
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
    fn the_largest_mean_of_a_map_with_a_nan_is_nan() {
        let mut map = vec![1.; 16];
        map[5] = f64::NAN;
        assert!(largest_mean(&map, 4, 4, 2, 1).is_nan());
    }

    #[test]
    #[should_panic(expected = "8 windows of 8 leave nothing of 56x56")]
    fn windows_that_do_not_fit_panic() {
        largest_mean(&[0.; 56 * 56], 56, 56, 8, 8);
    }
}
