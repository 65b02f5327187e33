//! Published tables as SQL sees them.
//!
//! Each pipeline is a schema of its own (`quickstart.metrics`); bare names mean the pipeline that published last. Beside
//! them stand `errors` (rows that failed), and `paper_results` and `paper_datasets` (the numbers of the paper).

pub mod output;
pub mod statement;
mod table;

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch, StringArray},
    datatypes::SchemaRef,
};
use datafusion::{
    catalog::{
        CatalogProvider, MemTable, SchemaProvider,
        memory::{MemoryCatalogProvider, MemorySchemaProvider},
    },
    error::DataFusionError,
    execution::object_store::ObjectStoreUrl,
    prelude::{SessionConfig, SessionContext},
};

use crate::engine::{Error, Result, Store, store::Manifest};

const CATALOG: &str = "vlmdiff";
const PAPER_RESULTS: &str = include_str!("../../data/paper_results.csv");
const PAPER_DATASETS: &str = include_str!("../../data/paper_datasets.csv");

/// A session over everything that a store has published.
pub struct Session {
    context: SessionContext,
    store: Store,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session({:?})", self.store)
    }
}

impl Session {
    /// Opens a session. `pipeline` names the schema of bare table names; by default the pipeline that published last.
    pub fn open(store: &Store, pipeline: Option<&str>) -> Result<Self> {
        let manifests = manifests(store)?;
        let latest =
            manifests.iter().max_by_key(|(_, manifest)| manifest.published_ms).map(|(pipeline, _)| pipeline.as_str());
        let known = |name: &str| manifests.iter().any(|(p, _)| p == name);
        if let Some(name) = pipeline.filter(|name| !known(name)) {
            let mut names: Vec<&str> = manifests.iter().map(|(p, _)| p.as_str()).collect();
            names.dedup();
            return Err(Error::Input(format!(
                "the store {} has no pipeline `{name}`; it has {}",
                store.url,
                if names.is_empty() { "none".into() } else { names.join(", ") }
            )));
        }
        let default = pipeline.or(latest).unwrap_or("public").to_owned();
        let config =
            SessionConfig::new().with_default_catalog_and_schema(CATALOG, &default).with_information_schema(true);
        let context = SessionContext::new_with_config(config);
        let objects = ObjectStoreUrl::parse(table::OBJECTS).map_err(query_error)?;
        context.register_object_store(objects.as_ref(), store.objects.clone());
        let catalog = Arc::new(MemoryCatalogProvider::new());
        context.register_catalog(CATALOG, catalog.clone());
        let schema_of = |name: &str| -> Result<Arc<dyn SchemaProvider>, DataFusionError> {
            match catalog.schema(name) {
                Some(schema) => Ok(schema),
                None => {
                    catalog.register_schema(name, Arc::new(MemorySchemaProvider::new()))?;
                    catalog.schema(name).ok_or_else(|| DataFusionError::Internal("a schema vanished".into()))
                }
            }
        };
        for (pipeline, manifest) in &manifests {
            let provider = Arc::new(table::Published::new(store, manifest)?);
            schema_of(pipeline)
                .and_then(|schema| schema.register_table(manifest.table.clone(), provider))
                .map_err(query_error)?;
        }
        let common = schema_of(&default).map_err(query_error)?;
        let extra = [
            ("errors", errors(&manifests)?),
            ("paper_results", csv(PAPER_RESULTS)?),
            ("paper_datasets", csv(PAPER_DATASETS)?),
        ];
        for (name, batch) in extra {
            if !common.table_exist(name) {
                let provider = MemTable::try_new(batch.schema(), vec![vec![batch]]).map_err(query_error)?;
                common.register_table(name.into(), Arc::new(provider)).map_err(query_error)?;
            }
        }
        Ok(Self { context, store: store.clone() })
    }

    /// Runs one read-only statement.
    pub fn query(&self, sql: &str) -> Result<(SchemaRef, Vec<RecordBatch>)> {
        let options = datafusion::execution::context::SQLOptions::new().with_allow_ddl(false).with_allow_dml(false);
        self.store.runtime().block_on(async {
            let frame = self.context.sql_with_options(sql, options).await.map_err(query_error)?;
            let schema = Arc::new(frame.schema().as_arrow().clone());
            Ok((schema, frame.collect().await.map_err(query_error)?))
        })
    }
}

/// The current manifest of every published table.
pub fn manifests(store: &Store) -> Result<Vec<(String, Manifest)>> {
    let mut manifests = Vec::new();
    for (pipeline, table) in store.tables()? {
        manifests.extend(store.published(&pipeline, &table)?.map(|(_, manifest)| (pipeline, manifest)));
    }
    Ok(manifests)
}

fn query_error(error: DataFusionError) -> Error {
    Error::Input(error.strip_backtrace())
}

fn errors(manifests: &[(String, Manifest)]) -> Result<RecordBatch> {
    let rows: Vec<[&str; 4]> = manifests
        .iter()
        .flat_map(|(pipeline, m)| {
            m.errors.iter().map(move |e| [pipeline.as_str(), m.table.as_str(), e.id.as_str(), e.message.as_str()])
        })
        .collect();
    let column = |i: usize| Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row[i]))) as ArrayRef;
    Ok(RecordBatch::try_from_iter([
        ("pipeline", column(0)),
        ("table", column(1)),
        ("id", column(2)),
        ("message", column(3)),
    ])?)
}

fn csv(text: &'static str) -> Result<RecordBatch> {
    let format = arrow::csv::reader::Format::default().with_header(true);
    let (schema, _) = format.infer_schema(text.as_bytes(), None)?;
    let schema = Arc::new(schema);
    let reader = arrow::csv::ReaderBuilder::new(schema.clone()).with_header(true).build(text.as_bytes())?;
    Ok(arrow::compute::concat_batches(&schema, &reader.collect::<Result<Vec<_>, _>>()?)?)
}
