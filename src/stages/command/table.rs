//! Table by table: Parquet files in, a Parquet file out.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    process::Stdio,
    sync::atomic::{AtomicU64, Ordering},
};

use arrow::{array::RecordBatch, datatypes::SchemaRef};

use super::{
    Command, OUTPUT,
    program::{Program, lines},
};
use crate::{
    engine::{
        Error, Result, now_ms,
        source::ParquetFile,
        stage::{Context, Operator, Rows, Sink},
        store::encode_part,
    },
    stages::types::conform,
};

/// A temporary folder with a Parquet file for each table. It is removed on drop.
pub(super) struct Files {
    folder: PathBuf,
    tables: Vec<String>,
}

impl Files {
    pub(super) fn write(tables: &BTreeMap<String, RecordBatch>) -> Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("vlmdiff-{}-{}-{number}", std::process::id(), now_ms());
        let files = Self { folder: std::env::temp_dir().join(name), tables: tables.keys().cloned().collect() };
        fs::create_dir(&files.folder)?;
        tables
            .iter()
            .try_for_each(|(name, table)| fs::write(files.path(name), encode_part(table)?).map_err(Error::from))?;
        Ok(files)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.parquet"))
    }

    /// Returns the tables with their paths.
    pub(super) fn paths(&self) -> Vec<(String, String)> {
        self.tables.iter().map(|name| (name.clone(), self.path(name).to_string_lossy().into_owned())).collect()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // The folder is temporary; the system deletes what cannot be removed here.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The number of rows of its file that are read at a time.
const BATCH_ROWS: usize = 1024;

/// A program that makes a whole table.
pub(super) struct Whole {
    words: Vec<String>,
    result: PathBuf,
    output: SchemaRef,
    _files: Files,
}

impl Whole {
    pub(super) fn open(command: &Command, context: &Context) -> Result<Self> {
        let files = Files::write(&context.tables)?;
        let result = files.path(OUTPUT);
        let mut paths = files.paths();
        paths.push((OUTPUT.to_owned(), result.to_string_lossy().into_owned()));
        Ok(Self { words: command.words(&paths), result, output: context.output.clone(), _files: files })
    }
}

impl Operator for Whole {
    fn run(&mut self, _: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        // A result of an earlier run of the program must not be taken for that of this run.
        let _ = fs::remove_file(&self.result);
        let (mut program, _) = Program::start(&self.words, Stdio::null(), lines)?;
        program.finish(out)?;
        let unreadable = |e: String| format!("wrote no Parquet file to `{{{OUTPUT}}}`: {e}");
        let opened =
            ParquetFile::open(&self.result).and_then(|file| Ok((file.schema().clone(), file.read(BATCH_ROWS)?)));
        let (schema, batches) = opened.map_err(|e| program.failure(&unreadable(e), out))?;
        // An empty batch gives the file of a table without rows a schema.
        let none = RecordBatch::new_empty(schema);
        for batch in std::iter::once(Ok(none)).chain(batches) {
            let batch = batch.map_err(unreadable).and_then(|batch| {
                conform(&self.output, &batch).map_err(|e| format!("does not write what is declared: {e}"))
            });
            let batch = batch.map_err(|what| program.failure(&what, out))?;
            out.write(&batch)?;
        }
        Ok(())
    }
}
