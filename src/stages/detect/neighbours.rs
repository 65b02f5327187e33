//! The patches of good photographs, and the nearest of them to a patch.

use std::collections::BTreeMap;

use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::{Float16Type, UInt32Type},
};
use tch::{Device, TchError, Tensor};

use crate::{
    engine::{Error, Result},
    methods::{Bank, Distance, WorstPatch},
    stages::fit::Classes,
    tables::{
        column::{column, missing, text},
        features::{CHANNELS, NETWORK, PATCHES},
        images::{CLASS, IMAGE_ID},
        nearest::Nearest,
    },
};

/// The port of the features.
pub(super) const FEATURES: &str = "features";

/// The patches of good photographs, by class or of all classes.
pub(super) struct Neighbours(BTreeMap<Option<String>, Photographs>);

/// The patches of some photographs, one photograph after another.
struct Photographs {
    bank: Bank,
    ids: Vec<String>,
    /// The end of the patches of each photograph.
    ends: Vec<i64>,
}

impl Neighbours {
    /// Reads a table of features. `network` are the files of the network whose patches are to be compared.
    pub(super) fn of(table: &RecordBatch, classes: Classes, network: &str, device: Device) -> Result<Self> {
        let (ids, of_class, networks) = (text(table, IMAGE_ID)?, text(table, CLASS)?, text(table, NETWORK)?);
        let (lists, channels) = (column(table, PATCHES)?.as_list::<i32>(), column(table, CHANNELS)?);
        let channels = channels.as_primitive::<UInt32Type>();
        let mut groups: BTreeMap<Option<String>, (Vec<Tensor>, Vec<String>, Vec<i64>)> = BTreeMap::new();
        for row in 0..table.num_rows() {
            let id = ids.value(row);
            if lists.is_null(row) || channels.is_null(row) {
                return Err(missing(id, FEATURES, PATCHES));
            }
            if networks.value(row) != network {
                return Err(Error::Input(format!(
                    "{id}: its patches were made by another network than those that were fitted on"
                )));
            }
            let values = lists.value(row);
            let values = values.as_primitive::<Float16Type>().values();
            let patches = Tensor::f_from_slice(values)?.f_view([-1, i64::from(channels.value(row))])?;
            let class = match classes {
                Classes::Unified => None,
                Classes::Separate => of_class.is_valid(row).then(|| of_class.value(row).to_owned()),
            };
            let (tensors, ids, ends) = groups.entry(class).or_default();
            ends.push(ends.last().copied().unwrap_or(0) + patches.size()[0]);
            ids.push(id.to_owned());
            tensors.push(patches);
        }
        let mut photographs = BTreeMap::new();
        for (class, (tensors, ids, ends)) in groups {
            let bank = Bank::new(&Tensor::f_cat(&tensors, 0)?, Distance::Euclidean, device)?;
            photographs.insert(class, Photographs { bank, ids, ends });
        }
        Ok(Self(photographs))
    }

    /// Returns the patch that is nearest to the worst patch of an image of a class; `None` if the class has no photographs.
    pub(super) fn nearest(&self, class: Option<&str>, worst: &WorstPatch) -> Result<Option<Nearest>, TchError> {
        let Some(Photographs { bank, ids, ends }) = self.0.get(&class.map(str::to_owned)) else { return Ok(None) };
        let at = i64::try_from(bank.nearest(&worst.features, 1)?.indices.f_get(0)?.f_get(0)?)?;
        let photograph = ends.partition_point(|end| *end <= at);
        let start = photograph.checked_sub(1).map_or(0, |before| ends[before]);
        let [height, width] = worst.grid;
        // A photograph with as many patches as the grid has kept all of them, in the order of the grid.
        let is_whole = ends[photograph] - start == height * width;
        Ok(Some(Nearest {
            image_id: ids[photograph].clone(),
            at: is_whole.then(|| centre(at - start, worst.grid)),
            worst: centre(worst.number, worst.grid),
        }))
    }
}

/// Returns the centre of a patch as shares of width and height.
fn centre(number: i64, [height, width]: [i64; 2]) -> [f32; 2] {
    let share = |at: i64, side: i64| ((at as f64 + 0.5) / side as f64) as f32;
    [share(number % width, width), share(number / width, height)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn photographs(patches: &[&[[f32; 2]]]) -> Neighbours {
        let vectors: Vec<f32> = patches.iter().flat_map(|patches| patches.as_flattened()).copied().collect();
        let bank = Bank::new(&Tensor::from_slice(&vectors).view([-1, 2]), Distance::Euclidean, Device::Cpu).unwrap();
        let ids = (0..patches.len()).map(|i| format!("good/{i}.png")).collect();
        let mut end = 0;
        let ends = patches.iter().map(|patches| {
            end += patches.len() as i64;
            end
        });
        Neighbours([(None, Photographs { bank, ids, ends: ends.collect() })].into())
    }

    #[test]
    fn nearest_patch_is_told_with_its_photograph_and_its_place() {
        // Photographs of two patches of six, of all six, and of one.
        let grid = [[0., 0.], [0., 1.], [0., 2.], [5., 0.], [5., 1.], [5., 2.]];
        let neighbours = photographs(&[&[[9., 9.], [8., 8.]], &grid, &[[-7., 0.]]]);
        let nearest = |features: [f32; 2], number: i64| {
            let features = Tensor::from_slice(&features).view([1, 2]);
            neighbours.nearest(None, &WorstPatch { features, number, grid: [2, 3] }).unwrap().unwrap()
        };
        let found = nearest([5., 1.2], 0);
        assert_eq!(
            (found.image_id.as_str(), found.at, found.worst),
            ("good/1.png", Some([0.5, 0.75]), [1. / 6., 0.25])
        );
        for (features, expected) in [([8., 8.4], "good/0.png"), ([9., 9.], "good/0.png"), ([-9., 0.], "good/2.png")] {
            let found = nearest(features, 5);
            assert_eq!((found.image_id.as_str(), found.at, found.worst), (expected, None, [5. / 6., 0.75]));
        }
        let other = WorstPatch { features: Tensor::from_slice(&[0f32, 0.]).view([1, 2]), number: 0, grid: [2, 3] };
        assert_eq!(neighbours.nearest(Some("nut"), &other).unwrap(), None);
    }
}
