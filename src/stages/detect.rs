//! Images and what a method has kept -> anomaly maps.

mod neighbours;

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::{Array, AsArray},
    datatypes::{DataType, Schema, SchemaRef},
};
use garde::Validate;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, TchError, Tensor};
use vlmdiff_metrics::{blur::Border, windows};

use self::neighbours::{FEATURES, Neighbours};
use super::{
    extract::{Extract, patches_of},
    finish::{Blur, Finished, Window},
    fit::{Classes, FittedConfig},
    network_files::NetworkFiles,
    side_by_side::SideBySide,
    tensors::{checkpoint, device, normalise, open_blob, tensor},
};
use crate::{
    engine::{
        Digest, Error, Result,
        stage::{Column, Context, Misfit, Open, Operator, Output, Port, Ports, Rows, Schemas, Sink, Stage},
    },
    features::{
        LoadedExtractor,
        embedding::{Pooling, Upsample},
    },
    methods::{Detection, Detector, Doing, Scorer, WorstPatch, most_anomalous},
    tables::{
        anomaly_maps,
        column::missing,
        features::{NETWORK, parameters_of, shape_of},
        fitted,
        images::{self, CLASS},
        nearest::{self, Nearest},
        weights::{WEIGHTS, config_of},
    },
};

/// Scores images by what a method has kept of normal ones (`fit`).
///
/// The scores of patches are resized to the image, and maps are blurred. Outside of an image's `roi` its map has its lowest
/// value, and its score is made of the patches that touch the `roi`. Each image is computed on its own, so that its map is the
/// same bit for bit whatever else is in the table.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
#[schemars(extend("examples" = [{ "sigma": 4 }]))]
pub struct Detect {
    /// The way in which the scores of patches become a map of the image's size. A method that is trained on images makes
    /// such a map itself.
    #[garde(skip)]
    #[serde(default)]
    pub upsample: Upsample,
    /// Standard deviation of the Gaussian blur, in pixels of the map; 0 for none.
    #[garde(range(min = 0., max = 64.))]
    #[serde(default = "default_sigma")]
    pub sigma: f64,
    /// The continuation of a map beyond its border while it is blurred.
    #[garde(skip)]
    #[serde(default)]
    pub border: Border,
    /// The rule by which the image's score is made.
    #[garde(dive)]
    #[serde(default)]
    pub score: ImageScore,
}

fn default_sigma() -> f64 {
    4.
}

/// The rule by which the image's score is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(rename_all = "snake_case")]
pub enum ImageScore {
    /// The method's own rule. Methods that compare patches make it of their scores; of the others most take the largest
    /// value of the blurred map.
    #[default]
    Method,
    /// The largest value of the blurred map.
    Max,
    /// The mean of this share of the blurred map's largest values.
    Top(#[garde(range(min = 0., max = 1.))] f64),
    /// The largest mean over windows of the blurred map.
    Window(#[garde(dive)] Window),
}

impl Stage for Detect {
    fn revision(&self) -> u32 {
        6
    }

    fn ports(&self) -> Ports {
        let class = Column::new(CLASS, DataType::Utf8);
        Ports::Named(vec![
            Port::rows("images", [class, images::pixels_column(), images::roi_column()]),
            Port::table("fitted", fitted::columns()),
            Port::table(FEATURES, neighbours::columns()).optional(),
        ])
    }

    fn makes(&self) -> Output {
        Output::RowPerRow
    }

    fn memory_advice(&self) -> &'static str {
        "keep fewer vectors in the fit"
    }

    fn memory(&self, inputs: &Schemas, _: u64, whole: &BTreeMap<&str, u64>) -> Option<u64> {
        let [patches, channels] = shape_of(inputs, FEATURES)?;
        Some(Neighbours::memory(whole.get(FEATURES)? * patches, channels))
    }

    fn output(&self, inputs: &Schemas) -> Result<SchemaRef, Misfit> {
        let [height, width] = images::judged_size(inputs)?;
        let FittedConfig { method, features, .. } = config_of(inputs, "fitted")?;
        method.check_size([height, width]).map_err(|why| Misfit::input("images", why))?;
        if method.is_trained() && self.upsample != Upsample::default() {
            let why = format!("`{}` makes maps of the image's size itself; leave it out", method.name());
            return Err(Misfit::parameter("upsample", why));
        }
        if let ImageScore::Window(window) = self.score {
            window.check([height, width], "score.window")?;
        }
        let maps = anomaly_maps::schema([height, width]);
        if inputs.get(FEATURES).is_none() {
            return Ok(maps);
        }
        let given: Extract = parameters_of(inputs, FEATURES)?;
        match features {
            None => Err(Misfit::input(FEATURES, format!("`{}` compares no patches; leave it out", method.name()))),
            Some(features) if !given.is_comparable(&features) => Err(Misfit::input(
                FEATURES,
                "its patches were made with other parameters than those that were fitted on",
            )),
            Some(_) => {
                let fields = maps.fields().iter().cloned().chain(nearest::fields().into_iter().map(Arc::new));
                Ok(Arc::new(Schema::new(fields.collect::<Vec<_>>())))
            }
        }
    }
}

impl Open for Detect {
    fn open(self, context: &Context) -> Result<Box<dyn Operator>> {
        let device = device(context)?;
        let FittedConfig { method, classes, features } = config_of(&context.schemas, "fitted")?;
        let none = || Error::Input("the table at `fitted` has no rows: there was nothing to fit on".into());
        let table = context.tables.get("fitted").filter(|table| table.num_rows() > 0).ok_or_else(none)?;
        let column = |name: &str| {
            let column = table.column_by_name(name).and_then(|column| column.as_string_opt::<i32>());
            column.ok_or_else(|| Error::Stage(format!("the table at `fitted` lacks the text column `{name}`")))
        };
        // The last row of a class that names weights counts.
        let mut fitted = BTreeMap::new();
        for (class, weights) in column(CLASS)?.iter().zip(column(WEIGHTS)?) {
            let Some(weights) = weights else { continue };
            let digest: Digest = weights.parse().map_err(Error::Damaged)?;
            fitted.insert(class.map(str::to_owned), digest);
        }
        let fitted_classes = fitted.keys().flatten().cloned().collect();
        let network = column(NETWORK)?.value(0);
        let files = NetworkFiles::of(network)?.local(&context.store)?;
        let (detector, neighbours) = match method.doing() {
            Doing::OnImages(method) => {
                let mut trained = BTreeMap::new();
                for (class, digest) in fitted {
                    trained.insert(class, open_blob(&context.store, digest)?);
                }
                (method.detector(files.path(), &trained, device).map_err(checkpoint)?, None)
            }
            Doing::OnFeatures(method) => {
                let unknown = || Error::Stage("what was fitted does not say of which features".into());
                let features = features.ok_or_else(unknown)?;
                let mut scorers = BTreeMap::new();
                for (class, digest) in fitted {
                    let kept = open_blob(&context.store, digest)?;
                    scorers.insert(class, method.scorer(&kept, device).map_err(checkpoint)?);
                }
                let neighbours = context.tables.get(FEATURES);
                let neighbours =
                    neighbours.map(|table| Neighbours::of(table, classes, network, method.distance(), device));
                let network = features.extractor.open(files.path(), &features.options(), device)?;
                let detector: Box<dyn Detector> =
                    Box::new(ByPatches { network, pooling: features.pooling, scorers, upsample: self.upsample });
                (detector, neighbours.transpose()?)
            }
        };
        Ok(Box::new(Detecting {
            stage: self,
            fitted: Fitted { detector, classes, fitted_classes, neighbours },
            images: SideBySide::new(device)?,
            device,
            batch_size: context.batch_size.unwrap_or(16),
        }))
    }
}

/// A method that compares patches, with the network that makes them.
struct ByPatches {
    network: LoadedExtractor,
    pooling: Pooling,
    /// The scorer of each class, or of all.
    scorers: BTreeMap<Option<String>, Box<dyn Scorer>>,
    upsample: Upsample,
}

impl Detector for ByPatches {
    fn detect(&self, class: Option<&str>, image: &Tensor, roi: Option<&[bool]>) -> Result<Option<Detection>, TchError> {
        let Some(scorer) = self.scorers.get(&class.map(str::to_owned)) else { return Ok(None) };
        let (_, _, height, width) = image.size4()?;
        let patches = patches_of(&self.network, self.pooling, image);
        let judged = roi.map(|roi| touching(roi, [height, width], patches.grid));
        let scores = scorer.score(&patches.values, patches.grid, judged.as_ref())?;
        let [h, w] = patches.grid;
        let map = self.upsample.to_size(&scores.patches.f_view([1, 1, h, w])?, [height, width]);
        let row = most_anomalous(&scores.patches, judged.as_ref())?;
        let worst = WorstPatch { features: patches.values.f_narrow(0, row, 1)?, centre: patches.centre(row) };
        Ok(Some(Detection { map: map.f_view([height, width])?, image: Some(scores.image), worst: Some(worst) }))
    }
}

/// Returns the numbers of the patches of an image's grid that touch the pixels that are judged, i64 `[J]`.
fn touching(roi: &[bool], [height, width]: [i64; 2], [h, w]: [i64; 2]) -> Tensor {
    let mut is_touching = vec![false; (h * w) as usize];
    for (pixel, _) in (0..).zip(roi).filter(|(_, is_judged)| **is_judged) {
        let (y, x) = (pixel / width, pixel % width);
        is_touching[(y * h / height * w + x * w / width) as usize] = true;
    }
    let touching = (0..).zip(is_touching).filter(|(_, is_touching)| *is_touching).map(|(number, _)| number);
    Tensor::from_slice(&touching.collect::<Vec<i64>>())
}

/// The fitted models of all classes, each with a detector.
struct Fitted {
    detector: Box<dyn Detector>,
    classes: Classes,
    /// The classes for which something was fitted, if they are separate.
    fitted_classes: Vec<String>,
    /// The patches of good photographs in which the nearest one is sought, if they are read.
    neighbours: Option<Neighbours>,
}

struct Detecting {
    stage: Detect,
    fitted: Fitted,
    images: SideBySide,
    device: Device,
    /// The number of rows that are written at a time; each image is computed on its own.
    batch_size: usize,
}

impl Operator for Detecting {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        while let Some(batch) = rows.next(self.batch_size)? {
            let pixels = tensor(&batch, "images", images::PIXELS)?.to_device(self.device);
            let (_, height, width, _) = pixels.size4()?;
            let classes = batch.column("images", CLASS)?.as_string::<i32>();
            let (ids, rois) = (&batch.ids, images::rois(&batch)?);
            let detect = |fitted: &Fitted, row: usize, pixels: &Tensor| {
                let class = classes.is_valid(row).then(|| classes.value(row));
                let Detection { map, image, worst } = fitted.detect(&ids[row], class, pixels, rois[row].as_deref())?;
                let map = Vec::<f64>::try_from(map.to_kind(Kind::Double).flatten(0, -1))?;
                Ok(((map, image), fitted.nearest(class, worst)?))
            };
            // SAFETY: nothing writes to what was fitted while it detects, and what layers keep lies in `OnceLock`s.
            let found = unsafe { self.images.each(&self.fitted, &pixels, detect) }?;
            let (found, nearest): (Vec<(Vec<f64>, Option<f64>)>, Vec<Option<Nearest>>) = found.into_iter().unzip();
            let size = [height as usize, width as usize];
            let Detect { sigma, border, score, .. } = self.stage;
            let finished = |((map, own), roi): (&(Vec<f64>, Option<f64>), &Option<Vec<bool>>)| {
                Finished::of(map, size, Blur { sigma, border }, roi.as_deref(), |map| match score {
                    ImageScore::Method => own.unwrap_or_else(|| windows::largest(map)),
                    ImageScore::Max => windows::largest(map),
                    ImageScore::Top(share) => mean_of_largest(map, share),
                    ImageScore::Window(window) => window.score(map, size),
                })
            };
            let finished: Vec<Finished> = found.par_iter().zip(&rois).map(finished).collect();
            let mut columns = Finished::columns(&finished, size)?;
            if self.fitted.neighbours.is_some() {
                columns.extend(nearest::columns(&nearest));
            }
            out.write_rows(&batch, columns)?;
        }
        Ok(())
    }
}

impl Fitted {
    /// Finds the good patch that is nearest to the worst patch of an image.
    fn nearest(&self, class: Option<&str>, worst: Option<WorstPatch>) -> Result<Option<Nearest>> {
        let Some((neighbours, worst)) = self.neighbours.as_ref().zip(worst) else { return Ok(None) };
        let of = if self.classes == Classes::Unified { None } else { class };
        Ok(neighbours.nearest(of, &worst)?)
    }

    /// Detects in an image u8 [1, H, W, 3], of which `roi` is judged, by what was fitted for its class. An image of which
    /// nothing is judged, such as a tile, is not anomalous anywhere.
    fn detect(&self, id: &str, class: Option<&str>, pixels: &Tensor, roi: Option<&[bool]>) -> Result<Detection> {
        if roi.is_some_and(|roi| !roi.contains(&true)) {
            let (_, height, width, _) = pixels.size4()?;
            let map = Tensor::f_zeros([height, width], (Kind::Double, Device::Cpu))?;
            return Ok(Detection { map, image: None, worst: None });
        }
        let of = match self.classes {
            Classes::Unified => None,
            Classes::Separate => Some(class.ok_or_else(|| missing(id, "images", CLASS))?),
        };
        self.detector.detect(of, &normalise(pixels), roi)?.ok_or_else(|| {
            let (class, fitted) = (class.unwrap_or_default(), self.fitted_classes.join(", "));
            Error::Input(format!("{id}: nothing was fitted for the class `{class}`; there are {fitted}"))
        })
    }
}

/// Returns the mean of a share of the largest values, and of at least one; NaN if one is NaN.
fn mean_of_largest(map: &[f64], share: f64) -> f64 {
    let count = ((map.len() as f64 * share) as usize).clamp(1, map.len());
    // The order of all numbers has NaN with a sign below all others, and without one above them.
    let mut values: Vec<f64> = map.iter().map(|value| if value.is_nan() { f64::NAN } else { *value }).collect();
    values.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a));
    values[..count].iter().sum::<f64>() / count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patch_is_judged_if_it_touches_a_pixel_that_is() {
        // Six columns and four rows of pixels in a grid of three columns and two rows.
        let of = |pixels: &[usize]| {
            let mut roi = vec![false; 24];
            pixels.iter().for_each(|pixel| roi[*pixel] = true);
            Vec::<i64>::try_from(touching(&roi, [4, 6], [2, 3])).unwrap()
        };
        assert_eq!(of(&[0, 11]), [0, 2]);
        assert_eq!(of(&[14, 15, 20, 23]), [4, 5]);
    }

    #[test]
    fn mean_of_the_largest_values_is_nan_where_one_of_all_is() {
        assert_eq!(mean_of_largest(&[1., 4., 2., 3.], 0.5), 3.5);
        for nan in [f64::NAN, -f64::NAN] {
            assert!(mean_of_largest(&[1., nan, 2., 3.], 0.25).is_nan());
        }
    }
}
