//! The photographs that a manifest lists, for whoever reads them one by one.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;

use super::{
    files::PictureFiles,
    manifest::{ManifestColumns, Manifests},
};
use crate::{
    datasets::Fault,
    engine::{Error, Result, join, source::Sources},
};

/// A photograph that a manifest lists.
pub struct Listed {
    /// Its id.
    pub id: String,
    /// Its class, if the manifest has one.
    pub class: Option<String>,
    /// The photograph.
    pub picture: Picture,
}

/// The photograph of a row of a manifest.
pub enum Picture {
    /// The address of its file.
    File(String),
    /// Its bytes, from a Parquet file.
    Embedded(Bytes),
}

/// The number of photographs in Parquet files that are in memory at once.
const AT_ONCE: usize = 64;

/// Calls `each` with the photographs of a manifest at an address, or of all manifests of a folder, whatever their splits
/// and labels are.
pub fn photographs(root: &str, sources: &Sources, mut each: impl FnMut(Listed) -> Result<()>) -> Result<()> {
    let columns = ManifestColumns::default();
    let manifests = Manifests::read(root, &columns, sources)?;
    if let Some(Fault { path, what }) = manifests.missing().first() {
        return Err(Error::Input(format!("{path}: {what}")));
    }
    let Manifests { folder, rows, .. } = manifests;
    let files = PictureFiles { folder: &folder, columns: &columns, sources };
    for rows in rows.chunks(AT_ONCE) {
        let mut wanted: BTreeMap<&str, BTreeSet<u32>> = BTreeMap::new();
        for row in rows {
            wanted.entry(&row.path).or_default().extend(row.row);
        }
        let mut embedded = HashMap::new();
        for (path, rows) in wanted.into_iter().filter(|(_, rows)| !rows.is_empty()) {
            embedded.insert(path, files.embedded(&join(&folder, path)?, false, &rows)?);
        }
        for row in rows {
            let picture = match row.row {
                None => Picture::File(join(&folder, &row.path)?),
                Some(at) => {
                    let bytes = embedded.get(row.path.as_str()).and_then(|rows| rows.get(&at)).cloned();
                    let changed = || Error::Input(format!("{} changed while it was being read", row.place));
                    Picture::Embedded(bytes.ok_or_else(changed)?)
                }
            };
            each(Listed { id: row.id.clone(), class: row.class.clone(), picture })?;
        }
    }
    Ok(())
}
