//! Shards of WebDataset: tar files in which a sample is a row, of files with one stem. `KEY.json` has the plain columns,
//! `KEY.COLUMN.png` a picture, `KEY.COLUMN.npy` a tensor, and `KEY.COLUMN.bin` bytes.

use std::{
    collections::{BTreeMap, HashSet},
    fs::File,
    io::{BufReader, BufWriter, Write},
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef, AsArray, BinaryArray, RecordBatch, RecordBatchOptions, StringArray},
    datatypes::{DataType, Field, Schema, SchemaRef},
    json::{ReaderBuilder, reader::infer_json_schema_from_iterator},
};
use serde_json::Value;
use tar::{Archive, Builder, EntryType, Header};

use super::{
    DataSet, FILE_BYTES, NextRows, Table, Written, cannot_read,
    folder::exported_schema,
    is_shard, npy,
    npy::Npy,
    restore,
    splits::by_split,
    tensors::{picture, pngs},
};
use crate::{
    engine::{
        Error, Result, join,
        source::Sources,
        store::{plain, tensor_field, tensor_shape},
    },
    query::output::{Format, Writer},
};

/// The name of the format.
pub const WEB_DATASET: &str = "webdataset";
/// The file of a sample with its plain columns.
const JSON: &str = "json";
/// The column with the keys of samples, in data sets of other programs.
const KEY: &str = "__key__";
/// The number of samples from which the columns of a data set of another program follow.
const GUESS_SAMPLES: usize = 1000;
/// The numbers of samples and of bytes that are read at a time.
const READ: (usize, u64) = (256, 64 << 20);
/// The endings of files that are text.
const TEXTS: [&str; 6] = ["txt", "text", "caption", "cls", "cls2", "id"];

/// The files that hold a column of a table that is exported.
enum Content {
    Json,
    Picture([usize; 3]),
    Array(Vec<usize>),
    Bytes,
}

impl Content {
    fn of(field: &Field) -> Self {
        match field.data_type() {
            DataType::FixedSizeList(item, size) => match picture(field) {
                Some(shape) => Self::Picture(shape),
                None if npy::holds(item.data_type()) => {
                    Self::Array(tensor_shape(field).unwrap_or_else(|| vec![*size as usize]))
                }
                None => Self::Json,
            },
            other if plain(other) == DataType::Binary => Self::Bytes,
            _ => Self::Json,
        }
    }

    /// Returns the ending of the files of a column; `None` if it has none of its own.
    fn ending(&self, column: &str) -> Option<String> {
        let kind = match self {
            Self::Json => return None,
            Self::Picture(_) => "png",
            Self::Array(_) => "npy",
            Self::Bytes => "bin",
        };
        // A dot would end the stem, and readers compare endings in lower case.
        Some(format!("{}.{kind}", column.replace(['.', '/'], "_").to_lowercase()))
    }
}

/// Writes a table as shards into an empty folder, `SPLIT-000000.tar` and on.
///
/// # Errors
/// [`Error::Input`] if a file cannot be written.
pub fn write(table: &Table, rows: &mut NextRows<'_>, folder: &Path) -> Result<Written> {
    let contents: Vec<Content> = table.schema.fields().iter().map(|field| Content::of(field)).collect();
    let mut names =
        table.schema.fields().iter().zip(&contents).filter_map(|(field, content)| content.ending(field.name()));
    let mut seen = HashSet::new();
    if let Some(twice) = names.find(|name| !seen.insert(name.clone())) {
        return Err(Error::Input(format!(
            "the files of two columns would both end in `.{twice}`; a stage `sql` makes a table with another name"
        )));
    }
    let mut splits: BTreeMap<String, Shards<'_>> = BTreeMap::new();
    let mut written = Written::default();
    while let Some(batch) = rows()? {
        for (split, batch) in by_split(batch)? {
            let shards = splits.entry(split.clone()).or_insert(Shards { folder, count: 0, bytes: 0, open: None });
            for (at, files) in samples(&batch, &contents)?.into_iter().enumerate() {
                shards.add(&split, written.rows + at as u64, &files)?;
            }
            written.rows += batch.num_rows() as u64;
        }
    }
    for shards in splits.values_mut() {
        shards.close()?;
        written.files += shards.count;
    }
    Ok(written)
}

/// The files of a sample, by their endings.
type Files = Vec<(String, Vec<u8>)>;

/// Returns the files of each row.
fn samples(rows: &RecordBatch, contents: &[Content]) -> Result<Vec<Files>> {
    let plain: Vec<usize> = (0..contents.len()).filter(|at| matches!(contents[*at], Content::Json)).collect();
    let mut samples: Vec<Files> =
        json_rows(&rows.project(&plain)?)?.into_iter().map(|json| vec![(JSON.to_owned(), json)]).collect();
    let schema = rows.schema();
    for ((content, column), field) in contents.iter().zip(rows.columns()).zip(schema.fields()) {
        let Some(ending) = content.ending(field.name()) else { continue };
        let files: Vec<Option<Vec<u8>>> = match content {
            Content::Json => continue,
            Content::Picture(shape) => pngs(column, *shape)?,
            Content::Array(shape) => {
                let list = column.as_fixed_size_list();
                let file = |row| list.is_valid(row).then(|| npy::encode(&list.value(row), shape)).transpose();
                (0..list.len()).map(file).collect::<Result<_>>()?
            }
            Content::Bytes => {
                let bytes = arrow::compute::cast(column, &DataType::Binary)?;
                bytes.as_binary::<i32>().iter().map(|bytes| bytes.map(<[u8]>::to_vec)).collect()
            }
        };
        for (sample, file) in samples.iter_mut().zip(files) {
            sample.extend(file.map(|file| (ending.clone(), file)));
        }
    }
    Ok(samples)
}

/// Returns each row as a JSON object.
fn json_rows(rows: &RecordBatch) -> Result<Vec<Vec<u8>>> {
    if rows.num_columns() == 0 {
        return Ok(vec![b"{}".to_vec(); rows.num_rows()]);
    }
    let mut text = Vec::new();
    let mut writer = Writer::new(&mut text, rows.schema_ref(), Format::Json)?;
    writer.write(rows)?;
    writer.finish()?;
    // Line breaks within values are escaped.
    Ok(text.split(|byte| *byte == b'\n').take(rows.num_rows()).map(<[u8]>::to_vec).collect())
}

/// The shards of a split.
struct Shards<'a> {
    folder: &'a Path,
    count: usize,
    /// The bytes in the shard that is open.
    bytes: usize,
    open: Option<Builder<BufWriter<File>>>,
}

impl Shards<'_> {
    fn add(&mut self, split: &str, number: u64, files: &Files) -> Result<()> {
        let shard = match &mut self.open {
            Some(shard) => shard,
            none => {
                let path = self.folder.join(format!("{split}-{:06}.tar", self.count));
                let file = File::create(&path).map_err(|e| cannot_read(&path.to_string_lossy(), e))?;
                self.count += 1;
                none.insert(Builder::new(BufWriter::new(file)))
            }
        };
        for (ending, bytes) in files {
            let mut header = Header::new_ustar();
            header.set_entry_type(EntryType::Regular);
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            shard.append_data(&mut header, format!("{number:09}.{ending}"), bytes.as_slice())?;
            self.bytes += bytes.len();
        }
        if self.bytes >= FILE_BYTES { self.close() } else { Ok(()) }
    }

    fn close(&mut self) -> Result<()> {
        self.bytes = 0;
        match self.open.take() {
            Some(shard) => Ok(shard.into_inner()?.flush()?),
            None => Ok(()),
        }
    }
}

/// Opens a data set: a shard, or the shards at the top of a folder or URL. Without the schema of an export, columns follow
/// from the first samples: fields of JSON, text, NumPy arrays, and the bytes of other files, by their endings.
pub(super) fn read(address: &str, sources: &Sources) -> Result<DataSet> {
    let (shards, exported) = if is_shard(address) {
        (vec![address.to_owned()], None)
    } else {
        let tree = sources.tree(address)?;
        let paths: Vec<&str> = tree.paths().collect();
        let mut shards: Vec<&str> =
            paths.iter().copied().filter(|path| !path.contains('/') && is_shard(path)).collect();
        shards.sort_unstable();
        let shards = shards.iter().map(|shard| join(address, shard)).collect::<Result<Vec<_>>>()?;
        (shards, exported_schema(address, &paths, sources)?)
    };
    let first = shards.first().ok_or_else(|| cannot_read(address, "it has no shard"))?;
    let columns = match exported {
        Some(schema) => Columns::exported(schema),
        None => {
            let shard = Shard::open(first, sources)?;
            Columns::guessed(&shard).map_err(|e| cannot_read(first, e))?
        }
    };
    let (schema, columns, sources) = (columns.schema.clone(), Arc::new(columns), sources.clone());
    let rows = shards.into_iter().flat_map(move |shard| rows_of(shard, columns.clone(), &sources));
    Ok(DataSet { schema, rows: Box::new(rows) })
}

/// Returns the rows of a shard.
fn rows_of(address: String, columns: Arc<Columns>, sources: &Sources) -> Box<dyn Iterator<Item = Result<RecordBatch>>> {
    let shard = match Shard::open(&address, sources) {
        Ok(shard) => shard,
        Err(error) => return Box::new(std::iter::once(Err(error))),
    };
    let mut next = 0;
    Box::new(std::iter::from_fn(move || {
        let rest = shard.samples.get(next..).filter(|rest| !rest.is_empty())?;
        let (mut count, mut bytes) = (0, 0);
        while count < rest.len().min(READ.0) && (count == 0 || bytes < READ.1) {
            bytes += rest[count].files.iter().map(|file| file.size).sum::<u64>();
            count += 1;
        }
        next += count;
        Some(columns.rows(&shard, &rest[..count]).map_err(|e| cannot_read(&address, e)))
    }))
}

/// A shard whose samples are listed.
struct Shard {
    file: File,
    samples: Vec<Sample>,
}

/// The files of a sample, which follow each other in a shard.
struct Sample {
    key: String,
    files: Vec<Member>,
}

/// The place of a file in a shard.
struct Member {
    ending: String,
    begin: u64,
    size: u64,
}

impl Shard {
    fn open(address: &str, sources: &Sources) -> Result<Self> {
        let wrong = |e: std::io::Error| cannot_read(address, e);
        let file = File::open(sources.local(address)?).map_err(wrong)?;
        let length = file.metadata().map_err(wrong)?.len();
        let mut archive = Archive::new(BufReader::new(file.try_clone().map_err(wrong)?));
        let mut samples: Vec<Sample> = Vec::new();
        for entry in archive.entries_with_seek().map_err(wrong)? {
            let entry = entry.map_err(wrong)?;
            let path = entry.path().map_err(wrong)?.to_string_lossy().into_owned();
            let name = path.rfind('/').map_or(0, |slash| slash + 1);
            // Names that begin with a dot, and files without an ending, belong to no sample.
            let dot = path[name..].find('.').filter(|dot| *dot > 0 && entry.header().entry_type().is_file());
            let Some(dot) = dot else { continue };
            let (key, ending) = (&path[..name + dot], path[name + dot + 1..].to_lowercase());
            let member = Member { ending, begin: entry.raw_file_position(), size: entry.size() };
            if member.begin.checked_add(member.size).is_none_or(|end| end > length) {
                return Err(cannot_read(address, format!("{path} is cut off; write it again, or download it again")));
            }
            match samples.last_mut().filter(|sample| sample.key == key) {
                Some(sample) => sample.files.push(member),
                None => samples.push(Sample { key: key.to_owned(), files: vec![member] }),
            }
        }
        Ok(Self { file, samples })
    }

    /// Reads a file of a sample; `None` if the sample has none with this ending.
    fn read(&self, sample: &Sample, ending: &str) -> Result<Option<Vec<u8>>, String> {
        let Some(member) = sample.files.iter().find(|file| file.ending == ending) else { return Ok(None) };
        let mut bytes = vec![0; member.size as usize];
        let read = self.file.read_exact_at(&mut bytes, member.begin);
        read.map(|()| Some(bytes)).map_err(|e| format!("sample {}, file .{ending}: {e}", sample.key))
    }
}

/// The place of the values of a column.
#[derive(Clone, Debug, PartialEq)]
enum Place {
    Key,
    Json,
    Text(String),
    Bytes(String),
    Array { ending: String, item: DataType, size: usize },
}

/// The columns of a data set, and where their values are.
#[derive(Debug)]
struct Columns {
    schema: SchemaRef,
    places: Vec<Place>,
}

impl Columns {
    /// Returns the columns of a table that was exported.
    fn exported(schema: SchemaRef) -> Self {
        let place = |field: &Arc<Field>| {
            let content = Content::of(field);
            let ending = content.ending(field.name()).unwrap_or_default();
            match (content, field.data_type()) {
                (Content::Array(_), DataType::FixedSizeList(item, size)) => {
                    Place::Array { ending, item: item.data_type().clone(), size: *size as usize }
                }
                (Content::Picture(_) | Content::Bytes, _) => Place::Bytes(ending),
                _ => Place::Json,
            }
        };
        Self { places: schema.fields().iter().map(place).collect(), schema }
    }

    /// Returns the columns that the first samples of a shard have.
    fn guessed(shard: &Shard) -> Result<Self, String> {
        let samples = &shard.samples[..shard.samples.len().min(GUESS_SAMPLES)];
        let mut columns = vec![(Field::new(KEY, DataType::Utf8, false), Place::Key)];
        let mut endings: Vec<&str> = Vec::new();
        let mut objects = Vec::new();
        for sample in samples {
            for file in &sample.files {
                if !endings.contains(&file.ending.as_str()) {
                    endings.push(&file.ending);
                }
            }
            if let Some(bytes) = shard.read(sample, JSON)? {
                let object: Value =
                    serde_json::from_slice(&bytes).map_err(|e| format!("sample {}, file .{JSON}: {e}", sample.key))?;
                objects.push(object);
            }
        }
        let fields = infer_json_schema_from_iterator(objects.iter().map(Ok)).map_err(|e| e.to_string())?;
        let json = fields.fields().iter().filter(|field| *field.data_type() != DataType::Null);
        columns.extend(json.map(|field| (field.as_ref().clone(), Place::Json)));
        for ending in endings.into_iter().filter(|ending| *ending != JSON) {
            let (stem, kind) = ending.rsplit_once('.').unwrap_or((ending, ending));
            let (of, place) = match kind {
                "npy" => {
                    let sample = samples.iter().find(|sample| sample.files.iter().any(|file| file.ending == ending));
                    let bytes = sample.map(|sample| shard.read(sample, ending)).transpose()?.flatten();
                    let array = Npy::read(bytes.as_deref().unwrap_or_default())?;
                    let size = array.shape.iter().product();
                    let place = Place::Array { ending: ending.to_owned(), item: array.item.clone(), size };
                    (tensor_field(stem, array.item, &array.shape, true), place)
                }
                kind if TEXTS.contains(&kind) => {
                    (Field::new(stem, DataType::Utf8, true), Place::Text(ending.to_owned()))
                }
                _ => (Field::new(stem, DataType::Binary, true), Place::Bytes(ending.to_owned())),
            };
            let is_taken = columns.iter().any(|(field, _)| field.name() == stem);
            columns.push((if is_taken { of.with_name(ending) } else { of }, place));
        }
        let (fields, places): (Vec<Field>, Vec<Place>) = columns.into_iter().unzip();
        Ok(Self { schema: Arc::new(Schema::new(fields)), places })
    }

    /// Reads samples.
    fn rows(&self, shard: &Shard, samples: &[Sample]) -> Result<RecordBatch, String> {
        let json = self.json(shard, samples)?;
        let column = |(field, place): (&Arc<Field>, &Place)| -> Result<ArrayRef, String> {
            let files = |ending: &str| samples.iter().map(|s| shard.read(s, ending)).collect::<Result<Vec<_>, _>>();
            Ok(match place {
                Place::Key => Arc::new(StringArray::from_iter_values(samples.iter().map(|sample| &sample.key))),
                Place::Json => {
                    let column = json.as_ref().and_then(|json| json.column_by_name(field.name()));
                    column.cloned().ok_or_else(|| format!("no sample has `{}`", field.name()))?
                }
                Place::Text(ending) => {
                    let texts = files(ending)?.into_iter().map(|bytes| bytes.map(String::from_utf8).transpose());
                    let texts = texts.collect::<Result<Vec<_>, _>>().map_err(|e| format!("a file .{ending}: {e}"))?;
                    Arc::new(StringArray::from(texts))
                }
                Place::Bytes(ending) => Arc::new(BinaryArray::from_iter(files(ending)?)),
                Place::Array { ending, item, size } => arrays(samples, files(ending)?, item, *size)?,
            })
        };
        let columns = self.schema.fields().iter().zip(&self.places).map(column).collect::<Result<Vec<_>, _>>()?;
        let as_read = self.schema.fields().iter().zip(&columns);
        let as_read = as_read.map(|(field, column)| Field::new(field.name(), column.data_type().clone(), true));
        let schema = Arc::new(Schema::new(as_read.collect::<Vec<_>>()));
        let options = RecordBatchOptions::new().with_row_count(Some(samples.len()));
        let rows = RecordBatch::try_new_with_options(schema, columns, &options).map_err(|e| e.to_string())?;
        restore::rows(&rows, &self.schema)
    }

    /// Reads the plain columns of samples; `None` if there are none.
    fn json(&self, shard: &Shard, samples: &[Sample]) -> Result<Option<RecordBatch>, String> {
        let fields = self.schema.fields().iter().zip(&self.places).filter(|(_, place)| **place == Place::Json);
        // A value that is missing is noticed when the rows are put together.
        let fields: Vec<Field> = fields.map(|(field, _)| field.as_ref().clone().with_nullable(true)).collect();
        if fields.is_empty() {
            return Ok(None);
        }
        let reader = ReaderBuilder::new(Arc::new(Schema::new(fields))).with_batch_size(samples.len().max(1));
        let reader = reader.with_coerce_primitive(true).with_strict_mode(true);
        let mut decoder = reader.build_decoder().map_err(|e| e.to_string())?;
        for sample in samples {
            let mut bytes = shard.read(sample, JSON)?.unwrap_or_else(|| b"{}".to_vec());
            bytes.push(b'\n');
            decoder.decode(&bytes).map_err(|e| format!("sample {}, file .{JSON}: {e}", sample.key))?;
        }
        decoder.flush().map_err(|e| e.to_string())
    }
}

/// Makes a column of tensors of NumPy arrays; `None` for a sample without one.
fn arrays(samples: &[Sample], files: Vec<Option<Vec<u8>>>, item: &DataType, size: usize) -> Result<ArrayRef, String> {
    let mut values = Vec::new();
    let mut valid = Vec::with_capacity(files.len());
    for (sample, file) in samples.iter().zip(files) {
        valid.push(file.is_some());
        match file {
            Some(bytes) => {
                let array = Npy::read(&bytes).map_err(|e| format!("sample {}: {e}", sample.key))?;
                if array.item != *item || array.shape.iter().product::<usize>() != size {
                    return Err(format!(
                        "sample {}: an array of {:?} {}, where others have {size} {item}",
                        sample.key, array.shape, array.item
                    ));
                }
                values.extend_from_slice(array.values);
            }
            None => values.resize(values.len() + size * item.primitive_width().unwrap_or_default(), 0),
        }
    }
    npy::column(item, size, values, valid).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use arrow::array::Int64Array;

    use super::*;

    #[test]
    fn file_that_is_longer_than_its_shard_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tar");
        let mut header = Header::new_ustar();
        header.set_path("1.txt").unwrap();
        header.set_size(7 << 30);
        header.set_cksum();
        fs::write(&path, [&header.as_bytes()[..], &[0; 512]].concat()).unwrap();
        let error = read(&path.to_string_lossy(), &Sources::default()).err().unwrap().to_string();
        assert!(error.ends_with("1.txt is cut off; write it again, or download it again"), "{error}");
    }

    #[test]
    fn columns_of_another_program_follow_from_its_samples() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tar");
        let mut tar = Builder::new(File::create(&path).unwrap());
        let floats: ArrayRef = Arc::new(Int64Array::from(vec![7, 8]));
        let array = npy::encode(&floats, &[2]).unwrap();
        for (name, bytes) in [
            ("x/1.a.JPG", &b"one"[..]),
            ("x/1.json", b"{\"n\": 1,\n \"s\": \"a\"}"),
            ("x/1.cls", b"3"),
            ("x/1.npy", &array),
            ("x/.hidden", b"no"),
            ("x/2.json", b"{\"n\": 2}"),
            ("x/2.jpg", b"two"),
        ] {
            let mut header = Header::new_ustar();
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, name, bytes).unwrap();
        }
        tar.finish().unwrap();
        let DataSet { schema, rows } = read(&path.to_string_lossy(), &Sources::default()).unwrap();
        let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        assert_eq!(names, [KEY, "n", "s", "a", "cls", "npy", "jpg"]);
        let rows: Vec<RecordBatch> = rows.collect::<Result<_>>().unwrap();
        let [rows] = rows.as_slice() else { panic!("{} batches", rows.len()) };
        let text = |name: &str| {
            let column = arrow::compute::cast(&rows[name], &DataType::Utf8).unwrap();
            column.as_string::<i32>().iter().map(|text| text.map(str::to_owned)).collect::<Vec<_>>()
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(text(KEY), [some("x/1"), some("x/2")]);
        assert_eq!(text("n"), [some("1"), some("2")]);
        assert_eq!(text("s"), [some("a"), None]);
        assert_eq!(text("a"), [some("one"), None]);
        assert_eq!(text("jpg"), [None, some("two")]);
        assert_eq!(text("cls"), [some("3"), None]);
        assert_eq!(rows["npy"].as_fixed_size_list().value(0).as_ref(), floats.as_ref());
        fs::write(&path, "no archive").unwrap();
        assert!(read(&path.to_string_lossy(), &Sources::default()).is_err());
    }
}
