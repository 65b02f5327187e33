//! Contours of labelled regions as polygons.

/// A corner of a pixel: (0, 0) is the upper left corner of the first pixel.
pub type Corner = (u32, u32);

/// Returns the outer contour of a region along the edges of its pixels, clockwise from the upper left corner of its
/// first pixel; corners on a straight line are left out. Holes are passed over.
///
/// `labels` are row-major, and `first` is the index of the first pixel of the region in that order. Pixels of a region
/// touch at an edge or a corner. The contour is followed with the region on the right-hand side (border following;
/// Rosenfeld 1970, "Connectivity in digital pictures", on the edges between pixels).
pub fn trace(labels: &[u32], width: usize, first: usize) -> Vec<Corner> {
    let (width, height) = (width as i64, (labels.len() / width.max(1)) as i64);
    let region = labels[first];
    let inside = |x: i64, y: i64| {
        (0..width).contains(&x) && (0..height).contains(&y) && labels[(y * width + x) as usize] == region
    };
    let start = (first as i64 % width, first as i64 / width);
    let (mut x, mut y) = start;
    let (mut dx, mut dy) = (1, 0);
    let mut corners = vec![(x as u32, y as u32)];
    loop {
        (x, y) = (x + dx, y + dy);
        if (x, y) == start {
            // No other pixel of the region lies above or left of the first, so the contour passes here once.
            return corners;
        }
        // The two pixels ahead: those on the left and on the right of the next edge.
        let ahead = |side: i64| {
            let (right_x, right_y) = (-dy * side, dx * side);
            inside(x + (dx + right_x - 1) / 2, y + (dy + right_y - 1) / 2)
        };
        // Left first, so that pixels that touch at a corner are kept together.
        let turn = match (ahead(-1), ahead(1)) {
            (true, _) => -1,
            (false, true) => 0,
            (false, false) => 1,
        };
        if turn != 0 {
            (dx, dy) = (-dy * turn, dx * turn);
            corners.push((x as u32, y as u32));
        }
    }
}

/// Leaves out corners of a closed polygon, so that none is farther than `tolerance` pixels from the new line (Douglas
/// and Peucker 1973). A polygon that would lose its area stays as it is.
pub fn simplify(polygon: &[Corner], tolerance: f64) -> Vec<Corner> {
    let Some(opposite) = farthest(polygon, 0, polygon.len(), |corner| distance_to_point(corner, polygon[0])) else {
        return polygon.to_vec();
    };
    let mut is_kept = vec![false; polygon.len()];
    (is_kept[0], is_kept[opposite.0]) = (true, true);
    let mut open = vec![(0, opposite.0), (opposite.0, polygon.len())];
    while let Some((start, end)) = open.pop() {
        let (a, b) = (polygon[start], polygon[end % polygon.len()]);
        if let Some((at, distance)) = farthest(polygon, start, end, |corner| distance_to_segment(corner, a, b))
            && distance > tolerance
        {
            is_kept[at] = true;
            open.extend([(start, at), (at, end)]);
        }
    }
    let kept: Vec<Corner> =
        polygon.iter().zip(is_kept).filter(|(_, is_kept)| *is_kept).map(|(corner, _)| *corner).collect();
    if twice_area(&kept) == 0 { polygon.to_vec() } else { kept }
}

/// Returns the corner between two others that is farthest by a measure, and its distance.
fn farthest(polygon: &[Corner], start: usize, end: usize, measure: impl Fn(Corner) -> f64) -> Option<(usize, f64)> {
    let between = (start + 1..end).map(|at| (at, measure(polygon[at])));
    between.max_by(|a, b| a.1.total_cmp(&b.1))
}

fn distance_to_point((x, y): Corner, (a, b): Corner) -> f64 {
    (f64::from(x) - f64::from(a)).hypot(f64::from(y) - f64::from(b))
}

fn distance_to_segment(corner: Corner, a: Corner, b: Corner) -> f64 {
    let difference = |p: Corner, q: Corner| (f64::from(p.0) - f64::from(q.0), f64::from(p.1) - f64::from(q.1));
    let ((ux, uy), (vx, vy)) = (difference(b, a), difference(corner, a));
    let length = ux * ux + uy * uy;
    let along = if length > 0. { ((vx * ux + vy * uy) / length).clamp(0., 1.) } else { 0. };
    (vx - along * ux).hypot(vy - along * uy)
}

/// Returns twice the area that a polygon encloses.
pub fn twice_area(polygon: &[Corner]) -> u64 {
    let next = polygon.iter().cycle().skip(1);
    let crossed = |((x, y), (u, v)): (&Corner, &Corner)| i64::from(*x) * i64::from(*v) - i64::from(*u) * i64::from(*y);
    polygon.iter().zip(next).map(crossed).sum::<i64>().unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traced(rows: &[&str]) -> Vec<Corner> {
        let labels: Vec<u32> = rows.concat().chars().map(|c| u32::from(c == '#')).collect();
        trace(&labels, rows[0].len(), labels.iter().position(|label| *label == 1).unwrap())
    }

    #[test]
    fn contour_goes_around_the_pixels() {
        assert_eq!(traced(&["#"]), [(0, 0), (1, 0), (1, 1), (0, 1)]);
        assert_eq!(traced(&["....", ".##.", ".#..", "...."]), [(1, 1), (3, 1), (3, 2), (2, 2), (2, 3), (1, 3)]);
        // A hole is passed over.
        assert_eq!(traced(&["###", "#.#", "###"]), [(0, 0), (3, 0), (3, 3), (0, 3)]);
    }

    #[test]
    fn pixels_that_touch_at_a_corner_have_one_contour() {
        assert_eq!(traced(&["#.", ".#"]), [(0, 0), (1, 0), (1, 1), (2, 1), (2, 2), (1, 2), (1, 1), (0, 1)]);
        assert_eq!(traced(&[".#", "#."]), [(1, 0), (2, 0), (2, 1), (1, 1), (1, 2), (0, 2), (0, 1), (1, 1)]);
    }

    #[test]
    fn contour_without_holes_encloses_as_many_pixels_as_the_region() {
        for rows in [&["##..", "###.", ".###", "..##"][..], &["#.#.#", "#####", "#.#.#"], &["..#..", ".###.", "#####"]]
        {
            let pixels = rows.concat().matches('#').count() as u64;
            assert_eq!(twice_area(&traced(rows)), 2 * pixels, "{rows:?}");
        }
    }

    #[test]
    fn simplified_polygon_stays_within_the_tolerance() {
        // The staircase below the diagonal of a triangle lies within one pixel of it.
        let side = 40;
        let rows: Vec<String> = (1..=side).map(|n| "#".repeat(n) + &".".repeat(side - n)).collect();
        let polygon = traced(&rows.iter().map(String::as_str).collect::<Vec<_>>());
        let simple = simplify(&polygon, 1.);
        assert!(polygon.len() > 2 * side && simple.len() <= 5, "{simple:?}");
        for corner in &polygon {
            let next = simple.iter().cycle().skip(1);
            let nearest = simple.iter().zip(next).map(|(a, b)| distance_to_segment(*corner, *a, *b));
            assert!(nearest.fold(f64::INFINITY, f64::min) <= 1., "{corner:?}");
        }
        assert_eq!(simplify(&polygon, 0.), polygon);
        let pixel = traced(&["#"]);
        assert_eq!(simplify(&pixel, 5.), pixel);
    }
}
