//! Anomaly maps of tiles -> anomaly maps of photographs.

use std::{collections::BTreeSet, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, Float32Array, StringArray},
    datatypes::{DataType, Float16Type, Float32Type, Int32Type, Schema, SchemaRef, UInt32Type},
};
use garde::Validate;
use half::f16;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vlmdiff_metrics::windows::larger;

use super::finish::fill_outside;
use crate::{
    engine::{
        Error, Result,
        stage::{
            Batch, Column, Context, Misfit, Open, Operator, Output, Port, Ports, RowPieces, Rows, Schemas, Sink, Stage,
        },
    },
    tables::{
        anomaly_maps::{self, MAP, SCORE},
        column::{column, missing},
        images::{self, HEIGHT, Taken, WIDTH},
        tensor::{tensor_column, tensor_row},
        tiles::{self, SCALED_HEIGHT, SCALED_WIDTH, X, Y},
    },
    vision::mosaic::Mosaic,
};

/// Puts the anomaly maps of the tiles of photographs together: a map and a score for each photograph.
///
/// Tiles fade into each other where they overlap. `images` are the photographs as another table of `ingest` has them; the
/// map is resized to their pixels (bilinear, antialiased), so that their masks, and regions and pictures at the
/// photograph's own size, fit it. Where `images` has a border beside a photograph, and outside of its `roi`, the map has
/// its lowest value; tiles of which `images` shows nothing do not count. A photograph is computed from its own tiles alone.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
#[schemars(extend("examples" = [{ "score": "tiles" }]))]
pub struct Stitch {
    /// The rule by which the photograph's score is made.
    #[garde(skip)]
    #[serde(default)]
    pub score: PhotographScore,
}

/// The rule by which the photograph's score is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PhotographScore {
    /// The highest score of its tiles.
    #[default]
    Tiles,
    /// The highest value of its map.
    Map,
}

impl Stage for Stitch {
    fn revision(&self) -> u32 {
        2
    }

    fn ports(&self) -> Ports {
        let integers = |names: [&'static str; 2], of: DataType| names.map(|name| Column::new(name, of.clone()));
        let [x, y] = integers([X, Y], DataType::Int32);
        let [scaled_width, scaled_height] = integers([SCALED_WIDTH, SCALED_HEIGHT], DataType::UInt32);
        let map = Column::tensors(MAP, DataType::Float16, "[H, W]");
        Ports::Named(vec![
            Port::rows("images", [&integers([WIDTH, HEIGHT], DataType::UInt32)[..], &[images::roi_column()]].concat()),
            Port::pieces("tiles", [x, y, scaled_width, scaled_height]),
            Port::pieces("anomaly_maps", [map, Column::new(SCORE, DataType::Float32)]),
        ])
    }

    fn makes(&self) -> Output {
        Output::RowPerRow
    }

    fn output(&self, inputs: &Schemas) -> Result<SchemaRef, Misfit> {
        tiles::refuse(inputs, "images")?;
        let [height, width] = images::judged_size(inputs)?;
        let [tile_height, tile_width, _] = inputs.shape::<3>("tiles", images::PIXELS)?;
        let [map_height, map_width] = anomaly_maps::shape(inputs)?;
        if (tile_height, tile_width) != (map_height, map_width) {
            let message = format!("tiles are {tile_height}x{tile_width} and their maps {map_height}x{map_width}");
            return Err(Misfit::input("anomaly_maps", message));
        }
        // The maps depend on the way in which photographs become pixels, and so does the identity of their schema.
        let taken = inputs.get("images").map(|schema| Taken::of(schema)).unwrap_or_default();
        let maps = anomaly_maps::schema([height, width]);
        let fields = maps.fields().iter().map(|field| match field.name().as_str() {
            MAP => Arc::new(taken.note(field.as_ref().clone())),
            _ => field.clone(),
        });
        Ok(Arc::new(Schema::new(fields.collect::<Vec<_>>())))
    }
}

impl Open for Stitch {
    fn open(self, context: &Context) -> Result<Box<dyn Operator>> {
        let [height, width, _] = images::pixels(&context.schemas)?;
        let [tile_height, tile_width] = anomaly_maps::shape(&context.schemas)?;
        let taken = context.schemas.get("images").map(|schema| Taken::of(schema)).unwrap_or_default();
        Ok(Box::new(Stitcher {
            score: self.score,
            taken,
            size: (width as u32, height as u32),
            tile: (tile_width as u32, tile_height as u32),
        }))
    }
}

struct Stitcher {
    score: PhotographScore,
    taken: Taken,
    /// Width and height of the maps of photographs.
    size: (u32, u32),
    /// Width and height of tiles.
    tile: (u32, u32),
}

/// The number of photographs whose maps are written at once.
const PHOTOGRAPHS: usize = 16;
/// The number of tiles whose maps are in memory at once.
const TILES: usize = 64;

impl Operator for Stitcher {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        while let Some(batch) = rows.next(PHOTOGRAPHS)? {
            let tiles = Tiles::of(batch.pieces()?)?;
            let mut mosaics = Vec::new();
            for row in 0..batch.len() {
                mosaics.push(self.begin(&batch, row, &tiles)?);
            }
            let mut highest = vec![f64::NEG_INFINITY; batch.len()];
            tiles.for_maps(|row, tile, map, score| {
                let place = tiles.places[tile];
                if let Some(mosaic) = mosaics[row].as_mut().filter(|mosaic| mosaic.shows(place)) {
                    mosaic.add(place, map);
                    highest[row] = larger(highest[row], score.into());
                }
            })?;
            let (mut ids, mut maps, mut scores) = (Vec::new(), Vec::new(), Vec::new());
            for (row, (mosaic, highest)) in mosaics.into_iter().zip(highest).enumerate() {
                let id = &batch.ids[row];
                let Some(mosaic) = mosaic else {
                    out.fail(
                        id,
                        "its tiles do not cover it; did some fail, or does `where:` leave some out in the tables above?",
                    )?;
                    continue;
                };
                let mut map = mosaic.finish();
                fill_outside(&mut map, images::roi_of(&batch, row)?.as_deref());
                let map: Vec<f16> = map.into_iter().map(f16::from_f64).collect();
                let score = match self.score {
                    PhotographScore::Tiles => highest,
                    PhotographScore::Map => map.iter().copied().map(f64::from).fold(f64::NEG_INFINITY, larger),
                };
                scores.push(score as f32);
                maps.extend(map);
                ids.push(id);
            }
            let maps = tensor_column::<Float16Type>(maps, self.size.0 as usize * self.size.1 as usize, None)?;
            let ids: ArrayRef = Arc::new(StringArray::from_iter_values(ids));
            out.write_columns(vec![ids, maps, Arc::new(Float32Array::from(scores))])?;
        }
        Ok(())
    }
}

impl Stitcher {
    /// Begins the map of a photograph; `None` if its tiles do not cover it.
    fn begin(&self, batch: &Batch, row: usize, tiles: &Tiles) -> Result<Option<Mosaic>> {
        let side = |name| {
            let sides = batch.column("images", name)?.as_primitive::<UInt32Type>();
            let side = sides.is_valid(row).then(|| sides.value(row)).filter(|side| *side > 0);
            side.ok_or_else(|| missing(&batch.ids[row], "images", name))
        };
        let placement = self.taken.placement((side(WIDTH)?, side(HEIGHT)?), self.size);
        let of_row = tiles.pieces.of(row);
        // All tiles of a photograph were cut from one picture.
        let scaled: BTreeSet<(u32, u32)> = tiles.scaled[of_row.clone()].iter().copied().collect();
        let scaled = scaled.first().filter(|_| scaled.len() == 1);
        Ok(scaled.and_then(|scaled| Mosaic::new(*scaled, placement.axes(), self.tile, &tiles.places[of_row])))
    }
}

/// The tiles of some photographs, one photograph after another.
struct Tiles {
    pieces: RowPieces,
    places: Vec<(i32, i32)>,
    /// Width and height of the picture that each was cut from.
    scaled: Vec<(u32, u32)>,
}

impl Tiles {
    fn of(pieces: RowPieces) -> Result<Self> {
        let read = pieces.read("tiles", 0..pieces.ids().len())?;
        let present = |name| -> Result<&ArrayRef> {
            let column = column(&read, name)?;
            match (0..column.len()).find(|tile| column.is_null(*tile)) {
                Some(tile) => Err(missing(&pieces.ids()[tile], "tiles", name)),
                None => Ok(column),
            }
        };
        let integers = |name| Ok::<_, Error>(present(name)?.as_primitive::<Int32Type>().values().iter().copied());
        let sides = |name| Ok::<_, Error>(present(name)?.as_primitive::<UInt32Type>().values().iter().copied());
        let places = integers(X)?.zip(integers(Y)?).collect();
        let scaled = sides(SCALED_WIDTH)?.zip(sides(SCALED_HEIGHT)?).collect();
        Ok(Self { places, scaled, pieces })
    }

    /// Calls `each` with the photograph, the number, the map and the score of each tile.
    fn for_maps(&self, mut each: impl FnMut(usize, usize, &[f32], f32)) -> Result<()> {
        let (ids, mut row) = (self.pieces.ids(), 0);
        for start in (0..ids.len()).step_by(TILES) {
            let read = self.pieces.read("anomaly_maps", start..(start + TILES).min(ids.len()))?;
            let (maps, scores) = (column(&read, MAP)?, column(&read, SCORE)?.as_primitive::<Float32Type>());
            for (at, tile) in (start..start + read.num_rows()).enumerate() {
                while tile >= self.pieces.of(row).end {
                    row += 1;
                }
                let lacks = |name| missing(&ids[tile], "anomaly_maps", name);
                let map = tensor_row::<Float16Type>(maps, at)?.ok_or_else(|| lacks(MAP))?;
                let map: Vec<f32> = map.iter().copied().map(f32::from).collect();
                let score = scores.is_valid(at).then(|| scores.value(at)).ok_or_else(|| lacks(SCORE))?;
                each(row, tile, &map, score);
            }
        }
        Ok(())
    }
}
