//! Pipelines and stores, as people name them.

use std::path::PathBuf;

use crate::{
    engine::{
        Error, Result, expand_home, is_url, local_path,
        pipeline::{self, Pipeline},
        store::Store,
    },
    query, stages,
};

/// The store of a pipeline that names none.
pub const DEFAULT_STORE: &str = ".vlmdiff";

/// A pipeline as somebody names it.
#[derive(Clone, Debug, Default)]
pub struct NamedPipeline {
    /// The file.
    pub file: PathBuf,
    /// Values of parameters: `TABLE.PARAMETER=VALUE`, where the value is YAML.
    pub sets: Vec<String>,
    /// The combinations of a sweep: `AXIS=VALUE`. None for all.
    pub only: Vec<String>,
    /// The store; by default the pipeline's own, else [`DEFAULT_STORE`].
    pub store: Option<String>,
}

impl NamedPipeline {
    /// Loads the pipeline.
    pub fn load(&self) -> Result<Pipeline> {
        self.load_with(&[])
    }

    /// Loads the pipeline with values in place of parameters, TABLE.PARAMETER, that the file or `sets` may give.
    pub fn load_with(&self, values: &[(String, String)]) -> Result<Pipeline> {
        let is_kept = |set: &&String| {
            let name = set.split('=').next().unwrap_or_default().trim();
            !values.iter().any(|(value, _)| value == name)
        };
        let mut sets: Vec<String> = self.sets.iter().filter(is_kept).cloned().collect();
        sets.extend(values.iter().map(|(name, value)| format!("{name}={value}")));
        let mut pipeline = pipeline::load(&self.file, stages::KINDS, &query::TABLES_OF_SQL, &sets)?;
        pipeline.only(&self.only)?;
        Ok(pipeline)
    }

    /// Loads the pipeline and opens its store, which is made if absent.
    pub fn open(&self) -> Result<(Pipeline, Store)> {
        let pipeline = self.load()?;
        let address = self.store.as_deref().or(pipeline.store.as_deref()).unwrap_or(DEFAULT_STORE);
        let store = Store::open(&expand_home(address))?;
        Ok((pipeline, store))
    }
}

/// Opens a store that exists. `how` says how another one is named, as `with --store`.
///
/// # Errors
/// [`Error::Input`] if there is no such folder.
pub fn open_store(address: &str, how: &str) -> Result<Store> {
    let address = expand_home(address);
    if !is_url(&address) && !local_path(&address).is_dir() {
        return Err(Error::Input(format!(
            "there is no store at {address}; run a pipeline here first, or name one {how}"
        )));
    }
    Store::open(&address)
}
