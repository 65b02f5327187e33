//! The connected regions of a mask. Pixels that touch at an edge or a corner belong to one region.

use std::ops::Range;

use super::MetricError;

/// The 8-connected regions of one mask (the default of `skimage.measure.label` and OpenCV), numbered from 1 by their
/// first pixel in row-major order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Components {
    /// Pixels per region; region `n` is at `n - 1`.
    pub areas: Vec<u64>,
    /// The foreground, row by row from left to right.
    pub(super) runs: Vec<Run>,
    /// Pixels of the mask.
    pub(super) pixels: usize,
}

/// Neighbouring pixels of a row that belong to one region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Run {
    /// Places in the row-major mask.
    pub(super) pixels: Range<usize>,
    /// The number of the region.
    pub(super) region: u32,
}

impl Components {
    /// Labels a row-major mask `[H, width]` with true for foreground. Fails if it does not consist of whole rows.
    pub fn label(mask: &[bool], width: usize) -> Result<Self, MetricError> {
        Self::of(mask, width)
    }

    /// Does as [`Components::label`] for a mask of bytes, of which those above 0 are foreground.
    pub fn of_bytes(mask: &[u8], width: usize) -> Result<Self, MetricError> {
        Self::of(mask, width)
    }

    /// The first of two passes gives runs provisional numbers and records which of them touch; the second replaces them by
    /// the final ones.
    fn of<P: Pixel>(mask: &[P], width: usize) -> Result<Self, MetricError> {
        if !mask.is_empty() && (width == 0 || !mask.len().is_multiple_of(width)) {
            return Err(MetricError::Width { pixels: mask.len(), width });
        }
        let mut runs: Vec<Run> = Vec::new();
        let mut forest = Forest::default();
        // The runs of the row above from the first one that a run further right can touch.
        let (mut above, mut row, mut row_start) = (0..0, 0, 0);
        let mut end = 0;
        loop {
            let start = P::next(mask, end, true);
            if start == mask.len() {
                break;
            }
            if start / width != row {
                let is_next = start / width == row + 1;
                above = if is_next { row_start..runs.len() } else { 0..0 };
                (row, row_start) = (start / width, runs.len());
            }
            end = P::next(&mask[..(row + 1) * width], start, false);
            let mut region = None;
            // A run above touches this one if it reaches from its left neighbour to its right one.
            while let Some(other) = runs[above.clone()].first().filter(|other| other.pixels.start + width <= end) {
                if other.pixels.end + width >= start {
                    region = Some(region.map_or(other.region, |region| forest.join(region, other.region)));
                }
                if other.pixels.end + width > end {
                    // It may touch the next run of this row too.
                    break;
                }
                above.start += 1;
            }
            let region = region.unwrap_or_else(|| forest.plant());
            runs.push(Run { pixels: start..end, region });
        }
        let (numbers, regions) = forest.number();
        let mut areas = vec![0; regions];
        for run in &mut runs {
            run.region = numbers[run.region as usize];
            areas[run.region as usize - 1] += run.pixels.len() as u64;
        }
        Ok(Self { areas, runs, pixels: mask.len() })
    }

    /// Returns for each pixel, `[H, W]`, row-major, the number of its region, 0 for background.
    pub fn labels(&self) -> Vec<u32> {
        let mut labels = vec![0; self.pixels];
        self.runs.iter().for_each(|run| labels[run.pixels.clone()].fill(run.region));
        labels
    }

    /// Returns the regions as they lie among those pixels for which `judged` is true, as all foreground is.
    pub(super) fn among(self, judged: &[bool]) -> Self {
        let count = |pixels: &[bool]| pixels.iter().filter(|is_judged| **is_judged).count();
        let (mut seen, mut before) = (0, 0);
        let moved = |run: Run| {
            before += count(&judged[seen..run.pixels.start]);
            seen = run.pixels.start;
            Run { pixels: before..before + run.pixels.len(), region: run.region }
        };
        Self { runs: self.runs.into_iter().map(moved).collect(), pixels: count(judged), ..self }
    }
}

/// Returns true if a mask of bytes has foreground.
pub fn has_foreground(mask: &[u8]) -> bool {
    u8::next(mask, 0, true) < mask.len()
}

/// A pixel of a mask.
trait Pixel: Copy {
    /// Returns the first place from `from` on that is foreground, or background; the length of the mask if there is none.
    fn next(mask: &[Self], from: usize, foreground: bool) -> usize;
}

/// The number of pixels that are looked at together.
const TOGETHER: usize = 32;

impl Pixel for bool {
    fn next(mask: &[Self], from: usize, foreground: bool) -> usize {
        let rest = &mask[from..];
        let skipped =
            rest.as_chunks().0.iter().take_while(|pixels| **pixels == [!foreground; TOGETHER]).count() * TOGETHER;
        let found = rest[skipped..].iter().position(|pixel| *pixel == foreground);
        from + found.map_or(rest.len(), |found| skipped + found)
    }
}

impl Pixel for u8 {
    fn next(mask: &[Self], from: usize, foreground: bool) -> usize {
        let rest = &mask[from..];
        let has_none = |pixels: &&[u8; TOGETHER]| {
            if foreground { **pixels == [0; TOGETHER] } else { pixels.iter().all(|pixel| *pixel > 0) }
        };
        let skipped = rest.as_chunks().0.iter().take_while(has_none).count() * TOGETHER;
        let found = rest[skipped..].iter().position(|pixel| (*pixel > 0) == foreground);
        from + found.map_or(rest.len(), |found| skipped + found)
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

    /// Labels by flood fill, which follows the definition. Returns labels and areas.
    pub(crate) fn flood_fill(mask: &[bool], width: usize) -> (Vec<u32>, Vec<u64>) {
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
        (labels, areas)
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
        assert_eq!((&regions.areas[..], regions.labels()), (&[1, 1][..], vec![0, 0, 1, 2, 0, 0, 0, 0, 0]));
        assert_eq!(drawn(&["..#", "...", "#.."]).areas, [1, 1]);
    }

    #[test]
    fn arms_that_meet_late_are_one_region() {
        let regions = drawn(&["#.#.#", "#.#.#", "#####", ".....", "..#.."]);
        assert_eq!(regions.areas, [11, 1]);
        let labels = regions.labels();
        assert_eq!((&labels[..5], labels[22]), (&[1, 0, 1, 0, 1][..], 2));
    }

    #[test]
    fn a_mask_without_whole_rows_is_refused() {
        assert_eq!(Components::label(&[true; 7], 3), Err(MetricError::Width { pixels: 7, width: 3 }));
        assert_eq!(Components::label(&[true], 0), Err(MetricError::Width { pixels: 1, width: 0 }));
        assert!(Components::label(&[], 0).unwrap().areas.is_empty());
    }

    fn uniform() -> impl Strategy<Value = Vec<f64>> {
        prop::collection::vec(0.0..1.0f64, 0..360)
    }

    proptest! {
        #[test]
        fn labels_equal_those_of_flood_fill(width in prop_oneof![1..14usize, 40..90usize], density in 0.1..0.9f64, noise in uniform()) {
            let rows = noise.len() / width;
            let mask: Vec<bool> = noise[..rows * width].iter().map(|u| *u < density).collect();
            let found = Components::label(&mask, width).unwrap();
            prop_assert_eq!((found.labels(), found.areas.clone()), flood_fill(&mask, width));
            let bytes: Vec<u8> = mask.iter().zip(&noise).map(|(pixel, u)| if *pixel { 1 + (u * 254.) as u8 } else { 0 }).collect();
            prop_assert_eq!(has_foreground(&bytes), mask.contains(&true));
            prop_assert_eq!(Components::of_bytes(&bytes, width).unwrap(), found);
        }
    }
}
