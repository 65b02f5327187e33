//! Photographs and their masks, resized, out of which the stored pixels are cut.

use image::{GrayImage, Rgb, RgbImage, metadata::Orientation};

use super::{
    failure::Failure,
    files::{File, ListedMask},
    masks,
    roi::{Region, ScaledRegion},
};
use crate::vision::{
    decode::{self, NoteText, Photograph},
    placement::Placement,
    resize::{self, Filter},
};

/// The explanation for a picture whose size differs from that in its file.
const TURNED: &str = " (turned as its EXIF orientation says)";

/// The colour of what lies outside of the region of a photograph: the mean of ImageNet, which networks see as 0.
const OUTSIDE: Rgb<u8> = Rgb([124, 116, 104]);
/// A photograph of which nothing is judged.
const NOTHING_INSIDE: NoteText = "no pixel lies in `roi`; the corners of a polygon are in pixels of the photograph";
/// A defect that is not judged.
const OUTSIDE_MASK: NoteText = "a part of the mask lies outside of `roi`, and is not judged";

/// A photograph with its mask and its region, resized.
pub(super) struct Scaled {
    pub(super) uri: Option<String>,
    pub(super) file_digest: Option<String>,
    /// The place of the photograph, for messages.
    pub(super) place: String,
    /// Its place in the picture that it makes.
    pub(super) whole: Placement,
    image: RgbImage,
    mask: Option<ScaledMask>,
    region: Option<ScaledRegion>,
    pub(super) notes: Vec<NoteText>,
}

/// A resized mask, by two rules.
struct ScaledMask {
    /// 255 where more than half of a pixel is anomalous.
    majority: GrayImage,
    /// Above 0 wherever an anomaly touches a pixel.
    grey: GrayImage,
}

/// The pixels of a row.
pub(super) struct Cut {
    pub(super) pixels: Vec<u8>,
    pub(super) mask: Option<Vec<u8>>,
    pub(super) mask_grey: Option<Vec<u8>>,
    /// 255 in the region that is judged; `None` if that is the whole photograph.
    pub(super) roi: Option<Vec<u8>>,
    /// A note on what was cut.
    pub(super) note: Option<NoteText>,
}

impl Cut {
    /// Returns the same pixels as those of a whole photograph, of which a part should be judged. Of a tile there need be none.
    pub(super) fn of_whole(self) -> Self {
        let is_empty = self.roi.as_ref().is_some_and(|roi| roi.iter().all(|pixel| *pixel == 0));
        Self { note: if is_empty { Some(NOTHING_INSIDE) } else { self.note }, ..self }
    }
}

impl Scaled {
    /// Decodes a photograph, its mask and the picture of its region. With `turn_by_exif` they are turned by their EXIF
    /// orientation. `whole` gives the place of a photograph of a size.
    pub(super) fn read(
        image: File,
        mask: Option<ListedMask>,
        region: Option<Region>,
        turn_by_exif: bool,
        whole: impl Fn((u32, u32)) -> Placement,
    ) -> Result<Self, Failure> {
        let (file_digest, uri) = (image.content.map(|content| content.to_string()), image.uri.clone());
        let (place, Photograph { image, turn, mut notes }) = image.decode(decode::photograph, turn_by_exif)?;
        let (width, height) = image.dimensions();
        let whole = whole((width, height));
        let size @ (scaled_width, scaled_height) = whole.scaled();
        if is_too_large(size) {
            return Err(Failure::TooLarge { place, size });
        }
        let mask = match mask {
            Some(mask) => {
                let (mask_place, mask) = mask.decode(turn_by_exif)?;
                let mask = masks::aligned(mask, &image, turn);
                if mask.any.dimensions() != (width, height) {
                    let turned = if turn == Orientation::NoTransforms { "" } else { TURNED };
                    let (mask_size, image_size) = (mask.any.dimensions(), (width, height));
                    return Err(Failure::MaskSize { mask: mask_place, mask_size, image: place, image_size, turned });
                }
                let resized = |mask: &GrayImage| resize::grey(mask, scaled_width, scaled_height, Filter::Bilinear);
                let any = resized(&mask.any);
                let grey = mask.grey.as_ref().map_or_else(|| any.clone(), resized);
                let majority = resize::majority(any);
                notes.extend(mask.notes);
                notes.extend(masks::lost(&mask.any, &majority, whole));
                Some(ScaledMask { majority, grey })
            }
            None => None,
        };
        let region = region.map(|region| region.scaled(&place, &image, (turn, turn_by_exif), size)).transpose()?;
        let image = match size == (width, height) {
            true => image,
            false => resize::rgb(&image, scaled_width, scaled_height, Filter::Bilinear),
        };
        Ok(Self { uri, file_digest, place, whole, image, mask, region, notes })
    }

    /// Cuts stored pixels out.
    pub(super) fn cut(&self, placement: Placement) -> Cut {
        let pixels = placement.cut_rgb(&self.image);
        let cut = |mask: &GrayImage| placement.cut_grey(mask);
        let masks = self.mask.as_ref().map(|mask| [cut(&mask.majority), cut(&mask.grey)]);
        within(self.region.as_ref().map(|region| region.cut(placement)), pixels, masks)
    }
}

/// Makes the pixels of a row of a picture with its masks, of which a region is judged: outside of it there are one colour
/// and no anomaly.
pub(super) fn within(region: Option<GrayImage>, mut pixels: RgbImage, mut masks: Option<[GrayImage; 2]>) -> Cut {
    let mut note = None;
    if let Some(region) = &region {
        for (pixel, _) in pixels.pixels_mut().zip(region.iter()).filter(|(_, is_in)| **is_in == 0) {
            *pixel = OUTSIDE;
        }
        for mask in masks.iter_mut().flatten() {
            for (value, _) in mask.iter_mut().zip(region.iter()).filter(|(value, is_in)| **is_in == 0 && **value > 0) {
                *value = 0;
                note = Some(OUTSIDE_MASK);
            }
        }
    }
    let [mask, mask_grey] = masks.map_or([None, None], |masks| masks.map(|mask| Some(mask.into_raw())));
    Cut { pixels: pixels.into_raw(), mask, mask_grey, roi: region.map(GrayImage::into_raw), note }
}

/// Returns true if a photograph is not resized to a size, because it would take too much memory.
pub(super) fn is_too_large((width, height): (u32, u32)) -> bool {
    u64::from(width) * u64::from(height) > decode::MAX_PIXELS
}
