//! The store's records of tables: the parts that a stage has computed, and the content of a published version.

use std::fmt;

use arrow::datatypes::SchemaRef;
use parquet::arrow::arrow_reader::{RowSelection, RowSelector};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::engine::{Digest, Result, Variant, arrow_schema::decode_schema};

/// A record of computed rows: the part that holds them, their keys and contents, and the rows that failed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// The digest of the part; `None` if every row failed.
    pub part: Option<Digest>,
    /// The size of the part in bytes.
    pub bytes: u64,
    /// The key of each row, in the part's order; empty for a table that is made as a whole.
    #[serde(with = "packed")]
    pub keys: Vec<Digest>,
    /// The content digest of each row, in the part's order.
    #[serde(with = "packed")]
    pub contents: Vec<Digest>,
    /// Rows that failed.
    pub errors: Vec<RowError>,
    /// Blobs that the rows name.
    pub blobs: Vec<Digest>,
    /// Notes on the rows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<EntryNote>,
    /// The records that this one replaces, because it holds all of their rows. They are not read as long as it exists.
    #[serde(with = "packed", default, skip_serializing_if = "Vec::is_empty")]
    pub replaces: Vec<Digest>,
    /// The time of recording, in milliseconds since 1970. The later of two results for one key counts.
    pub recorded_ms: u64,
}

/// Serialises digests as one hexadecimal text, which is read faster than a list of texts.
mod packed {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::Digest;

    pub(in crate::engine) fn serialize<S: Serializer>(digests: &[Digest], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&digests.iter().map(ToString::to_string).collect::<String>())
    }

    pub(in crate::engine) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Digest>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let mut bytes = Vec::with_capacity(pairs.len());
        for [high, low] in pairs {
            match (digit(*high), digit(*low)) {
                (Some(high), Some(low)) if rest.is_empty() => bytes.push(high << 4 | low),
                _ => return Err(D::Error::custom("not hexadecimal")),
            }
        }
        Digest::each_of(&bytes).ok_or_else(|| D::Error::custom("a digest is cut short"))
    }

    fn digit(byte: u8) -> Option<u8> {
        match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        }
    }
}

/// A row that could not be computed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RowError {
    /// The row's id.
    pub id: String,
    /// The row's key.
    pub key: Digest,
    /// The error.
    pub message: String,
    /// The file or URL that the message names, if the error is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// The causes behind it, outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chain: Vec<String>,
    /// The run in which it failed.
    #[serde(default)]
    pub run: String,
}

impl RowError {
    /// Returns the message with the row's id in place of the file that it is about; a file at its beginning is left out.
    pub fn about_id(&self) -> String {
        let Some(place) = &self.place else { return self.message.clone() };
        match self.message.strip_prefix(place.as_str()).and_then(|rest| rest.strip_prefix(": ")) {
            Some(why) => why.to_owned(),
            None => self.message.replace(place.as_str(), &self.id),
        }
    }
}

impl Entry {
    /// Returns the entry as a record: a line of JSON without keys and contents, the number of keys (64 bits,
    /// little-endian), then keys and contents as bytes, because planning reads those of all rows of a table.
    pub(in crate::engine) fn to_bytes(&self) -> Result<Vec<u8>> {
        let head = Self {
            keys: Vec::new(),
            contents: Vec::new(),
            errors: self.errors.clone(),
            blobs: self.blobs.clone(),
            notes: self.notes.clone(),
            replaces: self.replaces.clone(),
            ..*self
        };
        let mut bytes = serde_json::to_vec(&head).map_err(std::io::Error::from)?;
        bytes.push(b'\n');
        bytes.extend((self.keys.len() as u64).to_le_bytes());
        self.keys.iter().chain(&self.contents).for_each(|digest| bytes.extend(digest.as_bytes()));
        Ok(bytes)
    }

    /// Reads the entry of a record; `None` if the bytes are not a record.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        // A record of an earlier build is JSON throughout, on one line.
        let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
            return serde_json::from_slice(bytes).ok().filter(Self::is_whole);
        };
        let mut entry: Self = serde_json::from_slice(&bytes[..end]).ok()?;
        let (count, digests) = bytes[end + 1..].split_first_chunk::<8>()?;
        let count = usize::try_from(u64::from_le_bytes(*count)).ok()?;
        let (keys, contents) = digests.split_at_checked(count.checked_mul(Digest::LEN)?)?;
        entry.keys = Digest::each_of(keys)?;
        entry.contents = Digest::each_of(contents)?;
        Some(entry).filter(Self::is_whole)
    }

    /// Returns true if all rows or none have a key.
    fn is_whole(&self) -> bool {
        self.keys.is_empty() || self.keys.len() == self.contents.len()
    }

    /// Returns the names that the record of this entry may have. A name is the digest of the record's bytes, and
    /// earlier builds wrote the whole record as JSON.
    pub(in crate::engine) fn names(&self) -> Result<[Digest; 2]> {
        let json = serde_json::to_vec(self).map_err(std::io::Error::from)?;
        Ok([Digest::of(&self.to_bytes()?), Digest::of(&json)])
    }

    /// Returns the objects that it reaches in the store: its part, and the blobs that its rows name.
    pub fn objects(&self) -> impl Iterator<Item = Digest> {
        self.part.into_iter().chain(self.blobs.iter().copied())
    }
}

/// One note on rows of a part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EntryNote {
    /// The note, the same text for every row that it is about.
    pub what: String,
    /// The keys of the rows; empty for a table that is made as a whole.
    #[serde(with = "packed", default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<Digest>,
    /// The number of rows, for a table that is made as a whole; 0 if the note is about the table itself.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub count: u64,
    /// The ids of the first rows, aligned with the first keys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
}

/// A note on a table: a sentence that users should know, although it is no error. It is counted over all rows and
/// printed once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Note {
    /// The note.
    pub what: String,
    /// The number of rows or files that it is about; 0 if it is about the table itself.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub count: u64,
    /// The number of rows of the table, if rows are counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<u64>,
    /// The names of the first of these rows or files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
}

/// The maximum number of rows or files that a note names.
pub const NAMED: usize = 3;

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Note {
    /// Makes a note on a whole table.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), count: 0, of: None, names: Vec::new() }
    }

    /// Makes a note on things with these names, such as files that are left out.
    pub fn about<T: Into<String>>(what: impl Into<String>, names: impl IntoIterator<Item = T>) -> Self {
        let mut note = Self::new(what);
        for name in names {
            note.count += 1;
            if note.names.len() < NAMED {
                note.names.push(name.into());
            }
        }
        note
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match (self.count, self.of) {
            (0, _) => {}
            (count, None) => write!(f, ": {count}")?,
            (count, Some(1)) => write!(f, ": {count} of 1 row")?,
            (count, Some(rows)) => write!(f, ": {count} of {rows} rows")?,
        }
        match (self.names.as_slice(), self.count) {
            ([], _) => Ok(()),
            (names, count) if count > names.len() as u64 => write!(f, ", such as {}", names.join(", ")),
            (names, _) => write!(f, ": {}", names.join(", ")),
        }
    }
}

/// A part of a published table, and the rows of it that belong to the table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartRef {
    /// The digest of the part.
    pub part: Digest,
    /// The size of the part in bytes.
    pub bytes: u64,
    /// The number of rows in the part.
    pub rows: u64,
    /// The chosen rows as runs `(first, count)`; `None` means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen: Option<Vec<(u64, u64)>>,
}

impl PartRef {
    /// Chooses all rows of an entry; `None` if it has no part.
    pub(in crate::engine) fn of(entry: &Entry) -> Option<Self> {
        Some(Self { part: entry.part?, bytes: entry.bytes, rows: entry.contents.len() as u64, chosen: None })
    }

    /// Returns the number of chosen rows.
    pub fn len(&self) -> u64 {
        self.chosen.as_ref().map_or(self.rows, |runs| runs.iter().map(|(_, count)| count).sum())
    }

    /// Returns true if no row is chosen.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the numbers of the chosen rows, ascending.
    pub fn row_numbers(&self) -> Vec<u64> {
        match &self.chosen {
            None => (0..self.rows).collect(),
            Some(runs) => runs.iter().flat_map(|(first, count)| *first..first + count).collect(),
        }
    }

    /// Returns the chosen rows in Parquet's form; `None` means all.
    pub fn selection(&self) -> Option<RowSelection> {
        Some(selection(self.chosen.as_ref()?, self.rows))
    }
}

/// Groups ascending row numbers into runs `(first, count)`.
pub(in crate::engine) fn runs(rows: &[u64]) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for &row in rows {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == row => *count += 1,
            _ => runs.push((row, 1)),
        }
    }
    runs
}

/// Converts runs of rows in a part of `rows` rows to Parquet's form.
pub(in crate::engine) fn selection(runs: &[(u64, u64)], rows: u64) -> RowSelection {
    let mut selectors = Vec::new();
    let mut next = 0;
    for &(first, count) in runs {
        selectors.extend((first > next).then(|| RowSelector::skip((first - next) as usize)));
        selectors.push(RowSelector::select(count as usize));
        next = first + count;
    }
    selectors.extend((rows > next).then(|| RowSelector::skip((rows - next) as usize)));
    selectors.into()
}

/// The origin of a table. Equal origins make equal tables.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// The stage that makes it.
    pub stage: String,
    /// The stage kind's revision.
    pub revision: u32,
    /// Parameters, with defaults.
    pub params: Value,
    /// Files that parameters name, and their digests.
    pub files: Vec<(String, Digest)>,
    /// The stage's identity: kind, revision, parameters, content of the files, output schema.
    pub fingerprint: Digest,
    /// The name of each input, or `source`, with the digest of everything that could be read of it.
    pub inputs: Vec<(String, Digest)>,
    /// The digest of its model, if its rows state it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<Digest>,
    /// The `where:` predicate.
    pub filter: Option<String>,
}

impl Provenance {
    /// Returns the parameters as lines of YAML, each value as JSON.
    pub fn parameters(&self) -> String {
        fn lines(value: &Value, indent: usize) -> String {
            let line = |(name, value): (&String, &Value)| match value {
                Value::Object(inner) if !inner.is_empty() => {
                    format!("{:indent$}{name}:\n{}", "", lines(value, indent + 2))
                }
                value => format!("{:indent$}{name}: {value}\n", ""),
            };
            value.as_object().into_iter().flatten().map(line).collect()
        }
        lines(&self.params, 0)
    }
}

/// A published version of a table: its content and its origin.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// The table's name in its pipeline.
    pub table: String,
    /// The swept values that it depends on.
    #[serde(default, skip_serializing_if = "Variant::is_empty")]
    pub variant: Variant,
    /// Its origin.
    #[serde(flatten)]
    pub made: Provenance,
    /// The stored Arrow schema, as Parquet carries it.
    pub schema: String,
    /// True if the first column identifies a row.
    pub keyed: bool,
    /// The rows.
    pub parts: Vec<PartRef>,
    /// Number of rows.
    pub rows: u64,
    /// The digest of the contents of all rows, which does not depend on their order.
    pub content: Digest,
    /// Rows that failed and were left out.
    pub errors: Vec<RowError>,
    /// Blobs that the rows name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blobs: Vec<Digest>,
    /// Notes on the table.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<Note>,
    /// True if the pipeline no longer declares it, so that SQL does not see it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub retired: bool,
    /// The run that published it.
    pub run: String,
    /// The time of publication, in milliseconds since 1970.
    pub published_ms: u64,
}

impl Manifest {
    /// Returns the stored schema.
    pub fn schema(&self) -> Result<SchemaRef> {
        decode_schema(&self.schema)
    }

    /// Returns the objects that it reaches in the store: its parts, then the blobs that its rows name.
    pub fn objects(&self) -> impl Iterator<Item = Digest> {
        self.parts.iter().map(|part| part.part).chain(self.blobs.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tensor_field, *};
    use crate::engine::encode_schema;

    #[test]
    fn note_states_its_count_and_first_names() {
        let note = |names: &[&str]| Note::about("no mask", names.iter().copied()).to_string();
        assert_eq!(note(&["a", "b"]), "no mask: 2: a, b");
        assert_eq!(note(&["a", "b", "c", "d"]), "no mask: 4, such as a, b, c");
        let of_rows = Note { of: Some(9), ..Note::about("no mask", ["a"]) };
        assert_eq!(of_rows.to_string(), "no mask: 1 of 9 rows: a");
        assert_eq!(Note::new("the loss stayed").to_string(), "the loss stayed");
    }

    #[test]
    fn error_about_a_file_is_told_about_the_row() {
        let told = |message: &str, place: Option<&str>| {
            let (id, key, place) = ("a.png".into(), Digest::of(b"x"), place.map(str::to_owned));
            RowError { id, key, message: message.into(), place, chain: Vec::new(), run: String::new() }.about_id()
        };
        assert_eq!(told("/tmp/0.png: not an image", Some("/tmp/0.png")), "not an image");
        assert_eq!(told("cannot read /tmp/0.png: no such file", Some("/tmp/0.png")), "cannot read a.png: no such file");
        assert_eq!(told("/tmp/0.png: not an image", None), "/tmp/0.png: not an image");
    }

    #[test]
    fn a_record_is_read_as_it_is_written() {
        let digests = |n: u8| (0..n).map(|i| Digest::of(&[i])).collect::<Vec<_>>();
        let error = RowError {
            id: "x".into(),
            key: Digest::of(b"x"),
            message: "bad\nrow".into(),
            place: None,
            chain: Vec::new(),
            run: "1".into(),
        };
        let entry = Entry {
            part: Some(Digest::of(b"part")),
            bytes: 7,
            keys: digests(3),
            contents: digests(4).split_off(1),
            errors: vec![error],
            blobs: digests(1),
            notes: Vec::new(),
            replaces: digests(2),
            recorded_ms: 5,
        };
        let bytes = entry.to_bytes().unwrap();
        let json = |entry: &Entry| serde_json::to_string(entry).unwrap();
        assert_eq!(Entry::from_bytes(&bytes).map(|read| json(&read)), Some(json(&entry)));
        assert_eq!(
            Entry::from_bytes(json(&entry).as_bytes()).map(|read| json(&read)),
            Some(json(&entry)),
            "an older one"
        );
        for cut in [0, 5, bytes.len() - 1, bytes.len() - Digest::LEN, bytes.len() - 8 - 6 * Digest::LEN] {
            assert!(Entry::from_bytes(&bytes[..cut]).is_none(), "{cut}");
        }
    }

    #[test]
    fn a_schema_survives_its_text() {
        use arrow::datatypes::{DataType, Field, Schema};
        let schema = Schema::new(vec![
            Field::new("id", DataType::Utf8, false),
            tensor_field("x", DataType::Float16, &[2, 3], true),
        ]);
        assert_eq!(*decode_schema(&encode_schema(&schema)).unwrap(), schema);
        assert!(decode_schema("AAAA").is_err());
    }
}
