//! The connected regions of a mask. Pixels that touch at an edge or a corner belong to one region.

use super::MetricError;

/// The 8-connected regions of one mask (the default of `skimage.measure.label` and OpenCV), numbered from 1 by their
/// first pixel in row-major order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Components {
    /// `[H, W]`, row-major: the number of the pixel's region, 0 for background.
    pub labels: Vec<u32>,
    /// Pixels per region; region `n` is at `n - 1`.
    pub areas: Vec<u64>,
}

impl Components {
    /// Labels a row-major mask `[H, width]` with true for foreground. Fails if it does not consist of whole rows.
    ///
    /// The first of two passes gives provisional numbers and records which of them touch; the second replaces them by
    /// the final ones.
    pub fn label(mask: &[bool], width: usize) -> Result<Self, MetricError> {
        if !mask.is_empty() && (width == 0 || !mask.len().is_multiple_of(width)) {
            return Err(MetricError::Width { pixels: mask.len(), width });
        }
        let mut labels = vec![0u32; mask.len()];
        let mut forest = Forest::default();
        for (i, _) in mask.iter().enumerate().filter(|(_, foreground)| **foreground) {
            let (x, first_row) = (i % width, i < width);
            let west = if x == 0 { 0 } else { labels[i - 1] };
            let north = if first_row { 0 } else { labels[i - width] };
            let north_west = if first_row || x == 0 { 0 } else { labels[i - width - 1] };
            let north_east = if first_row || x + 1 == width { 0 } else { labels[i - width + 1] };
            // North touches the other three, and west touches north-west. So two regions can be joined here only
            // through north-east.
            let left = if west != 0 { west } else { north_west };
            labels[i] = match (north, left, north_east) {
                (0, 0, 0) => forest.plant(),
                (0, 0, only) | (0, only, 0) => only,
                (0, left, right) => forest.join(left, right),
                (north, ..) => north,
            };
        }
        let (numbers, regions) = forest.number();
        let mut areas = vec![0; regions];
        for label in labels.iter_mut().filter(|label| **label != 0) {
            *label = numbers[*label as usize];
            areas[*label as usize - 1] += 1;
        }
        Ok(Self { labels, areas })
    }
}

/// Disjoint sets of provisional labels. A parent is never larger than its child, so a root is the earliest label of its
/// set.
#[derive(Debug)]
struct Forest(Vec<u32>);

impl Default for Forest {
    /// Makes a forest of label 0 alone, the background, which is its own root.
    fn default() -> Self {
        Self(vec![0])
    }
}

impl Forest {
    fn plant(&mut self) -> u32 {
        let label = self.0.len() as u32;
        self.0.push(label);
        label
    }

    fn root(&mut self, mut label: u32) -> u32 {
        while self.0[label as usize] != label {
            let parent = self.0[label as usize];
            self.0[label as usize] = self.0[parent as usize]; // halves the path for the next search
            label = self.0[label as usize];
        }
        label
    }

    fn join(&mut self, a: u32, b: u32) -> u32 {
        let (a, b) = (self.root(a), self.root(b));
        self.0[a.max(b) as usize] = a.min(b);
        a.min(b)
    }

    /// Returns the final number of every provisional label, and the count of final numbers.
    fn number(self) -> (Vec<u32>, usize) {
        let mut numbers = vec![0; self.0.len()];
        let mut regions = 0;
        for (label, parent) in self.0.into_iter().enumerate().skip(1) {
            numbers[label] = if parent as usize == label {
                regions += 1;
                regions
            } else {
                numbers[parent as usize]
            };
        }
        (numbers, regions as usize)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Labels by flood fill, which follows the definition.
    pub(crate) fn flood_fill(mask: &[bool], width: usize) -> Components {
        let mut labels = vec![0u32; mask.len()];
        let mut areas = Vec::new();
        for start in 0..mask.len() {
            if !mask[start] || labels[start] != 0 {
                continue;
            }
            areas.push(0);
            labels[start] = areas.len() as u32;
            let mut open = vec![start];
            while let Some(i) = open.pop() {
                areas[labels[start] as usize - 1] += 1;
                for j in 0..mask.len() {
                    let touches = (i % width).abs_diff(j % width) <= 1 && (i / width).abs_diff(j / width) <= 1;
                    if touches && mask[j] && labels[j] == 0 {
                        labels[j] = labels[start];
                        open.push(j);
                    }
                }
            }
        }
        Components { labels, areas }
    }

    fn drawn(rows: &[&str]) -> Components {
        let mask: Vec<bool> = rows.concat().chars().map(|c| c == '#').collect();
        Components::label(&mask, rows[0].len()).unwrap()
    }

    #[test]
    fn pixels_that_touch_at_a_corner_are_one_region() {
        assert_eq!(drawn(&["#..", ".#.", "..#"]).areas, [3]);
        assert_eq!(drawn(&["..#", ".#.", "#.."]).areas, [3]);
        assert_eq!(drawn(&["#.#", "...", "#.#"]).areas, [1, 1, 1, 1]);
    }

    #[test]
    fn the_ends_of_adjacent_rows_do_not_touch() {
        let regions = drawn(&["..#", "#..", "..."]);
        assert_eq!((regions.areas, regions.labels[2], regions.labels[3]), (vec![1, 1], 1, 2));
        assert_eq!(drawn(&["..#", "...", "#.."]).areas, [1, 1]);
    }

    #[test]
    fn arms_that_meet_late_are_one_region() {
        let regions = drawn(&["#.#.#", "#.#.#", "#####", ".....", "..#.."]);
        assert_eq!(regions.areas, [11, 1]);
        assert_eq!(regions.labels[..5], [1, 0, 1, 0, 1]);
        assert_eq!(regions.labels[22], 2);
    }

    #[test]
    fn a_mask_without_whole_rows_is_refused() {
        assert_eq!(Components::label(&[true; 7], 3), Err(MetricError::Width { pixels: 7, width: 3 }));
        assert_eq!(Components::label(&[true], 0), Err(MetricError::Width { pixels: 1, width: 0 }));
        assert!(Components::label(&[], 0).unwrap().areas.is_empty());
    }

    fn uniform() -> impl Strategy<Value = Vec<f64>> {
        prop::collection::vec(0.0..1.0f64, 0..168)
    }

    proptest! {
        #[test]
        fn labels_equal_those_of_flood_fill(width in 1..14usize, density in 0.1..0.9f64, noise in uniform()) {
            let rows = noise.len() / width;
            let mask: Vec<bool> = noise[..rows * width].iter().map(|u| *u < density).collect();
            prop_assert_eq!(Components::label(&mask, width).unwrap(), flood_fill(&mask, width));
        }
    }
}
