//! Any bytes in the place of a part are read or reported as damaged, without a panic.
#![no_main]

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use vlmdiff::engine::{Store, manifest::PartRef, parts};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::open(&folder.path().to_string_lossy()).expect("a store");
    let part = store.put_part(bytes.to_vec().into()).expect("a write");
    let schema = Arc::new(Schema::new(vec![Field::new("a", DataType::Utf8, true)]));
    for chosen in [None, Some(vec![(0, 1), (2, 1)])] {
        let refer = [PartRef { part, bytes: bytes.len() as u64, rows: 3, chosen }];
        let _ = parts::read_table(&store, &refer, &["a".to_owned()], &schema);
        let _ = parts::read_light(&store, &refer, &["a".to_owned()], &schema);
    }
});
