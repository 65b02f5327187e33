//! Pictures in memory, as a program that talks to a camera has them.

use std::path::Path;

use image::{ColorType, ImageFormat};

use crate::engine::{Error, Result};

/// A picture in memory, row by row from the top, with 8 bits a channel.
#[derive(Clone, Copy, Debug)]
pub struct Pixels<'a> {
    /// Its width in pixels.
    pub width: u32,
    /// Its height in pixels.
    pub height: u32,
    /// Its values: one for each pixel if it is grey, three if it has colours, four if it has an alpha channel too.
    pub bytes: &'a [u8],
}

impl Pixels<'_> {
    /// Writes the picture as a PNG file.
    ///
    /// # Errors
    /// [`Error::Input`] if the number of bytes is not that of a picture of this size.
    pub fn write(&self, file: &Path) -> Result<()> {
        let Self { width, height, bytes } = *self;
        let pixels = u64::from(width) * u64::from(height);
        let colour = [(1, ColorType::L8), (3, ColorType::Rgb8), (4, ColorType::Rgba8)]
            .into_iter()
            .find(|(channels, _)| pixels > 0 && pixels.checked_mul(*channels) == Some(bytes.len() as u64));
        let Some((_, colour)) = colour else {
            return Err(Error::Input(format!(
                "a picture of {width}x{height} pixels has {} bytes; 1, 3 or 4 bytes for each of one pixel or more would work",
                bytes.len()
            )));
        };
        image::save_buffer_with_format(file, bytes, width, height, colour, ImageFormat::Png)
            .map_err(|error| Error::Stage(format!("a picture cannot be written to {}: {error}", file.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picture_is_written_as_it_is_and_other_bytes_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("picture");
        let bytes: Vec<u8> = (0..24).collect();
        let write = |width, height| Pixels { width, height, bytes: &bytes }.write(&file);
        for (width, height, channels) in [(6, 4, 1), (4, 2, 3), (2, 3, 4)] {
            write(width, height).unwrap();
            let read = image::load_from_memory(&std::fs::read(&file).unwrap()).unwrap();
            assert_eq!((read.width(), read.height(), read.color().channel_count()), (width, height, channels));
            assert_eq!(read.as_bytes(), bytes);
        }
        for (width, height) in [(0, 24), (5, 4), (12, 1), (u32::MAX, u32::MAX)] {
            assert!(matches!(write(width, height), Err(Error::Input(_))), "{width}x{height}");
        }
    }
}
