//! Delta Lake: a table is a log of versions over Parquet files. Tensors are lists, with their shape beside the column.

use std::{collections::HashMap, ops::RangeInclusive, sync::Arc};

use arrow::{
    array::{ArrayRef, RecordBatch, RecordBatchOptions, StringArray, new_null_array},
    compute::cast,
    datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit},
};
use deltalake::{
    DeltaTable, DeltaTableError,
    kernel::{Action, Add, StructType, engine::arrow_conversion::TryIntoKernel},
    logstore::{LogStoreRef, StorageConfig, default_logstore},
    protocol::SaveMode,
};
use futures::{StreamExt, TryStreamExt};
use object_store::{ObjectStore, ObjectStoreExt, buffered::BufWriter, path::Path, prefix::PrefixStore};
use parquet::{
    arrow::AsyncArrowWriter,
    basic::{Compression, ZstdLevel},
    file::properties::{EnabledStatistics, WriterProperties},
    schema::types::ColumnPath,
};
use serde_json::json;
use tokio::runtime::Runtime;

use super::{DataSet, FILE_BYTES, NextRows, Table, Written, cannot_hold, cannot_read, folder::read_schema, restore};
use crate::engine::{
    Error, Hasher, Result, encode_schema, is_url, join, local_path, now_ms, objects_at,
    source::{ParquetFile, Sources},
    store::{plain, tensor_shape},
};

/// The properties of a Delta table that name the table that was exported, and hold its schema.
const TABLE: &str = "vlmdiff.table";
const SCHEMA: &str = "vlmdiff.schema";
/// The property that says that columns have other names in the files.
const COLUMN_MAPPING: &str = "delta.columnMapping.mode";
/// The metadata of a column of tensors: their shape.
const SHAPE: &str = "vlmdiff.shape";
/// The bytes of the tensors in a row group, which is in memory while it is written, and the number of its rows.
const GROUP_BYTES: usize = 32 << 20;
const GROUP_ROWS: RangeInclusive<usize> = 16..=10_000;
/// The bytes of the tensors that are converted at a time. While rows are written, each number takes twelve bytes more: its levels and
/// its place.
const CONVERTED_BYTES: usize = 1 << 20;
/// The number of rows that are read at a time.
const READ_ROWS: usize = 256;

/// Returns a runtime for the library, which needs several threads to run on.
fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?)
}

/// The place of a Delta table.
struct Place {
    address: String,
    objects: Arc<dyn ObjectStore>,
    log: LogStoreRef,
}

impl Place {
    fn at(address: &str) -> Result<Self> {
        let (root, prefix, url) = objects_at(address)?;
        let objects: Arc<dyn ObjectStore> = Arc::new(PrefixStore::new(root.clone(), prefix));
        let log = default_logstore(objects.clone(), root, &url, &StorageConfig::default());
        Ok(Self { address: address.to_owned(), objects, log })
    }

    fn failed(&self, error: DeltaTableError) -> Error {
        cannot_read(&self.address, error)
    }

    /// Refuses a place with anything but exports of the same table.
    async fn check(&self, table: &Table) -> Result<()> {
        if self.log.is_delta_table_location().await.map_err(|e| self.failed(e))? {
            let mut there = DeltaTable::new(self.log.clone());
            there.load().await.map_err(|e| self.failed(e))?;
            let snapshot = there.snapshot().map_err(|e| self.failed(e))?;
            return match snapshot.metadata().configuration().get(TABLE) {
                Some(name) if *name == table.name() => Ok(()),
                Some(other) => Err(Error::Input(format!(
                    "{} is the Delta table of `{other}`; name another folder for `{}`",
                    self.address,
                    table.name()
                ))),
                None => Err(Error::Input(format!(
                    "{} is a Delta table that no export wrote; name a new folder",
                    self.address
                ))),
            };
        }
        match self.objects.list(None).next().await.transpose()? {
            Some(_) => Err(Error::Input(format!(
                "{} has files and is no Delta table, as a first export leaves it that was killed; name a new folder, or empty \
                 this one",
                self.address
            ))),
            None => Ok(()),
        }
    }
}

/// Writes a table as a version of a Delta table.
pub(super) fn write(table: &Table, rows: &mut NextRows<'_>, address: &str) -> Result<Written> {
    let fields = table.schema.fields().iter().map(|field| stored(field)).collect::<Result<Vec<_>>>()?;
    let schema = Arc::new(Schema::new(fields));
    let (runtime, place) = (runtime()?, Place::at(address)?);
    runtime.block_on(place.check(table))?;
    let row_bytes = tensor_bytes(&table.schema).max(1);
    let group_rows = (GROUP_BYTES / row_bytes).clamp(*GROUP_ROWS.start(), *GROUP_ROWS.end());
    let properties = writer_properties(&table.schema, group_rows)?;
    let mut files = Files { place: &place, schema: &schema, properties, adds: Vec::new(), open: None };
    let filled = fill(&runtime, &mut files, rows, (CONVERTED_BYTES / row_bytes).max(1));
    let committed = filled.and_then(|rows| {
        let version = runtime.block_on(files.commit(table))?;
        Ok(Written { rows, files: files.adds.len(), version: Some(version) })
    });
    if committed.is_err() {
        runtime.block_on(files.discard());
    }
    committed
}

/// Returns the bytes of the tensors of a row.
fn tensor_bytes(schema: &Schema) -> usize {
    let bytes = schema.fields().iter().map(|field| match field.data_type() {
        DataType::FixedSizeList(item, size) => *size as usize * item.data_type().primitive_width().unwrap_or(1),
        _ => 0,
    });
    bytes.sum()
}

/// Returns the properties of Parquet files of a table. Numbers in tensors have no statistics, by which nobody looks for them, and
/// floating-point numbers no dictionary, since few of them are equal.
fn writer_properties(schema: &Schema, group_rows: usize) -> Result<WriterProperties> {
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
        .set_max_row_group_row_count(Some(group_rows))
        .set_created_by("vlmdiff".into());
    for field in schema.fields() {
        let DataType::FixedSizeList(item, _) = field.data_type() else { continue };
        let path = ColumnPath::new(vec![field.name().clone(), "list".into(), item.name().clone()]);
        properties = properties.set_column_statistics_enabled(path.clone(), EnabledStatistics::None);
        if item.data_type().is_floating() {
            properties = properties.set_column_dictionary_enabled(path, false);
        }
    }
    Ok(properties.build())
}

/// Writes all rows to files, some of them at a time. Returns their number.
fn fill(runtime: &Runtime, files: &mut Files<'_>, rows: &mut NextRows<'_>, at_a_time: usize) -> Result<u64> {
    let mut count = 0;
    while let Some(batch) = rows()? {
        for start in (0..batch.num_rows()).step_by(at_a_time) {
            let some = batch.slice(start, at_a_time.min(batch.num_rows() - start));
            let columns = some.columns().iter().zip(files.schema.fields());
            let columns = columns.map(|(column, field)| Ok(cast(column, field.data_type())?)).collect::<Result<_>>()?;
            let options = RecordBatchOptions::new().with_row_count(Some(some.num_rows()));
            let converted = RecordBatch::try_new_with_options(files.schema.clone(), columns, &options)?;
            runtime.block_on(files.write(&converted))?;
        }
        count += batch.num_rows() as u64;
    }
    runtime.block_on(files.close())?;
    Ok(count)
}

/// Returns the column as Delta Lake has it: without unsigned numbers, half floats and fixed lengths.
fn stored(field: &Field) -> Result<Field> {
    let lacks = || cannot_hold("Delta Lake", field.name(), field.data_type());
    let of = stored_type(field.data_type()).ok_or_else(lacks)?;
    let shape = tensor_shape(field).map(|shape| (SHAPE.to_owned(), format!("{shape:?}")));
    Ok(Field::new(field.name(), of, field.is_nullable()).with_metadata(shape.into_iter().collect()))
}

fn stored_type(of: &DataType) -> Option<DataType> {
    let inner = |field: &Arc<Field>| {
        Some(Arc::new(Field::new(field.name(), stored_type(field.data_type())?, field.is_nullable())))
    };
    Some(match of {
        DataType::UInt8 => DataType::Int16,
        DataType::UInt16 => DataType::Int32,
        DataType::UInt32 => DataType::Int64,
        DataType::UInt64 => DataType::Decimal128(20, 0),
        DataType::Float16 => DataType::Float32,
        DataType::Date64 => DataType::Date32,
        DataType::Null => DataType::Utf8,
        DataType::FixedSizeBinary(_) => DataType::Binary,
        DataType::Timestamp(_, None) => DataType::Timestamp(TimeUnit::Microsecond, None),
        DataType::Timestamp(_, Some(_)) => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            DataType::List(inner(item)?)
        }
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(inner).collect::<Option<_>>()?),
        DataType::Boolean
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::Float32
        | DataType::Float64
        | DataType::Date32
        | DataType::Decimal128(..) => of.clone(),
        other => Some(plain(other)).filter(|of| matches!(of, DataType::Utf8 | DataType::Binary))?,
    })
}

/// The files of a version that is written.
struct Files<'a> {
    place: &'a Place,
    schema: &'a SchemaRef,
    properties: WriterProperties,
    /// The files that are done.
    adds: Vec<Add>,
    open: Option<(String, AsyncArrowWriter<BufWriter>)>,
}

impl Files<'_> {
    async fn write(&mut self, rows: &RecordBatch) -> Result<()> {
        let (_, writer) = match &mut self.open {
            Some(open) => open,
            none => {
                let number = self.adds.len();
                let unique = Hasher::new("delta file")
                    .field(&now_ms().to_le_bytes())
                    .field(&std::process::id().to_le_bytes())
                    .finish()
                    .to_string();
                let name = format!("part-{number:05}-{}-c000.zstd.parquet", &unique[..32]);
                let properties = self.properties.clone();
                let object = BufWriter::new(self.place.objects.clone(), Path::from(name.as_str()));
                none.insert((name, AsyncArrowWriter::try_new(object, self.schema.clone(), Some(properties))?))
            }
        };
        writer.write(rows).await?;
        if writer.bytes_written() + writer.in_progress_size() >= FILE_BYTES {
            self.close().await?;
        }
        Ok(())
    }

    async fn close(&mut self) -> Result<()> {
        let Some((name, writer)) = self.open.take() else { return Ok(()) };
        let rows = writer.close().await?.file_metadata().num_rows();
        let size = self.place.objects.head(&Path::from(name.as_str())).await?.size;
        self.adds.push(Add {
            path: name,
            size: size as i64,
            modification_time: now_ms() as i64,
            data_change: true,
            stats: Some(json!({ "numRecords": rows }).to_string()),
            ..Add::default()
        });
        Ok(())
    }

    /// Commits the files as a version of the table, in which they replace all that was there. Returns the version.
    async fn commit(&self, table: &Table) -> Result<u64> {
        let schema: StructType = self.schema.as_ref().try_into_kernel()?;
        let properties = [(TABLE, Some(table.name())), (SCHEMA, Some(encode_schema(&table.schema)))];
        let written = DeltaTable::new(self.place.log.clone())
            .create()
            .with_save_mode(SaveMode::Overwrite)
            .with_table_name(&table.table)
            .with_columns(schema.fields().cloned())
            .with_configuration(properties)
            .with_raise_if_key_not_exists(false)
            .with_actions(self.adds.iter().cloned().map(Action::Add))
            .await
            .map_err(|e| self.place.failed(e))?;
        Ok(written.version().unwrap_or_default())
    }

    /// Deletes the files of a version that could not be committed.
    async fn discard(&mut self) {
        for add in &self.adds {
            // A file that stays belongs to no version, and a clean-up of the table removes it.
            let _ = self.place.objects.delete(&Path::from(add.path.as_str())).await;
        }
    }
}

/// A version of a Delta table.
struct Version {
    /// The columns as Delta Lake has them.
    schema: SchemaRef,
    /// The columns of the table that was exported; `None` for a Delta table of another program.
    exported: Option<SchemaRef>,
    files: Vec<DataFile>,
}

/// A file of a version.
struct DataFile {
    path: String,
    /// The values of columns that are the same in all rows, and not in the file.
    partition: HashMap<String, Option<String>>,
}

impl Version {
    async fn open(place: &Place, version: Option<u64>) -> Result<Self> {
        let failed = |e| place.failed(e);
        let mut table = DeltaTable::new(place.log.clone());
        match version {
            None => table.load().await.map_err(failed)?,
            Some(version) => {
                let newest = table.get_latest_version().await.map_err(failed)?;
                if version > newest {
                    return Err(cannot_read(
                        &place.address,
                        format!("there is no version {version}; the newest is {newest}"),
                    ));
                }
                table.load_version(version).await.map_err(failed)?;
            }
        }
        let snapshot = table.snapshot().map_err(failed)?;
        let properties = snapshot.metadata().configuration();
        if properties.get(COLUMN_MAPPING).is_some_and(|mode| mode != "none") {
            return Err(cannot_read(&place.address, "its columns have other names in the files, which is not read"));
        }
        let exported = properties.get(SCHEMA).map(|text| read_schema(text)).transpose()?;
        let views = snapshot.snapshot().file_views(place.log.as_ref(), None);
        let views: Vec<_> = views.try_collect().await.map_err(failed)?;
        let mut files = Vec::with_capacity(views.len());
        for view in views {
            if view.deletion_vector_descriptor().is_some() {
                let message = "rows are deleted by deletion vectors, which are not read; `REORG TABLE … APPLY (PURGE)` \
                               rewrites such files";
                return Err(cannot_read(&place.address, message));
            }
            files.push(DataFile { path: view.path().into_owned(), partition: view.partition_values_map() });
        }
        // The log lists newer files first; files of one commit are numbered.
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let schema = snapshot.snapshot().arrow_schema();
        Ok(Self { schema, exported, files })
    }
}

/// Opens a version of a Delta table.
pub(super) fn read(address: &str, version: Option<u64>, sources: &Sources) -> Result<DataSet> {
    if !is_url(address) && !local_path(address).is_dir() {
        return Err(cannot_read(address, "there is no such folder"));
    }
    let place = Place::at(address)?;
    let Version { schema: stored, exported, files } = runtime()?.block_on(Version::open(&place, version))?;
    let schema = exported.unwrap_or_else(|| with_shapes(&stored));
    let (address, sources, given) = (address.to_owned(), sources.clone(), schema.clone());
    let rows = files.into_iter().flat_map(move |file| rows_of(&address, file, &stored, &given, &sources));
    Ok(DataSet { schema, rows: Box::new(rows) })
}

/// Returns the columns of a Delta table of another program.
fn with_shapes(stored: &SchemaRef) -> SchemaRef {
    let fields = stored.fields().iter().map(|field| Field::new(field.name(), field.data_type().clone(), true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// Returns the rows of a file.
fn rows_of(
    address: &str,
    file: DataFile,
    stored: &SchemaRef,
    schema: &SchemaRef,
    sources: &Sources,
) -> Box<dyn Iterator<Item = Result<RecordBatch>>> {
    let place = format!("{address}/{}", file.path);
    let opened = join(address, &file.path).and_then(|file| sources.local(&file)).and_then(|local| {
        let opened = ParquetFile::open(&local).and_then(|file| file.read(READ_ROWS));
        opened.map_err(|e| cannot_read(&place, e))
    });
    let batches = match opened {
        Ok(batches) => batches,
        Err(error) => return Box::new(std::iter::once(Err(error))),
    };
    let (stored, schema) = (stored.clone(), schema.clone());
    Box::new(batches.map(move |batch| {
        let batch = batch.map_err(|e| cannot_read(&place, e))?;
        let columns = stored.fields().iter().map(|field| whole(&batch, field, &file.partition));
        let columns = columns.collect::<Result<_>>().map_err(|e| cannot_read(&place, e))?;
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let fields = stored.fields().iter().map(|field| field.as_ref().clone().with_nullable(true));
        let nullable = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let rows = RecordBatch::try_new_with_options(nullable, columns, &options)?;
        restore::rows(&rows, &schema).map_err(|e| cannot_read(&place, e))
    }))
}

/// Returns a column of a table in the rows of a file: from the file, from the partition of the file, or without values,
/// if it was added after the file.
fn whole(rows: &RecordBatch, field: &Field, partition: &HashMap<String, Option<String>>) -> Result<ArrayRef> {
    let of = field.data_type();
    if let Some(value) = partition.get(field.name()) {
        let values: ArrayRef = Arc::new(StringArray::from(vec![value.as_deref(); rows.num_rows()]));
        return Ok(cast(&values, of)?);
    }
    match rows.column_by_name(field.name()) {
        Some(column) => Ok(cast(column, of)?),
        None => Ok(new_null_array(of, rows.num_rows())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::store::tensor_field;

    #[test]
    fn types_that_delta_lake_lacks_are_wider_ones() {
        let of = |of: DataType| stored_type(&of);
        assert_eq!(of(DataType::UInt32), Some(DataType::Int64));
        assert_eq!(of(DataType::UInt64), Some(DataType::Decimal128(20, 0)));
        assert_eq!(of(DataType::Utf8View), Some(DataType::Utf8));
        assert_eq!(of(DataType::Time32(TimeUnit::Second)), None);
        let tensor = stored(&tensor_field("map", DataType::Float16, &[4, 5], true)).unwrap();
        let item = Arc::new(Field::new_list_field(DataType::Float32, true));
        assert_eq!(*tensor.data_type(), DataType::List(item));
        assert_eq!(tensor.metadata()[SHAPE], "[4, 5]");
        let error = stored(&Field::new("t", DataType::Time32(TimeUnit::Second), true)).unwrap_err().to_string();
        assert!(error.contains("column `t` has the type Time32"), "{error}");
    }
}
