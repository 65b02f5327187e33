//! Masks that are drawn from annotations: polygons, filled as OpenCV 4 fills them (`fillPoly`), and run lengths of COCO.

use image::{GrayImage, Luma};
use serde::{Deserialize, Serialize};

/// A mask before it is drawn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drawing {
    /// Width and height of the mask.
    pub size: (u32, u32),
    /// The anomalous regions.
    pub shapes: Vec<Shape>,
}

/// A region of a mask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// The corners (x, y) of a polygon, whose outline belongs to it. Pixels that it covers twice are outside.
    Polygon(Vec<(i32, i32)>),
    /// Lengths of runs of pixels that go down one column after the other, the first of which is outside.
    Runs(Vec<u32>),
}

impl Drawing {
    /// Draws the mask: 255 inside any of the shapes, 0 elsewhere.
    pub fn mask(&self) -> GrayImage {
        let mut canvas = Canvas(GrayImage::new(self.size.0, self.size.1));
        for shape in &self.shapes {
            match shape {
                Shape::Polygon(corners) => canvas.fill(corners),
                Shape::Runs(runs) => canvas.fill_runs(runs),
            }
        }
        canvas.0
    }
}

/// The number of bits behind the point of an edge's place in a row.
const SHIFT: u32 = 16;

/// A corner, x and y.
type Corner = [i64; 2];

/// An edge of a polygon that crosses rows.
struct Edge {
    /// The first row.
    from: i64,
    /// The row after the last.
    to: i64,
    /// The place in the first row, in 2^-16 pixels.
    x: i64,
    /// The change of the place from row to row.
    slope: i64,
}

struct Canvas(GrayImage);

impl Canvas {
    fn size(&self) -> [i64; 2] {
        [self.0.width().into(), self.0.height().into()]
    }

    /// Fills the columns from the first to the last of a row, as far as they exist.
    fn fill_row(&mut self, y: i64, first: i64, last: i64) {
        for x in first.max(0)..=last.min(self.size()[0] - 1) {
            self.0.put_pixel(x as u32, y as u32, Luma([255]));
        }
    }

    fn fill(&mut self, corners: &[(i32, i32)]) {
        let corners: Vec<Corner> = corners.iter().map(|(x, y)| [i64::from(*x), i64::from(*y)]).collect();
        let previous = corners.iter().cycle().skip(corners.len().saturating_sub(1));
        let mut edges = Vec::with_capacity(corners.len());
        for ends in previous.zip(&corners).map(|(from, to)| [*from, *to]) {
            let (is_seen, clipped) = self.clip(ends);
            if is_seen {
                self.draw_line(clipped);
            }
            edges.extend(edge(ends, clipped));
        }
        let first = edges.iter().map(|edge| edge.from).min().unwrap_or(0).max(0);
        let end = edges.iter().map(|edge| edge.to).max().unwrap_or(0).min(self.size()[1]);
        for y in first..end {
            let crossing = edges.iter().filter(|edge| (edge.from..edge.to).contains(&y));
            let mut places: Vec<i64> = crossing.map(|edge| edge.x + (y - edge.from) * edge.slope).collect();
            places.sort_unstable();
            for inside in places.as_chunks::<2>().0 {
                self.fill_row(y, inside[0] >> SHIFT, inside[1] >> SHIFT);
            }
        }
    }

    /// Moves the ends of a line to the border of the picture, to whole pixels: first up and down, then left and right. Also
    /// returns whether any of the line is in the picture; if none is, its ends may be moved all the same.
    fn clip(&self, mut ends: [Corner; 2]) -> (bool, [Corner; 2]) {
        let size = self.size();
        let side = |end: Corner, axis: usize| match end[axis] {
            ..0 => -1,
            at if at >= size[axis] => 1,
            _ => 0,
        };
        for axis in [1, 0] {
            let is_beside = |axis: usize| side(ends[0], axis) != 0 && side(ends[0], axis) == side(ends[1], axis);
            if is_beside(0) || is_beside(1) {
                return (false, ends);
            }
            for end in 0..2 {
                let border = match side(ends[end], axis) {
                    0 => continue,
                    1 => size[axis] - 1,
                    _ => 0,
                };
                let [rise, run] = [1 - axis, axis].map(|axis| (ends[1][axis] - ends[0][axis]) as f64);
                ends[end][1 - axis] += ((border - ends[end][axis]) as f64 * rise / run) as i64;
                ends[end][axis] = border;
            }
        }
        (true, ends)
    }

    /// Draws a line within the picture: a pixel in each column, or in each row if it is steeper, from left to right.
    /// Half a pixel is rounded toward the first end (Bresenham 1965, "Algorithm for computer control of a digital
    /// plotter").
    fn draw_line(&mut self, mut ends: [Corner; 2]) {
        if ends[0][0] > ends[1][0] {
            ends.swap(0, 1);
        }
        let [first, last] = ends;
        let [dx, dy] = [last[0] - first[0], last[1] - first[1]];
        let steps = dx.max(dy.abs());
        for step in 0..=steps {
            let part = |of: i64| (2 * step * of + steps - 1).checked_div(2 * steps).unwrap_or(0);
            let (x, y) = (first[0] + part(dx), first[1] + part(dy.abs()) * dy.signum());
            self.0.put_pixel(x as u32, y as u32, Luma([255]));
        }
    }

    fn fill_runs(&mut self, runs: &[u32]) {
        let height = u64::from(self.0.height());
        let pixels = u64::from(self.0.width()) * height;
        let mut start = 0;
        for (number, length) in runs.iter().enumerate() {
            let end = start + u64::from(*length);
            if number % 2 == 1 {
                for at in start..end.min(pixels) {
                    self.0.put_pixel((at / height) as u32, (at % height) as u32, Luma([255]));
                }
            }
            start = end;
        }
    }
}

/// Returns the edge between two corners; `None` if it lies in one row. An edge that leaves the picture follows its
/// clipped line.
fn edge(ends: [Corner; 2], clipped: [Corner; 2]) -> Option<Edge> {
    let [from, to] = ends.map(|[_, y]| y);
    if from == to {
        return None;
    }
    let line = match ends == clipped || clipped[0][1] == clipped[1][1] {
        true => ends,
        false => clipped,
    };
    // The middles of pixels, unless the line was clipped.
    let half = if ends == clipped { 1 << (SHIFT - 1) } else { 0 };
    let [first, last] = line.map(|[x, y]| [(x << SHIFT) + half, y]);
    let slope = (last[0] - first[0]) / (last[1] - first[1]);
    let upper = if from < to { first } else { last };
    let top = from.min(to);
    Some(Edge { from: top, to: from.max(to), x: upper[0] + (top - upper[1]) * slope, slope })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the rows of a drawing, with `#` inside.
    fn rows(size: (u32, u32), shapes: &[Shape]) -> Vec<String> {
        let mask = Drawing { size, shapes: shapes.to_vec() }.mask();
        mask.rows().map(|row| row.map(|pixel| if pixel.0[0] > 0 { '#' } else { '.' }).collect()).collect()
    }

    #[test]
    fn polygon_includes_its_outline() {
        let square = Shape::Polygon(vec![(1, 1), (3, 1), (3, 3), (1, 3)]);
        assert_eq!(rows((5, 5), &[square]), [".....", ".###.", ".###.", ".###.", "....."]);
        let line = Shape::Polygon(vec![(0, 0), (3, 1)]);
        assert_eq!(rows((4, 2), &[line, Shape::Polygon(vec![(0, 1)]), Shape::Polygon(vec![])]), ["##..", "#.##"]);
    }

    #[test]
    fn polygons_are_filled_one_by_one_and_cut_at_the_border() {
        let [outer, inner] = [(0, 5), (2, 3)]
            .map(|(low, high)| Shape::Polygon(vec![(low, low), (high, low), (high, high), (low, high)]));
        // A second polygon makes no hole, and 5 lies outside of a picture of 5 pixels.
        assert_eq!(rows((5, 5), &[outer, inner]), ["#####"; 5]);
        // The edges cross each other at the middle, and both parts are inside.
        let crossed = Shape::Polygon(vec![(0, 0), (4, 4), (4, 0), (0, 4)]);
        assert_eq!(rows((5, 5), &[crossed]), ["#...#", "##.##", "#####", "##.##", "#...#"]);
    }

    #[test]
    fn polygons_are_filled_as_opencv_fills_them() {
        #[derive(Deserialize)]
        struct Golden {
            size: (u32, u32),
            polygon: Vec<(i32, i32)>,
            runs: Vec<u32>,
        }
        let lines = include_str!("../../data/golden/drawing/polygons.jsonl").lines();
        let golden: Vec<Golden> = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(golden.len(), 300);
        for Golden { size, polygon, runs } in golden {
            let filled = rows(size, &[Shape::Polygon(polygon.clone())]);
            assert_eq!(filled, rows(size, &[Shape::Runs(runs)]), "{polygon:?}");
        }
    }

    #[test]
    fn runs_go_down_columns() {
        // 2 outside, 3 inside, 1 outside, 2 inside, of two rows and four columns.
        assert_eq!(rows((4, 2), &[Shape::Runs(vec![2, 3, 1, 2])]), [".###", ".#.#"]);
        assert_eq!(rows((4, 2), &[Shape::Runs(vec![0, 900])]), ["####", "####"], "what is too long is cut");
    }
}
