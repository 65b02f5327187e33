//! Anomaly maps as pictures: matplotlib's `inferno`, which is perceptually uniform and reads in grey print, blended
//! over an image, and mask outlines.

use image::{GrayImage, Rgb, RgbImage};

/// Every 17th of the 256 colours of `inferno` (van der Walt and Smith, CC0).
const ANCHORS: [[u8; 3]; 16] = [
    [0, 0, 4],
    [12, 8, 38],
    [36, 12, 79],
    [66, 10, 104],
    [93, 18, 110],
    [120, 28, 109],
    [147, 38, 103],
    [174, 48, 92],
    [199, 62, 76],
    [221, 81, 58],
    [237, 105, 37],
    [248, 133, 15],
    [252, 165, 10],
    [250, 198, 45],
    [242, 230, 97],
    [252, 255, 164],
];

/// The colours, interpolated between the anchors: at most 6 of 255 levels off the published table, 0.7 on average.
const INFERNO: [[u8; 3]; 256] = {
    let mut table = [[0; 3]; 256];
    let mut i = 0;
    while i < 256 {
        let (left, step) = (i / 17, i % 17);
        let right = if left < 15 { left + 1 } else { left };
        let mut channel = 0;
        while channel < 3 {
            let mixed = ANCHORS[left][channel] as usize * (17 - step) + ANCHORS[right][channel] as usize * step;
            table[i][channel] = ((mixed + 8) / 17) as u8;
            channel += 1;
        }
        i += 1;
    }
    table
};

/// Returns the colour of `value` on a scale from `lo` (nearly black) to `hi` (pale yellow), `lo < hi`. Values outside
/// take the colour of the nearer end, and NaN that of `lo`.
pub fn inferno(value: f32, lo: f32, hi: f32) -> Rgb<u8> {
    let position = ((value - lo) / (hi - lo)).clamp(0.0, 1.0);
    Rgb(INFERNO[usize::from((position * 255.0).round() as u8)])
}

/// Draws a row-major `[height, width]` map in colours from `lo` to `hi`. Panics unless it has `width * height` values.
pub fn heatmap(map: &[f32], width: u32, height: u32, lo: f32, hi: f32) -> RgbImage {
    let mut out = RgbImage::new(width, height);
    assert_eq!(map.len(), out.pixels().len(), "map of {} values is not {width}x{height}", map.len());
    for (out, value) in out.pixels_mut().zip(map) {
        *out = inferno(*value, lo, hi);
    }
    out
}

/// Draws the one-pixel inner contour of `mask` (above 0 is inside) over `base` in `colour`: inside pixels with one of
/// their four neighbours outside or beyond the border. Panics unless both have one size.
pub fn outline(base: &RgbImage, mask: &GrayImage, colour: Rgb<u8>) -> RgbImage {
    assert_eq!(base.dimensions(), mask.dimensions(), "mask and image differ in size");
    let inside = |x: u32, y: u32| mask.get_pixel_checked(x, y).is_some_and(|pixel| pixel.0[0] > 0);
    let mut out = base.clone();
    for (x, y, pixel) in out.enumerate_pixels_mut() {
        // The column left of 0 is u32::MAX, which is outside like every other place beyond the border.
        let neighbours = [(x.wrapping_sub(1), y), (x + 1, y), (x, y.wrapping_sub(1)), (x, y + 1)];
        if inside(x, y) && !neighbours.into_iter().all(|(x, y)| inside(x, y)) {
            *pixel = colour;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inferno_is_close_to_the_published_table() {
        let published =
            [(0, [0, 0, 4]), (8, [4, 3, 18]), (40, [47, 10, 91]), (100, [144, 37, 104]), (200, [251, 157, 7])];
        for (index, colour) in published.into_iter().chain([(250, [245, 249, 146]), (255, [252, 255, 164])]) {
            let Rgb(ours) = inferno(index as f32, 0.0, 255.0);
            assert!(ours.into_iter().zip(colour).all(|(a, b)| a.abs_diff(b) <= 6), "{index}: {ours:?} {colour:?}");
        }
    }

    #[test]
    fn colours_grow_brighter_and_saturate() {
        let luma = |Rgb([r, g, b]): Rgb<u8>| 2126 * u32::from(r) + 7152 * u32::from(g) + 722 * u32::from(b);
        let values: Vec<u32> = (0..256).step_by(3).map(|i| luma(inferno(i as f32, 0.0, 255.0))).collect();
        assert!(values.is_sorted_by(|a, b| a < b), "{values:?}");
        assert_eq!(inferno(-1.0, 0.0, 2.0), inferno(0.0, 0.0, 2.0));
        assert_eq!(inferno(9.0, 0.0, 2.0), inferno(2.0, 0.0, 2.0));
        assert_eq!(inferno(f32::NAN, 0.0, 2.0), inferno(0.0, 0.0, 2.0));
    }

    #[test]
    fn outline_is_the_inner_contour() {
        let red = Rgb([255, 0, 0]);
        let mask = GrayImage::from_fn(5, 4, |x, y| image::Luma([if x < 3 && y < 3 { 255 } else { 0 }]));
        let drawn = outline(&RgbImage::new(5, 4), &mask, red);
        let rows: Vec<String> =
            drawn.rows().map(|row| row.map(|pixel| if *pixel == red { '#' } else { '.' }).collect()).collect();
        assert_eq!(rows, ["###..", "#.#..", "###..", "....."]);
    }
}
