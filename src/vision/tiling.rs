//! InternVL's tiles: a photograph as a grid of squares whose shape is near that of the photograph, and as a whole.

use image::{RgbImage, imageops};

use super::resize::{self, Filter};

/// The way in which a photograph is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// Height and width of a tile.
    pub size: u32,
    /// The minimum number of tiles in a grid.
    pub min: u32,
    /// The maximum number of tiles in a grid.
    pub max: u32,
    /// True if the whole photograph follows the tiles of a grid of more than one.
    pub has_thumbnail: bool,
}

impl Default for Tiling {
    /// Returns the tiling of the published models.
    fn default() -> Self {
        Self { size: 448, min: 1, max: 12, has_thumbnail: true }
    }
}

impl Tiling {
    /// Returns the columns and rows of the grid for a photograph of this width and height: those whose ratio is nearest to
    /// the photograph's. The larger of two equally near grids is taken if the photograph has more than half of its pixels.
    pub fn grid(&self, width: u32, height: u32) -> (u32, u32) {
        let aspect = f64::from(width) / f64::from(height.max(1));
        let area = f64::from(width) * f64::from(height);
        let tile = f64::from(self.size) * f64::from(self.size);
        let (mut best, mut nearest) = ((1, 1), f64::INFINITY);
        for (columns, rows) in self.grids() {
            let difference = (aspect - f64::from(columns) / f64::from(rows)).abs();
            let has_pixels = area > 0.5 * tile * f64::from(columns) * f64::from(rows);
            if difference < nearest || (difference == nearest && has_pixels) {
                (best, nearest) = ((columns, rows), difference);
            }
        }
        best
    }

    /// Returns all grids of the permitted numbers of tiles, ascending by number.
    fn grids(&self) -> Vec<(u32, u32)> {
        let pairs = (1..=self.max).flat_map(|columns| (1..=self.max / columns).map(move |rows| (columns, rows)));
        let mut grids: Vec<(u32, u32)> = pairs.filter(|(columns, rows)| columns * rows >= self.min).collect();
        grids.sort_by_key(|(columns, rows)| columns * rows);
        grids
    }

    /// Returns the number of pictures that [`tiles`](Self::tiles) makes.
    pub fn count(&self, width: u32, height: u32) -> usize {
        let (columns, rows) = self.grid(width, height);
        let tiles = columns as usize * rows as usize;
        if self.has_thumbnail && tiles > 1 { tiles + 1 } else { tiles }
    }

    /// Cuts a photograph of any size into tiles, row by row, after it was resized to the size of the grid as Pillow does it
    /// (bicubic, aspect ratio not kept).
    pub fn tiles(&self, image: &RgbImage) -> Vec<RgbImage> {
        let (columns, rows) = self.grid(image.width(), image.height());
        let resized = resize::rgb(image, columns * self.size, rows * self.size, Filter::Bicubic);
        let places = (0..rows).flat_map(|row| (0..columns).map(move |column| (column * self.size, row * self.size)));
        let cut = |(x, y)| imageops::crop_imm(&resized, x, y, self.size, self.size).to_image();
        let mut tiles: Vec<RgbImage> = places.map(cut).collect();
        if self.has_thumbnail && tiles.len() > 1 {
            tiles.push(resize::rgb(image, self.size, self.size, Filter::Bicubic));
        }
        tiles
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grid_has_the_shape_of_the_photograph() {
        let tiling = Tiling::default();
        assert_eq!(tiling.grid(448, 448), (1, 1));
        assert_eq!(tiling.grid(900, 900), (2, 2), "a square with more than half of the pixels of 2 x 2");
        assert_eq!(tiling.grid(1920, 1080), (4, 2));
        assert_eq!(tiling.grid(300, 1200), (1, 4));
        assert_eq!(Tiling { min: 5, ..tiling }.grid(448, 448), (3, 3), "at least five tiles");
        assert_eq!(Tiling { max: 1, ..tiling }.grid(4000, 300), (1, 1));
    }

    #[test]
    fn photographs_of_any_size_have_tiles() {
        let tiling = Tiling { size: 28, ..Tiling::default() };
        let cut = |width, height| tiling.tiles(&RgbImage::from_pixel(width, height, image::Rgb([9, 8, 7])));
        for (width, height, count) in [(1, 1, 1), (20_000, 10, 13), (10, 20_000, 13), (60, 60, 10)] {
            let tiles = cut(width, height);
            assert_eq!((tiles.len(), tiling.count(width, height)), (count, count), "{width} x {height}");
            assert!(tiles.iter().all(|tile| tile.dimensions() == (28, 28)));
        }
        assert!(cut(1, 1)[0].pixels().all(|pixel| pixel.0 == [9, 8, 7]));
    }

    #[test]
    fn tiles_are_cut_row_by_row_and_the_whole_follows() {
        let tiling = Tiling { size: 2, min: 1, max: 4, has_thumbnail: true };
        let quarters = RgbImage::from_fn(4, 4, |x, y| image::Rgb([(x / 2 + y / 2 * 2) as u8 * 50; 3]));
        let tiles = tiling.tiles(&quarters);
        let first: Vec<u8> = tiles[..4].iter().map(|tile| tile.get_pixel(0, 0).0[0]).collect();
        assert_eq!(first, [0, 50, 100, 150]);
        assert_eq!(tiles[4..], [resize::rgb(&quarters, 2, 2, Filter::Bicubic)]);
    }
}
