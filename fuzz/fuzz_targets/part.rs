//! Any bytes in the place of a part, or of a Parquet file of another program, are read or reported as damaged, without a panic.
#![no_main]

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use vlmdiff::engine::{
    source::ParquetFile,
    store::{PartRef, Store, read_table},
};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::open(&folder.path().to_string_lossy()).expect("a store");
    let part = store.put_part(bytes.to_vec().into()).expect("a write");
    let schema = Arc::new(Schema::new(vec![Field::new("a", DataType::Utf8, true)]));
    for chosen in [None, Some(vec![(0, 1), (2, 1)])] {
        let refer = [PartRef { part, bytes: bytes.len() as u64, rows: 3, chosen }];
        let _ = read_table(&store, &refer, &["a".to_owned()], &schema);
    }
    let file = folder.path().join("file.parquet");
    std::fs::write(&file, bytes).expect("a write");
    if let Ok(batches) = ParquetFile::open(&file).and_then(|file| file.read(1024)) {
        batches.for_each(drop);
    }
});
