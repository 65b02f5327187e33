//! Images in: decoded, resized, with labels and masks.

use std::{path::PathBuf, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, StringArray, UInt32Array},
    datatypes::{DataType, Field, Schema, SchemaRef, UInt8Type, UInt32Type},
};
use garde::Validate;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::column;
use crate::{
    datasets::{folder, synthetic},
    engine::{
        Digest, Error, Result, Sources,
        columns::volatile,
        stage::{Context, Open, Operator, Output, Ports, Schemas, Stage},
        task::{Batch, Rows, SOURCE, Sink},
        tensor_field,
    },
    vision::{decode, resize},
};

/// Lists a dataset and reads its images, one row per image.
///
/// Images are converted to RGB and resized as Pillow does it (bilinear, antialiased, aspect ratio not kept). Masks are
/// binarised at their own size and resized by the rule "at least half covered".
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
pub struct Ingest {
    /// Which layout to read.
    #[garde(skip)]
    pub dataset: Dataset,
    /// The dataset's folder; not for `synthetic`. Where it lies is no part of the images' identity.
    #[garde(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<PathBuf>,
    /// Height and width of the stored pixels.
    #[garde(range(min = 16, max = 2048))]
    #[serde(default = "default_size")]
    pub size: u32,
    /// What to generate, for `dataset: synthetic`.
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

/// What the generator makes. Each image depends on the seed, its class, defect and number alone.
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
    /// Another seed makes another dataset.
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
    /// The images to generate, in id order.
    pub fn items(&self) -> Result<Vec<synthetic::Item>, synthetic::Error> {
        synthetic::items(&self.classes, self.train, self.test_good, self.test_per_defect)
    }
}

impl Stage for Ingest {
    const NAME: &'static str = "ingest";
    const REVISION: u32 = 1;
    const PORTS: Ports = Ports::Named(&[]);
    const OUTPUT: &'static [Output] = &[Output::RowPerRow];
    const LOCATIONS: &'static [&'static str] = &["root"];

    fn output(&self, _: &Schemas) -> Result<SchemaRef, String> {
        match (self.dataset, &self.root, &self.synthetic) {
            (Dataset::Folder, None, _) => {
                return Err("`root` is missing: the folder of the photographs (CLASS/train/good/*.png, …)".into());
            }
            (Dataset::Folder, _, Some(_)) => return Err("`synthetic` belongs to `dataset: synthetic`".into()),
            (Dataset::Synthetic, Some(_), _) => {
                return Err("`root` belongs to `dataset: folder`; the generator reads no files".into());
            }
            _ => {}
        }
        if let Some(class) =
            self.synthetic.iter().flat_map(|s| &s.classes).find(|c| !synthetic::CLASSES.contains(&c.as_str()))
        {
            return Err(format!(
                "`synthetic`: there is no class `{class}`; classes are {}",
                synthetic::CLASSES.join(", ")
            ));
        }
        let size = self.size as usize;
        Ok(Arc::new(Schema::new(vec![
            column::image_id(),
            Field::new("class", DataType::Utf8, false),
            Field::new("split", DataType::Utf8, false),
            Field::new("label", DataType::Boolean, false),
            Field::new("defect", DataType::Utf8, false),
            volatile(Field::new("uri", DataType::Utf8, true)),
            Field::new("width", DataType::UInt32, false),
            Field::new("height", DataType::UInt32, false),
            Field::new("caption", DataType::Utf8, true),
            tensor_field("pixels", DataType::UInt8, &[size, size, 3], false),
            tensor_field("mask", DataType::UInt8, &[size, size], true),
        ])))
    }

    fn list(&self, _: &Sources) -> Result<Option<RecordBatch>> {
        Ok(Some(match self.dataset {
            Dataset::Folder => list_folder(self.root.as_deref().unwrap_or_else(|| std::path::Path::new(".")))?,
            Dataset::Synthetic => list_synthetic(&self.synthetic.clone().unwrap_or_default())?,
        }))
    }
}

/// The rows as they are outside the store. Paths are volatile; contents are what identifies a row.
fn listing(extra: Vec<(Field, ArrayRef)>, rows: &[Listed]) -> Result<RecordBatch> {
    let text = |f: fn(&Listed) -> Option<&str>| Arc::new(StringArray::from_iter(rows.iter().map(f))) as ArrayRef;
    let mut columns: Vec<(Field, ArrayRef)> = vec![
        (column::image_id(), text(|r| Some(&r.id))),
        (Field::new("class", DataType::Utf8, false), text(|r| Some(&r.class))),
        (Field::new("split", DataType::Utf8, false), text(|r| Some(r.split))),
        (
            Field::new("label", DataType::Boolean, false),
            Arc::new(BooleanArray::from_iter(rows.iter().map(|r| Some(r.label)))),
        ),
        (Field::new("defect", DataType::Utf8, false), text(|r| Some(&r.defect))),
        (Field::new("caption", DataType::Utf8, true), text(|r| r.caption.as_deref())),
    ];
    columns.extend(extra);
    let (fields, arrays): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)?)
}

struct Listed {
    id: String,
    class: String,
    split: &'static str,
    label: bool,
    defect: String,
    caption: Option<String>,
}

fn list_folder(root: &std::path::Path) -> Result<RecordBatch> {
    let records = folder::list(root).map_err(|e| Error::Input(e.to_string()))?;
    let digest = |path: &PathBuf| match Digest::of_file(path) {
        Ok(digest) => Ok(digest.to_string()),
        Err(e) => Err(Error::Input(format!("cannot read {}: {e}", path.display()))),
    };
    let contents = records
        .par_iter()
        .map(|r| Ok((digest(&r.image)?, r.mask.as_ref().map(digest).transpose()?)))
        .collect::<Result<Vec<_>>>()?;
    let text = |values: Vec<Option<String>>| Arc::new(StringArray::from(values)) as ArrayRef;
    let field = |name: &str| Field::new(name, DataType::Utf8, true);
    let path = |path: &PathBuf| path.to_string_lossy().into_owned();
    let extra = vec![
        (field("image_content"), text(contents.iter().map(|(image, _)| Some(image.clone())).collect())),
        (field("mask_content"), text(contents.iter().map(|(_, mask)| mask.clone()).collect())),
        (volatile(field("image_path")), text(records.iter().map(|r| Some(path(&r.image))).collect())),
        (volatile(field("mask_path")), text(records.iter().map(|r| r.mask.as_ref().map(path)).collect())),
    ];
    let rows: Vec<Listed> = records
        .into_iter()
        .map(|r| Listed {
            id: r.image_id,
            class: r.class,
            split: if r.split == "train" { "train" } else { "test" },
            label: r.label,
            defect: r.defect,
            caption: r.caption,
        })
        .collect();
    listing(extra, &rows)
}

fn list_synthetic(spec: &Synthetic) -> Result<RecordBatch> {
    let items = spec.items().map_err(|e| Error::Input(e.to_string()))?;
    let rows: Vec<Listed> = items
        .iter()
        .map(|item| Listed {
            id: item.image_id(),
            class: item.class.name().into(),
            split: item.split.name(),
            label: item.defect.is_some(),
            defect: item.label().into(),
            caption: None,
        })
        .collect();
    let index = UInt32Array::from_iter_values(items.iter().map(|item| item.index));
    listing(vec![(Field::new("index", DataType::UInt32, false), Arc::new(index))], &rows)
}

impl Open for Ingest {
    fn open(self, context: &Context) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Reader { stage: self, output: context.output.clone() }))
    }
}

struct Reader {
    stage: Ingest,
    output: SchemaRef,
}

/// A decoded row.
struct Image {
    uri: Option<String>,
    width: u32,
    height: u32,
    caption: Option<String>,
    pixels: Vec<u8>,
    mask: Option<Vec<u8>>,
}

impl Operator for Reader {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        while let Some(batch) = rows.next(32)? {
            let images: Vec<Result<Image, String>> =
                (0..batch.len()).into_par_iter().map(|row| self.image(&batch, row)).collect();
            let mut good = Vec::with_capacity(images.len());
            for (row, image) in images.into_iter().enumerate() {
                match image {
                    Ok(image) => good.push((row as u32, image)),
                    Err(message) => out.fail(&batch.ids[row], message)?,
                }
            }
            out.write(&self.batch(&batch, good)?)?;
        }
        Ok(())
    }
}

impl Reader {
    fn image(&self, batch: &Batch, row: usize) -> Result<Image, String> {
        match self.stage.dataset {
            Dataset::Folder => self.photograph(batch, row),
            Dataset::Synthetic => self.generated(batch, row),
        }
    }

    fn photograph(&self, batch: &Batch, row: usize) -> Result<Image, String> {
        let text = |name: &str| {
            let column = batch.column(SOURCE, name).map_err(|e| e.to_string())?.as_string::<i32>();
            Ok::<_, String>(column.is_valid(row).then(|| column.value(row).to_owned()))
        };
        let read = |path: &str| std::fs::read(path).map_err(|e| format!("cannot read {path}: {e}"));
        let path = text("image_path")?.unwrap_or_default();
        let image = decode::rgb(&read(&path)?).map_err(|e| format!("{path}: {e}"))?;
        let (width, height) = image.dimensions();
        let size = self.stage.size;
        let mask = match text("mask_path")? {
            Some(mask_path) => {
                let mask = decode::mask(&read(&mask_path)?).map_err(|e| format!("{mask_path}: {e}"))?;
                if mask.dimensions() != (width, height) {
                    let (w, h) = mask.dimensions();
                    return Err(format!(
                        "the mask {mask_path} is {w}x{h} and its image {path} is {width}x{height}; a mask has the size of its image"
                    ));
                }
                Some(resize::mask(&mask, size, size).into_raw())
            }
            None => self.empty_mask(batch, row)?,
        };
        let pixels = resize::rgb(&image, size, size, resize::Filter::Bilinear).into_raw();
        Ok(Image { uri: Some(path), width, height, caption: text("caption")?, pixels, mask })
    }

    fn generated(&self, batch: &Batch, row: usize) -> Result<Image, String> {
        let spec = self.stage.synthetic.clone().unwrap_or_default();
        let text = |name| {
            batch.column(SOURCE, name).map(|column| column.as_string::<i32>().value(row)).map_err(|e| e.to_string())
        };
        let index = batch.column(SOURCE, "index").map_err(|e| e.to_string())?.as_primitive::<UInt32Type>().value(row);
        let item = synthetic::Item {
            class: text("class")?.parse().map_err(|e: synthetic::Error| e.to_string())?,
            split: if text("split")? == "train" { synthetic::Split::Train } else { synthetic::Split::Test },
            defect: synthetic::Defect::ALL
                .into_iter()
                .find(|defect| text("defect").is_ok_and(|name| name == defect.name())),
            index,
        };
        let size = self.stage.size;
        let sample = synthetic::render(&item, spec.seed, size);
        Ok(Image {
            uri: None,
            width: size,
            height: size,
            caption: Some(sample.caption),
            pixels: sample.image.into_raw(),
            mask: Some(sample.mask.into_raw()),
        })
    }

    /// A normal image has no anomalous pixel; of an anomalous image without ground truth nothing is known.
    fn empty_mask(&self, batch: &Batch, row: usize) -> Result<Option<Vec<u8>>, String> {
        let anomalous = batch.column(SOURCE, "label").map_err(|e| e.to_string())?.as_boolean().value(row);
        Ok((!anomalous).then(|| vec![0; (self.stage.size * self.stage.size) as usize]))
    }

    fn batch(&self, batch: &Batch, good: Vec<(u32, Image)>) -> Result<RecordBatch> {
        let rows: UInt32Array = good.iter().map(|(row, _)| *row).collect();
        let listed = |name: &str| Ok::<_, Error>(arrow::compute::take(batch.column(SOURCE, name)?, &rows, None)?);
        let size = self.stage.size as usize;
        let valid = good.iter().map(|(_, image)| image.mask.is_some()).collect();
        let masks =
            good.iter().flat_map(|(_, image)| image.mask.clone().unwrap_or_else(|| vec![0; size * size])).collect();
        let columns: Vec<ArrayRef> = vec![
            listed(column::IMAGE_ID)?,
            listed("class")?,
            listed("split")?,
            listed("label")?,
            listed("defect")?,
            Arc::new(StringArray::from_iter(good.iter().map(|(_, image)| image.uri.as_deref()))),
            Arc::new(UInt32Array::from_iter_values(good.iter().map(|(_, image)| image.width))),
            Arc::new(UInt32Array::from_iter_values(good.iter().map(|(_, image)| image.height))),
            Arc::new(StringArray::from_iter(good.iter().map(|(_, image)| image.caption.as_deref()))),
            column::tensors::<UInt8Type>(
                good.iter().flat_map(|(_, image)| image.pixels.iter().copied()).collect(),
                size * size * 3,
                None,
            )?,
            column::tensors::<UInt8Type>(masks, size * size, Some(valid))?,
        ];
        Ok(RecordBatch::try_new(self.output.clone(), columns)?)
    }
}
