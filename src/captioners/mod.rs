//! Captioners: the sources of captions among which the stage `caption` chooses, one file each.
//!
//! A captioner is a struct with its parameters and [`Captioner`]; `captioners!` lists them with the process in which they
//! describe images.

mod blip2;
mod captioner;
mod coco;
mod dataset;
mod deepseek_vl;
mod file;
mod index;
mod internvl;
mod language;
mod lookup;
mod pairs;
mod parameters;
pub mod prompts;
mod rows;
mod template;
mod wording;

use arrow::datatypes::SchemaRef;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use serde_json::Value;

use crate::engine::{
    Result,
    stage::{Column, Context, Misfit, Operator, ParamError, Place, Sample},
    store::Note,
};
pub use captioner::Captioner;
use language::ModelCaptions;

/// Defines [`AnyCaptioner`]: `Template(template::TemplateCaptions), driver;` is a captioner that describes images in the
/// driver.
macro_rules! captioners {
    ($($variant:ident($captioner:ty), $place:ident;)*) => {
        /// A captioner with its parameters, as `model:` chooses it.
        #[derive(Clone, Debug)]
        pub enum AnyCaptioner {
            $(
                #[allow(missing_docs)]
                $variant($captioner),
            )*
        }

        impl AnyCaptioner {
            /// Returns the names of the captioners.
            pub fn names() -> Vec<&'static str> {
                [$(<$captioner>::NAMES),*].concat()
            }

            /// Reads the parameters of the captioner of this name; `None` if there is none.
            fn of(name: &str, parameters: &Value) -> Option<Result<Self, ParamError>> {
                $(
                    if let Some(name) = <$captioner>::NAMES.iter().find(|known| **known == name) {
                        let read = serde_path_to_error::deserialize::<_, $captioner>(parameters);
                        return Some(read.map(|read| Self::$variant(read.named(name))).map_err(ParamError::from));
                    }
                )*
                None
            }

            /// Returns the JSON Schemas of all captioners, with the names of each.
            fn schemas(generator: &mut SchemaGenerator) -> Vec<(&'static [&'static str], Value)> {
                vec![$((<$captioner>::NAMES, <$captioner as JsonSchema>::json_schema(generator).to_value())),*]
            }

            /// Returns the process in which it describes images.
            pub fn place(&self) -> Place {
                match self {
                    $(Self::$variant(_) => captioners!(@place $place),)*
                }
            }

            /// Opens the captioner in the driver, where [`place`](Self::place) says so. The code of captioners that run
            /// in a worker is not named here: the driver would be linked to libtorch.
            pub fn open_in_driver(self, context: &Context) -> Result<Box<dyn Operator>> {
                match self {
                    $(Self::$variant(captioner) => captioners!(@open_in_driver $place, captioner, context),)*
                }
            }

            /// Opens the captioner in a worker, which can open all of them. The driver must not name this: it would then
            /// be linked to libtorch.
            pub fn open(self, context: &Context) -> Result<Box<dyn Operator>> {
                match self {
                    $(Self::$variant(captioner) => captioner.open(context),)*
                }
            }

            /// Returns the revision of the captioner.
            pub fn revision(&self) -> u32 {
                match self {
                    $(Self::$variant(captioner) => captioner.revision(),)*
                }
            }

            /// Returns the columns of the images that it reads.
            pub fn reads(&self) -> Vec<Column> {
                match self {
                    $(Self::$variant(captioner) => captioner.reads(),)*
                }
            }

            /// Checks its parameters.
            pub fn check(&self) -> Result<(), Misfit> {
                match self {
                    $(Self::$variant(captioner) => captioner.check(),)*
                }
            }

            /// Returns the schema of its captions.
            pub fn output(&self) -> SchemaRef {
                match self {
                    $(Self::$variant(captioner) => captioner.output(),)*
                }
            }

            /// Returns the names of the parameters that are places.
            pub fn locations(&self) -> &'static [&'static str] {
                match self {
                    $(Self::$variant(captioner) => captioner.locations(),)*
                }
            }

            /// Returns the files whose content decides the captions.
            pub fn files(&self) -> Result<Vec<String>, Misfit> {
                match self {
                    $(Self::$variant(captioner) => captioner.files(),)*
                }
            }

            /// Returns notes on a table of its captions.
            pub fn review(&self, table: &Sample<'_>) -> Result<Vec<Note>> {
                match self {
                    $(Self::$variant(captioner) => captioner.review(table),)*
                }
            }
        }

        impl Serialize for AnyCaptioner {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                match self {
                    $(Self::$variant(captioner) => Chosen::of(captioner).serialize(serializer),)*
                }
            }
        }

        impl garde::Validate for AnyCaptioner {
            type Context = ();

            fn validate_into(
                &self,
                context: &(),
                parent: &mut dyn FnMut() -> garde::Path,
                report: &mut garde::Report,
            ) {
                match self {
                    $(Self::$variant(captioner) => captioner.validate_into(context, parent, report),)*
                }
            }
        }
    };
    (@place driver) => { Place::Driver };
    (@place worker) => { Place::Worker };
    (@open_in_driver driver, $captioner:ident, $context:ident) => { $captioner.open($context) };
    (@open_in_driver worker, $captioner:ident, $context:ident) => {{
        let _ = $captioner;
        Err(crate::engine::Error::Stage("a captioner with a model was opened in the driver".into()))
    }};
}

captioners! {
    Dataset(dataset::DatasetCaptions), driver;
    Template(template::TemplateCaptions), driver;
    File(file::FileCaptions), driver;
    Pairs(pairs::PairCaptions), driver;
    Coco(coco::CocoCaptions), driver;
    InternVl(ModelCaptions<internvl::InternVlFamily>), worker;
    Blip2(ModelCaptions<blip2::Blip2Family>), worker;
    DeepseekVl(ModelCaptions<deepseek_vl::DeepseekVlFamily>), worker;
}

/// The parameters of a captioner beside the name that chose it.
#[derive(Serialize)]
struct Chosen<'a, C> {
    model: &'static str,
    #[serde(flatten)]
    parameters: &'a C,
}

impl<'a, C: Captioner> Chosen<'a, C> {
    fn of(captioner: &'a C) -> Self {
        Self { model: captioner.name(), parameters: captioner }
    }
}

impl AnyCaptioner {
    /// Reads the parameter `model` and those of the captioner that it names.
    pub fn read(parameters: &Value) -> Result<Self, ParamError> {
        let mut parameters = parameters.clone();
        let at = |path: &str, message: String| ParamError { path: path.to_owned(), message };
        let model = parameters.as_object_mut().and_then(|all| all.shift_remove("model"));
        let names = || Self::names().iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        match model {
            None => Err(at("", format!("missing field `model`, one of {}", names()))),
            Some(Value::String(name)) => Self::of(&name, &parameters)
                .unwrap_or_else(|| Err(at("model", format!("there is no captioner `{name}`; there are {}", names())))),
            Some(other) => Err(at("model", format!("it is {other}, and a captioner is one of {}", names()))),
        }
    }
}

impl<'de> Deserialize<'de> for AnyCaptioner {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let read = Self::read(&Value::deserialize(deserializer)?);
        read.map_err(|ParamError { path, message }| D::Error::custom(format!("{path}: {message}")))
    }
}

impl JsonSchema for AnyCaptioner {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Captioner".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        parameters::merged(Self::schemas(generator))
    }
}

#[cfg(test)]
mod tests;
