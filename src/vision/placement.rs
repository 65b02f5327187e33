//! The place of a photograph in a picture of another size.

use image::{GrayImage, ImageBuffer, Luma, Pixel, RgbImage};

use super::resize::{self, Filter};

/// A photograph that is resized into a rectangle of a picture. Sizes and places are (width, height) and (x, y).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    photograph: (u32, u32),
    picture: (u32, u32),
    /// The left upper corner of the rectangle.
    corner: (u32, u32),
    /// The size of the rectangle.
    inner: (u32, u32),
}

impl Placement {
    /// Fills the picture with the photograph; its aspect ratio is not kept.
    pub fn stretched(photograph: (u32, u32), picture: (u32, u32)) -> Self {
        Self { photograph, picture, corner: (0, 0), inner: picture }
    }

    /// Puts the photograph in the middle of the picture, as large as its aspect ratio allows. Its shorter side is
    /// rounded to whole pixels; if the rest is odd, the border is one pixel wider on the right or at the bottom.
    pub fn padded(photograph: (u32, u32), picture: (u32, u32)) -> Self {
        let ((width, height), (right, bottom)) = (photograph, picture);
        let scaled = |side: u32, to: u32, from: u32| {
            let (side, to, from) = (u64::from(side), u64::from(to), u64::from(from.max(1)));
            ((2 * side * to + from) / (2 * from)).max(1) as u32
        };
        let inner = if u64::from(right) * u64::from(height) <= u64::from(bottom) * u64::from(width) {
            (right, scaled(height, right, width).min(bottom))
        } else {
            (scaled(width, bottom, height).min(right), bottom)
        };
        Self { photograph, picture, corner: ((right - inner.0) / 2, (bottom - inner.1) / 2), inner }
    }

    /// Returns the size of the photograph.
    pub fn photograph(&self) -> (u32, u32) {
        self.photograph
    }

    /// Resizes a photograph into the picture. The border repeats the outermost pixels of the resized photograph, so
    /// that there is no edge where it ends.
    pub fn rgb(&self, photograph: &RgbImage) -> RgbImage {
        let inner = resize::rgb(photograph, self.inner.0, self.inner.1, Filter::Bilinear);
        self.bordered(inner, |inner, x, y| {
            let nearest = |at: u32, from: u32, length: u32| at.saturating_sub(from).min(length - 1);
            *inner.get_pixel(nearest(x, self.corner.0, self.inner.0), nearest(y, self.corner.1, self.inner.1))
        })
    }

    /// Resizes a mask into the picture. The border is 0.
    pub fn grey(&self, mask: &GrayImage) -> GrayImage {
        let inner = resize::grey(mask, self.inner.0, self.inner.1, Filter::Bilinear);
        self.bordered(inner, |inner, x, y| {
            let inside = x.checked_sub(self.corner.0).zip(y.checked_sub(self.corner.1));
            inside.and_then(|(x, y)| inner.get_pixel_checked(x, y)).copied().unwrap_or(Luma([0]))
        })
    }

    fn bordered<P: Pixel>(
        &self,
        inner: ImageBuffer<P, Vec<P::Subpixel>>,
        at: impl Fn(&ImageBuffer<P, Vec<P::Subpixel>>, u32, u32) -> P,
    ) -> ImageBuffer<P, Vec<P::Subpixel>> {
        if self.inner == self.picture {
            return inner;
        }
        ImageBuffer::from_fn(self.picture.0, self.picture.1, |x, y| at(&inner, x, y))
    }

    /// Resizes what lies over the photograph of a map of the picture's size to the photograph's own size. Both are row
    /// after row.
    pub fn map_to_photograph(&self, map: &[f32]) -> Vec<f32> {
        let rows = map.chunks_exact(self.picture.0 as usize).skip(self.corner.1 as usize).take(self.inner.1 as usize);
        let columns = self.corner.0 as usize..(self.corner.0 + self.inner.0) as usize;
        let inner: Vec<f32> = rows.flat_map(|row| row[columns.clone()].iter().copied()).collect();
        resize::float(&inner, self.inner, self.photograph, Filter::Bilinear)
    }

    /// Returns the place in the photograph of a place in the picture, and so of one in a map of the picture's size. The
    /// middle of the first pixel is (0.5, 0.5). A place in the border lies outside the photograph.
    pub fn to_photograph(&self, (x, y): (f64, f64)) -> (f64, f64) {
        let back =
            |at: f64, corner: u32, inner: u32, side: u32| (at - f64::from(corner)) * f64::from(side) / f64::from(inner);
        (
            back(x, self.corner.0, self.inner.0, self.photograph.0),
            back(y, self.corner.1, self.inner.1, self.photograph.1),
        )
    }

    /// Returns the place in the picture of a place in the photograph: the inverse of [`Placement::to_photograph`].
    pub fn to_picture(&self, (x, y): (f64, f64)) -> (f64, f64) {
        let into =
            |at: f64, corner: u32, inner: u32, side: u32| at * f64::from(inner) / f64::from(side) + f64::from(corner);
        (
            into(x, self.corner.0, self.inner.0, self.photograph.0),
            into(y, self.corner.1, self.inner.1, self.photograph.1),
        )
    }
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    #[test]
    fn map_is_resized_without_the_border() {
        // A photograph of 4x2 in a picture of 4x4: its rows are the two in the middle.
        let map: Vec<f32> = (0..16).map(|at| at as f32).collect();
        let placement = Placement::padded((4, 2), (4, 4));
        assert_eq!(placement.map_to_photograph(&map), (4..12).map(|at| at as f32).collect::<Vec<_>>());
        assert_eq!(Placement::stretched((4, 4), (4, 4)).map_to_photograph(&map), map);
    }

    #[test]
    fn padded_photograph_keeps_its_aspect_ratio_in_the_middle() {
        let placed = |photograph, picture| {
            let placement = Placement::padded(photograph, picture);
            (placement.corner, placement.inner)
        };
        assert_eq!(placed((40, 24), (32, 32)), ((0, 6), (32, 19)));
        assert_eq!(placed((24, 40), (32, 32)), ((6, 0), (19, 32)));
        assert_eq!(placed((100, 50), (64, 32)), ((0, 0), (64, 32)));
        assert_eq!(placed((100, 50), (32, 64)), ((0, 24), (32, 16)));
        assert_eq!(placed((3, 2), (300, 300)), ((0, 50), (300, 200)));
        assert_eq!(placed((10_000, 1), (32, 32)), ((0, 15), (32, 1)));
    }

    #[test]
    fn border_repeats_the_photograph_and_is_empty_in_the_mask() {
        let placement = Placement::padded((4, 2), (4, 5));
        let photograph = RgbImage::from_fn(4, 2, |x, y| Rgb([x as u8 + 1, y as u8 + 1, 0]));
        let picture = placement.rgb(&photograph);
        let column = |x| (0..5).map(|y| picture.get_pixel(x, y).0[..2].to_vec()).collect::<Vec<_>>();
        assert_eq!(column(0), [[1, 1], [1, 1], [1, 2], [1, 2], [1, 2]]);
        assert_eq!(column(3), [[4, 1], [4, 1], [4, 2], [4, 2], [4, 2]]);
        let mask = placement.grey(&GrayImage::from_pixel(4, 2, Luma([255])));
        assert_eq!(mask.rows().map(|mut row| row.next().unwrap().0[0]).collect::<Vec<_>>(), [0, 255, 255, 0, 0]);
    }

    #[test]
    fn stretched_photograph_equals_a_resized_one() {
        let photograph = RgbImage::from_fn(40, 24, |x, y| Rgb([x as u8, y as u8, 90]));
        let placement = Placement::stretched((40, 24), (16, 32));
        assert_eq!(placement.rgb(&photograph), resize::rgb(&photograph, 16, 32, Filter::Bilinear));
        assert_eq!(placement.to_photograph((8., 8.)), (20., 6.));
    }

    #[test]
    fn places_in_a_map_lead_to_the_photograph_and_back() {
        for (photograph, picture) in [((4000, 3000), (256, 256)), ((640, 2000), (224, 320)), ((17, 5), (64, 48))] {
            for placement in [Placement::padded(photograph, picture), Placement::stretched(photograph, picture)] {
                let (corner, inner) = (placement.corner, placement.inner);
                let first = (f64::from(corner.0), f64::from(corner.1));
                let last = (f64::from(corner.0 + inner.0), f64::from(corner.1 + inner.1));
                assert_eq!(placement.to_photograph(first), (0., 0.));
                assert_eq!(placement.to_photograph(last), (f64::from(photograph.0), f64::from(photograph.1)));
                let (x, y) = placement.to_picture(placement.to_photograph((10.25, 30.5)));
                // Two products and two quotients of numbers below 10^4, each rounded to 2^-53.
                assert!((x - 10.25).abs() < 1e-10 && (y - 30.5).abs() < 1e-10, "{x} {y}");
            }
        }
        let padded = Placement::padded((40, 20), (40, 40));
        assert_eq!(padded.to_photograph((5., 9.)), (5., -1.));
    }

    #[test]
    fn mark_in_a_photograph_lies_where_its_place_is_mapped() {
        let mark = |x: u32, y: u32| RgbImage::from_fn(80, 50, |u, v| Rgb([if (u, v) == (x, y) { 255 } else { 0 }; 3]));
        let placement = Placement::padded((80, 50), (40, 64));
        for (x, y) in [(0, 0), (79, 49), (33, 21)] {
            let picture = placement.rgb(&mark(x, y));
            let (column, row) = placement.to_picture((f64::from(x) + 0.5, f64::from(y) + 0.5));
            let brightest = picture.pixels().map(|pixel| pixel.0[0]).max();
            assert_eq!(Some(picture.get_pixel(column as u32, row as u32).0[0]), brightest, "{x} {y}");
        }
    }
}
