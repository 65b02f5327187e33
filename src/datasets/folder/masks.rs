//! The assignment of masks to the images of a kind of defect.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, HashSet},
};

use super::{
    super::record::{DatasetError, Fault},
    Class,
    names::{composed, without_extension},
};

/// Returns the mask of each image of one kind, by the image's path. An image without a mask, and a mask without an image,
/// are faults. Fails if an image has two masks, or a mask could belong to two images.
///
/// A mask lies below `ground_truth/KIND` as its image lies below `test/KIND`, under the same name without extension,
/// with or without `_mask` at its end. Names are compared in Unicode's composed form.
pub(super) fn pair<'a>(
    class: &Class<'_, 'a>,
    kind: &str,
    images: &[&'a str],
    faults: &mut Vec<Fault>,
) -> Result<HashMap<&'a str, &'a str>, DatasetError> {
    let masks = class.masks_of(kind);
    let images = ByName::new(images, &format!("{}test/", class.prefix));
    let in_ground_truth = format!("{}ground_truth/", class.prefix);
    let named: Vec<(&str, Cow<'_, str>)> = masks.iter().map(|mask| (*mask, name(mask, &in_ground_truth))).collect();
    let names: HashSet<&str> = named.iter().map(|(_, name)| &**name).collect();
    let mut pairs: HashMap<&str, &str> = HashMap::new();
    for (mask, name) in &named {
        let Some(owner) = images.owner(class, mask, name, &names)? else {
            faults.push(class.missing_image(mask, kind));
            continue;
        };
        if let Some(first) = pairs.insert(owner, mask) {
            let [first, second] = [first, mask].map(|mask| class.files.place(mask));
            return Err(DatasetError::TwoMasks { image: class.files.place(without_extension(owner)), first, second });
        }
    }
    for image in images.all().filter(|image| !pairs.contains_key(image)) {
        let expected = class.place(&["ground_truth", &format!("{}_mask.png", class.below_split(image))]);
        let what = format!("it has no mask; expected {expected} (any image extension, _mask may be left out)");
        faults.push(Fault::new(image, &what));
    }
    Ok(pairs)
}

/// Returns a path relative to a folder without its extension, in composed form.
fn name<'p>(path: &'p str, folder: &str) -> Cow<'p, str> {
    composed(without_extension(&path[folder.len()..]))
}

/// Returns the name of the image to which a mask with this name usually belongs.
pub(super) fn bare(name: &str) -> &str {
    name.strip_suffix("_mask").unwrap_or(name)
}

/// The images of one kind by name; several may have the same name.
struct ByName<'a>(BTreeMap<Cow<'a, str>, Vec<&'a str>>);

impl<'a> ByName<'a> {
    fn new(images: &[&'a str], folder: &str) -> Self {
        let mut by_name: BTreeMap<_, Vec<_>> = BTreeMap::new();
        images.iter().for_each(|image| by_name.entry(name(image, folder)).or_default().push(*image));
        Self(by_name)
    }

    fn all(&self) -> impl Iterator<Item = &'a str> {
        self.0.values().flatten().copied()
    }

    /// Returns the image of a mask; fails if it could belong to several. `masks` are the names of all masks.
    fn owner(
        &self,
        class: &Class<'_, 'a>,
        mask: &str,
        name: &str,
        masks: &HashSet<&str>,
    ) -> Result<Option<&'a str>, DatasetError> {
        // If there are images `a` and `a_mask`, each may own the mask `a_mask` unless it has a mask with another name.
        let has_another = |image: &str| {
            let suffixed = format!("{image}_mask");
            [image, &suffixed].into_iter().any(|other| other != name && masks.contains(other))
        };
        let mut names = vec![name];
        names.extend(Some(bare(name)).filter(|bare| *bare != name));
        names.retain(|image| self.0.contains_key(*image));
        if names.len() > 1 && !names.iter().all(|image| has_another(image)) {
            names.retain(|image| !has_another(image));
        }
        let owners: Vec<&str> = names.iter().filter_map(|image| self.0.get(*image)).flatten().copied().collect();
        match owners[..] {
            [] => Ok(None),
            [owner] => Ok(Some(owner)),
            [first, second, ..] => Err(DatasetError::AmbiguousMask {
                mask: class.files.place(mask),
                first: class.files.place(first),
                second: class.files.place(second),
            }),
        }
    }
}
