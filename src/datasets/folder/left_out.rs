//! Files that look as if they belonged to a dataset but are not read.

use std::collections::HashSet;

use super::{
    super::record::{Files, LeftOut, Record},
    GOOD, below, captions, folders,
    names::{is_almost, is_foreign_picture, is_image, is_of_the_system},
};

pub(super) const DEAD: &str = "links lead nowhere, so that nothing is read of what they would lead to";
const OUTSIDE: &str = "pictures outside CLASS/train/good, CLASS/test/KIND and CLASS/ground_truth/KIND are not read";
pub(super) const FORMATS: &str = "files that end in none of png, jpg, jpeg, bmp, tif, tiff and webp are not read";
const OF_NORMAL: &str =
    "masks of normal images (ground_truth/good) are not read: a normal image has no anomalous pixel";
pub(super) const HIDDEN: &str = "hidden pictures and folders (their names begin with a dot) are not read";
const CAPTIONS: &str = "captions are read from CLASS/captions.jsonl alone";
const UNMASKED: &str =
    "anomalous images have no mask although other kinds of their class have: they count in image metrics alone";
const NORMAL_KINDS: &str =
    "kinds of defect count as anomalous whatever their name; normal images to test with belong in test/good";

/// Names of kinds that people use for normal images.
const NORMAL: [&str; 10] =
    ["normal", "ok", "okay", "none", "nominal", "defect_free", "no_defect", "defectless", "goods", "clean"];

/// The parts of a class that are read.
const PARTS: [&str; 3] = ["train", "test", "ground_truth"];

/// Groups the files of a dataset that are left out, by reason. `classes` are the prefixes of its classes, each with a
/// slash at its end or empty.
pub(super) fn left_out<'a>(files: &Files<'a>, classes: &[String], records: &[Record<'a>]) -> Vec<LeftOut<'a>> {
    let read: HashSet<&str> = records
        .iter()
        .flat_map(|record| [Some(record.image), record.mask_picture()])
        .flatten()
        .map(|at| at.path)
        .collect();
    let unread = files.paths.iter().copied().filter(|path| !read.contains(path));
    let mut groups = Groups::default();
    let dead: HashSet<&str> = files.dead.iter().copied().collect();
    let why = |path: &str| if dead.contains(path) { Some(DEAD) } else { why(path, classes) };
    unread.filter_map(|path| Some((why(path)?, path))).for_each(|(what, path)| groups.add(what, path));
    let hidden = files.hidden.iter().copied().filter(|path| is_missed_though_hidden(path, classes));
    hidden.for_each(|path| groups.add(HIDDEN, path));
    for prefix in classes {
        let of_class = || records.iter().filter(|record| record.image_id.starts_with(prefix.as_str()));
        let masked = of_class().any(|record| record.mask.is_some());
        let unmasked = of_class().filter(|record| masked && record.label == Some(true) && record.mask.is_none());
        unmasked.for_each(|record| groups.add(UNMASKED, record.image_id));
        let kinds = folders(files.paths, &format!("{prefix}test/")).into_iter();
        let is_normal = |kind: &&str| NORMAL.iter().any(|normal| kind == normal || is_almost(kind, normal));
        for kind in kinds.filter(is_normal) {
            let folder = format!("{prefix}test/{kind}/");
            below(files.paths, &folder).iter().for_each(|path| groups.add(NORMAL_KINDS, path));
        }
    }
    groups.0
}

/// Files that are left out, by reason.
#[derive(Default)]
pub(super) struct Groups<'a>(pub(super) Vec<LeftOut<'a>>);

impl<'a> Groups<'a> {
    pub(super) fn add(&mut self, what: &'static str, name: &'a str) {
        match self.0.iter_mut().find(|group| group.what == what) {
            Some(group) => group.names.push(name),
            None => self.0.push(LeftOut { what, names: vec![name] }),
        }
    }
}

/// Returns the reason to report a file that is not read; `None` if nobody expects it to be read.
fn why(path: &str, classes: &[String]) -> Option<&'static str> {
    let within = within(path, classes);
    let part = within.and_then(|within| within.split_once('/')).map_or("", |(part, _)| part);
    if is_of_the_system(path) {
        None
    } else if within.is_some_and(|within| within.starts_with(&format!("ground_truth/{GOOD}/"))) {
        is_image(path).then_some(OF_NORMAL)
    } else if is_image(path) {
        Some(OUTSIDE)
    } else if PARTS.contains(&part) || is_foreign_picture(path) {
        Some(FORMATS)
    } else {
        let is_captions = |name: &str| name != captions::FILE && name.to_lowercase().contains("caption");
        within.filter(|within| !within.contains('/') && is_captions(within)).map(|_| CAPTIONS)
    }
}

/// Returns a path relative to the class in which it lies.
fn within<'p>(path: &'p str, classes: &[String]) -> Option<&'p str> {
    classes.iter().find_map(|prefix| path.strip_prefix(prefix.as_str()))
}

/// Returns true for a hidden picture and for a hidden folder among pictures. Files that macOS keeps beside others
/// (`._000.png`) and folders that tools keep beside the classes (`.git`) are not missed.
fn is_missed_though_hidden(path: &str, classes: &[String]) -> bool {
    if path.ends_with('/') {
        let part = within(path, classes).and_then(|within| within.split_once('/')).map_or("", |(part, _)| part);
        return PARTS.contains(&part);
    }
    let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
    is_image(name) && !name.starts_with("._")
}
