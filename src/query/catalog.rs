//! The tables of a pipeline as a schema of SQL. Names come from one listing, and a table is read when a query names
//! it. For a table that is being made, such as by a training, the rows so far are visible.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use datafusion::{
    catalog::{MemTable, SchemaProvider, Session, TableProvider},
    common::exec_err,
    error::{DataFusionError, Result},
    logical_expr::{Expr, TableType},
    physical_plan::ExecutionPlan,
};

use super::table::Published;
use crate::engine::{
    Digest, Error, or_none,
    store::{Current, Manifest, Store, history},
    table_of,
};

/// The name of a session's only catalogue: tables have the names `CATALOG.PIPELINE.TABLE`.
pub(super) const CATALOG: &str = "vlmdiff";

/// Makes a table that every store has. It is called when a query names the table, so that other queries do not pay for it.
pub(super) type MakeTable = fn(&Store) -> Result<Lazy, Error>;

/// A pipeline's published tables, the tables that every store has, and those that the session itself has made.
#[derive(Debug)]
pub(super) struct OfPipeline {
    published: Arc<Names>,
    /// The tables that every store has, in the schema of bare names. A published table of such a name takes precedence.
    common: BTreeMap<&'static str, MakeTable>,
    made: RwLock<BTreeMap<String, Arc<dyn TableProvider>>>,
}

/// The places of a pipeline's tables.
#[derive(Debug)]
struct Names {
    store: Store,
    pipeline: String,
    /// The slots of each table; a swept table has several.
    slots: BTreeMap<String, BTreeSet<String>>,
    /// The slots of tables that are being made.
    unfinished: BTreeSet<String>,
    /// The parts of the tables that queries of the session have read.
    read: PartsRead,
}

/// The parts of the tables that queries of a session have read.
pub(super) type PartsRead = Arc<Mutex<BTreeSet<Digest>>>;

impl OfPipeline {
    /// Makes the schema of a pipeline; `slots` and `unfinished` are the store's published tables and those that runs
    /// are making.
    pub(super) fn new(
        store: &Store,
        pipeline: &str,
        slots: &[(String, String)],
        unfinished: &[(String, String)],
        read: &PartsRead,
    ) -> Result<Self, Error> {
        let own = |tables: &[(String, String)]| {
            tables.iter().filter(|(of, _)| of == pipeline).map(|(_, slot)| slot.clone()).collect::<BTreeSet<String>>()
        };
        let mut unfinished = own(unfinished);
        for slot in unfinished.clone() {
            if store.unfinished(pipeline, &slot)?.is_none() {
                unfinished.remove(&slot);
            }
        }
        let mut slots_of: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for slot in own(slots).union(&unfinished) {
            slots_of.entry(table_of(slot).to_owned()).or_default().insert(slot.clone());
        }
        let names = Names {
            store: store.clone(),
            pipeline: pipeline.to_owned(),
            slots: slots_of,
            unfinished,
            read: read.clone(),
        };
        Ok(Self { published: Arc::new(names), common: BTreeMap::new(), made: RwLock::default() })
    }

    /// Adds tables that every store has. A table that the pipeline published under such a name takes precedence.
    pub(super) fn with_common(mut self, tables: impl IntoIterator<Item = (&'static str, MakeTable)>) -> Self {
        self.common = tables.into_iter().filter(|(name, _)| !self.published.slots.contains_key(*name)).collect();
        self
    }
}

impl Names {
    /// Opens a published table, `TABLE` or `TABLE@RUN`.
    fn open(&self, name: &str) -> Result<Option<Published>, Error> {
        let manifests = match name.split_once('@') {
            Some((table, run)) => self.of_run(table, run)?,
            None => self.current(name)?,
        };
        let parts = manifests.iter().flat_map(|manifest| &manifest.parts).map(|part| part.part);
        self.read.lock().unwrap_or_else(PoisonError::into_inner).extend(parts);
        if manifests.is_empty() { Ok(None) } else { Published::new(&self.store, &manifests).map(Some) }
    }

    /// Returns all instances of a table, or the one in the slot of this name.
    fn current(&self, name: &str) -> Result<Vec<Manifest>, Error> {
        let Some(slots) = self.slots.get(table_of(name)) else { return Ok(Vec::new()) };
        let is_meant = |slot: &&String| name == table_of(slot) || name == *slot;
        let slots: Vec<String> = slots.iter().filter(is_meant).cloned().collect();
        let published = self.store.current(&self.pipeline, &slots)?;
        let of_slot = |(slot, published): (&String, Current)| {
            let published = published.whole()?.map(|(_, manifest)| manifest).filter(|manifest| !manifest.retired);
            let is_made = self.unfinished.contains(slot);
            let unfinished = if is_made { self.store.unfinished(&self.pipeline, slot)? } else { None };
            Ok(unfinished.or(published))
        };
        slots.iter().zip(published).filter_map(|slot| of_slot(slot).transpose()).collect()
    }

    fn of_run(&self, table: &str, name: &str) -> Result<Vec<Manifest>, Error> {
        let run = history::find(&self.store, name)?;
        if run.damaged {
            return Err(Error::Damaged(format!("runs/{}.jsonl, the log of the run `{name}`, is damaged", run.run)));
        }
        if run.pipeline != self.pipeline {
            return Err(Error::Input(format!(
                "`{name}` is a run of the pipeline `{0}`, not of `{1}`; write {0}.\"{table}@{name}\"",
                run.pipeline, self.pipeline
            )));
        }
        let versions = run.versions();
        let of_table = versions.iter().filter(|(slot, _)| table_of(slot) == table);
        let manifests = of_table.map(|(slot, version)| {
            self.store.version(&self.pipeline, slot, *version)?.ok_or_else(|| {
                Error::Input(format!("version {version} of `{table}`, of run `{name}`, is no longer in the store"))
            })
        });
        let manifests = manifests.collect::<Result<Vec<_>, _>>()?;
        if manifests.is_empty() {
            let mut tables: Vec<&str> = versions.keys().map(|slot| table_of(slot)).collect();
            tables.dedup();
            return Err(Error::Input(format!("run `{name}` has no table `{table}`; it has {}", or_none(&tables))));
        }
        Ok(manifests)
    }
}

#[async_trait::async_trait]
impl SchemaProvider for OfPipeline {
    fn table_names(&self) -> Vec<String> {
        let made = self.made.read().unwrap_or_else(PoisonError::into_inner);
        let common = self.common.keys().map(|name| (*name).to_owned());
        self.published.slots.keys().chain(made.keys()).cloned().chain(common).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let made = self.made.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        if made.is_some() {
            return Ok(made);
        }
        if let Some(make) = self.common.get(name) {
            let table = make(&self.published.store).map_err(|error| DataFusionError::External(Box::new(error)))?;
            return Ok(Some(Arc::new(table)));
        }
        let (names, name) = (self.published.clone(), name.to_owned());
        let published = blocking(move || names.open(&name)).await?;
        Ok(published.map(|table| Arc::new(table) as Arc<dyn TableProvider>))
    }

    fn register_table(&self, name: String, table: Arc<dyn TableProvider>) -> Result<Option<Arc<dyn TableProvider>>> {
        if self.published.slots.contains_key(&name) || name.contains('@') {
            return exec_err!("`{name}` names a published table; choose another name");
        }
        if self.common.contains_key(name.as_str()) {
            return exec_err!("`{name}` names a table that every store has; choose another name");
        }
        Ok(self.made.write().unwrap_or_else(PoisonError::into_inner).insert(name, table))
    }

    fn deregister_table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        match self.made.write().unwrap_or_else(PoisonError::into_inner).remove(name) {
            Some(table) => Ok(Some(table)),
            None if self.common.contains_key(name) => {
                exec_err!("`{name}` is a table that every store has, which SQL only reads")
            }
            None => exec_err!("`{name}` is a published table, which SQL only reads"),
        }
    }

    fn table_exist(&self, name: &str) -> bool {
        let table = name.split_once('@').map_or(name, |(table, _)| table);
        self.published.slots.contains_key(table)
            || self.common.contains_key(name)
            || self.made.read().unwrap_or_else(PoisonError::into_inner).contains_key(name)
    }
}

/// Runs work of the store on a thread of its own. The store blocks on its requests, which a thread that serves
/// queries must not do.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T> {
    let external = |e: Box<dyn std::error::Error + Send + Sync>| DataFusionError::External(e);
    let done = tokio::task::spawn_blocking(work).await.map_err(|e| external(Box::new(e)))?;
    done.map_err(|e| external(Box::new(e)))
}

/// A table that is made when a query reads it.
pub(super) struct Lazy {
    schema: SchemaRef,
    make: Arc<dyn Fn() -> Result<RecordBatch, Error> + Send + Sync>,
}

impl Lazy {
    pub(super) fn new(
        schema: SchemaRef,
        make: impl Fn() -> Result<RecordBatch, Error> + Send + Sync + 'static,
    ) -> Self {
        Self { schema, make: Arc::new(make) }
    }
}

impl std::fmt::Debug for Lazy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lazy({:?})", self.schema)
    }
}

#[async_trait::async_trait]
impl TableProvider for Lazy {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let make = self.make.clone();
        let batch = blocking(move || make()).await?;
        let table = MemTable::try_new(self.schema.clone(), vec![vec![batch]])?;
        table.scan(state, projection, filters, limit).await
    }
}
