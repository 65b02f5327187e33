//! Data sets of Hugging Face: Parquet files by split, and a card with the types of the columns.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::BufWriter,
    path::Path,
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef, BinaryArray, RecordBatch, RecordBatchOptions, StringArray, StructArray, new_null_array},
    compute::cast,
    datatypes::{DataType, Field, Fields, Schema, SchemaRef},
};
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, ZstdLevel},
    file::{metadata::KeyValue, properties::WriterProperties},
};
use serde_json::{Map, Value, json};

use super::{
    DataSet, FILE_BYTES, NextRows, Table, Written, cannot_read,
    features::{Feature, entries},
    folder::exported_schema,
    restore::{self, BYTES},
    splits::by_split,
    tensors::{nested, nested_type, picture, pngs},
};
use crate::{
    engine::{
        Result, join,
        source::{ParquetFile, Sources},
        store::{plain, tensor_field},
    },
    tables::images::SPLIT,
};

/// The name of the format.
pub const HUGGING_FACE: &str = "hf";
/// The folder of the Parquet files.
const DATA: &str = "data";
/// The key under which Parquet files describe the columns.
const METADATA: &str = "huggingface";
/// The number of rows in a row group if rows have pictures or tensors, and if not. A reader decodes a group at a time.
const GROUP_ROWS: (usize, usize) = (100, 10_000);
/// The number of rows that are read at a time.
const READ_ROWS: usize = 256;

/// Writes a table as a data set into an empty folder.
///
/// # Errors
/// [`Error::Input`](crate::engine::Error::Input) if a column has a type that `datasets` lacks, or a file cannot be written.
pub fn write(table: &Table, rows: &mut NextRows<'_>, folder: &Path) -> Result<Written> {
    let columns = Columns::of(&table.schema)?;
    let data = folder.join(DATA);
    fs::create_dir(&data).map_err(|e| cannot_read(&data.to_string_lossy(), e))?;
    let mut splits: BTreeMap<String, Split<'_>> = BTreeMap::new();
    while let Some(batch) = rows()? {
        for (name, batch) in by_split(batch)? {
            let empty = Split { folder: &data, columns: &columns, files: 0, rows: 0, open: None };
            splits.entry(name.clone()).or_insert(empty).write(&name, &batch)?;
        }
    }
    let mut written = Written::default();
    for (name, split) in &mut splits {
        split.finish(name)?;
        written.rows += split.rows;
        written.files += split.files;
    }
    let sizes: Vec<(&str, u64)> = splits.iter().map(|(name, split)| (name.as_str(), split.rows)).collect();
    let card = folder.join("README.md");
    fs::write(&card, columns.card(table, &sizes)).map_err(|e| cannot_read(&card.to_string_lossy(), e))?;
    Ok(written)
}

/// The columns of a data set.
struct Columns {
    features: Vec<(String, Feature)>,
    /// The schema of the Parquet files.
    stored: SchemaRef,
    /// The columns of the table.
    table: SchemaRef,
}

impl Columns {
    fn of(table: &SchemaRef) -> Result<Self> {
        let feature = |field: &Arc<Field>| Ok((field.name().clone(), Feature::of(field)?));
        let features = table.fields().iter().map(feature).collect::<Result<Vec<_>>>()?;
        let fields = table.fields().iter().zip(&features).map(|(field, (name, feature))| {
            let stored = match (feature, field.data_type()) {
                (Feature::Image, _) => DataType::Struct(picture_fields()),
                (Feature::Array { shape, .. }, DataType::FixedSizeList(item, _)) => {
                    nested_type(item.data_type(), shape)
                }
                // Python's reader of Parquet knows no lists of fixed length that are null.
                (_, DataType::FixedSizeList(item, _)) => DataType::List(item.clone()),
                (_, other) => plain(other),
            };
            Field::new(name, stored, true)
        });
        let stored = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        Ok(Self { features, stored, table: table.clone() })
    }

    /// Returns rows as the Parquet files have them.
    fn convert(&self, rows: &RecordBatch) -> Result<RecordBatch> {
        let columns = self.features.iter().zip(rows.columns()).zip(self.table.fields()).zip(self.stored.fields());
        let columns = columns.map(|((((_, feature), column), field), stored)| match feature {
            Feature::Image => encoded(column, picture(field).unwrap_or_default()),
            Feature::Array { shape, .. } => nested(column, shape),
            _ => Ok(cast(column, stored.data_type())?),
        });
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        Ok(RecordBatch::try_new_with_options(self.stored.clone(), columns.collect::<Result<_>>()?, &options)?)
    }

    fn properties(&self) -> Result<WriterProperties> {
        let features: Map<String, Value> =
            self.features.iter().map(|(name, feature)| (name.clone(), feature.json())).collect();
        let metadata = json!({ "info": { "features": features } }).to_string();
        let is_large = self.table.fields().iter().any(|field| matches!(field.data_type(), DataType::FixedSizeList(..)));
        let rows = if is_large { GROUP_ROWS.0 } else { GROUP_ROWS.1 };
        Ok(WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
            .set_max_row_group_row_count(Some(rows))
            .set_key_value_metadata(Some(vec![KeyValue::new(METADATA.to_owned(), metadata)]))
            .set_created_by("vlmdiff".into())
            .build())
    }

    /// Returns the card: YAML for programs, then words for people.
    fn card(&self, table: &Table, splits: &[(&str, u64)]) -> String {
        let files = splits.iter().map(|(split, _)| json!({ "split": split, "path": format!("{DATA}/{split}-*") }));
        let sizes = splits.iter().map(|(split, rows)| json!({ "name": split, "num_examples": rows }));
        let lines = |values: Vec<Value>, indent: &str| {
            values.iter().map(|value| format!("{indent}- {value}\n")).collect::<String>()
        };
        let features = entries(&self.features).as_array().cloned().unwrap_or_default();
        format!(
            "---\nconfigs:\n- config_name: default\n  data_files:\n{}dataset_info:\n  features:\n{}  splits:\n{}---\n\n# {}\n\nThe \
             table `{}` of a pipeline, exported by vlmdiff {}.\n\n```python\nimport datasets\n\ndatasets.load_dataset(\"PATH \
             OF THIS FOLDER\")\n```\n",
            lines(files.collect(), "  "),
            lines(features, "  "),
            lines(sizes.collect(), "  "),
            table.table,
            table.name(),
            env!("CARGO_PKG_VERSION"),
        )
    }
}

/// The fields of a record with an encoded picture.
fn picture_fields() -> Fields {
    Fields::from(vec![Field::new(BYTES, DataType::Binary, true), Field::new("path", DataType::Utf8, true)])
}

/// Returns a column of pictures as records with PNG.
fn encoded(column: &ArrayRef, shape: [usize; 3]) -> Result<ArrayRef> {
    let pictures = pngs(column, shape)?;
    let bytes: ArrayRef = Arc::new(BinaryArray::from_iter(pictures.iter().map(Option::as_deref)));
    let paths: ArrayRef = new_null_array(&DataType::Utf8, pictures.len());
    let nulls = bytes.nulls().cloned();
    Ok(Arc::new(StructArray::try_new(picture_fields(), vec![bytes, paths], nulls)?))
}

/// The files of a split.
struct Split<'a> {
    folder: &'a Path,
    columns: &'a Columns,
    files: usize,
    rows: u64,
    open: Option<ArrowWriter<BufWriter<File>>>,
}

impl Split<'_> {
    fn write(&mut self, name: &str, rows: &RecordBatch) -> Result<()> {
        let writer = match &mut self.open {
            Some(writer) => writer,
            none => {
                let path = self.folder.join(format!("{name}-{:05}", self.files));
                let file = File::create(&path).map_err(|e| cannot_read(&path.to_string_lossy(), e))?;
                self.files += 1;
                let properties = self.columns.properties()?;
                none.insert(ArrowWriter::try_new(BufWriter::new(file), self.columns.stored.clone(), Some(properties))?)
            }
        };
        writer.write(&self.columns.convert(rows)?)?;
        self.rows += rows.num_rows() as u64;
        if writer.bytes_written() + writer.in_progress_size() >= FILE_BYTES {
            self.close()?;
        }
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        match self.open.take() {
            Some(writer) => Ok(writer.close().map(drop)?),
            None => Ok(()),
        }
    }

    /// Closes the files and names them with their number, as data sets of several files are.
    fn finish(&mut self, name: &str) -> Result<()> {
        self.close()?;
        for file in 0..self.files {
            let path = self.folder.join(format!("{name}-{file:05}"));
            fs::rename(&path, self.folder.join(format!("{name}-{file:05}-of-{:05}.parquet", self.files)))?;
        }
        Ok(())
    }
}

/// Opens a data set: the Parquet files of a folder or URL, in `data/` or at its top. Where they have no column of splits and
/// their names begin with one, it is added.
pub(super) fn read(address: &str, sources: &Sources) -> Result<DataSet> {
    let tree = sources.tree(address)?;
    let paths: Vec<&str> = tree.paths().collect();
    let mut files: Vec<&str> = paths.iter().copied().filter(|path| path.to_lowercase().ends_with(".parquet")).collect();
    files.sort_unstable();
    let address_of = |file: &&str| join(address, file);
    let addresses = files.iter().map(address_of).collect::<Result<Vec<_>>>()?;
    let first = addresses.first().ok_or_else(|| cannot_read(address, "it has no Parquet file"))?;
    let stored = open(first, sources)?.schema().clone();
    let exported = exported_schema(address, &paths, sources)?;
    let splits: Option<Vec<String>> = files.iter().map(|file| split_of(file)).collect();
    let splits = splits.filter(|_| exported.is_none() && stored.field_with_name(SPLIT).is_err());
    let content = match exported {
        Some(schema) => schema,
        None => described(&stored)?,
    };
    let schema = match &splits {
        None => content.clone(),
        Some(_) => {
            let split = Arc::new(Field::new(SPLIT, DataType::Utf8, false));
            Arc::new(Schema::new(content.fields().iter().cloned().chain([split]).collect::<Vec<_>>()))
        }
    };
    let (sources, given) = (sources.clone(), schema.clone());
    let rows = addresses.into_iter().enumerate().flat_map(move |(at, address)| {
        let split = splits.as_ref().map(|splits| splits[at].clone());
        rows_of(address, &content, &given, split, &sources)
    });
    Ok(DataSet { schema, rows: Box::new(rows) })
}

fn open(address: &str, sources: &Sources) -> Result<ParquetFile> {
    ParquetFile::open(&sources.local(address)?).map_err(|e| cannot_read(address, e))
}

/// Returns the rows of a file in the columns `content`, with a column of splits if its split is given.
fn rows_of(
    address: String,
    content: &SchemaRef,
    schema: &SchemaRef,
    split: Option<String>,
    sources: &Sources,
) -> Box<dyn Iterator<Item = Result<RecordBatch>>> {
    let opened = open(&address, sources).and_then(|file| file.read(READ_ROWS).map_err(|e| cannot_read(&address, e)));
    let batches = match opened {
        Ok(batches) => batches,
        Err(error) => return Box::new(std::iter::once(Err(error))),
    };
    let (content, schema) = (content.clone(), schema.clone());
    Box::new(batches.map(move |batch| {
        let batch = batch.map_err(|e| cannot_read(&address, e))?;
        let batch = restore::rows(&batch, &content).map_err(|e| cannot_read(&address, e))?;
        let Some(split) = &split else { return Ok(batch) };
        let splits: ArrayRef = Arc::new(StringArray::from(vec![split.as_str(); batch.num_rows()]));
        let columns = batch.columns().iter().cloned().chain([splits]).collect();
        Ok(RecordBatch::try_new(schema.clone(), columns)?)
    }))
}

/// Returns the split in the name of a file, such as `train` of `data/train-00000-of-00002.parquet`.
fn split_of(file: &str) -> Option<String> {
    let name = file.rsplit('/').next()?.strip_suffix(".parquet")?;
    let split = name.split('-').next().filter(|split| !split.is_empty())?;
    ["train", "test", "validation", "calibration"].contains(&split).then(|| split.to_owned())
}

/// Returns the columns of a data set of another program: encoded pictures as bytes, and arrays as tensors.
fn described(stored: &SchemaRef) -> Result<SchemaRef> {
    let about = stored.metadata().get(METADATA).and_then(|text| serde_json::from_str::<Value>(text).ok());
    let features = about.as_ref().and_then(|about| about.pointer("/info/features"));
    let fields = stored.fields().iter().map(|field| {
        let feature = features.and_then(|features| features.get(field.name()));
        let tensor = feature.and_then(|feature| array(field, feature));
        tensor.unwrap_or_else(|| {
            let is_picture = matches!(field.data_type(), DataType::Struct(fields) if *fields == picture_fields());
            let of = if is_picture { DataType::Binary } else { readable(field.data_type()) };
            Field::new(field.name(), of, true)
        })
    });
    Ok(Arc::new(Schema::new(fields.collect::<Vec<_>>())))
}

/// Returns the column of an array whose shape is known; `None` for any other feature.
fn array(field: &Field, feature: &Value) -> Option<Field> {
    let name = feature.get("_type")?.as_str()?;
    let is_array = name.starts_with("Array") && name.ends_with('D');
    let shape: Vec<usize> = serde_json::from_value(feature.get("shape").filter(|_| is_array)?.clone()).ok()?;
    let mut item = field.data_type();
    while let DataType::List(inner) | DataType::LargeList(inner) | DataType::FixedSizeList(inner, _) = item {
        item = inner.data_type();
    }
    item.is_numeric().then(|| tensor_field(field.name(), item.clone(), &shape, true))
}

/// Returns a type as tables have it: without views, dictionaries and large lists.
fn readable(of: &DataType) -> DataType {
    let inner = |field: &Arc<Field>| Arc::new(Field::new(field.name(), readable(field.data_type()), true));
    match of {
        DataType::List(item) | DataType::LargeList(item) => DataType::List(inner(item)),
        DataType::FixedSizeList(item, size) => DataType::FixedSizeList(inner(item), *size),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(inner).collect()),
        other => plain(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_is_that_in_the_name_of_a_file() {
        let of = |file| split_of(file);
        assert_eq!(of("data/train-00000-of-00001.parquet").as_deref(), Some("train"));
        assert_eq!(of("test.parquet").as_deref(), Some("test"));
        assert_eq!(of("data/part-0.parquet"), None);
    }

    #[test]
    fn arrays_of_other_programs_are_tensors_and_pictures_are_bytes() {
        let lists = nested_type(&DataType::Float32, &[2, 3]);
        let fields = vec![
            Field::new("map", lists.clone(), true),
            Field::new("ragged", lists.clone(), true),
            Field::new("image", DataType::Struct(picture_fields()), true),
            Field::new("text", DataType::LargeUtf8, true),
        ];
        let about = json!({ "info": { "features": {
            "map": { "shape": [2, 3], "dtype": "float32", "_type": "Array2D" },
            "ragged": { "shape": [null, 3], "dtype": "float32", "_type": "Array2D" },
        } } });
        let metadata = [(METADATA.to_owned(), about.to_string())].into();
        let schema = described(&Arc::new(Schema::new_with_metadata(fields, metadata))).unwrap();
        let expected = [
            tensor_field("map", DataType::Float32, &[2, 3], true),
            Field::new("ragged", lists, true),
            Field::new("image", DataType::Binary, true),
            Field::new("text", DataType::Utf8, true),
        ];
        assert_eq!(*schema, Schema::new(expected.to_vec()));
    }
}
