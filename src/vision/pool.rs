//! Means over windows of a map.

/// Replaces each `kernel`×`kernel` window inside a `[height, width]` map by its mean, `repeats` times over, and returns
/// the largest value. NaN if one value is NaN or an infinity less another.
///
/// Panics unless `map.len() == width * height` and at least one value is left.
pub fn largest_mean(map: &[f64], width: usize, height: usize, kernel: usize, repeats: usize) -> f64 {
    assert_eq!(map.len(), width * height, "map of {} values is not {width}x{height}", map.len());
    let less = kernel - 1;
    assert!(less * repeats < width.min(height), "{repeats} windows of {kernel} leave nothing of {width}x{height}");
    // Running sums cannot leave an infinity behind.
    let means = if map.iter().all(|value| value.is_finite()) { running_means } else { means };
    let repeats = if kernel == 1 { 0 } else { repeats };
    let averaged = (0..repeats)
        .fold(map.to_vec(), |map, repeat| means(&map, width - repeat * less, height - repeat * less, kernel));
    averaged.into_iter().fold(f64::NEG_INFINITY, |a, b| if a.is_nan() || a > b { a } else { b })
}

/// Averages `[height, width]` to `[height - kernel + 1, width - kernel + 1]` by sums of columns, each of which is that of
/// the row before but for two values, and sums of these in the same way.
fn running_means(map: &[f64], width: usize, height: usize, kernel: usize) -> Vec<f64> {
    let area = (kernel * kernel) as f64;
    let mut means = Vec::with_capacity((height - kernel + 1) * (width - kernel + 1));
    let mut columns = vec![0.; width];
    let add = |columns: &mut [f64], row: &[f64]| columns.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
    map[..(kernel - 1) * width].chunks_exact(width).for_each(|row| add(&mut columns, row));
    for y in 0..=height - kernel {
        add(&mut columns, &map[(y + kernel - 1) * width..][..width]);
        let mut sum: f64 = columns[..kernel].iter().sum();
        means.push(sum / area);
        means.extend(columns.iter().zip(&columns[kernel..]).map(|(leaves, enters)| {
            sum += enters - leaves;
            sum / area
        }));
        columns.iter_mut().zip(&map[y * width..]).for_each(|(sum, value)| *sum -= value);
    }
    means
}

/// Does as [`running_means`], with a sum for each window.
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
