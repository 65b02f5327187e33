//! The place of a photograph in a picture of another size.

use image::{GrayImage, ImageBuffer, Luma, Pixel, RgbImage};

use super::{
    decode::MAX_PIXELS,
    resize::{self, Filter},
};

/// The reason why a map or a picture has no place in a photograph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// The map has another size than the picture.
    #[error("a map of {values} values is not one of {}x{} pixels", picture.0, picture.1)]
    MapSize {
        /// The number of values.
        values: usize,
        /// Width and height of the picture.
        picture: (u32, u32),
    },
    /// No such photograph can be read.
    #[error("a photograph of {}x{} pixels is larger than the {MAX_PIXELS} that are read", size.0, size.1)]
    TooLarge {
        /// Width and height.
        size: (u32, u32),
    },
}

fn area((width, height): (u32, u32)) -> u64 {
    u64::from(width) * u64::from(height)
}

/// A photograph that is resized and lies in a picture, which may have a border around it, or show a part of it alone.
/// Sizes and places are (width, height) and (x, y).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    x: Axis,
    y: Axis,
}

/// A side of a photograph in a picture, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis {
    /// The side of the photograph.
    pub photograph: u32,
    /// The side of the resized photograph.
    pub scaled: u32,
    /// The place in the picture of the first pixel of the resized photograph. It is negative where the picture does not
    /// show it.
    pub start: i32,
    /// The side of the picture.
    pub picture: u32,
}

impl Axis {
    fn stretched(photograph: u32, picture: u32) -> Self {
        Self { photograph, scaled: picture, start: 0, picture }
    }

    /// Puts the middle of the resized photograph into the middle of the picture, rounded as torchvision's `CenterCrop`
    /// does: of an odd rest, a border is one pixel wider behind, and half a pixel that is cut off is rounded to an even
    /// number.
    fn centred(photograph: u32, scaled: u32, picture: u32) -> Self {
        let start = match scaled.checked_sub(picture) {
            Some(rest) => -((rest / 2 + u32::from(rest % 4 == 3)) as i32),
            None => ((picture - scaled) / 2) as i32,
        };
        Self { photograph, scaled, start, picture }
    }

    /// Returns the place in the resized photograph of a pixel of the picture; the nearest one of a pixel beside it.
    fn nearest(self, at: u32) -> u32 {
        (i64::from(at) - i64::from(self.start)).clamp(0, i64::from(self.scaled.max(1)) - 1) as u32
    }

    /// Returns the place in the resized photograph of a pixel of the picture; `None` of a pixel beside it.
    fn inside(self, at: u32) -> Option<u32> {
        u32::try_from(i64::from(at) - i64::from(self.start)).ok().filter(|at| *at < self.scaled)
    }

    fn to_photograph(self, at: f64) -> f64 {
        (at - f64::from(self.start)) * f64::from(self.photograph) / f64::from(self.scaled)
    }

    fn to_picture(self, at: f64) -> f64 {
        at * f64::from(self.scaled) / f64::from(self.photograph) + f64::from(self.start)
    }

    /// Returns true if the picture shows a place of the photograph.
    fn shows(self, at: f64) -> bool {
        let at = self.to_picture(at);
        at >= 0. && at < f64::from(self.picture)
    }
}

impl Placement {
    /// Fills the picture with the photograph; its aspect ratio is not kept.
    pub fn stretched(photograph: (u32, u32), picture: (u32, u32)) -> Self {
        Self { x: Axis::stretched(photograph.0, picture.0), y: Axis::stretched(photograph.1, picture.1) }
    }

    /// Puts the photograph in the middle of the picture, as large as its aspect ratio allows. Its shorter side is
    /// rounded to whole pixels; if the rest is odd, the border is one pixel wider on the right or at the bottom.
    pub fn padded(photograph: (u32, u32), picture: (u32, u32)) -> Self {
        let ((width, height), (right, bottom)) = (photograph, picture);
        let scaled = |side: u32, to: u32, from: u32| {
            let (side, to, from) = (u64::from(side), u64::from(to), u64::from(from.max(1)));
            ((2 * side * to + from) / (2 * from)).max(1) as u32
        };
        let scaled = if u64::from(right) * u64::from(height) <= u64::from(bottom) * u64::from(width) {
            (right, scaled(height, right, width).min(bottom))
        } else {
            (scaled(width, bottom, height).min(right), bottom)
        };
        Self::centred(photograph, scaled, picture)
    }

    /// Resizes the photograph so that its shorter side has `short_side` pixels, and shows its middle: torchvision's
    /// `Resize(short_side)` and `CenterCrop`. Where the picture is larger, there is a border.
    pub fn cropped(photograph: (u32, u32), picture: (u32, u32), short_side: u32) -> Self {
        Self::centred(photograph, resize::with_shorter_side(photograph, short_side), picture)
    }

    fn centred(photograph: (u32, u32), scaled: (u32, u32), picture: (u32, u32)) -> Self {
        Self {
            x: Axis::centred(photograph.0, scaled.0, picture.0),
            y: Axis::centred(photograph.1, scaled.1, picture.1),
        }
    }

    /// Shows the part of the resized photograph that begins at a place of it, which may lie before its first pixel.
    pub fn tile(photograph: (u32, u32), scaled: (u32, u32), from: (i32, i32), picture: (u32, u32)) -> Self {
        let axis = |photograph, scaled, from: i32, picture| Axis { photograph, scaled, start: -from, picture };
        Self { x: axis(photograph.0, scaled.0, from.0, picture.0), y: axis(photograph.1, scaled.1, from.1, picture.1) }
    }

    /// Returns the size of the photograph.
    pub fn photograph(&self) -> (u32, u32) {
        (self.x.photograph, self.y.photograph)
    }

    /// Returns the size of the resized photograph.
    pub fn scaled(&self) -> (u32, u32) {
        (self.x.scaled, self.y.scaled)
    }

    /// Returns the horizontal and the vertical side.
    pub fn axes(&self) -> [Axis; 2] {
        [self.x, self.y]
    }

    /// Cuts the picture out of a resized photograph. The border repeats its outermost pixels, so that there is no edge
    /// where it ends.
    pub fn cut_rgb(&self, scaled: &RgbImage) -> RgbImage {
        self.cut(scaled, |x, y| *scaled.get_pixel(self.x.nearest(x), self.y.nearest(y)))
    }

    /// Cuts the picture out of a resized mask. The border is 0.
    pub fn cut_grey(&self, scaled: &GrayImage) -> GrayImage {
        let inside = |x, y| Some(*scaled.get_pixel(self.x.inside(x)?, self.y.inside(y)?));
        self.cut(scaled, |x, y| inside(x, y).unwrap_or(Luma([0])))
    }

    fn cut<P: Pixel>(
        &self,
        scaled: &ImageBuffer<P, Vec<P::Subpixel>>,
        at: impl Fn(u32, u32) -> P,
    ) -> ImageBuffer<P, Vec<P::Subpixel>> {
        let is_whole = |axis: Axis| axis.start == 0 && axis.scaled == axis.picture;
        if is_whole(self.x) && is_whole(self.y) {
            return scaled.clone();
        }
        ImageBuffer::from_fn(self.x.picture, self.y.picture, at)
    }

    /// Resizes a map of the picture's size to the photograph's own size. Both are row after row. Places of the
    /// photograph that the picture does not show are NaN.
    ///
    /// # Errors
    /// [`PlacementError`], as tables that other programs made may name any sizes.
    pub fn map_to_photograph(&self, map: &[f32]) -> Result<Vec<f32>, PlacementError> {
        let picture = (self.x.picture, self.y.picture);
        if map.len() as u64 != area(picture) {
            return Err(PlacementError::MapSize { values: map.len(), picture });
        }
        if let Some(size) = [self.photograph(), self.scaled()].into_iter().find(|size| area(*size) > MAX_PIXELS) {
            return Err(PlacementError::TooLarge { size });
        }
        if [picture, self.photograph(), self.scaled()].into_iter().any(|size| area(size) == 0) {
            return Ok(vec![f32::NAN; area(self.photograph()) as usize]);
        }
        let [columns, rows] = self.axes().map(|axis| {
            // The place in the picture of each pixel of the resized photograph, or the nearest place.
            let last = i64::from(axis.picture) - 1;
            let place = move |at| (i64::from(at) + i64::from(axis.start)).clamp(0, last) as usize;
            (0..axis.scaled).map(place).collect::<Vec<usize>>()
        });
        let row = |y: &usize| {
            let row = &map[y * self.x.picture as usize..];
            columns.iter().map(|x| row[*x]).collect::<Vec<f32>>()
        };
        let scaled: Vec<f32> = rows.iter().flat_map(row).collect();
        let mut values = resize::float(&scaled, self.scaled(), self.photograph(), Filter::Bilinear);
        let [columns, rows] = self.axes().map(|axis| {
            let middles = (0..axis.photograph).map(|at| f64::from(at) + 0.5);
            middles.map(|middle| axis.shows(middle)).collect::<Vec<bool>>()
        });
        if columns.contains(&false) || rows.contains(&false) {
            for (row, is_row_shown) in values.chunks_exact_mut(columns.len()).zip(rows) {
                for (value, is_shown) in row.iter_mut().zip(&columns) {
                    *value = if is_row_shown && *is_shown { *value } else { f32::NAN };
                }
            }
        }
        Ok(values)
    }

    /// Resizes the picture to the photograph's own size. Places that it does not show are black.
    ///
    /// # Errors
    /// [`PlacementError`], for the sizes for which [`Placement::map_to_photograph`] has it.
    pub fn rgb_to_photograph(&self, picture: &RgbImage) -> Result<RgbImage, PlacementError> {
        let mut channels = Vec::new();
        for c in 0..3 {
            let channel: Vec<f32> = picture.pixels().map(|pixel| f32::from(pixel.0[c])).collect();
            channels.push(self.map_to_photograph(&channel)?);
        }
        let (width, height) = self.photograph();
        Ok(RgbImage::from_fn(width, height, |x, y| {
            let at = y as usize * width as usize + x as usize;
            // A value that is not a number becomes 0.
            image::Rgb([0, 1, 2].map(|c: usize| channels[c][at].round() as u8))
        }))
    }

    /// Returns the place in the photograph of a place in the picture, and so of one in a map of the picture's size. The
    /// middle of the first pixel is (0.5, 0.5). A place in the border lies outside the photograph.
    pub fn to_photograph(&self, (x, y): (f64, f64)) -> (f64, f64) {
        (self.x.to_photograph(x), self.y.to_photograph(y))
    }

    /// Returns the place in the picture of a place in the photograph: the inverse of [`Placement::to_photograph`]. A
    /// place that the picture does not show lies outside it.
    pub fn to_picture(&self, (x, y): (f64, f64)) -> (f64, f64) {
        (self.x.to_picture(x), self.y.to_picture(y))
    }

    /// Returns true if the picture shows a place of the photograph.
    pub fn shows(&self, (x, y): (f64, f64)) -> bool {
        self.x.shows(x) && self.y.shows(y)
    }
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    fn rgb(placement: Placement, photograph: &RgbImage) -> RgbImage {
        let (width, height) = placement.scaled();
        placement.cut_rgb(&resize::rgb(photograph, width, height, Filter::Bilinear))
    }

    #[test]
    fn map_is_resized_without_the_border() {
        // A photograph of 4x2 in a picture of 4x4: its rows are the two in the middle.
        let map: Vec<f32> = (0..16).map(|at| at as f32).collect();
        let placement = Placement::padded((4, 2), (4, 4));
        assert_eq!(placement.map_to_photograph(&map).unwrap(), (4..12).map(|at| at as f32).collect::<Vec<_>>());
        assert_eq!(Placement::stretched((4, 4), (4, 4)).map_to_photograph(&map).unwrap(), map);
    }

    #[test]
    fn map_of_another_size_and_a_photograph_that_none_can_read_are_errors() {
        let placement = Placement::stretched((40, 30), (4, 4));
        let error = placement.map_to_photograph(&[0.; 15]).unwrap_err();
        assert_eq!(error.to_string(), "a map of 15 values is not one of 4x4 pixels");
        for placement in [Placement::stretched((u32::MAX, 4), (4, 4)), Placement::cropped((1, 30_000), (4, 4), 1 << 20)]
        {
            let error = placement.map_to_photograph(&[0.; 16]).unwrap_err();
            assert!(matches!(error, PlacementError::TooLarge { .. }), "{error}");
        }
        assert_eq!(Placement::stretched((0, 30), (4, 4)).map_to_photograph(&[0.; 16]), Ok(vec![]));
    }

    #[test]
    fn padded_photograph_keeps_its_aspect_ratio_in_the_middle() {
        let placed = |photograph, picture| {
            let Placement { x, y } = Placement::padded(photograph, picture);
            ((x.start, y.start), (x.scaled, y.scaled))
        };
        assert_eq!(placed((40, 24), (32, 32)), ((0, 6), (32, 19)));
        assert_eq!(placed((24, 40), (32, 32)), ((6, 0), (19, 32)));
        assert_eq!(placed((100, 50), (64, 32)), ((0, 0), (64, 32)));
        assert_eq!(placed((100, 50), (32, 64)), ((0, 24), (32, 16)));
        assert_eq!(placed((3, 2), (300, 300)), ((0, 50), (300, 200)));
        assert_eq!(placed((10_000, 1), (32, 32)), ((0, 15), (32, 1)));
    }

    /// Sizes and places of `torchvision.transforms.Resize(short_side)` and `CenterCrop(picture)`.
    #[test]
    fn cropped_photograph_is_rounded_as_torchvision_does() {
        let placed = |photograph, short_side, picture| {
            let Placement { x, y } = Placement::cropped(photograph, picture, short_side);
            ((x.scaled, y.scaled), (x.start, y.start))
        };
        assert_eq!(placed((900, 900), 256, (224, 224)), ((256, 256), (-16, -16)));
        // 256 * 1000 / 700 = 365.7 is rounded down. 141 and 143 pixels too many: 70.5 is rounded to 70, and 71.5 to 72.
        assert_eq!(placed((1000, 700), 256, (224, 224)), ((365, 256), (-70, -16)));
        assert_eq!(placed((700, 1000), 256, (224, 222)), ((256, 365), (-16, -72)));
        // A picture that is wider has a border, of which the smaller half is on the left.
        assert_eq!(placed((500, 500), 31, (64, 16)), ((31, 31), (16, -8)));
    }

    #[test]
    fn border_repeats_the_photograph_and_is_empty_in_the_mask() {
        let placement = Placement::padded((4, 2), (4, 5));
        let photograph = RgbImage::from_fn(4, 2, |x, y| Rgb([x as u8 + 1, y as u8 + 1, 0]));
        let picture = rgb(placement, &photograph);
        let column = |x| (0..5).map(|y| picture.get_pixel(x, y).0[..2].to_vec()).collect::<Vec<_>>();
        assert_eq!(column(0), [[1, 1], [1, 1], [1, 2], [1, 2], [1, 2]]);
        assert_eq!(column(3), [[4, 1], [4, 1], [4, 2], [4, 2], [4, 2]]);
        let mask = placement.cut_grey(&GrayImage::from_pixel(4, 2, Luma([255])));
        assert_eq!(mask.rows().map(|mut row| row.next().unwrap().0[0]).collect::<Vec<_>>(), [0, 255, 255, 0, 0]);
    }

    #[test]
    fn stretched_photograph_equals_a_resized_one() {
        let photograph = RgbImage::from_fn(40, 24, |x, y| Rgb([x as u8, y as u8, 90]));
        let placement = Placement::stretched((40, 24), (16, 32));
        assert_eq!(rgb(placement, &photograph), resize::rgb(&photograph, 16, 32, Filter::Bilinear));
        assert_eq!(placement.to_photograph((8., 8.)), (20., 6.));
    }

    #[test]
    fn cropped_photograph_equals_the_middle_of_a_resized_one() {
        let photograph = RgbImage::from_fn(90, 60, |x, y| Rgb([x as u8, 2 * y as u8, 90]));
        let middle = resize::center_crop(&resize::shortest_edge(&photograph, 32, Filter::Bilinear), 24, 24);
        assert_eq!(rgb(Placement::cropped((90, 60), (24, 24), 32), &photograph), middle);
    }

    /// All that a placement can be.
    fn all(photograph: (u32, u32), picture: (u32, u32)) -> [Placement; 4] {
        let short_side = picture.0.min(picture.1) + 9;
        [
            Placement::padded(photograph, picture),
            Placement::stretched(photograph, picture),
            Placement::cropped(photograph, picture, short_side),
            Placement::tile(photograph, photograph, (7, -2), picture),
        ]
    }

    #[test]
    fn places_in_a_map_lead_to_the_photograph_and_back() {
        for (photograph, picture) in [((4000, 3000), (256, 256)), ((640, 2000), (224, 320)), ((17, 5), (64, 48))] {
            for placement in all(photograph, picture) {
                let [first, last] = [|axis: Axis| axis.start, |axis: Axis| axis.start + axis.scaled as i32].map(
                    |of: fn(Axis) -> i32| {
                        let [x, y] = placement.axes().map(of).map(f64::from);
                        (x, y)
                    },
                );
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
        for placement in all((80, 50), (40, 64)) {
            let mut shown = 0;
            for place in [(0, 0), (79, 49), (33, 21)] {
                let middle = (f64::from(place.0) + 0.5, f64::from(place.1) + 0.5);
                if !placement.shows(middle) {
                    continue;
                }
                shown += 1;
                let picture = rgb(placement, &mark(place.0, place.1));
                let (column, row) = placement.to_picture(middle);
                let brightest = picture.pixels().map(|pixel| pixel.0[0]).max();
                assert_eq!(
                    Some(picture.get_pixel(column as u32, row as u32).0[0]),
                    brightest,
                    "{place:?} {placement:?}"
                );
            }
            assert!(shown > 0, "{placement:?}");
        }
    }

    #[test]
    fn mark_in_a_map_comes_out_at_its_place_in_the_photograph() {
        for placement in all((90, 60), (30, 30)) {
            let mut map = vec![0.; 900];
            map[30 * 12 + 17] = 1.;
            let values = placement.map_to_photograph(&map).unwrap();
            let highest = values.iter().copied().fold(0., f32::max);
            let at = values.iter().position(|value| *value == highest).unwrap();
            let (x, y) = placement.to_picture(((at % 90) as f64 + 0.5, (at / 90) as f64 + 0.5));
            // Half a pixel of the map, and half a pixel of the photograph.
            assert!((x - 17.5).abs() <= 1. && (y - 12.5).abs() <= 1., "{x} {y} {placement:?}");
        }
    }

    #[test]
    fn what_a_picture_does_not_show_is_not_a_number() {
        let placement = Placement::cropped((40, 20), (8, 8), 10);
        let values = placement.map_to_photograph(&[1.; 64]).unwrap();
        // 20x10 pixels, of which those from 6 to 13 and from 1 to 8 are shown, at half the photograph's size.
        let known = |x: usize, y: usize| (12..28).contains(&x) && (2..18).contains(&y);
        for (at, value) in values.iter().enumerate() {
            assert_eq!(*value == 1., known(at % 40, at / 40), "{at}");
            assert_eq!(value.is_nan(), !known(at % 40, at / 40), "{at}");
        }
        let picture = placement.rgb_to_photograph(&RgbImage::from_pixel(8, 8, Rgb([200, 3, 4]))).unwrap();
        assert_eq!((picture.get_pixel(20, 10).0, picture.get_pixel(0, 0).0), ([200, 3, 4], [0; 3]));
    }
}
