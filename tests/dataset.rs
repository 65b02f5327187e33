//! Folders of pictures as users have them: files that are read, refused, or left out with a note.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use image::{GrayImage, Luma, RgbImage};

use crate::lab::{Lab, computed, toy_above};

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

fn picture(path: &Path, width: u32, height: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, 90])).save(path).unwrap();
}

/// Writes a mask with a square of this side in its middle.
fn mask(path: &Path, width: u32, height: u32, side: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let inside = |at: u32, of: u32| at.abs_diff(of / 2) < side.div_ceil(2);
    GrayImage::from_fn(width, height, |x, y| Luma([if inside(x, width) && inside(y, height) { 255 } else { 0 }]))
        .save(path)
        .unwrap();
}

/// Runs the pipeline, checks its exit code, and returns its messages.
fn told(lab: &Lab, code: i32) -> String {
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
fn turned_jpeg(path: &Path) {
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
