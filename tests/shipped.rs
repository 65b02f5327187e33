//! The pipelines of the folder `pipelines`, on small data sets in their layouts.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    dataset::picture,
    lab::{Lab, project},
    published::{coco, real_iad, visa},
};

/// Returns all pipelines below a folder.
fn pipelines(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(pipelines(&path));
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Writes the data set that a pipeline reads into `data`. Returns false for a pipeline that generates its photographs.
fn write_data(lab: &Lab, pipeline: &Path) -> bool {
    let name = pipeline.file_stem().unwrap().to_str().unwrap();
    let square = "[[2, 1, 9, 1, 9, 9, 2, 9]]";
    match name {
        "quickstart" | "pixels" | "samplers" | "captions" => return false,
        name if name.ends_with("visa") => visa(lab, [1, 2]),
        name if name.ends_with("real_iad") => drop(real_iad(lab)),
        name if name.ends_with("coco_ad") => {
            let last = (1, 79, square);
            coco(lab, "train2017", &[1, 2, 3], &[last, (2, 0, square), (3, 25, square)]);
            coco(lab, "val2017", &[5, 6, 7], &[(5, 19, square), (6, 30, square), (7, 70, square)]);
        }
        _ => {
            for image in ["train/good/0", "train/good/1", "test/good/0", "test/bent/0"] {
                picture(&lab.path(&format!("data/screw/{image}.png")), 40, 40);
            }
        }
    }
    true
}

#[test]
fn every_pipeline_is_planned_before_weights_are_here() {
    let all = pipelines(&project().join("pipelines"));
    assert!(all.len() > 20, "{all:?}");
    for pipeline in all {
        let lab = Lab::empty();
        let mut arguments = vec!["plan", pipeline.to_str().unwrap()];
        if write_data(&lab, &pipeline) {
            let tables: &[&str] = if pipeline.ends_with("tiles.yaml") {
                &["images.root=data", "tiles.root=data"]
            } else {
                &["images.root=data"]
            };
            tables.iter().for_each(|root| arguments.extend(["--set", root]));
        }
        let mut command = lab.command(&arguments);
        let plan = lab.ended(command.env("HF_HUB_CACHE", lab.path("hub")).env("VLMDIFF_CACHE", lab.path("cache")));
        assert_eq!(plan.code, Some(0), "{}: {}", pipeline.display(), plan.stderr);
        let first = plan.stdout.lines().next().unwrap_or_default();
        assert!(
            first.starts_with("images") && first.contains("rows to compute: not computed yet"),
            "{}: {first}",
            pipeline.display()
        );
    }
}
