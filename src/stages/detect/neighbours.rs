//! The patches of good photographs, and the nearest of them to a patch.

use std::collections::BTreeMap;

use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::{DataType, Float16Type, Float32Type, UInt32Type},
};
use half::f16;
use tch::{Device, TchError, Tensor};

use crate::{
    engine::{Error, Result, stage::Column},
    methods::{Bank, Distance, WorstPatch},
    stages::fit::Classes,
    tables::{
        column::{column, missing, text},
        features::{self, CHANNELS, NETWORK, PATCHES, PLACES},
        images::{CLASS, IMAGE_ID},
        nearest::Nearest,
    },
};

/// The port of the features.
pub(super) const FEATURES: &str = "features";

/// Returns the columns that are read of it.
pub(super) fn columns() -> Vec<Column> {
    let own = [Column::new(IMAGE_ID, DataType::Utf8), features::places_column()];
    own.into_iter().chain(features::columns()).collect()
}

/// The patches of good photographs, by class or of all classes.
pub(super) struct Neighbours(BTreeMap<Option<String>, Photographs>);

/// The patches of some photographs, one photograph after another.
struct Photographs {
    bank: Bank,
    ids: Vec<String>,
    /// The end of the patches of each photograph.
    ends: Vec<usize>,
    /// The centre of each patch, x and y.
    places: Vec<[f32; 2]>,
}

/// The same before they are in a bank.
#[derive(Default)]
struct Collected {
    /// f16 [P, C] of each photograph.
    patches: Vec<Tensor>,
    ids: Vec<String>,
    ends: Vec<usize>,
    places: Vec<[f32; 2]>,
}

impl Neighbours {
    /// Returns the most bytes of memory that [`of`](Self::of) takes for so many patches of so many numbers: the table and the
    /// joined patches in f16, and the making of the bank.
    pub(super) const fn memory(patches: u64, channels: u64) -> u64 {
        2 * size_of::<f16>() as u64 * patches * channels + Bank::memory(patches, channels)
    }

    /// Reads a table of features, whose patches are compared by `distance`. `network` are the files of the network whose
    /// patches are to be compared.
    pub(super) fn of(
        table: &RecordBatch,
        classes: Classes,
        network: &str,
        distance: Distance,
        device: Device,
    ) -> Result<Self> {
        let (ids, of_class, networks) = (text(table, IMAGE_ID)?, text(table, CLASS)?, text(table, NETWORK)?);
        let (patches, places) = (column(table, PATCHES)?.as_list::<i32>(), column(table, PLACES)?.as_list::<i32>());
        let channels = column(table, CHANNELS)?.as_primitive::<UInt32Type>();
        let mut groups: BTreeMap<Option<String>, Collected> = BTreeMap::new();
        for row in 0..table.num_rows() {
            let id = ids.value(row);
            let needed: [(&str, &dyn Array); 3] = [(PATCHES, patches), (PLACES, places), (CHANNELS, channels)];
            if let Some((name, _)) = needed.into_iter().find(|(_, values)| values.is_null(row)) {
                return Err(missing(id, FEATURES, name));
            }
            if networks.value(row) != network {
                return Err(Error::Input(format!(
                    "{id}: its patches were made by another network than those that were fitted on"
                )));
            }
            let (patches, places) = (patches.value(row), places.value(row));
            let vectors = Tensor::f_from_slice(patches.as_primitive::<Float16Type>().values())?;
            let vectors = vectors.f_view([-1, i64::from(channels.value(row))])?;
            let (places, _) = places.as_primitive::<Float32Type>().values().as_chunks::<2>();
            let count = vectors.size()[0] as usize;
            if places.len() != count {
                return Err(Error::Input(format!("{id}: its {count} patches have {} places", places.len())));
            }
            let class = match classes {
                Classes::Unified => None,
                Classes::Separate => of_class.is_valid(row).then(|| of_class.value(row).to_owned()),
            };
            let group = groups.entry(class).or_default();
            group.patches.push(vectors);
            group.ids.push(id.to_owned());
            group.places.extend_from_slice(places);
            group.ends.push(group.places.len());
        }
        let mut photographs = BTreeMap::new();
        for (class, Collected { patches, ids, ends, places }) in groups {
            let joined = Tensor::f_cat(&patches, 0)?;
            drop(patches);
            let bank = Bank::new(&joined, distance, device)?;
            photographs.insert(class, Photographs { bank, ids, ends, places });
        }
        Ok(Self(photographs))
    }

    /// Returns the patch that is nearest to the worst patch of an image of a class; `None` if the class has no photographs.
    pub(super) fn nearest(&self, class: Option<&str>, worst: &WorstPatch) -> Result<Option<Nearest>, TchError> {
        let Some(Photographs { bank, ids, ends, places }) = self.0.get(&class.map(str::to_owned)) else {
            return Ok(None);
        };
        let at = i64::try_from(bank.nearest(&worst.features, 1)?.indices.f_get(0)?.f_get(0)?)? as usize;
        let photograph = ends.partition_point(|end| *end <= at);
        Ok(Some(Nearest { image_id: ids[photograph].clone(), at: places[at], worst: worst.centre }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A patch, and its centre.
    type Patch = ([f32; 2], [f32; 2]);

    fn photographs(patches: &[&[Patch]], distance: Distance) -> Neighbours {
        let (vectors, places): (Vec<[f32; 2]>, Vec<[f32; 2]>) = patches.concat().into_iter().unzip();
        let vectors = Tensor::from_slice(vectors.as_flattened()).view([-1, 2]);
        let bank = Bank::new(&vectors, distance, Device::Cpu).unwrap();
        let ids = (0..patches.len()).map(|i| format!("good/{i}.png")).collect();
        let mut end = 0;
        let ends = patches.iter().map(|patches| {
            end += patches.len();
            end
        });
        Neighbours([(None, Photographs { bank, ids, ends: ends.collect(), places })].into())
    }

    fn worst(features: [f32; 2]) -> WorstPatch {
        WorstPatch { features: Tensor::from_slice(&features).view([1, 2]), centre: [0.5, 0.25] }
    }

    #[test]
    fn nearest_patch_is_told_with_its_photograph_and_its_place() {
        let all: [&[Patch]; 3] = [
            &[([9., 9.], [0.9, 0.1]), ([8., 8.], [0.1, 0.1])],
            &[([0., 0.], [0.25, 0.5]), ([5., 1.], [0.75, 0.5]), ([0., 2.], [0.25, 0.9])],
            &[([-7., 0.5], [0.3, 0.2])],
        ];
        let cases = [
            ([5., 1.2], "good/1.png", [0.75, 0.5]),
            ([8., 8.4], "good/0.png", [0.1, 0.1]),
            ([9., 9.], "good/0.png", [0.9, 0.1]),
            ([-9., 0.], "good/2.png", [0.3, 0.2]),
        ];
        let neighbours = photographs(&all, Distance::Euclidean);
        for (features, image_id, at) in cases {
            let expected = Nearest { image_id: image_id.to_owned(), at, worst: [0.5, 0.25] };
            assert_eq!(neighbours.nearest(None, &worst(features)).unwrap(), Some(expected));
        }
        assert_eq!(neighbours.nearest(Some("nut"), &worst([0., 0.])).unwrap(), None);
    }

    #[test]
    fn nearest_patch_is_nearest_by_the_given_distance() {
        let all: [&[Patch]; 2] = [&[([1., 1.], [0.1, 0.1])], &[([9., 0.], [0.2, 0.2])]];
        for (distance, expected) in [(Distance::Euclidean, "good/0.png"), (Distance::Cosine, "good/1.png")] {
            let found = photographs(&all, distance).nearest(None, &worst([2., 0.])).unwrap().unwrap();
            assert_eq!(found.image_id, expected, "{distance:?}");
        }
    }
}
