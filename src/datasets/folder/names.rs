//! Names of files and folders: which are pictures, which belong together, and which were meant for another.

use std::borrow::Cow;

use icu_normalizer::ComposingNormalizerBorrowed;

/// File extensions that are read, compared without case.
pub const EXTENSIONS: [&str; 7] = ["png", "jpg", "jpeg", "bmp", "tif", "tiff", "webp"];

/// Extensions of pictures in formats that are not read.
const FOREIGN: [&str; 26] = [
    "heic", "heif", "hif", "avif", "gif", "jfif", "jpe", "jif", "jp2", "j2k", "jxl", "tga", "exr", "hdr", "pgm", "ppm",
    "pbm", "pnm", "raw", "dng", "nef", "arw", "cr2", "cr3", "orf", "dcm",
];

/// Files that systems put beside pictures by themselves.
const OF_THE_SYSTEM: [&str; 3] = ["thumbs.db", "desktop.ini", "icon\r"];

/// Folders of ground truth as other layouts call them, as [`simplified`] writes them.
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

/// The file name without its extension.
pub(super) fn stem(path: &str) -> &str {
    let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
    name.rsplit_once('.').map_or(name, |(stem, _)| stem)
}

/// A path without the extension of its file.
pub(super) fn without_extension(path: &str) -> &str {
    let folder = path.len() - path.rsplit_once('/').map_or(path, |(_, name)| name).len();
    &path[..folder + stem(path).len()]
}

/// The name in Unicode's composed form (NFC): what is typed and shown as one name is one name, in whatever form a system wrote it.
pub(super) fn composed(name: &str) -> Cow<'_, str> {
    if name.is_ascii() { Cow::Borrowed(name) } else { ComposingNormalizerBorrowed::new_nfc().normalize(name) }
}

/// True of a file that is read as a picture.
pub(super) fn is_image(path: &str) -> bool {
    has_extension(path, &EXTENSIONS)
}

/// True of a picture in a format that is not read.
pub(super) fn is_foreign_picture(path: &str) -> bool {
    has_extension(path, &FOREIGN)
}

/// True of a file that a system put there, so that nobody misses it.
pub(super) fn is_of_the_system(path: &str) -> bool {
    let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
    OF_THE_SYSTEM.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// True of a folder whose name says that it holds masks.
pub(super) fn is_of_masks(folder: &str) -> bool {
    OF_MASKS.contains(&simplified(folder).as_str())
}

/// True of a name that differs from one that has a meaning by case, spaces, hyphens or underscores alone.
pub(super) fn is_almost(name: &str, meant: &str) -> bool {
    name != meant && simplified(name) == simplified(meant)
}

/// The letters and digits of a name, in lower case.
fn simplified(name: &str) -> String {
    composed(name).chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

fn has_extension(path: &str, extensions: &[&str]) -> bool {
    let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    extensions.iter().any(|known| known.eq_ignore_ascii_case(extension))
}
