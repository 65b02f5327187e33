//! Masks of pictures: turned like the picture, and checked for regions that resizing or cutting loses.

use image::{GrayImage, RgbImage, metadata::Orientation};
use vlmdiff_metrics::Components;

use crate::vision::{
    decode::{Mask, NoteText},
    placement::Placement,
};

const TURNED: NoteText =
    "the picture was turned as its EXIF orientation says, and its mask taken as drawn on the turned picture";
const BOTH_TURNED: NoteText = "the picture was turned as its EXIF orientation says, and its mask too, which has the size of the \
    picture as stored";
const EMPTIED: NoteText = "the mask became empty by resizing: it covers more than half of no pixel and is no region of AUPRO; a larger \
    `size` keeps it";
const PARTLY_LOST: NoteText = "a region of the mask was lost by resizing: it covers more than half of no pixel and is no region of \
    AUPRO; a larger `size` keeps it";

const CUT_OFF: NoteText = "a region of the mask lies outside the part of the photograph that `short_side` and `size` show, and is not \
    judged";

/// Turns a mask like its picture, if its size shows that it was drawn on the picture as stored.
pub(super) fn aligned(mut mask: Mask, picture: &RgbImage, turn: Orientation) -> Mask {
    let (width, height) = picture.dimensions();
    if turn == Orientation::NoTransforms {
        mask
    } else if mask.any.dimensions() == (width, height) {
        mask.notes.push(TURNED);
        mask
    } else if mask.any.dimensions() == (height, width) {
        let mut mask = mask.turned(turn);
        mask.notes.push(BOTH_TURNED);
        mask
    } else {
        mask
    }
}

/// Checks whether resizing loses a region of a mask, or all of it, and whether the picture shows each region at least in
/// part. `scaled` is the resized mask, and `placement` says where its pixels lie in the picture.
pub(super) fn lost(mask: &GrayImage, scaled: &GrayImage, placement: Placement) -> Vec<NoteText> {
    let Some((left, top, right, bottom)) = bounding_box(mask) else { return Vec::new() };
    if scaled.iter().all(|value| *value == 0) {
        return vec![EMPTIED];
    }
    let (width, height) = (right - left + 1, bottom - top + 1);
    let at = |x: u32, y: u32| mask.get_pixel(left + x, top + y).0[0] > 0;
    let inside: Vec<bool> = (0..height).flat_map(|y| (0..width).map(move |x| at(x, y))).collect();
    let Ok(regions) = Components::label(&inside, width as usize) else { return Vec::new() };
    let (mut kept, mut shown) = (vec![false; regions.areas.len()], vec![false; regions.areas.len()]);
    let whole = Placement::stretched(mask.dimensions(), scaled.dimensions());
    for (label, pixel) in regions.labels().iter().zip(0u32..).filter(|(label, _)| **label > 0) {
        let middle = |at: u32| f64::from(at) + 0.5;
        let place = (middle(left + pixel % width), middle(top + pixel / width));
        let (x, y) = whole.to_picture(place);
        kept[*label as usize - 1] |= scaled.get_pixel(x as u32, y as u32).0[0] > 0;
        shown[*label as usize - 1] |= placement.shows(place);
    }
    let notes = [(PARTLY_LOST, kept), (CUT_OFF, shown)];
    notes.into_iter().filter(|(_, of_regions)| of_regions.contains(&false)).map(|(note, _)| note).collect()
}

/// Returns the first and last column and row with an anomalous pixel: left, top, right, bottom.
fn bounding_box(mask: &GrayImage) -> Option<(u32, u32, u32, u32)> {
    let rows: Vec<(u32, u32, u32)> = (0u32..)
        .zip(mask.rows())
        .filter_map(|(y, mut row)| {
            let last = row.clone().rposition(|pixel| pixel.0[0] > 0)? as u32;
            Some((y, row.position(|pixel| pixel.0[0] > 0)? as u32, last))
        })
        .collect();
    let left = rows.iter().map(|(_, first, _)| *first).min()?;
    let right = rows.iter().map(|(_, _, last)| *last).max()?;
    Some((left, rows.first()?.0, right, rows.last()?.0))
}

#[cfg(test)]
mod tests {
    use image::Luma;

    use super::*;
    use crate::vision::resize;

    /// Makes a mask with squares of (left, top, side).
    fn squares(size: (u32, u32), squares: &[(u32, u32, u32)]) -> GrayImage {
        let inside = |at: u32, from: u32, side: u32| (from..from + side).contains(&at);
        GrayImage::from_fn(size.0, size.1, |x, y| {
            let is_in = squares.iter().any(|(left, top, side)| inside(x, *left, *side) && inside(y, *top, *side));
            Luma([if is_in { 255 } else { 0 }])
        })
    }

    fn notes(mask: &GrayImage, placement: Placement) -> Vec<NoteText> {
        let (width, height) = placement.scaled();
        lost(mask, &resize::mask(mask, width, height), placement)
    }

    #[test]
    fn note_on_regions_that_resizing_loses() {
        let lost = |mask: GrayImage, size| {
            let [stretched, padded] =
                [Placement::stretched, Placement::padded].map(|new| notes(&mask, new(mask.dimensions(), (size, size))));
            assert_eq!(stretched, padded);
            stretched
        };
        assert_eq!(lost(squares((256, 200), &[]), 32), [""; 0]);
        assert_eq!(lost(squares((256, 200), &[(100, 100, 4)]), 32), [EMPTIED]);
        assert_eq!(lost(squares((256, 200), &[(10, 10, 40), (190, 199, 1)]), 32), [PARTLY_LOST]);
        assert_eq!(lost(squares((256, 200), &[(10, 10, 40), (190, 150, 40)]), 32), [""; 0]);
        assert_eq!(lost(squares((20, 24), &[(0, 0, 1), (19, 23, 1), (7, 9, 2)]), 128), [""; 0]);
        assert_eq!(lost(squares((128, 128), &[(0, 0, 1), (100, 3, 1)]), 128), [""; 0]);
    }

    #[test]
    fn note_on_regions_that_are_cut_off() {
        let cropped = Placement::cropped((400, 200), (80, 80), 100);
        assert_eq!(notes(&squares((400, 200), &[(150, 60, 40)]), cropped), [""; 0]);
        assert_eq!(notes(&squares((400, 200), &[(150, 60, 40), (10, 10, 40)]), cropped), [CUT_OFF]);
        assert_eq!(notes(&squares((400, 200), &[(90, 60, 60)]), cropped), [""; 0], "a part is shown");
        assert_eq!(notes(&squares((400, 200), &[(150, 60, 40), (10, 10, 1)]), cropped), [PARTLY_LOST, CUT_OFF]);
    }

    #[test]
    fn mask_is_turned_with_its_picture() {
        let mask = |width, height| Mask {
            any: squares((width, height), &[(0, 0, 1)]),
            grey: Some(squares((width, height), &[(0, 0, 2)])),
            notes: Vec::new(),
        };
        let picture = RgbImage::new(6, 4);
        let turned = |mask, turn| {
            let mask = aligned(mask, &picture, turn);
            let first = mask.any.enumerate_pixels().find(|(_, _, pixel)| pixel.0[0] > 0).map(|(x, y, _)| (x, y));
            (mask.any.dimensions(), first.unwrap(), mask.grey.unwrap().dimensions(), mask.notes)
        };
        assert_eq!(turned(mask(6, 4), Orientation::NoTransforms), ((6, 4), (0, 0), (6, 4), vec![]));
        assert_eq!(turned(mask(6, 4), Orientation::Rotate180), ((6, 4), (0, 0), (6, 4), vec![TURNED]));
        assert_eq!(turned(mask(4, 6), Orientation::Rotate90), ((6, 4), (5, 0), (6, 4), vec![BOTH_TURNED]));
        // The mask fits in no orientation, so it is not turned; the caller reports it.
        assert_eq!(turned(mask(5, 6), Orientation::Rotate90), ((5, 6), (0, 0), (5, 6), vec![]));
    }
}
