//! The fit of a method on features.

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, Int64Array, StringArray},
    buffer::Buffer,
    datatypes::{Float16Type, UInt32Type},
};
use tch::Tensor;

use super::{Classes, FEATURES, FittedOn, Fitting};
use crate::{
    engine::{
        Error, Result,
        stage::{Batch, Rows, Sink, Unit},
    },
    methods::{Fitter, PatchMethod},
    models::memory::{self, in_words},
    stages::{network_files::NetworkFiles, tensors::save_weights},
    tables::{
        column::missing,
        features::{CHANNELS, NETWORK, PATCHES},
        images::CLASS,
    },
};

/// The fit of one class, or of all.
struct Group {
    fitter: Box<dyn Fitter>,
    on: FittedOn,
}

/// The number of rows that are read at a time.
const ROWS: usize = 32;

impl Fitting {
    /// Fits a method on the patches of all rows, and writes a row for each class.
    pub(super) fn fit(&self, method: &dyn PatchMethod, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        let mut groups: BTreeMap<Option<String>, Group> = BTreeMap::new();
        let mut network: Option<String> = None;
        let mut channels: Option<i64> = None;
        let (total, mut read) = (rows.len() as u64, 0);
        while let Some(batch) = rows.next(ROWS)? {
            let classes = batch.column(FEATURES, CLASS)?.as_string::<i32>();
            let networks = batch.column(FEATURES, NETWORK)?.as_string::<i32>();
            for (row, id) in batch.ids.iter().enumerate() {
                let class = self.stage.class(id, FEATURES, classes, row)?;
                let (patches, bytes) = patches(&batch, row)?;
                let width = patches.size()[1];
                if *channels.get_or_insert(width) != width
                    || network.get_or_insert_with(|| networks.value(row).to_owned()) != networks.value(row)
                {
                    return Err(Error::Input(format!(
                        "{id}: its patches were made by another network than those before it; run the table of features again"
                    )));
                }
                if groups.is_empty() {
                    self.announce(total * patches.size()[0] as u64, width as u64, out)?;
                }
                let group =
                    groups.entry(class).or_insert_with(|| Group { fitter: method.fitter(), on: FittedOn::new() });
                group.fitter.add(&patches)?;
                group.on.add(id, classes, row, &bytes);
            }
            read += batch.len() as u64;
            out.progress(read, total, Unit::Images);
        }
        let network = network.ok_or_else(|| Error::Input("there are no images to fit on".into()))?;
        NetworkFiles::of(&network)?.adopt(out)?;
        for (class, group) in groups {
            let of = class.clone().unwrap_or_else(|| "all classes".to_owned());
            out.log(format!("fitting {of} on {} images", group.on.images));
            let fitted = group.fitter.finish()?;
            let weights = out.put_blob(save_weights(fitted.tensors, &self.config, &[])?)?;
            let [classes, images, fitted_on] = FittedOn::columns(&[&group.on]);
            let columns: [ArrayRef; 7] = [
                Arc::new(StringArray::from(vec![class])),
                classes,
                images,
                Arc::new(Int64Array::from(vec![fitted.vectors])),
                fitted_on,
                Arc::new(StringArray::from(vec![&*network])),
                Arc::new(StringArray::from(vec![weights.to_string()])),
            ];
            out.write_columns(columns.into())?;
        }
        Ok(())
    }
}

impl Fitting {
    /// Says how much memory a fit takes on so many patches of so many numbers, and refuses what does not fit into that of
    /// the machine. Where classes are separate, each takes less, and how much is not known before all are read.
    fn announce(&self, patches: u64, channels: u64, out: &mut Sink<'_>) -> Result<()> {
        let Some(needed) = self.stage.method.memory(patches, channels) else { return Ok(()) };
        let of = format!("a fit on {patches} patches of {channels} numbers takes up to {}", in_words(needed));
        match memory::free() {
            Some(free) if free < needed && self.stage.classes == Classes::Unified => {
                Err(Error::Memory(format!("{of} of memory, and {} are free", in_words(free))))
            }
            _ => {
                out.log(of + " of memory");
                Ok(())
            }
        }
    }
}

/// Returns the patches of a row, f16 [P, C], and their bytes.
fn patches(batch: &Batch, row: usize) -> Result<(Tensor, Buffer)> {
    let (lists, channels) = (batch.column(FEATURES, PATCHES)?, batch.column(FEATURES, CHANNELS)?);
    let id = &batch.ids[row];
    if lists.is_null(row) || channels.is_null(row) {
        return Err(missing(id, FEATURES, PATCHES));
    }
    let values = lists.as_list::<i32>().value(row);
    let width = i64::from(channels.as_primitive::<UInt32Type>().value(row));
    let values = values.as_primitive::<Float16Type>().values();
    if width == 0 || values.len() as i64 % width != 0 {
        return Err(Error::Input(format!("{id}: {} numbers are no vectors of {width} channels", values.len())));
    }
    Ok((Tensor::f_from_slice(values)?.f_view([-1, width])?, values.inner().clone()))
}
