//! Images in: decoded, resized, with labels and masks.

pub mod check;
mod coco;
mod embedded;
mod failure;
mod files;
mod generated;
mod hold_out;
mod listed;
mod manifest;
mod masks;
mod photographs;
mod reader;
mod roi;
mod scaled;
mod tiles;

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, UInt32Array},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    datasets::{
        self, Fault, Files, LeftOut, PicturePlace,
        coco_ad::CocoAd,
        folder::{self, Labelled},
        mvtec_ad_2::{self, MvtecAd2},
        real_iad::{self, RealIad},
        synthetic, visa,
    },
    engine::{
        Digest, Error, Result, or_none,
        source::{Sources, Tree},
        stage::{Listing, Misfit, Output, Ports, Schemas, Stage},
        store::{Note, digest_array, volatile},
        suggestion,
    },
    tables::{
        images::{self, CAPTION, CLASS, DEFECT, IMAGE_ID, SPLIT, Taken},
        metrics::MEAN,
        tiles as columns,
    },
    vision::{placement::Placement, resize},
};
use failure::input_error;
use files::{DRAWING, IMAGES, MASKS, PictureFiles};
use hold_out::HoldOut;
use listed::{labels, listing, text};
use manifest::Manifests;
use scaled::is_too_large;
use tiles::Sizes;

pub use generated::Synthetic;
pub use manifest::ManifestColumns;
pub use photographs::{Listed, Picture, photographs};
pub use roi::{Area, Roi};
pub use tiles::Tile;

/// Lists a dataset and reads its images, one row per image.
///
/// Images are converted to RGB and resized as Pillow does it (bilinear, antialiased). A mask is stored in two ways, in
/// both of which a pixel above 0 is anomalous. `mask` is binarised at its own size (above 0; in a lossy format, such as JPEG, above
/// half of the range) and 255 where more than half of a pixel is covered: the rule of the protocols `exact` and `ader`.
/// `mask_grey` follows the authors' loader: the grey levels of the file, resized and not binarised, so that every pixel
/// that a defect touches is anomalous: the rule of `reference`. Both are null if there is no ground truth.
///
/// With `tile` there is one row per tile of a photograph. A tile of an anomalous photograph is anomalous if its `mask` has
/// an anomalous pixel, and its label is null if the photograph has no mask.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
#[schemars(extend("examples" = [{ "dataset": "folder", "root": "photos" }]))]
pub struct Ingest {
    /// The layout of the dataset.
    #[garde(skip)]
    pub dataset: Dataset,
    /// The dataset's folder or URL (`s3://`, `gs://`, `az://`, `https://`), or the file of a manifest; not for
    /// `synthetic`. Its place is not part of the images' identity.
    #[garde(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// Folders of normal photographs, which are in `split = 'train'`: `[ok]` stands for the folder `ok` of the root, or
    /// of each class in it, and `[.]` for the photographs directly in it. They replace the MVTec layout, as do those of
    /// `bad` and `unlabelled`.
    #[garde(inner(length(min = 1)))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub good: Vec<String>,
    /// Folders of anomalous photographs without masks, which are in `split = 'test'`. The name of the folder is the
    /// kind of defect.
    #[garde(inner(length(min = 1)))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bad: Vec<String>,
    /// Folders of photographs of which nothing is known; they are in `split = 'test'`, and `label` is null.
    #[garde(inner(length(min = 1)))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unlabelled: Vec<String>,
    /// The columns of a manifest, where their names differ from the usual ones.
    #[garde(dive)]
    #[serde(default, skip_serializing_if = "ManifestColumns::are_usual")]
    pub columns: ManifestColumns,
    /// Height and width of the stored pixels: one number for a square, or `[H, W]`.
    #[garde(custom(in_range))]
    #[serde(default = "default_size")]
    pub size: Size,
    /// `pad` keeps the aspect ratio of a photograph: it lies in the middle of the stored pixels, as large as it fits.
    /// The border repeats its outermost pixels and counts as normal in masks. By default the photograph fills the
    /// stored pixels, whatever its aspect ratio.
    #[garde(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_aspect: Option<KeepAspect>,
    /// The number of pixels to which the shorter side of a photograph is resized; its aspect ratio is kept, and the middle
    /// `size` pixels are stored, as torchvision's `Resize` and `CenterCrop` do it (PatchCore's authors: 256 and 224).
    /// Pixels that are cut off are not judged.
    #[garde(inner(range(min = 16, max = 16_384)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub short_side: Option<u32>,
    /// Cuts each photograph, at its own size or at that of `short_side`, into overlapping tiles of `size` pixels, each of
    /// which is a row. The stage `stitch` puts their maps together. A photograph smaller than a tile lies in its
    /// middle, with a border as of `keep_aspect: pad`.
    #[garde(dive)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tile: Option<Tile>,
    /// The region of photographs that is judged: a polygon `[[x, y], …]` in pixels of the photograph, or the path of a
    /// picture as large as the photograph that is white there, such as `regions/{class}.png` or `regions/{image}.png`; or
    /// `{ CLASS: … }` with one of these for each class. Outside of it the stored pixels have one colour, no mask is
    /// anomalous, anomaly maps have their lowest value, and `evaluate` and `calibrate` count no pixel.
    #[garde(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roi: Option<Roi>,
    /// True: photographs are turned as their EXIF orientation says, as viewers show them. False: they are taken as they
    /// are stored, as Pillow's `open` takes them.
    #[garde(skip)]
    #[serde(default = "default_exif_orientation")]
    pub exif_orientation: bool,
    /// The share of the normal training photographs of each class that is held out of training: their `split` is
    /// `calibration` instead of `train`. Photographs are chosen by their ids, so that one that is added changes the
    /// split of no other.
    #[garde(range(min = 0., max = 0.9))]
    #[serde(default)]
    pub hold_out: f64,
    /// The seed by which photographs are held out.
    #[garde(skip)]
    #[serde(default)]
    pub hold_out_seed: u64,
    /// The images to generate, for `dataset: synthetic`.
    #[garde(dive)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub synthetic: Option<Synthetic>,
    /// The images that are read, for `dataset: real_iad`.
    #[garde(dive)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub real_iad: Option<RealIad>,
    /// The images that are read, for `dataset: coco_ad`, which needs it.
    #[garde(dive)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coco_ad: Option<CocoAd>,
    /// The images that are read, for `dataset: mvtec_ad_2`.
    #[garde(dive)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mvtec_ad_2: Option<MvtecAd2>,
}

fn default_size() -> Size {
    Size::Square(256)
}

fn default_exif_orientation() -> bool {
    true
}

/// The size of the stored pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a size is a whole number of pixels, or `[H, W]`")]
pub enum Size {
    /// The side of a square.
    Square(#[schemars(range(min = 16, max = 2048))] u32),
    /// Height and width.
    Rectangle(#[schemars(inner(range(min = 16, max = 2048)))] [u32; 2]),
}

fn in_range(size: &Size, (): &()) -> garde::Result {
    match size.sides() {
        sides if sides.iter().any(|side| *side < 16) => Err(garde::Error::new("lower than 16")),
        sides if sides.iter().any(|side| *side > 2048) => Err(garde::Error::new("greater than 2048")),
        _ => Ok(()),
    }
}

impl Size {
    /// Returns height and width.
    fn sides(self) -> [u32; 2] {
        match self {
            Self::Square(side) => [side, side],
            Self::Rectangle(sides) => sides,
        }
    }

    /// Returns the number of pixels.
    fn area(self) -> usize {
        self.sides().into_iter().map(|side| side as usize).product()
    }
}

/// The way in which the aspect ratio of a photograph is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KeepAspect {
    /// By a border.
    Pad,
}

/// An on-disk layout, or the generator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dataset {
    /// Photographs in folders: in MVTec layout (CLASS/train/good, CLASS/test/KIND, optional CLASS/ground_truth/KIND), or
    /// in folders that `good`, `bad` and `unlabelled` name.
    Folder,
    /// Photographs in a table (CSV, JSON lines, Parquet): a file, or a folder with `metadata.csv`, `metadata.jsonl` or
    /// Parquet files as data sets of Hugging Face have them.
    Manifest,
    /// Generated products with generated defects, exact masks and captions.
    Synthetic,
    /// MVTec AD as it is downloaded, which is in MVTec layout.
    Mvtec,
    /// VisA as it is downloaded, by the table of splits `split_csv/1cls.csv`.
    Visa,
    /// Real-IAD as it is downloaded, by its JSON splits; each view is an image.
    RealIad,
    /// COCO-AD, from the photographs and annotations of COCO 2017. Masks are drawn from the annotations.
    CocoAd,
    /// MVTec AD 2 as it is downloaded. `validation` is in `split = 'calibration'`.
    #[serde(rename = "mvtec_ad_2")]
    MvtecAd2,
}

impl Dataset {
    /// Returns the layout as parameters name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Folder => "folder",
            Self::Manifest => "manifest",
            Self::Synthetic => "synthetic",
            Self::Mvtec => "mvtec",
            Self::Visa => "visa",
            Self::RealIad => "real_iad",
            Self::CocoAd => "coco_ad",
            Self::MvtecAd2 => "mvtec_ad_2",
        }
    }

    /// Returns what its root is, for messages.
    fn root(self) -> &'static str {
        match self {
            Self::Folder | Self::Synthetic => "a folder or URL with CLASS/train/good/*.png",
            Self::Manifest => "a manifest (photographs.csv), or a folder with one",
            Self::Mvtec => "the folder or URL of MVTec AD, with bottle/train/good/*.png",
            Self::Visa => "the folder or URL of VisA, with split_csv/1cls.csv",
            Self::RealIad => "the folder or URL of Real-IAD, with realiad_jsons and realiad_512 or another size",
            Self::CocoAd => "the folder or URL of COCO 2017, with annotations, train2017 and val2017",
            Self::MvtecAd2 => "the folder or URL of MVTec AD 2, with can/train/good/*.png",
        }
    }
}

const NO_SPLIT: &str = "it is missing: the split of COCO-AD, such as { split: 0 }";

impl Stage for Ingest {
    fn revision(&self) -> u32 {
        4
    }

    fn ports(&self) -> Ports {
        Ports::Named(Vec::new())
    }

    fn makes(&self) -> Output {
        Output::RowPerRow
    }

    fn locations(&self) -> &'static [&'static str] {
        // The listing has all that these decide, so that an image is decoded again only if its own row changes.
        &[
            "root",
            "good",
            "bad",
            "unlabelled",
            "columns",
            "roi",
            "hold_out",
            "hold_out_seed",
            "real_iad",
            "coco_ad",
            "mvtec_ad_2",
        ]
    }

    fn output(&self, _: &Schemas) -> Result<SchemaRef, Misfit> {
        self.check()?;
        if let Some(class) =
            self.synthetic.iter().flat_map(|s| &s.classes).find(|c| !synthetic::CLASSES.contains(&c.as_str()))
        {
            return Err(Misfit::parameter(
                "synthetic",
                format!("there is no class `{class}`; classes are {}", synthetic::CLASSES.join(", ")),
            ));
        }
        if let (Dataset::Synthetic, Size::Rectangle(_)) = (self.dataset, self.size) {
            return Err(Misfit::parameter("size", "the generator's images are squares: one number"));
        }
        let images = images::schema(self.size.sides().map(|side| side as usize), self.taken());
        let region = self.roi.iter().map(|_| Arc::new(images::roi(self.size.sides().map(|side| side as usize))));
        let tile = self.tile.iter().flat_map(|_| columns::fields().map(Arc::new));
        Ok(Arc::new(Schema::new(images.fields().iter().cloned().chain(region).chain(tile).collect::<Vec<_>>())))
    }

    fn list(&self, sources: &Sources) -> Result<Option<Listing>> {
        let listing = match self.dataset {
            Dataset::Synthetic => self.synthetic.clone().unwrap_or_default().list(self.held_out())?,
            _ => self.found(sources, |found| list_photographs(found, self.held_out(), sources))?,
        };
        let listing = match &self.roi {
            Some(roi) => self.with_regions(roi, listing, sources)?,
            None => listing,
        };
        match &self.tile {
            Some(tile) => self.list_tiles(listing, *tile, sources).map(Some),
            None => Ok(Some(listing)),
        }
    }
}

impl Ingest {
    /// Refuses parameters that belong to another layout.
    fn check(&self) -> Result<(), Misfit> {
        let (dataset, is_named) = (self.dataset, self.labelled().is_some());
        let given = [("good", &self.good), ("bad", &self.bad), ("unlabelled", &self.unlabelled)];
        let given = given.into_iter().find(|(_, names)| !names.is_empty()).map_or("good", |(name, _)| name);
        let groups = [
            ("synthetic", Dataset::Synthetic, self.synthetic.is_some()),
            ("columns", Dataset::Manifest, !self.columns.are_usual()),
            (given, Dataset::Folder, is_named),
            ("real_iad", Dataset::RealIad, self.real_iad.is_some()),
            ("coco_ad", Dataset::CocoAd, self.coco_ad.is_some()),
            ("mvtec_ad_2", Dataset::MvtecAd2, self.mvtec_ad_2.is_some()),
        ];
        if let Some((parameter, of, _)) = groups.into_iter().find(|(_, of, is_given)| *is_given && dataset != *of) {
            let names = if of == Dataset::Folder { ", whose folders it names" } else { "" };
            return Err(Misfit::parameter(parameter, format!("it belongs to `dataset: {}`{names}", of.name())));
        }
        if let Some(name) = self.labelled().and_then(Labelled::repeated) {
            return Err(Misfit::parameter(given, format!("the folder `{name}` is named twice")));
        }
        self.check_size()?;
        self.roi.as_ref().map_or(Ok(()), Roi::check).map_err(|why| Misfit::parameter("roi", why))?;
        match (dataset, &self.root) {
            (Dataset::Synthetic, Some(_)) => {
                Err(Misfit::parameter("root", "it belongs to `dataset: folder`; the generator reads no files"))
            }
            (Dataset::Synthetic, None) => Ok(()),
            (_, None) => Err(Misfit::parameter("root", format!("it is missing: {}", dataset.root()))),
            (Dataset::CocoAd, Some(_)) if self.coco_ad.is_none() => Err(Misfit::parameter("coco_ad", NO_SPLIT)),
            _ => Ok(()),
        }
    }

    /// Refuses ways of bringing photographs to a size that contradict each other.
    fn check_size(&self) -> Result<(), Misfit> {
        let given = [("tile", self.tile.is_some()), ("short_side", self.short_side.is_some())];
        for (parameter, _) in given.iter().filter(|(_, is_given)| *is_given) {
            let message = match (self.dataset, self.keep_aspect) {
                (Dataset::Synthetic, _) => "the generator's images have the size of the stored pixels",
                (_, Some(KeepAspect::Pad)) => "it keeps the aspect ratio itself; leave `keep_aspect` out",
                _ => continue,
            };
            return Err(Misfit::parameter(*parameter, message));
        }
        let shorter = self.size.sides().into_iter().min().unwrap_or_default();
        match self.tile {
            Some(Tile { overlap }) if 2 * overlap > shorter => Err(Misfit::parameter(
                "tile.overlap",
                format!("{overlap} is more than half of the {shorter} pixels of a tile"),
            )),
            _ => Ok(()),
        }
    }

    fn root(&self) -> &str {
        self.root.as_deref().unwrap_or(".")
    }

    /// Returns the folder to which paths in the listing are relative.
    fn folder(&self) -> &str {
        if self.dataset == Dataset::Manifest { manifest::folder_of(self.root()) } else { self.root() }
    }

    /// Lists the photographs and hands them to `take`.
    fn found<T>(&self, sources: &Sources, take: impl FnOnce(Found<'_>) -> Result<T>) -> Result<T> {
        let root = self.root();
        if self.dataset == Dataset::Manifest {
            let manifest = Manifests::read(root, &self.columns, sources)?;
            let class = manifest.tree.name();
            let mut listing = datasets::manifest::list(&manifest.rows, &class, MEAN).map_err(input_error)?;
            listing.faults.extend(manifest.missing());
            let embedded = |place: PicturePlace<'_>, is_mask| manifest.embedded(place, is_mask);
            return take(Found { listing, tree: &manifest.tree, embedded: &embedded });
        }
        let expected = |e| Error::Input(format!("{e}; expected {}", self.dataset.root()));
        let tree = match self.dataset {
            Dataset::Folder => sources.tree(root),
            // Their archives may lie as they were downloaded.
            _ => sources.unpacked_tree(root),
        };
        let tree = tree.map_err(expected)?;
        let (name, paths, hidden) = (tree.name(), tree.paths().collect::<Vec<_>>(), tree.hidden().collect::<Vec<_>>());
        let dead: Vec<&str> = tree.dead_links().collect();
        let read = |path: &str| Ok(sources.read(&tree.address(path)?)?.to_vec());
        let files = Files { mean: MEAN, root, name: &name, paths: &paths, hidden: &hidden, dead: &dead, read: &read };
        let listing = match (self.dataset, self.labelled()) {
            (Dataset::CocoAd, _) => {
                let choice = self.coco_ad.ok_or_else(|| Error::Input(NO_SPLIT.to_owned()))?;
                Ok(coco::list(&files, choice, &tree, sources)?)
            }
            (Dataset::Folder, Some(labelled)) => folder::list_labelled(&files, labelled),
            (Dataset::MvtecAd2, _) => mvtec_ad_2::list(&files, &self.mvtec_ad_2.clone().unwrap_or_default()),
            (Dataset::RealIad, _) => real_iad::list(&files, &self.real_iad.clone().unwrap_or_default()),
            (Dataset::Visa, _) => visa::list(&files),
            _ => folder::list(&files),
        };
        let listing = listing.map_err(|error| match tree.compressed() {
            Some((path, advice)) => Error::Input(format!("{error}; {path}: {advice}")),
            None => input_error(error),
        });
        take(Found { listing: listing?, tree: &tree, embedded: &|_, _| None })
    }

    /// Adds the regions of photographs to their listing. A class that `roi` names and of which there is no photograph is
    /// refused; in a manifest, which may have a few of the photographs, as that of new ones has, it is noted.
    fn with_regions(&self, roi: &Roi, Listing { rows, mut notes }: Listing, sources: &Sources) -> Result<Listing> {
        let (absent, present) = roi.absent(&rows)?;
        match (&absent[..], self.dataset) {
            ([], _) => {}
            (_, Dataset::Manifest) => {
                notes.push(Note::about("of classes that `roi` names there is no photograph", absent));
            }
            ([class, ..], _) => {
                let present: Vec<&str> = present.into_iter().collect();
                let (classes, suggestion) = (or_none(&present), suggestion(class, &present));
                return Err(Error::Input(format!(
                    "`roi`: there is no photograph of class `{class}`{suggestion}; classes are {classes}"
                )));
            }
        }
        Ok(Listing { rows: roi.list(&rows, sources)?, notes })
    }

    /// Returns the folders whose names say what their photographs are; `None` for the MVTec layout.
    fn labelled(&self) -> Option<Labelled<'_>> {
        let Self { good, bad, unlabelled, .. } = self;
        let is_named = !(good.is_empty() && bad.is_empty() && unlabelled.is_empty());
        is_named.then_some(Labelled { good, bad, unlabelled })
    }

    fn held_out(&self) -> HoldOut {
        HoldOut { share: self.hold_out, seed: self.hold_out_seed }
    }

    /// Makes the listing of tiles from that of photographs.
    fn list_tiles(&self, photographs: Listing, tile: Tile, sources: &Sources) -> Result<Listing> {
        let Listing { rows, notes } = photographs;
        let sizes = tiles::sizes(&rows, &self.files(sources), self.exif_orientation)?;
        let sizes = sizes.into_iter().map(|photograph| {
            let sizes = Sizes { photograph: photograph?, scaled: self.whole(photograph?).scaled() };
            (!is_too_large(sizes.scaled)).then_some(sizes)
        });
        let rows = tiles::list(&rows, &sizes.collect::<Vec<_>>(), self.pixels(), tile.overlap)?;
        Ok(Listing { rows, notes })
    }

    fn files<'a>(&'a self, sources: &'a Sources) -> PictureFiles<'a> {
        PictureFiles { folder: self.folder(), columns: &self.columns, sources }
    }

    /// Returns width and height of the stored pixels.
    fn pixels(&self) -> (u32, u32) {
        let [height, width] = self.size.sides();
        (width, height)
    }

    fn taken(&self) -> Taken {
        Taken { padded: self.keep_aspect.is_some(), short_side: self.short_side, unturned: !self.exif_orientation }
    }

    /// Returns the place of a photograph of this size in a picture: in the stored pixels, or in the picture that tiles
    /// are cut from.
    fn whole(&self, photograph: (u32, u32)) -> Placement {
        match (self.tile, self.short_side) {
            (None, _) => self.taken().placement(photograph, self.pixels()),
            (Some(_), None) => Placement::stretched(photograph, photograph),
            (Some(_), Some(edge)) => Placement::stretched(photograph, resize::with_shorter_side(photograph, edge)),
        }
    }
}

/// The photographs of a data set.
struct Found<'a> {
    listing: datasets::Listing<'a>,
    /// The files below its root.
    tree: &'a Tree,
    /// Gives the digest of a picture in a Parquet file; true stands for a mask.
    embedded: &'a dyn Fn(PicturePlace<'_>, bool) -> Option<Digest>,
}

/// Refuses a data set that contradicts itself.
fn reject_faults(root: &str, faults: &[Fault]) -> Result<()> {
    /// The number of faults that the message names.
    const NAMED: usize = 3;
    if faults.is_empty() {
        return Ok(());
    }
    let named: Vec<String> = faults.iter().take(NAMED).map(|Fault { path, what }| format!("{path}: {what}")).collect();
    let others = match faults.len() - named.len() {
        0 => String::new(),
        others => format!("; and {others} more"),
    };
    Err(Error::Input(format!(
        "files of {root} are missing or contradict others: {}{others}; `vlmdiff data check PIPELINE` lists all",
        named.join("; ")
    )))
}

/// Makes the listing of the photographs of a data set. Paths are volatile, because contents identify a row.
fn list_photographs(
    Found { listing: found, tree, embedded }: Found<'_>,
    hold_out: HoldOut,
    sources: &Sources,
) -> Result<Listing> {
    let datasets::Listing { records, left_out, faults } = found;
    reject_faults(&tree.root, &faults)?;
    let masks = records.iter().filter_map(|r| Some((r.mask_picture()?, true)));
    let places: Vec<(PicturePlace<'_>, bool)> = records.iter().map(|r| (r.image, false)).chain(masks).collect();
    let in_files = places.iter().filter(|(place, _)| place.row.is_none());
    let mut digests = sources.digests(tree, &in_files.map(|(place, _)| place.path).collect::<Vec<_>>())?.into_iter();
    let contents = places.iter().map(|(place, is_mask)| match place.row {
        None => digests.next(),
        Some(_) => embedded(*place, *is_mask),
    });
    let contents: Vec<Option<Digest>> = contents.collect();
    let (images, masks) = contents.split_at(records.len());
    let mut masks = masks.iter().copied();
    let masks = records.iter().map(|r| r.mask_picture().and_then(|_| masks.next().flatten()));
    let digests = |name: &str, column: ArrayRef| (Field::new(name, column.data_type().clone(), true), column);
    let hidden = |(field, column): (Field, ArrayRef)| (volatile(field), column);
    let number =
        |name: &str, values: UInt32Array| (Field::new(name, DataType::UInt32, true), Arc::new(values) as ArrayRef);
    let splits: Vec<&str> = records.iter().map(|r| hold_out.split(r.split, r.image_id)).collect();
    let mut columns = vec![
        text(IMAGE_ID, records.iter().map(|r| Some(r.image_id))),
        text(CLASS, records.iter().map(|r| Some(r.class))),
        text(SPLIT, splits.iter().copied().map(Some)),
        labels(records.iter().map(|r| r.label)),
        text(DEFECT, records.iter().map(|r| r.defect)),
        text(CAPTION, records.iter().map(|r| r.caption.as_deref())),
        digests(IMAGES.content, digest_array(images.iter().copied())),
        digests(MASKS.content, digest_array(masks)),
        hidden(text(IMAGES.path, records.iter().map(|r| Some(tree.stored(r.image.path))))),
        hidden(number(IMAGES.row, records.iter().map(|r| r.image.row).collect())),
        hidden(text(MASKS.path, records.iter().map(|r| r.mask_picture().map(|mask| tree.stored(mask.path))))),
        hidden(number(MASKS.row, records.iter().map(|r| r.mask_picture()?.row).collect())),
    ];
    if records.iter().any(|r| r.drawing().is_some()) {
        let json = |r: &datasets::Record<'_>| r.drawing().map(serde_json::to_string).transpose();
        let drawings: Result<Vec<Option<String>>, _> = records.iter().map(json).collect();
        let drawings = drawings.map_err(|e| Error::Stage(e.to_string()))?;
        columns.push(text(DRAWING, drawings.iter().map(Option::as_deref)));
    }
    let rows = listing(columns)?;
    let mut notes: Vec<Note> = left_out.into_iter().map(|LeftOut { what, names }| Note::about(what, names)).collect();
    notes.extend(hold_out.notes(records.iter().map(|r| r.class).zip(splits)));
    Ok(Listing { rows, notes })
}

#[cfg(test)]
mod tests;
