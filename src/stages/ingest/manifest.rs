//! Reads manifests: tables of images as people write them and as data sets of Hugging Face have them.

use std::collections::{HashMap, HashSet};

use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::embedded::Embedded;
use crate::{
    datasets::{
        Fault, PicturePlace,
        manifest::{self, ManifestRow},
    },
    engine::{
        Digest, Error, Result, join,
        source::{Sources, Tree},
        stage::Misfit,
    },
    tables::text_rows::{TextRow, TextRows},
};

/// Names of the columns of a manifest, where they differ from the usual ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
#[garde(allow_unvalidated)]
pub struct ManifestColumns {
    /// The name that identifies an image; by default its path, or file and row of a picture in a Parquet file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The path of the photograph below the manifest's folder, or the photograph itself as `{bytes, path}`; by default
    /// `path`, `file_name` or `image`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The product or texture; by default `class`. Without the column it is the name of the manifest's folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// `train`, `calibration` or `test`; by default `split`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// The label: normal (good, ok, false, 0) or anomalous (bad, defect, true, 1); by default `label`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// The kind of defect of an anomalous photograph; by default `defect`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub defect: Option<String>,
    /// The path of the mask, or the mask itself; by default `mask`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask: Option<String>,
    /// The caption; by default `caption` or `text`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caption: Option<String>,
}

impl ManifestColumns {
    /// Returns true if no name differs from the usual one.
    pub(super) fn are_usual(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the names of the columns that a file has. A column that is named for one purpose is taken for no other.
    pub(super) fn of_file(&self, names: &[String]) -> Result<Self, String> {
        let given: Vec<&String> = self.names().collect();
        let is_free = |name: &str| names.iter().any(|other| other == name) && !given.iter().any(|other| *other == name);
        let find = |given: &Option<String>, usual: &[&str]| match given {
            Some(name) if !names.contains(name) => Err(format!("no column `{name}`")),
            Some(name) => Ok(Some(name.clone())),
            None => Ok(usual.iter().copied().find(|name| is_free(name)).map(str::to_owned)),
        };
        Ok(Self {
            id: find(&self.id, &[])?,
            path: find(&self.path, &["path", "file_name", "image"])?,
            class: find(&self.class, &["class"])?,
            split: find(&self.split, &["split"])?,
            label: find(&self.label, &["label"])?,
            defect: find(&self.defect, &["defect"])?,
            mask: find(&self.mask, &["mask"])?,
            caption: find(&self.caption, &["caption", "text"])?,
        })
    }

    fn names(&self) -> impl Iterator<Item = &String> {
        let Self { id, path, class, split, label, defect, mask, caption } = self;
        [id, path, class, split, label, defect, mask, caption].into_iter().flatten()
    }
}

/// The rows of one or several manifests below a folder.
pub(super) struct Manifests {
    /// The folder or URL to which paths are relative.
    pub(super) folder: String,
    /// The files below it.
    pub(super) tree: Tree,
    /// The rows.
    pub(super) rows: Vec<ManifestRow>,
    /// The digests of pictures in Parquet files, row by row: by file, with true for masks.
    embedded: HashMap<(String, bool), Vec<Option<Digest>>>,
}

/// Returns the folder of the paths in a manifest, or the folder itself.
pub(super) fn folder_of(root: &str) -> &str {
    match root.rsplit_once('/') {
        _ if !manifest::is_manifest(root) => root,
        Some(("", _)) => "/",
        Some((folder, _)) => folder,
        None => ".",
    }
}

impl Manifests {
    /// Reads the manifest at an address, or all of a folder.
    pub(super) fn read(root: &str, columns: &ManifestColumns, sources: &Sources) -> Result<Self> {
        let folder = folder_of(root);
        let tree = sources.tree(folder)?;
        let files: Vec<(String, Option<String>)> = if manifest::is_manifest(root) {
            vec![(root.rsplit('/').next().unwrap_or(root).to_owned(), None)]
        } else {
            let found = manifest::manifests(tree.paths()).into_iter();
            found.map(|(file, split)| (file.to_owned(), split.map(str::to_owned))).collect()
        };
        if files.is_empty() {
            return Err(Error::Input(format!(
                "no manifest in {root}: expected {root}/metadata.csv or metadata.jsonl, there or in the folders train and \
                 test, Parquet files, or the file of a manifest itself"
            )));
        }
        let mut all = Self { folder: folder.to_owned(), tree, rows: Vec::new(), embedded: HashMap::new() };
        for (file, split) in files {
            all.add(&file, split.as_deref(), columns, sources)?;
        }
        Ok(all)
    }

    /// Returns the photographs and masks that do not exist.
    pub(super) fn missing(&self) -> Vec<Fault> {
        let paths: HashSet<&str> = self.tree.paths().collect();
        let files = self.rows.iter().flat_map(|row| {
            let files = [(Some(&row.path), row.row), (row.mask.as_ref(), row.mask_row)];
            files.into_iter().filter_map(move |(path, at)| Some((row, path.filter(|_| at.is_none())?)))
        });
        let missing = files.filter(|(_, path)| !paths.contains(path.as_str()));
        let fault = |(row, path): (&ManifestRow, &String)| {
            let what = format!("{} names it, and no such file exists; paths are relative to the manifest", row.place);
            Fault::new(path, &what)
        };
        missing.map(fault).collect()
    }

    /// Adds the rows of a file below the folder. `split` is that of rows without one.
    fn add(&mut self, file: &str, split: Option<&str>, columns: &ManifestColumns, sources: &Sources) -> Result<()> {
        let address = join(&self.folder, file)?;
        let opened = Opened::new(&address, columns, sources)?;
        let columns = &opened.columns;
        let (images, masks) = (opened.digests(&columns.path)?, opened.digests(&columns.mask)?);
        let prefix = file.rfind('/').map_or("", |slash| &file[..=slash]);
        for (number, row) in (0..).zip(opened.rows(sources)?) {
            let cell = |column| opened.cell(&row, column);
            let picture = |column, digests: &[Option<Digest>]| match digests.get(number as usize) {
                Some(Some(_)) => (Some(file.to_owned()), Some(number)),
                _ => (cell(column).map(|path| format!("{prefix}{}", bare(&path))), None),
            };
            let place = format!("{address}: {}", row.place);
            let (path, at) = picture(&columns.path, &images);
            let path = path.ok_or_else(|| Error::Input(format!("{place} has no path of a photograph")))?;
            let (mask, mask_row) = picture(&columns.mask, &masks);
            let own = || at.map_or_else(|| path.clone(), |at| format!("{}/{at:06}", file.trim_end_matches(".parquet")));
            self.rows.push(ManifestRow {
                id: cell(&columns.id).unwrap_or_else(own),
                class: cell(&columns.class),
                split: cell(&columns.split).or_else(|| split.map(str::to_owned)),
                label: cell(&columns.label),
                defect: cell(&columns.defect),
                caption: cell(&columns.caption),
                place,
                path,
                row: at,
                mask,
                mask_row,
            });
        }
        self.embedded.insert((file.to_owned(), false), images);
        self.embedded.insert((file.to_owned(), true), masks);
        Ok(())
    }

    /// Returns the digest of a picture in a Parquet file.
    pub(super) fn embedded(&self, place: PicturePlace<'_>, is_mask: bool) -> Option<Digest> {
        *self.embedded.get(&(place.path.to_owned(), is_mask))?.get(place.row? as usize)?
    }
}

/// A manifest whose columns are known.
struct Opened<'a> {
    text: TextRows<'a>,
    /// The names of its columns.
    columns: ManifestColumns,
    /// The file, if it can hold pictures.
    parquet: Option<Embedded<'a>>,
    /// The names of columns as they are read: of pictures their paths.
    read: Vec<String>,
}

impl<'a> Opened<'a> {
    fn new(address: &'a str, columns: &ManifestColumns, sources: &Sources) -> Result<Self> {
        let (text, names) = with_names(address, columns, sources)?;
        let wrong = |message: String| Error::Input(format!("{address} has {message}; it has {}", names.join(", ")));
        let columns = columns.of_file(&names).map_err(wrong)?;
        if columns.path.is_none() {
            return Err(wrong(
                "no column `path`, `file_name` or `image`, for which `columns.path` names another".into(),
            ));
        }
        let is_parquet = address.to_lowercase().ends_with(".parquet");
        let parquet = if is_parquet { Some(Embedded::open(address, sources)?) } else { None };
        let mut opened = Self { text, columns, parquet, read: Vec::new() };
        opened.read = opened.columns.names().map(|column| opened.read_as(column)).collect();
        Ok(opened)
    }

    fn rows(&self, sources: &Sources) -> Result<Vec<TextRow>> {
        let columns: Vec<&str> = self.read.iter().map(String::as_str).collect();
        self.text.rows(sources, &columns).map_err(input_error)
    }

    /// Returns the file if a column of it holds pictures.
    fn with_pictures(&self, column: &str) -> Option<&Embedded<'a>> {
        self.parquet.as_ref().filter(|file| file.has_pictures(column))
    }

    /// Returns the digests of the pictures in a column; none if they are files.
    fn digests(&self, column: &Option<String>) -> Result<Vec<Option<Digest>>> {
        let pictures = column.as_ref().and_then(|column| Some((self.with_pictures(column)?, column)));
        pictures.map_or(Ok(Vec::new()), |(file, column)| file.digests(column))
    }

    fn read_as(&self, column: &str) -> String {
        if self.with_pictures(column).is_some() { format!("{column}.path") } else { column.to_owned() }
    }

    /// Returns the value of a row in a column; `None` if it has none. A number that the file names is its name.
    fn cell(&self, row: &TextRow, column: &Option<String>) -> Option<String> {
        let column = column.as_ref()?;
        let at = self.read.iter().position(|name| *name == self.read_as(column))?;
        let value = row.values[at].clone().filter(|value| !value.trim().is_empty())?;
        let names = self.parquet.as_ref().and_then(|file| file.class_names(column));
        Some(names.and_then(|names| names.get(value.parse::<usize>().ok()?).cloned()).unwrap_or(value))
    }
}

/// Returns a manifest and the names of its columns. If a CSV file has no paths by the separator of its ending, the one that its
/// header seems to have takes its place.
fn with_names<'a>(
    address: &'a str,
    columns: &ManifestColumns,
    sources: &Sources,
) -> Result<(TextRows<'a>, Vec<String>)> {
    let text = TextRows { address, separator: None };
    let names = text.columns(sources).map_err(input_error)?;
    let has_paths = columns.of_file(&names).is_ok_and(|columns| columns.path.is_some());
    let separator = if has_paths { None } else { text.other_separator(sources) };
    match separator {
        None => Ok((text, names)),
        Some(_) => {
            let text = TextRows { separator, ..text };
            Ok((text, text.columns(sources).map_err(input_error)?))
        }
    }
}

fn input_error(misfit: Misfit) -> Error {
    Error::Input(misfit.message)
}

/// Returns a path as it is below a folder, with `/` on every system.
fn bare(path: &str) -> String {
    path.replace('\\', "/").trim_start_matches("./").to_owned()
}
