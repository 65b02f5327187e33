//! The values between which maps are drawn.

use std::collections::{BTreeMap, HashMap};

use arrow::array::StringArray;

use super::{Inspector, published, rows::Rows, verdict::id_of};
use crate::{
    engine::{Result, pipeline::Pipeline},
    tables::{
        anomaly_maps::MAP,
        column::{column, text},
        images::CLASS,
        tensor::float_row,
        thresholds::PIXEL,
    },
};

/// The number of maps of a class from which its values are taken.
const MAPS: usize = 32;

/// The lowest and the highest value by class; `None` is every other class.
pub type Scales = BTreeMap<Option<String>, (f32, f32)>;

impl Inspector {
    /// Returns the values between which the maps of each class are drawn, so that pictures of a class are comparable:
    /// those of maps that the pipeline itself has. The threshold of pixels lies at most in the middle.
    pub fn scales(&self, pipeline: &Pipeline) -> Result<Scales> {
        let mut scales = Scales::from([(None, (f32::INFINITY, f32::NEG_INFINITY))]);
        for (class, maps) in self.some_maps(pipeline)? {
            let values = || maps.iter().flatten().copied().filter(|value| value.is_finite());
            let own = (values().fold(f32::INFINITY, f32::min), values().fold(f32::NEG_INFINITY, f32::max));
            for class in [Some(class), None] {
                let (lowest, highest) = scales.entry(class).or_insert(own);
                (*lowest, *highest) = (lowest.min(own.0), highest.max(own.1));
            }
        }
        for (class, (lowest, highest)) in &mut scales {
            if *lowest > *highest {
                (*lowest, *highest) = (0., 0.);
            }
            let of_class = self.thresholds.iter().filter(|threshold| {
                let applies = class.is_none() || threshold.class.is_none() || threshold.class == *class;
                threshold.level == PIXEL && applies
            });
            let threshold = of_class.filter_map(|threshold| threshold.threshold).fold(f64::NEG_INFINITY, f64::max);
            *highest = highest.max(2. * threshold as f32 - *lowest);
        }
        Ok(scales)
    }

    /// Returns some of the pipeline's own maps of each class, spread over the class.
    fn some_maps(&self, pipeline: &Pipeline) -> Result<BTreeMap<String, Vec<Vec<f32>>>> {
        let Some(name) = &self.route.maps else { return Ok(BTreeMap::new()) };
        let (maps, images) =
            (published(&self.store, pipeline, name)?, published(&self.store, pipeline, &self.route.images)?);
        let (Some(maps), Some(images)) = (maps, images) else { return Ok(BTreeMap::new()) };
        let (ids, classes) = (ids(&images, &self.route.images)?, text(&images.columns(&[CLASS])?, CLASS)?);
        let classes: HashMap<&str, &str> =
            ids.iter().zip(&classes).filter_map(|(id, class)| Some((id?, class?))).collect();
        let mapped = self::ids(&maps, name)?;
        let mut rows_of: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (row, id) in mapped.iter().enumerate() {
            if let Some(class) = id.and_then(|id| classes.get(id)) {
                rows_of.entry(class).or_default().push(row);
            }
        }
        let some = |(class, rows): (&str, Vec<usize>)| {
            let rows: Vec<usize> = rows.iter().step_by(rows.len().div_ceil(MAPS)).copied().collect();
            let batch = maps.some(&[MAP], &rows)?;
            let map = |row| Ok(float_row(column(&batch, MAP)?, row)?.unwrap_or_default());
            Ok((class.to_owned(), (0..batch.num_rows()).map(map).collect::<Result<_>>()?))
        };
        rows_of.into_iter().map(some).collect()
    }
}

fn ids(rows: &Rows, table: &str) -> Result<StringArray> {
    let id = id_of(&rows.schema, table)?;
    text(&rows.columns(&[&id])?, &id)
}
