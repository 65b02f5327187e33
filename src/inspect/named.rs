//! Photographs as people name them: files, folders, URLs and manifests.

use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap, hash_map::Entry},
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use rayon::prelude::*;

use super::Photograph;
use crate::{
    datasets::{folder::is_image, manifest::is_manifest},
    engine::{Error, Result, is_url, join, source::Sources},
    stages::ingest::{Listed, Picture, photographs},
};

/// Photographs that were named, and the names of those that cannot be fetched, with the reasons.
#[derive(Debug, Default)]
pub struct Named {
    /// The photographs. Their ids differ: the paths as given, URLs, or the names in a manifest.
    pub photographs: Vec<Photograph>,
    /// Those that cannot be fetched from their server, with the reason.
    pub failed: Vec<(String, String)>,
}

/// A name with its class, if that is known, and the path or URL of its file.
struct Place {
    id: String,
    class: Option<String>,
    file: PathBuf,
    /// The manifest that holds its bytes, if one does.
    embedded_in: Option<String>,
}

impl Place {
    fn new(id: String, file: PathBuf) -> Self {
        Self { id, class: None, file, embedded_in: None }
    }

    /// Returns the file or the manifest that holds the photograph.
    fn holder(&self) -> Cow<'_, str> {
        self.embedded_in.as_deref().map_or_else(|| self.file.to_string_lossy(), Cow::Borrowed)
    }
}

/// Finds the photographs that paths and URLs name: files as they are, all pictures of folders, and those that manifests
/// list (CSV, JSON lines, Parquet). `class` gives the class of a photograph from that in its manifest, which may be
/// absent. Pictures in Parquet files are written into `folder`.
///
/// # Errors
/// [`Error::Input`] if a path or a manifest cannot be read, or two photographs have one id.
pub fn named(
    names: &[PathBuf],
    class: &dyn Fn(Option<&str>) -> Result<String>,
    folder: &Path,
    sources: &Sources,
) -> Result<Named> {
    let mut places = Vec::new();
    let mut seen = BTreeSet::new();
    for name in names.iter().filter(|name| seen.insert(*name)) {
        let text = name.to_string_lossy().into_owned();
        if is_manifest(&text) && (is_url(&text) || !name.is_dir()) {
            photographs(&text, sources, |Listed { id, class, picture }| {
                let (file, embedded_in) = match picture {
                    Picture::File(address) => (address.into(), None),
                    Picture::Embedded(bytes) => {
                        let file = folder.join(format!("{:06}", places.len()));
                        fs::write(&file, bytes)?;
                        (file, Some(text.clone()))
                    }
                };
                places.push(Place { id, class, file, embedded_in });
                Ok(())
            })?;
        } else if is_url(&text) {
            for url in urls(text, sources)? {
                places.push(Place::new(url.clone(), url.into()));
            }
        } else {
            for path in pictures(std::slice::from_ref(name))? {
                places.push(Place::new(path.to_string_lossy().into_owned(), path));
            }
        }
    }
    let places = different(places)?;
    let mut found = Named::default();
    let fetch = |place: &Place| match place.file.to_str().filter(|address| is_url(address)) {
        Some(url) => sources.local(url),
        None => Ok(place.file.clone()),
    };
    let files: Vec<Result<PathBuf>> = places.par_iter().map(fetch).collect();
    for (Place { id, class: listed, .. }, file) in places.into_iter().zip(files) {
        match file {
            Ok(file) => found.photographs.push(Photograph { id, class: class(listed.as_deref())?, file }),
            Err(error) => found.failed.push((id, error.to_string())),
        }
    }
    Ok(found)
}

/// Leaves out places that were named before.
///
/// # Errors
/// [`Error::Input`] if two photographs have one id.
fn different(places: Vec<Place>) -> Result<Vec<Place>> {
    let mut by_id: HashMap<String, usize> = HashMap::new();
    let mut different: Vec<Place> = Vec::new();
    for place in places {
        match by_id.entry(place.id.clone()) {
            Entry::Vacant(entry) => {
                entry.insert(different.len());
                different.push(place);
            }
            Entry::Occupied(entry) => {
                let first = &different[*entry.get()];
                if first.file != place.file {
                    return Err(Error::Input(format!(
                        "two photographs have the id `{}`: {} and {}; give them other ids, or judge the manifests one by one",
                        place.id,
                        first.holder(),
                        place.holder()
                    )));
                }
            }
        }
    }
    Ok(different)
}

/// Returns a URL as it is, or the URLs of all pictures below it if it is not that of a picture.
fn urls(url: String, sources: &Sources) -> Result<Vec<String>> {
    if is_image(&url) {
        return Ok(vec![url]);
    }
    sources.tree(&url)?.paths().filter(|path| is_image(path)).map(|path| join(&url, path)).collect()
}

/// Returns the photographs among paths: files as they are, and all pictures of folders.
pub fn pictures(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let cannot = |path: &Path, e: std::io::Error| Error::Input(format!("cannot read {}: {e}", path.display()));
    let mut found = Vec::new();
    for path in paths {
        if !fs::metadata(path).map_err(|e| cannot(path, e))?.is_dir() {
            found.push(path.clone());
            continue;
        }
        for entry in walkdir::WalkDir::new(path).follow_links(true).sort_by_file_name() {
            let entry = match entry {
                Ok(entry) => entry,
                // It has vanished while the folder was listed, as temporary files do.
                Err(e) if e.depth() > 0 && e.io_error().is_some_and(|e| e.kind() == ErrorKind::NotFound) => continue,
                // The pictures of a folder that a link inside it leads back to are listed already.
                Err(e) if e.loop_ancestor().is_some() => continue,
                Err(e) => return Err(cannot(path, e.into())),
            };
            if entry.file_type().is_file() && is_image(&entry.path().to_string_lossy()) {
                found.push(entry.into_path());
            }
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}
