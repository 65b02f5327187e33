//! Real-IAD as it is downloaded, each view an image of its own:
//!
//! ```text
//! ROOT/realiad_512/CLASS/OK/S0001/CLASS_0001_OK_C1_….jpg          (or realiad_raw, realiad_1024, realiad_256)
//! ROOT/realiad_512/CLASS/NG/KIND/S0001/CLASS_0001_NG_KIND_C1_….jpg     with its mask beside it, ….png
//! ROOT/realiad_jsons/CLASS.json           training and test images of all five views
//! ROOT/realiad_jsons_sv/CLASS.json        the same of the view from above alone
//! ```
//!
//! The folders of JSON may lie further below (`realiad_jsons/realiad_jsons`), and the classes directly in the root. Labels
//! are those of views: a view of a defective sample that does not show the defect is normal.

use std::borrow::Cow;

use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    paths::{below, find, folders},
    record::{DatasetError, Fault, Files, LeftOut, Listing, PicturePlace, Record},
};

const ABSENT: &str = "classes without photographs here are left out";

/// The class of anomaly of normal views.
const OK: &str = "OK";

/// The images of Real-IAD that are read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
#[garde(allow_unvalidated)]
pub struct RealIad {
    /// The views of a sample.
    pub views: Views,
    /// The folder of the photographs, such as `realiad_512`; needed only where the root has several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub photographs: Option<String>,
}

/// The views of a sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Views {
    /// All five, each of which is an image of its own (`realiad_jsons`), as the paper has it.
    #[default]
    All,
    /// The view from above (`realiad_jsons_sv`).
    Single,
}

impl Views {
    /// Returns the name of the folder with the splits.
    fn folder(self) -> &'static str {
        match self {
            Self::All => "realiad_jsons",
            Self::Single => "realiad_jsons_sv",
        }
    }
}

/// The file of a class.
#[derive(Deserialize)]
struct Splits<'j> {
    #[serde(borrow)]
    train: Vec<View<'j>>,
    #[serde(borrow)]
    test: Vec<View<'j>>,
}

#[derive(Deserialize)]
struct View<'j> {
    #[serde(borrow)]
    anomaly_class: Cow<'j, str>,
    /// The path below the folder of the class.
    #[serde(borrow)]
    image_path: Cow<'j, str>,
    #[serde(borrow, default)]
    mask_path: Option<Cow<'j, str>>,
}

/// Lists the views of the splits, sorted by `image_id`, which is the path below the folder of photographs.
///
/// # Errors
/// [`DatasetError::NotPublished`], [`DatasetError::SeveralSizes`] and [`DatasetError::BadRow`].
pub fn list<'a>(files: &Files<'a>, choice: &RealIad) -> Result<Listing<'a>, DatasetError> {
    let missing = || DatasetError::NotPublished {
        root: files.place(""),
        dataset: "Real-IAD",
        expected: format!(
            "{}/CLASS.json and {}/CLASS/OK/SAMPLE/*.jpg in it",
            choice.views.folder(),
            choice.photographs.as_deref().unwrap_or("realiad_512")
        ),
    };
    let photographs = photographs(files, choice)?;
    let mut listing = Listing { records: Vec::new(), left_out: Vec::new(), faults: Vec::new() };
    let mut absent = Vec::new();
    for (json, name) in files.paths.iter().copied().filter_map(|path| Some((path, class_of(path, choice.views)?))) {
        let prefix = format!("{photographs}{name}/");
        let class = Class { name, paths: below(files.paths, &prefix), skipped: photographs.len(), prefix };
        if class.paths.is_empty() {
            absent.push(json);
            continue;
        }
        let bytes = (files.read)(json).map_err(DatasetError::Unreadable)?;
        let bad = |message: String| DatasetError::BadRow { place: files.place(json), message };
        let splits: Splits<'_> = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
        if let Some(view) = splits.train.iter().find(|view| view.anomaly_class != OK) {
            return Err(bad(format!("{} is anomalous and in `train`, whose images are all normal", view.image_path)));
        }
        splits.train.iter().for_each(|view| class.list(view, "train", &mut listing));
        splits.test.iter().for_each(|view| class.list(view, "test", &mut listing));
    }
    if listing.records.is_empty() && listing.faults.is_empty() {
        return Err(missing());
    }
    listing.records.sort_unstable_by_key(|record| record.image_id);
    listing.left_out.extend((!absent.is_empty()).then_some(LeftOut { what: ABSENT, names: absent }));
    Ok(listing)
}

/// Returns the prefix of the classes' photographs.
fn photographs(files: &Files<'_>, choice: &RealIad) -> Result<String, DatasetError> {
    if let Some(folder) = &choice.photographs {
        return Ok(format!("{}/", folder.trim_matches('/')));
    }
    let is_of_photographs = |name: &&str| name.starts_with("realiad_") && !name.starts_with(Views::All.folder());
    let names: Vec<&str> = folders(files.paths, "").into_iter().filter(is_of_photographs).collect();
    match names[..] {
        [] => Ok(String::new()),
        [one] => Ok(format!("{one}/")),
        _ => Err(DatasetError::SeveralSizes {
            root: files.place(""),
            names: names.into_iter().map(str::to_owned).collect(),
        }),
    }
}

/// Returns the class whose splits are in a file; `None` for other files.
fn class_of(path: &str, views: Views) -> Option<&str> {
    let (folder, name) = path.strip_suffix(".json")?.rsplit_once('/')?;
    (folder.rsplit('/').next() == Some(views.folder())).then_some(name)
}

struct Class<'f, 'a> {
    name: &'a str,
    /// Its files.
    paths: &'f [&'a str],
    /// The beginning of their paths.
    prefix: String,
    /// The length of the part of it that is left out of `image_id`.
    skipped: usize,
}

impl<'a> Class<'_, 'a> {
    /// Adds a view to a listing.
    fn list(&self, view: &View<'_>, split: &'static str, listing: &mut Listing<'a>) {
        let place = |path: &str| format!("{}{path}", self.prefix);
        let wanted = place(&view.image_path);
        let Some(image) = find(self.paths, &wanted) else {
            listing.faults.push(Fault::new(&wanted, Fault::MISSING));
            return;
        };
        let is_anomalous = view.anomaly_class != OK;
        let mask = view.mask_path.as_deref().filter(|path| !path.is_empty()).map(place);
        let mask = listing.annotated_mask(self.paths, image, is_anomalous, mask.as_deref());
        // The kind of defect is a folder of the path.
        let kind = || image.split('/').find(|part| *part == view.anomaly_class).unwrap_or("anomalous");
        listing.records.push(Record {
            image_id: &image[self.skipped..],
            image: PicturePlace::file(image),
            class: self.name,
            split,
            label: Some(is_anomalous),
            defect: Some(if is_anomalous { kind() } else { "good" }),
            mask,
            caption: None,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    const NG: &str = "NG/HS/S0001/usb_0001_NG_HS_";

    fn paths(photographs: &str) -> Vec<String> {
        let files = ["C1_1.jpg", "C1_1.png", "C2_1.jpg"].map(|name| format!("{photographs}usb/{NG}{name}"));
        let normal = format!("{photographs}usb/OK/S0001/usb_0001_OK_C1_1.jpg");
        let jsons = ["realiad_jsons/usb.json", "realiad_jsons/zipper.json", "realiad_jsons_sv/usb.json"];
        let mut paths: Vec<String> = files.into_iter().chain([normal]).chain(jsons.map(str::to_owned)).collect();
        paths.sort_unstable();
        paths
    }

    fn splits(test: &str) -> String {
        let train = r#"{"category": "usb", "anomaly_class": "OK", "image_path": "OK/S0001/usb_0001_OK_C1_1.jpg", "mask_path": null}"#;
        format!(r#"{{"meta": {{"prefix": "usb/"}}, "train": [{train}], "test": [{test}]}}"#)
    }

    fn view(kind: &str, image: &str, mask: &str) -> String {
        let mask = if mask.is_empty() { "null".to_owned() } else { format!("\"{NG}{mask}\"") };
        format!(r#"{{"anomaly_class": "{kind}", "image_path": "{NG}{image}", "mask_path": {mask}}}"#)
    }

    fn listed<T>(
        paths: &[String],
        json: &str,
        choice: &RealIad,
        use_it: impl FnOnce(Result<Listing<'_>, DatasetError>) -> T,
    ) -> T {
        let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
        let read = |_: &str| Ok(json.as_bytes().to_vec());
        let files =
            Files { mean: "mean", root: "ROOT", name: "root", paths: &paths, hidden: &[], dead: &[], read: &read };
        use_it(list(&files, choice))
    }

    #[test]
    fn views_of_one_sample_have_their_own_labels() {
        let test = [view("HS", "C1_1.jpg", "C1_1.png"), view("OK", "C2_1.jpg", "")].join(",");
        for photographs in ["realiad_512/", ""] {
            listed(&paths(photographs), &splits(&test), &RealIad::default(), |listing| {
                let Listing { records, left_out, faults } = listing.unwrap();
                let rows: Vec<_> = records
                    .iter()
                    .map(|r| (r.image_id, r.class, r.split, r.label.unwrap(), r.defect.unwrap(), r.mask.is_some()))
                    .collect();
                let [first, second] = ["C1_1.jpg", "C2_1.jpg"].map(|name| format!("usb/{NG}{name}"));
                assert_eq!(
                    rows,
                    [
                        (&*first, "usb", "test", true, "HS", true),
                        (&*second, "usb", "test", false, "good", false),
                        ("usb/OK/S0001/usb_0001_OK_C1_1.jpg", "usb", "train", false, "good", false),
                    ]
                );
                assert_eq!(records[0].image.path, format!("{photographs}{first}"));
                assert_eq!(left_out, [LeftOut { what: ABSENT, names: vec!["realiad_jsons/zipper.json"] }]);
                assert_eq!(faults, []);
            });
        }
    }

    #[test]
    fn contradictions_are_all_collected() {
        let views = [
            view("HS", "C1_1.jpg", ""),
            view("OK", "C2_1.jpg", "C1_1.png"),
            view("HS", "C1_1.jpg", "C2_1.png"),
            view("OK", "C3_1.jpg", ""),
        ];
        listed(&paths("realiad_512/"), &splits(&views.join(",")), &RealIad::default(), |listing| {
            let faults = listing.unwrap().faults;
            let fault = |name: &str, what: &str| Fault::new(&format!("realiad_512/usb/{NG}{name}"), what);
            assert_eq!(
                faults,
                [
                    fault("C1_1.jpg", Fault::UNMASKED),
                    fault("C2_1.jpg", Fault::MASKED),
                    fault("C2_1.png", Fault::MISSING),
                    fault("C3_1.jpg", Fault::MISSING),
                ]
            );
        });
    }

    #[test]
    fn views_and_size_are_chosen() {
        let mut all = paths("realiad_512/");
        all.extend(paths("realiad_256/").into_iter().filter(|path| path.contains("/usb/")));
        all.sort_unstable();
        let told = |paths: &[String], json: &str, choice: &RealIad| {
            listed(paths, json, choice, |listing| {
                listing.map(|l| l.records[0].image.path.to_owned()).map_err(|e| e.to_string())
            })
        };
        let choice = |views, photographs: &str| RealIad { views, photographs: Some(photographs.to_owned()) };
        let json = splits("");
        assert_eq!(
            told(&all, &json, &RealIad::default()).unwrap_err(),
            "ROOT has photographs in realiad_256 and realiad_512; `real_iad.photographs` names the folder that is read"
        );
        let found = told(&all, &json, &choice(Views::Single, "realiad_256"));
        assert_eq!(found.unwrap(), "realiad_256/usb/OK/S0001/usb_0001_OK_C1_1.jpg");
        assert_eq!(
            told(&all, &json, &choice(Views::Single, "realiad_raw")).unwrap_err(),
            "ROOT is not Real-IAD as published: expected realiad_jsons_sv/CLASS.json and \
             realiad_raw/CLASS/OK/SAMPLE/*.jpg in it"
        );
        let anomalous = json.replace("\"OK\"", "\"HS\"");
        let said = told(&all, &anomalous, &choice(Views::All, "realiad_512")).unwrap_err();
        assert!(said.starts_with("ROOT/realiad_jsons/usb.json: OK/S0001/usb_0001_OK_C1_1.jpg is anomalous"), "{said}");
    }

    /// The number of images of Real-IAD.
    const IMAGES: usize = 151_050;

    #[test]
    fn all_of_real_iad_is_listed_within_two_seconds() {
        const CLASSES: usize = 30;
        let (mut paths, mut views) = (Vec::new(), Vec::new());
        for image in 0..IMAGES / CLASSES {
            let (sample, view) = (image / 5, image % 5 + 1);
            let name = format!("S{sample:04}/usb_{sample:04}_NG_HS_C{view}_20231018145253");
            // A third of the images are anomalous.
            let (folder, kind, mask) = match image % 3 {
                0 => ("NG/HS", "HS", format!("\"NG/HS/{name}.png\"")),
                _ => ("OK", OK, "null".to_owned()),
            };
            for class in 0..CLASSES {
                paths.push(format!("realiad_512/{class}/{folder}/{name}.jpg"));
                paths.extend((kind != OK).then(|| format!("realiad_512/{class}/{folder}/{name}.png")));
            }
            views.push(format!(
                r#"{{"category": "usb", "anomaly_class": "{kind}", "image_path": "{folder}/{name}.jpg", "mask_path": {mask}}}"#
            ));
        }
        paths.extend((0..CLASSES).map(|class| format!("realiad_jsons/{class}.json")));
        paths.sort_unstable();
        let json = format!(r#"{{"meta": {{}}, "train": [], "test": [{}]}}"#, views.join(","));
        let began = Instant::now();
        let found = listed(&paths, &json, &RealIad::default(), |listing| listing.unwrap().records.len());
        assert_eq!(found, IMAGES);
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }
}
