use super::*;

/// A path that is a link to nothing in every listing that has it.
const DEAD: [&str; 1] = ["washer"];

/// Lists files below ROOT, which all hold this text.
fn with_listing<T>(paths: &[&str], text: &str, use_it: impl FnOnce(Result<Listing<'_>, DatasetError>) -> T) -> T {
    let (mut hidden, mut paths): (Vec<&str>, Vec<&str>) =
        paths.iter().copied().partition(|path| path.split('/').any(|name| name.starts_with('.')));
    paths.sort_unstable();
    hidden.sort_unstable();
    let read = |_: &str| Ok(text.as_bytes().to_vec());
    use_it(list(&Files {
        mean: "mean",
        root: "ROOT/",
        name: "root",
        paths: &paths,
        hidden: &hidden,
        dead: &DEAD,
        read: &read,
    }))
}

fn with_list<T>(paths: &[&str], text: &str, use_it: impl FnOnce(Result<Vec<Record<'_>>, DatasetError>) -> T) -> T {
    with_listing(paths, text, |listed| use_it(listed.map(|listed| listed.records)))
}

fn failure(paths: &[&str], text: &str) -> String {
    with_listing(paths, text, |listed| listed.unwrap_err().to_string())
}

/// Returns the faults with their paths.
fn faults(paths: &[&str]) -> Vec<String> {
    with_listing(paths, "", |listed| {
        let faults = listed.unwrap().faults.into_iter();
        faults.map(|Fault { path, what }| format!("{path}: {what}")).collect()
    })
}

/// Returns the images with masks, and these masks.
fn masked(paths: &[&str]) -> Vec<(String, String)> {
    with_list(paths, "", |listed| {
        let pairs = listed
            .unwrap()
            .into_iter()
            .filter_map(|r| Some((r.image_id.to_owned(), r.mask_picture()?.path.to_owned())));
        pairs.collect()
    })
}

/// Returns the files that are left out: the reason, the count, and the first name.
fn left_out(paths: &[&str]) -> Vec<(&'static str, usize, String)> {
    with_listing(paths, "", |listed| {
        let left_out = listed.unwrap().left_out.into_iter();
        left_out.map(|group| (group.what, group.names.len(), group.names[0].to_owned())).collect()
    })
}

const NUT: [&str; 6] = [
    "nut/train/good/b.PNG",
    "nut/train/good/a.jpeg",
    "nut/test/good/0.png",
    "nut/test/bent/0.png",
    "nut/test/bent/1.tif",
    "nut/test/rust/0.webp",
];

#[test]
fn images_are_listed_by_id_with_their_masks() {
    let masks = ["nut/ground_truth/bent/0_mask.png", "nut/ground_truth/bent/1.BMP", "nut/ground_truth/good/0.png"];
    let ignored = ["notes.txt", "nut/train/good/Thumbs.db", "readme/license.png"];
    with_list(&[&NUT[..], &masks, &ignored].concat(), "", |listed| {
        let listed = listed.unwrap();
        let rows: Vec<(&str, &str, bool, &str, Option<&str>)> = listed
            .iter()
            .map(|r| (r.image_id, r.split, r.label.unwrap(), r.defect.unwrap(), r.mask_picture().map(|mask| mask.path)))
            .collect();
        let expected = [
            ("nut/test/bent/0.png", "test", true, "bent", Some("nut/ground_truth/bent/0_mask.png")),
            ("nut/test/bent/1.tif", "test", true, "bent", Some("nut/ground_truth/bent/1.BMP")),
            ("nut/test/good/0.png", "test", false, "good", None),
            ("nut/test/rust/0.webp", "test", true, "rust", None),
            ("nut/train/good/a.jpeg", "train", false, "good", None),
            ("nut/train/good/b.PNG", "train", false, "good", None),
        ];
        assert_eq!(rows, expected);
        assert!(listed.iter().all(|r| r.class == "nut"));
    });
}

#[test]
fn a_root_may_be_one_class() {
    let nut = NUT.map(|path| path.strip_prefix("nut/").unwrap());
    with_list(&nut, "", |listed| {
        let listed = listed.unwrap();
        assert_eq!(listed.len(), NUT.len());
        assert_eq!((listed[0].image_id, listed[0].class), ("test/bent/0.png", "root"));
    });
}

/// `-` sorts before `/`, so the paths of `a-b` come before those of `a`.
#[test]
fn classes_whose_names_begin_alike_are_kept_apart() {
    let paths = ["a/train/good/0.png", "a-b/train/good/0.png", "a/test/c/0.png", "a/test/c-d/0.png", "a.png"];
    with_list(&paths, "", |listed| {
        let listed = listed.unwrap();
        let rows: Vec<_> = listed.iter().map(|r| (r.class, r.defect.unwrap())).collect();
        assert_eq!(rows, [("a-b", "good"), ("a", "c-d"), ("a", "c"), ("a", "good")]);
    });
}

#[test]
fn captions_are_assigned_by_the_path_of_the_image() {
    let captions = "{\"image\": \"train/good/a.jpeg\", \"caption\": \"a hex nut\", \"model\": \"x\"}\r\n\n";
    let paths = [&NUT[..], &["nut/captions.jsonl"]].concat();
    with_list(&paths, captions, |listed| {
        let captioned: Vec<_> = listed.unwrap().into_iter().filter_map(|r| Some((r.image_id, r.caption?))).collect();
        assert_eq!(captioned, [("nut/train/good/a.jpeg", "a hex nut".into())]);
    });
    let wrong = |text: &str, starts: &str| {
        let message = failure(&paths, text);
        assert!(message.starts_with(starts), "{message}");
    };
    wrong(&format!("{captions}{{\"image\": 3}}"), "ROOT/nut/captions.jsonl:3: bad caption (invalid type");
    wrong(
        &captions.replace("a.jpeg", "z.png"),
        "ROOT/nut/captions.jsonl:1: no image \"train/good/z.png\" in this class",
    );
    wrong(&captions.repeat(2), "ROOT/nut/captions.jsonl:3: \"train/good/a.jpeg\" already has a caption in line 1");
}

#[test]
fn errors_name_the_layout_that_would_work() {
    assert_eq!(
        failure(&["pictures/a.png"], ""),
        "no class in ROOT: expected ROOT/CLASS/train/good/*.png and ROOT/CLASS/test/KIND/*.png, \
         or a folder that is itself one class; folders with other names are given by `good`, `bad` and `unlabelled`"
    );
    assert_eq!(
        failure(&["nut/test/bent/0.png"], ""),
        "no training images in ROOT/nut/train/good: expected normal images there (png jpg jpeg bmp tif tiff webp)"
    );
    assert_eq!(
        failure(&["nut/train/good/0.png", "nut/train/bad/0.png"], ""),
        "ROOT/nut/train/bad: training images are all normal and belong in train/good, anomalous ones in test/KIND"
    );
}

#[test]
fn missing_masks_and_images_are_faults_that_name_the_expected_path() {
    let with = |files: &[&str]| faults(&[&NUT, files].concat());
    let both = ["nut/ground_truth/bent/0_mask.png", "nut/ground_truth/bent/1_mask.png"];
    let unmasked = "nut/test/bent/1.tif: it has no mask; expected ROOT/nut/ground_truth/bent/1_mask.png (any image extension, \
         _mask may be left out)";
    assert_eq!(with(&both[..1]), [unmasked]);
    let of_nothing = |mask: &str, image: &str| {
        format!(
            "nut/ground_truth/{mask}: it is the mask of no image; expected ROOT/nut/test/{image} (any image extension)"
        )
    };
    // All of them are found.
    let misspelt = of_nothing("brnt/0_mask.png", "brnt/0.png");
    let found = with(&[both[0], "nut/ground_truth/bent/7_mask.png", "nut/ground_truth/brnt/0_mask.png"]);
    assert_eq!(found, [misspelt, of_nothing("bent/7_mask.png", "bent/7.png"), unmasked.to_owned()]);
    assert_eq!(with(&both), [""; 0]);
    assert_eq!(
        failure(&[&NUT[..], &both, &["nut/ground_truth/bent/1.png"]].concat(), ""),
        "two masks for ROOT/nut/test/bent/1: ROOT/nut/ground_truth/bent/1.png and \
         ROOT/nut/ground_truth/bent/1_mask.png; keep one"
    );
}

#[test]
fn images_of_deeper_folders_are_listed_with_their_masks() {
    let deeper = [
        "nut/train/good/batch2/a.jpeg",
        "nut/test/rust/line2/b/0.webp",
        "nut/ground_truth/rust/0_mask.png",
        "nut/ground_truth/rust/line2/b/0_mask.png",
    ];
    let paths = [&NUT[..], &deeper].concat();
    with_list(&paths, "", |listed| assert_eq!(listed.unwrap().len(), NUT.len() + 2));
    let pair = |image: &str, mask: &str| (image.to_owned(), mask.to_owned());
    let pairs = [pair("nut/test/rust/0.webp", deeper[2]), pair("nut/test/rust/line2/b/0.webp", deeper[3])];
    assert_eq!(masked(&paths), pairs);
    let unmasked = "nut/test/rust/line2/b/0.webp: it has no mask; expected ROOT/nut/ground_truth/rust/line2/b/0_mask.png (any image \
         extension, _mask may be left out)";
    assert_eq!(faults(&paths[..paths.len() - 1]), [unmasked]);
    let flat = [&NUT[..], &deeper[2..3], &["nut/ground_truth/rust/line3/7_mask.png"]].concat();
    let of_nothing = "nut/ground_truth/rust/line3/7_mask.png: it is the mask of no image; expected ROOT/nut/test/rust/line3/7.png (any \
         image extension)";
    assert_eq!(faults(&flat), [of_nothing]);
}

#[test]
fn masks_below_images_are_refused() {
    for folder in ["Masks", "ground-truth", "gt", "deep/labels"] {
        let mask = format!("nut/test/bent/{folder}/0.png");
        let told = format!(
            "ROOT/nut/test/bent/{folder} is called as a folder of masks and lies among images; masks belong in \
             ground_truth/KIND"
        );
        assert_eq!(failure(&[&NUT[..], &[&mask]].concat(), ""), told);
    }
}

#[test]
fn names_that_are_almost_reserved_are_refused() {
    for (folder, meant) in [
        ("nut/test/Good", "good"),
        ("nut/test/good ", "good"),
        ("nut/train/GOOD", "good"),
        ("nut/Test", "test"),
        ("nut/Ground Truth", "ground_truth"),
        ("bolt/Train", "train"),
    ] {
        let picture = format!("{folder}/bent/0.png");
        let told = format!(
            "ROOT/{folder} differs from `{meant}` by case, spaces or punctuation alone; rename it to `{meant}`, or to \
             something else if it is another thing"
        );
        assert_eq!(failure(&[&NUT[..], &[&picture]].concat(), ""), told);
    }
    let told = failure(&["Train/good/0.png", "Test/good/0.png"], "");
    assert!(told.starts_with("ROOT/Test differs from `test`"), "{told}");
    // A class may be called `Test`.
    with_list(&["Test/train/good/0.png"], "", |listed| assert_eq!(listed.unwrap()[0].class, "Test"));
}

#[test]
fn a_class_called_mean_is_refused_when_it_is_listed() {
    let told = "ROOT/mean: a class `mean` would be taken for the mean over classes; rename the folder";
    assert_eq!(failure(&[&NUT[..], &["mean/train/good/0.png"]].concat(), ""), told);
}

#[test]
fn two_images_with_one_stem_and_one_mask_are_ambiguous() {
    let bmp = "nut/test/bent/0.bmp";
    let paths = [&NUT[..], &[bmp, "nut/ground_truth/bent/0_mask.png", "nut/ground_truth/bent/1_mask.png"]].concat();
    assert_eq!(
        failure(&paths, ""),
        "ROOT/nut/ground_truth/bent/0_mask.png could be the mask of ROOT/nut/test/bent/0.bmp and of \
         ROOT/nut/test/bent/0.png; a mask belongs to one image, so give them different names"
    );
    // Without ground truth nothing is ambiguous.
    with_list(&paths[..7], "", |listed| assert_eq!(listed.unwrap().len(), 7));
}

#[test]
fn images_named_like_masks_get_masks_of_their_own() {
    let images = ["nut/train/good/0.png", "nut/test/bent/0.png", "nut/test/bent/0_mask.png"];
    let with = |masks: [&'static str; 2]| [&images[..], &masks].concat();
    for masks in [
        ["nut/ground_truth/bent/0_mask.png", "nut/ground_truth/bent/0_mask_mask.png"],
        ["nut/ground_truth/bent/0.png", "nut/ground_truth/bent/0_mask.png"],
    ] {
        let pairs = masked(&with(masks));
        let pair = |image: usize, mask: usize| (images[image].to_owned(), masks[mask].to_owned());
        assert_eq!(pairs, [pair(1, 0), pair(2, 1)]);
    }
    let told = failure(&[&images[..], &["nut/ground_truth/bent/0_mask.png"]].concat(), "");
    assert!(
        told.contains("could be the mask of ROOT/nut/test/bent/0_mask.png and of ROOT/nut/test/bent/0.png"),
        "{told}"
    );
}

#[test]
fn names_are_compared_in_composed_form() {
    let (typed, copied) = ("gr\u{f6}\u{df}e", "gro\u{308}\u{df}e");
    let image = format!("nut/test/{copied}/{copied}.png");
    let mask = format!("nut/ground_truth/{typed}/{typed}_mask.png");
    assert_eq!(masked(&[&NUT[..], &[&image, &mask]].concat()), [(image.clone(), mask)]);
    let caption = format!("{{\"image\": \"test/{typed}/{typed}.png\", \"caption\": \"x\"}}");
    with_list(&[&NUT[..], &[&image, "nut/captions.jsonl"]].concat(), &caption, |listed| {
        let captioned: Vec<_> = listed.unwrap().into_iter().filter(|r| r.caption.is_some()).collect();
        assert_eq!(captioned.iter().map(|r| r.image_id).collect::<Vec<_>>(), [image.as_str()]);
    });
}

#[test]
fn files_that_are_not_read_are_counted_with_their_reason() {
    assert_eq!(
        left_out(&[&NUT[..], &["notes.txt", "nut/license.txt", "nut/train/good/Thumbs.db", ".git/"]].concat()),
        []
    );
    let one = |path: &str| {
        let left_out = left_out(&[&NUT[..], &[path]].concat());
        let [(what, 1, name)] = &left_out[..] else { panic!("{path}: {left_out:?}") };
        assert_eq!(name, path);
        *what
    };
    let outside = "pictures outside CLASS/train/good, CLASS/test/KIND and CLASS/ground_truth/KIND are not read";
    for path in ["a.png", "washer/good/0.png", "nut/validation/good/0.png", "nut/train/0.png", "nut/test/0.png"] {
        assert_eq!(one(path), outside);
    }
    for path in ["nut/train/good/a.heic", "nut/test/bent/0", "nut/test/bent/0.json", "phone/IMG_1.HEIC"] {
        assert!(one(path).starts_with("files that end in none of png, "), "{path}");
    }
    for path in ["nut/train/good/.a.png", "nut/test/bent/.more/"] {
        assert!(one(path).starts_with("hidden pictures and folders"), "{path}");
    }
    assert!(one("washer").starts_with("links lead nowhere"));
    assert!(one("nut/ground_truth/good/0.png").starts_with("masks of normal images"));
    assert!(one("nut/Captions.JSONL").starts_with("captions are read from"));
    assert!(one("nut/test/OK/0.png").starts_with("kinds of defect count as anomalous whatever"));
    let masks = ["nut/ground_truth/bent/0_mask.png", "nut/ground_truth/bent/1_mask.png"];
    let left_out = left_out(&[&NUT[..], &masks].concat());
    let [(what, 1, name)] = &left_out[..] else { panic!("{left_out:?}") };
    assert_eq!((what.split(' ').next(), name.as_str()), (Some("anomalous"), "nut/test/rust/0.webp"));
}
