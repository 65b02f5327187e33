//! Folders that are written as a whole.

use std::{
    fs::{self, File},
    io,
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

/// The endings of folders that are being written, and of those that were put aside for a new one.
const UNFINISHED: &str = "unfinished";
const REPLACED: &str = "replaced";

/// A folder that gets its name when everything in it is written. One that an earlier export wrote is then replaced.
#[derive(Debug)]
pub struct NewFolder {
    unfinished: TempDir,
    /// The folder's lock, by which another export to the same place sees that it is being written. It ends with this process.
    _lock: Option<File>,
    target: PathBuf,
}

impl NewFolder {
    /// Begins a folder beside its later place, and removes what exports to that place left there that were killed.
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
        remove_abandoned(parent, &prefix, target.exists()).map_err(cannot)?;
        let suffix = format!(".{UNFINISHED}");
        loop {
            let unfinished = tempfile::Builder::new().prefix(&prefix).suffix(&suffix).tempdir_in(parent);
            let unfinished = unfinished.map_err(cannot)?;
            // Network file systems may have no locks of folders. What is abandoned there stays.
            let _lock = File::open(unfinished.path()).ok().filter(|folder| folder.lock().is_ok());
            // Another export may have taken the folder for an abandoned one before it was locked.
            if unfinished.path().is_dir() {
                return Ok(Self { unfinished, _lock, target });
            }
        }
    }

    /// Returns the folder to write into.
    pub fn path(&self) -> &Path {
        self.unfinished.path()
    }

    /// Gives the folder its name.
    pub fn finish(self, format: &str, table: &Table) -> Result<()> {
        let Self { unfinished, _lock, target } = self;
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
        let aside = unfinished.path().with_extension(REPLACED);
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
        if is_replaced { remove(&aside).map_err(cannot) } else { Ok(()) }
    }
}

/// Removes a folder, which another export may remove at the same time.
fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Removes folders whose export was killed: those that nobody has locked, and those that were put aside for one that is there.
fn remove_abandoned(parent: &Path, prefix: &str, target_exists: bool) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let rest = name.strip_prefix(prefix).and_then(|rest| rest.split_once('.'));
        // The random letters keep this place apart from one with a longer name.
        let is_abandoned =
            match rest.filter(|(letters, _)| letters.chars().all(|letter| letter.is_ascii_alphanumeric())) {
                Some((_, UNFINISHED)) => File::open(&path).is_ok_and(|folder| folder.try_lock().is_ok()),
                Some((_, REPLACED)) => target_exists,
                _ => false,
            };
        if is_abandoned {
            remove(&path)?;
        }
    }
    Ok(())
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
    fn folder_of_a_killed_export_is_removed_by_the_next_one() {
        let place = tempfile::tempdir().unwrap();
        let target = place.path().join("out");
        for name in [".out-a1B2c3.unfinished", ".out-a1B2c3.replaced", ".out-of-a1B2c3.unfinished", ".out-x.notes"] {
            fs::create_dir(place.path().join(name)).unwrap();
            fs::write(place.path().join(name).join("rows"), "rows").unwrap();
        }
        let names = || -> Vec<String> {
            let mut names: Vec<_> =
                fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names.into_iter().map(|name| name.into_string().unwrap()).collect()
        };
        let running = NewFolder::begin(&target).unwrap();
        let own = running.path().file_name().unwrap().to_str().unwrap().to_owned();
        let others = [".out-a1B2c3.replaced", ".out-of-a1B2c3.unfinished", ".out-x.notes"];
        let left = || names().into_iter().filter(|name| *name != own).collect::<Vec<_>>();
        assert_eq!(left(), others, "what was put aside stays as long as nothing is in its place");
        // An export that runs keeps its folder.
        NewFolder::begin(&target).unwrap().finish("hf", &table()).unwrap();
        assert!(names().contains(&own));
        drop(NewFolder::begin(&target).unwrap());
        assert_eq!(left(), [".out-of-a1B2c3.unfinished", ".out-x.notes", "out"]);
        running.finish("hf", &table()).unwrap();
        assert_eq!(names(), [".out-of-a1B2c3.unfinished", ".out-x.notes", "out"]);
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
