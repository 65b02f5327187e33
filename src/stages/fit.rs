//! Features of normal images -> what a method keeps of them.

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, Int64Array, StringArray},
    datatypes::{Float16Type, SchemaRef, UInt32Type},
};
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{extract::Extract, network_files::NetworkFiles, tensors::save_weights};
use crate::{
    engine::{
        Error, Hasher, Result,
        stage::{Batch, Context, Misfit, Open, Operator, Output, Port, Ports, Rows, Schemas, Sink, Stage, Unit},
    },
    methods::{Fitter, Method},
    tables::{
        column::missing,
        features::{self, CHANNELS, NETWORK, PATCHES},
        fitted,
        images::CLASS,
    },
};

/// Fits a method on the patches of normal images. `detect` scores images by what it keeps.
///
/// The rows are taken in the order of their ids, so that what is kept depends on the photographs alone and not on the
/// order in which they came.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
#[schemars(extend("examples" = [{ "method": { "patchcore": { "ratio": 0.1 } } }]))]
pub struct Fit {
    /// The method with its parameters.
    #[garde(skip)]
    pub method: Method,
    /// The classes that share what is kept.
    #[garde(skip)]
    #[serde(default)]
    pub classes: Classes,
}

/// The classes that share what is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Classes {
    /// All: one model, which need not be told the class of a new image.
    #[default]
    Unified,
    /// None: a model for each class, by which its images are scored.
    Separate,
}

/// All that scoring needs to know about a fit.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FittedConfig {
    pub(super) method: Method,
    pub(super) classes: Classes,
    /// The parameters of the features.
    pub(super) features: Extract,
}

impl Stage for Fit {
    fn revision(&self) -> u32 {
        1
    }

    fn ports(&self) -> Ports {
        Ports::Named(vec![Port::rows("features", features::columns())])
    }

    fn makes(&self) -> Output {
        Output::Table
    }

    fn memory_advice(&self) -> &'static str {
        "lower `keep` of the features, or fit on fewer images"
    }

    fn needs_rows(&self) -> bool {
        true
    }

    fn output(&self, inputs: &Schemas) -> Result<SchemaRef, Misfit> {
        self.method.check().map_err(|(parameter, why)| Misfit::parameter(&parameter, why))?;
        let features = features::parameters_of(inputs, "features")?;
        Ok(fitted::schema(&FittedConfig { method: self.method.clone(), classes: self.classes, features }))
    }
}

impl Open for Fit {
    fn open(self, context: &Context) -> Result<Box<dyn Operator>> {
        let features = features::parameters_of(&context.schemas, "features")?;
        Ok(Box::new(Fitting { stage: self, features }))
    }
}

struct Fitting {
    stage: Fit,
    features: Extract,
}

/// The fit of one class, or of all.
struct Group {
    fitter: Box<dyn Fitter>,
    images: i64,
    ids: Hasher,
}

/// The number of rows that are read at a time.
const ROWS: usize = 32;

impl Operator for Fitting {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        let mut groups: BTreeMap<Option<String>, Group> = BTreeMap::new();
        let mut network: Option<String> = None;
        let mut channels: Option<i64> = None;
        let (total, mut read) = (rows.len() as u64, 0);
        while let Some(batch) = rows.next(ROWS)? {
            let classes = batch.column("features", CLASS)?.as_string::<i32>();
            let networks = batch.column("features", NETWORK)?.as_string::<i32>();
            for (row, id) in batch.ids.iter().enumerate() {
                let class = match self.stage.classes {
                    Classes::Unified => None,
                    Classes::Separate if classes.is_null(row) => return Err(missing(id, "features", CLASS)),
                    Classes::Separate => Some(classes.value(row).to_owned()),
                };
                let patches = patches(&batch, row)?;
                let width = patches.size()[1];
                if *channels.get_or_insert(width) != width
                    || network.get_or_insert_with(|| networks.value(row).to_owned()) != networks.value(row)
                {
                    return Err(Error::Input(format!(
                        "{id}: its patches were made by another network than those before it; run the table of features again"
                    )));
                }
                let group = groups.entry(class).or_insert_with(|| Group {
                    fitter: self.stage.method.fitter(),
                    images: 0,
                    ids: Hasher::new("fitted on"),
                });
                group.fitter.add(&patches)?;
                group.images += 1;
                group.ids.field(id.as_bytes());
            }
            read += batch.len() as u64;
            out.progress(read, total, Unit::Images);
        }
        let network = network.ok_or_else(|| Error::Input("there are no images to fit on".into()))?;
        NetworkFiles::of(&network)?.adopt(out)?;
        let config = FittedConfig {
            method: self.stage.method.clone(),
            classes: self.stage.classes,
            features: self.features.clone(),
        };
        for (class, group) in groups {
            let of = class.clone().unwrap_or_else(|| "all classes".to_owned());
            out.log(format!("fitting {of} on {} images", group.images));
            let fitted = group.fitter.finish()?;
            let weights = out.put_blob(save_weights(fitted.tensors, &config, &[])?)?;
            let columns: [ArrayRef; 6] = [
                Arc::new(StringArray::from(vec![class])),
                Arc::new(Int64Array::from(vec![group.images])),
                Arc::new(Int64Array::from(vec![fitted.vectors])),
                Arc::new(StringArray::from(vec![group.ids.finish().to_string()])),
                Arc::new(StringArray::from(vec![&*network])),
                Arc::new(StringArray::from(vec![weights.to_string()])),
            ];
            out.write_columns(columns.into())?;
        }
        Ok(())
    }
}

/// Returns the patches of a row, f16 [P, C].
fn patches(batch: &Batch, row: usize) -> Result<Tensor> {
    let (lists, channels) = (batch.column("features", PATCHES)?, batch.column("features", CHANNELS)?);
    let id = &batch.ids[row];
    if lists.is_null(row) || channels.is_null(row) {
        return Err(missing(id, "features", PATCHES));
    }
    let values = lists.as_list::<i32>().value(row);
    let width = i64::from(channels.as_primitive::<UInt32Type>().value(row));
    let values = values.as_primitive::<Float16Type>().values();
    if width == 0 || values.len() as i64 % width != 0 {
        return Err(Error::Input(format!("{id}: {} numbers are no vectors of {width} channels", values.len())));
    }
    Ok(Tensor::f_from_slice(values)?.f_view([-1, width])?)
}
