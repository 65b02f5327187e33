//! Rules about the names of files and folders: pictures, masks, equal names, and names that are nearly reserved ones.

use std::borrow::Cow;

use icu_normalizer::ComposingNormalizerBorrowed;

/// The file extensions that are read; case does not matter.
pub const EXTENSIONS: [&str; 7] = ["png", "jpg", "jpeg", "bmp", "tif", "tiff", "webp"];

/// Extensions of pictures in formats that are not read.
const FOREIGN: [&str; 26] = [
    "heic", "heif", "hif", "avif", "gif", "jfif", "jpe", "jif", "jp2", "j2k", "jxl", "tga", "exr", "hdr", "pgm", "ppm",
    "pbm", "pnm", "raw", "dng", "nef", "arw", "cr2", "cr3", "orf", "dcm",
];

/// Files that operating systems put beside pictures.
const OF_THE_SYSTEM: [&str; 3] = ["thumbs.db", "desktop.ini", "icon\r"];

/// The names of folders with ground truth in other layouts, in the form of [`simplified`].
const OF_MASKS: [&str; 11] = [
    "mask",
    "masks",
    "groundtruth",
    "gt",
    "label",
    "labels",
    "annotation",
    "annotations",
    "segmentation",
    "segmentations",
    "seg",
];

/// Returns the file name without its extension.
pub(super) fn stem(path: &str) -> &str {
    let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
    name.rsplit_once('.').map_or(name, |(stem, _)| stem)
}

/// Returns a path without the extension of its file.
pub(super) fn without_extension(path: &str) -> &str {
    let folder = path.len() - path.rsplit_once('/').map_or(path, |(_, name)| name).len();
    &path[..folder + stem(path).len()]
}

/// Returns the name in Unicode's composed form (NFC), in which names are equal that look the same, whatever form a
/// system wrote.
pub fn composed(name: &str) -> Cow<'_, str> {
    if name.is_ascii() { Cow::Borrowed(name) } else { ComposingNormalizerBorrowed::new_nfc().normalize(name) }
}

/// Returns true for a file that is read as a picture.
pub fn is_image(path: &str) -> bool {
    has_extension(path, &EXTENSIONS)
}

/// Returns true for a picture in a format that is not read.
pub(super) fn is_foreign_picture(path: &str) -> bool {
    has_extension(path, &FOREIGN)
}

/// Returns true for a file that an operating system made, which nobody misses.
pub(super) fn is_of_the_system(path: &str) -> bool {
    let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
    OF_THE_SYSTEM.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// Returns true for a folder with a name that is usual for masks.
pub(super) fn is_of_masks(folder: &str) -> bool {
    OF_MASKS.contains(&simplified(folder).as_str())
}

/// Returns true for a name that differs from the reserved name `meant` by case, spaces, hyphens or underscores alone.
pub(super) fn is_almost(name: &str, meant: &str) -> bool {
    name != meant && simplified(name) == simplified(meant)
}

/// Returns the letters and digits of a name, in lower case.
fn simplified(name: &str) -> String {
    composed(name).chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

fn has_extension(path: &str, extensions: &[&str]) -> bool {
    let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    extensions.iter().any(|known| known.eq_ignore_ascii_case(extension))
}
