//! Folders of pictures as users have them: files that are read, refused, or left out with a note.

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use image::{GrayImage, Luma, RgbImage};

use crate::lab::{Lab, TOY, computed, toy_above};

const IMAGES: &str = r#"
name: dataset
tables:
  images: { stage: ingest, with: { dataset: folder, root: data, size: 32 } }
"#;

/// Makes a lab with a class `nut` of two normal images for training and one for testing.
fn nut(pipeline: &str) -> Lab {
    let lab = Lab::empty();
    lab.write("pipeline.yaml", pipeline);
    for file in ["train/good/000.png", "train/good/001.png", "test/good/000.png"] {
        picture(&lab.path("data/nut").join(file), 40, 24);
    }
    lab
}

pub(crate) fn picture(path: &Path, width: u32, height: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, 90])).save(path).unwrap();
}

/// Writes a mask with a square of this side in its middle.
pub(crate) fn mask(path: &Path, width: u32, height: u32, side: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let inside = |at: u32, of: u32| at.abs_diff(of / 2) < side.div_ceil(2);
    GrayImage::from_fn(width, height, |x, y| Luma([if inside(x, width) && inside(y, height) { 255 } else { 0 }]))
        .save(path)
        .unwrap();
}

/// Runs the pipeline, checks its exit code, and returns its messages.
pub(crate) fn told(lab: &Lab, code: i32) -> String {
    let ended = lab.vlmdiff(&["run", "pipeline.yaml"]);
    assert_eq!(ended.code, Some(code), "{}", ended.stderr);
    ended.stderr
}

fn count(lab: &Lab, query: &str) -> String {
    lab.sql(".vlmdiff", query).concat()
}

#[test]
fn folders_that_would_be_misread_stop_the_run() {
    let lab = nut(IMAGES);
    picture(&lab.path("data/nut/test/Good/000.png"), 40, 24);
    let said = told(&lab, 2);
    assert!(said.contains("data/nut/test/Good differs from `good` by case"), "{said}");
    fs::rename(lab.path("data/nut/test/Good"), lab.path("data/nut/test/bent")).unwrap();
    lab.run(&[]);
    fs::rename(lab.path("data/nut"), lab.path("data/mean")).unwrap();
    let said = told(&lab, 2);
    assert!(said.contains("data/mean: a class `mean` would be taken for the mean over classes"), "{said}");
}

#[test]
fn linked_class_has_the_name_of_the_link() {
    let lab = nut(&IMAGES.replace("root: data", "root: bottle"));
    fs::rename(lab.path("data/nut"), lab.path("a8f3e21b")).unwrap();
    std::os::unix::fs::symlink("a8f3e21b", lab.path("bottle")).unwrap();
    lab.run(&[]);
    assert_eq!(lab.sql(".vlmdiff", "select distinct class from images"), ["bottle"]);
    // The data moves, and nothing is computed again.
    fs::remove_file(lab.path("bottle")).unwrap();
    fs::rename(lab.path("a8f3e21b"), lab.path("moved")).unwrap();
    std::os::unix::fs::symlink("moved", lab.path("bottle")).unwrap();
    assert_eq!(computed(&lab.run(&[])), [("images", 0); 0]);
}

#[test]
fn picture_that_cannot_be_opened_fails_as_one_row() {
    let lab = nut(&IMAGES.replace("stage: ingest,", "stage: ingest, on_error: skip,"));
    std::os::unix::fs::symlink("gone.png", lab.path("data/nut/train/good/dead.png")).unwrap();
    let pipe = lab.path("data/nut/train/good/pipe.png");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    // A run that opens the pipe would wait for a writer forever.
    let mut run = lab.command(&["run", "pipeline.yaml", "--quiet"]).spawn().unwrap();
    let began = Instant::now();
    let code = loop {
        match run.try_wait().unwrap() {
            Some(status) => break status.code(),
            None if began.elapsed() > Duration::from_secs(60) => {
                run.kill().unwrap();
                panic!("the run waits for the pipe");
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    assert_eq!(code, Some(3));
    assert_eq!(count(&lab, "select count(*) from images"), "3");
    let failed = lab.sql(".vlmdiff", "select id, message from errors order by id");
    assert!(
        failed[0].starts_with("nut/train/good/dead.png,cannot read data/nut/train/good/dead.png: No such file"),
        "{failed:?}"
    );
    assert!(failed[1].contains("it is no file, but a folder, pipe, socket or device"), "{failed:?}");
    // Only rows that have become readable are computed.
    picture(&lab.path("data/nut/train/good/gone.png"), 40, 24);
    fs::remove_file(pipe).unwrap();
    assert_eq!(computed(&lab.run(&[])), [("images", 2)]);
    assert_eq!(count(&lab, "select count(*) from images"), "5");
    // With `fail` the run ends with the row.
    lab.write("pipeline.yaml", IMAGES);
    fs::remove_file(lab.path("data/nut/train/good/gone.png")).unwrap();
    let said = told(&lab, 2);
    assert!(said.contains("nut/train/good/dead.png: cannot read data/nut/train/good/dead.png: "), "{said}");
}

/// Writes a JPEG of 40 x 24 pixels that is marked to be turned by a right angle.
pub(crate) fn turned_jpeg(path: &Path) {
    picture(path, 40, 24);
    let mut jpeg = fs::read(path).unwrap();
    let exif = b"Exif\0\0II\x2a\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    let segment = [&[0xff, 0xe1][..], &(exif.len() as u16 + 2).to_be_bytes(), exif].concat();
    jpeg.splice(2..2, segment);
    fs::write(path, jpeg).unwrap();
}

#[test]
fn photograph_is_turned_with_its_mask() {
    let lab = nut(IMAGES);
    for (name, (width, height)) in [("upright", (24, 40)), ("stored", (40, 24))] {
        turned_jpeg(&lab.path(&format!("data/nut/test/bent/{name}.jpg")));
        mask(&lab.path(&format!("data/nut/ground_truth/bent/{name}_mask.png")), width, height, 10);
    }
    let said = told(&lab, 0);
    let sizes = lab.sql(".vlmdiff", "select distinct width, height from images where label");
    assert_eq!(sizes, ["24,40"]);
    assert!(
        said.contains("its mask taken as drawn on the turned picture: 1 of 5 rows: nut/test/bent/upright.jpg"),
        "{said}"
    );
    assert!(
        said.contains("which has the size of the picture as stored: 1 of 5 rows: nut/test/bent/stored.jpg"),
        "{said}"
    );
    // No turn explains the size of this mask.
    mask(&lab.path("data/nut/ground_truth/bent/stored_mask.png"), 40, 40, 10);
    let said = told(&lab, 2);
    assert!(
        said.contains("is 40x40 and its image data/nut/test/bent/stored.jpg is 24x40 (turned as its EXIF"),
        "{said}"
    );
}

#[test]
fn notes_on_pictures_and_masks_are_repeated_on_every_run() {
    let lab = nut(IMAGES);
    let data = lab.path("data/nut");
    picture(&data.join("train/good/batch2/000.png"), 40, 24);
    fs::write(data.join("train/good/IMG_1.HEIC"), "x").unwrap();
    picture(&data.join("validation/good/000.png"), 40, 24);
    picture(&data.join("test/bent/dot.png"), 256, 256);
    mask(&data.join("ground_truth/bent/dot_mask.png"), 256, 256, 4);
    picture(&data.join("test/bent/jpeg.png"), 40, 24);
    mask(&data.join("ground_truth/bent/jpeg_mask.jpg"), 40, 24, 8);
    let dark = image::ImageBuffer::<Luma<u16>, _>::from_fn(40, 24, |x, _| Luma([x as u16 * 100]));
    dark.save(data.join("train/good/camera.png")).unwrap();
    for run in ["fresh", "again"] {
        let said = told(&lab, 0);
        for words in [
            "CLASS/ground_truth/KIND are not read: 1: nut/validation/good/000.png",
            "files that end in none of png, jpg, jpeg, bmp, tif, tiff and webp are not read: 1: nut/train/good/IMG_1.HEIC",
            "a larger `size` keeps it: 1 of 7 rows: nut/test/bent/dot.png",
            "such as PNG: 1 of 7 rows: nut/test/bent/jpeg.png",
            "spread them over 16 bits, or save 8: 1 of 7 rows: nut/train/good/camera.png",
        ] {
            assert!(said.contains(words), "{run}: {words}\n{said}");
        }
    }
    assert_eq!(count(&lab, "select count(*) from images"), "7");
}

/// A pipeline whose stage is trained by a worker without any rows.
const UNTRAINED: &str = r#"
name: untrained
tables:
  images: { stage: ingest, with: { dataset: folder, root: data, size: 32 } }
  autoencoder:
    stage: train_autoencoder
    from: [images]
    where: split = 'Train'
    with:
      config: { block_out_channels: [8], layers_per_block: 1, norm_num_groups: 4 }
      training: { steps: 1, batch_size: 1 }
"#;

#[test]
fn training_without_rows_is_an_input_error() {
    let lab = nut(UNTRAINED);
    let said = told(&lab, 2);
    let words = "table `autoencoder`: there is nothing to make it of: none of the 3 rows of `images` fits `where: split = 'Train'`";
    assert!(said.contains(words), "{said}");
    // The plan reports it before the images are read, because the listing contains their split.
    fs::remove_dir_all(lab.path(".vlmdiff")).unwrap();
    let ended = lab.vlmdiff(&["plan", "pipeline.yaml"]);
    assert_eq!((ended.code, ended.stderr.contains(words)), (Some(2), true), "{}", ended.stderr);
}

#[test]
fn predicate_that_selects_no_row_is_reported() {
    let captions =
        "  captions: { stage: caption, from: [images], where: \"split = 'Train'\", with: { model: dataset } }\n";
    let lab = nut(&format!("{IMAGES}{captions}"));
    let said = told(&lab, 0);
    assert!(said.contains("none of the 3 rows of `images` fits `where: split = 'Train'`"), "{said}");
}

#[test]
fn captions_longer_than_the_encoder_are_counted() {
    let lab = nut(toy_above("autoencoder"));
    let line = |image: &str, caption: &str| format!("{{\"image\": \"{image}\", \"caption\": \"{caption}\"}}\n");
    let long = "qzx ".repeat(40);
    let captions = [line("train/good/000.png", &long), line("train/good/001.png", &format!("{long} end"))];
    fs::write(lab.path("data/nut/captions.jsonl"), captions.concat()).unwrap();
    let said = told(&lab, 0);
    let words = "the caption is longer than the encoder's 24 tokens and is cut: 2";
    let names = ": nut/train/good/000.png, nut/train/good/001.png";
    // Both the encoder's training and its use report it.
    let lines: Vec<&str> = said.lines().filter(|line| line.contains(words) && line.ends_with(names)).collect();
    assert_eq!(lines.len(), 2, "{said}");
    let words = "the image has no caption, and `default` stands for it: 1 of 3 rows: nut/test/good/000.png";
    assert!(said.contains(words), "{said}");
}

/// Returns a pipeline of images read by these parameters.
fn images(with: &str) -> String {
    format!("name: dataset\ntables:\n  images: {{ stage: ingest, with: {{ size: 32, {with} }} }}\n")
}

const RECORDS: &str = "select image_id, class, split, label, defect, caption from images order by image_id";

#[test]
fn photographs_that_are_held_out_stay_as_others_come_and_go() {
    let with = |share: f64| IMAGES.replace("size: 32", &format!("size: 32, hold_out: {share}"));
    let lab = nut(&with(0.));
    for i in 2..20 {
        picture(&lab.path(&format!("data/nut/train/good/{i:03}.png")), 40, 24);
    }
    let split = |of: &str| lab.sql(".vlmdiff", &format!("select image_id from images where split = '{of}' order by 1"));
    lab.run(&[]);
    let (all, tested) = (split("train"), split("test"));
    assert_eq!((all.len(), split("calibration").len()), (20, 0));
    lab.write("pipeline.yaml", &with(0.3));
    // The photographs alone are decoded again whose split changes.
    let decoded = computed(&lab.run(&[]))[0].1;
    let held_out = split("calibration");
    assert_eq!((decoded, split("test")), (held_out.len() as u64, tested));
    assert!((1..=12).contains(&held_out.len()), "{held_out:?}");
    picture(&lab.path("data/nut/train/good/new.png"), 40, 24);
    fs::remove_file(lab.path("data").join(&held_out[0])).unwrap();
    assert_eq!(computed(&lab.run(&[])), [("images", 1)]);
    let after = split("calibration");
    assert!(held_out[1..].iter().all(|id| after.contains(id)) && after.len() <= held_out.len(), "{after:?}");
    // So few photographs may all be on one side.
    let few = nut(&with(0.01));
    let said = told(&few, 0);
    assert!(said.contains("so few normal photographs that `hold_out` holds out none of them: 1: nut"), "{said}");
}

#[test]
fn photographs_keep_their_aspect_ratio_within_a_border() {
    let lab = nut(&images("dataset: folder, root: data").replace("size: 32", "size: [16, 48], keep_aspect: pad"));
    let bent = lab.path("data/nut/test/bent/000.png");
    picture(&bent, 40, 40);
    mask(&lab.path("data/nut/ground_truth/bent/000_mask.png"), 40, 40, 42);
    lab.run(&[]);
    let pixels = |expression: &str| lab.sql(".vlmdiff", &format!("select {expression} from images where label"));
    assert_eq!(pixels("width, height, array_length(mask), array_length(pixels)"), ["40,40,768,2304"]);
    // The square of 40 pixels is one of 16 in the middle of 48. The border repeats its left column, whose red is dark.
    assert_eq!(pixels("mask[16], mask[17], mask[32], mask[33]"), ["0,255,255,0"]);
    assert_eq!(pixels("pixels[1] = pixels[49], pixels[1] < 3, pixels[48 * 3 - 2] > 35"), ["true,true,true"]);
    lab.write("pipeline.yaml", &images("dataset: folder, root: data").replace("size: 32", "size: [16]"));
    let said = told(&lab, 2);
    assert!(said.contains("a size is a whole number of pixels, or `[H, W]`"), "{said}");
}

#[test]
fn photograph_is_read_as_stored_without_its_exif_orientation() {
    let lab = nut(&images("dataset: folder, root: data, exif_orientation: false"));
    turned_jpeg(&lab.path("data/nut/test/bent/0.jpg"));
    mask(&lab.path("data/nut/ground_truth/bent/0_mask.png"), 40, 24, 10);
    lab.run(&[]);
    assert_eq!(lab.sql(".vlmdiff", "select width, height from images where label"), ["40,24"]);
}

#[test]
fn folders_with_names_of_their_own_are_read_as_they_are_named() {
    let lab = Lab::empty();
    lab.write("pipeline.yaml", &images("dataset: folder, root: parts, good: [ok], bad: [nok], unlabelled: [new]"));
    for file in ["ok/0.png", "nok/0.png", "new/0.png", "rest/0.png"] {
        picture(&lab.path("parts").join(file), 40, 24);
    }
    let said = told(&lab, 0);
    assert!(said.contains("and `unlabelled` name are not read: 1: rest/0.png"), "{said}");
    let rows = ["new/0.png,parts,test,,,", "nok/0.png,parts,test,true,nok,", "ok/0.png,parts,train,false,good,"];
    assert_eq!(lab.sql(".vlmdiff", RECORDS), rows);
    // A mask is known of the normal photograph alone.
    assert_eq!(lab.sql(".vlmdiff", "select image_id from images where mask is not null"), ["ok/0.png"]);
    // A flat folder of good photographs.
    lab.write("pipeline.yaml", &images("dataset: folder, root: parts/ok, good: [.]"));
    lab.run(&[]);
    assert_eq!(lab.sql(".vlmdiff", RECORDS), ["0.png,ok,train,false,good,"]);
    for (with, words) in [
        ("dataset: folder, root: parts", "folders with other names are given by `good`, `bad` and `unlabelled`"),
        ("dataset: folder, root: parts, good: [fine]", "no pictures in parts/fine or parts/CLASS/fine"),
        ("dataset: folder, root: parts, good: [ok], bad: [ok]", "the folder `ok` is named twice"),
        ("dataset: manifest, root: parts, good: [ok]", "`good`: it belongs to `dataset: folder`"),
        ("dataset: manifest, root: parts", "no manifest in parts: expected parts/metadata.csv"),
        ("dataset: folder, root: parts, columns: { path: x }", "`columns`: it belongs to `dataset: manifest`"),
    ] {
        lab.write("pipeline.yaml", &images(with));
        let said = told(&lab, 2);
        assert!(said.contains(words), "{with}: {said}");
    }
}

#[test]
fn manifest_says_what_its_photographs_are() {
    let lab = Lab::empty();
    for file in ["a.png", "b.png", "deep/c.png", "d.png"] {
        picture(&lab.path("parts").join(file), 40, 24);
    }
    mask(&lab.path("parts/c_mask.png"), 40, 24, 10);
    let csv = "object,image,label,mask,text,kind\nnut,a.png,normal,,a nut,\nnut,./b.png,,,,\nbolt,deep\\c.png,1,c_mask.png,,bent\n";
    lab.write("parts/rows.csv", csv);
    lab.write(
        "pipeline.yaml",
        &images("dataset: manifest, root: parts/rows.csv, columns: { class: object, defect: kind }"),
    );
    let rows = ["a.png,nut,train,false,good,a nut", "b.png,nut,test,,,", "deep/c.png,bolt,test,true,bent,"];
    lab.run(&[]);
    assert_eq!(lab.sql(".vlmdiff", RECORDS), rows);
    assert_eq!(lab.sql(".vlmdiff", "select image_id from images where array_max(mask) = 255"), ["deep/c.png"]);
    // The same rows in another form are the same table.
    let json = [
        r#"{"path": "a.png", "class": "nut", "label": false, "caption": "a nut"}"#,
        r#"{"path": "b.png", "class": "nut", "label": null}"#,
        r#"{"path": "deep/c.png", "class": "bolt", "defect": "bent", "mask": "c_mask.png"}"#,
    ];
    lab.write("parts/rows.jsonl", &json.join("\n"));
    lab.write("pipeline.yaml", &images("dataset: manifest, root: parts/rows.jsonl"));
    assert_eq!(computed(&lab.run(&[])), [("images", 0); 0]);
    // A row that is added is one row computed.
    lab.write(
        "parts/rows.jsonl",
        &[&json[..], &[r#"{"path": "d.png", "class": "nut", "split": "train"}"#]].concat().join("\n"),
    );
    assert_eq!(computed(&lab.run(&[])), [("images", 1)]);
    // Kinds of defects may stand in the place of labels.
    lab.write("parts/kinds.tsv", "path\tlabel\na.png\tgood\nb.png\tscratch\n");
    lab.write("pipeline.yaml", &images("dataset: manifest, root: parts/kinds.tsv"));
    let said = told(&lab, 2);
    assert!(said.contains("parts/kinds.tsv: row 2: `scratch` is no label"), "{said}");
    lab.write("pipeline.yaml", &images("dataset: manifest, root: parts/kinds.tsv, columns: { defect: label }"));
    lab.run(&[]);
    assert_eq!(lab.sql(".vlmdiff", RECORDS), ["a.png,parts,train,false,good,", "b.png,parts,test,true,scratch,"]);
    lab.write("pipeline.yaml", &images("dataset: manifest, root: parts/rows.jsonl"));
    for (line, words) in [
        (
            r#"{"path": "e.png"}"#,
            "e.png: parts/rows.jsonl: line 1 names it, and no such file exists; paths are relative to the manifest",
        ),
        (
            r#"{"path": "a.png", "split": "valid"}"#,
            "line 1: there is no split `valid`; splits are train, calibration, test",
        ),
        (r#"{"picture": "a.png"}"#, "parts/rows.jsonl has no column `path`, `file_name` or `image`"),
        (r#"{"path": "a.png", "label": []}"#, "line 1: `label` is no text, number or null"),
    ] {
        lab.write("parts/rows.jsonl", line);
        let said = told(&lab, 2);
        assert!(said.contains(words), "{line}: {said}");
    }
}

#[test]
fn manifests_of_spreadsheets_are_read_or_their_encoding_is_named() {
    let lab = Lab::empty();
    picture(&lab.path("parts/a.png"), 40, 24);
    lab.write("parts/rows.csv", "path;class;label;caption\na.png;nut;good;a nut, in steel\n");
    lab.write("pipeline.yaml", &images("dataset: manifest, root: parts/rows.csv"));
    lab.run(&[]);
    assert_eq!(lab.sql(".vlmdiff", RECORDS), ["a.png,nut,train,false,good,\"a nut, in steel\""]);
    lab.write("parts/rows.csv", "Datei;label\na.png;good\n");
    let said = told(&lab, 2);
    let words = "parts/rows.csv has no column `path`, `file_name` or `image`, for which `columns.path` names another; it has Datei, \
                 label";
    assert!(said.contains(words), "{said}");
    lab.write("pipeline.yaml", &images("dataset: manifest, root: parts/rows.csv, columns: { path: Datei }"));
    lab.run(&[]);
    assert_eq!(lab.sql(".vlmdiff", RECORDS), ["a.png,parts,train,false,good,"]);
    std::fs::write(lab.path("parts/rows.csv"), b"\xff\xfep\0a\0").unwrap();
    let said = told(&lab, 2);
    assert!(said.contains("rows.csv: it is UTF-16; save it as UTF-8"), "{said}");
}

#[test]
fn folder_of_hugging_face_is_read_by_its_metadata() {
    let lab = Lab::empty();
    for file in ["train/a.png", "test/a.png", "test/b.png"] {
        picture(&lab.path("hub").join(file), 40, 24);
    }
    lab.write("hub/train/metadata.csv", "file_name,text\na.png,a nut\n");
    lab.write(
        "hub/test/metadata.jsonl",
        "{\"file_name\": \"a.png\", \"label\": 1}\n{\"file_name\": \"b.png\", \"label\": 0}\n",
    );
    lab.write("pipeline.yaml", &images("dataset: manifest, root: hub"));
    lab.run(&[]);
    let rows = [
        "test/a.png,hub,test,true,anomalous,",
        "test/b.png,hub,test,false,good,",
        "train/a.png,hub,train,false,good,a nut",
    ];
    assert_eq!(lab.sql(".vlmdiff", RECORDS), rows);
}

/// Writes a Parquet file as Hugging Face's library does: pictures as records of bytes and path, labels as numbers that
/// the metadata name.
pub(crate) fn hub_parquet(path: &Path, pictures: &[(&str, Option<&str>, i64)]) {
    use arrow::{
        array::{ArrayRef, BinaryArray, Int64Array, RecordBatch, StringArray, StructArray},
        datatypes::{DataType, Field, Fields, Schema},
    };
    let fields =
        Fields::from(vec![Field::new("bytes", DataType::Binary, true), Field::new("path", DataType::Utf8, true)]);
    let record = |files: Vec<Option<&str>>| -> ArrayRef {
        let bytes: Vec<Option<Vec<u8>>> = files.iter().map(|file| file.map(|file| fs::read(file).unwrap())).collect();
        let bytes = BinaryArray::from_iter(bytes);
        let paths = StringArray::from_iter(files.iter().map(|file| file.map(|_| "x.png")));
        Arc::new(StructArray::new(fields.clone(), vec![Arc::new(bytes), Arc::new(paths)], None))
    };
    let columns: Vec<ArrayRef> = vec![
        record(pictures.iter().map(|(image, _, _)| Some(*image)).collect()),
        record(pictures.iter().map(|(_, mask, _)| *mask).collect()),
        Arc::new(Int64Array::from_iter_values(pictures.iter().map(|(_, _, label)| *label))),
    ];
    let about = r#"{"info": {"features": {"label": {"names": ["bad", "good"], "_type": "ClassLabel"}}}}"#;
    let schema = Schema::new(vec![
        Field::new("image", DataType::Struct(fields.clone()), true),
        Field::new("mask", DataType::Struct(fields.clone()), true),
        Field::new("label", DataType::Int64, true),
    ]);
    let schema = Arc::new(schema.with_metadata([("huggingface".to_owned(), about.to_owned())].into()));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut writer =
        parquet::arrow::ArrowWriter::try_new(fs::File::create(path).unwrap(), schema.clone(), None).unwrap();
    writer.write(&RecordBatch::try_new(schema, columns).unwrap()).unwrap();
    writer.close().unwrap();
}

#[test]
fn pictures_in_a_parquet_file_are_read_as_those_in_files() {
    let lab = Lab::empty();
    let at = |name: &str| lab.path(name).to_str().unwrap().to_owned();
    for (name, width) in [("a.png", 40), ("b.png", 41), ("c.png", 42)] {
        picture(&lab.path(name), width, 24);
    }
    mask(&lab.path("m.png"), 41, 24, 10);
    let (a, b, c, m) = (at("a.png"), at("b.png"), at("c.png"), at("m.png"));
    hub_parquet(&lab.path("hub/data/train-00000-of-00001.parquet"), &[(&a, None, 1), (&c, None, 1)]);
    hub_parquet(&lab.path("hub/data/test-00000-of-00001.parquet"), &[(&c, None, 1), (&b, Some(&m), 0)]);
    lab.write("pipeline.yaml", &images("dataset: manifest, root: hub"));
    lab.run(&[]);
    let rows = [
        "data/test-00000-of-00001/000000,hub,test,false,good,42,",
        "data/test-00000-of-00001/000001,hub,test,true,anomalous,41,",
        "data/train-00000-of-00001/000000,hub,train,false,good,40,",
        "data/train-00000-of-00001/000001,hub,train,false,good,42,",
    ];
    assert_eq!(
        lab.sql(".vlmdiff", "select image_id, class, split, label, defect, width, uri from images order by 1"),
        rows
    );
    assert_eq!(
        lab.sql(".vlmdiff", "select image_id from images where array_max(mask) = 255"),
        ["data/test-00000-of-00001/000001"]
    );
    // One picture that is replaced is one row computed.
    hub_parquet(&lab.path("hub/data/train-00000-of-00001.parquet"), &[(&a, None, 1), (&b, None, 1)]);
    assert_eq!(computed(&lab.run(&[])), [("images", 1)]);
}

#[test]
fn unlabelled_photographs_are_judged_and_not_counted() {
    let lab = Lab::new(TOY);
    let toy = TOY.replace(
        "with: { dataset: folder, root: data, size: 32 }",
        "with: { dataset: folder, root: data, size: [32, 48], keep_aspect: pad, good: [train], bad: [test/scratch, test/missing_part], unlabelled: [test/good] }",
    );
    lab.write("pipeline.yaml", &toy);
    let said = told(&lab, 0);
    assert!(said.contains("the image has no label and counts in no metric: 2"), "{said}");
    assert_eq!(count(&lab, "select distinct n_images from metrics where class = 'gear'"), "2");
    assert_eq!(count(&lab, "select count(*) from anomaly_maps where array_length(map) = 32 * 48"), "6");
    let ended = lab.vlmdiff(&["report"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let page = fs::read_to_string(lab.path("report.html")).unwrap();
    assert!(page.contains("data-label=\"unlabelled\"") && page.contains("<option>unlabelled</option>"));
}
