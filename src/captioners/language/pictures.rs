//! The pictures that a model sees of a photograph.

use image::{Rgb, RgbImage, imageops};

use crate::vision::{
    resize::{self, Filter},
    tiling::Tiling,
};

/// The way in which a photograph becomes pictures of one size, resized as Pillow does it (bicubic).
#[derive(Clone, Copy, Debug)]
pub enum Pictures {
    /// A grid of squares and the whole, as InternVL sees it.
    Tiles(Tiling),
    /// One square, to which the aspect ratio is not kept.
    Resized {
        /// The side of the square.
        side: u32,
    },
    /// One square, in whose middle the photograph lies with its aspect ratio; the rest is grey.
    Padded {
        /// The side of the square.
        side: u32,
        /// The fewest pixels of the photograph's shorter side in the square.
        least: u32,
        /// The level of the rest.
        grey: u8,
    },
}

impl Pictures {
    /// Returns the number of pictures of a photograph of this width and height.
    pub fn count(&self, width: u32, height: u32) -> usize {
        match self {
            Self::Tiles(tiling) => tiling.count(width, height),
            Self::Resized { .. } | Self::Padded { .. } => 1,
        }
    }

    /// Returns the largest number of pictures of a photograph.
    pub fn most(&self) -> usize {
        match self {
            Self::Tiles(tiling) => tiling.max as usize + usize::from(tiling.has_thumbnail && tiling.max > 1),
            Self::Resized { .. } | Self::Padded { .. } => 1,
        }
    }

    /// Returns the pictures of a photograph.
    pub fn cut(&self, photograph: &RgbImage) -> Vec<RgbImage> {
        match *self {
            Self::Tiles(tiling) => tiling.tiles(photograph),
            Self::Resized { side } => vec![resize::rgb(photograph, side, side, Filter::Bicubic)],
            Self::Padded { side, least, grey } => vec![padded(photograph, side, least, grey)],
        }
    }
}

/// Puts a photograph into the middle of a square.
fn padded(photograph: &RgbImage, side: u32, least: u32, grey: u8) -> RgbImage {
    let (width, height) = photograph.dimensions();
    let longest = f64::from(width.max(height).max(1));
    let scaled = |length: u32| ((f64::from(length) / longest * f64::from(side)) as u32).max(least);
    let (width, height) = (scaled(width), scaled(height));
    let resized = resize::rgb(photograph, width, height, Filter::Bicubic);
    let mut square = RgbImage::from_pixel(side, side, Rgb([grey; 3]));
    imageops::replace(&mut square, &resized, i64::from((side - width) / 2), i64::from((side - height) / 2));
    square
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn photographs_of_any_size_become_pictures_of_one_size() {
        let all = [
            Pictures::Tiles(Tiling { size: 28, ..Tiling::default() }),
            Pictures::Resized { side: 28 },
            Pictures::Padded { side: 28, least: 14, grey: 127 },
        ];
        for pictures in all {
            for (width, height) in [(1, 1), (2000, 10), (10, 2000), (60, 40)] {
                let cut = pictures.cut(&RgbImage::from_pixel(width, height, Rgb([200; 3])));
                assert_eq!(cut.len(), pictures.count(width, height), "{pictures:?} of {width}x{height}");
                assert!(cut.len() <= pictures.most(), "{pictures:?} of {width}x{height}");
                assert!(cut.iter().all(|picture| picture.dimensions() == (28, 28)), "{pictures:?} of {width}x{height}");
            }
        }
    }

    #[test]
    fn a_padded_photograph_keeps_its_shape_and_lies_in_the_middle() {
        let square = padded(&RgbImage::from_pixel(80, 20, Rgb([200; 3])), 40, 4, 127);
        let grey = |x, y| square.get_pixel(x, y).0[0];
        // 40 x 10 pixels, below (40 - 10) / 2 = 15 rows
        assert_eq!([grey(0, 14), grey(0, 15), grey(39, 24), grey(39, 25)], [127, 200, 200, 127]);
    }
}
