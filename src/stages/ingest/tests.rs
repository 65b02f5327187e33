use std::path::Path;

use arrow::array::{AsArray, RecordBatch};

use super::*;
use crate::engine::{
    Stop, encode_schema,
    run::{Executor, InProcess, Settings, Update},
    stage,
    stage::{Job, Listed, Task},
    store::{Entry, Store},
};

fn picture(path: &Path, grey: u8) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    image::RgbImage::from_pixel(20, 20, image::Rgb([grey; 3])).save(path).unwrap();
}

fn ingest(root: &Path) -> Ingest {
    serde_json::from_value(serde_json::json!({ "dataset": "folder", "root": root, "size": 16 })).unwrap()
}

/// Ingests the rows of a listing, as the engine does.
fn read(stage: &Ingest, listed: &RecordBatch, store: &Path) -> Vec<Entry> {
    let ids: Vec<String> = listed.column(0).as_string::<i32>().iter().flatten().map(str::to_owned).collect();
    let job = Job {
        stage: "ingest".into(),
        params: serde_json::to_value(stage).unwrap(),
        makes: Output::RowPerRow,
        output: encode_schema(&stage.output(&Schemas::default()).unwrap()),
        input_schemas: Vec::new(),
        row_schemas: Vec::new(),
        tables: Vec::new(),
        model: None,
        files: Vec::new(),
        save_every: std::time::Duration::MAX,
        secrets: Default::default(),
    };
    let stage_key = Digest::of(b"stage");
    let keys = ids.iter().map(|id| Digest::of(id.as_bytes())).collect();
    let (run, listed) = ("run".into(), Some(Listed::pack(listed).unwrap()));
    let task = Task { job, stage_key, run, after: 0, ids, keys, rows: Vec::new(), pieces: None, listed };
    let store = Store::open(store.to_str().unwrap()).unwrap();
    let executor = InProcess::new(store, Stop::default(), Settings::default(), stage::open::<Ingest>);
    let mut entries = Vec::new();
    let done = executor.run(&mut std::iter::once(Ok(task)), &mut |update| {
        if let Update::Done { entries: new, .. } = update {
            entries.extend(new);
        }
        Ok(())
    });
    done.unwrap();
    entries
}

#[test]
fn image_that_changes_after_its_listing_fails() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("data");
    for file in ["train/good/0.png", "train/good/1.png", "test/hole/0.png", "test/hole/1.png"] {
        picture(&root.join("nut").join(file), 100);
    }
    for file in ["0.png", "1.png"] {
        picture(&root.join("nut/ground_truth/hole").join(file), 255);
    }
    let stage = ingest(&root);
    let listed = stage.list(&Sources::default()).unwrap().unwrap().rows;
    assert_eq!(listed.num_rows(), 4);
    picture(&root.join("nut/train/good/0.png"), 101);
    picture(&root.join("nut/ground_truth/hole/1.png"), 0);
    std::fs::remove_file(root.join("nut/train/good/1.png")).unwrap();
    let entries = read(&stage, &listed, &folder.path().join("store"));
    let [entry] = &entries[..] else { panic!("{} entries", entries.len()) };
    let failed: Vec<(&str, String)> = entry
        .errors
        .iter()
        .map(|error| (error.id.as_str(), error.message.replace(root.to_str().unwrap(), "ROOT")))
        .collect();
    assert_eq!(entry.contents.len(), 1);
    let [mask, image, gone] = &failed[..] else { panic!("{failed:?}") };
    let changed = "changed while it was being read; run again";
    assert_eq!(*mask, ("nut/test/hole/1.png", format!("ROOT/nut/ground_truth/hole/1.png {changed}")));
    assert_eq!(*image, ("nut/train/good/0.png", format!("ROOT/nut/train/good/0.png {changed}")));
    assert!(gone.1.starts_with("cannot read ROOT/nut/train/good/1.png: "), "{gone:?}");
}

#[test]
fn layouts_are_named_as_parameters_name_them() {
    use Dataset::{CocoAd, Folder, Manifest, Mvtec, MvtecAd2, RealIad, Synthetic, Visa};
    for dataset in [Folder, Manifest, Synthetic, Mvtec, Visa, RealIad, CocoAd, MvtecAd2] {
        assert_eq!(serde_json::to_value(dataset).unwrap(), dataset.name());
    }
}

/// A manifest may have a few of the photographs, as that of new ones has.
#[test]
fn class_of_a_region_without_photographs_is_noted_in_a_manifest() {
    let folder = tempfile::tempdir().unwrap();
    picture(&folder.path().join("a.png"), 9);
    std::fs::write(folder.path().join("photographs.csv"), "path,class\na.png,nut\n").unwrap();
    let corners = serde_json::json!([[0, 0], [9, 0], [9, 9]]);
    let stage: Ingest = serde_json::from_value(serde_json::json!({
        "dataset": "manifest",
        "root": folder.path().join("photographs.csv"),
        "size": 16,
        "roi": { "nut": corners, "bolt": corners }
    }))
    .unwrap();
    let notes = stage.list(&Sources::default()).unwrap().unwrap().notes;
    let told: Vec<String> = notes.iter().map(ToString::to_string).collect();
    assert_eq!(told, ["of classes that `roi` names there is no photograph: 1: bolt"]);
}
