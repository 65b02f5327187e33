//! Folders that are written as a whole.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::datatypes::{Schema, SchemaRef};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::Table;
use crate::engine::{Error, Result, decode_schema, encode_schema, join, source::Sources};

/// The file by which an export says that it wrote a folder.
const MARKER: &str = "vlmdiff.json";

/// The content of that file.
#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    /// The format of the export.
    format: String,
    /// The table, with its pipeline.
    table: String,
    /// The schema of the table.
    schema: String,
    /// The version of the program.
    version: String,
}

/// A folder that gets its name when everything in it is written. One that an earlier export wrote is then replaced.
#[derive(Debug)]
pub struct NewFolder {
    unfinished: TempDir,
    target: PathBuf,
}

impl NewFolder {
    /// Begins a folder beside its later place.
    ///
    /// # Errors
    /// [`Error::Input`] if the place has files that no export wrote.
    pub fn begin(target: &Path) -> Result<Self> {
        let cannot = |e: io::Error| Error::Input(format!("cannot write {}: {e}", target.display()));
        check_replaceable(target)?;
        let target = std::path::absolute(target).map_err(cannot)?;
        let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
            return Err(Error::Input(format!("{} is no place for a new folder; name one below it", target.display())));
        };
        fs::create_dir_all(parent).map_err(cannot)?;
        let prefix = format!(".{}-", name.display());
        let unfinished = tempfile::Builder::new().prefix(&prefix).suffix(".unfinished").tempdir_in(parent);
        Ok(Self { unfinished: unfinished.map_err(cannot)?, target })
    }

    /// Returns the folder to write into.
    pub fn path(&self) -> &Path {
        self.unfinished.path()
    }

    /// Gives the folder its name.
    pub fn finish(self, format: &str, table: &Table) -> Result<()> {
        let Self { unfinished, target } = self;
        let cannot = |e: io::Error| Error::Input(format!("cannot write {}: {e}", target.display()));
        let marker = Marker {
            format: format.to_owned(),
            table: table.name(),
            schema: encode_schema(&table.schema),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let text = serde_json::to_string_pretty(&marker).map_err(io::Error::from)?;
        fs::write(unfinished.path().join(MARKER), text + "\n").map_err(cannot)?;
        open_to_others(unfinished.path()).map_err(cannot)?;
        check_replaceable(&target)?;
        // A folder cannot be renamed to one with files. The old one is put aside first, so that a failure loses nothing.
        let aside = unfinished.path().with_extension("replaced");
        let is_replaced = target.exists();
        if is_replaced {
            fs::rename(&target, &aside).map_err(cannot)?;
        }
        if let Err(error) = fs::rename(unfinished.path(), &target) {
            if is_replaced {
                fs::rename(&aside, &target).map_err(cannot)?;
            }
            return Err(cannot(error));
        }
        // The folder has moved, so nothing is left to be removed.
        let _ = unfinished.keep();
        if is_replaced { fs::remove_dir_all(&aside).map_err(cannot) } else { Ok(()) }
    }
}

/// Gives a folder the permissions of a new one; a temporary folder is its owner's alone.
fn open_to_others(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let sibling = folder.join(".permissions");
    fs::create_dir(&sibling)?;
    let mode = fs::metadata(&sibling)?.permissions().mode();
    fs::remove_dir(&sibling)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(mode))
}

/// Refuses a place with files that no export wrote.
fn check_replaceable(target: &Path) -> Result<()> {
    let entries = match fs::read_dir(target) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::Input(format!("cannot write {}: {e}", target.display()))),
    };
    if entries.count() == 0 || target.join(MARKER).is_file() {
        return Ok(());
    }
    Err(Error::Input(format!(
        "{} has files that no export wrote (there is no {MARKER}); name a new folder, or empty this one",
        target.display()
    )))
}

/// Returns the schema of the table that an export wrote into a folder; `None` for a folder of another program.
pub(super) fn exported_schema(folder: &str, paths: &[&str], sources: &Sources) -> Result<Option<SchemaRef>> {
    if !paths.contains(&MARKER) {
        return Ok(None);
    }
    let address = join(folder, MARKER)?;
    let marker: Marker = serde_json::from_slice(&sources.read(&address)?)
        .map_err(|e| Error::Input(format!("{address} is not what an export writes: {e}")))?;
    read_schema(&marker.schema).map(Some)
}

/// Reads the schema of a table that was exported, without what has a meaning in the store alone.
pub(super) fn read_schema(text: &str) -> Result<SchemaRef> {
    let schema =
        decode_schema(text).map_err(|_| Error::Input("the schema that the export states is damaged".into()))?;
    let fields = schema.fields().iter().map(|field| {
        let mut metadata = field.metadata().clone();
        metadata.retain(|key, _| key.starts_with("ARROW:extension"));
        field.as_ref().clone().with_metadata(metadata)
    });
    Ok(Arc::new(Schema::new(fields.collect::<Vec<_>>())))
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field};

    use super::*;

    fn table() -> Table {
        let schema = Arc::new(Schema::new(vec![Field::new("id", DataType::Utf8, false)]));
        Table { pipeline: "p".into(), table: "t".into(), schema }
    }

    #[test]
    fn folder_of_an_export_is_replaced_and_that_of_others_is_not() {
        let place = tempfile::tempdir().unwrap();
        let target = place.path().join("a/b");
        for content in ["first", "second"] {
            let folder = NewFolder::begin(&target).unwrap();
            fs::write(folder.path().join(content), content).unwrap();
            folder.finish("hf", &table()).unwrap();
        }
        let names = |folder: &Path| {
            let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(&target), ["second", MARKER]);
        assert_eq!(names(target.parent().unwrap()), ["b"]);
        // A folder that is given up leaves nothing.
        drop(NewFolder::begin(&target).unwrap());
        assert_eq!(names(target.parent().unwrap()), ["b"]);
        let other = place.path().join("other");
        fs::create_dir(&other).unwrap();
        fs::write(other.join("mine"), "").unwrap();
        let error = NewFolder::begin(&other).unwrap_err().to_string();
        assert!(error.contains("has files that no export wrote"), "{error}");
    }

    #[test]
    fn schema_is_read_as_it_was_written() {
        let place = tempfile::tempdir().unwrap();
        let target = place.path().join("out");
        NewFolder::begin(&target).unwrap().finish("hf", &table()).unwrap();
        let folder = target.to_string_lossy();
        let read = exported_schema(&folder, &[MARKER], &Sources::default()).unwrap();
        assert_eq!(read, Some(table().schema));
        assert_eq!(exported_schema(&folder, &["other"], &Sources::default()).unwrap(), None);
    }
}
