//! Overlapping tiles: how they cover a picture, and how their maps become a map of the whole.

use std::collections::BTreeSet;

use super::{
    decode::MAX_PIXELS,
    placement::Axis,
    resize::{self, Filter},
};

/// Returns the places at which tiles begin along a side. Neighbours share `overlap` pixels, which is less than a tile; the
/// last tile is moved back to end where the side ends. A side that is shorter than a tile lies in the middle of one,
/// which then begins before it.
pub fn starts(side: u32, tile: u32, overlap: u32) -> Vec<i32> {
    let Some(last) = side.checked_sub(tile) else { return vec![-(((tile - side) / 2) as i32)] };
    let step = tile.saturating_sub(overlap).max(1);
    (0..last).step_by(step as usize).chain([last]).map(|start| start as i32).collect()
}

/// The maps of the tiles of a picture, which become a map of the whole. They fade into each other where they overlap, so
/// that there is no seam.
///
/// Each pixel of the whole is a weighted mean of pixels of tiles. The weight is a product of one for the column and one
/// for the row, so that neither the picture nor its map at the picture's size is ever in memory.
pub struct Mosaic {
    /// The width of a tile.
    tile_width: usize,
    columns: Tiled,
    rows: Tiled,
    /// The weighted sums of the map, row after row.
    sums: Vec<f64>,
}

/// The tiles along one side of a picture.
struct Tiled {
    /// The side of a map that the picture is resized into.
    map: Axis,
    /// The places at which they begin, ascending.
    starts: Vec<i32>,
    /// The shares of each tile in pixels of the map.
    shares: Vec<Vec<Share>>,
}

/// The share of a tile in a pixel of the map.
struct Share {
    /// The pixel of the map.
    to: usize,
    /// The first pixel of the tile.
    first: usize,
    /// The weights of it and of those after it.
    weights: Vec<f64>,
}

impl Mosaic {
    /// Begins a map, by the place of the picture in it. `picture` is the size (width, height) of the picture that was
    /// cut into tiles, `tile` that of a tile, and `places` are those of all tiles. `None` if they are not a grid that
    /// covers the picture.
    pub fn new(picture: (u32, u32), map: [Axis; 2], tile: (u32, u32), places: &[(i32, i32)]) -> Option<Self> {
        let xs: BTreeSet<i32> = places.iter().map(|(x, _)| *x).collect();
        let ys: BTreeSet<i32> = places.iter().map(|(_, y)| *y).collect();
        let distinct: BTreeSet<&(i32, i32)> = places.iter().collect();
        if distinct.len() != places.len() || places.len() != xs.len() * ys.len() {
            return None;
        }
        let [x, y] = map;
        // Tables that other programs made may have any places and sizes. Those of photographs that can be read stay below the
        // limit, and sums of two of them below that of `i32`.
        let sizes = [picture, (x.scaled, y.scaled), (x.picture, y.picture), tile];
        let has_pixels =
            |(width, height): (u32, u32)| (1..=MAX_PIXELS).contains(&(u64::from(width) * u64::from(height)));
        let is_near = |start: &i32| u64::from(start.unsigned_abs()) <= MAX_PIXELS;
        if !sizes.into_iter().all(has_pixels) || !xs.iter().chain(&ys).all(is_near) {
            return None;
        }
        let columns = Tiled::new(picture.0, x, tile.0, xs.into_iter().collect())?;
        let rows = Tiled::new(picture.1, y, tile.1, ys.into_iter().collect())?;
        let sums = vec![0.; x.picture as usize * y.picture as usize];
        Some(Self { tile_width: tile.0 as usize, columns, rows, sums })
    }

    /// Returns true if the map shows a part of the tile at a place.
    pub fn shows(&self, (x, y): (i32, i32)) -> bool {
        !self.columns.shares_of(x).is_empty() && !self.rows.shares_of(y).is_empty()
    }

    /// Adds the map of a tile, row after row, whose place is one of those with which the map was begun.
    pub fn add(&mut self, (x, y): (i32, i32), tile: &[f32]) {
        let (columns, rows) = (self.columns.shares_of(x), self.rows.shares_of(y));
        let weigh = |row: &[f32], share: &Share| -> f64 {
            row[share.first..].iter().zip(&share.weights).map(|(value, weight)| f64::from(*value) * weight).sum()
        };
        let narrow: Vec<f64> = tile
            .chunks_exact(self.tile_width)
            .flat_map(|row| columns.iter().map(move |share| weigh(row, share)))
            .collect();
        let side = self.columns.map.picture as usize;
        for Share { to, first, weights } in rows {
            for (row, weight) in narrow.chunks_exact(columns.len().max(1)).skip(*first).zip(weights) {
                for (value, column) in row.iter().zip(columns) {
                    self.sums[to * side + column.to] += weight * value;
                }
            }
        }
    }

    /// Returns the map after all tiles are added. Pixels beside the picture have the lowest value.
    pub fn finish(mut self) -> Vec<f64> {
        let (columns, rows) = (self.columns.inside(), self.rows.inside());
        let is_inside: Vec<bool> =
            rows.iter().flat_map(|row| columns.iter().map(move |column| *row && *column)).collect();
        let inside = self.sums.iter().zip(&is_inside).filter(|(_, is_inside)| **is_inside).map(|(value, _)| *value);
        let lowest = inside.fold(f64::INFINITY, f64::min);
        for (value, is_inside) in self.sums.iter_mut().zip(is_inside) {
            *value = if is_inside { *value } else { lowest };
        }
        self.sums
    }
}

impl Tiled {
    /// Finds what tiles give to the pixels of a map; `None` if they do not cover the side.
    fn new(side: u32, map: Axis, tile: u32, starts: Vec<i32>) -> Option<Self> {
        // A tile weighs most in its middle. Its weights are then divided by their sum over all tiles.
        let weight = |start: i32, at: i32| f64::from((at - start + 1).min(start + tile as i32 - at).max(0));
        let total = |at: i32| starts.iter().map(|start| weight(*start, at)).sum::<f64>();
        let totals: Vec<f64> = (0..side as i32).map(total).collect();
        if totals.contains(&0.) {
            return None;
        }
        let pixels = resize::taps(side, map.scaled, Filter::Bilinear);
        let of_tile = |start: &i32| -> Vec<Share> {
            let mut shares = Vec::new();
            for (taps, to) in pixels.iter().zip(i64::from(map.start)..) {
                let Some(to) = usize::try_from(to).ok().filter(|to| *to < map.picture as usize) else { continue };
                let (first, end) = (taps.first as i32, (taps.first + taps.weights.len()) as i32);
                let (from, to_end) = (first.max(*start), end.min(start + tile as i32));
                let weights = (from..to_end)
                    .map(|at| taps.weights[(at - first) as usize] * weight(*start, at) / totals[at as usize]);
                let weights: Vec<f64> = weights.collect();
                if !weights.is_empty() {
                    shares.push(Share { to, first: (from - start) as usize, weights });
                }
            }
            shares
        };
        let shares = starts.iter().map(of_tile).collect();
        Some(Self { map, starts, shares })
    }

    fn shares_of(&self, start: i32) -> &[Share] {
        self.starts.binary_search(&start).map_or(&[], |at| &self.shares[at])
    }

    /// Returns for each pixel of the map true if it lies in the picture.
    fn inside(&self) -> Vec<bool> {
        let Axis { start, scaled, picture, .. } = self.map;
        (0..i64::from(picture)).map(|at| (0..i64::from(scaled)).contains(&(at - i64::from(start)))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vision::placement::Placement;

    #[test]
    fn tiles_cover_a_side_and_end_where_it_ends() {
        assert_eq!(starts(500, 200, 50), [0, 150, 300]);
        assert_eq!(starts(510, 200, 50), [0, 150, 300, 310]);
        assert_eq!(starts(200, 200, 50), [0]);
        assert_eq!(starts(201, 200, 0), [0, 1]);
        assert_eq!(starts(100, 201, 50), [-50]);
        for side in 1..400 {
            let starts = starts(side, 64, 16);
            let is_tight = |pair: &[i32]| pair[0] < pair[1] && pair[1] - pair[0] <= 48;
            assert!(starts.windows(2).all(is_tight) && starts[0] <= 0, "{side} {starts:?}");
            let end = starts.last().unwrap() + 64;
            assert!(if side < 64 { end > side as i32 } else { end == side as i32 }, "{side} {starts:?}");
        }
    }

    /// Cuts a map into tiles, changes each of them, and puts them together.
    fn cut_and_stitched(
        (width, height): (u32, u32),
        placement: Placement,
        overlap: u32,
        value: impl Fn(u32, u32) -> f32,
        mut change: impl FnMut((i32, i32), &mut Vec<f32>),
    ) -> Vec<f64> {
        const TILE: (u32, u32) = (24, 20);
        let (xs, ys) = (starts(width, TILE.0, overlap), starts(height, TILE.1, overlap));
        let places: Vec<(i32, i32)> = xs.iter().flat_map(|x| ys.iter().map(move |y| (*x, *y))).collect();
        let mut mosaic = Mosaic::new((width, height), placement.axes(), TILE, &places).unwrap();
        for (x, y) in places {
            let at = |start: i32, at: u32, side: u32| (start + at as i32).clamp(0, side as i32 - 1) as u32;
            let pixels = (0..TILE.1).flat_map(|v| (0..TILE.0).map(move |u| (u, v)));
            let mut tile = pixels.map(|(u, v)| value(at(x, u, width), at(y, v, height))).collect();
            change((x, y), &mut tile);
            mosaic.add((x, y), &tile);
        }
        mosaic.finish()
    }

    fn wave(x: u32, y: u32) -> f32 {
        (x as f32 * 0.31).sin() + (y as f32 * 0.17).cos() * 2.
    }

    /// A weight is a quotient of numbers below 100, and sums of at most 9 of them are rounded to 2^-53: the tolerance of
    /// 1e-6 is that of the f32 in the tiles.
    #[test]
    fn map_that_was_cut_into_tiles_is_stitched_as_it_was() {
        for size @ (width, height) in [(100, 70), (24, 20), (101, 20), (13, 50), (9, 7)] {
            let whole = Placement::stretched(size, size);
            for overlap in [0, 5, 10] {
                let stitched = cut_and_stitched(size, whole, overlap, wave, |_, _| {});
                for (i, value) in stitched.iter().enumerate() {
                    let (x, y) = (i as u32 % width, i as u32 / width);
                    assert!((value - f64::from(wave(x, y))).abs() < 1e-6, "{size:?} {overlap} {x} {y}");
                }
                assert_eq!(stitched.len() as u32, width * height);
            }
        }
    }

    #[test]
    fn stitched_map_is_that_of_the_resized_whole() {
        let size = (100, 70);
        let values: Vec<f32> = (0..7000).map(|i| wave(i % 100, i / 100)).collect();
        for map in [(40, 32), (200, 140), (100, 17)] {
            let expected = resize::float(&values, size, map, Filter::Bilinear);
            let stitched = cut_and_stitched(size, Placement::stretched(size, map), 6, wave, |_, _| {});
            let is_near = |(a, b): (&f64, &f32)| (a - f64::from(*b)).abs() < 1e-5;
            assert!(stitched.iter().zip(&expected).all(is_near), "{map:?}");
        }
    }

    #[test]
    fn constant_map_stays_constant_and_a_border_has_the_lowest_value() {
        for placement in [
            Placement::stretched((100, 70), (31, 33)),
            Placement::padded((100, 70), (32, 32)),
            Placement::cropped((100, 70), (32, 32), 40),
        ] {
            let stitched = cut_and_stitched((100, 70), placement, 7, |_, _| 3.25, |_, _| {});
            assert!(stitched.iter().all(|value| (value - 3.25).abs() < 1e-6), "{placement:?}");
        }
        let padded = Placement::padded((100, 70), (32, 32));
        let stitched = cut_and_stitched((100, 70), padded, 7, |x, _| x as f32, |_, _| {});
        let lowest = stitched.iter().copied().fold(f64::INFINITY, f64::min);
        assert_eq!((stitched[0], stitched[31], stitched[32 * 32 - 1]), (lowest, lowest, lowest));
    }

    /// Tiles that differ by 1 fade into each other, by 1/11 a pixel where ten overlap. It is a little steeper where the last
    /// tile is moved back and three tiles overlap.
    #[test]
    fn tiles_that_differ_have_no_seam() {
        let size = (100, 20);
        let raise = |(x, _): (i32, i32), tile: &mut Vec<f32>| {
            if (x / 14) % 2 == 1 {
                tile.iter_mut().for_each(|value| *value += 1.);
            }
        };
        let stitched = cut_and_stitched(size, Placement::stretched(size, size), 10, |_, _| 0., raise);
        let row = &stitched[..100];
        let steepest = row.windows(2).map(|pair| (pair[1] - pair[0]).abs()).fold(0., f64::max);
        assert!(steepest < 0.13, "{steepest}");
        assert!(row.contains(&0.) && row.iter().any(|value| *value > 0.9));
    }

    #[test]
    fn tiles_beside_the_map_are_not_shown() {
        // 40x20 pixels, of which the 20 in the middle are shown: from 25 to 75 of the picture.
        let map = Placement::cropped((100, 50), (20, 20), 20).axes();
        let places = [(0, 0), (20, 0), (40, 0), (60, 0), (80, 0)];
        let mosaic = Mosaic::new((100, 50), map, (20, 50), &places).unwrap();
        assert_eq!(places.map(|place| mosaic.shows(place)), [false, true, true, true, false]);
    }

    #[test]
    fn tiles_that_leave_gaps_are_refused() {
        let map = Placement::stretched((100, 20), (100, 20)).axes();
        let is_whole = |places: &[(i32, i32)]| Mosaic::new((100, 20), map, (60, 20), places).is_some();
        assert!(is_whole(&[(0, 0), (40, 0)]));
        assert!(!is_whole(&[(0, 0)]), "the right is missing");
        assert!(!is_whole(&[(40, 0)]), "the left is missing");
        assert!(!is_whole(&[(0, 0), (40, 0), (40, 0)]), "a tile is there twice");
        assert!(!is_whole(&[]));
        let map = Placement::stretched((100, 40), (100, 40)).axes();
        let places = [(0, 0), (40, 0), (0, 20)];
        assert!(Mosaic::new((100, 40), map, (60, 20), &places).is_none(), "a corner is missing");
    }

    #[test]
    fn tiles_of_no_photograph_are_refused() {
        let map = Placement::stretched((100, 20), (100, 20)).axes();
        let is_whole = |picture, tile, places: &[(i32, i32)]| Mosaic::new(picture, map, tile, places).is_some();
        assert!(!is_whole((100, 20), (60, 20), &[(i32::MIN, 0), (0, 0), (40, 0), (i32::MAX, 0)]));
        assert!(!is_whole((u32::MAX, u32::MAX), (60, 20), &[(0, 0)]));
        assert!(!is_whole((u32::MAX, 0), (60, 20), &[(0, 0)]));
        let huge = Placement::cropped((1, 30_000), (100, 20), 1 << 20).axes();
        assert!(Mosaic::new((100, 20), huge, (100, 20), &[(0, 0)]).is_none());
    }
}
