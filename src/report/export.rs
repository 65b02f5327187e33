//! Maps, verdicts and regions as files that other programs read.

mod annotations;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{Component, Path, PathBuf},
};

use arrow::{
    array::{Array, AsArray},
    datatypes::UInt8Type,
};
use bytes::Bytes;
use image::{ImageBuffer, RgbImage};
use rayon::prelude::*;

pub(super) use self::annotations::quoted;
use self::annotations::{Annotated, Annotations};
use super::{
    data::{Source, Stored},
    drawing::{self, Scale},
};
use crate::{
    engine::{Digest, Error, Result, or_none, source::Sources, store::Manifest},
    tables::{
        Role,
        anomaly_maps::{self, MAP},
        column::{column, numbers, text},
        decisions::{ANOMALOUS, PIXEL_THRESHOLD},
        images::{self, IMAGE_ID, PIXELS, Taken, id_column},
        tensor::{float_row, tensor_row},
        tiles,
    },
    vision::{decode, placement::PlacementError},
};

/// The numbers of images and regions that an export wrote.
#[derive(Debug)]
pub struct Exported {
    /// The number of images.
    pub images: usize,
    /// The number of regions; `None` without a table of regions.
    pub regions: Option<usize>,
    /// The number of images without a threshold of pixels, which have neither mask nor contour.
    pub without_mask: usize,
}

/// The number of photographs that are in memory at once.
const AT_ONCE: usize = 8;

/// An image that is exported.
struct Shown {
    id: String,
    class: String,
    place: Place,
    verdict: Option<bool>,
    pixel_threshold: Option<f32>,
}

/// The place of an image's photograph.
struct Place {
    uri: Option<String>,
    digest: Option<String>,
    /// Width and height of the photograph; `None` if its table does not say.
    size: Option<(u32, u32)>,
}

/// Writes pictures of the anomaly maps of a pipeline, and its regions, into an empty or new folder: at the size of the
/// photographs, which are read again. With `alarms`, only images whose verdict is anomalous. `step` is called with the
/// number of images that are done and their total.
///
/// # Errors
/// [`Error::Input`] if the pipeline has no maps, the folder has other files, or a photograph is no longer what was read.
pub fn export(
    source: &Source,
    folder: &Path,
    alarms: bool,
    sources: &Sources,
    mut step: impl FnMut(usize, usize),
) -> Result<Exported> {
    let regions = source.table(Role::Regions, &[]);
    let decisions = source.table(Role::Decisions, &[regions]);
    let none = |role: Role| {
        Error::Input(format!(
            "there is nothing to export: no published table of the pipeline `{}` has {}",
            source.pipeline,
            role.columns()
        ))
    };
    let maps = source.table(Role::AnomalyMaps, &[decisions, regions]).ok_or_else(|| none(Role::AnomalyMaps))?;
    let images = source.table(Role::Images, &[Some(maps)]).ok_or_else(|| none(Role::Images))?;
    if tiles::are_in(&*images.schema()?) {
        return Err(Error::Input(format!(
            "`{}` has maps of tiles; the stage `stitch` makes of them those of photographs, which can be exported",
            maps.table
        )));
    }
    if alarms && decisions.is_none() {
        return Err(none(Role::Decisions));
    }
    make_empty(folder)?;
    let (ids, _) = source.by_id(maps, anomaly_maps::SCORE)?;
    let mut shown = shown(source, images, decisions, &ids.into_iter().collect())?;
    let scales = scales(source, maps, &shown)?;
    shown.retain(|image| !alarms || image.verdict == Some(true));
    let names = names(&shown)?;
    let taken = Taken::of(&*images.schema()?);
    let files = Files { folder, sources, size: map_size(maps)?, taken, scales: &scales };
    let mut annotated = Vec::new();
    for (chunk, names) in shown.chunks(AT_ONCE).zip(names.chunks(AT_ONCE)) {
        let ids = || chunk.iter().map(|image| image.id.as_str());
        let mut values = HashMap::new();
        source.for_rows(maps, &[MAP], ids(), |id, columns, row| {
            values.extend(float_row(&columns[0], row)?.map(|map| (id.to_owned(), map)));
            Ok(())
        })?;
        let stored = pixels(source, images, chunk)?;
        let written = chunk.par_iter().zip(names).map(|(image, name)| {
            let map = values.get(&image.id).ok_or_else(|| Error::Damaged(format!("{}: it has no map", image.id)))?;
            files.write(image, name, map, stored.get(&image.id))
        });
        for (image, size) in chunk.iter().zip(written.collect::<Result<Vec<_>>>()?) {
            let id = image.id.clone();
            annotated.push(Annotated { id, uri: image.place.uri.clone(), verdict: image.verdict, size });
        }
        step(annotated.len(), shown.len());
    }
    write_scales(folder, &scales)?;
    let mut count = None;
    if let Some(table) = regions {
        let Annotations { files, regions } = annotations::of(source, table, &annotated, &names)?;
        for (name, bytes) in files {
            write_file(&folder.join(name), &bytes)?;
        }
        count = Some(regions);
    }
    let without_mask = shown.iter().filter(|image| image.pixel_threshold.is_none()).count();
    Ok(Exported { images: shown.len(), regions: count, without_mask })
}

/// The regions of a table as annotations.
#[derive(Debug)]
pub struct CocoExport {
    /// The annotations, as a file of COCO's object detection.
    pub json: Vec<u8>,
    /// The number of images.
    pub images: usize,
    /// The number of regions.
    pub regions: usize,
}

/// Returns the regions of a table as annotations of the images that were judged.
///
/// # Errors
/// [`Error::Input`] if the table has no regions, or the size of an image is not known.
pub fn coco(source: &Source, name: &str) -> Result<CocoExport> {
    let is_meant = |table: &&Manifest| table.table == name || table.variant.name(&table.table) == name;
    let Some(table) = source.of_role(Role::Regions).find(is_meant) else {
        let names: Vec<String> = source.of_role(Role::Regions).map(|table| table.variant.name(&table.table)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        return Err(Error::Input(format!(
            "`{name}` has no regions of images; tables of the pipeline `{}` with {}: {}",
            source.pipeline,
            Role::Regions.columns(),
            or_none(&names)
        )));
    };
    let images = source.table(Role::Images, &[Some(table)]);
    let images = images.ok_or_else(|| {
        Error::Input(format!("no published table of the pipeline `{}` has {}", source.pipeline, Role::Images.columns()))
    })?;
    let judged: Option<BTreeSet<String>> = match source.table(Role::AnomalyMaps, &[Some(table)]) {
        Some(maps) => Some(source.by_id(maps, anomaly_maps::SCORE)?.0.into_iter().collect()),
        None => None,
    };
    let listed = source.stored_images(images)?.into_iter();
    let listed = listed.filter(|image| judged.as_ref().is_none_or(|judged| judged.contains(&image.id)));
    let annotated = listed.map(|image| {
        let size = image.size.ok_or_else(|| {
            Error::Input(format!("{}: `{}` does not say how large its photograph is", image.id, images.table))
        })?;
        Ok(Annotated { id: image.id, uri: image.uri, verdict: None, size })
    });
    let annotated = annotated.collect::<Result<Vec<_>>>()?;
    let (json, regions) = annotations::as_coco(source, table, &annotated)?;
    Ok(CocoExport { json, images: annotated.len(), regions })
}

/// Makes a folder. One that exists must be empty, because its files would be taken for those that are written, or be lost.
pub fn make_empty(folder: &Path) -> Result<()> {
    let cannot = |e| Error::Input(format!("cannot write into {}: {e}", folder.display()));
    fs::create_dir_all(folder).map_err(cannot)?;
    match fs::read_dir(folder).map_err(cannot)?.next() {
        Some(_) => {
            Err(Error::Input(format!("{} is not empty; name a new folder, or empty this one", folder.display())))
        }
        None => Ok(()),
    }
}

/// Writes a file and the folders that it lies in.
pub(super) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let cannot = |e| Error::Input(format!("cannot write {}: {e}", path.display()));
    path.parent().map_or(Ok(()), fs::create_dir_all).map_err(cannot)?;
    fs::write(path, bytes).map_err(cannot)
}

/// Returns the images that have a map, in the order of their ids.
fn shown(
    source: &Source,
    images: &Manifest,
    decisions: Option<&Manifest>,
    with_map: &BTreeSet<String>,
) -> Result<Vec<Shown>> {
    let mut decided = HashMap::new();
    if let Some(table) = decisions {
        let rows = source.rows(table)?;
        let ids = text(&rows, id_column(&*table.schema()?).unwrap_or(IMAGE_ID))?;
        let verdicts = column(&rows, ANOMALOUS)?.as_boolean();
        let thresholds = match rows.column_by_name(PIXEL_THRESHOLD) {
            Some(_) => numbers(&rows, PIXEL_THRESHOLD)?,
            None => vec![None; rows.num_rows()],
        };
        for (row, threshold) in thresholds.into_iter().enumerate() {
            let verdict = verdicts.is_valid(row).then(|| verdicts.value(row));
            decided.insert(ids.value(row).to_owned(), (verdict, threshold.map(|threshold| threshold as f32)));
        }
    }
    let is_mapped = |image: &Stored| with_map.contains(&image.id);
    let shown = source.stored_images(images)?.into_iter().filter(is_mapped).map(|image| {
        let (verdict, pixel_threshold) = decided.get(&image.id).copied().unwrap_or_default();
        let place = Place { uri: image.uri, digest: image.digest, size: image.size };
        Shown { id: image.id, class: image.class, place, verdict, pixel_threshold }
    });
    Ok(shown.collect())
}

fn map_size(maps: &Manifest) -> Result<(u32, u32)> {
    let size = anomaly_maps::size(&*maps.schema()?);
    let [height, width] = size.ok_or_else(|| Error::Stage(format!("table `{}` has no maps", maps.table)))?;
    Ok((width as u32, height as u32))
}

/// Returns the scale of each class, over the maps of all its images.
fn scales(source: &Source, maps: &Manifest, images: &[Shown]) -> Result<BTreeMap<String, Scale>> {
    let classes: HashMap<&str, &str> = images.iter().map(|image| (image.id.as_str(), image.class.as_str())).collect();
    let mut scales: BTreeMap<String, Scale> = BTreeMap::new();
    source.for_rows(maps, &[MAP], images.iter().map(|image| image.id.as_str()), |id, columns, row| {
        let Some(class) = classes.get(id) else { return Ok(()) };
        let empty = Scale { lowest: f32::INFINITY, highest: f32::NEG_INFINITY };
        let scale = scales.entry((*class).to_owned()).or_insert(empty);
        for value in float_row(&columns[0], row)?.into_iter().flatten().filter(|value| value.is_finite()) {
            (scale.lowest, scale.highest) = (scale.lowest.min(value), scale.highest.max(value));
        }
        Ok(())
    })?;
    Ok(scales)
}

fn write_scales(folder: &Path, scales: &BTreeMap<String, Scale>) -> Result<()> {
    let rows =
        scales.iter().map(|(class, Scale { lowest, highest })| format!("{},{lowest},{highest}\n", quoted(class)));
    write_file(&folder.join("scales.csv"), format!("class,lowest,highest\n{}", rows.collect::<String>()).as_bytes())
}

/// Returns the path of each image's files below the folder of their kind, without an ending: its id, in which steps
/// upwards are left out, and so is the ending `.png`.
fn names(images: &[Shown]) -> Result<Vec<PathBuf>> {
    let mut seen: HashMap<PathBuf, &str> = HashMap::new();
    let name = |image: &Shown| {
        let normal = Path::new(&image.id).components().filter(|part| matches!(part, Component::Normal(_)));
        let path: PathBuf = normal.collect();
        if path.extension().is_some_and(|ending| ending == "png") { path.with_extension("") } else { path }
    };
    let mut names = Vec::new();
    for image in images {
        let name = name(image);
        if let Some(other) = seen.insert(name.clone(), &image.id) {
            return Err(Error::Input(format!(
                "the files of `{other}` and `{}` would have one name, {}; rename one of the photographs",
                image.id,
                name.display()
            )));
        }
        names.push(name);
    }
    Ok(names)
}

/// Reads the stored pixels of images without a file, by id.
fn pixels(source: &Source, table: &Manifest, images: &[Shown]) -> Result<HashMap<String, RgbImage>> {
    let without_file: Vec<&str> =
        images.iter().filter(|image| image.place.uri.is_none()).map(|image| image.id.as_str()).collect();
    let mut found = HashMap::new();
    if without_file.is_empty() {
        return Ok(found);
    }
    let [height, width] = images::size(&*table.schema()?).unwrap_or_default();
    source.for_rows(table, &[PIXELS], without_file.into_iter(), |id, columns, row| {
        let values = tensor_row::<UInt8Type>(&columns[0], row)?.map(<[u8]>::to_vec);
        let picture = values.and_then(|values| RgbImage::from_raw(width as u32, height as u32, values));
        found.extend(picture.map(|picture| (id.to_owned(), picture)));
        Ok(())
    })?;
    Ok(found)
}

fn unplaced(image: &Shown, error: PlacementError) -> Error {
    Error::Input(format!("{}: {error}", image.id))
}

/// The surroundings of the files of an image.
struct Files<'a> {
    folder: &'a Path,
    sources: &'a Sources,
    /// Width and height of the maps.
    size: (u32, u32),
    taken: Taken,
    scales: &'a BTreeMap<String, Scale>,
}

impl Files<'_> {
    /// Writes the pictures of an image and returns the size of its photograph.
    fn write(&self, image: &Shown, name: &Path, map: &[f32], stored: Option<&RgbImage>) -> Result<(u32, u32)> {
        let photograph = self.photograph(image, stored)?;
        let size = photograph.dimensions();
        let map = self.taken.placement(size, self.size).map_to_photograph(map).map_err(|e| unplaced(image, e))?;
        let scale = self.scales.get(&image.class).copied().unwrap_or(Scale { lowest: 0., highest: 0. });
        self.png(name, "heat", &drawing::heat(&map, size, scale))?;
        self.png(name, "overlay", &Some(drawing::overlay(&photograph, &map, scale)))?;
        if let Some(threshold) = image.pixel_threshold {
            let mask = drawing::mask(&map, size, threshold);
            self.png(name, "mask", &mask)?;
            self.png(name, "contour", &mask.map(|mask| drawing::contour(photograph, mask)))?;
        }
        Ok(size)
    }

    fn photograph(&self, image: &Shown, stored: Option<&RgbImage>) -> Result<RgbImage> {
        let Place { uri, digest, size } = &image.place;
        let Some(uri) = uri else {
            let stored =
                stored.ok_or_else(|| Error::Input(format!("{}: it has neither a file nor pixels", image.id)))?;
            let size = size.unwrap_or(stored.dimensions());
            let photograph = self.taken.placement(size, stored.dimensions()).rgb_to_photograph(stored);
            return photograph.map_err(|e| unplaced(image, e));
        };
        let is_listed = |bytes: &Bytes| digest.as_ref().is_none_or(|digest| *digest == Digest::of(bytes).to_string());
        let bytes = match self.sources.read(uri) {
            Ok(bytes) if is_listed(&bytes) => bytes,
            Ok(_) => {
                return Err(Error::Input(format!("{uri} changed since the images were read; run the pipeline again")));
            }
            // `predict` reads photographs through links that end with it, and names them by their own paths.
            Err(gone) => match self.sources.read(&image.id) {
                Ok(bytes) if digest.is_some() && is_listed(&bytes) => bytes,
                _ => {
                    return Err(Error::Input(format!(
                        "{gone}; the photograph of `{}` has been moved or deleted since it was read; run the pipeline again or, \
                         if `predict` read it, export from the folder in which that was called",
                        image.id
                    )));
                }
            },
        };
        let photograph = decode::photograph(&bytes, !self.taken.unturned);
        photograph.map(|photograph| photograph.image).map_err(|e| Error::Input(format!("{uri}: {e}")))
    }

    /// Writes a picture below the folder of its kind.
    fn png<P>(&self, name: &Path, kind: &str, picture: &Option<ImageBuffer<P, Vec<P::Subpixel>>>) -> Result<()>
    where
        P: image::Pixel + image::PixelWithColorType,
        [P::Subpixel]: image::EncodableLayout,
    {
        let path = self.folder.join(kind).join(name);
        let path = path.with_file_name(format!("{}.png", path.file_name().unwrap_or_default().display()));
        let picture =
            picture.as_ref().ok_or_else(|| Error::Damaged(format!("{}: the map has another size", name.display())))?;
        let bytes = drawing::png(picture).map_err(|e| Error::Stage(format!("{}: {e}", path.display())))?;
        write_file(&path, &bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(id: &str) -> Shown {
        let place = Place { uri: None, digest: None, size: None };
        Shown { id: id.into(), class: "nut".into(), place, verdict: None, pixel_threshold: None }
    }

    #[test]
    fn names_stay_below_the_folder_and_differ() {
        let named = names(&[image("nut/a.png"), image("/etc/../nut/b.1.jpg"), image("c")]).unwrap();
        assert_eq!(named, ["nut/a", "etc/nut/b.1.jpg", "c"].map(PathBuf::from));
        let told = names(&[image("a.jpg"), image("a.jpg.png")]).unwrap_err().to_string();
        assert!(told.starts_with("the files of `a.jpg` and `a.jpg.png` would have one name, a.jpg"), "{told}");
    }
}
