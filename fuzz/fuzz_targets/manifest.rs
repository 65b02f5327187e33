//! Any bytes in the place of a manifest or a record are read or skipped, without a panic.
#![no_main]

use vlmdiff::engine::{
    Digest,
    store::{Current, Store, collect},
};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::open(&folder.path().to_string_lossy()).expect("a store");
    let stage = Digest::of(b"stage");
    store.put("published/p/t/0000000001.json", bytes.to_vec()).expect("a write");
    store.put(&format!("computed/{stage}/{}.rows", Digest::of(bytes)), bytes.to_vec()).expect("a write");
    if let Ok(Current::Whole(_, manifest)) = store.published("p", "t") {
        let _ = manifest.schema();
    }
    let _ = store.computed(stage);
    let _ = collect(&store, 1, true);
});
