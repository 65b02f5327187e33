//! The files of a frozen network as blobs of the store, so that what was fitted goes with its network wherever the store
//! goes.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use crate::{
    engine::{Digest, Error, Result, source::Sources, stage::Sink, store::Store},
    published::Weights,
};

/// The files of a network: the digest of each one's content, by name. A method without a network has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct NetworkFiles(BTreeMap<String, Digest>);

impl NetworkFiles {
    /// Keeps the files that a parameter `weights` names as blobs.
    pub(super) fn keep(weights: Weights<'_>, sources: &Sources, out: &mut Sink<'_>) -> Result<Self> {
        let mut files = BTreeMap::new();
        for address in weights.files().map_err(Error::Input)? {
            let name = address.rsplit('/').next().unwrap_or_default().to_owned();
            // The digest of a file that has not changed is known without reading it.
            let digest = sources.digest(&address)?;
            if !out.adopt_blobs(&[digest])? {
                out.put_blob(sources.read(&address)?.to_vec())?;
            }
            files.insert(name, digest);
        }
        Ok(Self(files))
    }

    /// Reads what [`NetworkFiles::to_text`] wrote.
    pub(super) fn of(text: &str) -> Result<Self> {
        let names: BTreeMap<String, String> = serde_json::from_str(text).map_err(std::io::Error::from)?;
        let digest = |(name, digest): (String, String)| Ok((name, digest.parse().map_err(Error::Damaged)?));
        names.into_iter().map(digest).collect::<Result<_>>().map(Self)
    }

    /// Returns the files as a JSON object of names and digests.
    pub(super) fn to_text(&self) -> String {
        let names: BTreeMap<&str, String> = self.0.iter().map(|(name, digest)| (&**name, digest.to_string())).collect();
        serde_json::to_string(&names).unwrap_or_default()
    }

    /// Names the files as kept by the rows that are written next, too.
    pub(super) fn adopt(&self, out: &mut Sink<'_>) -> Result<()> {
        let blobs: Vec<Digest> = self.0.values().copied().collect();
        if out.adopt_blobs(&blobs)? {
            return Ok(());
        }
        Err(Error::Damaged(
            "the files of the extractor's network are gone; `run --force` of the features makes them again".into(),
        ))
    }

    /// Writes the files to a temporary folder, from which the network is opened.
    pub(super) fn local(&self, store: &Store) -> Result<LocalFiles> {
        let folder = tempfile::tempdir()?;
        for (name, digest) in &self.0 {
            std::fs::write(folder.path().join(name), store.blob(*digest)?)?;
        }
        // A folder in Hugging Face layout has a configuration; other weights are one file.
        let path = match self.0.keys().next() {
            Some(file) if !self.0.contains_key("config.json") => folder.path().join(file),
            _ => folder.path().to_owned(),
        };
        Ok(LocalFiles { _folder: folder, path })
    }
}

/// Files of a network on this machine, as long as this value lives.
pub(super) struct LocalFiles {
    _folder: TempDir,
    path: PathBuf,
}

impl LocalFiles {
    /// Returns the path of the one file, or of the folder.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}
