//! The sources of the checker's pipelines as plain values: three files of records and a folder of pictures; and the
//! ways to write them to a disk.

use std::{
    collections::BTreeMap,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::datatypes::{DataType, Field, Fields, Schema};
use serde_json::{Value, json};

/// A row: its values by column. Nulls are absent.
pub(super) type Row = BTreeMap<String, Value>;

/// A file of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum File {
    Csv,
    Json,
    Parquet,
}

/// A picture of one colour.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Picture {
    pub(super) colour: [u8; 3],
    pub(super) caption: Option<String>,
    /// True if its file cannot be decoded.
    pub(super) is_broken: bool,
    /// The half that its mask marks, if its class has masks: true for the left one.
    pub(super) left: bool,
}

/// Pictures of one product, by their paths in its folder.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Class {
    pub(super) pictures: BTreeMap<String, Picture>,
    pub(super) has_masks: bool,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Sources {
    pub(super) records: BTreeMap<File, Vec<Row>>,
    pub(super) classes: BTreeMap<String, Class>,
    /// A number in the program `tool.sh`.
    pub(super) tool: u32,
}

/// The way in which a file is rewritten.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Manner {
    /// The existing file is overwritten.
    InPlace,
    /// A new file takes the place of the old one.
    Replaced,
    /// The existing file is overwritten, and its time of modification is set back.
    WithOldTime,
}

/// Width and height of pictures in pixels.
pub(super) const SIDE: u32 = 16;

impl File {
    pub(super) const ALL: [Self; 3] = [Self::Csv, Self::Json, Self::Parquet];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Csv => "a.csv",
            Self::Json => "b.jsonl",
            Self::Parquet => "c.parquet",
        }
    }

    /// Returns the columns beside the id.
    pub(super) fn columns(self) -> &'static [&'static str] {
        match self {
            Self::Csv => &["n", "x", "t"],
            Self::Json => &["n", "flag", "t", "words", "at"],
            Self::Parquet => &["n", "votes", "grades", "part", "raw"],
        }
    }

    /// Returns the types that a pipeline has to declare, because the rows may not show them.
    pub(super) fn types(self) -> Value {
        match self {
            Self::Csv => json!({ "n": "int64?", "x": "float64?", "t": "utf8?" }),
            Self::Json => json!({ "n": "int64?", "flag": "bool?", "t": "utf8?" }),
            Self::Parquet => json!({}),
        }
    }
}

impl Sources {
    /// Writes all files.
    pub(super) fn write(&self, folder: &Path) {
        for file in File::ALL {
            self.write_records(file, folder, Manner::InPlace);
        }
        self.write_tool(folder);
        for (class, Class { pictures, .. }) in &self.classes {
            pictures.keys().for_each(|path| self.write_picture(class, path, folder, Manner::InPlace));
            self.write_captions(class, folder);
        }
    }

    /// Returns the program of one stage, which copies a file.
    pub(super) fn tool_text(&self) -> String {
        format!("cp \"$1\" \"$2\" # {}\n", self.tool)
    }

    pub(super) fn write_tool(&self, folder: &Path) {
        put(&folder.join("tool.sh"), self.tool_text().as_bytes(), Manner::InPlace);
    }

    pub(super) fn write_records(&self, file: File, folder: &Path, manner: Manner) {
        let rows = &self.records[&file];
        let bytes = match file {
            File::Csv => csv(file, rows).into_bytes(),
            File::Json => json_lines(rows.iter().map(|row| with_nulls(file, row))).into_bytes(),
            File::Parquet => parquet(rows),
        };
        put(&folder.join(file.name()), &bytes, manner);
    }

    pub(super) fn write_picture(&self, class: &str, path: &str, folder: &Path, manner: Manner) {
        let class_folder = folder.join("photos").join(class);
        let picture = &self.classes[class].pictures[path];
        put(&class_folder.join(path), &picture.file(), manner);
        let Some(mask) = mask_path(path) else { return };
        let mask = class_folder.join(mask);
        if self.classes[class].has_masks {
            let marked = |x| if (x < SIDE / 2) == picture.left { [255; 3] } else { [0; 3] };
            put(&mask, &png(marked), manner);
        } else {
            let _ = fs::remove_file(mask);
        }
    }

    pub(super) fn write_captions(&self, class: &str, folder: &Path) {
        let line = |(path, picture): (&String, &Picture)| {
            let caption = picture.caption.as_ref()?;
            Some(json!({ "image": path, "caption": caption }).to_string() + "\n")
        };
        let text: String = self.classes[class].pictures.iter().filter_map(line).collect();
        put(&folder.join("photos").join(class).join("captions.jsonl"), text.as_bytes(), Manner::InPlace);
    }

    /// Removes the files of a picture that the values no longer contain.
    pub(super) fn erase_picture(class: &str, path: &str, folder: &Path) {
        let class_folder = folder.join("photos").join(class);
        fs::remove_file(class_folder.join(path)).unwrap();
        let _ = mask_path(path).map(|mask| fs::remove_file(class_folder.join(mask)));
    }
}

impl Picture {
    /// Returns the content of its file.
    pub(super) fn file(&self) -> Vec<u8> {
        if self.is_broken {
            let [r, g, b] = self.colour;
            return format!("no picture {r:03} {g:03} {b:03}").into_bytes();
        }
        png(|_| self.colour)
    }
}

/// Returns the path of the mask of an anomalous picture.
pub(super) fn mask_path(path: &str) -> Option<String> {
    let (kind, name) = path.strip_prefix("test/")?.split_once('/')?;
    (kind != "good").then(|| format!("ground_truth/{kind}/{}", name.replace(".png", "_mask.png")))
}

fn png(colour: impl Fn(u32) -> [u8; 3]) -> Vec<u8> {
    let picture = image::RgbImage::from_fn(SIDE, SIDE, |x, _| image::Rgb(colour(x)));
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// Writes a file, and makes its folder.
fn put(path: &Path, bytes: &[u8], manner: Manner) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let before = fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    match manner {
        Manner::Replaced => {
            let beside = PathBuf::from(format!("{}.new", path.display()));
            fs::write(&beside, bytes).unwrap();
            fs::rename(beside, path).unwrap();
        }
        Manner::InPlace | Manner::WithOldTime => fs::write(path, bytes).unwrap(),
    }
    if let (Manner::WithOldTime, Some(before)) = (manner, before) {
        fs::File::options().write(true).open(path).unwrap().set_modified(before).unwrap();
    }
}

fn csv(file: File, rows: &[Row]) -> String {
    let columns: Vec<&str> = std::iter::once("id").chain(file.columns().iter().copied()).collect();
    let mut text = columns.join(",") + "\n";
    for row in rows {
        let value = |column: &&str| match row.get(*column) {
            None => String::new(),
            Some(Value::String(text)) => format!("\"{}\"", text.replace('"', "\"\"")),
            Some(other) => other.to_string(),
        };
        writeln!(text, "{}", columns.iter().map(value).collect::<Vec<_>>().join(",")).unwrap();
    }
    text
}

fn json_lines(rows: impl Iterator<Item = Value>) -> String {
    rows.map(|row| row.to_string() + "\n").collect()
}

/// Returns a row with all of its columns. Their order is part of the table and is read from the first row.
fn with_nulls(file: File, row: &Row) -> Value {
    let value = |name: &&str| match row.get(*name) {
        Some(Value::Object(members)) => {
            ["p", "q"].iter().map(|name| ((*name).to_owned(), json!(members.get(*name)))).collect()
        }
        other => json!(other),
    };
    ["id"].iter().chain(file.columns()).map(|name| ((*name).to_owned(), value(name))).collect()
}

fn parquet(rows: &[Row]) -> Vec<u8> {
    let list = |of| DataType::List(Arc::new(Field::new("item", of, true)));
    let part =
        Fields::from(vec![Field::new("a", DataType::Int32, true), Field::new("words", list(DataType::Utf8), true)]);
    let schema = Arc::new(Schema::new(vec![
        Field::new("id", DataType::Utf8, false),
        Field::new("n", DataType::Int64, true),
        Field::new("votes", list(DataType::Int8), true),
        Field::new("grades", list(DataType::Int16), true),
        Field::new("part", DataType::Struct(part), true),
        Field::new("raw", DataType::Binary, true),
    ]));
    let text = json_lines(rows.iter().map(|row| json!(row)));
    let reader = arrow::json::ReaderBuilder::new(schema.clone()).build(text.as_bytes()).unwrap();
    let mut bytes = Vec::new();
    let mut writer = parquet::arrow::ArrowWriter::try_new(&mut bytes, schema, None).unwrap();
    reader.for_each(|batch| writer.write(&batch.unwrap()).unwrap());
    writer.close().unwrap();
    bytes
}
