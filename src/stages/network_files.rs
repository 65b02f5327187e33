//! The files of an extractor's network as blobs of the store, so that what was fitted goes with its network wherever
//! the store goes.

use std::collections::BTreeMap;

use tch::Device;

use crate::{
    engine::{Digest, Error, Result, source::Sources, stage::Sink, store::Store},
    features::{Extractor, FeatureOptions, LoadedExtractor},
    published::Weights,
};

/// The files of a network: the digest of each one's content, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NetworkFiles(BTreeMap<String, Digest>);

impl NetworkFiles {
    /// Reads the files that a parameter `weights` names.
    pub(super) fn read(weights: Weights<'_>, sources: &Sources) -> Result<Vec<(String, Vec<u8>)>> {
        let read = |address: String| {
            let name = address.rsplit('/').next().unwrap_or_default().to_owned();
            Ok((name, sources.read(&address)?.to_vec()))
        };
        weights.files().map_err(Error::Input)?.into_iter().map(read).collect()
    }

    /// Keeps files as blobs.
    pub(super) fn keep(files: &[(String, Vec<u8>)], out: &mut Sink<'_>) -> Result<Self> {
        let keep = |(name, content): &(String, Vec<u8>)| Ok((name.clone(), out.put_blob(content.clone())?));
        files.iter().map(keep).collect::<Result<_>>().map(Self)
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

    /// Opens the network.
    pub(super) fn open(
        &self,
        store: &Store,
        extractor: Extractor,
        options: &FeatureOptions,
        device: Device,
    ) -> Result<LoadedExtractor> {
        let folder = tempfile::tempdir()?;
        for (name, digest) in &self.0 {
            std::fs::write(folder.path().join(name), store.blob(*digest)?)?;
        }
        // A folder in Hugging Face layout has a configuration; other weights are one file.
        let path = match self.0.keys().next() {
            Some(file) if !self.0.contains_key("config.json") => folder.path().join(file),
            _ => folder.path().to_owned(),
        };
        Ok(extractor.open(&path, options, device)?)
    }
}
