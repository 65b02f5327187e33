//! Pictures of anomaly maps at the size of their photographs. A map is given row after row, in that size.

use std::io::Cursor;

use image::{
    DynamicImage, EncodableLayout, GrayImage, ImageBuffer, ImageError, ImageFormat, Luma, Pixel, PixelWithColorType,
    Rgb, RgbImage,
};

use crate::vision::colormap;

/// The colour of contours.
pub(super) const OUTLINE: Rgb<u8> = Rgb([64, 255, 120]);
/// The share of the colour in an overlay where the map is highest.
const STRONGEST: f32 = 0.7;
/// The longest side of a photograph whose contour is one pixel wide. That of larger ones is wider in proportion.
const FINE: u32 = 1000;

/// The lowest and the highest value of the maps of a class.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// The value that is drawn darkest.
    pub lowest: f32,
    /// The value that is drawn brightest.
    pub highest: f32,
}

impl Scale {
    /// Returns the place of a value between the lowest (0) and the highest (1); 0 for one that is not a number.
    fn place(self, value: f32) -> f32 {
        let range = self.highest - self.lowest;
        if range > 0. && !value.is_nan() { ((value - self.lowest) / range).clamp(0., 1.) } else { 0. }
    }
}

/// Draws a map in 16 bits of grey; `None` if it does not have this width and height.
pub fn heat(map: &[f32], (width, height): (u32, u32), scale: Scale) -> Option<ImageBuffer<Luma<u16>, Vec<u16>>> {
    let levels = map.iter().map(|value| (scale.place(*value) * f32::from(u16::MAX)).round() as u16);
    ImageBuffer::from_raw(width, height, levels.collect())
}

/// Draws 255 where a map is above a threshold; `None` if it does not have this width and height.
pub fn mask(map: &[f32], (width, height): (u32, u32), threshold: f32) -> Option<GrayImage> {
    GrayImage::from_raw(width, height, map.iter().map(|value| if *value > threshold { 255 } else { 0 }).collect())
}

/// Draws a map over its photograph, the stronger the higher it is.
pub fn overlay(photograph: &RgbImage, map: &[f32], scale: Scale) -> RgbImage {
    let mut out = photograph.clone();
    for (pixel, value) in out.pixels_mut().zip(map) {
        let place = scale.place(*value);
        let (Rgb(colour), share) = (colormap::inferno(place, 0., 1.), STRONGEST * place);
        pixel.0 = std::array::from_fn(|c| {
            (f32::from(pixel.0[c]) * (1. - share) + f32::from(colour[c]) * share).round() as u8
        });
    }
    out
}

/// Draws the inner contour of a mask over its photograph.
pub fn contour(mut photograph: RgbImage, mut mask: GrayImage) -> RgbImage {
    let (width, height) = photograph.dimensions();
    for _ in 0..width.max(height).div_ceil(FINE) {
        let edge = colormap::outline(&RgbImage::new(width, height), &mask, OUTLINE);
        for ((pixel, inside), edge) in photograph.pixels_mut().zip(mask.pixels_mut()).zip(edge.pixels()) {
            if *edge == OUTLINE {
                (*pixel, *inside) = (OUTLINE, Luma([0]));
            }
        }
    }
    photograph
}

/// Draws a square around a place, x and y in pixels. Its side is an eighth of the picture's shorter side.
pub fn square(picture: RgbImage, (x, y): (f64, f64)) -> RgbImage {
    let (width, height) = picture.dimensions();
    let reach = f64::from(width.min(height)) / 16.;
    let is_near = |pixel: u32, place: f64| (f64::from(pixel) + 0.5 - place).abs() <= reach;
    let inside = |column, row| 255 * u8::from(is_near(column, x) && is_near(row, y));
    contour(picture, GrayImage::from_fn(width, height, |column, row| Luma([inside(column, row)])))
}

/// Encodes a picture as PNG.
pub fn png<P>(picture: &ImageBuffer<P, Vec<P::Subpixel>>) -> Result<Vec<u8>, ImageError>
where
    P: Pixel + PixelWithColorType,
    [P::Subpixel]: EncodableLayout,
{
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, ImageFormat::Png)?;
    Ok(bytes.into_inner())
}

/// Encodes a picture as JPEG.
pub fn jpeg(picture: RgbImage) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Cursor::new(Vec::new());
    DynamicImage::ImageRgb8(picture).write_to(&mut bytes, ImageFormat::Jpeg)?;
    Ok(bytes.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlay_leaves_low_places_and_colours_high_ones() {
        let grey = RgbImage::from_pixel(2, 1, Rgb([100; 3]));
        let scale = Scale { lowest: 1., highest: 3. };
        let drawn = overlay(&grey, &[1., 3.], scale);
        assert_eq!(drawn.get_pixel(0, 0).0, [100; 3]);
        // 0.3 * 100 + 0.7 * [252, 255, 164]
        assert_eq!(drawn.get_pixel(1, 0).0, [206, 209, 145]);
        assert_eq!([0., 2., 9., f32::NAN].map(|value| scale.place(value)), [0., 0.5, 1., 0.]);
        assert_eq!(Scale { lowest: 1., highest: 1. }.place(1.), 0.);
    }

    #[test]
    fn contour_of_a_large_photograph_is_wider() {
        let marked = |side: u32| {
            let mask = GrayImage::from_fn(side, side, |x, y| Luma([255 * u8::from(x < 20 && y < 20)]));
            contour(RgbImage::new(side, side), mask).pixels().filter(|pixel| **pixel == OUTLINE).count()
        };
        assert_eq!((marked(100), marked(1500)), (4 * 19, 4 * 19 + 4 * 17));
    }

    #[test]
    fn square_lies_around_its_place_and_ends_at_the_border() {
        let drawn = |place: (f64, f64)| {
            let drawn = square(RgbImage::new(64, 32), place);
            let marked = drawn.enumerate_pixels().filter(|(_, _, pixel)| **pixel == OUTLINE).map(|(x, y, _)| (x, y));
            marked.collect::<Vec<_>>()
        };
        // A reach of 2 pixels: the border of 4x4 pixels around the corner of four.
        let whole = drawn((40., 10.));
        assert_eq!((whole.len(), whole[0], whole[11]), (12, (38, 8), (41, 11)));
        assert_eq!(drawn((64., 32.)), [(62, 30), (63, 30), (62, 31), (63, 31)]);
    }
}
