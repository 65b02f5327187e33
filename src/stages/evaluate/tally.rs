//! The counts of all images, from which the rows of metrics follow by every protocol.

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, Float64Array, Int64Array, StringArray},
    datatypes::{Float16Type, Float32Type, UInt8Type},
};
use half::f16;
use rayon::prelude::*;
use vlmdiff_metrics::{
    Given, Guess, ImageMetrics, Judged, Kind, METRICS, Metric, MetricError, PixelCounts, PixelMetrics, Protocol,
    RegionScores,
    bootstrap::{ImageResamples, PixelResamples, RANKED, Weights, interval},
    count_bytes, has_foreground, windows,
};

use super::parameters::{Bootstrap, Evaluate};
use crate::{
    engine::{Error, Result, distinct, stage::Batch},
    tables::{
        anomaly_maps::{MAP, SCORE},
        images::{self, CALIBRATION, CLASS, LABEL, MASK, MASK_GREY, SPLIT},
        metrics::MEAN,
        tensor::tensor_row,
    },
};

/// The maximum number of classes that a note names.
const NAMED: usize = 4;
/// The number of deviations above the mean at which MVTec AD 2 has its threshold of pixels.
const DEVIATIONS: f64 = 3.;

/// The counts of all images. Counts that several protocols share are made once.
pub(super) struct Tally {
    stage: Evaluate,
    size: [usize; 2],
    /// The masks by which protocols count pixels, each once.
    masks: Vec<Mask>,
    /// The rules by which protocols score images, each once.
    rules: Vec<Rules>,
    classes: BTreeMap<String, Class>,
}

/// A ground truth.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mask {
    /// Pixels of which more than half is anomalous.
    Exact,
    /// Pixels that an anomaly touches.
    Grey,
}

impl Mask {
    fn of(protocol: Protocol) -> Self {
        if protocol.reads_grey_masks() { Self::Grey } else { Self::Exact }
    }
}

/// The rules by which an image is scored and labelled.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Rules {
    windows: Option<(usize, usize)>,
    /// The mask that decides whether the image is anomalous, if it has one; None for the label of the dataset.
    label: Option<Mask>,
}

impl Rules {
    fn of(protocol: Protocol) -> Self {
        let label = protocol.labels_by_mask().then(|| Mask::of(protocol));
        Self { windows: protocol.windows(), label }
    }
}

/// The counts of one class.
struct Class {
    n_images: i64,
    /// By [`Tally::rules`].
    scored: Vec<Scored>,
    /// By [`Tally::masks`].
    masked: Vec<Masked>,
    /// The pixels of normal images that count in no metric.
    good: PixelMetrics,
    /// By [`Tally::rules`].
    image_resamples: ImageResamples,
    /// By the first of [`Tally::masks`].
    pixel_resamples: Option<PixelResamples>,
}

#[derive(Default)]
struct Scored {
    n_anomalous: i64,
    images: ImageMetrics,
}

#[derive(Default)]
struct Masked {
    pixels: PixelMetrics,
    regions: RegionScores<f16>,
}

/// The share of an image in the counts.
struct Image {
    weights: Option<Weights>,
    /// The score, if the map is large enough for it, and whether the image is anomalous; by [`Tally::rules`].
    scored: Vec<(Option<f64>, bool)>,
    /// The pixels, if there are a map and a mask; by [`Tally::masks`].
    masked: Vec<Option<(Arc<PixelCounts>, RegionScores<f16>)>>,
}

/// The metrics of a class in every resample.
pub(super) struct Spread {
    /// By [`Tally::rules`].
    images: Vec<Vec<[Option<f64>; 3]>>,
    /// The last row is of all images as they are.
    pixels: Vec<Vec<Option<f64>>>,
}

/// Returns the column of maps; `None` for a table of scores without maps.
pub(super) fn maps(batch: &Batch) -> Option<&ArrayRef> {
    batch.port("anomaly_maps")?.column_by_name(MAP)
}

impl Tally {
    pub(super) fn new(stage: Evaluate, size: [usize; 2]) -> Self {
        let protocols = || stage.protocol.iter().copied();
        let mut masks = distinct(protocols().map(Mask::of));
        masks.sort_by_key(|mask| *mask == Mask::Grey);
        let rules = distinct(protocols().map(Rules::of));
        Self { stage, size, masks, rules, classes: BTreeMap::new() }
    }

    /// Adds the labelled images of a batch, and the maps of those that only a threshold is computed from.
    pub(super) fn add(&mut self, batch: &Batch) -> Result<()> {
        let names = batch.column("images", CLASS)?.as_string::<i32>();
        let labels = batch.column("images", LABEL)?.as_boolean();
        let rows = (0..batch.len()).into_par_iter();
        let good = rows.clone().filter(|row| self.is_calibration(batch, *row)).map(|row| self.good(batch, row));
        let good = good.collect::<Result<Vec<_>>>()?;
        let judged = rows.filter(|row| labels.is_valid(*row) && !self.is_calibration(batch, *row));
        let images =
            judged.map(|row| -> Result<(usize, Image)> { Ok((row, self.image(batch, row, labels.value(row))?)) });
        let images = images.collect::<Result<Vec<_>>>()?;
        for (row, counts) in good {
            let good = &mut self.class(names.value(row)).good;
            counts.iter().for_each(|counts| good.add(counts));
        }
        let mut by_class: BTreeMap<&str, Vec<Image>> = BTreeMap::new();
        images.into_iter().for_each(|(row, image)| by_class.entry(names.value(row)).or_default().push(image));
        for name in by_class.keys() {
            self.class(name);
        }
        let classes = self.classes.iter_mut().filter_map(|(name, class)| Some((class, by_class.get(name.as_str())?)));
        classes.collect::<Vec<_>>().into_par_iter().for_each(|(class, images)| class.add(images));
        Ok(())
    }

    /// Returns true if an image counts in no metric because a threshold is computed from it.
    pub(super) fn is_calibration(&self, batch: &Batch, row: usize) -> bool {
        let splits = batch.port("images").and_then(|images| images.column_by_name(SPLIT));
        let splits = splits.filter(|_| self.stage.reads_splits()).and_then(|splits| splits.as_string_opt::<i32>());
        splits.is_some_and(|splits| splits.is_valid(row) && splits.value(row) == CALIBRATION)
    }

    /// Returns a class, which has no images at first.
    fn class(&mut self, name: &str) -> &mut Class {
        let empty = || Class {
            n_images: 0,
            scored: self.rules.iter().map(|_| Scored::default()).collect(),
            masked: self.masks.iter().map(|_| Masked::default()).collect(),
            good: PixelMetrics::new(),
            image_resamples: ImageResamples::default(),
            pixel_resamples: self.stage.bootstrap.map(|bootstrap| PixelResamples::new(bootstrap.resamples.into())),
        };
        self.classes.entry(name.to_owned()).or_insert_with(empty)
    }

    /// Counts the pixels of a normal image; `None` without a map.
    fn good(&self, batch: &Batch, row: usize) -> Result<(usize, Option<PixelCounts>)> {
        let Some(map) = map_of(batch, row)? else { return Ok((row, None)) };
        let roi = images::roi_of(batch, row)?;
        let counts = count_bytes(map, &vec![0; map.len()], roi.as_deref(), self.size[1], false);
        Ok((row, Some(counts.map_err(|e| wrong(batch, row, &e))?.0)))
    }

    fn image(&self, batch: &Batch, row: usize, label: bool) -> Result<Image> {
        let masks = self.masks.iter().map(|mask| mask_of(batch, row, *mask)).collect::<Result<Vec<_>>>()?;
        let (map, roi) = (map_of(batch, row)?, images::roi_of(batch, row)?);
        let mut masked: Vec<Option<(Arc<PixelCounts>, RegionScores<f16>)>> = Vec::new();
        for (i, mask) in masks.iter().enumerate() {
            let Some((mask, map)) = mask.zip(map) else {
                masked.push(None);
                continue;
            };
            // Both masks of a normal image have no pixel.
            let same = masks[..i].iter().position(|other| *other == Some(mask));
            if let Some((counts, _)) = same.and_then(|same| masked[same].as_ref()) {
                masked.push(Some((counts.clone(), RegionScores::default())));
                continue;
            }
            let needed = self.stage.protocol.contains(&Protocol::Anomalib1) && self.masks[i] == Mask::Exact;
            let counts = count_bytes(map, mask, roi.as_deref(), self.size[1], needed);
            let (counts, scores) = counts.map_err(|e| wrong(batch, row, &e))?;
            masked.push(Some((Arc::new(counts), scores)));
        }
        let anomalous: Vec<Option<bool>> = masks.iter().map(|mask| mask.map(has_foreground)).collect();
        let scored = self.rules.iter().map(|rules| -> Result<(Option<f64>, bool)> {
            // For an image without a mask only the label of the dataset is available.
            let at = rules.label.and_then(|mask| self.masks.iter().position(|other| *other == mask));
            match self.score(batch, row, map.zip(rules.windows))? {
                Some(score) if score.is_nan() => Err(wrong(batch, row, &MetricError::NanScore)),
                score => Ok((score, at.and_then(|at| anomalous[at]).unwrap_or(label))),
            }
        });
        let scored = scored.collect::<Result<Vec<_>>>()?;
        let weights = self.stage.bootstrap.map(|Bootstrap { seed, .. }| Weights::new(seed, &batch.ids[row]));
        Ok(Image { weights, scored, masked })
    }

    /// Returns the image's score by its map and the windows over which that is averaged, or else the stored one; `None` if
    /// the map is too small.
    fn score(&self, batch: &Batch, row: usize, averaged: Option<(&[f16], (usize, usize))>) -> Result<Option<f64>> {
        let Some((map, (side, repeats))) = averaged else {
            let stored = batch.column("anomaly_maps", SCORE)?.as_primitive::<Float32Type>();
            return Ok(Some(f64::from(stored.value(row))));
        };
        let [height, width] = self.size;
        let fits = (side - 1) * repeats < height.min(width);
        Ok(fits.then(|| windows::largest_mean_of_halves(map, width, height, side, repeats)))
    }

    /// Returns the classes with images that are judged.
    fn judged(&self) -> impl Iterator<Item = (&str, &Class)> {
        self.classes.iter().filter(|(_, class)| class.n_images > 0).map(|(name, class)| (name.as_str(), class))
    }

    /// Returns the classes whose images are all normal or all anomalous by a protocol.
    pub(super) fn one_sided(&self) -> Vec<&str> {
        let one_sided = |class: &Class| {
            class.scored.iter().any(|scored| scored.n_anomalous == 0 || scored.n_anomalous == class.n_images)
        };
        self.judged().filter(|(_, class)| one_sided(class)).map(|(name, _)| name).collect()
    }

    /// Returns the classes that have no images from which a threshold of pixels is computed.
    pub(super) fn without_threshold(&self) -> Vec<&str> {
        let lacks = |class: &Class| self.stage.reads_splits() && class.threshold().is_none();
        self.judged().filter(|(_, class)| lacks(class)).map(|(name, _)| name).collect()
    }

    /// Returns the place of a protocol's rules among [`Tally::rules`], which has those of every protocol.
    fn rules_at(&self, protocol: Protocol) -> usize {
        self.rules.iter().position(|rules| *rules == Rules::of(protocol)).unwrap_or_default()
    }

    fn scored<'a>(&self, class: &'a Class, protocol: Protocol) -> &'a Scored {
        &class.scored[self.rules_at(protocol)]
    }

    fn masked<'a>(&self, class: &'a Class, protocol: Protocol) -> &'a Masked {
        &class.masked[self.masks.iter().position(|mask| *mask == Mask::of(protocol)).unwrap_or_default()]
    }

    /// Returns the metrics of each class, in the order of [`METRICS`].
    pub(super) fn values(&self, protocol: Protocol) -> Vec<Vec<Option<f64>>> {
        let metrics = |class: &Class| -> Vec<Option<f64>> {
            let (scored, masked) = (self.scored(class, protocol), self.masked(class, protocol));
            let threshold = class.threshold().filter(|_| protocol == Protocol::MvtecAd2);
            let given = Given { limit: self.stage.aupro_limit, threshold, regions: Some(&masked.regions) };
            let value = |metric: Metric| match metric.judged {
                Judged::Images => protocol.of_images(metric.kind, &scored.images),
                Judged::Pixels => protocol.of_pixels(metric.kind, &masked.pixels, &given),
            };
            METRICS.map(value).to_vec()
        };
        let classes: Vec<&Class> = self.judged().map(|(_, class)| class).collect();
        classes.into_par_iter().map(metrics).collect()
    }

    /// Returns one note per metric that is not better than guessing, with the classes concerned.
    pub(super) fn guesses(&self, protocol: Protocol, values: &[Vec<Option<f64>>]) -> Vec<String> {
        let percent = |share: f64| share * 100.;
        let limit = protocol.limit(self.stage.aupro_limit);
        let guess = |class: &Class, metric: &str| {
            let (anomalous, regions) =
                (self.scored(class, protocol).n_anomalous, self.masked(class, protocol).pixels.regions());
            match metric {
                "image_auroc" => Guess::image_auroc((class.n_images - anomalous) as u64, anomalous as u64),
                "pixel_auroc" => Guess::pixel_auroc(regions),
                "aupro" => Guess::aupro(regions, limit),
                _ => None, // it depends on the data
            }
        };
        let note = |(i, metric): (usize, &str)| {
            let guessed = self.judged().zip(values).filter_map(|((name, class), values)| {
                let (value, guess) = (values[i]?, guess(class, metric)?);
                guess.explains(value).then(|| {
                    let Guess { value: mean, spread } = guess;
                    format!("{name} {:.1} % (guessing: {:.0} ± {:.0})", percent(value), percent(mean), percent(spread))
                })
            });
            let guessed: Vec<String> = guessed.collect();
            let named = guessed[..guessed.len().min(NAMED)].join(", ");
            let more = match guessed.len().saturating_sub(NAMED) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            (!guessed.is_empty()).then(|| format!("`{metric}` is no better than guessing: {named}{more}"))
        };
        METRICS.iter().map(|metric| metric.column).enumerate().filter_map(note).collect()
    }

    /// Returns the columns of a row per class, and a row of the means over the classes for which a metric is defined.
    /// `intervals` are those of [`Tally::intervals`].
    pub(super) fn columns(
        &self,
        protocol: Protocol,
        values: &[Vec<Option<f64>>],
        intervals: Option<&[Vec<Option<[f64; 2]>>]>,
    ) -> Vec<ArrayRef> {
        let classes = || self.judged().map(|(_, class)| class);
        let names: Vec<&str> = self.judged().map(|(name, _)| name).chain([MEAN]).collect();
        let count = |of: &dyn Fn(&Class) -> i64| {
            let counts = classes().map(of).chain([classes().map(of).sum()]);
            Arc::new(Int64Array::from_iter_values(counts)) as ArrayRef
        };
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(&names)),
            Arc::new(StringArray::from_iter_values(vec![protocol.name(); names.len()])),
            count(&|class| class.n_images),
            count(&|class| self.scored(class, protocol).n_anomalous),
        ];
        columns.extend((0..METRICS.len()).map(|i| {
            let column = values.iter().map(|row| row[i]).chain([mean(values.iter().map(|row| row[i]))]);
            Arc::new(Float64Array::from_iter(column)) as ArrayRef
        }));
        for (i, end) in (0..METRICS.len()).flat_map(|i| [(i, 0), (i, 1)]).filter(|_| intervals.is_some()) {
            let rows = intervals.unwrap_or_default().iter();
            columns.push(Arc::new(Float64Array::from_iter(rows.map(|row| row[i].map(|ends| ends[end])))));
        }
        columns
    }

    /// Returns the metrics of every resample, by class; `None` if no intervals are requested.
    pub(super) fn spreads(&self) -> Option<Vec<Spread>> {
        let Bootstrap { resamples, .. } = self.stage.bootstrap?;
        let classes: Vec<&Class> = self.judged().map(|(_, class)| class).collect();
        let spread = |class: &&Class| {
            let images = class.image_resamples.spread(resamples.into());
            let pixels = class.pixel_resamples.as_ref().map_or_else(Vec::new, |pixels| pixels.spread(&self.limits()));
            Spread { images, pixels }
        };
        Some(classes.par_iter().map(spread).collect())
    }

    /// Returns the limits of AUPRO by all protocols.
    fn limits(&self) -> Vec<f64> {
        distinct(self.stage.protocol.iter().map(|protocol| protocol.limit(self.stage.aupro_limit)))
    }

    /// Returns the intervals of each class and of the mean, in the order of [`METRICS`]: the value, and by how much the
    /// metric, by its definition, differs in resamples from that of all images.
    pub(super) fn intervals(
        &self,
        protocol: Protocol,
        values: &[Vec<Option<f64>>],
        spreads: &[Spread],
    ) -> Vec<Vec<Option<[f64; 2]>>> {
        let around = |value: Option<f64>, differences: Vec<f64>| {
            let (value, ends) = value.zip(interval(differences))?;
            Some(ends.map(|end| (value + end).clamp(0., 1.)))
        };
        let classes: Vec<&Class> = self.judged().map(|(_, class)| class).collect();
        let mut rows = vec![Vec::new(); classes.len() + 1];
        for (i, metric) in METRICS.into_iter().enumerate() {
            let of_class = |(class, spread): (&&Class, &Spread)| self.differences(class, spread, protocol, metric);
            let differences: Vec<Vec<Option<f64>>> = classes.iter().zip(spreads).map(of_class).collect();
            for (class, differences) in differences.iter().enumerate() {
                rows[class].push(around(values[class][i], differences.iter().copied().flatten().collect()));
            }
            // The classes of the mean are resampled each by itself.
            let defined = || differences.iter().zip(values).filter(|(_, values)| values[i].is_some());
            let resamples = defined().map(|(differences, _)| differences.len()).min().unwrap_or_default();
            let of_mean = |resample: usize| mean(defined().map(|(differences, _)| differences[resample]));
            let differences = (0..resamples).filter_map(of_mean).collect();
            rows[classes.len()].push(around(mean(values.iter().map(|row| row[i])), differences));
        }
        rows
    }

    /// Returns by how much a metric of a class differs in each resample; none for a metric without resamples.
    fn differences(&self, class: &Class, spread: &Spread, protocol: Protocol, metric: Metric) -> Vec<Option<f64>> {
        let ranked = RANKED.iter().position(|kind| *kind == metric.kind);
        // AUPRO by each limit comes after the metrics of rankings.
        let limit = protocol.limit(self.stage.aupro_limit);
        let limit = self.limits().iter().position(|other| *other == limit).filter(|_| metric.kind == Kind::Aupro);
        let Some(at) = ranked.or(limit.map(|limit| RANKED.len() + limit)) else { return Vec::new() };
        let (whole, resamples): (Option<f64>, Vec<Option<f64>>) = match metric.judged {
            Judged::Images => {
                let rules = self.rules_at(protocol);
                let whole = metric.kind.of(&class.scored[rules].images.ranking());
                (whole, spread.images[rules].iter().map(|metrics| metrics[at]).collect())
            }
            Judged::Pixels => match spread.pixels.split_last() {
                Some((whole, resamples)) => (whole[at], resamples.iter().map(|metrics| metrics[at]).collect()),
                None => return Vec::new(),
            },
        };
        resamples.into_iter().map(|resample| Some(resample? - whole?)).collect()
    }
}

impl Class {
    /// Adds images. Counts that do not depend on each other are added side by side.
    fn add(&mut self, images: &[Image]) {
        let Self { n_images, scored, masked, image_resamples, pixel_resamples, .. } = self;
        *n_images += images.len() as i64;
        rayon::scope(|scope| {
            for (i, masked) in masked.iter_mut().enumerate() {
                scope.spawn(move |_| {
                    for (counts, regions) in images.iter().filter_map(|image| image.masked[i].as_ref()) {
                        masked.pixels.add(counts);
                        masked.regions.merge(regions);
                    }
                });
            }
            if let Some(resamples) = pixel_resamples {
                scope.spawn(move |_| {
                    let counted = images.iter().filter_map(|image| image.weights.zip(image.masked[0].as_ref()));
                    resamples.add(&counted.map(|(weights, (counts, _))| (&**counts, weights)).collect::<Vec<_>>());
                });
            }
            for image in images {
                scored.iter_mut().zip(&image.scored).for_each(|(scored, of_image)| scored.add(*of_image));
                if let Some(weights) = image.weights {
                    image_resamples.add(weights, &image.scored);
                }
            }
        });
    }

    /// Returns the threshold of pixels that normal images give.
    fn threshold(&self) -> Option<f64> {
        self.good.above_mean(DEVIATIONS)
    }
}

impl Scored {
    /// Adds an image whose score is no NaN.
    fn add(&mut self, (score, anomalous): (Option<f64>, bool)) {
        self.n_anomalous += i64::from(anomalous);
        let Some(score) = score else { return };
        let added = self.images.update(score, anomalous);
        debug_assert!(added.is_ok(), "{added:?}");
    }
}

/// Returns the mean of the values that are known.
fn mean(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let known: Vec<f64> = values.flatten().collect();
    (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
}

/// Returns the anomaly map; `None` for a table of scores without maps.
fn map_of(batch: &Batch, row: usize) -> Result<Option<&[f16]>> {
    Ok(maps(batch).map(|maps| tensor_row::<Float16Type>(maps, row)).transpose()?.flatten())
}

/// Returns the mask, whose anomalous pixels are above 0; `None` if it is not known.
fn mask_of(batch: &Batch, row: usize, mask: Mask) -> Result<Option<&[u8]>> {
    let exact = batch.column("images", MASK)?;
    let grey = batch.port("images").and_then(|images| images.column_by_name(MASK_GREY));
    let grey = grey.filter(|grey| mask == Mask::Grey && grey.is_valid(row));
    tensor_row::<UInt8Type>(grey.unwrap_or(exact), row)
}

fn wrong(batch: &Batch, row: usize, error: &MetricError) -> Error {
    Error::Input(format!("{}: {error}", batch.ids[row]))
}
