//! Normal images, or their features -> what a method keeps of them.

mod features;
mod images;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef, Int64Array, ListBuilder, StringArray, StringBuilder},
    datatypes::{DataType, SchemaRef},
};
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Device;

use super::{extract::Extract, tensors::device};
use crate::{
    engine::{
        Hasher, Result,
        source::Sources,
        stage::{Column, Context, Misfit, Open, Operator, Output, Port, Ports, Rows, Schemas, Sink, Stage},
    },
    methods::{Doing, Method},
    published::Weights,
    tables::{
        column::missing,
        features::{columns, parameters_of, shape_of},
        fitted,
        images::{CLASS, pixels, pixels_column},
    },
    training,
};

/// Fits a method on normal images. `detect` scores images by what it keeps.
///
/// A method that compares patches reads `features`, a table of `extract`, in the order of their ids, so that what is kept
/// depends on the photographs alone and not on the order in which they came. A method that is trained reads `images`,
/// epoch by epoch, and its table has a row for each logged step of the training. Where a sweep has methods of both kinds,
/// `from:` names both tables: `from: { images: images, features: features }`. Each method is then fitted on the rows that
/// both have, and reads the table of its own kind.
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
    /// The parameters of the features; absent for a method that is trained on images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) features: Option<Extract>,
}

/// The ports of a fit.
const FEATURES: &str = "features";
const IMAGES: &str = "images";

impl Fit {
    fn config(&self, inputs: &Schemas) -> Result<FittedConfig, Misfit> {
        let features = if self.method.is_trained() { None } else { Some(parameters_of(inputs, FEATURES)?) };
        Ok(FittedConfig { method: self.method.without_places(), classes: self.classes, features })
    }

    /// Returns the class whose model an image is fitted into: `None` for the model of all.
    fn class(&self, id: &str, port: &str, classes: &StringArray, row: usize) -> Result<Option<String>> {
        match self.classes {
            Classes::Unified => Ok(None),
            Classes::Separate if classes.is_null(row) => Err(missing(id, port, CLASS)),
            Classes::Separate => Ok(Some(classes.value(row).to_owned())),
        }
    }
}

impl Stage for Fit {
    fn revision(&self) -> u32 {
        2
    }

    fn ports(&self) -> Ports {
        // Of the table of the other kind only the rows count, that is which there are, and a column is needed to read them.
        let class = || Column::new(CLASS, DataType::Utf8);
        Ports::Named(if self.method.is_trained() {
            vec![Port::rows(IMAGES, [class(), pixels_column()]), Port::rows(FEATURES, [class()]).optional()]
        } else {
            vec![Port::rows(FEATURES, columns()), Port::rows(IMAGES, [class()]).optional()]
        })
    }

    fn makes(&self) -> Output {
        Output::Table
    }

    fn locations(&self) -> &'static [&'static str] {
        self.method.locations()
    }

    fn memory_advice(&self) -> &'static str {
        if self.method.is_trained() { training::MEMORY } else { "lower `keep` of the features, or fit on fewer images" }
    }

    fn memory(&self, inputs: &Schemas, rows: u64, _: &BTreeMap<&str, u64>) -> Option<u64> {
        let [patches, channels] = shape_of(inputs, FEATURES)?;
        self.method.memory(rows * patches, channels)
    }

    fn needs_rows(&self) -> bool {
        true
    }

    fn output(&self, inputs: &Schemas) -> Result<SchemaRef, Misfit> {
        self.method.check().map_err(|(parameter, why)| Misfit::parameter(format!("method.{parameter}"), why))?;
        let config = self.config(inputs)?;
        if let Some(features) = &config.features {
            if self.method.compares_places() && features.keep.is_some() {
                let name = self.method.name();
                let message =
                    format!("`{name}` compares patches at the same place, and `keep` of the features leaves some out");
                return Err(Misfit::input(FEATURES, message));
            }
            return Ok(fitted::schema(&config));
        }
        let [height, width, _] = pixels(inputs)?;
        self.method.check_size([height, width]).map_err(|why| Misfit::input(IMAGES, why))?;
        Ok(fitted::trained_schema(&config))
    }

    fn files(&self) -> Result<Vec<String>, Misfit> {
        self.method.frozen().map_or(Ok(Vec::new()), |frozen| {
            Weights(frozen.weights).files_of(self.method.locations()[0], frozen.layouts)
        })
    }
}

impl Open for Fit {
    fn open(self, context: &Context) -> Result<Box<dyn Operator>> {
        let (config, device) = (self.config(&context.schemas)?, device(context)?);
        Ok(Box::new(Fitting { stage: self, config, device, sources: context.sources.clone() }))
    }
}

struct Fitting {
    stage: Fit,
    config: FittedConfig,
    device: Device,
    sources: Sources,
}

impl Operator for Fitting {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        match self.stage.method.doing() {
            Doing::OnFeatures(method) => self.fit(method, rows, out),
            Doing::OnImages(method) => self.train(method, rows, out),
        }
    }
}

/// The images that a model was fitted on.
struct FittedOn {
    images: i64,
    classes: BTreeSet<String>,
    /// The digest of their ids and of what was read of each.
    digest: Hasher,
}

impl FittedOn {
    fn new() -> Self {
        Self { images: 0, classes: BTreeSet::new(), digest: Hasher::new("fitted on") }
    }

    /// Adds the image in a row, of which `content` is read. Images come in the order of their ids.
    fn add(&mut self, id: &str, classes: &StringArray, row: usize, content: &[u8]) {
        self.images += 1;
        self.classes.extend(classes.is_valid(row).then(|| classes.value(row).to_owned()));
        self.digest.field(id.as_bytes()).field(content);
    }

    /// Returns the columns `classes`, `images` and `fitted_on` of rows.
    fn columns(of: &[&Self]) -> [ArrayRef; 3] {
        let mut classes = ListBuilder::new(StringBuilder::new()).with_field(fitted::class_item());
        of.iter().for_each(|of| classes.append_value(of.classes.iter().map(Some)));
        [
            Arc::new(classes.finish()),
            Arc::new(Int64Array::from_iter_values(of.iter().map(|of| of.images))),
            Arc::new(StringArray::from_iter_values(of.iter().map(|of| of.digest.finish().to_string()))),
        ]
    }
}
