//! Means over windows of a map.

/// Replaces each `kernel`×`kernel` window inside a `[height, width]` map by its mean, `repeats` times over, and returns
/// the largest value. NaN if one value is NaN or an infinity less another.
///
/// Panics unless `map.len() == width * height` and at least one value is left.
pub fn largest_mean(map: &[f64], width: usize, height: usize, kernel: usize, repeats: usize) -> f64 {
    assert_eq!(map.len(), width * height, "map of {} values is not {width}x{height}", map.len());
    let less = kernel - 1;
    assert!(less * repeats < width.min(height), "{repeats} windows of {kernel} leave nothing of {width}x{height}");
    let means = if kernel == 1 {
        map.to_vec()
    } else if map.iter().all(|value| value.is_finite()) {
        // The second one goes along the rows of the transpose, which has lost columns and not rows.
        let means = running_means(map.to_vec(), width, kernel, repeats);
        running_means(means, height - less * repeats, kernel, repeats)
    } else {
        // Running sums cannot leave an infinity behind.
        (0..repeats)
            .fold(map.to_vec(), |map, repeat| means(&map, width - repeat * less, height - repeat * less, kernel))
    };
    means.into_iter().fold(f64::NEG_INFINITY, |a, b| if a.is_nan() || a > b { a } else { b })
}

/// Averages the windows of `kernel` rows of a `[_, width]` map, `repeats` times over, and returns the transpose, `[width, _ -
/// (kernel - 1) repeats]`.
///
/// Each repetition goes down the map with the sums of a window of all columns, which gain the row below the window and lose
/// its first one, and leaves them in the place of that row. The sums are divided once, in the end.
fn running_means(mut map: Vec<f64>, width: usize, kernel: usize, repeats: usize) -> Vec<f64> {
    let mut height = map.len() / width;
    let mut sums = vec![0.; width];
    for _ in 0..repeats {
        sums.fill(0.);
        for row in map.chunks_exact(width).take(kernel) {
            sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
        height -= kernel - 1;
        for y in 0..height {
            let (upper, lower) = map.split_at_mut((y + kernel) * width);
            let first = &mut upper[y * width..][..width];
            if lower.is_empty() {
                first.copy_from_slice(&sums);
                break;
            }
            for ((first, sum), next) in first.iter_mut().zip(&mut sums).zip(lower) {
                let leaving = std::mem::replace(first, *sum);
                *sum += *next - leaving;
            }
        }
        map.truncate(height * width);
    }
    let weight = (kernel as f64).powi(repeats as i32);
    let mut means = vec![0.; map.len()];
    for (y, row) in map.chunks_exact(width).enumerate() {
        for (x, sum) in row.iter().enumerate() {
            means[x * height + y] = sum / weight;
        }
    }
    means
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
