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
        physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource, parquet::ParquetRowSelection},
        source::DataSourceExec,
        table_schema::TableSchema,
    },
    error::Result,
    execution::object_store::ObjectStoreUrl,
    logical_expr::{Expr, TableType},
    physical_plan::{ExecutionPlan, empty::EmptyExec},
};
use serde_json::Value;

use crate::engine::{
    Error,
    store::{Manifest, PartRef, Store, declared_schema, tensor_shape},
    value_text,
};

/// The URL under which a session finds the store's objects.
pub(super) const OBJECTS: &str = "store://objects/";

/// A published table.
#[derive(Debug)]
pub(super) struct Published {
    schema: TableSchema,
    files: Vec<PartitionedFile>,
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
        Ok(Self { schema, files })
    }
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

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if self.files.is_empty() {
            // A source without files has no partitions, but a sort needs one.
            let schema = self.schema.table_schema();
            let chosen = projection.map(|columns| schema.project(columns)).transpose()?;
            return Ok(Arc::new(EmptyExec::new(chosen.map_or_else(|| schema.clone(), Arc::new))));
        }
        let partitions = state.config().target_partitions().max(1);
        let groups = FileGroup::new(self.files.clone()).split_files(partitions);
        let source = Arc::new(ParquetSource::new(self.schema.clone()));
        let config = FileScanConfigBuilder::new(ObjectStoreUrl::parse(OBJECTS)?, source)
            .with_file_groups(groups)
            .with_projection_indices(projection.cloned())?
            .with_limit(limit)
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }
}
