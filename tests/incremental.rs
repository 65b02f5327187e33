//! What a change reruns, read from the events of real runs.

use std::fs;

use vlmdiff::engine::event::Event;

use crate::lab::{LIGHT, Lab, TOY, computed};

const NONE: [(&str, u64); 0] = [];

#[test]
fn a_second_run_computes_nothing() {
    let lab = Lab::new(TOY);
    let first = lab.run(&[]);
    assert_eq!(computed(&first).len(), 13, "{first:?}");
    let second = lab.run(&[]);
    assert_eq!(computed(&second), NONE);
    assert_eq!(second.iter().filter(|e| matches!(e, Event::TableFresh { .. })).count(), 13);
    let rows = lab.sql(".vlmdiff", "select class, n_images, n_anomalous, image_auroc is null from metrics");
    assert_eq!(rows, ["gear,3,2,false", "tile,3,2,false", "mean,6,4,false"]);

    // One test image touched: one row in every row-wise table on its way, and the aggregates.
    let image = lab.path("data/gear/test/good/000.png");
    fs::copy(lab.path("data/gear/train/good/000.png"), &image).unwrap();
    let touched = lab.run(&[]);
    let expected = [
        ("images", 1),
        ("captions", 0),
        ("text_embeddings", 0),
        ("latents", 1),
        ("reconstructions", 1),
        ("anomaly_maps", 1),
    ];
    for (table, rows) in expected {
        let found = computed(&touched).into_iter().find(|(name, _)| *name == table).map_or(0, |(_, rows)| rows);
        assert_eq!(found, rows, "{table}: {:?}", computed(&touched));
    }
    assert!(computed(&touched).iter().any(|(table, rows)| *table == "metrics" && *rows > 0));
    // Nothing of the training split changed, so nothing is trained again.
    for table in ["text_encoder", "autoencoder", "denoiser"] {
        let found = computed(&touched).into_iter().find(|(name, _)| *name == table);
        assert!(found.is_none_or(|(_, rows)| rows == 0), "{table} was trained again");
    }

    // One parameter changed: its table and what depends on it.
    let changed = lab.run(&["--set", "anomaly_maps.sigma=2"]);
    let tables: Vec<&str> = computed(&changed).iter().map(|(table, _)| *table).collect();
    assert_eq!(tables, ["anomaly_maps", "metrics", "ranking"]);
    // And back: everything is known.
    let back = lab.run(&[]);
    assert!(computed(&back).iter().all(|(_, rows)| *rows == 0), "{:?}", computed(&back));
}

#[test]
fn images_come_and_go() {
    let lab = Lab::new(LIGHT);
    lab.run(&[]);
    assert_eq!(lab.sql(".vlmdiff", "select * from counts"), ["8"]);
    fs::copy(lab.path("data/gear/train/good/000.png"), lab.path("data/gear/train/good/extra.png")).unwrap();
    assert_eq!(computed(&lab.run(&[])), [("images", 1), ("captions", 1), ("counts", 1)]);
    assert_eq!(lab.sql(".vlmdiff", "select caption from captions where image_id like '%extra.png'"), ["nothing"]);
    fs::remove_file(lab.path("data/gear/train/good/extra.png")).unwrap();
    let removed = lab.run(&[]);
    assert!(computed(&removed).iter().all(|(_, rows)| *rows == 0), "{:?}", computed(&removed));
    assert_eq!(lab.sql(".vlmdiff", "select * from counts"), ["8"]);
}

#[test]
fn a_moved_dataset_is_the_same_dataset() {
    let lab = Lab::new(LIGHT);
    lab.run(&[]);
    fs::rename(lab.path("data"), lab.path("elsewhere")).unwrap();
    assert_eq!(computed(&lab.run(&["--set", "images.root=elsewhere"])), NONE);
}

#[test]
fn a_changed_predicate_reuses_rows() {
    let lab = Lab::new(LIGHT);
    lab.run(&[]);
    lab.write("pipeline.yaml", &LIGHT.replace("split = 'train'", "split = 'train' or split = 'test'"));
    assert_eq!(computed(&lab.run(&[])), [("captions", 6), ("counts", 1)]);
}

#[test]
fn tables_of_two_pipelines_share_what_is_equal() {
    let lab = Lab::new(LIGHT);
    lab.run(&[]);
    lab.write("pipeline.yaml", &LIGHT.replace("name: light", "name: other"));
    let other = lab.run(&[]);
    assert_eq!(computed(&other), [("images", 0), ("captions", 0), ("counts", 0)]);
    assert_eq!(lab.sql(".vlmdiff", "select (select n from light.counts) + (select n from other.counts)"), ["16"]);
}
