//! Captions that come from files and templates.

use std::{collections::BTreeMap, fs};

use image::RgbImage;
use serde_json::{Value, json};

use crate::lab::{Lab, computed, toy_above};

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

/// Returns captions of images of COCO in its format, for each number of an image so many.
pub(crate) fn captions_of_coco(images: impl IntoIterator<Item = (u32, u32)>) -> String {
    let of_image = |(image, count): (u32, u32)| {
        (1..=count).map(move |number| json!({ "image_id": image, "caption": format!("caption {number} of {image} ") }))
    };
    json!({ "annotations": images.into_iter().flat_map(of_image).collect::<Vec<Value>>() }).to_string()
}

fn captions(lab: &Lab) -> Vec<String> {
    lab.sql(".vlmdiff", "select image_id, caption from captions order by image_id")
}

#[test]
fn captions_of_a_file_are_joined_and_the_rest_is_noted() {
    let lab = lab("model: file, path: captions.csv, id: image, default: 'a {class}'");
    let said = told(&lab, 2);
    assert!(said.contains("captions") && said.contains("`path`: cannot read captions.csv"), "{said}");
    lab.write("captions.csv", "image;caption\n");
    let said = told(&lab, 2);
    assert!(said.contains("its columns seem to be separated by ';': write `separator: \";\"`"), "{said}");
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

#[test]
fn each_caption_of_coco_stands_on_a_line_of_its_own() {
    let lab = lab("model: coco, path: captions.json, take: each");
    fs::rename(lab.path("data/nut/train/good/000.png"), lab.path("data/nut/train/good/009.png")).unwrap();
    let annotations = ["a nut ", "of\nsteel", "a\r\nthing"].map(|caption| json!({ "image_id": 9, "caption": caption }));
    lab.write("captions.json", &json!({ "annotations": annotations }).to_string());
    let said = told(&lab, 0);
    assert!(said.contains("`default` stands for it: 1 of 2 rows: bolt/train/good/000.png"), "{said}");
    let lines = "select replace(caption, chr(10), '|') from captions order by image_id";
    assert_eq!(lab.sql(".vlmdiff", lines), ["\"\"", "a nut|of steel|a  thing"]);
    // The command prints them as they are, and sets them off from the name of a photograph where there are several.
    let [nut, bolt] = ["data/nut/train/good/009.png", "data/bolt/train/good/000.png"];
    let printed = |images: &[&str]| {
        let with = ["--model", "coco", "--set", "path=captions.json", "--set", "take=each", "--quiet"];
        let ended = lab.vlmdiff(&[&["caption"], images, &with].concat());
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        ended.stdout
    };
    assert_eq!(printed(&[nut]), "a nut\nof steel\na  thing\n");
    assert_eq!(printed(&[nut, bolt]), format!("{nut}: a nut\n  of steel\n  a  thing\n{bolt}: \n"));
}

/// Makes a lab whose images have several captions: those whose number is 0 have five, number 1 has two, number 2 six, and number
/// 3 none. Its pipeline trains a denoiser on them in so many steps, of which an epoch has two, and its other networks on the
/// captions of the data set.
pub(crate) fn lab_of_several_captions(steps: u32) -> Lab {
    let several =
        "  several: { stage: caption, from: [images], with: { model: coco, path: captions.json, take: each } }
  several_embeddings: { stage: encode_text, from: [several, text_encoder], with: { lines: 5 } }
  denoiser:\n";
    let inputs =
        "from: { images: images, latents: latents, text_embeddings: several_embeddings, autoencoder: autoencoder }";
    let (above, denoiser) = toy_above("reconstructions").split_once("  denoiser:\n").unwrap();
    let denoiser = denoiser
        .replace("from: [images, latents, text_embeddings, autoencoder]", inputs)
        .replace("steps: 4,", &format!("steps: {steps},"));
    let lab = Lab::new(&[above, several, &denoiser].concat());
    lab.write("captions.json", &captions_of_coco([(0, 5), (1, 2), (2, 6)]));
    lab
}

/// Returns the embeddings of the rows of a table of 24 tokens of 16 numbers, by image.
fn embeddings(lab: &Lab, table: &str) -> BTreeMap<String, Vec<Vec<f64>>> {
    let query = format!("select image_id, embedding from {table}");
    let ended = lab.vlmdiff(&["sql", &query, "--format", "json"]);
    let row = |line: &str| {
        let row: Value = serde_json::from_str(line).unwrap();
        let numbers: Vec<f64> = serde_json::from_value(row["embedding"].clone()).unwrap();
        (row["image_id"].as_str().unwrap().to_owned(), numbers.chunks(24 * 16).map(<[f64]>::to_vec).collect())
    };
    ended.stdout.lines().map(row).collect()
}

#[test]
fn lines_of_a_caption_are_encoded_one_by_one() {
    let lab = lab_of_several_captions(4);
    let run = |settings: &[&str]| {
        let ended = lab.vlmdiff(&[&["run", "pipeline.yaml", "--until", "several_embeddings"], settings].concat());
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        ended.stderr
    };
    let said = run(&[]);
    // Eight of the 14 images have the number 0, and two each of the others.
    for words in [
        "the caption has more than 5 lines, and the rest is left out: 2 of 14 rows",
        "the caption has fewer than 5 lines, which are repeated in turn: 2 of 14 rows",
        "the image has no caption, and `default` stands for it: 2 of 14 rows",
    ] {
        assert!(said.contains(words), "{words}\n{said}");
    }
    let several = embeddings(&lab, "several_embeddings");
    run(&["--set", "several.take=first", "--set", "several_embeddings.lines=null"]);
    let first = embeddings(&lab, "several_embeddings");
    assert_eq!((several.len(), first.len()), (14, 14));
    let is_like = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4);
    for (image, lines) in &several {
        let first = &first[image];
        assert_eq!((lines.len(), first.len()), (5, 1), "{image}");
        assert!(is_like(&lines[0], &first[0]), "{image}");
        // The line that each of the five is.
        let distinct: Vec<usize> =
            lines.iter().map(|line| lines.iter().position(|other| is_like(line, other)).unwrap()).collect();
        let expected = match image.rsplit('/').next().unwrap() {
            "000.png" | "002.png" => [0, 1, 2, 3, 4],
            "001.png" => [0, 1, 0, 1, 0],
            _ => [0; 5],
        };
        assert_eq!(distinct, expected, "{image}");
    }
}

#[test]
fn several_captions_of_an_image_are_refused_by_stages_that_take_one() {
    let lab = lab_of_several_captions(4);
    let pipeline = fs::read_to_string(lab.path("pipeline.yaml")).unwrap();
    let inputs = "images: images, latents: latents, text_embeddings: several_embeddings, denoiser: denoiser";
    let shared = "images: images, latents: latents, autoencoder: autoencoder, unconditional: several_embeddings";
    for (stage, from, with) in [
        ("reconstruct", format!("{inputs}, autoencoder: autoencoder"), "guidance_scale: 1"),
        ("score_latents", inputs.to_owned(), ""),
        ("train_denoiser", shared.to_owned(), "trainable: all"),
    ] {
        lab.write(
            "pipeline.yaml",
            &format!("{pipeline}  last: {{ stage: {stage}, from: {{ {from} }}, with: {{ {with} }} }}\n"),
        );
        let plan = lab.vlmdiff(&["plan", "pipeline.yaml"]);
        let words = "column `embedding` is Float32[5, 24, 16]; a Float32[T, D] tensor is read; make it by `encode_text` without `lines`";
        assert!(plan.code == Some(2) && plan.stderr.contains(words), "{stage}: {:?} {}", plan.code, plan.stderr);
        assert!(plan.stderr.contains("table `last`: `several_embeddings` does not fit as"), "{}", plan.stderr);
    }
}

#[test]
fn training_draws_among_the_captions_of_an_image() {
    let lab = lab_of_several_captions(4);
    let trained = |settings: &[&str]| {
        let settings: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
        lab.run(&[&["--until", "denoiser"], &settings[..]].concat());
        lab.contents(".vlmdiff").into_iter().find(|(table, _)| table == "denoiser").unwrap().1
    };
    let each = trained(&[]);
    let first = trained(&["several.take=first", "several_embeddings.lines=null"]);
    assert_ne!(each, first);
    // Among one caption there is nothing to draw, and all other random numbers are the same.
    assert_eq!(trained(&["several_embeddings.lines=1"]), first);
}
