//! Pictures of the photographs that the server keeps.

use axum::http::StatusCode;
use image::RgbImage;

use super::{answer::Refusal, archive::Kept, shared::Shared};
use crate::{
    report::drawing::{self, Scale},
    vision::{
        decode,
        resize::{self, Filter},
    },
};

/// A picture of a photograph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Picture {
    /// The photograph itself.
    Photograph,
    /// Its map in 16 bits of grey.
    Map,
    /// Its map over the photograph, with a square around the most anomalous patch if that is known.
    Overlay,
    /// A mask, white where its map is above the threshold of pixels.
    Mask,
    /// The good photograph with the patch that is nearest to its most anomalous one, in a square.
    Nearest,
}

impl Picture {
    /// Returns the picture that a path names.
    pub(super) fn of(file: &str) -> Option<Self> {
        match file {
            "photograph" => Some(Self::Photograph),
            "map.png" => Some(Self::Map),
            "overlay.png" => Some(Self::Overlay),
            "mask.png" => Some(Self::Mask),
            "nearest.png" => Some(Self::Nearest),
            _ => None,
        }
    }
}

/// The range of the longest side of a smaller picture.
pub(super) const SIDES: std::ops::RangeInclusive<u32> = 16..=4096;

/// Draws a picture, whose longest side has at most `side` pixels. Returns its media type and bytes. A photograph at its own
/// size is returned as it was sent.
pub(super) fn draw(
    shared: &Shared,
    kept: &Kept,
    picture: Picture,
    side: Option<u32>,
) -> Result<(String, Vec<u8>), Refusal> {
    let gone =
        |_: std::io::Error| Refusal::new(StatusCode::NOT_FOUND, "the server does not keep this photograph any more");
    let failed =
        |e: &dyn std::fmt::Display| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the picture: {e}"));
    if picture == Picture::Nearest {
        return Ok(("image/png".into(), drawing::png(&nearest(shared, kept, side)?).map_err(|e| failed(&e))?));
    }
    let bytes = shared.archive.photograph(kept.id()).map_err(gone)?;
    if (picture, side) == (Picture::Photograph, None) {
        return Ok((kept.media_type.clone(), bytes));
    }
    let photograph = decode::photograph(&bytes, !kept.taken.unturned).map_err(|e| failed(&e))?.image;
    let photograph = reduced(photograph, side);
    let size = photograph.dimensions();
    if picture == Picture::Photograph {
        return Ok(("image/jpeg".into(), drawing::jpeg(photograph).map_err(|e| failed(&e))?));
    }
    let no_map = || Refusal::new(StatusCode::NOT_FOUND, "the pipeline makes no anomaly maps");
    let (map_size, [lowest, highest]) = kept.map_size.zip(kept.answer.map_scale).ok_or_else(no_map)?;
    let map = shared.archive.map(kept.id()).map_err(gone)?;
    let placement = kept.taken.placement(size, map_size);
    let map = placement.map_to_photograph(&map).map_err(|e| failed(&e))?;
    let scale = Scale { lowest, highest };
    let other_size = || failed(&"the map has another size");
    let png = match picture {
        Picture::Map => drawing::png(&drawing::heat(&map, size, scale).ok_or_else(other_size)?),
        Picture::Mask => {
            let none = || Refusal::new(StatusCode::NOT_FOUND, "no threshold of pixels is known for this photograph");
            let threshold = kept.answer.pixel_threshold.ok_or_else(none)?;
            drawing::png(&drawing::mask(&map, size, threshold as f32).ok_or_else(other_size)?)
        }
        Picture::Overlay | Picture::Photograph | Picture::Nearest => {
            let overlay = drawing::overlay(&photograph, &map, scale);
            drawing::png(&match &kept.answer.judged.nearest {
                Some(nearest) => drawing::square(overlay, placement.to_photograph(in_pixels(nearest.worst, map_size))),
                None => overlay,
            })
        }
    };
    Ok(("image/png".into(), png.map_err(|e| failed(&e))?))
}

/// Returns the place in a picture of this width and height that is given as shares of both.
fn in_pixels([x, y]: [f32; 2], (width, height): (u32, u32)) -> (f64, f64) {
    (f64::from(x) * f64::from(width), f64::from(y) * f64::from(height))
}

/// Returns the good photograph with the nearest patch in a square.
fn nearest(shared: &Shared, kept: &Kept, side: Option<u32>) -> Result<RgbImage, Refusal> {
    let none = |why: &str| Refusal::new(StatusCode::NOT_FOUND, why);
    let nearest = kept.answer.judged.nearest.as_ref();
    let nearest =
        nearest.ok_or_else(|| none("the pipeline seeks no nearest patch; its `detect` would read `features`"))?;
    let found = shared.inspector.photograph(&nearest.image_id);
    let found = found.map_err(|e| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
    let found = found.ok_or_else(|| none("the store does not have the good photograph any more"))?;
    let found = reduced(found, side);
    let place = in_pixels(nearest.at, found.dimensions());
    Ok(drawing::square(found, place))
}

/// Reduces a picture so that its longest side has at most `side` pixels.
fn reduced(picture: RgbImage, side: Option<u32>) -> RgbImage {
    let (width, height) = picture.dimensions();
    let longest = width.max(height);
    match side.filter(|side| *side < longest) {
        Some(side) => {
            let scaled = |length: u32| (u64::from(length) * u64::from(side) / u64::from(longest)).max(1) as u32;
            resize::rgb(&picture, scaled(width), scaled(height), Filter::Bilinear)
        }
        None => picture,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reduced_picture_keeps_its_shape_and_is_never_larger() {
        let of = |side| reduced(RgbImage::new(400, 100), side).dimensions();
        assert_eq!([of(None), of(Some(1000)), of(Some(40)), of(Some(2))], [(400, 100), (400, 100), (40, 10), (2, 1)]);
    }
}
