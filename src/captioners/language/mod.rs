//! Captioners with a vision-language model: their common parameters, and the operator that asks the model about each
//! image.
//!
//! | file | content |
//! |---|---|
//! | `asking` | the parameters that people write, and what they mean with the defaults of a family |
//! | `describe` | the operator: photographs in, captions out |
//! | `model` | what a loaded model does: answer questions about photographs |
//! | `chat` | the models whose language model is a decoder: InternVL, DeepSeek-VL |
//! | `pictures` | what a model sees of a photograph: tiles, a square |
//! | `memory` | whether weights and caches fit |

pub(super) mod asking;
pub(super) mod chat;
mod describe;
pub(super) mod memory;
pub(super) mod model;
pub(super) mod pictures;

use std::{fmt::Debug, marker::PhantomData, path::PathBuf};

use arrow::datatypes::{DataType, SchemaRef};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use tch::Device;

use super::captioner::Captioner;
use crate::{
    engine::{
        Error, Result, is_url,
        source::Sources,
        stage::{Column, Context, Misfit, Operator},
    },
    models::{checkpoint::Checkpoint, device},
    published::{Weights, not_here},
    tables::{
        captions,
        images::{self, CLASS, FILE_DIGEST, URI},
    },
};
use asking::{Asking, Defaults, Picture, Settings};
pub(super) use chat::Tokens;
use describe::Describer;
use model::VisionLanguageModel;

/// A family of vision-language models: its published models, its defaults and its network.
pub trait Family: Clone + Debug + Send + Sync + 'static {
    /// The names of its published models, under which the catalogue knows their weights.
    const NAMES: &'static [&'static str];
    /// A description, for the documentation of the parameter `model`.
    const ABOUT: &'static str;
    /// The layouts of its weights.
    const LAYOUTS: &'static [&'static str];
    /// The parameters that not every family takes, and this one does.
    const TAKES: &'static [&'static str];

    /// Returns the values of the parameters that are absent: those with which VLMDiff's authors asked.
    fn defaults() -> Defaults;

    /// Loads the network.
    fn open(opening: Opening) -> Result<Box<dyn VisionLanguageModel>>;
}

/// The weights, parameters and device with which a family loads its network.
pub struct Opening {
    /// The weights.
    pub checkpoint: Checkpoint,
    /// The folder with the configuration and the tokenizer.
    pub folder: PathBuf,
    /// The parameters.
    pub settings: Settings,
    /// The device to compute on.
    pub device: Device,
    /// The number of texts that are written at once, if the run sets it.
    pub rows: Option<usize>,
}

/// Captions by a model of the family `F`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent, bound = "")]
pub struct ModelCaptions<F> {
    asking: Asking,
    /// The model's name; the first of the family's until [`Captioner::named`] sets it.
    #[serde(skip)]
    model: &'static str,
    #[serde(skip)]
    family: PhantomData<F>,
}

impl<F: Family> ModelCaptions<F> {
    /// Returns the name or place of the weights.
    fn weights(&self) -> &str {
        self.asking.weights.as_deref().unwrap_or(self.model)
    }

    /// Returns the folder with the configuration and the tokenizer.
    fn folder(&self) -> Result<PathBuf, Misfit> {
        if is_url(self.weights()) {
            let message = format!("{} is a URL; captioners read weights from this machine", self.weights());
            return Err(Misfit::parameter("weights", message));
        }
        Weights(self.weights()).beside().map_err(|e| not_here("weights", &e))
    }
}

impl<F: Family> garde::Validate for ModelCaptions<F> {
    type Context = ();

    fn validate_into(&self, context: &(), parent: &mut dyn FnMut() -> garde::Path, report: &mut garde::Report) {
        self.asking.validate_into(context, parent, report);
    }
}

impl<F: Family> JsonSchema for ModelCaptions<F> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        F::NAMES[0].into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = Asking::json_schema(generator);
        schema.insert("description".into(), F::ABOUT.into());
        if let Some(properties) = schema.get_mut("properties").and_then(|all| all.as_object_mut()) {
            properties.retain(|name, _| asking::is_taken(name, F::TAKES));
        }
        schema
    }
}

impl<F: Family> Captioner for ModelCaptions<F> {
    const NAMES: &'static [&'static str] = F::NAMES;

    fn name(&self) -> &'static str {
        self.model
    }

    fn named(self, model: &'static str) -> Self {
        Self { model, ..self }
    }

    fn reads(&self) -> Vec<Column> {
        let mut columns = match self.asking.image {
            Picture::File => vec![Column::new(URI, DataType::Utf8), Column::new(FILE_DIGEST, DataType::Utf8)],
            Picture::Pixels => vec![images::pixels_column()],
        };
        if self.asking.prompt(&F::defaults()).has_class() {
            columns.push(Column::new(CLASS, DataType::Utf8));
        }
        columns
    }

    fn check(&self) -> Result<(), Misfit> {
        self.asking.check(F::NAMES, F::TAKES)
    }

    fn output(&self) -> SchemaRef {
        captions::generated_schema()
    }

    fn locations(&self) -> &'static [&'static str] {
        &["weights"]
    }

    fn files(&self) -> Result<Vec<String>, Misfit> {
        self.folder()?;
        let weights = Weights(self.weights());
        let mut files = weights.files_of("weights", F::LAYOUTS)?;
        files.extend(weights.tokenizer_files().map_err(|e| Misfit::parameter("weights", e))?);
        files.sort();
        files.dedup();
        Ok(files)
    }

    fn open(self, context: &Context) -> Result<Box<dyn Operator>> {
        let folder = self.folder().map_err(|misfit| Error::Input(misfit.to_string()))?;
        let settings = self.asking.settings(&F::defaults());
        let model = F::open(Opening {
            checkpoint: Weights(self.weights()).open(&Sources::default())?,
            folder,
            settings: settings.clone(),
            device: device::open(&context.device).map_err(|e| Error::Input(e.to_string()))?,
            rows: context.batch_size,
        })?;
        Ok(Box::new(Describer::new(self.model, settings, model, context.sources.clone())))
    }
}
