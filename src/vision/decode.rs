//! Decoding of images, equal to Pillow's `Image.open(file).convert("RGB")`: the format is recognised by content,
//! embedded colour profiles are ignored, and alpha is dropped without blending. [`rgb`] leaves pixels as they are
//! stored; [`photograph`] and [`mask`] can turn them by their EXIF orientation (Pillow's `ImageOps.exif_transpose`), as
//! viewers and annotation tools do.

use std::io::{BufRead, Cursor, Seek, SeekFrom};

use image::{
    DynamicImage, GrayImage, ImageBuffer, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, Luma, Pixel,
    Primitive, Rgb, RgbImage, error::LimitErrorKind, metadata::Orientation,
};

use super::container::{guess, has_end_of_image, has_more_pictures, is_lossy};

/// The longest side that is decoded, in pixels.
const MAX_SIDE: u32 = 32_768;
/// The largest size of a decoded image, in bytes: about 179 million RGB pixels, the limit of Pillow too.
const MAX_BYTES: u64 = 512 << 20;
/// The bytes that a message shows of a file that is no picture.
const SHOWN: usize = 16;
/// The largest number of RGB pixels of a decoded image.
pub const MAX_PIXELS: u64 = MAX_BYTES / 3;

/// The reason why bytes are not read as an image. The caller adds the path.
#[derive(Debug, thiserror::Error)]
pub enum VisionError {
    /// No known signature at the start.
    #[error("not an image: {found}; png, jpeg, bmp, tiff and webp are read")]
    UnknownFormat {
        /// A description of the first bytes.
        found: String,
    },
    /// A JPEG without its end marker; decoders would fill the missing part with grey.
    #[error("truncated jpeg image: the {0} bytes end before its end-of-image marker")]
    Truncated(usize),
    /// A decoded size above what any camera needs: a broken header or a decompression bomb.
    #[error("too large {0} image: at most {MAX_SIDE} pixels a side and {mib} MiB decoded are read", mib = MAX_BYTES >> 20)]
    TooLarge(&'static str),
    /// A valid file of a kind that has no agreed meaning in 8 bits.
    #[error("unsupported {format} image: {what}; save it as 8- or 16-bit grey or RGB")]
    Unsupported {
        /// The file format.
        format: &'static str,
        /// The feature that is not read.
        what: String,
    },
    /// A mask whose colours contradict its transparency.
    #[error(
        "a mask whose transparent and anomalous pixels contradict each other; save it without alpha, black where normal"
    )]
    TransparentMask,
    /// The bytes contradict their format, or end too early.
    #[error("truncated or broken {format} image: {source}")]
    Broken {
        /// The file format.
        format: &'static str,
        /// The error of the decoder.
        source: ImageError,
    },
}

/// Decodes png, jpeg, bmp, tiff or webp bytes of any colour kind to `[H, W, 3]`.
///
/// 16-bit colour keeps its high byte, as Pillow does. 16-bit grey is scaled by 1/257, where Pillow clips at 255.
/// Lossless formats equal Pillow's pixels; jpeg and lossy webp differ by a few levels, since their decoders may.
pub fn rgb(bytes: &[u8]) -> Result<RgbImage, VisionError> {
    Ok(colours(pixels(bytes)?.image))
}

/// Returns width and height of a picture without decoding its pixels. With `turn_by_exif` they are those of the picture
/// turned by its EXIF orientation.
pub fn size(bytes: &[u8], turn_by_exif: bool) -> Result<(u32, u32), VisionError> {
    let format = format(bytes)?;
    let read = || {
        let mut decoder = ImageReader::with_format(Cursor::new(bytes), format).into_decoder()?;
        let turn = decoder.orientation().unwrap_or(Orientation::NoTransforms);
        Ok((decoder.dimensions(), turn))
    };
    let ((width, height), turn) = read().map_err(|source| VisionError::Broken { format: name(format), source })?;
    Ok(if turn_by_exif && is_quarter_turn(turn) { (height, width) } else { (width, height) })
}

/// Returns true if an orientation exchanges width and height.
fn is_quarter_turn(turn: Orientation) -> bool {
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    matches!(turn, Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH)
}

/// A sentence about a picture that may be read otherwise than it is meant.
pub type NoteText = &'static str;

const MORE_PICTURES: NoteText = "the file holds several pictures (pages, frames), of which the first is read";
const TRANSPARENT: NoteText =
    "the picture has transparent pixels, which are read in the colour that lies below (alpha is dropped)";
const DARK: NoteText = "the levels of a 16-bit picture lie in the lowest quarter of the range, as a camera of 12 or 14 bits gives \
    them, and are read as dark as that; spread them over 16 bits, or save 8";
const LOSSY_MASK: NoteText = "the mask is in a lossy format (JPEG): levels above half of the range are anomalous in `mask`, all above \
    0 in `mask_grey`, its noise too; save it in a lossless one, such as PNG";
const LEVELS: NoteText = "the mask has more than two levels, and every level above 0 counts as anomalous";
const WHOLE_MASK: NoteText = "the mask covers the whole picture";
const EMPTY_MASK: NoteText = "the mask of an anomalous picture has no anomalous pixel";

/// The highest level of 14 bits.
const HIGHEST_OF_14_BITS: u16 = (1 << 14) - 1;

/// A decoded picture.
#[derive(Debug)]
pub struct Photograph {
    /// The pixels.
    pub image: RgbImage,
    /// The orientation by which they were turned.
    pub turn: Orientation,
    /// Reasons why the pixels may not be what the user meant.
    pub notes: Vec<NoteText>,
}

/// Decodes a picture as [`rgb`] does. With `turn_by_exif` it is turned by its EXIF orientation.
pub fn photograph(bytes: &[u8], turn_by_exif: bool) -> Result<Photograph, VisionError> {
    let Pixels { mut image, format, turn } = pixels(bytes)?;
    let turn = if turn_by_exif { turn } else { Orientation::NoTransforms };
    let mut notes = Vec::new();
    notes.extend(has_more_pictures(bytes, format).then_some(MORE_PICTURES));
    notes.extend(is_see_through(&image).then_some(TRANSPARENT));
    notes.extend(highest_of_16_bits(&image).filter(|highest| (1..=HIGHEST_OF_14_BITS).contains(highest)).map(|_| DARK));
    image.apply_orientation(turn);
    Ok(Photograph { image: colours(image), turn, notes })
}

/// The header of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Width and height of the pixels as they are stored.
    pub size: (u32, u32),
    /// The media type, such as `image/png`.
    pub media_type: &'static str,
}

/// Reads the header of a picture, without decoding its pixels.
pub fn header(mut reader: impl BufRead + Seek) -> Result<Header, VisionError> {
    let start = reader.fill_buf().map(<[u8]>::to_vec);
    let format = format(&start.unwrap_or_default())?;
    let broken = |source| VisionError::Broken { format: name(format), source };
    reader.seek(SeekFrom::Start(0)).map_err(|e| broken(e.into()))?;
    let size = ImageReader::with_format(reader, format).into_dimensions().map_err(broken)?;
    Ok(Header { size, media_type: format.to_mime_type() })
}

/// Returns true if any pixel is not opaque.
fn is_see_through(image: &DynamicImage) -> bool {
    match image {
        DynamicImage::ImageLumaA8(image) => image.pixels().any(|pixel| pixel.0[1] < u8::MAX),
        DynamicImage::ImageRgba8(image) => image.pixels().any(|pixel| pixel.0[3] < u8::MAX),
        DynamicImage::ImageLumaA16(image) => image.pixels().any(|pixel| pixel.0[1] < u16::MAX),
        DynamicImage::ImageRgba16(image) => image.pixels().any(|pixel| pixel.0[3] < u16::MAX),
        _ => false,
    }
}

/// Returns the highest level of a colour, if levels have 16 bits.
fn highest_of_16_bits(image: &DynamicImage) -> Option<u16> {
    fn of<P: Pixel<Subpixel = u16>>(image: &ImageBuffer<P, Vec<u16>>) -> Option<u16> {
        let colours = usize::from(P::CHANNEL_COUNT) - usize::from(P::HAS_ALPHA);
        image.pixels().flat_map(|pixel| &pixel.channels()[..colours]).copied().max()
    }
    match image {
        DynamicImage::ImageLuma16(image) => of(image),
        DynamicImage::ImageLumaA16(image) => of(image),
        DynamicImage::ImageRgb16(image) => of(image),
        DynamicImage::ImageRgba16(image) => of(image),
        _ => None,
    }
}

fn colours(image: DynamicImage) -> RgbImage {
    let high_byte = |value: u16| (value >> 8) as u8;
    match image {
        DynamicImage::ImageLuma16(image) => map(&image, |Luma([v])| [((u32::from(*v) + 128) / 257) as u8; 3]),
        DynamicImage::ImageLumaA16(image) => map(&image, |pixel| [high_byte(pixel.0[0]); 3]),
        DynamicImage::ImageRgb16(image) => map(&image, |pixel| pixel.0.map(high_byte)),
        DynamicImage::ImageRgba16(image) => map(&image, |pixel| pixel.to_rgb().0.map(high_byte)),
        DynamicImage::ImageLuma8(image) => map(&image, |pixel| [pixel.0[0]; 3]),
        DynamicImage::ImageLumaA8(image) => map(&image, |pixel| [pixel.0[0]; 3]),
        DynamicImage::ImageRgba8(image) => map(&image, |pixel| pixel.to_rgb().0),
        eight_bits => eight_bits.into_rgb8(),
    }
}

/// A ground-truth mask as two programs read it.
#[derive(Debug)]
pub struct Mask {
    /// 255 where any colour channel is above zero at its full depth, else 0. Class ids (1, 2, ...) and palettes on a
    /// black background therefore count as anomalous. In a lossy format, which leaves traces around every edge, 255
    /// where any channel is above half of its range.
    pub any: GrayImage,
    /// The grey levels, as Pillow's `convert("L")`; None if they equal `any`.
    pub grey: Option<GrayImage>,
    /// Reasons why the pixels may not be what the user meant.
    pub notes: Vec<NoteText>,
}

impl Mask {
    /// Makes the mask of an anomalous picture, 255 where it is anomalous and 0 elsewhere.
    pub fn new(any: GrayImage) -> Self {
        let notes = extremes(&any).collect();
        Self { any, grey: None, notes }
    }

    /// Turns the mask by the orientation of its picture.
    pub fn turned(self, turn: Orientation) -> Self {
        let turned = |image: GrayImage| {
            let mut image = DynamicImage::ImageLuma8(image);
            image.apply_orientation(turn);
            image.into_luma8()
        };
        Self { any: turned(self.any), grey: self.grey.map(turned), ..self }
    }
}

/// Decodes a ground-truth mask. With `turn_by_exif` it is turned by its EXIF orientation. Transparent pixels are normal;
/// if their colours are anomalous, the mask is refused.
pub fn mask(bytes: &[u8], turn_by_exif: bool) -> Result<Mask, VisionError> {
    let Pixels { mut image, format, turn } = pixels(bytes)?;
    if turn_by_exif {
        image.apply_orientation(turn);
    }
    let lossy = is_lossy(bytes, format);
    let any = anomalous(&image, lossy);
    if contradicts(&image, &any) {
        return Err(VisionError::TransparentMask);
    }
    let grey = match image {
        DynamicImage::ImageLuma8(image) => image,
        // Pillow clips 16-bit levels at 255.
        DynamicImage::ImageLuma16(image) => luma(&image, |pixel| pixel.0[0].min(255) as u8),
        image => luma(&colours(image), |pixel| grey(pixel.0)),
    };
    let mut notes = Vec::new();
    notes.extend(has_more_pictures(bytes, format).then_some(MORE_PICTURES));
    notes.extend(lossy.then_some(LOSSY_MASK));
    notes.extend((!lossy && levels(&grey) > 2).then_some(LEVELS));
    notes.extend(extremes(&any));
    Ok(Mask { grey: (grey != any).then_some(grey), any, notes })
}

/// Returns notes on a mask in which every pixel or none is anomalous.
fn extremes(any: &GrayImage) -> impl Iterator<Item = NoteText> + use<> {
    let is_whole = any.iter().all(|value| *value > 0);
    let is_empty = any.iter().all(|value| *value == 0);
    is_whole.then_some(WHOLE_MASK).into_iter().chain(is_empty.then_some(EMPTY_MASK))
}

/// Returns 255 where a pixel of a mask is anomalous, else 0.
fn anomalous(image: &DynamicImage, lossy: bool) -> GrayImage {
    match image {
        DynamicImage::ImageLuma8(image) => {
            let mut any = image.clone();
            let normal = normal_up_to::<u8>(lossy);
            any.iter_mut().for_each(|value| *value = if *value > normal { 255 } else { 0 });
            any
        }
        DynamicImage::ImageLumaA8(image) => above(image, lossy),
        DynamicImage::ImageRgb8(image) => above(image, lossy),
        DynamicImage::ImageRgba8(image) => above(image, lossy),
        DynamicImage::ImageLuma16(image) => above(image, lossy),
        DynamicImage::ImageLumaA16(image) => above(image, lossy),
        DynamicImage::ImageRgb16(image) => above(image, lossy),
        DynamicImage::ImageRgba16(image) => above(image, lossy),
        other => above(&other.to_rgb8(), lossy),
    }
}

/// Returns true if colour and transparency of a mask contradict each other: a transparent pixel is anomalous by its
/// colour, or every opaque pixel is black although some are transparent.
fn contradicts(image: &DynamicImage, any: &GrayImage) -> bool {
    let opaque: Vec<bool> = match image {
        DynamicImage::ImageLumaA8(image) => image.pixels().map(|pixel| pixel.0[1] > 0).collect(),
        DynamicImage::ImageRgba8(image) => image.pixels().map(|pixel| pixel.0[3] > 0).collect(),
        DynamicImage::ImageLumaA16(image) => image.pixels().map(|pixel| pixel.0[1] > 0).collect(),
        DynamicImage::ImageRgba16(image) => image.pixels().map(|pixel| pixel.0[3] > 0).collect(),
        _ => return false,
    };
    let is_empty = any.iter().all(|value| *value == 0);
    let differs = opaque.iter().any(|opaque| *opaque) && opaque.contains(&false);
    any.iter().zip(&opaque).any(|(value, opaque)| *value > 0 && !opaque) || (is_empty && differs)
}

/// Returns the number of different levels in an image.
fn levels(image: &GrayImage) -> usize {
    let mut seen = [false; 256];
    image.iter().for_each(|value| seen[usize::from(*value)] = true);
    seen.iter().filter(|seen| **seen).count()
}

/// A decoded file.
struct Pixels {
    /// The pixels as stored, palettes and fewer than 8 bits expanded; never floats.
    image: DynamicImage,
    format: ImageFormat,
    /// The orientation by which a viewer turns the pixels.
    turn: Orientation,
}

fn pixels(bytes: &[u8]) -> Result<Pixels, VisionError> {
    let format = format(bytes)?;
    let name = name(format);
    if format == ImageFormat::Jpeg && !has_end_of_image(bytes) {
        return Err(VisionError::Truncated(bytes.len()));
    }
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_BYTES);
    match decoded(bytes, format, limits) {
        Ok((DynamicImage::ImageRgb32F(_) | DynamicImage::ImageRgba32F(_), _)) => {
            Err(VisionError::Unsupported { format: name, what: "floating-point samples".into() })
        }
        Ok((image, turn)) => Ok(Pixels { image, format, turn }),
        Err(ImageError::Limits(error)) if !matches!(error.kind(), LimitErrorKind::Unsupported { .. }) => {
            Err(VisionError::TooLarge(name))
        }
        Err(ImageError::Unsupported(error)) => Err(VisionError::Unsupported { format: name, what: error.to_string() }),
        Err(source) => Err(VisionError::Broken { format: name, source }),
    }
}

/// Returns the pixels and the orientation by which a viewer turns them. An orientation that cannot be read is taken for
/// none.
fn decoded(bytes: &[u8], format: ImageFormat, mut limits: Limits) -> Result<(DynamicImage, Orientation), ImageError> {
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits.clone());
    let mut decoder = reader.into_decoder()?;
    // `ImageReader::decode` counts the pixels against the limit too; after `into_decoder`, the caller has to.
    limits.reserve(decoder.total_bytes())?;
    decoder.set_limits(limits)?;
    let turn = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    Ok((DynamicImage::from_decoder(decoder)?, turn))
}

fn format(bytes: &[u8]) -> Result<ImageFormat, VisionError> {
    let found = match guess(bytes) {
        Some(format) if format.reading_enabled() => return Ok(format),
        Some(other) => format!("a {} file", name(other)),
        None if bytes.is_empty() => "the file is empty".into(),
        None => begins_with(&bytes[..bytes.len().min(SHOWN)]),
    };
    Err(VisionError::UnknownFormat { found })
}

/// Describes the first bytes of a file: as text, as an error page or a manifest has it, or as numbers.
fn begins_with(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => format!("it begins with the text {text:?}"),
        _ => format!("it begins with the bytes {:02x?}", &bytes[..bytes.len().min(SHOWN / 2)]),
    }
}

fn name(format: ImageFormat) -> &'static str {
    format.extensions_str().iter().max_by_key(|extension| extension.len()).copied().unwrap_or("unknown")
}

fn map<P: Pixel>(image: &ImageBuffer<P, Vec<P::Subpixel>>, colour: impl Fn(&P) -> [u8; 3]) -> RgbImage {
    let mut out = RgbImage::new(image.width(), image.height());
    for (out, pixel) in out.pixels_mut().zip(image.pixels()) {
        *out = Rgb(colour(pixel));
    }
    out
}

fn luma<P: Pixel>(image: &ImageBuffer<P, Vec<P::Subpixel>>, level: impl Fn(&P) -> u8) -> GrayImage {
    let mut out = GrayImage::new(image.width(), image.height());
    for (out, pixel) in out.iter_mut().zip(image.pixels()) {
        *out = level(pixel);
    }
    out
}

/// Returns the ITU-R 601 luma in Pillow's fixed point.
pub fn grey([r, g, b]: [u8; 3]) -> u8 {
    ((u32::from(r) * 19_595 + u32::from(g) * 38_470 + u32::from(b) * 7_471 + 0x8000) >> 16) as u8
}

/// Returns the highest level of a mask that counts as normal.
fn normal_up_to<S: Primitive>(lossy: bool) -> S {
    if lossy { S::DEFAULT_MAX_VALUE / (S::from(2).unwrap_or(S::DEFAULT_MAX_VALUE)) } else { S::DEFAULT_MIN_VALUE }
}

/// Returns 255 where a colour of a mask is above the levels that count as normal, else 0.
fn above<P: Pixel>(image: &ImageBuffer<P, Vec<P::Subpixel>>, lossy: bool) -> GrayImage {
    let colours = usize::from(P::CHANNEL_COUNT) - usize::from(P::HAS_ALPHA);
    let normal = normal_up_to::<P::Subpixel>(lossy);
    let mut out = GrayImage::new(image.width(), image.height());
    for (out, pixel) in out.pixels_mut().zip(image.pixels()) {
        let anomalous = pixel.channels()[..colours].iter().any(|value| *value > normal);
        *out = Luma([if anomalous { 255 } else { 0 }]);
    }
    out
}

#[cfg(test)]
mod tests;
