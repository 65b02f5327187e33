//! Anomaly maps and thresholds -> regions in the photographs.

use std::sync::Arc;

use arrow::{
    array::{Array, AsArray, Float32Array, ListBuilder, StringArray, UInt32Array, UInt32Builder, UInt64Array},
    datatypes::{DataType, Float16Type, Float32Type, SchemaRef, UInt32Type},
};
use garde::Validate;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vlmdiff_metrics::Components;

use crate::{
    engine::{
        Error, Result,
        stage::{
            Batch, Column, Context, Misfit, Open, Operator, Output, Port, Ports, Rows, Schemas, Sink, Stage, Unit,
        },
    },
    tables::{
        anomaly_maps::{self, MAP},
        column::missing,
        decisions::PIXEL_THRESHOLD,
        images::{CLASS, HEIGHT, Taken, WIDTH},
        regions::{self, Region, polygon_item},
        tensor::tensor_row,
        tiles,
    },
    vision::{contour, placement::Placement},
};

/// Finds the regions of each image in which its anomaly map is above the threshold of pixels, as polygons in the
/// photograph's own pixels.
///
/// The map is resized to the size of the photograph (bilinear); pixels above the threshold that touch at an edge or a
/// corner are a region. `where: anomalous` leaves out images that are no alarms.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
#[schemars(extend("examples" = [{ "tolerance": 1.0 }]))]
pub struct Regions {
    /// The largest distance of a polygon from the contour, in pixels of the photograph; 0 keeps each corner.
    #[garde(range(min = 0., max = 1000.))]
    #[serde(default = "default_tolerance")]
    pub tolerance: f64,
}

fn default_tolerance() -> f64 {
    1.
}

impl Stage for Regions {
    fn revision(&self) -> u32 {
        1
    }

    fn ports(&self) -> Ports {
        Ports::Named(vec![
            Port::rows("decisions", [Column::new(PIXEL_THRESHOLD, DataType::Float32)]),
            Port::rows(
                "images",
                [
                    Column::new(CLASS, DataType::Utf8),
                    Column::new(WIDTH, DataType::UInt32),
                    Column::new(HEIGHT, DataType::UInt32),
                ],
            ),
            Port::rows("anomaly_maps", [Column::tensors(MAP, DataType::Float16, "[H, W]")]),
        ])
    }

    fn makes(&self) -> Output {
        Output::Rows
    }

    fn output(&self, inputs: &Schemas) -> Result<SchemaRef, Misfit> {
        tiles::refuse(inputs, "images")?;
        Ok(regions::schema())
    }
}

impl Open for Regions {
    fn open(self, context: &Context) -> Result<Box<dyn Operator>> {
        let size = anomaly_maps::shape(&context.schemas)?;
        let taken = context.schemas.get("images").map(|schema| Taken::of(schema)).unwrap_or_default();
        Ok(Box::new(Finder { tolerance: self.tolerance, size, taken }))
    }
}

struct Finder {
    tolerance: f64,
    /// Height and width of the maps.
    size: [usize; 2],
    /// The way in which photographs became pixels of the size of the maps.
    taken: Taken,
}

/// The number of maps that are resized at once. A photograph of 12 million pixels takes 120 MB.
const AT_ONCE: usize = 8;

impl Operator for Finder {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        let total = rows.len() as u64;
        let mut done = 0;
        while let Some(batch) = rows.next(AT_ONCE)? {
            let thresholds = batch.column("decisions", PIXEL_THRESHOLD)?;
            for (_, id) in batch.ids.iter().enumerate().filter(|(row, _)| thresholds.is_null(*row)) {
                out.note("there is no threshold of pixels, so that no region is sought", id);
            }
            let found = (0..batch.len()).into_par_iter().map(|row| self.regions(&batch, row));
            write(&batch, &found.collect::<Result<Vec<_>>>()?, out)?;
            done += batch.len() as u64;
            out.progress(done, total, Unit::Images);
        }
        Ok(())
    }
}

impl Finder {
    fn regions(&self, batch: &Batch, row: usize) -> Result<Vec<Region>> {
        let thresholds = batch.column("decisions", PIXEL_THRESHOLD)?.as_primitive::<Float32Type>();
        if thresholds.is_null(row) {
            return Ok(Vec::new());
        }
        let side = |name| {
            let sides = batch.column("images", name)?.as_primitive::<UInt32Type>();
            let side = sides.is_valid(row).then(|| sides.value(row)).filter(|side| *side > 0);
            side.ok_or_else(|| missing(&batch.ids[row], "images", name))
        };
        let map = tensor_row::<Float16Type>(batch.column("anomaly_maps", MAP)?, row)?;
        let map = map.ok_or_else(|| missing(&batch.ids[row], "anomaly_maps", MAP))?;
        let size = (self.size[1] as u32, self.size[0] as u32);
        let placement = self.taken.placement((side(WIDTH)?, side(HEIGHT)?), size);
        let map: Vec<f32> = map.iter().copied().map(f32::from).collect();
        find(&map, placement, thresholds.value(row), self.tolerance).map_err(|e| match e {
            Error::Input(message) => Error::Input(format!("{}: {message}", batch.ids[row])),
            other => other,
        })
    }
}

/// Returns the regions of a row-major map `[H, W]` above a threshold, in the photograph's own pixels.
pub(crate) fn find(map: &[f32], placement: Placement, threshold: f32, tolerance: f64) -> Result<Vec<Region>> {
    // Resizing makes means of values, so it does not exceed the highest.
    if !map.iter().any(|value| *value > threshold) {
        return Ok(Vec::new());
    }
    let values = placement.map_to_photograph(map).map_err(|e| Error::Input(e.to_string()))?;
    let mask: Vec<bool> = values.iter().map(|value| *value > threshold).collect();
    let width = placement.photograph().0 as usize;
    let components = Components::label(&mask, width).map_err(|e| Error::Stage(e.to_string()))?;
    let labels = components.labels();
    let mut found: Vec<Growing> = Vec::new();
    for (i, label) in labels.iter().enumerate().filter(|(_, label)| **label != 0) {
        let (x, y) = ((i % width) as u32, (i / width) as u32);
        // Regions are numbered by their first pixels.
        if *label as usize > found.len() {
            found.push(Growing {
                first: i,
                left: x,
                top: y,
                right: x,
                bottom: y,
                sum: 0.,
                max: f32::MIN,
                place: [0.; 2],
            });
        }
        let region = &mut found[*label as usize - 1];
        (region.left, region.right, region.bottom) = (region.left.min(x), region.right.max(x), y);
        (region.sum, region.max) = (region.sum + f64::from(values[i]), region.max.max(values[i]));
        region.place = [region.place[0] + f64::from(x) + 0.5, region.place[1] + f64::from(y) + 0.5];
    }
    let finish = |(region, area): (Growing, &u64)| Region {
        polygon: contour::simplify(&contour::trace(&labels, width, region.first), tolerance),
        bounds: [region.left, region.top, region.right - region.left + 1, region.bottom - region.top + 1],
        area: *area,
        mean_score: (region.sum / *area as f64) as f32,
        max_score: region.max,
        centre: region.place.map(|sum| (sum / *area as f64) as f32),
    };
    Ok(found.into_iter().zip(&components.areas).map(finish).collect())
}

/// A region while its pixels are visited.
struct Growing {
    /// The index of its first pixel.
    first: usize,
    left: u32,
    top: u32,
    right: u32,
    bottom: u32,
    /// The sum of the values.
    sum: f64,
    max: f32,
    /// The sum of the places.
    place: [f64; 2],
}

fn write(batch: &Batch, found: &[Vec<Region>], out: &mut Sink<'_>) -> Result<()> {
    let classes = batch.column("images", CLASS)?.as_string::<i32>();
    if let Some(row) = (0..batch.len()).find(|row| classes.is_null(*row)) {
        return Err(missing(&batch.ids[row], "images", CLASS));
    }
    let rows: Vec<(usize, usize, &Region)> = found
        .iter()
        .enumerate()
        .flat_map(|(row, regions)| regions.iter().enumerate().map(move |(number, region)| (row, number, region)))
        .collect();
    let mut polygons = ListBuilder::new(UInt32Builder::new()).with_field(polygon_item());
    for (_, _, region) in &rows {
        polygons.append_value(region.polygon.iter().flat_map(|(x, y)| [Some(*x), Some(*y)]));
    }
    let bound = |at: usize| Arc::new(UInt32Array::from_iter_values(rows.iter().map(|(.., region)| region.bounds[at])));
    let float =
        |of: fn(&Region) -> f32| Arc::new(Float32Array::from_iter_values(rows.iter().map(|(.., region)| of(region))));
    let ids = rows.iter().map(|(row, number, _)| format!("{}#{}", batch.ids[*row], number + 1));
    out.write_columns(vec![
        Arc::new(StringArray::from_iter_values(ids)),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|(row, ..)| &batch.ids[*row]))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|(row, ..)| classes.value(*row)))),
        Arc::new(polygons.finish()),
        bound(0),
        bound(1),
        bound(2),
        bound(3),
        Arc::new(UInt64Array::from_iter_values(rows.iter().map(|(.., region)| region.area))),
        float(|region| region.mean_score),
        float(|region| region.max_score),
        float(|region| region.centre[0]),
        float(|region| region.centre[1]),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_lie_where_the_map_is_above_the_threshold() {
        #[rustfmt::skip]
        let map = [
            0., 0., 0., 0., 0., 0.,
            0., 3., 5., 0., 0., 0.,
            0., 4., 0., 0., 0., 2.,
            0., 0., 0., 0., 1., 0.,
        ];
        let found = find(&map, Placement::stretched((6, 4), (6, 4)), 1., 0.).unwrap();
        let first = Region {
            polygon: vec![(1, 1), (3, 1), (3, 2), (2, 2), (2, 3), (1, 3)],
            bounds: [1, 1, 2, 2],
            area: 3,
            mean_score: 4.,
            max_score: 5.,
            centre: [11. / 6., 11. / 6.],
        };
        let second = Region {
            polygon: vec![(5, 2), (6, 2), (6, 3), (5, 3)],
            bounds: [5, 2, 1, 1],
            area: 1,
            mean_score: 2.,
            max_score: 2.,
            centre: [5.5, 2.5],
        };
        assert_eq!(found, [first, second]);
        assert_eq!(find(&map, Placement::stretched((6, 4), (6, 4)), 5., 0.).unwrap(), []);
    }

    #[test]
    fn what_was_cut_off_is_in_no_region() {
        // The middle of a photograph of 40x20 pixels, at half of its size.
        let placement = Placement::cropped((40, 20), (8, 8), 10);
        let found = find(&[1.; 64], placement, 0.5, 0.).unwrap();
        assert_eq!((found.len(), found[0].bounds, found[0].mean_score), (1, [12, 2, 16, 16], 1.));
    }

    #[test]
    fn regions_are_in_the_pixels_of_the_photograph() {
        let mut map = [0.; 64];
        (2..4).for_each(|y| (5..8).for_each(|x| map[8 * y + x] = 1.));
        // Ten times as wide and five times as high.
        let found = find(&map, Placement::stretched((80, 40), (8, 8)), 0.5, 1.).unwrap();
        assert_eq!(found.len(), 1);
        let [x, y, width, height] = found[0].bounds;
        // Half of the highest value is reached in the middle between pixels, at the edges of the map's pixels.
        assert!(x.abs_diff(50) <= 1 && y.abs_diff(10) <= 1 && width.abs_diff(30) <= 2 && height.abs_diff(10) <= 2);
        assert!((found[0].centre[0] - 65.).abs() < 1.5 && (found[0].centre[1] - 15.).abs() < 1.);
        assert!(found[0].polygon.iter().all(|(x, y)| *x <= 80 && *y <= 40));
    }
}
