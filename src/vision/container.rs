//! Image files as containers: the format of bytes, whether its compression changes pixels, and whether it holds several
//! pictures.

use image::ImageFormat;

/// Recognises the format of an image by its first bytes. BigTIFF, whose offsets have 64 bits, is TIFF too.
pub(super) fn guess(bytes: &[u8]) -> Option<ImageFormat> {
    match bytes {
        [b'I', b'I', 0x2b, 0, 8, 0, 0, 0, ..] | [b'M', b'M', 0, 0x2b, 0, 8, 0, 0, ..] => Some(ImageFormat::Tiff),
        _ => image::guess_format(bytes).ok(),
    }
}

/// Returns true if the pixels went through a compression that changes them.
pub(super) fn is_lossy(bytes: &[u8], format: ImageFormat) -> bool {
    match format {
        ImageFormat::Jpeg => true,
        ImageFormat::WebP => webp_chunks(bytes).any(|(name, _)| name == b"VP8 "),
        // 6 and 7 are old and new JPEG.
        ImageFormat::Tiff => directories(bytes).next().is_some_and(|first| matches!(first.compression, 6 | 7)),
        _ => false,
    }
}

/// Returns true if a file holds more than one picture: pages of a TIFF, frames of an animation. Reduced copies do not
/// count.
pub(super) fn has_more_pictures(bytes: &[u8], format: ImageFormat) -> bool {
    match format {
        ImageFormat::Png => png_chunks(bytes).take_while(|name| *name != *b"IDAT").any(|name| name == *b"acTL"),
        ImageFormat::WebP => {
            webp_chunks(bytes).any(|(name, data)| name == b"VP8X" && data.first().is_some_and(|flags| flags & 2 != 0))
        }
        ImageFormat::Tiff => directories(bytes).skip(1).any(|directory| !directory.is_reduced),
        _ => false,
    }
}

/// Returns true if a JPEG has an end-of-image marker (ITU-T T.81, annex B). Segments are skipped by their length, so
/// that the end of an embedded thumbnail does not count.
pub(super) fn has_end_of_image(bytes: &[u8]) -> bool {
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

/// Returns the names of a PNG's chunks.
fn png_chunks(bytes: &[u8]) -> impl Iterator<Item = [u8; 4]> {
    let mut rest = bytes.get(8..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (length, tail) = rest.split_first_chunk::<4>()?;
        let (name, tail) = tail.split_first_chunk::<4>()?;
        // The data and a checksum follow.
        rest = tail.get((u32::from_be_bytes(*length) as usize).checked_add(4)?..).unwrap_or_default();
        Some(*name)
    })
}

/// Returns the chunks of a WebP.
fn webp_chunks(bytes: &[u8]) -> impl Iterator<Item = (&[u8; 4], &[u8])> {
    let mut rest = bytes.get(12..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (name, tail) = rest.split_first_chunk::<4>()?;
        let (length, tail) = tail.split_first_chunk::<4>()?;
        let length = u32::from_le_bytes(*length) as usize;
        let data = &tail[..length.min(tail.len())];
        // Chunks begin at even places.
        rest = tail.get(length.checked_next_multiple_of(2)?..).unwrap_or_default();
        Some((name, data))
    })
}

/// The tags that are read from one directory of a TIFF.
struct Directory {
    compression: u64,
    is_reduced: bool,
}

/// The largest number of directories that are followed; those of a broken file may form a circle.
const MAX_DIRECTORIES: usize = 1 << 10;
const SUBFILE_TYPE: u64 = 254;
const COMPRESSION: u64 = 259;

/// Returns the directories of a TIFF or BigTIFF, one per picture.
fn directories(bytes: &[u8]) -> impl Iterator<Item = Directory> {
    let little = bytes.first() == Some(&b'I');
    let number = move |at: usize, width: usize| -> Option<u64> {
        let digits = bytes.get(at..at.checked_add(width)?)?;
        let add = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        Some(if little { digits.iter().rev().fold(0, add) } else { digits.iter().fold(0, add) })
    };
    let big = number(2, 2) == Some(0x2b);
    // The widths in bytes of an offset, of the number of entries, and of an entry.
    let (offset, count, entry) = if big { (8, 8, 20) } else { (4, 2, 12) };
    let mut next = number(if big { 8 } else { 4 }, offset);
    std::iter::from_fn(move || {
        let at = usize::try_from(next?).ok().filter(|at| *at > 0)?;
        let entries = usize::try_from(number(at, count)?).ok()?;
        let first = at.checked_add(count)?;
        let end = first.checked_add(entries.checked_mul(entry)?)?;
        let value = |tag: u64| {
            let at = (first..end.min(bytes.len())).step_by(entry).find(|at| number(*at, 2) == Some(tag))?;
            // A value of type short (3) takes the first two bytes of its place, a long four.
            let width = if number(at + 2, 2)? == 3 { 2 } else { 4 };
            number(at + 4 + offset, width)
        };
        let directory = Directory {
            compression: value(COMPRESSION).unwrap_or(1),
            is_reduced: value(SUBFILE_TYPE).is_some_and(|kind| kind & 1 == 1),
        };
        next = number(end, offset);
        Some(directory)
    })
    .take(MAX_DIRECTORIES)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes a little-endian TIFF, plain or big, whose directories have these pairs of subfile type and compression.
    fn tiff(big: bool, directories: &[(u32, u16)]) -> Vec<u8> {
        let mut out = if big { b"II\x2b\0\x08\0\0\0".to_vec() } else { b"II\x2a\0".to_vec() };
        let offset = |value: usize| {
            if big { (value as u64).to_le_bytes().to_vec() } else { (value as u32).to_le_bytes().to_vec() }
        };
        let start = out.len();
        let first = start + offset(0).len();
        out.extend(offset(if directories.is_empty() { 0 } else { first }));
        for (number, (subfile, compression)) in directories.iter().enumerate() {
            out.extend(if big { 2u64.to_le_bytes().to_vec() } else { 2u16.to_le_bytes().to_vec() });
            for (tag, kind, value) in [(254u16, 4u16, *subfile), (259, 3, u32::from(*compression))] {
                out.extend(tag.to_le_bytes());
                out.extend(kind.to_le_bytes());
                out.extend(offset(1));
                out.extend(offset(value as usize));
            }
            let next = out.len() + offset(0).len();
            out.extend(offset(if number + 1 < directories.len() { next } else { 0 }));
        }
        out
    }

    #[test]
    fn pages_of_a_tiff_are_distinguished_from_reduced_copies() {
        for big in [false, true] {
            let more = |directories: &[(u32, u16)]| has_more_pictures(&tiff(big, directories), ImageFormat::Tiff);
            assert_eq!([more(&[]), more(&[(0, 1)]), more(&[(0, 1), (1, 1)])], [false; 3]);
            assert!(more(&[(0, 1), (0, 1)]) && more(&[(0, 1), (1, 1), (2, 1)]));
            let lossy = |compression| is_lossy(&tiff(big, &[(0, compression)]), ImageFormat::Tiff);
            assert_eq!([1, 5, 6, 7, 8].map(lossy), [false, false, true, true, false]);
            assert_eq!(guess(&tiff(big, &[(0, 1)])), Some(ImageFormat::Tiff));
        }
    }

    #[test]
    fn a_circle_of_directories_is_not_followed_for_ever() {
        let mut circle = tiff(false, &[(1, 1)]);
        let end = circle.len() - 4;
        circle[end..].copy_from_slice(&8u32.to_le_bytes());
        assert!(!has_more_pictures(&circle, ImageFormat::Tiff));
        for end in 0..circle.len() {
            let _ = has_more_pictures(&circle[..end], ImageFormat::Tiff);
        }
    }

    #[test]
    fn chunks_of_webp_and_png_show_compression_and_animation() {
        let webp = |chunks: &[(&[u8; 4], &[u8])]| {
            let mut out = b"RIFF\0\0\0\0WEBP".to_vec();
            for (name, data) in chunks {
                out.extend(*name);
                out.extend((data.len() as u32).to_le_bytes());
                out.extend(*data);
                out.resize(out.len().next_multiple_of(2), 0);
            }
            out
        };
        assert!(is_lossy(&webp(&[(b"ICCP", b"odd"), (b"VP8 ", b"")]), ImageFormat::WebP));
        assert!(!is_lossy(&webp(&[(b"VP8L", b"")]), ImageFormat::WebP));
        assert!(has_more_pictures(&webp(&[(b"VP8X", &[2, 0, 0, 0])]), ImageFormat::WebP));
        assert!(!has_more_pictures(&webp(&[(b"VP8X", &[16, 0, 0, 0])]), ImageFormat::WebP));
        let png = |names: &[&[u8; 4]]| {
            let mut out = b"\x89PNG\r\n\x1a\n".to_vec();
            names.iter().for_each(|name| out.extend([&1u32.to_be_bytes()[..], *name, &[0; 5]].concat()));
            out
        };
        assert!(has_more_pictures(&png(&[b"IHDR", b"acTL", b"IDAT"]), ImageFormat::Png));
        assert!(!has_more_pictures(&png(&[b"IHDR", b"IDAT", b"acTL"]), ImageFormat::Png));
    }
}
