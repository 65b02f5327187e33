//! A published table as a DataFusion table: its Parquet parts, and of a part that holds more only the chosen rows.

use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use datafusion::{
    catalog::{Session, TableProvider},
    datasource::{
        listing::PartitionedFile,
        physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource, parquet::ParquetRowSelection},
        source::DataSourceExec,
    },
    error::Result,
    execution::object_store::ObjectStoreUrl,
    logical_expr::{Expr, TableType},
    physical_plan::ExecutionPlan,
};
use parquet::arrow::arrow_reader::{RowSelection, RowSelector};

use crate::engine::{
    Error, KEY, Store,
    store::{Manifest, PartRef},
};

/// The address under which a session finds the store's objects.
pub(super) const OBJECTS: &str = "store://objects/";

/// A published table.
#[derive(Debug)]
pub(super) struct Published {
    schema: SchemaRef,
    stored: SchemaRef,
    files: Vec<PartitionedFile>,
}

impl Published {
    pub(super) fn new(store: &Store, manifest: &Manifest) -> Result<Self, Error> {
        let stored = manifest.schema()?;
        // People ask for what a stage declares; digests and keys are the engine's.
        let visible = stored.fields().iter().filter(|f| f.name() != KEY && !f.name().ends_with("_digest"));
        let schema = Arc::new(Schema::new(visible.cloned().collect::<Vec<_>>()));
        let files = manifest.parts.iter().filter(|part| !part.is_empty()).map(|part| file(store, part)).collect();
        Ok(Self { schema, stored, files })
    }
}

fn file(store: &Store, part: &PartRef) -> PartitionedFile {
    let file = PartitionedFile::new(store.part_path(part.part).to_string(), part.bytes);
    let Some(runs) = &part.chosen else { return file };
    let mut selectors = Vec::new();
    let mut next = 0;
    for &(first, count) in runs {
        selectors.extend((first > next).then(|| RowSelector::skip((first - next) as usize)));
        selectors.push(RowSelector::select(count as usize));
        next = first + count;
    }
    selectors.extend((part.rows > next).then(|| RowSelector::skip((part.rows - next) as usize)));
    file.with_extension(ParquetRowSelection::new(RowSelection::from(selectors)))
}

#[async_trait::async_trait]
impl TableProvider for Published {
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
        _: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let all: Vec<usize> = (0..self.schema.fields().len()).collect();
        let wanted = projection.unwrap_or(&all).iter().map(|i| self.stored.index_of(self.schema.field(*i).name()));
        let wanted = wanted.collect::<Result<Vec<_>, _>>()?;
        let partitions = state.config().target_partitions().max(1);
        let groups = FileGroup::new(self.files.clone()).split_files(partitions);
        let source = Arc::new(ParquetSource::new(self.stored.clone()));
        let config = FileScanConfigBuilder::new(ObjectStoreUrl::parse(OBJECTS)?, source)
            .with_file_groups(groups)
            .with_projection_indices(Some(wanted))?
            .with_limit(limit)
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }
}
