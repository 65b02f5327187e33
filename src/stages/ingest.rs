//! Images in: decoded, resized, with labels and masks.

mod masks;

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, StringArray, UInt32Array},
    datatypes::{DataType, Field, Schema, SchemaRef, UInt8Type, UInt32Type},
};
use bytes::Bytes;
use garde::Validate;
use image::metadata::Orientation;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    datasets::{self, Files, LeftOut, folder, synthetic},
    engine::{
        Digest, Error, Result, join,
        source::Sources,
        stage::{Batch, Context, Listing, Misfit, Open, Operator, Output, Ports, Rows, SOURCE, Schemas, Sink, Stage},
        store::{Note, digest_array, volatile},
    },
    tables::{
        images::{self, CAPTION, CLASS, DEFECT, IMAGE_ID, LABEL, SPLIT},
        metrics::MEAN,
        tensor::tensor_column,
    },
    vision::{
        VisionError,
        decode::{self, NoteText, Photograph},
        resize,
    },
};

/// Lists a dataset and reads its images, one row per image.
///
/// Images are turned as their EXIF orientation says, converted to RGB and resized as Pillow does it (bilinear,
/// antialiased, aspect ratio not kept). A mask is stored in two ways, in both of which a pixel above 0 is anomalous.
/// `mask` is binarised at its own size (above 0; in a lossy format, such as JPEG, above half of the range) and 255
/// where more than half of a pixel is covered: the rule of the protocols `exact` and `ader`. `mask_grey` follows the
/// authors' loader: the grey levels of the file, resized and not binarised, so that every pixel that a defect touches
/// is anomalous: the rule of `reference`. Both are null if there is no ground truth.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
#[schemars(extend("examples" = [{ "dataset": "folder", "root": "photos" }]))]
pub struct Ingest {
    /// The layout of the dataset.
    #[garde(skip)]
    pub dataset: Dataset,
    /// The dataset's folder or URL (`s3://`, `gs://`, `az://`, `https://`); not for `synthetic`. Its place is not
    /// part of the images' identity.
    #[garde(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// Height and width of the stored pixels.
    #[garde(range(min = 16, max = 2048))]
    #[serde(default = "default_size")]
    pub size: u32,
    /// The images to generate, for `dataset: synthetic`.
    #[garde(dive)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub synthetic: Option<Synthetic>,
}

fn default_size() -> u32 {
    256
}

/// An on-disk layout, or the generator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dataset {
    /// Photographs in MVTec layout: CLASS/train/good, CLASS/test/KIND, optional CLASS/ground_truth/KIND.
    Folder,
    /// Generated products with generated defects, exact masks and captions.
    Synthetic,
}

/// The images that the generator makes. Each image depends only on the seed and its class, defect and number.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
pub struct Synthetic {
    /// Classes; all of them by default.
    #[garde(length(min = 1))]
    pub classes: Vec<String>,
    /// Normal training images per class.
    #[garde(range(min = 1, max = 100_000))]
    pub train: u32,
    /// Normal test images per class.
    #[garde(range(max = 100_000))]
    pub test_good: u32,
    /// Test images per class and kind of defect.
    #[garde(range(max = 100_000))]
    pub test_per_defect: u32,
    /// The seed. A different seed makes a different dataset.
    #[garde(skip)]
    pub seed: u64,
}

impl Default for Synthetic {
    fn default() -> Self {
        let classes = synthetic::CLASSES.iter().map(ToString::to_string).collect();
        Self { classes, train: 60, test_good: 12, test_per_defect: 4, seed: 0 }
    }
}

impl Synthetic {
    /// Returns the images to generate, in id order.
    pub fn items(&self) -> Result<Vec<synthetic::Item>, synthetic::Error> {
        synthetic::items(&self.classes, self.train, self.test_good, self.test_per_defect)
    }
}

impl Stage for Ingest {
    fn revision(&self) -> u32 {
        3
    }

    fn ports(&self) -> Ports {
        Ports::Named(Vec::new())
    }

    fn makes(&self) -> Output {
        Output::RowPerRow
    }

    fn locations(&self) -> &'static [&'static str] {
        &["root"]
    }

    fn output(&self, _: &Schemas) -> Result<SchemaRef, Misfit> {
        match (self.dataset, &self.root, &self.synthetic) {
            (Dataset::Folder, None, _) => {
                return Err(Misfit::parameter(
                    "root",
                    "it is missing: the folder of the photographs (CLASS/train/good/*.png, …)",
                ));
            }
            (Dataset::Folder, _, Some(_)) => {
                return Err(Misfit::parameter("synthetic", "it belongs to `dataset: synthetic`"));
            }
            (Dataset::Synthetic, Some(_), _) => {
                return Err(Misfit::parameter("root", "it belongs to `dataset: folder`; the generator reads no files"));
            }
            _ => {}
        }
        if let Some(class) =
            self.synthetic.iter().flat_map(|s| &s.classes).find(|c| !synthetic::CLASSES.contains(&c.as_str()))
        {
            return Err(Misfit::parameter(
                "synthetic",
                format!("there is no class `{class}`; classes are {}", synthetic::CLASSES.join(", ")),
            ));
        }
        Ok(images::schema(self.size as usize))
    }

    fn list(&self, sources: &Sources) -> Result<Option<Listing>> {
        Ok(Some(match self.dataset {
            Dataset::Folder => list_folder(self.root(), sources)?,
            Dataset::Synthetic => list_synthetic(&self.synthetic.clone().unwrap_or_default())?.into(),
        }))
    }
}

impl Ingest {
    fn root(&self) -> &str {
        self.root.as_deref().unwrap_or(".")
    }
}

/// Makes the rows of a listing, as they are outside the store.
fn listing(columns: Vec<(Field, ArrayRef)>) -> Result<RecordBatch> {
    let (fields, arrays): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)?)
}

fn text<'a>(name: &str, values: impl Iterator<Item = Option<&'a str>>) -> (Field, ArrayRef) {
    (Field::new(name, DataType::Utf8, true), Arc::new(values.collect::<StringArray>()))
}

/// Lists a dataset's folder. Paths are volatile, because contents identify a row.
fn list_folder(root: &str, sources: &Sources) -> Result<Listing> {
    let expected = |e| Error::Input(format!("{e}; expected a folder or URL with CLASS/train/good/*.png"));
    let tree = sources.tree(root).map_err(expected)?;
    let (name, paths, hidden) = (tree.name(), tree.paths().collect::<Vec<_>>(), tree.hidden().collect::<Vec<_>>());
    let dead: Vec<&str> = tree.dead_links().collect();
    let read = |path: &str| Ok(sources.read(&join(root, path)?)?.to_vec());
    let files = Files { mean: MEAN, root, name: &name, paths: &paths, hidden: &hidden, dead: &dead, read: &read };
    let datasets::Listing { records, left_out } = folder::list(&files).map_err(|e| Error::Input(e.to_string()))?;
    let files: Vec<&str> = records.iter().map(|r| r.image_id).chain(records.iter().filter_map(|r| r.mask)).collect();
    let contents = sources.digests(&tree, &files)?;
    let (images, masks) = contents.split_at(records.len());
    let mut masks = masks.iter().copied();
    let digests = |name: &str, column: ArrayRef| (Field::new(name, column.data_type().clone(), true), column);
    let (mask_path, mask_paths) = text("mask_path", records.iter().map(|r| r.mask));
    let rows = listing(vec![
        text(IMAGE_ID, records.iter().map(|r| Some(r.image_id))),
        text(CLASS, records.iter().map(|r| Some(r.class))),
        text(SPLIT, records.iter().map(|r| Some(r.split))),
        labels(records.iter().map(|r| r.label)),
        text(DEFECT, records.iter().map(|r| Some(r.defect))),
        text(CAPTION, records.iter().map(|r| r.caption.as_deref())),
        digests("image_content", digest_array(images.iter().copied().map(Some))),
        digests("mask_content", digest_array(records.iter().map(|r| r.mask.and_then(|_| masks.next())))),
        (volatile(mask_path), mask_paths),
    ])?;
    let notes = left_out.into_iter().map(|LeftOut { what, names }| Note::about(what, names)).collect();
    Ok(Listing { rows, notes })
}

fn labels(values: impl Iterator<Item = bool>) -> (Field, ArrayRef) {
    (Field::new(LABEL, DataType::Boolean, false), Arc::new(values.map(Some).collect::<BooleanArray>()))
}

fn list_synthetic(spec: &Synthetic) -> Result<RecordBatch> {
    let items = spec.items().map_err(|e| Error::Input(e.to_string()))?;
    let ids: Vec<String> = items.iter().map(synthetic::Item::image_id).collect();
    let index = UInt32Array::from_iter_values(items.iter().map(|item| item.index));
    listing(vec![
        text(IMAGE_ID, ids.iter().map(|id| Some(id.as_str()))),
        text(CLASS, items.iter().map(|item| Some(item.class.name()))),
        text(SPLIT, items.iter().map(|item| Some(item.split.name()))),
        labels(items.iter().map(|item| item.defect.is_some())),
        text(DEFECT, items.iter().map(|item| Some(item.label()))),
        (Field::new("index", DataType::UInt32, false), Arc::new(index)),
    ])
}

impl Open for Ingest {
    fn open(self, context: &Context) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Reader { stage: self, sources: context.sources.clone() }))
    }
}

struct Reader {
    stage: Ingest,
    sources: Sources,
}

/// The explanation for a picture whose size differs from that in its file.
const TURNED: &str = " (turned as its EXIF orientation says)";

/// The reason why an image cannot be used.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Read(#[from] Error),
    #[error("{address} changed while it was being read; run again")]
    Changed { address: String },
    #[error("{address}: {source}")]
    Decode { address: String, source: VisionError },
    #[error(
        "the mask {mask} is {}x{} and its image {image} is {}x{}{turned}; a mask has the size of its image",
        mask_size.0, mask_size.1, image_size.0, image_size.1
    )]
    MaskSize { mask: String, mask_size: (u32, u32), image: String, image_size: (u32, u32), turned: &'static str },
    #[error(transparent)]
    Synthetic(#[from] synthetic::Error),
}

/// A listed file and its content.
struct File {
    address: String,
    content: Option<Digest>,
    read: Result<Bytes>,
}

impl File {
    /// Decodes the content if it is the one that was listed, because the row is stored under the digest of the listed
    /// content.
    fn decode<T>(self, decode: fn(&[u8]) -> Result<T, VisionError>) -> Result<(String, T), Failure> {
        let (address, bytes) = (self.address, self.read?);
        if Some(Digest::of(&bytes)) != self.content {
            return Err(Failure::Changed { address });
        }
        match decode(&bytes) {
            Ok(decoded) => Ok((address, decoded)),
            Err(source) => Err(Failure::Decode { address, source }),
        }
    }
}

/// A decoded row.
struct Image {
    uri: Option<String>,
    file_digest: Option<String>,
    width: u32,
    height: u32,
    caption: Option<String>,
    pixels: Vec<u8>,
    mask: Option<Vec<u8>>,
    mask_grey: Option<Vec<u8>>,
    /// Notes on properties of the row that the user may not have intended.
    notes: Vec<NoteText>,
}

impl Operator for Reader {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        while let Some(batch) = rows.next(64)? {
            let images: Vec<Result<Image, Failure>> = match self.stage.dataset {
                Dataset::Folder => {
                    let decode = |(row, (image, mask))| self.photograph(&batch, row, image, mask);
                    self.files(&batch)?.into_par_iter().enumerate().map(decode).collect()
                }
                Dataset::Synthetic => (0..batch.len()).into_par_iter().map(|row| self.generated(&batch, row)).collect(),
            };
            let mut good = Vec::with_capacity(images.len());
            for (row, image) in images.into_iter().enumerate() {
                match image {
                    Ok(image) => {
                        image.notes.iter().for_each(|note| out.note(note, &batch.ids[row]));
                        good.push((row as u32, image));
                    }
                    Err(failure) => out.fail(&batch.ids[row], failure)?,
                }
            }
            out.write_columns(self.columns(&batch, good)?)?;
        }
        Ok(())
    }
}

impl Reader {
    /// Reads the image and, if there is one, the mask of each row. All files are read concurrently, which hides the
    /// latency of servers.
    fn files(&self, batch: &Batch) -> Result<Vec<(File, Option<File>)>> {
        let mask_path = batch.column(SOURCE, "mask_path")?.as_string::<i32>();
        let listed = |row, path: &str, contents: &str| -> Result<_> {
            let content = Digest::from_slice(batch.column(SOURCE, contents)?.as_fixed_size_binary().value(row));
            Ok((join(self.stage.root(), path)?, content))
        };
        let images = batch.ids.iter().enumerate().map(|(row, id)| listed(row, id, "image_content"));
        let masked = mask_path.iter().enumerate().filter_map(|(row, path)| Some((row, path?)));
        let masks = masked.map(|(row, path)| listed(row, path, "mask_content"));
        let (addresses, contents): (Vec<String>, Vec<_>) =
            images.chain(masks).collect::<Result<Vec<_>>>()?.into_iter().unzip();
        let read = self.sources.read_all(&addresses);
        let mut files = addresses.into_iter().zip(contents).zip(read).map(|((address, content), read)| File {
            address,
            content,
            read,
        });
        let images: Vec<File> = files.by_ref().take(batch.len()).collect();
        Ok(images.into_iter().zip(mask_path).map(|(image, mask)| (image, mask.and_then(|_| files.next()))).collect())
    }

    fn photograph(&self, batch: &Batch, row: usize, image: File, mask: Option<File>) -> Result<Image, Failure> {
        let file_digest = image.content.map(|content| content.to_string());
        let (address, Photograph { image, turn, mut notes }) = image.decode(decode::photograph)?;
        let (width, height) = image.dimensions();
        let size = self.stage.size;
        let (mask, mask_grey) = match mask {
            Some(mask) => {
                let (mask_address, mask) = mask.decode(decode::mask)?;
                let mask = masks::aligned(mask, &image, turn);
                if mask.any.dimensions() != (width, height) {
                    let turned = if turn == Orientation::NoTransforms { "" } else { TURNED };
                    let (mask_size, image_size) = (mask.any.dimensions(), (width, height));
                    return Err(Failure::MaskSize {
                        mask: mask_address,
                        mask_size,
                        image: address,
                        image_size,
                        turned,
                    });
                }
                let resized = |mask| resize::grey(mask, size, size, resize::Filter::Bilinear);
                let any = resized(&mask.any);
                let grey = mask.grey.as_ref().map_or_else(|| any.clone(), resized);
                let majority = resize::majority(any);
                notes.extend(mask.notes);
                notes.extend(masks::lost_by_resizing(&mask.any, &majority));
                (Some(majority.into_raw()), Some(grey.into_raw()))
            }
            None => (self.empty_mask(batch, row)?, None),
        };
        let pixels = resize::rgb(&image, size, size, resize::Filter::Bilinear).into_raw();
        let caption = batch.column(SOURCE, CAPTION)?.as_string::<i32>();
        let caption = caption.is_valid(row).then(|| caption.value(row).to_owned());
        Ok(Image { uri: Some(address), file_digest, width, height, caption, pixels, mask, mask_grey, notes })
    }

    fn generated(&self, batch: &Batch, row: usize) -> Result<Image, Failure> {
        let spec = self.stage.synthetic.clone().unwrap_or_default();
        let text = |name| batch.column(SOURCE, name).map(|column| column.as_string::<i32>().value(row));
        let index = batch.column(SOURCE, "index")?.as_primitive::<UInt32Type>().value(row);
        let item = synthetic::Item {
            class: text(CLASS)?.parse()?,
            split: if text(SPLIT)? == "train" { synthetic::Split::Train } else { synthetic::Split::Test },
            defect: synthetic::Defect::ALL
                .into_iter()
                .find(|defect| text(DEFECT).is_ok_and(|name| name == defect.name())),
            index,
        };
        let size = self.stage.size;
        let sample = synthetic::render(&item, spec.seed, size);
        Ok(Image {
            uri: None,
            file_digest: None,
            width: size,
            height: size,
            caption: Some(sample.caption),
            pixels: sample.image.into_raw(),
            mask: Some(sample.mask.into_raw()),
            mask_grey: None,
            notes: Vec::new(),
        })
    }

    /// Returns the mask of an image without a mask file: without anomalous pixels for a normal image, `None` for an
    /// anomalous one, whose ground truth is unknown.
    fn empty_mask(&self, batch: &Batch, row: usize) -> Result<Option<Vec<u8>>> {
        let anomalous = batch.column(SOURCE, LABEL)?.as_boolean().value(row);
        Ok((!anomalous).then(|| vec![0; (self.stage.size * self.stage.size) as usize]))
    }

    fn columns(&self, batch: &Batch, good: Vec<(u32, Image)>) -> Result<Vec<ArrayRef>> {
        let rows: UInt32Array = good.iter().map(|(row, _)| *row).collect();
        let listed = |name: &str| Ok::<_, Error>(arrow::compute::take(batch.column(SOURCE, name)?, &rows, None)?);
        let size = self.stage.size as usize;
        let masks = |of: fn(&Image) -> Option<&Vec<u8>>| {
            let none = vec![0; size * size];
            let rows: Vec<&[u8]> = good.iter().map(|(_, image)| of(image).unwrap_or(&none).as_slice()).collect();
            let valid = good.iter().map(|(_, image)| of(image).is_some()).collect();
            tensor_column::<UInt8Type>(rows.concat(), size * size, Some(valid))
        };
        let pixels: Vec<&[u8]> = good.iter().map(|(_, image)| image.pixels.as_slice()).collect();
        Ok(vec![
            listed(IMAGE_ID)?,
            listed(CLASS)?,
            listed(SPLIT)?,
            listed(LABEL)?,
            listed(DEFECT)?,
            Arc::new(StringArray::from_iter(good.iter().map(|(_, image)| image.uri.as_deref()))),
            Arc::new(StringArray::from_iter(good.iter().map(|(_, image)| image.file_digest.as_deref()))),
            Arc::new(UInt32Array::from_iter_values(good.iter().map(|(_, image)| image.width))),
            Arc::new(UInt32Array::from_iter_values(good.iter().map(|(_, image)| image.height))),
            Arc::new(StringArray::from_iter(good.iter().map(|(_, image)| image.caption.as_deref()))),
            tensor_column::<UInt8Type>(pixels.concat(), size * size * 3, None)?,
            masks(|image| image.mask.as_ref())?,
            masks(|image| image.mask_grey.as_ref().or(image.mask.as_ref()))?,
        ])
    }
}

#[cfg(test)]
mod tests;
