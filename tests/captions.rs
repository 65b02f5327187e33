//! Captions that come from files and templates.

use std::fs;

use image::RgbImage;

use crate::lab::{Lab, computed};

/// Makes a lab with two classes of one training image each, and captions by these parameters.
fn lab(with: &str) -> Lab {
    let lab = Lab::empty();
    lab.write("pipeline.yaml", &pipeline(with));
    for class in ["nut", "bolt"] {
        let folder = lab.path(&format!("data/{class}/train/good"));
        fs::create_dir_all(&folder).unwrap();
        RgbImage::from_fn(24, 24, |x, y| image::Rgb([x as u8, y as u8, 90])).save(folder.join("000.png")).unwrap();
    }
    lab
}

fn pipeline(with: &str) -> String {
    format!(
        "name: captions\ntables:\n  images: {{ stage: ingest, with: {{ dataset: folder, root: data, size: 16 }} }}\n  \
         captions: {{ stage: caption, from: [images], with: {{ {with} }} }}\n"
    )
}

fn told(lab: &Lab, code: i32) -> String {
    let ended = lab.vlmdiff(&["run", "pipeline.yaml"]);
    assert_eq!(ended.code, Some(code), "{}", ended.stderr);
    ended.stderr
}

fn captions(lab: &Lab) -> Vec<String> {
    lab.sql(".vlmdiff", "select image_id, caption from captions order by image_id")
}

#[test]
fn captions_of_a_file_are_joined_and_the_rest_is_noted() {
    let lab = lab("model: file, path: captions.csv, id: image, default: 'a {class}'");
    let said = told(&lab, 2);
    assert!(said.contains("captions") && said.contains("`path`: cannot read captions.csv"), "{said}");
    lab.write("captions.csv", "image,caption\n/photos/nut/train/good/000.png,a nut of steel\ngone.png,a cap\n");
    let said = told(&lab, 0);
    assert!(said.contains("rows of the file describe no image of this table: 1: gone.png"), "{said}");
    let words = "the image has no caption, and `default` stands for it: 1 of 2 rows: bolt/train/good/000.png";
    assert!(said.contains(words), "{said}");
    assert_eq!(captions(&lab), ["bolt/train/good/000.png,a bolt", "nut/train/good/000.png,a nut of steel"]);
    // The file counts by content: another place changes nothing, and another text everything.
    fs::rename(lab.path("captions.csv"), lab.path("moved.csv")).unwrap();
    lab.write("pipeline.yaml", &pipeline("model: file, path: moved.csv, id: image, default: 'a {class}'"));
    assert_eq!(computed(&lab.run(&[])), [("captions", 0); 0]);
    lab.write("moved.csv", "image,caption\nnut/train/good/000.png,brass\nbolt/train/good/000.png,\n");
    assert_eq!(computed(&lab.run(&[])), [("captions", 2)]);
    assert_eq!(captions(&lab)[1], "nut/train/good/000.png,brass");
}

#[test]
fn template_is_filled_in_per_class_and_a_misspelt_placeholder_stops_the_plan() {
    let lab = lab("model: template, text: 'a photo of a {class}', classes: { nut: 'a {class}, six-sided' }");
    lab.run(&[]);
    let expected = ["bolt/train/good/000.png,a photo of a bolt", "nut/train/good/000.png,\"a nut, six-sided\""];
    assert_eq!(captions(&lab), expected);
    for (with, words) in [
        ("model: template, text: 'a {clas}'", "`text`: `{clas}` at character 3 is no placeholder"),
        ("model: dataset, default: '{id}'", "`default`: `{id}` at character 1 is no placeholder"),
    ] {
        lab.write("pipeline.yaml", &pipeline(with));
        let ended = lab.vlmdiff(&["plan", "pipeline.yaml"]);
        let is_told = ended.stderr.contains(words) && ended.stderr.contains("what can stand there is {class}");
        assert!(ended.code == Some(2) && is_told, "{}", ended.stderr);
    }
}

#[test]
fn pairs_of_the_authors_and_captions_of_coco_are_read() {
    let lab = lab("model: pairs, path: published");
    fs::create_dir(lab.path("published")).unwrap();
    lab.write("published/train_captions_x.json", r#"["a nut", "a bolt", "nothing"]"#);
    let said = told(&lab, 2);
    assert!(said.contains("there is no published/train_labels_x.json with the images"), "{said}");
    lab.write(
        "published/train_labels_x.json",
        r#"["./data/nut/train/good/000.png", "./data/bolt/train/good/000.png"]"#,
    );
    let said = told(&lab, 2);
    assert!(said.contains("train_captions_x.json has 3 captions and"), "{said}");
    lab.write("published/train_captions_x.json", r#"["a nut", "a bolt"]"#);
    lab.run(&[]);
    assert_eq!(captions(&lab), ["bolt/train/good/000.png,a bolt", "nut/train/good/000.png,a nut"]);
    fs::rename(lab.path("data/nut/train/good/000.png"), lab.path("data/nut/train/good/000000000009.png")).unwrap();
    let annotation = |caption: &str| format!(r#"{{"id": 1, "image_id": 9, "caption": "{caption} "}}"#);
    let annotations = [annotation("a nut"), annotation("steel")].join(", ");
    lab.write("published/captions_train2017.json", &format!(r#"{{"annotations": [{annotations}]}}"#));
    for (take, caption) in [("joined", "a nut steel"), ("first", "a nut")] {
        lab.write("pipeline.yaml", &pipeline(&format!("model: coco, path: published, take: {take}")));
        let said = told(&lab, 0);
        assert!(said.contains("`default` stands for it: 1 of 2 rows: bolt/train/good/000.png"), "{said}");
        assert_eq!(captions(&lab)[1], format!("nut/train/good/000000000009.png,{caption}"));
    }
    let drawn = |seed: u32| {
        lab.write("pipeline.yaml", &pipeline(&format!("model: coco, path: published, take: random, seed: {seed}")));
        lab.run(&[]);
        captions(&lab)[1].clone()
    };
    let drawn: std::collections::BTreeSet<String> = (0..8).map(drawn).collect();
    assert_eq!(drawn.len(), 2, "{drawn:?}");
}
