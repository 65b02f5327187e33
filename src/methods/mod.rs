//! Methods of anomaly detection that are fitted on normal images, one file each.
//!
//! | kind | is fitted on | does |
//! |---|---|---|
//! | [`PatchMethod`] | features, which the stage `extract` made | keeps tensors, and scores the patches of an image by them |
//! | [`TrainedMethod`] | images, epoch by epoch | trains networks, and makes the map of an image by them |
//!
//! A [`Method`] is plain data, which the driver reads as well: its parameters, with [`MethodParameters`]. The other half,
//! one of the two traits above, needs libtorch and is called in the worker only.

mod bank;
pub mod coreset;
mod knn;
mod patchcore;
mod patches;
mod rad;
mod reverse_distillation;
mod subspace;
mod trained;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use bank::{Bank, Distance};
pub use knn::Knn;
pub use patchcore::{Patchcore, Protocol};
pub use patches::{Fitted, Fitter, PatchMethod, Scorer, Scores, most_anomalous};
pub use rad::Rad;
pub use reverse_distillation::{CombinedLevels, DistillationProtocol, ReverseDistillation, distillation_loss};
pub use subspace::Subspace;
pub use trained::{AnyTrainedMethod, Detection, Detector, Learner, TrainedMethod, WorstPatch};

/// The describing half of a method. The driver calls it, through generics and not as `dyn`: a vtable would name the half
/// that needs libtorch.
pub trait MethodParameters: Clone {
    /// Checks the parameters. The error is the name of a parameter and the reason.
    fn check(&self) -> Result<(), (String, String)>;

    /// Checks that images of this height and width fit. The error is the reason.
    fn check_size(&self, _size: [usize; 2]) -> Result<(), String> {
        Ok(())
    }

    /// Returns true if patches are compared by their place in the image, so that none may be left out.
    fn compares_places(&self) -> bool {
        false
    }

    /// Returns the frozen network of a method that is trained: the value of its parameter `weights`, or the name of the
    /// weights that count where that is absent.
    fn frozen(&self) -> Option<FrozenNetwork<'_>> {
        None
    }

    /// Returns the most bytes of memory that a fit on so many patches of so many numbers takes; `None` for a method that is
    /// trained on images.
    fn memory(&self, _patches: u64, _channels: u64) -> Option<u64> {
        None
    }

    /// Returns the same parameters without the place of weights, which is no part of what was fitted.
    fn without_places(&self) -> Self {
        self.clone()
    }
}

/// The published weights that a method uses and does not train.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrozenNetwork<'a> {
    /// A file, folder, URL or name, as pipelines name weights.
    pub weights: &'a str,
    /// Their layouts, as [`architecture`](crate::models::architecture) calls them.
    pub layouts: &'static [&'static str],
}

/// The doing half of a method.
pub enum Doing<'a> {
    /// The half of a method that is fitted on features.
    OnFeatures(&'a dyn PatchMethod),
    /// The half of a method that is trained on images.
    OnImages(&'a dyn AnyTrainedMethod),
}

/// Defines [`Method`]: `"knn" => Knn, features;` is a method that is fitted on features, `images` one that is trained.
macro_rules! methods {
    ($($(#[$about:meta])* $name:literal => $method:ident, $on:ident;)*) => {
        /// A method, by name, with its parameters.
        // There is one for each table, so that its size does not matter.
        #[allow(clippy::large_enum_variant)]
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
        pub enum Method {
            $(
                $(#[$about])*
                #[serde(rename = $name)]
                $method($method),
            )*
        }

        impl Method {
            /// Returns the name in a pipeline.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$method(_) => $name,)*
                }
            }

            /// Returns true for a method that is trained on images.
            pub fn is_trained(&self) -> bool {
                match self {
                    $(Self::$method(_) => methods!(@is_trained $on),)*
                }
            }

            /// Checks the parameters. The error is the path of a parameter below `method` and the reason.
            pub fn check(&self) -> Result<(), (String, String)> {
                let checked = match self {
                    $(Self::$method(method) => method.check(),)*
                };
                checked.map_err(|(parameter, why)| (format!("{}.{parameter}", self.name()), why))
            }

            /// Checks that images of this height and width fit. The error is the reason.
            pub fn check_size(&self, size: [usize; 2]) -> Result<(), String> {
                match self {
                    $(Self::$method(method) => method.check_size(size),)*
                }
            }

            /// Returns true if patches are compared by their place in the image.
            pub fn compares_places(&self) -> bool {
                match self {
                    $(Self::$method(method) => method.compares_places(),)*
                }
            }

            /// Returns the frozen network of a method that is trained.
            pub fn frozen(&self) -> Option<FrozenNetwork<'_>> {
                match self {
                    $(Self::$method(method) => method.frozen(),)*
                }
            }

            /// Returns the most bytes of memory that a fit on so many patches of so many numbers takes; `None` for a
            /// method that is trained on images.
            pub fn memory(&self, patches: u64, channels: u64) -> Option<u64> {
                match self {
                    $(Self::$method(method) => method.memory(patches, channels),)*
                }
            }

            /// Returns the same method without the place of weights.
            pub fn without_places(&self) -> Self {
                match self {
                    $(Self::$method(method) => Self::$method(method.without_places()),)*
                }
            }

            /// Returns the paths of the parameters that are places of weights, below a parameter `method`.
            pub fn locations(&self) -> &'static [&'static str] {
                match self {
                    $(Self::$method(_) => &[concat!("method.", $name, ".weights")],)*
                }
            }

            /// Returns the doing half. The driver must not call this: it would then be linked to libtorch.
            pub fn doing(&self) -> Doing<'_> {
                match self {
                    $(Self::$method(method) => methods!(@doing method $on),)*
                }
            }
        }
    };
    (@is_trained features) => { false };
    (@is_trained images) => { true };
    (@doing $method:ident features) => { Doing::OnFeatures($method) };
    (@doing $method:ident images) => { Doing::OnImages($method) };
}

methods! {
    /// PatchCore (Roth et al. 2022): a coreset of the patches, and the distance to the nearest of them.
    "patchcore" => Patchcore, features;
    /// The nearest patches of all that were given, as AnomalyDINO (Damm et al. 2025) compares those of a transformer.
    "knn" => Knn, features;
    /// The nearest patches around the same place in the images that are most alike: RAD (Zhang et al. 2026).
    "rad" => Rad, features;
    /// The distance to the subspace in which the patches vary, found by principal component analysis (SubspaceAD,
    /// PaDiM's relatives).
    "subspace" => Subspace, features;
    /// Reverse distillation (Deng and Li 2022): a decoder learns to make the maps of a frozen network again from their
    /// embedding, and fails where an image is not normal.
    "rd" => ReverseDistillation, images;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::{architecture, catalogue};

    /// The methods of the schema with their default parameters.
    fn all() -> Vec<Method> {
        let schema = serde_json::to_value(schemars::schema_for!(Method)).unwrap();
        let names = schema["oneOf"].as_array().unwrap().iter().map(|variant| {
            assert!(variant["description"].as_str().is_some_and(|text| !text.is_empty()), "{variant}");
            variant["required"][0].as_str().unwrap().to_owned()
        });
        names.map(|name| serde_json::from_value(serde_json::json!({ name: {} })).unwrap()).collect()
    }

    #[test]
    fn every_method_is_documented_and_its_defaults_fit() {
        for method in all() {
            let name = method.name();
            assert_eq!(method.check(), Ok(()), "{name}");
            assert_eq!(method.memory(9, 9).is_none(), method.is_trained(), "{name} says what memory a fit takes");
            let written = serde_json::to_value(&method).unwrap();
            assert_eq!(serde_json::from_value::<Method>(written).unwrap(), method, "{name}");
            if let Some(FrozenNetwork { weights, layouts }) = method.frozen() {
                assert!(method.is_trained(), "{name}");
                assert!(catalogue::find(weights).is_some(), "{name}: {weights} is in the catalogue");
                assert!(layouts.iter().all(|layout| architecture::title(layout).is_some()), "{name}");
            }
        }
    }

    #[test]
    fn place_of_weights_is_where_the_method_says() {
        for method in all().into_iter().filter(|method| method.frozen().is_some()) {
            let name = method.name();
            let placed: Method = serde_json::from_value(serde_json::json!({ name: { "weights": "here" } })).unwrap();
            assert_eq!(placed.frozen().map(|frozen| frozen.weights), Some("here"), "{name}");
            assert_eq!(method.locations(), [format!("method.{name}.weights")]);
            assert_eq!(placed.without_places(), method);
        }
    }
}
