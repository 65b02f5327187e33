//! Resampling that equals Pillow's `Image.resize` bit for bit, because published checkpoints were trained on pixels
//! from it.
//!
//! Pillow widens the filter on reduction (antialiasing), rounds its weights to 22-bit fixed point and stores 8 bits
//! between the horizontal and the vertical pass. Faster resamplers round the weights to 16 bits and differ by one
//! level.

#[cfg(target_arch = "x86_64")]
mod avx2;

use std::f64::consts::PI;

use image::{GrayImage, RgbImage, imageops};

/// The fraction bits of a weight: 32 less 8 for the pixel and 2 for the overshoot of negative lobes.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// Interpolation kernels, under their Pillow names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Filter {
    /// Mean of the pixels below an output pixel.
    Box,
    /// Triangle of support 1.
    Bilinear,
    /// Keys' cubic of support 2 with a = -0.5.
    Bicubic,
    /// Sinc of support 3, windowed by a wider sinc.
    Lanczos,
    /// The pixel below the middle of an output pixel, for any reduction.
    Nearest,
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Filter::Box | Filter::Nearest => 0.5,
            Filter::Bilinear => 1.0,
            Filter::Bicubic => 2.0,
            Filter::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
        match (self, x.abs()) {
            (Filter::Box, _) if x > -0.5 && x <= 0.5 => 1.0,
            (Filter::Bilinear, x) if x < 1.0 => 1.0 - x,
            (Filter::Bicubic, x) if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            (Filter::Bicubic, x) if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            (Filter::Lanczos, _) if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            _ => 0.0, // `Nearest` needs no weights
        }
    }
}

/// Resizes to `width` x `height` pixels, aspect ratio ignored, as Pillow's `image.resize((width, height), filter)`.
pub fn rgb(image: &RgbImage, width: u32, height: u32, filter: Filter) -> RgbImage {
    let mut out = RgbImage::new(width, height);
    resample::<3>(image, image.dimensions(), &mut out, (width, height), filter);
    out
}

/// Does as [`rgb`], for grey levels.
pub fn grey(image: &GrayImage, width: u32, height: u32, filter: Filter) -> GrayImage {
    let mut out = GrayImage::new(width, height);
    resample::<1>(image, image.dimensions(), &mut out, (width, height), filter);
    out
}

/// Resizes a 0/255 mask to `width` x `height` and keeps it binary: bilinear with antialiasing, then [`majority`].
pub fn mask(mask: &GrayImage, width: u32, height: u32) -> GrayImage {
    majority(grey(mask, width, height, Filter::Bilinear))
}

/// Returns 255 where a resized 0/255 mask has at least 128, else 0. These are the pixels of whose footprint more than
/// half is anomalous (ADer's rule, `resized / 255 > 0.5`).
pub fn majority(mut mask: GrayImage) -> GrayImage {
    mask.iter_mut().for_each(|value| *value = if *value >= 128 { 255 } else { 0 });
    mask
}

/// Resizes so that the shorter side has `edge` pixels and the longer one keeps the aspect ratio, rounded down
/// (transformers' `shortest_edge`, torchvision's `Resize(edge)`).
pub fn shortest_edge(image: &RgbImage, edge: u32, filter: Filter) -> RgbImage {
    let (width, height) = with_shorter_side(image.dimensions(), edge);
    rgb(image, width, height, filter)
}

/// Returns a size (width, height) whose shorter side is `edge` and whose longer one keeps the aspect ratio, rounded down.
pub fn with_shorter_side((width, height): (u32, u32), edge: u32) -> (u32, u32) {
    let other = |longer: u32| {
        let other = u64::from(edge) * u64::from(longer) / u64::from(width.min(height).max(1));
        u32::try_from(other).unwrap_or(u32::MAX)
    };
    if width <= height { (edge, other(height)) } else { (other(width), edge) }
}

/// Returns the middle `width` x `height` pixels of an image that is at least as large. If the rest is odd, the right or
/// bottom loses one pixel more (transformers' `center_crop`).
pub fn center_crop(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    let (x, y) = ((image.width() - width) / 2, (image.height() - height) / 2);
    imageops::crop_imm(image, x, y, width, height).to_image()
}

/// Resizes a map of `from` = (width, height) floats as Pillow does in its mode `F`: the same filters, f32 between the
/// passes.
pub fn float(map: &[f32], from: (u32, u32), to: (u32, u32), filter: Filter) -> Vec<f32> {
    let (horizontal, vertical) = (taps(from.0, to.0, filter), taps(from.1, to.1, filter));
    let weigh = |values: &[f32], stride: usize, taps: &Taps<f64>| {
        let values = values.iter().step_by(stride).zip(&taps.weights);
        values.map(|(value, weight)| f64::from(*value) * weight).sum::<f64>() as f32
    };
    let fit_width = |map: &[f32]| -> Vec<f32> {
        let rows = map.chunks_exact(from.0 as usize);
        rows.flat_map(|row| horizontal.iter().map(|taps| weigh(&row[taps.first..], 1, taps))).collect()
    };
    let fit_height = |map: &[f32], width: usize| -> Vec<f32> {
        let row = |taps: &Taps<f64>| {
            (0..width).map(|x| weigh(&map[taps.first * width + x..], width, taps)).collect::<Vec<_>>()
        };
        vertical.iter().flat_map(row).collect()
    };
    if map.is_empty() {
        return Vec::new();
    }
    if is_height_first(from, to) {
        fit_width(&fit_height(map, from.0 as usize))
    } else {
        fit_height(&fit_width(map), to.0 as usize)
    }
}

/// Returns true if the vertical pass comes first. Pillow runs the horizontal pass first, but since release 13 the
/// vertical one if the height loses more than twice as many pixels as the width. The order changes the rounding between
/// the passes.
fn is_height_first(from: (u32, u32), to: (u32, u32)) -> bool {
    let lost = |from: u32, to: u32| i64::from(from) - i64::from(to);
    lost(from.1, to.1) > 0.max(2 * lost(from.0, to.0))
}

/// Resizes interleaved `[H, W, C]` bytes in two passes. A pass along an axis that keeps its size is a copy.
fn resample<const C: usize>(src: &[u8], from: (u32, u32), dst: &mut [u8], to: (u32, u32), filter: Filter) {
    let (src_width, src_height) = (from.0 as usize, from.1 as usize);
    let (dst_width, dst_height) = (to.0 as usize, to.1 as usize);
    if src.is_empty() || dst.is_empty() {
        return;
    }
    let fit_width = |src: &[u8], dst: &mut [u8]| {
        if src_width == dst_width {
            dst.copy_from_slice(src);
        } else {
            horizontal::<C>(src, dst, src_width, &fixed_taps(from.0, to.0, filter));
        }
    };
    let fit_height = |src: &[u8], dst: &mut [u8], width: usize| {
        if src_height == dst_height {
            dst.copy_from_slice(src);
        } else {
            vertical(src, dst, width * C, &fixed_taps(from.1, to.1, filter));
        }
    };
    if is_height_first(from, to) {
        let mut between = vec![0; src_width * dst_height * C];
        fit_height(src, &mut between, src_width);
        fit_width(&between, dst);
    } else {
        let mut between = vec![0; dst_width * src_height * C];
        fit_width(src, &mut between);
        fit_height(&between, dst, dst_width);
    }
}

fn horizontal<const C: usize>(src: &[u8], dst: &mut [u8], width: usize, taps: &[Taps<i32>]) {
    #[cfg(target_arch = "x86_64")]
    if C == 3 && is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { avx2::horizontal_rgb(src, dst, width, taps) };
    }
    let blank = vec![0; width * C];
    for (row, out) in src.chunks_exact(width * C).zip(dst.chunks_exact_mut(taps.len() * C)) {
        // Most rows of most masks are blank.
        if row == blank {
            out.fill(0);
            continue;
        }
        let (pixels, _) = row.as_chunks::<C>();
        let (out, _) = out.as_chunks_mut::<C>();
        for (out, Taps { first, weights }) in out.iter_mut().zip(taps) {
            let mut sum = [ROUND; C];
            for (pixel, weight) in pixels[*first..].iter().zip(weights) {
                for (sum, value) in sum.iter_mut().zip(pixel) {
                    *sum += i32::from(*value) * weight;
                }
            }
            *out = sum.map(clip8);
        }
    }
}

fn vertical(src: &[u8], dst: &mut [u8], stride: usize, taps: &[Taps<i32>]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { avx2::vertical(src, dst, stride, taps) };
    }
    let mut sums = vec![ROUND; stride];
    for (out, Taps { first, weights }) in dst.chunks_exact_mut(stride).zip(taps) {
        sums.fill(ROUND);
        for (row, weight) in src[first * stride..].chunks_exact(stride).zip(weights) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += i32::from(*value) * weight;
            }
        }
        for (out, sum) in out.iter_mut().zip(&sums) {
            *out = clip8(*sum);
        }
    }
}

/// The source pixels `first..first + weights.len()` that make one output pixel.
pub struct Taps<W> {
    /// The first source pixel.
    pub first: usize,
    /// The weights of it and of those after it.
    pub weights: Vec<W>,
}

/// Computes Pillow's `precompute_coeffs`, operation by operation, for a side of `src` pixels that becomes one of `dst`;
/// the weights of a pixel sum to 1.
pub fn taps(src: u32, dst: u32, filter: Filter) -> Vec<Taps<f64>> {
    let scale = f64::from(src) / f64::from(dst);
    if filter == Filter::Nearest {
        // centres are summed step by step, as in Pillow's affine transform
        let centers = std::iter::successors(Some(scale * 0.5), |center| Some(center + scale));
        return centers.take(dst as usize).map(|center| Taps { first: center as usize, weights: vec![1.0] }).collect();
    }
    let filter_scale = scale.max(1.0);
    let support = filter.support() * filter_scale;
    let inverse = 1.0 / filter_scale;
    (0..dst)
        .map(|x| {
            let center = (f64::from(x) + 0.5) * scale;
            let first = (center - support + 0.5).max(0.0) as usize;
            let last = ((center + support + 0.5) as usize).min(src as usize);
            let weights: Vec<f64> = (first..last).map(|i| filter.weight((i as f64 - center + 0.5) * inverse)).collect();
            let sum: f64 = weights.iter().sum();
            Taps { first, weights: weights.into_iter().map(|weight| weight / sum).collect() }
        })
        .collect()
}

/// Computes Pillow's `normalize_coeffs_8bpc`: the weights sum to 2^22 up to rounding.
fn fixed_taps(src: u32, dst: u32, filter: Filter) -> Vec<Taps<i32>> {
    let fixed = |weight: &f64| (weight * f64::from(1 << PRECISION_BITS) + 0.5f64.copysign(*weight)) as i32;
    let taps = taps(src, dst, filter).into_iter();
    taps.map(|Taps { first, weights }| Taps { first, weights: weights.iter().map(fixed).collect() }).collect()
}

/// Half a level, at which a sum starts so that the shift in [`clip8`] rounds.
const ROUND: i32 = 1 << (PRECISION_BITS - 1);

fn clip8(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resized_row_equals_pillows() {
        let row = [0, 255, 40, 90, 200, 7, 133];
        let row = RgbImage::from_fn(7, 1, |x, _| image::Rgb([row[x as usize]; 3]));
        let resized = |width, filter| -> Vec<u8> { rgb(&row, width, 1, filter).pixels().map(|p| p.0[0]).collect() };
        assert_eq!(resized(4, Filter::Bilinear), [111, 97, 131, 82]);
        assert_eq!(resized(4, Filter::Bicubic), [115, 99, 130, 79]);
        assert_eq!(resized(10, Filter::Bilinear), [0, 140, 201, 51, 73, 128, 190, 55, 64, 133]);
        assert_eq!(resized(10, Filter::Bicubic), [0, 150, 228, 45, 58, 136, 197, 40, 53, 141]);
    }

    #[test]
    fn pass_order_follows_the_heavier_reduction() {
        let noise = |x: u32, y: u32| {
            (x.wrapping_mul(2_654_435_761).wrapping_add(y.wrapping_mul(0x9e37_79b1)).wrapping_mul(x ^ 77) >> 16) as u8
        };
        let image = RgbImage::from_fn(40, 50, |x, y| image::Rgb([noise(x, y), noise(y, x), noise(x + y, x)]));
        let stepwise = |first: (u32, u32), to: (u32, u32)| {
            rgb(&rgb(&image, first.0, first.1, Filter::Bilinear), to.0, to.1, Filter::Bilinear)
        };
        // The height loses 20 pixels: twice the width's 10 is not more, twice the width's 9 is.
        for (to, first) in [((30, 30), (30, 50)), ((31, 30), (40, 30)), ((60, 49), (40, 49)), ((60, 70), (60, 50))] {
            assert!(rgb(&image, to.0, to.1, Filter::Bilinear) == stepwise(first, to), "{to:?}");
        }
        assert!(stepwise((40, 30), (30, 30)) != stepwise((30, 50), (30, 30)), "the order does not show in this image");
    }

    #[test]
    fn a_resized_mask_follows_the_majority() {
        let column = GrayImage::from_fn(8, 4, |x, _| image::Luma([if x < 5 { 255 } else { 0 }]));
        assert_eq!(
            mask(&column, 4, 4).rows().next().map(|row| row.map(|p| p.0[0]).collect()),
            Some(vec![255, 255, 255, 0])
        );
        assert_eq!(mask(&column, 8, 4), column);
    }

    #[test]
    fn avx2_gives_the_same_pixels_as_plain_loops() {
        let noise =
            |x: u32, y: u32| (x.wrapping_mul(2_654_435_761).wrapping_add(y.wrapping_mul(0x9e37_79b1)) >> 13) as u8;
        let channel = |c: u32| move |x, y| image::Luma([noise(x + 1000 * c, y)]);
        for ((from, to), filter) in [(41, 13), (9, 31), (3, 1), (1, 5), (64, 16), (50, 49)]
            .into_iter()
            .flat_map(|sizes| [Filter::Bilinear, Filter::Bicubic, Filter::Lanczos].map(|filter| (sizes, filter)))
        {
            let image = RgbImage::from_fn(from, 3, |x, y| image::Rgb([0, 1, 2].map(|c| noise(x + 1000 * c, y))));
            let wide = rgb(&image, to, 3, filter);
            for c in 0..3 {
                let alone = grey(&GrayImage::from_fn(from, 3, channel(c)), to, 3, filter);
                assert!(
                    wide.pixels().zip(alone.pixels()).all(|(a, b)| a.0[c as usize] == b.0[0]),
                    "{from} {to} {filter:?}"
                );
            }
        }
    }

    #[test]
    fn shortest_edge_keeps_the_aspect_ratio_and_center_crop_takes_the_middle() {
        let image = RgbImage::from_fn(30, 20, |x, y| image::Rgb([x as u8, y as u8, 0]));
        assert_eq!(shortest_edge(&image, 7, Filter::Bicubic).dimensions(), (10, 7));
        assert_eq!(center_crop(&image, 15, 20).get_pixel(0, 0).0, [7, 0, 0]);
    }

    #[test]
    fn images_with_an_empty_side_resize_to_empty_or_black() {
        assert!(float(&[], (0, 5), (3, 3), Filter::Bilinear).is_empty());
        assert!(rgb(&RgbImage::new(5, 5), 0, 7, Filter::Bilinear).is_empty());
        assert_eq!(rgb(&RgbImage::new(0, 5), 3, 3, Filter::Bicubic), RgbImage::new(3, 3));
    }
}
