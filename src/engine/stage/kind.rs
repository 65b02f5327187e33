//! Stage kinds, the entries of the registry.

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    contract::{Place, Stage},
    misfit::ParamError,
    operator::{Open, OpenFn, OpenInDriver, open, open_in_driver},
};
use crate::engine::{Result, distinct};

/// An entry of the registry: the properties of a stage that do not depend on its parameters.
#[derive(Clone, Copy)]
pub struct StageKind {
    /// The name in `stage:`.
    pub name: &'static str,
    /// The JSON Schema of its parameters. Its description is the stage's documentation, and its first example has
    /// valid parameters.
    pub schema: fn() -> schemars::Schema,
    /// Reads and checks parameters. The error holds the path to the parameter.
    pub parse: fn(&Value) -> Result<Box<dyn Stage>, ParamError>,
    /// Opens the stage in the driver; `None` if it needs libtorch with any parameters.
    pub open_here: Option<OpenFn>,
    /// True if a worker can open it.
    pub in_worker: bool,
}

/// The requirements on a stage in the registry: it can be read from JSON, is checked and documented.
pub trait Registered: Stage + DeserializeOwned + JsonSchema + garde::Validate<Context = ()> + 'static {}

impl<S: Stage + DeserializeOwned + JsonSchema + garde::Validate<Context = ()> + 'static> Registered for S {}

impl StageKind {
    /// Makes the entry of a stage that a worker opens.
    pub const fn in_worker<S: Registered>(name: &'static str) -> Self {
        Self { name, schema: schema_of::<S>, parse: parse::<S>, open_here: None, in_worker: true }
    }

    /// Makes the entry of a stage that needs no libtorch and is opened in the driver.
    pub const fn in_driver<S: Registered + Open>(name: &'static str) -> Self {
        Self { open_here: Some(open::<S>), in_worker: false, ..Self::in_worker::<S>(name) }
    }

    /// Makes the entry of a stage that either process opens, as [`Stage::place`] says by its parameters.
    pub const fn in_either<S: Registered + OpenInDriver>(name: &'static str) -> Self {
        Self { open_here: Some(open_in_driver::<S>), ..Self::in_worker::<S>(name) }
    }

    /// Returns the function that opens the stage in the driver with these parameters; `None` if it runs in a worker.
    pub fn opened_here(&self, stage: &dyn Stage) -> Option<OpenFn> {
        self.open_here.filter(|_| !self.in_worker || stage.place() == Place::Driver)
    }

    /// Returns valid parameters of the stage, from the example in its documentation.
    pub fn example(&self) -> Option<Value> {
        (self.schema)().get("examples").and_then(|examples| examples.get(0)).cloned()
    }

    /// Returns the names of its parameters.
    pub fn parameters(&self) -> Vec<String> {
        let schema = (self.schema)();
        let properties = schema.get("properties").and_then(Value::as_object);
        properties.map(|properties| properties.keys().cloned().collect()).unwrap_or_default()
    }

    /// Returns the first paragraph of the stage's documentation.
    pub fn about(&self) -> String {
        let schema = (self.schema)();
        let text = schema.get("description").and_then(Value::as_str).unwrap_or_default();
        text.split("\n\n").next().unwrap_or_default().replace('\n', " ")
    }
}

fn schema_of<S: JsonSchema>() -> schemars::Schema {
    schemars::schema_for!(S)
}

fn parse<S: Registered>(params: &Value) -> Result<Box<dyn Stage>, ParamError> {
    let stage = S::read(params)?;
    stage.validate().map_err(|report| {
        let (path, error) = report.iter().next().map(|(p, e)| (p.to_string(), e.to_string())).unwrap_or_default();
        ParamError { path, message: error }
    })?;
    unread(params, &stage.params(), "", &|| schema_of::<S>().to_value()).map_or(Ok(Box::new(stage)), Err)
}

/// Returns the first name that was written but not read. Serde ignores unknown names in structures that published
/// files contain too, where they may have names without meaning here; in a pipeline each name must have a meaning.
/// A name with its default for a value need not be among those that were read, but is in the schema.
fn unread(written: &Value, read: &Value, below: &str, schema: &dyn Fn() -> Value) -> Option<ParamError> {
    let (written, read) = (written.as_object()?, read.as_object()?);
    written.iter().find_map(|(name, value)| {
        let path = format!("{below}{name}");
        if let Some(read) = read.get(name) {
            return unread(value, read, &format!("{path}."), schema);
        }
        if value.is_null() {
            return None;
        }
        let schema = schema();
        let known = below.split_terminator('.').fold(vec![&schema], |places, step| {
            let below = places.iter().flat_map(|place| properties(&schema, place));
            below.filter(|(name, _)| *name == step).map(|(_, place)| place).collect()
        });
        let known = known.iter().flat_map(|place| properties(&schema, place)).map(|(name, _)| name);
        let known = distinct(known.chain(read.keys().map(String::as_str)));
        let quoted: Vec<String> = known.iter().map(|name| format!("`{name}`")).collect();
        let message = format!("unknown field `{name}`, expected one of {}", quoted.join(", "));
        (!known.contains(&name.as_str())).then_some(ParamError { path, message })
    })
}

/// Returns the properties of an object that lies at a place of a schema, by name; of all objects that may lie there.
fn properties<'s>(schema: &'s Value, place: &'s Value) -> Vec<(&'s str, &'s Value)> {
    let of_reference =
        place.get("$ref").and_then(Value::as_str).and_then(|path| schema.pointer(path.strip_prefix('#')?));
    let ways = ["anyOf", "oneOf", "allOf"].into_iter().filter_map(|way| place.get(way)?.as_array()).flatten();
    let own = place.get("properties").and_then(Value::as_object).into_iter().flatten();
    let inner = of_reference.into_iter().chain(ways).flat_map(|place| properties(schema, place));
    own.map(|(name, place)| (name.as_str(), place)).chain(inner).collect()
}

/// Defines the registry: `stages! { "sql" => sql::Sql, driver; … }` makes `KINDS`, which the driver plans with, and
/// `open_in_worker`. Beside `driver` and `worker` a stage may stand in `either`, if its parameters decide. The driver must
/// not name `open_in_worker`, because it would then be linked to libtorch.
#[macro_export]
macro_rules! stages {
    ($($name:literal => $stage:ty, $place:ident;)*) => {
        /// All stage kinds, in pipeline order.
        pub const KINDS: &[$crate::engine::stage::StageKind] = &[$($crate::stages!(@kind $name $stage, $place)),*];

        /// Returns the function by which the worker opens a stage. The driver must not name this: it would then be
        /// linked to libtorch.
        pub fn open_in_worker(stage: &str) -> Option<$crate::engine::stage::OpenFn> {
            $($crate::stages!(@open stage $name $stage, $place);)*
            None
        }
    };
    (@kind $name:literal $stage:ty, driver) => { $crate::engine::stage::StageKind::in_driver::<$stage>($name) };
    (@kind $name:literal $stage:ty, either) => { $crate::engine::stage::StageKind::in_either::<$stage>($name) };
    (@kind $name:literal $stage:ty, worker) => { $crate::engine::stage::StageKind::in_worker::<$stage>($name) };
    (@open $asked:ident $name:literal $stage:ty, driver) => {};
    (@open $asked:ident $name:literal $stage:ty, $place:ident) => {
        if $asked == $name {
            return Some($crate::engine::stage::open::<$stage>);
        }
    };
}
