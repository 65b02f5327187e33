//! Means over windows of a map, by whose largest several programs score an image.

/// The side of the squares in which a map is transposed, so that what is read and written of one stays in the first cache.
const SQUARE: usize = 16;
/// The number of running maxima, which do not wait for each other.
const LANES: usize = 8;

/// Replaces each `kernel`×`kernel` window inside a `[height, width]` map by its mean, `repeats` times over, and returns
/// the largest value. NaN if one value is NaN or an infinity less another.
///
/// Panics unless `map.len() == width * height` and at least one value is left.
pub fn largest_mean(map: &[f64], width: usize, height: usize, kernel: usize, repeats: usize) -> f64 {
    assert_eq!(map.len(), width * height, "map of {} values is not {width}x{height}", map.len());
    let less = kernel - 1;
    assert!(less * repeats < width.min(height), "{repeats} windows of {kernel} leave nothing of {width}x{height}");
    if kernel == 1 {
        largest(map)
    } else if map.iter().all(|value| value.is_finite()) {
        // The second sums go along the rows of the transpose, which has lost columns and not rows.
        let sums = running_sums(map.to_vec(), width, kernel, repeats);
        let sums = running_sums(transposed(&sums, width), height - less * repeats, kernel, repeats);
        largest(&sums) / ((kernel * kernel) as f64).powi(repeats as i32)
    } else {
        // Running sums cannot leave an infinity behind.
        let means = (0..repeats)
            .fold(map.to_vec(), |map, repeat| means(&map, width - repeat * less, height - repeat * less, kernel));
        largest(&means)
    }
}

/// Sums the windows of `kernel` rows of a `[_, width]` map, `repeats` times over; `(kernel - 1) repeats` rows fewer are left.
///
/// Each repetition goes down the map with the sums of a window of all columns, which gain the row below the window and lose
/// its first one, and leaves them in the place of that row.
fn running_sums(mut map: Vec<f64>, width: usize, kernel: usize, repeats: usize) -> Vec<f64> {
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
    map
}

/// Transposes a `[_, width]` map, square by square.
fn transposed(map: &[f64], width: usize) -> Vec<f64> {
    let height = map.len() / width;
    let mut columns = vec![0.; map.len()];
    for top in (0..height).step_by(SQUARE) {
        for left in (0..width).step_by(SQUARE) {
            for x in left..width.min(left + SQUARE) {
                for y in top..height.min(top + SQUARE) {
                    columns[x * height + y] = map[y * width + x];
                }
            }
        }
    }
    columns
}

/// Returns the largest value; NaN if one is NaN, negative infinity without values.
fn largest(values: &[f64]) -> f64 {
    let larger = |a: f64, b: f64| if a.is_nan() || a > b { a } else { b };
    let (lanes, rest) = values.as_chunks::<LANES>();
    let mut largest = [f64::NEG_INFINITY; LANES];
    for lane in lanes {
        largest.iter_mut().zip(lane).for_each(|(largest, value)| *largest = larger(*largest, *value));
    }
    largest.iter().chain(rest).fold(f64::NEG_INFINITY, |a, b| larger(a, *b))
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
