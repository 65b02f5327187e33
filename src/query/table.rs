//! A published table as a DataFusion table: its Parquet parts, and for a part that contains further rows a selection
//! of rows.
//!
//! The instances of a swept table are one table, with a column for each axis that is constant in an instance's files.

use std::sync::Arc;

use arrow::datatypes::{Field, FieldRef, Schema, SchemaRef};
use datafusion::{
    catalog::{Session, TableProvider},
    common::ScalarValue,
    datasource::{
        listing::PartitionedFile,
        physical_plan::{
            FileGroup, FileGroupPartitioner, FileScanConfigBuilder, ParquetSource,
            parquet::{CachedParquetFileReaderFactory, ParquetRowSelection},
        },
        source::DataSourceExec,
        table_schema::TableSchema,
    },
    error::Result,
    execution::object_store::ObjectStoreUrl,
    logical_expr::{Expr, TableProviderFilterPushDown, TableType},
    physical_plan::{ExecutionPlan, empty::EmptyExec},
};
use serde_json::Value;

use super::{batches::row_bytes, kept::Kept};
use crate::engine::{
    Digest, Error, Hasher,
    store::{Manifest, PartRef, Store, declared_schema, has_heavy, tensor_shape},
    value_text,
};

/// The URL under which a session finds the store's objects.
pub(super) const OBJECTS: &str = "store://objects/";

/// The bytes of a table from which several threads read it, each a range of its parts.
const LARGE: usize = 256 << 10;

/// A published table.
#[derive(Debug)]
pub(super) struct Published {
    schema: TableSchema,
    files: Vec<PartitionedFile>,
    /// A digest of the parts with their chosen rows, and of the columns.
    content: Digest,
    rows: u64,
}

impl Published {
    /// Makes a table from its instances, of which there must be at least one.
    pub(super) fn new(store: &Store, instances: &[Manifest]) -> Result<Self, Error> {
        let columns = union(&instances.iter().map(visible).collect::<Result<Vec<_>, _>>()?);
        let axes: Vec<Axis> =
            axes(instances).into_iter().filter(|axis| columns.iter().all(|c| c.name() != axis.field.name())).collect();
        let of_instance = |(at, manifest): (usize, &Manifest)| {
            let values: Vec<ScalarValue> = axes.iter().map(|axis| axis.values[at].clone()).collect();
            let parts = manifest.parts.iter().filter(|part| !part.is_empty());
            parts.map(|part| file(store, part).with_partition_values(values.clone())).collect::<Vec<_>>()
        };
        let files = instances.iter().enumerate().flat_map(of_instance).collect();
        let fields: Vec<FieldRef> = axes.iter().map(|axis| axis.field.clone()).collect();
        let schema = TableSchema::builder(Arc::new(Schema::new(columns))).with_table_partition_cols(fields).build();
        let content = content(instances, &axes, schema.table_schema());
        let rows = instances.iter().flat_map(|manifest| &manifest.parts).map(PartRef::len).sum();
        Ok(Self { schema, files, content, rows })
    }

    /// Returns the parts in so many groups at most, which are read side by side. A group of a large table has a range of its
    /// bytes, and what begins in the middle of a part reads the row groups from there on.
    fn groups(&self, most: usize) -> Vec<FileGroup> {
        let all = vec![FileGroup::new(self.files.clone())];
        if most < 2 {
            return all;
        }
        let partitioner =
            FileGroupPartitioner::new().with_target_partitions(most).with_repartition_file_min_size(LARGE);
        partitioner.repartition_file_groups(&all).unwrap_or(all)
    }
}

/// Returns a digest of all that the rows of a table follow from.
fn content(instances: &[Manifest], axes: &[Axis], schema: &Schema) -> Digest {
    let mut hasher = Hasher::new("rows of sql");
    for field in schema.fields() {
        hasher.field(field.name().as_bytes()).field(field.data_type().to_string().as_bytes());
    }
    for (at, manifest) in instances.iter().enumerate() {
        for axis in axes {
            hasher.field(axis.values[at].to_string().as_bytes());
        }
        for part in &manifest.parts {
            hasher.field(part.part.as_bytes());
            let runs = part.chosen.iter().flatten();
            let runs: Vec<u8> = runs.flat_map(|(first, count)| [*first, *count]).flat_map(u64::to_le_bytes).collect();
            hasher.field(&runs);
        }
    }
    hasher.finish()
}

/// Returns the columns that a stage declares. Digests and keys are internal and hidden.
fn visible(manifest: &Manifest) -> Result<Vec<FieldRef>, Error> {
    let stored = manifest.schema()?;
    Ok(declared_schema(&stored).fields().to_vec())
}

/// Returns the columns of all instances. A column that some instances lack is null there; one with several types is
/// left out.
fn union(instances: &[Vec<FieldRef>]) -> Vec<FieldRef> {
    let mut names: Vec<&String> = Vec::new();
    for field in instances.iter().flatten() {
        names.extend((!names.contains(&field.name())).then_some(field.name()));
    }
    let column = |name: &String| {
        let of_instance = |fields: &&Vec<FieldRef>| fields.iter().any(|field| field.name() == name);
        let everywhere = instances.iter().filter(of_instance).count() == instances.len();
        let all: Vec<&FieldRef> = instances.iter().flatten().filter(|field| field.name() == name).collect();
        let (first, rest) = all.split_first()?;
        let same =
            |other: &&FieldRef| other.data_type() == first.data_type() && tensor_shape(other) == tensor_shape(first);
        let nullable = !everywhere || all.iter().any(|field| field.is_nullable());
        rest.iter().all(same).then(|| Arc::new(first.as_ref().clone().with_nullable(nullable)))
    };
    names.into_iter().filter_map(column).collect()
}

/// A swept parameter as a column, with its value in each instance.
struct Axis {
    field: FieldRef,
    values: Vec<ScalarValue>,
}

fn axes(instances: &[Manifest]) -> Vec<Axis> {
    let mut names: Vec<&String> = Vec::new();
    for (name, _) in instances.iter().flat_map(|manifest| &manifest.variant.0) {
        names.extend((!names.contains(&name)).then_some(name));
    }
    let axis = |name: &String| {
        let value = |manifest: &'_ Manifest| manifest.variant.get(name).filter(|value| !value.is_null()).cloned();
        let values: Vec<Option<Value>> = instances.iter().map(value).collect();
        let all = |is: fn(&Value) -> bool| values.iter().flatten().all(&is);
        let scalar: fn(Option<&Value>) -> ScalarValue = if all(Value::is_boolean) {
            |value| ScalarValue::Boolean(value.and_then(Value::as_bool))
        } else if all(Value::is_i64) {
            |value| ScalarValue::Int64(value.and_then(Value::as_i64))
        } else if all(Value::is_number) {
            |value| ScalarValue::Float64(value.and_then(Value::as_f64))
        } else {
            |value| ScalarValue::Utf8(value.map(value_text))
        };
        let values: Vec<ScalarValue> = values.iter().map(|value| scalar(value.as_ref())).collect();
        Axis { field: Arc::new(Field::new(name, scalar(None).data_type(), true)), values }
    };
    names.into_iter().map(axis).collect()
}

fn file(store: &Store, part: &PartRef) -> PartitionedFile {
    let file = PartitionedFile::new(store.part_path(part.part).to_string(), part.bytes);
    match part.selection() {
        Some(rows) => file.with_extension(ParquetRowSelection::new(rows)),
        None => file,
    }
}

#[async_trait::async_trait]
impl TableProvider for Published {
    fn schema(&self) -> SchemaRef {
        self.schema.table_schema().clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    /// Conditions are told to [`Published::scan`], and checked above it.
    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let all = self.schema.table_schema();
        let columns = projection.cloned().unwrap_or_else(|| (0..all.fields().len()).collect());
        let schema = Arc::new(all.project(&columns)?);
        if self.files.is_empty() {
            // A source without files has no partitions, but a sort needs one.
            return Ok(Arc::new(EmptyExec::new(schema)));
        }
        let partitions = state.config().target_partitions();
        let kept = state.config().get_extension::<Kept>().filter(|_| !has_heavy(&schema));
        if let Some(kept) = &kept
            && let Some(scan) = kept.scan(self.content, &columns, &schema, partitions)?
        {
            return Ok(scan);
        }
        let is_whole = filters.is_empty() && limit.is_none();
        let kept = kept.filter(|kept| is_whole && kept.has_room_for(self.rows, row_bytes(&schema)));
        let objects = ObjectStoreUrl::parse(OBJECTS)?;
        let runtime = state.runtime_env();
        let readers = CachedParquetFileReaderFactory::new(
            runtime.object_store(&objects)?,
            runtime.cache_manager.get_file_metadata_cache(),
        );
        let source = ParquetSource::new(self.schema.clone()).with_parquet_file_reader_factory(Arc::new(readers));
        let config = FileScanConfigBuilder::new(objects, Arc::new(source))
            .with_file_groups(self.groups(partitions))
            .with_projection_indices(Some(columns.clone()))?
            .with_limit(limit)
            // Otherwise partitions take parts from each other, and cannot be read a second time.
            .with_preserve_order(kept.is_some())
            .build();
        let scan = DataSourceExec::from_data_source(config);
        match kept {
            Some(kept) => kept.keeping(self.content, columns, scan),
            None => Ok(scan),
        }
    }
}
