//! Writing a synthetic data set as files, in the layout of MVTec AD.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::json;

use super::{CLASSES, Class, Item, render};

/// A synthetic data set that cannot be named or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A class that is not drawn here.
    #[error("unknown synthetic class `{0}`; there are {known}", known = CLASSES.join(", "))]
    UnknownClass(String),
    /// A folder or file that cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The error.
        source: std::io::Error,
    },
    /// A picture that cannot be written.
    #[error("cannot write the picture {}: {source}", path.display())]
    Picture {
        /// The file.
        path: PathBuf,
        /// The error.
        source: image::ImageError,
    },
}

/// Renders `items` of the data set `seed` in `size` x `size` pixels into `dir`: `CLASS/train/good/000.png`,
/// `CLASS/test/KIND/000.png`, `CLASS/ground_truth/KIND/000_mask.png`, and `CLASS/captions.jsonl` with a line
/// `{"image": "train/good/000.png", "caption": "..."}` for every picture of the class. Existing files are replaced.
///
/// # Errors
/// [`Error::Write`] or [`Error::Picture`] with the path that could not be written.
pub fn write_mvtec(dir: &Path, items: &[Item], seed: u64, size: u32) -> Result<(), Error> {
    let folder = |path: PathBuf| match fs::create_dir_all(&path) {
        Ok(()) => Ok(path),
        Err(source) => Err(Error::Write { path, source }),
    };
    let lines = items.par_iter().map(|item| {
        let sample = render(item, seed, size);
        let place = |kind: &str| folder(dir.join(item.class.name()).join(kind).join(item.label()));
        let save = |path: PathBuf, result: image::ImageResult<()>| match result {
            Ok(()) => Ok(()),
            Err(source) => Err(Error::Picture { path, source }),
        };
        let picture = place(item.split.name())?.join(format!("{:03}.png", item.index));
        let saved = sample.image.save(&picture);
        save(picture, saved)?;
        if item.defect.is_some() {
            let mask = place("ground_truth")?.join(format!("{:03}_mask.png", item.index));
            let saved = sample.mask.save(&mask);
            save(mask, saved)?;
        }
        let name = format!("{}/{}/{:03}.png", item.split.name(), item.label(), item.index);
        Ok((item.class, json!({ "image": name, "caption": sample.caption })))
    });
    let lines: Vec<_> = lines.collect::<Result<_, Error>>()?;
    for class in Class::ALL {
        let own: String = lines.iter().filter(|(of, _)| *of == class).map(|(_, line)| format!("{line}\n")).collect();
        if !own.is_empty() {
            let path = folder(dir.join(class.name()))?.join("captions.jsonl");
            let written = fs::File::create(&path).and_then(|mut file| file.write_all(own.as_bytes()));
            written.map_err(|source| Error::Write { path, source })?;
        }
    }
    Ok(())
}
