//! The answers about what there is: pipelines, which are schemas of SQL, their tables, and keys, of which there are none.

use std::sync::Arc;

use arrow::{
    array::{AsArray, RecordBatch},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use arrow_flight::{
    error::FlightError,
    sql::{CommandGetCatalogs, CommandGetDbSchemas, CommandGetTableTypes, CommandGetTables},
};
use futures::{StreamExt, TryStreamExt};

use crate::{
    engine::{Error, Result, store::Store},
    query::{Bounds, Tables},
};

/// The type that all tables have.
const TYPE: &str = "TABLE";
/// The number of tables that are opened at once. Opening one reads its manifest.
const AT_ONCE: usize = 16;

/// Makes the error of a library of Flight.
pub(super) fn flight_error(error: FlightError) -> Error {
    match error {
        FlightError::Arrow(error) => Error::Arrow(error),
        other => Error::Stage(other.to_string()),
    }
}

/// Returns the catalogue, of which there is one.
pub(super) fn catalogs(query: CommandGetCatalogs) -> Result<RecordBatch> {
    let mut builder = query.into_builder();
    builder.append(Tables::CATALOG);
    builder.build().map_err(flight_error)
}

/// Returns the types of tables.
pub(super) fn table_types(query: CommandGetTableTypes) -> Result<RecordBatch> {
    let mut builder = query.into_builder();
    builder.append(TYPE);
    builder.build().map_err(flight_error)
}

/// Returns the pipelines that a client asks for.
pub(super) async fn schemas(store: &Store, bounds: Bounds, query: CommandGetDbSchemas) -> Result<RecordBatch> {
    let tables = Tables::open(store, None, bounds).await?;
    let mut builder = query.into_builder();
    tables.pipelines().iter().for_each(|pipeline| builder.append(Tables::CATALOG, pipeline));
    builder.build().map_err(flight_error)
}

/// Returns the tables that a client asks for. `pipeline` is the one in which those of SQL itself are.
pub(super) async fn tables(
    store: &Store,
    pipeline: Option<&str>,
    bounds: Bounds,
    query: CommandGetTables,
) -> Result<RecordBatch> {
    let tables = Tables::open(store, pipeline, bounds).await?;
    let mut all = CommandGetTables { include_schema: false, ..query.clone() }.into_builder();
    for (pipeline, table) in tables.names() {
        all.append(Tables::CATALOG, pipeline, table, TYPE, &Schema::empty()).map_err(flight_error)?;
    }
    let chosen = all.build().map_err(flight_error)?;
    let names =
        chosen.column(1).as_string::<i32>().iter().flatten().zip(chosen.column(2).as_string::<i32>().iter().flatten());
    let names: Vec<(String, String)> = names.map(|(pipeline, table)| (pipeline.to_owned(), table.to_owned())).collect();
    // A table that its pipeline no longer declares is seen when it is opened.
    let opened = futures::stream::iter(names).map(|(pipeline, table)| {
        let tables = tables.clone();
        async move {
            let schema = tables.schema(&pipeline, &table).await?;
            Ok::<_, Error>((pipeline, table, schema))
        }
    });
    let opened: Vec<_> = opened.buffered(AT_ONCE).try_collect().await?;
    let mut builder = query.into_builder();
    for (pipeline, table, schema) in opened {
        let Some(schema) = schema else { continue };
        builder.append(Tables::CATALOG, pipeline, table, TYPE, &schema).map_err(flight_error)?;
    }
    builder.build().map_err(flight_error)
}

fn schema(columns: &[(&str, DataType, bool)]) -> SchemaRef {
    let fields = columns.iter().map(|(name, of, nullable)| Field::new(*name, of.clone(), *nullable));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// Returns the columns of the list of primary keys.
pub(super) fn primary_keys() -> SchemaRef {
    schema(&[
        ("catalog_name", DataType::Utf8, true),
        ("db_schema_name", DataType::Utf8, true),
        ("table_name", DataType::Utf8, false),
        ("column_name", DataType::Utf8, false),
        ("key_name", DataType::Utf8, true),
        ("key_sequence", DataType::Int32, false),
    ])
}

/// Returns the columns of the lists of foreign keys.
pub(super) fn foreign_keys() -> SchemaRef {
    schema(&[
        ("pk_catalog_name", DataType::Utf8, true),
        ("pk_db_schema_name", DataType::Utf8, true),
        ("pk_table_name", DataType::Utf8, false),
        ("pk_column_name", DataType::Utf8, false),
        ("fk_catalog_name", DataType::Utf8, true),
        ("fk_db_schema_name", DataType::Utf8, true),
        ("fk_table_name", DataType::Utf8, false),
        ("fk_column_name", DataType::Utf8, false),
        ("key_sequence", DataType::Int32, false),
        ("fk_key_name", DataType::Utf8, true),
        ("pk_key_name", DataType::Utf8, true),
        ("update_rule", DataType::UInt8, false),
        ("delete_rule", DataType::UInt8, false),
    ])
}
