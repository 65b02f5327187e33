//! Folders whose names say whether their photographs are good:
//!
//! ```text
//! ROOT/ok/000.png             (or ROOT/CLASS/ok/000.png) normal images to learn from, if `ok` is named as good
//! ROOT/scratch/000.png        anomalous images to test with, if `scratch` is named as bad
//! ROOT/new/000.png            images to judge, if `new` is named as unlabelled
//! ROOT/captions.jsonl         (optional) {"image": "ok/000.png", "caption": "..."}
//! ```
//!
//! The name `.` stands for pictures that lie directly in ROOT or CLASS.

use std::collections::HashSet;

use super::{
    super::record::{DatasetError, Files, Listing, PicturePlace, Record},
    GOOD, below,
    captions::Captions,
    folders,
    left_out::{DEAD, FORMATS, Groups, HIDDEN},
    names::{is_foreign_picture, is_image, is_of_masks, is_of_the_system},
    reject_mean,
};

const OUTSIDE: &str = "pictures outside the folders that `good`, `bad` and `unlabelled` name are not read";
const EMPTY: &str = "folders that `good`, `bad` or `unlabelled` names have no pictures";

/// The name of the folder itself.
const ITSELF: &str = ".";

/// The names of folders, by what their photographs are.
#[derive(Clone, Copy, Debug)]
pub struct Labelled<'a> {
    /// Folders of normal images, which are learned from.
    pub good: &'a [String],
    /// Folders of anomalous images. The name is the kind of defect.
    pub bad: &'a [String],
    /// Folders of images to judge.
    pub unlabelled: &'a [String],
}

impl<'a> Labelled<'a> {
    /// Returns every name with the label of its photographs.
    fn names(self) -> impl Iterator<Item = (&'a str, Option<bool>)> {
        let labelled = [(self.good, Some(false)), (self.bad, Some(true)), (self.unlabelled, None)];
        labelled.into_iter().flat_map(|(names, label)| names.iter().map(move |name| (bare(name), label)))
    }

    /// Returns a name that stands twice.
    pub fn repeated(self) -> Option<&'a str> {
        let mut seen = HashSet::new();
        self.names().map(|(name, _)| name).find(|name| !seen.insert(*name))
    }

    /// Returns the name of the folder in which a path below a class lies, the longest of several, and its label.
    fn folder_of(self, path: &str) -> Option<(&'a str, Option<bool>)> {
        let holds = |name: &str| match path.strip_prefix(name) {
            Some(rest) => rest.starts_with('/'),
            None => name == ITSELF && !path.contains('/'),
        };
        self.names().filter(|(name, _)| holds(name)).max_by_key(|(name, _)| name.len())
    }
}

/// Returns the name of a folder as paths have it.
fn bare(name: &str) -> &str {
    match name.trim_start_matches("./").trim_end_matches('/') {
        "" => ITSELF,
        bare => bare,
    }
}

/// Lists the photographs of named folders, sorted by `image_id`. A root with such a folder is one class; else each of
/// its folders with one is a class.
///
/// # Errors
/// [`DatasetError::NoLabelledFolder`], [`DatasetError::MasksAmongImages`], [`DatasetError::ClassCalledMean`] and
/// [`DatasetError::BadCaption`]; see there.
pub fn list_labelled<'a>(files: &Files<'a>, labelled: Labelled<'a>) -> Result<Listing<'a>, DatasetError> {
    let is_class = |prefix: &str| {
        let mut pictures = below(files.paths, prefix).iter().filter(|path| is_image(path));
        pictures.any(|path| labelled.folder_of(&path[prefix.len()..]).is_some())
    };
    let classes: Vec<(String, &str)> = if is_class("") {
        vec![(String::new(), files.name)]
    } else {
        let folders = folders(files.paths, "").into_iter().map(|folder| (format!("{folder}/"), folder));
        folders.filter(|(prefix, _)| is_class(prefix)).collect()
    };
    if classes.is_empty() {
        let names: Vec<&str> = labelled.names().map(|(name, _)| name).collect();
        let names = if let [one] = names[..] { one.to_owned() } else { format!("{{{}}}", names.join(",")) };
        return Err(DatasetError::NoLabelledFolder { root: files.root.trim_end_matches('/').to_owned(), names });
    }
    reject_mean(files, &classes)?;
    let (mut records, mut found) = (Vec::new(), HashSet::new());
    for (prefix, class) in &classes {
        let paths = below(files.paths, prefix);
        let mut captions = Captions::read(files, paths, prefix)?;
        for path in paths.iter().copied().filter(|path| is_image(path)) {
            let within = &path[prefix.len()..];
            let Some((name, label)) = labelled.folder_of(within) else { continue };
            reject_masks(files, path, prefix.len() + if name == ITSELF { 0 } else { name.len() })?;
            found.insert(name);
            let defect = label.map(|is_bad| match (is_bad, name) {
                (false, _) => GOOD,
                (true, ITSELF) => "anomalous",
                (true, name) => name,
            });
            records.push(Record {
                image_id: path,
                image: PicturePlace::file(path),
                class,
                split: if label == Some(false) { "train" } else { "test" },
                label,
                defect,
                mask: None,
                caption: captions.take(within),
            });
        }
        captions.reject_unused()?;
    }
    let mut groups = left_out(files, &records);
    labelled.names().filter(|(name, _)| !found.contains(name)).for_each(|(name, _)| groups.add(EMPTY, name));
    records.sort_unstable_by_key(|record| record.image_id);
    Ok(Listing { records, left_out: groups.0, faults: Vec::new() })
}

/// Refuses a picture in a folder of masks below a folder of images, which begins at `from`.
fn reject_masks(files: &Files<'_>, path: &str, from: usize) -> Result<(), DatasetError> {
    let (folder, _) = path.rsplit_once('/').unwrap_or_default();
    match folder.get(from..).is_some_and(|between| between.split('/').any(is_of_masks)) {
        true => Err(DatasetError::MasksAmongImages(files.place(folder))),
        false => Ok(()),
    }
}

fn left_out<'a>(files: &Files<'a>, records: &[Record<'a>]) -> Groups<'a> {
    let read: HashSet<&str> = records.iter().map(|record| record.image_id).collect();
    let dead: HashSet<&str> = files.dead.iter().copied().collect();
    let mut groups = Groups::default();
    for path in files.paths.iter().copied().filter(|path| !read.contains(path) && !is_of_the_system(path)) {
        if dead.contains(path) {
            groups.add(DEAD, path);
        } else if is_image(path) {
            groups.add(OUTSIDE, path);
        } else if is_foreign_picture(path) {
            groups.add(FORMATS, path);
        }
    }
    let pictures = files.hidden.iter().copied().filter(|path| is_image(path) && !path.contains("._"));
    pictures.for_each(|path| groups.add(HIDDEN, path));
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lists files below ROOT by these names of good, bad and unlabelled folders.
    fn listed<T>(
        paths: &[&str],
        names: [&[&str]; 3],
        use_it: impl FnOnce(Result<Listing<'_>, DatasetError>) -> T,
    ) -> T {
        let mut paths = paths.to_vec();
        paths.sort_unstable();
        let [good, bad, unlabelled] =
            names.map(|names| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        let read = |_: &str| Ok(b"{\"image\": \"ok/0.png\", \"caption\": \"a nut\"}".to_vec());
        let files =
            Files { mean: "mean", root: "ROOT/", name: "root", paths: &paths, hidden: &[], dead: &[], read: &read };
        use_it(list_labelled(&files, Labelled { good: &good, bad: &bad, unlabelled: &unlabelled }))
    }

    type Row = (String, String, &'static str, Option<bool>, Option<String>);

    fn rows(paths: &[&str], names: [&[&str]; 3]) -> Vec<Row> {
        listed(paths, names, |listed| {
            let row = |record: Record<'_>| {
                let [id, class] = [record.image_id, record.class].map(str::to_owned);
                (id, class, record.split, record.label, record.defect.map(str::to_owned))
            };
            listed.unwrap().records.into_iter().map(row).collect()
        })
    }

    fn row(id: &str, class: &str, split: &'static str, label: Option<bool>, defect: Option<&str>) -> Row {
        (id.to_owned(), class.to_owned(), split, label, defect.map(str::to_owned))
    }

    #[test]
    fn folders_of_a_root_or_of_its_classes_say_what_photographs_are() {
        let names: [&[&str]; 3] = [&["ok"], &["nok", "nok/scratch"], &["new"]];
        let of = |prefix: &str, class: &str| {
            let at = |path: &str| format!("{prefix}{path}");
            vec![
                row(&at("new/0.png"), class, "test", None, None),
                row(&at("nok/0.png"), class, "test", Some(true), Some("nok")),
                row(&at("nok/scratch/0.png"), class, "test", Some(true), Some("nok/scratch")),
                row(&at("ok/0.png"), class, "train", Some(false), Some("good")),
                row(&at("ok/line2/0.png"), class, "train", Some(false), Some("good")),
            ]
        };
        let paths = ["ok/0.png", "ok/line2/0.png", "nok/0.png", "nok/scratch/0.png", "new/0.png", "okay/0.png"];
        assert_eq!(rows(&paths, names), of("", "root"));
        let paths = paths.map(|path| format!("nut/{path}"));
        assert_eq!(rows(&paths.each_ref().map(String::as_str), names), of("nut/", "nut"));
    }

    #[test]
    fn point_stands_for_pictures_directly_in_a_folder() {
        let flat = rows(&["0.png", "1.jpg", "more/2.png", "notes.txt"], [&["."], &[], &[]]);
        let good = |id, class| row(id, class, "train", Some(false), Some("good"));
        assert_eq!(flat, [good("0.png", "root"), good("1.jpg", "root")]);
        let classes = rows(&["nut/0.png", "bolt/0.png", "bolt/bad/0.png"], [&["./"], &["bad"], &[]]);
        let bad = row("bolt/bad/0.png", "bolt", "test", Some(true), Some("bad"));
        assert_eq!(classes, [good("bolt/0.png", "bolt"), bad, good("nut/0.png", "nut")]);
    }

    #[test]
    fn what_is_not_read_of_named_folders_is_listed() {
        let paths = ["ok/0.png", "ok/1.heic", "rest/0.png", "ok/Thumbs.db"];
        let groups = listed(&paths, [&["ok"], &["nok"], &[]], |listed| {
            let groups = listed.unwrap().left_out.into_iter();
            groups.map(|group| (group.what, group.names.concat())).collect::<Vec<_>>()
        });
        let of = |what, names: &str| (what, names.to_owned());
        assert_eq!(groups, [of(FORMATS, "ok/1.heic"), of(OUTSIDE, "rest/0.png"), of(EMPTY, "nok")]);
    }

    #[test]
    fn wrong_folders_are_refused() {
        let told = |paths: &[&str], names| listed(paths, names, |listed| listed.unwrap_err().to_string());
        assert_eq!(
            told(&["good/0.png"], [&["ok"], &["nok"], &[]]),
            "no pictures in ROOT/{ok,nok} or ROOT/CLASS/{ok,nok} (png jpg jpeg bmp tif tiff webp); `good`, `bad` and \
             `unlabelled` name folders there"
        );
        assert!(told(&["ok/0.png", "ok/masks/0.png"], [&["ok"], &[], &[]]).starts_with("ROOT/ok/masks is called as"));
        assert!(told(&["mean/ok/0.png"], [&["ok"], &[], &[]]).starts_with("ROOT/mean: a class `mean`"));
        let [good, bad] = [vec!["ok/".to_owned()], vec!["./ok".to_owned()]];
        assert_eq!(Labelled { good: &good, bad: &bad, unlabelled: &[] }.repeated(), Some("ok"));
    }

    #[test]
    fn captions_of_named_folders_are_assigned() {
        let captioned = listed(&["ok/0.png", "captions.jsonl"], [&["ok"], &[], &[]], |listed| {
            listed.unwrap().records[0].caption.clone()
        });
        assert_eq!(captioned.as_deref(), Some("a nut"));
    }
}
