//! ROC and PRO curves of each class.

use std::collections::{BTreeMap, HashMap};

use arrow::{
    array::ArrayRef,
    datatypes::{DataType, Float16Type, UInt8Type},
};
use minijinja::{Value, context};
use vlmdiff_metrics::{ImageMetrics, PixelMetrics, count};

use super::{Source, charts, charts::Line, data::TestImage};
use crate::{
    engine::{Error, Result, store::Manifest},
    tables::{
        anomaly_maps::MAP,
        images::{MASK, ROI},
        tensor::{find_shape, tensor_row},
    },
};

/// The number of test images up to which maps are read for curves of pixels.
const MOST_MAPS: usize = 2_000;
/// The number of maps in memory at once.
const CHUNK: usize = 64;

/// Returns the curves of each class that has normal and anomalous images or pixels (`rates`), and the number of images that is
/// too large for those of pixels (`rates_limit`).
pub(super) fn curves(
    source: &Source,
    images: &Manifest,
    maps: Option<&Manifest>,
    tested: &[TestImage],
) -> Result<Value> {
    let mut by_class: BTreeMap<&str, (ImageMetrics, PixelMetrics)> = BTreeMap::new();
    for image in tested {
        let (scores, _) = by_class.entry(&image.class).or_default();
        if let (Some(score), Some(anomalous)) = (image.score, image.anomalous) {
            scores.update(score.into(), anomalous).map_err(|e| Error::Stage(format!("{}: {e}", image.id)))?;
        }
    }
    let maps = maps.filter(|maps| has(maps, MAP, &DataType::Float16) && has(images, MASK, &DataType::UInt8));
    if let Some(maps) = maps.filter(|_| tested.len() <= MOST_MAPS) {
        count_pixels(source, images, maps, tested, &mut by_class)?;
    }
    let curve = |(class, (scores, pixels)): (&str, (ImageMetrics, PixelMetrics))| {
        let rates = pixels.curve();
        let of_pixels = |of: fn(&[f64; 3]) -> (f64, f64)| rates.iter().flatten().map(of).collect::<Vec<_>>();
        let lines = [
            Line { kind: "images", points: scores.ranking().roc().unwrap_or_default() },
            Line { kind: "pixels", points: of_pixels(|[fpr, recall, _]| (*fpr, *recall)) },
            Line { kind: "regions", points: of_pixels(|[fpr, _, overlap]| (*fpr, *overlap)) },
        ];
        let svg = charts::rates(&lines, &format!("curves of {class}"))?;
        Some(context! { class, svg })
    };
    let drawn: Vec<Value> = by_class.into_iter().filter_map(curve).collect();
    let is_over = maps.is_some() && tested.len() > MOST_MAPS;
    Ok(context! { rates => drawn, rates_limit => is_over.then_some(MOST_MAPS) })
}

fn has(table: &Manifest, name: &str, item: &DataType) -> bool {
    table.schema().is_ok_and(|schema| find_shape::<2>(&schema, name, std::slice::from_ref(item)).is_some())
}

/// Adds the pixels of the images that have a map and a mask of one size; those outside of an image's `roi` are left out.
fn count_pixels<'a>(
    source: &Source,
    images: &Manifest,
    maps: &Manifest,
    tested: &'a [TestImage],
    by_class: &mut BTreeMap<&'a str, (ImageMetrics, PixelMetrics)>,
) -> Result<()> {
    let columns: &[&str] = if has(images, ROI, &DataType::UInt8) { &[MASK, ROI] } else { &[MASK] };
    let [_, width] = find_shape::<2>(&*maps.schema()?, MAP, &[DataType::Float16]).unwrap_or_default();
    for chunk in tested.chunks(CHUNK) {
        let ids = || chunk.iter().map(|image| image.id.as_str());
        let class: HashMap<&str, &str> = chunk.iter().map(|image| (image.id.as_str(), image.class.as_str())).collect();
        let mut masks: HashMap<String, (Vec<bool>, Option<Vec<bool>>)> = HashMap::new();
        source.for_rows(images, columns, ids(), |id, columns, row| {
            let flags = |column: &ArrayRef| -> Result<Option<Vec<bool>>> {
                let pixels = tensor_row::<UInt8Type>(column, row)?;
                Ok(pixels.map(|pixels| pixels.iter().map(|pixel| *pixel > 0).collect()))
            };
            let roi = columns.get(1).map(flags).transpose()?.flatten();
            masks.extend(flags(&columns[0])?.map(|mask| (id.to_owned(), (mask, roi))));
            Ok(())
        })?;
        source.for_rows(maps, &[MAP], ids(), |id, columns, row| {
            let map = tensor_row::<Float16Type>(&columns[0], row)?;
            let state = class.get(id).and_then(|class| by_class.get_mut(class));
            if let (Some(map), Some((mask, roi)), Some((_, pixels))) = (map, masks.get(id), state)
                && map.len() == mask.len()
            {
                let counts = count(map, mask, roi.as_deref(), width, false);
                pixels.add(&counts.map_err(|e| Error::Stage(format!("{id}: {e}")))?.0);
            }
            Ok(())
        })?;
    }
    Ok(())
}
