//! Verdicts on photographs, as the tables of a run have them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use arrow::{
    array::{Array, RecordBatch},
    datatypes::SchemaRef,
};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Inspector, Photograph, rows::Rows};
use crate::{
    engine::{Error, Result, pipeline::Table, stage::row_of_piece, store::Manifest},
    stages::regions::find,
    tables::{
        anomaly_maps::{self, MAP},
        column::{column, numbers, text},
        decisions::Decision,
        images::{HEIGHT, IMAGE_ID, Taken, WIDTH, id_column},
        nearest::{self, Nearest},
        regions::Region,
        tensor::float_row,
    },
};

/// The reason why a photograph that failed nowhere has no decision.
const LEFT_OUT: &str = "the pipeline makes no decision on it: a `where:` on the way leaves it out";

/// The verdict on a photograph.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Verdict {
    /// The photograph.
    pub image_id: String,
    /// Its class.
    pub class: String,
    /// True if its score is above the threshold; null if no threshold is known.
    pub anomalous: Option<bool>,
    /// Its score; higher is more anomalous.
    pub score: Option<f64>,
    /// The share of good photographs that score as high.
    pub p_value: Option<f64>,
    /// The rate of false alarms that the threshold promises.
    pub rate: Option<f64>,
    /// The threshold of its score.
    pub threshold: Option<f64>,
    /// The digest of the model by which it was judged.
    pub model: String,
    /// The places where its map is above the threshold of pixels; absent if regions are not sought.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regions: Option<Vec<Region>>,
    /// The good patch that is nearest to its most anomalous one; absent if none is sought.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nearest: Option<Nearest>,
}

impl Verdict {
    /// Returns the verdict of a decision.
    pub fn new(decision: &Decision, model: &str, regions: Option<Vec<Region>>, nearest: Option<Nearest>) -> Self {
        Self {
            image_id: decision.image_id.clone(),
            class: decision.class.clone(),
            anomalous: decision.anomalous,
            score: decision.score,
            p_value: decision.p_value,
            rate: decision.rate,
            threshold: decision.threshold,
            model: model.to_owned(),
            regions,
            nearest,
        }
    }
}

/// The tables that a run has made of photographs.
pub struct Judged<'a> {
    inspector: &'a Inspector,
    tables: HashMap<String, Rows>,
    /// The decisions, by image.
    pub decisions: Vec<Decision>,
    /// The photographs that failed on the way, themselves or one of their tiles, and those that a `where:` leaves out, by
    /// image, with the first reason.
    pub failed: Vec<(String, String)>,
}

/// Anomaly maps.
pub struct Maps {
    /// Width and height.
    pub size: (u32, u32),
    /// The values of each map, row after row, by image.
    pub of: HashMap<String, Vec<f32>>,
}

impl<'a> Judged<'a> {
    pub(super) fn new(
        inspector: &'a Inspector,
        photographs: &[Photograph],
        manifests: HashMap<String, Manifest>,
    ) -> Result<Self> {
        let given: BTreeSet<&str> = photographs.iter().map(|photograph| photograph.id.as_str()).collect();
        let mut failed: BTreeMap<String, String> = BTreeMap::new();
        for manifest in inspector.route.computed.iter().filter_map(|table| manifests.get(table)) {
            for error in &manifest.errors {
                failed.entry(photograph_of(&error.id, &given).to_owned()).or_insert_with(|| error.about_id());
            }
        }
        let tables = manifests.iter().map(|(name, manifest)| Ok((name.clone(), Rows::of(&inspector.store, manifest)?)));
        let tables = tables.collect::<Result<_>>()?;
        let mut judged = Self { inspector, tables, decisions: Vec::new(), failed: Vec::new() };
        judged.decisions = Decision::all(&judged.decided()?)?;
        judged.decisions.sort_by(|a, b| a.image_id.cmp(&b.image_id));
        let decided: BTreeSet<&str> = judged.decisions.iter().map(|decision| decision.image_id.as_str()).collect();
        for id in given.difference(&decided) {
            failed.entry((*id).to_owned()).or_insert_with(|| LEFT_OUT.to_owned());
        }
        judged.failed = failed.into_iter().collect();
        Ok(judged)
    }

    fn table(&self, name: &str) -> Result<&Rows> {
        self.tables.get(name).ok_or_else(|| Error::Stage(format!("the run did not reach the table `{name}`")))
    }

    fn decided(&self) -> Result<RecordBatch> {
        self.table(&self.inspector.route.decisions)?.all()
    }

    /// Returns the regions in the pipeline's table, by image; `None` if the pipeline has no such table.
    pub fn regions(&self) -> Result<Option<BTreeMap<String, Vec<Region>>>> {
        let table = self.inspector.route.regions.as_ref();
        table.map(|table| Region::by_image(&self.table(table)?.all()?)).transpose()
    }

    /// Returns the way in which the photographs became pixels.
    pub fn taken(&self) -> Result<Taken> {
        Ok(Taken::of(&self.table(&self.inspector.route.images)?.schema))
    }

    /// Returns width and height of the photographs, by image.
    pub fn sizes(&self) -> Result<HashMap<String, (u32, u32)>> {
        let rows = self.table(&self.inspector.route.images)?.columns(&[IMAGE_ID, WIDTH, HEIGHT])?;
        let (ids, widths, heights) = (text(&rows, IMAGE_ID)?, numbers(&rows, WIDTH)?, numbers(&rows, HEIGHT)?);
        let size = |row: usize| Some((widths[row]? as u32, heights[row]? as u32));
        Ok((0..rows.num_rows()).filter_map(|row| Some((ids.value(row).to_owned(), size(row)?))).collect())
    }

    /// Reads the maps; `None` if the pipeline decides on scores without maps.
    pub fn maps(&self) -> Result<Option<Maps>> {
        let Some(name) = &self.inspector.route.maps else { return Ok(None) };
        let table = self.table(name)?;
        let [height, width] = anomaly_maps::size(&table.schema)
            .ok_or_else(|| Error::Stage(format!("the column `{MAP}` of `{name}` holds no maps")))?;
        let id = id_of(&table.schema, name)?;
        let rows = table.columns(&[&id, MAP])?;
        let mut of = HashMap::new();
        for (row, id) in text(&rows, &id)?.iter().enumerate() {
            let map = float_row(column(&rows, MAP)?, row)?;
            of.extend(id.zip(map).map(|(id, map)| (id.to_owned(), map)));
        }
        Ok(Some(Maps { size: (width as u32, height as u32), of }))
    }

    /// Reads the nearest good patches, by image; there are none if the pipeline does not seek them.
    pub fn nearest(&self) -> Result<HashMap<String, Nearest>> {
        let Some(name) = &self.inspector.route.maps else { return Ok(HashMap::new()) };
        let table = self.table(name)?;
        if !nearest::are_in(&table.schema) {
            return Ok(HashMap::new());
        }
        let id = id_of(&table.schema, name)?;
        nearest::by_image(&table.columns(&[&[id.as_str()], &nearest::names()[..]].concat())?)
    }

    /// Finds regions as the pipeline's table of regions does, by its parameters and its `where:`. Without such a table
    /// they are sought in anomalous photographs. A photograph without a threshold of pixels has none.
    pub fn find_regions(
        &self,
        maps: &Maps,
        sizes: &HashMap<String, (u32, u32)>,
    ) -> Result<HashMap<String, Vec<Region>>> {
        let table = self.inspector.table_of_regions();
        let tolerance = table.and_then(|table| table.stage.params().get("tolerance")?.as_f64()).unwrap_or(1.);
        let is_first = |table: &&Table| table.inputs.first().is_some_and(|i| i.table == self.inspector.route.decisions);
        let filter = table.filter(is_first).and_then(|table| table.filter.as_ref());
        let chosen: HashMap<String, bool> = match filter {
            Some(filter) => {
                let rows = self.decided()?;
                let fits = filter.evaluate(&rows)?;
                let ids = text(&rows, IMAGE_ID)?;
                let chosen =
                    (0..rows.num_rows()).map(|row| (ids.value(row).to_owned(), fits.is_valid(row) && fits.value(row)));
                chosen.collect()
            }
            None => {
                let is_sought = |decision: &Decision| table.is_some() || decision.anomalous == Some(true);
                self.decisions.iter().map(|decision| (decision.image_id.clone(), is_sought(decision))).collect()
            }
        };
        let taken = self.taken()?;
        let regions = |decision: &Decision| {
            let id = &decision.image_id;
            let map = maps.of.get(id).zip(sizes.get(id)).zip(decision.pixel_threshold);
            let Some(((map, size), threshold)) = map else { return Ok(None) };
            let is_chosen = chosen.get(id).copied().unwrap_or(false);
            let place = taken.placement(*size, maps.size);
            let regions = if is_chosen { find(map, place, threshold as f32, tolerance)? } else { Vec::new() };
            Ok(Some((id.clone(), regions)))
        };
        let found: Result<Vec<Option<_>>> = self.decisions.par_iter().map(regions).collect();
        Ok(found?.into_iter().flatten().collect())
    }
}

impl Inspector {
    fn table_of_regions(&self) -> Option<&Table> {
        self.pipeline.tables.iter().find(|table| Some(&table.name) == self.route.regions.as_ref())
    }
}

/// Returns the photograph, of those that are `given`, of which a row with this id is, or is a tile.
fn photograph_of<'i>(id: &'i str, given: &BTreeSet<&str>) -> &'i str {
    row_of_piece(id).filter(|photograph| !given.contains(id) && given.contains(*photograph)).unwrap_or(id)
}

/// Returns the name of the column with the ids of images.
pub(super) fn id_of(schema: &SchemaRef, table: &str) -> Result<String> {
    let id = id_column(schema).map(str::to_owned);
    id.ok_or_else(|| Error::Stage(format!("table `{table}` has no ids of images")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_of_a_tile_is_that_of_its_photograph() {
        let given = BTreeSet::from(["a.png", "a.png@2", "b.png"]);
        assert_eq!(photograph_of("b.png@0,224", &given), "b.png");
        for id in ["a.png", "a.png@2", "c.png@0,224"] {
            assert_eq!(photograph_of(id, &given), id);
        }
        assert_eq!(photograph_of("a.png@2@0,224", &given), "a.png@2");
    }
}
