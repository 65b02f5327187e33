//! Data sets as they are published, and the check of their files.

use std::{fs, io::Write};

use image::{GrayImage, Luma};

use crate::{
    dataset::{picture, told},
    lab::{Lab, computed},
};

/// Makes a lab with a pipeline of images of 16x16 pixels that are read by these parameters.
fn lab(with: &str) -> Lab {
    let lab = Lab::empty();
    lab.write("pipeline.yaml", &pipeline(with));
    lab
}

fn pipeline(with: &str) -> String {
    format!("name: published\ntables:\n  images: {{ stage: ingest, with: {{ size: 16, root: data, {with} }} }}\n")
}

fn write(lab: &Lab, path: &str, content: &str) {
    fs::create_dir_all(lab.path(path).parent().unwrap()).unwrap();
    lab.write(path, content);
}

/// Writes a mask of 16x16 pixels of which the left half has a level.
fn mask(lab: &Lab, path: &str, level: u8) {
    let path = lab.path(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    GrayImage::from_fn(16, 16, |x, _| Luma([if x < 8 { level } else { 0 }])).save(path).unwrap();
}

const ROWS: &str = "select image_id, class, split, label, defect, mask[1] from images order by image_id";

const VISA: &str = "object,split,label,image,mask\n\
    candle,train,normal,candle/Data/Images/Normal/0000.JPG,\n\
    candle,test,normal,candle/Data/Images/Normal/0001.JPG,\n\
    candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png\n\
    candle,test,anomaly,candle/Data/Images/Anomaly/001.JPG,candle/Data/Masks/Anomaly/001.png\n";

/// Writes VisA with masks of these levels, the numbers of kinds of defects.
pub(crate) fn visa(lab: &Lab, levels: [u8; 2]) {
    write(lab, "data/split_csv/1cls.csv", VISA);
    for image in ["Normal/0000", "Normal/0001", "Anomaly/000", "Anomaly/001"] {
        picture(&lab.path(&format!("data/candle/Data/Images/{image}.JPG")), 16, 16);
    }
    for (mask_of, level) in ["000", "001"].into_iter().zip(levels) {
        mask(lab, &format!("data/candle/Data/Masks/Anomaly/{mask_of}.png"), level);
    }
}

#[test]
fn masks_of_visa_are_numbers_of_kinds_of_defects() {
    let lab = lab("dataset: visa");
    visa(&lab, [1, 3]);
    let said = told(&lab, 0);
    assert!(
        said.contains("classes of VisA without a folder here are left out: 11, such as capsules, cashew,"),
        "{said}"
    );
    let rows = [
        "candle/Data/Images/Anomaly/000.JPG,candle,test,true,anomalous,255",
        "candle/Data/Images/Anomaly/001.JPG,candle,test,true,anomalous,255",
        "candle/Data/Images/Normal/0000.JPG,candle,train,false,good,0",
        "candle/Data/Images/Normal/0001.JPG,candle,test,false,good,0",
    ];
    assert_eq!(lab.sql(".vlmdiff", ROWS), rows);
    // The authors' loader keeps the levels.
    let grey = "select mask_grey[1], mask[9], mask_grey[16] from images where label order by image_id";
    assert_eq!(lab.sql(".vlmdiff", grey), ["1,0,0", "3,0,0"]);
}

/// Writes Real-IAD: a defective product of which two views are taken, in one of which the defect is seen, and a normal one. Returns
/// the beginning of the paths of the former.
pub(crate) fn real_iad(lab: &Lab) -> &'static str {
    let ng = "NG/HS/S0001/usb_0001_NG_HS_";
    let of = |kind: &str, image: &str, mask: &str| {
        format!("{{\"anomaly_class\": \"{kind}\", \"image_path\": \"{image}\", \"mask_path\": {mask}}}")
    };
    let splits = |test: &[&String]| {
        let test: Vec<&str> = test.iter().map(|view| view.as_str()).collect();
        let train = of("OK", "OK/S0001/usb_0001_OK_C1_1.jpg", "null");
        format!("{{\"meta\": {{\"prefix\": \"usb/\"}}, \"train\": [{train}], \"test\": [{}]}}", test.join(", "))
    };
    let shown = of("HS", &format!("{ng}C1_1.jpg"), &format!("\"{ng}C1_1.png\""));
    let hidden = of("OK", &format!("{ng}C2_1.jpg"), "null");
    write(lab, "data/realiad_jsons/realiad_jsons/usb.json", &splits(&[&shown, &hidden]));
    write(lab, "data/realiad_jsons/realiad_jsons_sv/usb.json", &splits(&[&shown]));
    for image in [format!("{ng}C1_1.jpg"), format!("{ng}C2_1.jpg"), "OK/S0001/usb_0001_OK_C1_1.jpg".to_owned()] {
        picture(&lab.path(&format!("data/realiad_512/usb/{image}")), 16, 16);
    }
    mask(lab, &format!("data/realiad_512/usb/{ng}C1_1.png"), 255);
    ng
}

#[test]
fn views_of_real_iad_have_their_own_labels() {
    let lab = lab("dataset: real_iad");
    let ng = real_iad(&lab);
    lab.run(&[]);
    let rows = [
        format!("usb/{ng}C1_1.jpg,usb,test,true,HS,255"),
        format!("usb/{ng}C2_1.jpg,usb,test,false,good,0"),
        "usb/OK/S0001/usb_0001_OK_C1_1.jpg,usb,train,false,good,0".to_owned(),
    ];
    assert_eq!(lab.sql(".vlmdiff", ROWS), rows);
    // The view from above alone is fewer rows, which are known.
    let single = lab.run(&["--set", "images.real_iad={ views: single }"]);
    assert!(computed(&single).iter().all(|(_, rows)| *rows == 0), "{:?}", computed(&single));
    assert_eq!(lab.sql(".vlmdiff", ROWS), [&rows[0][..], &rows[2]]);
    // Another size has to be chosen, and has the same ids.
    fs::create_dir_all(lab.path("data/realiad_256")).unwrap();
    fs::rename(lab.path("data/realiad_512/usb"), lab.path("data/realiad_256/usb")).unwrap();
    picture(&lab.path("data/realiad_512/usb/OK/S0001/usb_0001_OK_C1_1.jpg"), 16, 16);
    assert!(told(&lab, 2).contains("data has photographs in realiad_256 and realiad_512; `real_iad.photographs`"));
    let moved = lab.run(&["--set", "images.real_iad={ photographs: realiad_256 }"]);
    assert!(computed(&moved).iter().all(|(_, rows)| *rows == 0), "{:?}", computed(&moved));
    let ended = lab.vlmdiff(&["run", "pipeline.yaml", "--set", "images.real_iad={ photographs: realiad_512 }"]);
    let words = format!(
        "files of data are missing or contradict others: realiad_512/usb/{ng}C1_1.jpg: it is listed and does not exist; \
         realiad_512/usb/{ng}C2_1.jpg: it is listed and does not exist; `vlmdiff data check PIPELINE` lists all"
    );
    assert!(ended.code == Some(2) && ended.stderr.contains(&words), "{}", ended.stderr);
}

/// Writes half of COCO: its pictures of 16x16 pixels by number, and annotations of (picture, category, segmentation). A
/// category has twice its number in the file, since COCO leaves numbers out.
pub(crate) fn coco(lab: &Lab, half: &str, pictures: &[u32], annotations: &[(u32, u32, &str)]) {
    let name = |number: &u32| format!("{number:012}.jpg");
    let images = pictures.iter().map(|number| {
        picture(&lab.path(&format!("data/{half}/{}", name(number))), 16, 16);
        format!("{{\"id\": {number}, \"file_name\": \"{}\", \"width\": 16, \"height\": 16}}", name(number))
    });
    let annotations = annotations.iter().enumerate().map(|(id, (image, category, segmentation))| {
        let category = 2 * (category + 1);
        format!(
            "{{\"id\": {id}, \"image_id\": {image}, \"category_id\": {category}, \"segmentation\": {segmentation}}}"
        )
    });
    let categories = (1..=80).map(|number| format!("{{\"id\": {}, \"name\": \"{number}\"}}", 2 * number));
    let list = |items: Vec<String>| items.join(", ");
    let instances = format!(
        "{{\"images\": [{}], \"annotations\": [{}], \"categories\": [{}]}}",
        list(images.collect()),
        list(annotations.collect()),
        list(categories.collect())
    );
    write(lab, &format!("data/annotations/instances_{half}.json"), &instances);
}

#[test]
fn masks_of_coco_ad_are_drawn_from_annotations() {
    let lab = lab("dataset: coco_ad, coco_ad: { split: 0 }");
    let square = "[[2.9, 1.2, 5.7, 1.9, 5.1, 3.99, 2.0, 3.0]]";
    coco(&lab, "train2017", &[1, 2, 3], &[(1, 20, square), (2, 0, square), (2, 20, square)]);
    // Pictures: a polygon, crowds in both forms of run lengths, an object of another split, and nothing.
    let annotations = [
        (5, 19, square),
        (6, 0, "{\"counts\": [0, 3, 253], \"size\": [16, 16]}"),
        (7, 0, "{\"counts\": \"03m7\", \"size\": [16, 16]}"),
        (7, 79, square),
        (8, 20, square),
    ];
    coco(&lab, "val2017", &[5, 6, 7, 8, 9], &annotations);
    let captions =
        "{\"annotations\": [{\"image_id\": 1, \"caption\": \"A dog.\"}, {\"image_id\": 1, \"caption\": \"Two.\"}]}";
    lab.write("data/annotations/captions_train2017.json", captions);
    lab.run(&[]);
    let rows = "select image_id, class, split, label, caption from images order by image_id";
    let expected = [
        "train2017/000000000001.jpg,split0,train,false,A dog. Two.",
        "val2017/000000000005.jpg,split0,test,true,",
        "val2017/000000000006.jpg,split0,test,true,",
        "val2017/000000000007.jpg,split0,test,true,",
        "val2017/000000000008.jpg,split0,test,false,",
    ];
    assert_eq!(lab.sql(".vlmdiff", rows), expected);
    // A pixel (x, y) is number 16 y + x + 1. Truncated, the polygon has the corners (2, 1), (5, 1), (5, 3) and (2, 3), which
    // belong to it: these are inside, and their neighbours are outside.
    let polygon = "select mask[19], mask[22], mask[54], mask[51], mask[3], mask[18], mask[23], mask[67] from images where image_id like '%5.jpg'";
    assert_eq!(lab.sql(".vlmdiff", polygon), ["255,255,255,255,0,0,0,0"]);
    // Three pixels down the first column.
    let crowd = "select mask[1], mask[17], mask[33], mask[49], mask[2], mask[19] from images where image_id like '%6.jpg' or image_id like '%7.jpg'";
    assert_eq!(lab.sql(".vlmdiff", crowd), ["255,255,255,0,0,0"; 2]);
    // The masks that annotations describe are remembered, and an image whose mask differs is computed again.
    assert_eq!(computed(&lab.run(&[])), [("images", 0); 0]);
    let other = lab.run(&["--set", "images.coco_ad={ split: 1 }"]);
    assert_eq!(computed(&other), [("images", 4)]);
    let labels = "select image_id, split, label from images order by image_id";
    let expected = [
        "val2017/000000000005.jpg,test,false",
        "val2017/000000000006.jpg,test,false",
        "val2017/000000000007.jpg,test,false",
        "val2017/000000000008.jpg,test,true",
    ];
    assert_eq!(lab.sql(".vlmdiff", labels), expected);
    fs::remove_file(lab.path("data/val2017/000000000008.jpg")).unwrap();
    assert!(told(&lab, 2).contains("val2017/000000000008.jpg: it is listed and does not exist"));
    lab.write("pipeline.yaml", &pipeline("dataset: coco_ad"));
    assert!(told(&lab, 2).contains("`coco_ad`: it is missing: the split of COCO-AD, such as { split: 0 }"));
}

#[test]
fn validation_of_mvtec_ad_2_calibrates() {
    let lab = lab("dataset: mvtec_ad_2, mvtec_ad_2: { test: [public, private] }");
    let images = ["train/good/0", "validation/good/0", "test_public/good/0", "test_public/bad/0", "test_private/0"];
    for image in images {
        picture(&lab.path(&format!("data/can/{image}.png")), 16, 16);
    }
    mask(&lab, "data/can/test_public/ground_truth/bad/0_mask.png", 255);
    lab.run(&[]);
    let rows = [
        "can/test_private/0.png,can,test,,,",
        "can/test_public/bad/0.png,can,test,true,bad,255",
        "can/test_public/good/0.png,can,test,false,good,0",
        "can/train/good/0.png,can,train,false,good,0",
        "can/validation/good/0.png,can,calibration,false,good,0",
    ];
    assert_eq!(lab.sql(".vlmdiff", ROWS), rows);
}

#[test]
fn root_that_is_another_data_set_is_told_what_was_expected() {
    let lab = lab("dataset: visa");
    fs::create_dir_all(lab.path("data")).unwrap();
    for (with, words) in [
        (
            "dataset: visa",
            "data is not VisA as published: expected split_csv/1cls.csv and CLASS/Data/Images/Normal/*.JPG in it",
        ),
        (
            "dataset: real_iad",
            "data is not Real-IAD as published: expected realiad_jsons/CLASS.json and realiad_512/CLASS/OK/",
        ),
        (
            "dataset: coco_ad, coco_ad: { split: 3 }",
            "data is not COCO 2017 as published: expected annotations/instances_train2017.json",
        ),
        ("dataset: mvtec_ad_2", "data is not MVTec AD 2 as published: expected CLASS/train/good/*.png in it"),
        ("dataset: mvtec", "no class in data: expected data/CLASS/train/good/*.png"),
        ("dataset: mvtec, good: [ok]", "`good`: it belongs to `dataset: folder`"),
        ("dataset: visa, coco_ad: { split: 0 }", "`coco_ad`: it belongs to `dataset: coco_ad`"),
        ("dataset: coco_ad, coco_ad: { split: 4 }", "`coco_ad.split`"),
    ] {
        lab.write("pipeline.yaml", &pipeline(with));
        let said = told(&lab, 2);
        assert!(said.contains(words), "{with}: {said}");
    }
    fs::remove_dir(lab.path("data")).unwrap();
    lab.write("pipeline.yaml", &pipeline("dataset: visa"));
    let said = told(&lab, 2);
    assert!(said.contains("; expected the folder or URL of VisA, with split_csv/1cls.csv"), "{said}");
}

/// Puts the files of a folder below `data` into a ZIP file beside it, and removes the folder.
fn zip(lab: &Lab, folder: &str, archive: &str) {
    let mut writer = zip::ZipWriter::new(fs::File::create(lab.path(&format!("data/{archive}"))).unwrap());
    for file in fs::read_dir(lab.path(&format!("data/{folder}"))).unwrap() {
        let file = file.unwrap();
        let name = format!("{folder}/{}", file.file_name().to_str().unwrap());
        writer.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(&fs::read(file.path()).unwrap()).unwrap();
    }
    writer.finish().unwrap();
    fs::remove_dir_all(lab.path(&format!("data/{folder}"))).unwrap();
}

#[test]
fn archives_are_read_in_place() {
    let visa_lab = lab("dataset: visa");
    visa(&visa_lab, [1, 3]);
    visa_lab.run(&[]);
    let rows = visa_lab.sql(".vlmdiff", ROWS);
    let mut archive = tar::Builder::new(fs::File::create(visa_lab.path("VisA.tar")).unwrap());
    archive.append_dir_all(".", visa_lab.path("data")).unwrap();
    archive.finish().unwrap();
    fs::remove_dir_all(visa_lab.path("data")).unwrap();
    // Nothing has changed but the place.
    let set = ["--set", "images.root=VisA.tar"];
    assert_eq!(computed(&visa_lab.run(&set)), [("images", 0); 0]);
    assert_eq!(computed(&visa_lab.run(&[&set[..], &["--force", "images"]].concat())), [("images", 4)]);
    assert_eq!(visa_lab.sql(".vlmdiff", ROWS), rows);
    let uri = visa_lab.sql(".vlmdiff", "select uri from images order by image_id limit 1");
    assert_eq!(uri, ["VisA.tar/candle/Data/Images/Anomaly/000.JPG"]);
    let checked = visa_lab.vlmdiff(&[&["data", "check", "pipeline.yaml"], &set[..]].concat());
    assert!(checked.code == Some(0) && checked.stdout.ends_with("  no fault\n"), "{}", checked.stdout);
    fs::rename(visa_lab.path("VisA.tar"), visa_lab.path("VisA.tar.gz")).unwrap();
    let ended = visa_lab.vlmdiff(&["run", "pipeline.yaml", "--set", "images.root=VisA.tar.gz"]);
    let words = "cannot read VisA.tar.gz: it is compressed as a whole, so that its members have no places; `gunzip VisA.tar.gz` makes";
    assert!(ended.code == Some(2) && ended.stderr.contains(words), "{}", ended.stderr);

    let coco_lab = lab("dataset: coco_ad, coco_ad: { split: 0 }");
    let square = "[[2, 1, 5, 1, 5, 3, 2, 3]]";
    coco(&coco_lab, "train2017", &[1], &[(1, 20, square)]);
    coco(&coco_lab, "val2017", &[5, 6], &[(5, 19, square), (6, 20, square)]);
    coco_lab.run(&[]);
    zip(&coco_lab, "annotations", "annotations_trainval2017.zip");
    zip(&coco_lab, "val2017", "val2017.zip");
    assert_eq!(computed(&coco_lab.run(&[])), [("images", 0); 0]);
    // Without what was remembered, the annotations are read out of their archive.
    fs::remove_dir_all(coco_lab.path("cache")).unwrap();
    assert_eq!(computed(&coco_lab.run(&["--force", "images"])), [("images", 3)]);
    let places = [
        "data/train2017/000000000001.jpg,0",
        "data/val2017.zip/val2017/000000000005.jpg,255",
        "data/val2017.zip/val2017/000000000006.jpg,0",
    ];
    assert_eq!(coco_lab.sql(".vlmdiff", "select uri, mask[19] from images order by image_id"), places);
}

#[test]
fn check_of_data_lists_every_fault() {
    let lab = lab("dataset: visa");
    visa(&lab, [1, 3]);
    let sound = lab.vlmdiff(&["data", "check", "pipeline.yaml"]);
    assert_eq!(sound.code, Some(0), "{}", sound.stdout);
    let words = [
        "images: visa, data",
        "                          found  the paper",
        "  classes                     1         12",
        "  train, normal               1       8659",
        "  test, normal                1        962",
        "  test, anomalous             2       1200",
        "  the paper prints the two numbers of test images of this data set",
    ];
    assert!(sound.stdout.starts_with(&words.join("\n")), "{}", sound.stdout);
    assert!(sound.stdout.ends_with("  no fault\n"), "{}", sound.stdout);
    fs::remove_file(lab.path("data/candle/Data/Images/Normal/0001.JPG")).unwrap();
    lab.write("data/candle/Data/Images/Normal/0000.JPG", "x");
    picture(&lab.path("data/candle/Data/Masks/Anomaly/000.png"), 16, 8);
    mask(&lab, "data/candle/Data/Masks/Anomaly/001.png", 0);
    let ended = lab.vlmdiff(&["data", "check", "pipeline.yaml"]);
    assert_eq!(ended.code, Some(2), "{}", ended.stdout);
    for words in [
        "  candle/Data/Images/Normal/0001.JPG: it is listed and does not exist\n",
        "  candle/Data/Images/Normal/0000.JPG: not an image: it begins with the text \"x\"",
        "  candle/Data/Masks/Anomaly/000.png: it has 16x8 pixels, and its photograph 16x16 pixels\n",
        "  candle/Data/Masks/Anomaly/001.png: it is the mask of an anomalous photograph and has no anomalous pixel\n",
        "  4 faults\n",
    ] {
        assert!(ended.stdout.contains(words), "{words}\n{}", ended.stdout);
    }
    let quick = lab.vlmdiff(&["data", "check", "pipeline.yaml", "--quick"]);
    assert!(quick.code == Some(2) && quick.stdout.contains("  3 faults\n"), "{}", quick.stdout);
}

#[test]
fn check_of_data_counts_views_and_splits_beside_the_paper() {
    let real_iad_lab = lab("dataset: real_iad");
    real_iad(&real_iad_lab);
    let coco_lab = lab("dataset: coco_ad, coco_ad: { split: 0 }");
    let square = "[[2, 1, 5, 1, 5, 3, 2, 3]]";
    coco(&coco_lab, "train2017", &[1], &[(1, 20, square)]);
    coco(&coco_lab, "val2017", &[5, 6], &[(5, 19, square), (6, 20, square)]);
    let swapped =
        "the paper prints the two numbers of test images of this data set in each other's place; these are right";
    for (lab, dataset, [classes, train, normal, anomalous], note) in [
        (real_iad_lab, "real_iad", ["         30", "36465", "63256", "51329"], String::new()),
        (coco_lab, "coco_ad", ["", "30438", " 1291", " 3661"], format!("  {swapped}\n")),
    ] {
        let expected = format!(
            "images: {dataset}, data\n                          found  the paper\n  classes                     1{classes}\n  \
             train, normal               1      {train}\n  test, normal                1      {normal}\n  \
             test, anomalous             1      {anomalous}\n{note}  no fault\n"
        );
        assert_eq!(lab.vlmdiff(&["data", "check", "pipeline.yaml"]).stdout, expected);
    }
}
