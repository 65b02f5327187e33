//! Resampling that equals Pillow's `Image.resize` bit for bit, because published checkpoints were trained on its pixels.
//!
//! Pillow widens the filter on reduction (antialiasing), rounds its weights to 22-bit fixed point and stores 8 bits
//! between the horizontal and the vertical pass. Faster resamplers round the weights to 16 bits and differ by one level.

use image::{GrayImage, RgbImage};

/// Fraction bits of a weight: 32 less 8 for the pixel and 2 for the overshoot of negative lobes.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// Interpolation kernels, under their Pillow names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Filter {
    /// Triangle of support 1.
    Bilinear,
    /// Keys' cubic of support 2 with a = -0.5.
    Bicubic,
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Filter::Bilinear => 1.0,
            Filter::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        match (self, x.abs()) {
            (Filter::Bilinear, x) if x < 1.0 => 1.0 - x,
            (Filter::Bicubic, x) if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            (Filter::Bicubic, x) if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            _ => 0.0,
        }
    }
}

/// Resizes to `width` x `height` pixels, aspect ratio ignored, as Pillow's `image.resize((width, height), filter)`.
pub fn rgb(image: &RgbImage, width: u32, height: u32, filter: Filter) -> RgbImage {
    let mut out = RgbImage::new(width, height);
    resample::<3>(image, image.dimensions(), &mut out, (width, height), filter);
    out
}

/// Resizes a 0/255 mask to `width` x `height` and keeps it binary: bilinear with antialiasing, then 255 where at least
/// 128, which is where more than half of a pixel's footprint is anomalous (ADer's rule, `resized / 255 > 0.5`).
pub fn mask(mask: &GrayImage, width: u32, height: u32) -> GrayImage {
    let mut out = GrayImage::new(width, height);
    resample::<1>(mask, mask.dimensions(), &mut out, (width, height), Filter::Bilinear);
    out.iter_mut().for_each(|value| *value = if *value >= 128 { 255 } else { 0 });
    out
}

/// Two passes over interleaved `[H, W, C]` bytes. An axis that keeps its size is copied.
///
/// Pillow runs the horizontal pass first, and since release 13 the vertical one where the height loses more than twice
/// the pixels that the width does. The order shows in the rounding between the passes.
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
            horizontal::<C>(src, dst, src_width, &taps(src_width, dst_width, filter));
        }
    };
    let fit_height = |src: &[u8], dst: &mut [u8], width: usize| {
        if src_height == dst_height {
            dst.copy_from_slice(src);
        } else {
            vertical(src, dst, width * C, &taps(src_height, dst_height, filter));
        }
    };
    let lost = |from: u32, to: u32| i64::from(from) - i64::from(to);
    if lost(from.1, to.1) > 0.max(2 * lost(from.0, to.0)) {
        let mut between = vec![0; src_width * dst_height * C];
        fit_height(src, &mut between, src_width);
        fit_width(&between, dst);
    } else {
        let mut between = vec![0; dst_width * src_height * C];
        fit_width(src, &mut between);
        fit_height(&between, dst, dst_width);
    }
}

fn horizontal<const C: usize>(src: &[u8], dst: &mut [u8], width: usize, taps: &[Taps]) {
    for (row, out) in src.chunks_exact(width * C).zip(dst.chunks_exact_mut(taps.len() * C)) {
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

fn vertical(src: &[u8], dst: &mut [u8], stride: usize, taps: &[Taps]) {
    let mut sums = vec![ROUND; stride];
    for (out, Taps { first, weights }) in dst.chunks_exact_mut(stride).zip(taps) {
        sums.fill(ROUND);
        for (row, weight) in src.chunks_exact(stride).skip(*first).zip(weights) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += i32::from(*value) * weight;
            }
        }
        for (out, sum) in out.iter_mut().zip(&sums) {
            *out = clip8(*sum);
        }
    }
}

/// The source pixels `first..first + weights.len()` that make one output pixel; the weights sum to 2^22 up to rounding.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// Pillow's `precompute_coeffs` and `normalize_coeffs_8bpc`, operation by operation.
fn taps(src: usize, dst: usize, filter: Filter) -> Vec<Taps> {
    let scale = src as f64 / dst as f64;
    let filter_scale = scale.max(1.0);
    let support = filter.support() * filter_scale;
    let inverse = 1.0 / filter_scale;
    let fixed = |weight: f64| (weight * f64::from(1 << PRECISION_BITS) + 0.5f64.copysign(weight)) as i32;
    (0..dst)
        .map(|x| {
            let center = (x as f64 + 0.5) * scale;
            let first = (center - support + 0.5).max(0.0) as usize;
            let last = ((center + support + 0.5) as usize).min(src);
            let weights: Vec<f64> = (first..last).map(|i| filter.weight((i as f64 - center + 0.5) * inverse)).collect();
            let sum: f64 = weights.iter().sum();
            Taps { first, weights: weights.iter().map(|weight| fixed(weight / sum)).collect() }
        })
        .collect()
}

/// Half a level: a sum starts here, so that the shift in [`clip8`] rounds.
const ROUND: i32 = 1 << (PRECISION_BITS - 1);

fn clip8(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vision::golden::Golden;

    #[test]
    fn equals_pillow() {
        let (Some(inputs), Some(expected)) =
            (Golden::open("models/pil_resize/inputs"), Golden::open("models/pil_resize/expected"))
        else {
            return;
        };
        for (case, (width, height)) in [(32, 32), (100, 37), (20, 60), (30, 60), (16, 16)].into_iter().enumerate() {
            let image = inputs.rgb(&format!("img{case}"));
            for (name, filter) in [("bilinear", Filter::Bilinear), ("bicubic", Filter::Bicubic)] {
                let resized = rgb(&image, width, height, filter);
                assert!(resized == expected.rgb(&format!("img{case}.{name}")), "img{case} {name}");
            }
        }
    }

    #[test]
    fn equals_the_reference_transform() {
        let Some(golden) = Golden::open("reference/transforms") else { return };
        for (case, width, height) in [("down", 64, 64), ("rect", 56, 48), ("up", 44, 40)] {
            let resized = rgb(&golden.rgb(&format!("{case}.rgb")), width, height, Filter::Bilinear);
            assert!(resized == golden.rgb(&format!("{case}.resized_u8")), "{case}");

            // The reference keeps the grey levels of a resized mask; ours are those above one half.
            let resized = mask(&golden.gray(&format!("{case}.mask255")), width, height);
            let reference = golden.f32(&format!("{case}.mask255_out"));
            assert!(resized.iter().zip(reference).all(|(ours, grey)| (*ours == 255) == (grey > 0.5)), "{case}");
        }
    }

    #[test]
    fn a_row_in_pillow_numbers() {
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
    fn mask_follows_the_majority() {
        let column = GrayImage::from_fn(8, 4, |x, _| image::Luma([if x < 5 { 255 } else { 0 }]));
        assert_eq!(
            mask(&column, 4, 4).rows().next().map(|row| row.map(|p| p.0[0]).collect()),
            Some(vec![255, 255, 255, 0])
        );
        assert_eq!(mask(&column, 8, 4), column);
    }

    #[test]
    fn empty_sides_are_empty() {
        assert!(rgb(&RgbImage::new(5, 5), 0, 7, Filter::Bilinear).is_empty());
        assert_eq!(rgb(&RgbImage::new(0, 5), 3, 3, Filter::Bicubic), RgbImage::new(3, 3));
    }
}
