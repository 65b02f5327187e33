use super::*;

use image::imageops::{self, FilterType};

fn item(class: Class, defect: Option<Defect>, index: u32) -> Item {
    Item { class, split: if defect.is_some() { Split::Test } else { Split::Train }, index, defect }
}

fn every_kind() -> impl Iterator<Item = (Class, Option<Defect>)> {
    let labels = || [None].into_iter().chain(Defect::ALL.map(Some));
    Class::ALL.into_iter().flat_map(move |class| labels().map(move |defect| (class, defect)))
}

/// Returns the mean absolute difference of two pictures, from 0 to 1.
fn difference(a: &RgbImage, b: &RgbImage) -> f32 {
    let sum: u32 = a.as_raw().iter().zip(b.as_raw()).map(|(&a, &b)| u32::from(a.abs_diff(b))).sum();
    sum as f32 / a.as_raw().len() as f32 / 255.0
}

#[test]
fn items_come_class_by_class_and_are_unique() {
    let items = items(&["gear", "wood"], 3, 2, 1).unwrap();
    let ids: Vec<String> = items.iter().map(Item::image_id).collect();
    assert_eq!(ids.len(), 2 * (3 + 2 + 6));
    assert_eq!(
        ids[..6],
        [
            "gear/train/good/000",
            "gear/train/good/001",
            "gear/train/good/002",
            "gear/test/good/000",
            "gear/test/good/001",
            "gear/test/scratch/000"
        ]
    );
    assert_eq!(ids[11], "wood/train/good/000");
    let mut unique = ids.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), ids.len());
}

#[test]
fn an_unknown_class_is_an_error_that_names_the_known_ones() {
    let message = items(&["gears"], 1, 0, 0).unwrap_err().to_string();
    assert_eq!(message, "unknown synthetic class `gears`; there are fabric, wood, tile, gear, capsule, connector");
    assert_eq!(CLASSES.len(), Class::ALL.len());
    assert!(Class::ALL.iter().all(|class| class.name().parse::<Class>().unwrap() == *class));
}

#[test]
fn a_picture_is_a_function_of_seed_and_name() {
    for (class, defect) in every_kind() {
        let (one, two) = (item(class, defect, 4), item(class, defect, 5));
        assert_eq!(render(&one, 1, 64), render(&one, 1, 64), "{}", one.image_id());
        assert_ne!(render(&one, 1, 64).image, render(&one, 2, 64).image, "{}", one.image_id());
        assert_ne!(render(&one, 1, 64).image, render(&two, 1, 64).image, "{}", one.image_id());
    }
}

/// The digest is that of the pictures on the machine where they were first rendered.
#[test]
fn pictures_are_the_same_on_every_machine() {
    let mut digest = 0xcbf2_9ce4_8422_2325_u64;
    for (class, defect) in every_kind() {
        for &byte in render(&item(class, defect, 0), 0, 64).image.as_raw() {
            digest = (digest ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    assert_eq!(digest, 0x2e9d_db6c_cec0_230c, "{digest:#018x}");
}

#[test]
fn masks_cover_the_defect_and_nothing_else() {
    for (class, defect) in every_kind() {
        for index in 0..20 {
            let item = item(class, defect, index);
            let mask = render(&item, 5, 96).mask;
            assert!(mask.pixels().all(|pixel| [0, 255].contains(&pixel.0[0])));
            let share = mask.pixels().filter(|pixel| pixel.0[0] == 255).count() as f32 / (96.0 * 96.0);
            match defect {
                None => assert_eq!(share, 0.0, "{}", item.image_id()),
                Some(_) => assert!((0.002..0.07).contains(&share), "{}: {share}", item.image_id()),
            }
        }
    }
}

#[test]
fn pictures_of_two_sizes_show_the_same_scene() {
    for (class, defect) in every_kind() {
        let item = item(class, defect, 1);
        let (small, large) = (render(&item, 3, 64), render(&item, 3, 256));
        assert_eq!(small.caption, large.caption);
        let reduced = imageops::resize(&large.image, 64, 64, FilterType::Triangle);
        let off = difference(&small.image, &reduced);
        let other = difference(&small.image, &render(&Item { index: 2, ..item }, 3, 64).image);
        assert!(off < 0.035 && off < 0.5 * other, "{}: {off} against {other} of another scene", item.image_id());
    }
}

#[test]
fn captions_are_short_and_varied_and_do_not_name_the_defect() {
    for class in Class::ALL {
        let mut captions = std::collections::BTreeSet::new();
        for (index, defect) in (0..12).zip([None].into_iter().chain(Defect::ALL.map(Some)).cycle()) {
            let caption = render(&item(class, defect, index), 0, 64).caption;
            // A CLIP token is a common word or a piece of a rare one; these words are common.
            assert!(caption.split_whitespace().count() <= 36, "{caption}");
            // A flawless gear has holes too.
            let told =
                |defect: &Defect| caption.contains(defect.name()) && (class, *defect) != (Class::Gear, Defect::Hole);
            assert!(!Defect::ALL.iter().any(told), "{caption}");
            captions.insert(caption);
        }
        assert!(captions.len() >= 5, "{captions:?}");
    }
}

#[test]
fn a_written_tree_holds_the_rendered_pictures_masks_and_captions() {
    let dir = tempfile::tempdir().unwrap();
    let items = items(&["capsule"], 2, 1, 1).unwrap();
    write_mvtec(dir.path(), &items, 9, 64).unwrap();
    let root = dir.path().join("capsule");
    let lines = std::fs::read_to_string(root.join("captions.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), items.len());
    for (item, line) in items.iter().zip(lines.lines()) {
        let sample = render(item, 9, 64);
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let name = line["image"].as_str().unwrap();
        assert_eq!(format!("capsule/{name}"), item.image_id() + ".png");
        assert_eq!(line["caption"], sample.caption);
        assert_eq!(image::open(root.join(name)).unwrap().to_rgb8(), sample.image);
        let mask = root.join("ground_truth").join(item.label()).join(format!("{:03}_mask.png", item.index));
        match item.defect {
            Some(_) => assert_eq!(image::open(mask).unwrap().to_luma8(), sample.mask),
            None => assert!(!mask.exists()),
        }
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = write_mvtec(&file, &items(&["gear"], 1, 0, 0).unwrap(), 0, 64).unwrap_err();
    assert!(error.to_string().starts_with(&format!("cannot write {}", file.display())), "{error}");
}
