//! Figures of images with their maps by several tables, as files and on the report page.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use half::f16;
use image::{Rgb, RgbImage};
use vlmdiff::vision::colormap::inferno;

use crate::{
    lab::{LIGHT, Lab},
    metrics,
};

/// Side of the pictures of a figure, and their distance.
const SIDE: u32 = 64;
const GAP: u32 = 4;

/// Runs a pipeline with two tables of maps, of which the second has half the values of the first.
fn lab() -> Lab {
    let second = "  halved:\n    stage: command\n    from: [images]\n    where: split = 'test'\n    with: \
                  { run: python3 halved.py, columns: [pixels], output: { map: \"float16[64,64]\", score: float32 } }\n";
    let maps = metrics::PIPELINE.split("  metrics:").next().unwrap();
    let lab = metrics::lab(maps);
    assert!(metrics::MAPS.contains("pa.array([v / 255"));
    lab.write("halved.py", &metrics::MAPS.replace("pa.array([v / 255", "pa.array([v / 510"));
    lab.write("pipeline.yaml", &format!("{maps}{second}"));
    lab.run(&[]);
    lab
}

/// Writes figures into a folder, and returns the lines of its two lists without their heads.
fn figures(lab: &Lab, folder: &str, arguments: &[&str]) -> [Vec<Vec<String>>; 2] {
    let ended = lab.vlmdiff(&[&["figures", folder], arguments].concat());
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    ["columns.csv", "rows.csv"].map(|name| {
        let text = fs::read_to_string(lab.path(&format!("{folder}/{name}"))).unwrap();
        text.lines().skip(1).map(|line| line.split(',').map(str::to_owned).collect()).collect()
    })
}

fn picture(lab: &Lab, name: &str) -> RgbImage {
    image::open(lab.path(name)).unwrap().into_rgb8()
}

/// Returns a picture of a figure, by its row and column from 0 on.
fn cell(figure: &RgbImage, row: u32, column: u32) -> RgbImage {
    let at = |number: u32| number * (SIDE + GAP);
    image::imageops::crop_imm(figure, at(column), at(row), SIDE, SIDE).to_image()
}

/// Returns the scale of each column of maps of a figure.
fn scales(columns: &[Vec<String>], figure: &str) -> Vec<[f32; 2]> {
    let scale = |line: &Vec<String>| [&line[3], &line[4]].map(|end| end.parse().unwrap());
    columns.iter().filter(|line| line[0] == figure && !line[3].is_empty()).map(scale).collect()
}

#[test]
fn figure_has_input_truth_and_maps_of_each_table_on_a_stated_scale() {
    let lab = lab();
    let [columns, rows] = figures(&lab, "found", &[]);
    let shows: Vec<&str> = columns.iter().filter(|line| line[0] == "gear.png").map(|line| &*line[2]).collect();
    assert_eq!(shows, ["input", "ground truth", "anomaly_maps", "halved"]);
    let anomalous = lab.sql(".vlmdiff", "select image_id from images where label order by image_id");
    let listed: BTreeSet<&String> = rows.iter().map(|line| &line[2]).collect();
    assert_eq!(listed, anomalous.iter().collect(), "the rows are the anomalous images");
    for class in ["gear", "tile"] {
        let name = format!("{class}.png");
        let figure = picture(&lab, &format!("found/{name}"));
        assert_eq!(figure.dimensions(), (4 * SIDE + 3 * GAP, 2 * SIDE + GAP));
        assert_eq!(figure.get_pixel(SIDE + 1, 0), &Rgb([255; 3]), "pictures are apart");
        let scales = scales(&columns, &name);
        assert!(scales[0].iter().zip(scales[1]).all(|(a, b)| *a == 2. * b), "{scales:?}");
        for row in 0..2 {
            let [input, truth, map, halved] = [0, 1, 2, 3].map(|column| cell(&figure, row, column));
            let levels: BTreeSet<u8> = truth.pixels().flat_map(|pixel| pixel.0).collect();
            assert_eq!(levels, [0, 255].into());
            // The program's map is the saturation of a pixel.
            for (pixel, drawn) in input.pixels().zip(map.pixels()) {
                let [most, least] = [pixel.0.iter().max().unwrap(), pixel.0.iter().min().unwrap()];
                let value = f16::from_f32((f64::from(most - least) / 255.) as f32).to_f32();
                assert_eq!(*drawn, inferno(value, scales[0][0], scales[0][1]), "{pixel:?}");
            }
            // Half the values on half the scale have the same colours.
            assert_eq!(halved, map);
        }
    }
}

#[test]
fn scale_is_shared_as_it_is_asked_for() {
    let lab = lab();
    let [columns, _] = figures(&lab, "shared", &["--scale", "figure"]);
    let shared = scales(&columns, "gear.png");
    assert_eq!(shared[0], shared[1]);
    let figure = picture(&lab, "shared/gear.png");
    assert_ne!(cell(&figure, 0, 2), cell(&figure, 0, 3));
    // Instances of a swept table share a scale, unless each column has its own.
    let swept = format!(
        "{}sweep: {{ run: [python3 maps.py, python3 halved.py] }}\n",
        metrics::PIPELINE.split("  metrics:").next().unwrap()
    );
    lab.write("pipeline.yaml", &swept);
    lab.run(&[]);
    for (scale, is_one) in [("table", true), ("column", false)] {
        let [columns, _] = figures(&lab, scale, &["--scale", scale]);
        let names: BTreeSet<&str> = columns.iter().map(|line| &*line[2]).collect();
        let instances = ["python3 halved.py", "python3 maps.py"].map(|run| format!("anomaly_maps[run={run}]"));
        assert_eq!(names, [&*instances[0], &*instances[1], "ground truth", "input"].into());
        let of_instances = scales(&columns, "gear.png");
        assert_eq!((of_instances.len(), of_instances[0] == of_instances[1]), (2, is_one), "{of_instances:?}");
    }
}

#[test]
fn classes_may_be_together_and_tables_be_chosen() {
    let lab = lab();
    let [columns, rows] = figures(&lab, "all", &["--together", "--rows", "1", "--table", "halved", "--overlay"]);
    assert_eq!(columns.iter().map(|line| &*line[2]).collect::<Vec<_>>(), ["input", "ground truth", "halved"]);
    let numbered: BTreeMap<&str, &str> = rows.iter().map(|line| (&*line[3], &*line[1])).collect();
    assert_eq!(numbered, [("gear", "1"), ("tile", "2")].into());
    let figure = picture(&lab, "all/all.png");
    assert_eq!(figure.dimensions(), (3 * SIDE + 2 * GAP, 2 * SIDE + GAP));
    assert_ne!(cell(&figure, 0, 2), cell(&figure, 0, 0), "the map lies over the image");

    // The seed alone decides which images are shown.
    let again = figures(&lab, "again", &["--together", "--rows", "1", "--table", "halved", "--overlay"]);
    assert_eq!(again, [columns, rows]);
    for (arguments, told) in [
        (
            &["wrong", "--table", "map"][..],
            "`map` is no table of anomaly maps of photographs; there are anomaly_maps, halved",
        ),
        (&["all"], "all is not empty; name a new folder"),
        (&["none", "--rows", "0"], "a figure needs a row"),
    ] {
        let ended = lab.vlmdiff(&[&["figures"], arguments].concat());
        assert_eq!(ended.code, Some(2), "{}", ended.stdout);
        assert!(ended.stderr.contains(told), "{}", ended.stderr);
    }
    let light = Lab::new(LIGHT);
    light.run(&[]);
    let ended = light.vlmdiff(&["figures", "found"]);
    assert!(
        ended.stderr.contains("there is nothing to draw: no published table of the pipeline `light`"),
        "{}",
        ended.stderr
    );
    assert!(!light.path("found").exists());
}

#[test]
fn report_shows_the_maps_of_several_tables_side_by_side() {
    let lab = lab();
    assert_eq!(lab.vlmdiff(&["report"]).code, Some(0));
    let html = fs::read_to_string(lab.path("report.html")).unwrap();
    let section = html.split("<section id=\"figures\">").nth(1).unwrap().split("</section>").next().unwrap();
    assert_eq!(section.matches("<table class=\"side\">").count(), 2);
    for shows in ["input", "ground truth", "anomaly_maps", "halved"] {
        assert_eq!(section.matches(&format!("<th scope=\"col\">{shows}<")).count(), 2, "{shows}");
        assert_eq!(section.matches(&format!(", {shows}\">")).count(), 4, "{shows}");
    }
}
