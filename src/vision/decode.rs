//! Encoded bytes to pixels, as Pillow's `Image.open(file).convert("RGB")`: the format is recognised by content, EXIF
//! orientation is not applied, embedded colour profiles are ignored, and alpha is dropped without blending.

use image::{DynamicImage, GrayImage, ImageBuffer, ImageError, ImageFormat, ImageReader, Limits, Luma, Pixel, Rgb};
use image::{Primitive, RgbImage, error::LimitErrorKind};
use std::io::Cursor;

/// The longest side, in pixels, that is decoded.
const MAX_SIDE: u32 = 32_768;
/// The most memory, in bytes, that one decoded image may take: about 179 million RGB pixels, where Pillow gives up too.
const MAX_BYTES: u64 = 512 << 20;

/// Why bytes are not an image. The caller knows the path and adds it.
#[derive(Debug, thiserror::Error)]
pub enum VisionError {
    /// No known signature at the start.
    #[error("not an image: {found}; png, jpeg, bmp, tiff and webp are read")]
    UnknownFormat {
        /// What the bytes begin with.
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
    /// The bytes contradict their format, or end too early.
    #[error("truncated or broken {format} image: {source}")]
    Broken {
        /// The file format.
        format: &'static str,
        /// What the decoder met.
        source: ImageError,
    },
}

/// Decodes png, jpeg, bmp, tiff or webp bytes of any colour kind to `[H, W, 3]`.
///
/// 16-bit colour keeps its high byte, as Pillow does. 16-bit grey is scaled by 1/257, where Pillow clips at 255.
/// Lossless formats equal Pillow's pixels; jpeg and lossy webp differ by a few levels, since their decoders may.
pub fn rgb(bytes: &[u8]) -> Result<RgbImage, VisionError> {
    Ok(colours(pixels(bytes)?))
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
    /// 255 where any colour channel is above zero at its full depth, else 0; alpha is ignored. Class ids (1, 2, ...) and palettes on
    /// a black background therefore count as anomalous, and so does every trace of jpeg noise: masks belong in a lossless format.
    pub any: GrayImage,
    /// The grey levels, as Pillow's `convert("L")`, where they are not the same.
    pub grey: Option<GrayImage>,
}

/// Decodes a ground-truth mask.
pub fn mask(bytes: &[u8]) -> Result<Mask, VisionError> {
    let image = pixels(bytes)?;
    let any = match &image {
        DynamicImage::ImageLuma8(image) => {
            let mut any = image.clone();
            any.iter_mut().for_each(|value| *value = if *value > 0 { 255 } else { 0 });
            any
        }
        DynamicImage::ImageLumaA8(image) => above_zero(image),
        DynamicImage::ImageRgb8(image) => above_zero(image),
        DynamicImage::ImageRgba8(image) => above_zero(image),
        DynamicImage::ImageLuma16(image) => above_zero(image),
        DynamicImage::ImageLumaA16(image) => above_zero(image),
        DynamicImage::ImageRgb16(image) => above_zero(image),
        DynamicImage::ImageRgba16(image) => above_zero(image),
        other => above_zero(&other.to_rgb8()),
    };
    let grey = match image {
        DynamicImage::ImageLuma8(image) => image,
        // Of 16 bits Pillow keeps what 8 can hold.
        DynamicImage::ImageLuma16(image) => luma(&image, |pixel| pixel.0[0].min(255) as u8),
        image => luma(&colours(image), |pixel| grey(pixel.0)),
    };
    Ok(Mask { grey: (grey != any).then_some(grey), any })
}

/// The pixels as stored, palettes and fewer than 8 bits expanded; never floats.
fn pixels(bytes: &[u8]) -> Result<DynamicImage, VisionError> {
    let format = format(bytes)?;
    let name = name(format);
    if format == ImageFormat::Jpeg && !has_end_of_image(bytes) {
        return Err(VisionError::Truncated(bytes.len()));
    }
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_BYTES);
    reader.limits(limits);
    match reader.decode() {
        Ok(DynamicImage::ImageRgb32F(_) | DynamicImage::ImageRgba32F(_)) => {
            Err(VisionError::Unsupported { format: name, what: "floating-point samples".into() })
        }
        Ok(image) => Ok(image),
        Err(ImageError::Limits(error)) if !matches!(error.kind(), LimitErrorKind::Unsupported { .. }) => {
            Err(VisionError::TooLarge(name))
        }
        Err(ImageError::Unsupported(error)) => Err(VisionError::Unsupported { format: name, what: error.to_string() }),
        Err(source) => Err(VisionError::Broken { format: name, source }),
    }
}

fn format(bytes: &[u8]) -> Result<ImageFormat, VisionError> {
    let found = match image::guess_format(bytes) {
        Ok(format) if format.reading_enabled() => return Ok(format),
        Ok(other) => format!("a {} file", name(other)),
        Err(_) if bytes.is_empty() => "the file is empty".into(),
        Err(_) => format!("it begins with {:02x?}", &bytes[..bytes.len().min(8)]),
    };
    Err(VisionError::UnknownFormat { found })
}

fn name(format: ImageFormat) -> &'static str {
    format.extensions_str().iter().max_by_key(|extension| extension.len()).copied().unwrap_or("unknown")
}

/// Walks the JPEG's segments and scans to the end-of-image marker (ITU-T T.81, annex B). Segments are skipped by their
/// length, so that the end of an embedded thumbnail does not count.
fn has_end_of_image(bytes: &[u8]) -> bool {
    let mut rest = bytes.get(2..).unwrap_or_default();
    while let Some(start) = rest.iter().position(|byte| *byte == 0xff) {
        rest = &rest[start + 1..];
        match rest {
            [0xd9, ..] => return true,
            // A stuffed zero, a fill byte, or a marker without a length (TEM, RST0-7, SOI).
            [0x00 | 0xff | 0x01 | 0xd0..=0xd8, ..] => {}
            [_, high, low, ..] => {
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                rest = rest.get(1 + length..).unwrap_or_default();
            }
            _ => return false,
        }
    }
    false
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

/// ITU-R 601 luma in Pillow's fixed point.
pub fn grey([r, g, b]: [u8; 3]) -> u8 {
    ((u32::from(r) * 19_595 + u32::from(g) * 38_470 + u32::from(b) * 7_471 + 0x8000) >> 16) as u8
}

fn above_zero<P: Pixel>(image: &ImageBuffer<P, Vec<P::Subpixel>>) -> GrayImage {
    let colours = usize::from(P::CHANNEL_COUNT) - usize::from(P::HAS_ALPHA);
    let zero = P::Subpixel::DEFAULT_MIN_VALUE;
    let mut out = GrayImage::new(image.width(), image.height());
    for (out, pixel) in out.pixels_mut().zip(image.pixels()) {
        let anomalous = pixel.channels()[..colours].iter().any(|value| *value > zero);
        *out = Luma([if anomalous { 255 } else { 0 }]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{LumaA, Rgba};

    fn encode<P>(image: &ImageBuffer<P, Vec<P::Subpixel>>, format: ImageFormat) -> Vec<u8>
    where
        P: Pixel + image::PixelWithColorType,
        [P::Subpixel]: image::EncodableLayout,
    {
        let mut out = Cursor::new(Vec::new());
        image.write_to(&mut out, format).unwrap();
        out.into_inner()
    }

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
    }

    fn photo() -> RgbImage {
        RgbImage::from_fn(19, 13, |x, y| Rgb([(x * 12) as u8, (y * 17) as u8, (x * y) as u8]))
    }

    /// 2-bit palette with transparency.
    const PALETTE_PNG: &str = "89504e470d0a1a0a0000000d494844520000000400000002020300000002c695f00000000c504c5445000000c80a14\
        000007ffffffa9ce2c780000000274524e53ff00e5b7304a0000000c4944415478da639066780200013901007b9942370000000049454e44ae426082";
    const ONE_BIT_BMP: &str = "424d46000000000000003e000000280000000500000002000000010001000000000008000000c40e0000c40e00000200\
        00000200000000000000ffffff0048000000a8000000";
    /// One colour, CMYK (10, 200, 30, 40), stored inverted as Adobe does.
    const CMYK_JPEG: &str = "ffd8ffee000e41646f626500640000000000ffdb0043000302020302020303030304030304050805050404050a070706080c\
        0a0c0c0b0a0b0b0d0e12100d0e110e0b0b1016101113141515150c0f171816141812141514ffc000140800080008044311004d11005911004b1100ff\
        c4001500010100000000000000000000000000000809ffc40014100100000000000000000000000000000000ffda000e0443004d0059004b00003f00\
        a701e2819d0fffd9";

    #[test]
    fn every_format_is_recognised_by_content() {
        use ImageFormat::*;
        for format in [Png, Bmp, Tiff, WebP] {
            assert_eq!(rgb(&encode(&photo(), format)).unwrap(), photo(), "{format:?}");
        }
        let jpeg = rgb(&encode(&photo(), Jpeg)).unwrap();
        assert!(jpeg.iter().zip(photo().iter()).all(|(a, b)| a.abs_diff(*b) < 40));
    }

    #[test]
    fn palette_one_bit_and_cmyk_as_pillow() {
        let palette = [[0, 0, 0], [200, 10, 20], [0, 0, 7], [255, 255, 255]];
        let image = rgb(&bytes(PALETTE_PNG)).unwrap();
        assert!(image.pixels().map(|pixel| pixel.0).eq(palette.into_iter().chain(palette.into_iter().rev())));
        let image = rgb(&bytes(ONE_BIT_BMP)).unwrap();
        assert!(image.pixels().map(|pixel| pixel.0[2] / 255).eq([1, 0, 1, 0, 1, 0, 1, 0, 0, 1]));
        let image = rgb(&bytes(CMYK_JPEG)).unwrap();
        assert!(image.pixels().all(|pixel| *pixel == Rgb([207, 46, 190])), "{:?}", image.get_pixel(0, 0));
    }

    #[test]
    fn depth_and_alpha() {
        let grey = ImageBuffer::from_fn(3, 1, |x, _| Luma([[0u16, 300, 65_535][x as usize]]));
        assert_eq!(rgb(&encode(&grey, ImageFormat::Png)).unwrap().into_raw(), [0, 0, 0, 1, 1, 1, 255, 255, 255]);
        let colour = ImageBuffer::from_pixel(1, 1, Rgba([0x12ffu16, 0x8000, 0xffff, 0]));
        assert_eq!(rgb(&encode(&colour, ImageFormat::Png)).unwrap().into_raw(), [0x12, 0x80, 0xff]);
        let transparent = ImageBuffer::from_pixel(1, 1, LumaA([77u8, 0]));
        assert_eq!(rgb(&encode(&transparent, ImageFormat::Png)).unwrap().into_raw(), [77, 77, 77]);
        let float = ImageBuffer::from_pixel(1, 1, Rgb([0.5f32; 3]));
        let error = rgb(&encode(&float, ImageFormat::Tiff)).unwrap_err().to_string();
        assert!(error.contains("floating-point") && error.contains("8- or 16-bit"), "{error}");
    }

    #[test]
    fn mask_is_any_colour_above_zero() {
        let ids = ImageBuffer::from_fn(3, 1, |x, _| Luma([x as u8]));
        let read = mask(&encode(&ids, ImageFormat::Png)).unwrap();
        assert_eq!((read.any.into_raw(), read.grey.unwrap().into_raw()), (vec![0, 255, 255], vec![0, 1, 2]));
        let plain = ImageBuffer::from_fn(2, 1, |x, _| Luma([255 * x as u8]));
        assert!(mask(&encode(&plain, ImageFormat::Png)).unwrap().grey.is_none());
        let faint = ImageBuffer::from_fn(2, 1, |x, _| Luma([x as u16]));
        let read = mask(&encode(&faint, ImageFormat::Png)).unwrap();
        assert_eq!((read.any.into_raw(), read.grey.unwrap().into_raw()), (vec![0, 255], vec![0, 1]));
        let alpha_only = ImageBuffer::from_fn(2, 1, |x, _| Rgba([0, 0, x as u8, 255]));
        let read = mask(&encode(&alpha_only, ImageFormat::Png)).unwrap();
        // blue weighs 7471 of 65,536
        assert_eq!((read.any.into_raw(), read.grey.unwrap().into_raw()), (vec![0, 255], vec![0, 0]));
    }

    #[test]
    fn every_truncation_is_an_error_or_complete() {
        use ImageFormat::*;
        for format in [Png, Jpeg, Bmp, Tiff, WebP] {
            let whole = encode(&photo(), format);
            let image = rgb(&whole).unwrap();
            let accepted: Vec<usize> = (0..whole.len())
                .filter(|end| rgb(&whole[..*end]).is_ok_and(|cut| cut != image || format == Jpeg))
                .collect();
            assert!(accepted.is_empty(), "{format:?} of {} bytes cut at {accepted:?}", whole.len());
        }
    }

    #[test]
    fn the_end_of_a_thumbnail_is_not_the_end() {
        let mut whole = encode(&photo(), ImageFormat::Jpeg);
        let thumbnail = [0xff, 0xe1, 0x00, 0x06, 0xff, 0xd9, 0xff, 0xd9];
        whole.splice(2..2, thumbnail);
        assert!(has_end_of_image(&whole) && rgb(&whole).is_ok());
        assert!(!has_end_of_image(&whole[..whole.len() - 2]));
    }

    #[test]
    fn errors_say_what_was_found() {
        let message = |bytes: &[u8]| rgb(bytes).unwrap_err().to_string();
        assert_eq!(message(b""), "not an image: the file is empty; png, jpeg, bmp, tiff and webp are read");
        assert!(message(b"GIF89a.......").contains("a gif file"));
        assert!(message(b"<html>").contains("it begins with [3c, 68"));
        let cut = encode(&photo(), ImageFormat::Bmp);
        assert!(message(&cut[..cut.len() / 2]).starts_with("truncated or broken bmp image: "));
    }

    #[test]
    fn a_bomb_is_refused_by_its_header() {
        let mut header = b"BM".to_vec();
        for field in [54u32, 0, 54, 40, 30_000, 30_000, 1 | 24 << 16, 0, 0, 0, 0, 0, 0] {
            header.extend(field.to_le_bytes());
        }
        assert!(matches!(rgb(&header), Err(VisionError::TooLarge("bmp"))), "{:?}", rgb(&header));
        header[18..22].copy_from_slice(&40_000u32.to_le_bytes());
        header[22..26].copy_from_slice(&1u32.to_le_bytes());
        assert!(matches!(rgb(&header), Err(VisionError::TooLarge("bmp"))), "{:?}", rgb(&header));
    }
}
