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

/// A PNG with a 2-bit palette with transparency.
const PALETTE_PNG: &str = "89504e470d0a1a0a0000000d494844520000000400000002020300000002c695f00000000c504c5445000000c80a14\
    000007ffffffa9ce2c780000000274524e53ff00e5b7304a0000000c4944415478da639066780200013901007b9942370000000049454e44ae426082";
const ONE_BIT_BMP: &str = "424d46000000000000003e000000280000000500000002000000010001000000000008000000c40e0000c40e00000200\
    00000200000000000000ffffff0048000000a8000000";
/// A JPEG of one colour, CMYK (10, 200, 30, 40), stored inverted as by Adobe.
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
    for format in [Png, Jpeg, Bmp, Tiff, WebP] {
        let header = header(Cursor::new(encode(&photo(), format))).unwrap();
        assert_eq!(header, Header { size: (19, 13), media_type: format.to_mime_type() });
    }
    assert!(matches!(header(Cursor::new(b"no picture")), Err(VisionError::UnknownFormat { .. })));
    let jpeg = rgb(&encode(&photo(), Jpeg)).unwrap();
    assert!(jpeg.iter().zip(photo().iter()).all(|(a, b)| a.abs_diff(*b) < 40));
}

#[test]
fn size_is_known_without_the_pixels() {
    use ImageFormat::*;
    for format in [Png, Bmp, Tiff, WebP, Jpeg] {
        assert_eq!(size(&encode(&photo(), format), true).unwrap(), (19, 13), "{format:?}");
    }
    assert!(size(b"no picture", true).is_err());
    let whole = encode(&photo(), Png);
    assert!(size(&whole[..20], true).is_err(), "the header is cut");
}

#[test]
fn palettes_one_bit_and_cmyk_are_read_as_by_pillow() {
    let palette = [[0, 0, 0], [200, 10, 20], [0, 0, 7], [255, 255, 255]];
    let image = rgb(&bytes(PALETTE_PNG)).unwrap();
    assert!(image.pixels().map(|pixel| pixel.0).eq(palette.into_iter().chain(palette.into_iter().rev())));
    let image = rgb(&bytes(ONE_BIT_BMP)).unwrap();
    assert!(image.pixels().map(|pixel| pixel.0[2] / 255).eq([1, 0, 1, 0, 1, 0, 1, 0, 0, 1]));
    let image = rgb(&bytes(CMYK_JPEG)).unwrap();
    assert!(image.pixels().all(|pixel| *pixel == Rgb([207, 46, 190])), "{:?}", image.get_pixel(0, 0));
}

#[test]
fn sixteen_bits_are_reduced_alpha_is_dropped_and_floats_are_refused() {
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
fn a_mask_is_anomalous_where_any_colour_is_above_zero() {
    let ids = ImageBuffer::from_fn(3, 1, |x, _| Luma([x as u8]));
    let read = mask(&encode(&ids, ImageFormat::Png), true).unwrap();
    assert_eq!((read.any.into_raw(), read.grey.unwrap().into_raw()), (vec![0, 255, 255], vec![0, 1, 2]));
    let plain = ImageBuffer::from_fn(2, 1, |x, _| Luma([255 * x as u8]));
    assert!(mask(&encode(&plain, ImageFormat::Png), true).unwrap().grey.is_none());
    let faint = ImageBuffer::from_fn(2, 1, |x, _| Luma([x as u16]));
    let read = mask(&encode(&faint, ImageFormat::Png), true).unwrap();
    assert_eq!((read.any.into_raw(), read.grey.unwrap().into_raw()), (vec![0, 255], vec![0, 1]));
    let alpha_only = ImageBuffer::from_fn(2, 1, |x, _| Rgba([0, 0, x as u8, 255]));
    let read = mask(&encode(&alpha_only, ImageFormat::Png), true).unwrap();
    // blue weighs 7471 of 65,536
    assert_eq!((read.any.into_raw(), read.grey.unwrap().into_raw()), (vec![0, 255], vec![0, 0]));
}

/// Makes a JPEG with an EXIF orientation.
fn oriented_jpeg(orientation: u8) -> Vec<u8> {
    let mut jpeg = encode(&photo(), ImageFormat::Jpeg);
    let exif =
        [&b"Exif\0\0II\x2a\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0"[..], &[orientation, 0, 0, 0], &[0; 4]].concat();
    let segment = [&[0xff, 0xe1][..], &(exif.len() as u16 + 2).to_be_bytes(), &exif].concat();
    jpeg.splice(2..2, segment);
    jpeg
}

#[test]
fn a_photograph_is_turned_by_its_exif_orientation_and_rgb_is_not() {
    let stored = rgb(&oriented_jpeg(1)).unwrap();
    for orientation in 1..=8 {
        let turn = Orientation::from_exif(orientation).unwrap();
        let mut upright = DynamicImage::ImageRgb8(stored.clone());
        upright.apply_orientation(turn);
        let read = photograph(&oriented_jpeg(orientation), true).unwrap();
        assert_eq!((read.image, read.turn), (upright.into_rgb8(), turn));
        assert_eq!(rgb(&oriented_jpeg(orientation)).unwrap(), stored);
        assert_eq!(
            mask(&oriented_jpeg(orientation), true).unwrap().any.dimensions(),
            if orientation < 5 { (19, 13) } else { (13, 19) }
        );
    }
    let as_stored = photograph(&oriented_jpeg(6), false).unwrap();
    assert_eq!((as_stored.image, as_stored.turn), (stored, Orientation::NoTransforms));
    assert_eq!(mask(&oriented_jpeg(6), false).unwrap().any.dimensions(), (19, 13));
    assert_eq!(photograph(&oriented_jpeg(9), true).unwrap().turn, Orientation::NoTransforms);
    assert_eq!(photograph(&encode(&photo(), ImageFormat::Png), true).unwrap().notes, [""; 0]);
}

/// Makes an uncompressed BigTIFF of 2 x 1 grey pixels.
fn big_tiff() -> Vec<u8> {
    let entries: [(u16, u16, u64); 8] =
        [(256, 3, 2), (257, 3, 1), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 192), (277, 3, 1), (279, 4, 2)];
    let mut out = b"II\x2b\0\x08\0\0\0".to_vec();
    out.extend(16u64.to_le_bytes());
    out.extend((entries.len() as u64).to_le_bytes());
    for (tag, kind, value) in entries {
        out.extend([&tag.to_le_bytes()[..], &kind.to_le_bytes(), &1u64.to_le_bytes(), &value.to_le_bytes()].concat());
    }
    out.extend(0u64.to_le_bytes());
    assert_eq!(out.len(), 192);
    out.extend([7, 200]);
    out
}

#[test]
fn big_tiff_is_read_as_tiff() {
    assert_eq!(rgb(&big_tiff()).unwrap().into_raw(), [7, 7, 7, 200, 200, 200]);
}

#[test]
fn pictures_that_may_be_misread_have_notes() {
    let notes = |bytes: Vec<u8>| photograph(&bytes, true).unwrap().notes;
    let grey = |highest: u16| encode(&ImageBuffer::from_fn(2, 1, |x, _| Luma([x as u16 * highest])), ImageFormat::Png);
    assert_eq!([4095, 16_383].map(|highest| notes(grey(highest))), [[DARK], [DARK]]);
    assert!([0, 16_384, 65_535].into_iter().all(|highest| notes(grey(highest)).is_empty()));
    let colour = ImageBuffer::from_pixel(1, 1, Rgba([9u16, 4000, 0, 65_535]));
    assert_eq!(notes(encode(&colour, ImageFormat::Png)), [DARK]);
    let with_alpha = |alpha| encode(&ImageBuffer::from_pixel(1, 1, Rgba([9u8, 4, 0, alpha])), ImageFormat::Png);
    assert_eq!((notes(with_alpha(255)), notes(with_alpha(254))), (vec![], vec![TRANSPARENT]));
    let animated = {
        let mut png = encode(&photo(), ImageFormat::Png);
        // The chunk follows 8 bytes of signature and 25 of the header; the decoder does not check animations.
        let chunk = [&8u32.to_be_bytes()[..], b"acTL", &1u32.to_be_bytes(), &0u32.to_be_bytes()].concat();
        let crc = flate2_crc(&chunk[4..]);
        png.splice(33..33, [&chunk[..], &crc.to_be_bytes()].concat());
        png
    };
    assert_eq!(notes(animated), [MORE_PICTURES]);
}

fn flate2_crc(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

#[test]
fn a_lossy_mask_is_anomalous_above_half_of_the_range() {
    let square =
        GrayImage::from_fn(40, 24, |x, y| Luma([if (8..16).contains(&x) && (5..13).contains(&y) { 255 } else { 0 }]));
    let read = mask(&encode(&square, ImageFormat::Jpeg), true).unwrap();
    assert_eq!((&read.any, &read.notes[..]), (&square, &[LOSSY_MASK][..]));
    let noise = read.grey.unwrap().iter().filter(|value| (1..128).contains(*value)).count();
    assert!(noise > 0, "the noise is what is told");
    let read = mask(&encode(&square, ImageFormat::Png), true).unwrap();
    assert_eq!((read.any, &read.notes[..]), (square, &[][..]));
}

#[test]
fn masks_that_may_be_misread_have_notes() {
    let notes = |levels: &'static [u8]| {
        let image = GrayImage::from_fn(levels.len() as u32, 1, |x, _| Luma([levels[x as usize]]));
        mask(&encode(&image, ImageFormat::Png), true).unwrap().notes
    };
    assert_eq!(notes(&[0, 1]), [""; 0]);
    assert_eq!(notes(&[0, 1, 255]), [LEVELS]);
    assert_eq!(notes(&[0, 0]), [EMPTY_MASK]);
    assert_eq!(notes(&[255, 255]), [WHOLE_MASK]);
}

#[test]
fn a_mask_whose_alpha_contradicts_its_colours_is_refused() {
    let read = |pixels: [[u8; 2]; 2]| {
        let image = ImageBuffer::from_fn(2, 1, |x, _| LumaA(pixels[x as usize]));
        mask(&encode(&image, ImageFormat::Png), true).map(|mask| mask.any.into_raw()).map_err(|error| error.to_string())
    };
    let refused = "a mask whose transparent and anomalous pixels contradict each other; save it without alpha, black where normal";
    // A defect drawn in white, opaque alone or together with its surroundings, is read.
    assert_eq!(read([[0, 0], [255, 255]]), Ok(vec![0, 255]));
    assert_eq!(read([[0, 255], [255, 255]]), Ok(vec![0, 255]));
    // A defect drawn in black, and one that only alpha shows, are refused.
    assert_eq!(read([[0, 0], [0, 255]]), Err(refused.into()));
    assert_eq!(read([[255, 0], [255, 255]]), Err(refused.into()));
}

#[test]
fn a_truncated_file_is_an_error_or_decodes_completely() {
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
fn the_end_of_a_thumbnail_is_not_the_end_of_the_jpeg() {
    let mut whole = encode(&photo(), ImageFormat::Jpeg);
    let thumbnail = [0xff, 0xe1, 0x00, 0x06, 0xff, 0xd9, 0xff, 0xd9];
    whole.splice(2..2, thumbnail);
    assert!(has_end_of_image(&whole) && rgb(&whole).is_ok());
    assert!(!has_end_of_image(&whole[..whole.len() - 2]));
}

#[test]
fn errors_describe_the_bytes_that_were_found() {
    let message = |bytes: &[u8]| rgb(bytes).unwrap_err().to_string();
    assert_eq!(message(b""), "not an image: the file is empty; png, jpeg, bmp, tiff and webp are read");
    assert!(message(b"GIF89a.......").contains("a gif file"));
    assert!(message(b"<html>").contains("it begins with the text \"<html>\""));
    assert!(message(b"\0\x01abcdefghij").contains("it begins with the bytes [00, 01, 61, 62, 63, 64, 65, 66];"));
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
