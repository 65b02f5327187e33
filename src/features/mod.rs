//! Features of images and their comparison: extractors, which map images to the feature maps of chosen layers; patches,
//! the features of all layers on one grid; and the anomaly map between two images.
//!
//! `EXTRACTORS` has a row for each extractor. A family of networks has a file here, which opens its weights, checks
//! that they are of the wanted size, and describes them in words; the networks themselves are in `models`.

pub mod distance;
mod efficientnet;
pub mod embedding;
mod network;
mod patches;
pub mod resize;
mod resnet;
mod vit;

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use crate::models::{preprocessing::Preprocessing, resnet::ResNetConfig};
pub use network::ExtractorError;
use network::{FeatureNetwork, Opening};
use resize::{Dinov2Resize, sized};
use vit::VitSizes;

/// A feature extractor, by the name of its weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Extractor {
    /// DINO's vision transformer ViT-S/8: the authors' choice. Layers are its blocks, 1 to 12; by default the last.
    #[default]
    DinoVits8,
    /// DINO's ViT-S/16; layers as of `dino-vits8`.
    DinoVits16,
    /// DINO's ViT-B/8; layers as of `dino-vits8`.
    DinoVitb8,
    /// DINO's ViT-B/16; layers as of `dino-vits8`.
    DinoVitb16,
    /// DINO's ResNet-50. Layers are its levels `layer1` to `layer4`, as 1 to 4; by default 2, 3 and 4, which the
    /// authors compare.
    DinoResnet50,
    /// A ResNet-50 trained on ImageNet, as DiAD uses it. Layers as of `dino-resnet50`; by default 1, 2 and 3.
    ImagenetResnet50,
    /// A Wide ResNet-50-2 trained on ImageNet, as PatchCore uses it. Layers as of `dino-resnet50`; by default 2 and 3.
    WideResnet50,
    /// A DINOv2 vision transformer of any size. Layers are its blocks from 1; by default the last.
    Dinov2,
    /// EfficientNet-Lite0 trained on ImageNet, cheap on a CPU. Layers are strides: 2, 4, 8, 16, 32; by default 4, 8 and
    /// 16.
    EfficientnetLite0,
}

/// The properties of an extractor that are known without its weights.
struct ExtractorRow {
    extractor: Extractor,
    /// The name in a pipeline.
    name: &'static str,
    /// The weights that are used by default: a name of the [`catalogue`](crate::models::catalogue).
    default_weights: &'static str,
    /// The layouts of its weights, as [`architecture`](crate::models::architecture) calls them.
    layouts: &'static [&'static str],
    layers: Layers,
    /// True if there is a final layer norm that can be applied to each layer.
    has_final_norm: bool,
    /// True if [`Dinov2Resize`] says how an image is brought to size.
    has_dinov2_resize: bool,
    family: Family,
}

/// The layers that an extractor has.
enum Layers {
    /// The same for all weights.
    Fixed {
        /// All layers.
        all: &'static [usize],
        /// The layers that are compared by default, in the order of their maps.
        default: &'static [usize],
    },
    /// Blocks, counted from 1, whose number depends on the weights. The last is compared by default.
    Blocks,
}

/// The network that an extractor opens.
#[derive(Clone, Copy)]
enum Family {
    Dino(VitSizes),
    Dinov2,
    ResNet50,
    WideResNet50,
    EfficientNetLite0,
}

const DINO_LAYOUTS: &[&str] = &["dino", "dino-hf", "dino-training"];
const DINO_LAYERS: Layers = Layers::Fixed { all: &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], default: &[12] };

/// All extractors, in the order of [`Extractor`]. The rows are plain data, without functions that open a network: the
/// driver reads them, and would be linked to libtorch by a pointer to such a function.
const EXTRACTORS: &[ExtractorRow] = &[
    ExtractorRow {
        extractor: Extractor::DinoVits8,
        name: "dino-vits8",
        default_weights: "dino-vits8",
        layouts: DINO_LAYOUTS,
        layers: DINO_LAYERS,
        has_final_norm: true,
        has_dinov2_resize: false,
        family: Family::Dino(VitSizes { width: 384, blocks: 12, patch: 8 }),
    },
    ExtractorRow {
        extractor: Extractor::DinoVits16,
        name: "dino-vits16",
        default_weights: "dino-vits16",
        layouts: DINO_LAYOUTS,
        layers: DINO_LAYERS,
        has_final_norm: true,
        has_dinov2_resize: false,
        family: Family::Dino(VitSizes { width: 384, blocks: 12, patch: 16 }),
    },
    ExtractorRow {
        extractor: Extractor::DinoVitb8,
        name: "dino-vitb8",
        default_weights: "dino-vitb8",
        layouts: DINO_LAYOUTS,
        layers: DINO_LAYERS,
        has_final_norm: true,
        has_dinov2_resize: false,
        family: Family::Dino(VitSizes { width: 768, blocks: 12, patch: 8 }),
    },
    ExtractorRow {
        extractor: Extractor::DinoVitb16,
        name: "dino-vitb16",
        default_weights: "dino-vitb16",
        layouts: DINO_LAYOUTS,
        layers: DINO_LAYERS,
        has_final_norm: true,
        has_dinov2_resize: false,
        family: Family::Dino(VitSizes { width: 768, blocks: 12, patch: 16 }),
    },
    ExtractorRow {
        extractor: Extractor::DinoResnet50,
        name: "dino-resnet50",
        default_weights: "dino-resnet50",
        layouts: &["resnet"],
        layers: Layers::Fixed { all: &[1, 2, 3, 4], default: &[2, 3, 4] },
        has_final_norm: false,
        has_dinov2_resize: false,
        family: Family::ResNet50,
    },
    ExtractorRow {
        extractor: Extractor::ImagenetResnet50,
        name: "imagenet-resnet50",
        default_weights: "imagenet-resnet50",
        layouts: &["resnet", "resnet-hf"],
        layers: Layers::Fixed { all: &[1, 2, 3, 4], default: &[1, 2, 3] },
        has_final_norm: false,
        has_dinov2_resize: false,
        family: Family::ResNet50,
    },
    ExtractorRow {
        extractor: Extractor::WideResnet50,
        name: "wide-resnet50",
        default_weights: "wide-resnet50",
        layouts: &["resnet"],
        layers: Layers::Fixed { all: &[1, 2, 3, 4], default: &[2, 3] },
        has_final_norm: false,
        has_dinov2_resize: false,
        family: Family::WideResNet50,
    },
    ExtractorRow {
        extractor: Extractor::Dinov2,
        name: "dinov2",
        default_weights: "dinov2-small",
        layouts: &["dinov2", "dinov2-hf"],
        layers: Layers::Blocks,
        has_final_norm: true,
        has_dinov2_resize: true,
        family: Family::Dinov2,
    },
    ExtractorRow {
        extractor: Extractor::EfficientnetLite0,
        name: "efficientnet-lite0",
        default_weights: "efficientnet-lite0",
        layouts: &["efficientnet-lite"],
        layers: Layers::Fixed { all: &[2, 4, 8, 16, 32], default: &[4, 8, 16] },
        has_final_norm: false,
        has_dinov2_resize: false,
        family: Family::EfficientNetLite0,
    },
];

impl ExtractorRow {
    /// Returns the chosen layers, or those of default, of weights whose last layer is `last`.
    fn layers(&self, options: &FeatureOptions, last: usize) -> Vec<usize> {
        match (&options.layers, &self.layers) {
            (Some(chosen), _) if !chosen.is_empty() => chosen.clone(),
            (_, Layers::Fixed { default, .. }) => default.to_vec(),
            (_, Layers::Blocks) => vec![last],
        }
    }
}

impl Family {
    /// Loads the network. Only the worker may call this, since the driver must not be linked to libtorch.
    fn open(self, opening: &Opening<'_>) -> Result<Box<dyn FeatureNetwork>, ExtractorError> {
        match self {
            Self::Dino(sizes) => vit::open_dino(opening, sizes),
            Self::Dinov2 => vit::open_dinov2(opening),
            Self::ResNet50 => resnet::open(opening, ResNetConfig::resnet50),
            Self::WideResNet50 => resnet::open(opening, ResNetConfig::wide_resnet50),
            Self::EfficientNetLite0 => efficientnet::open_lite0(opening),
        }
    }
}

/// The choice of the features that are compared; absent values are as published.
#[derive(Clone, Debug, Default)]
pub struct FeatureOptions {
    /// The layers, counted as the extractor does.
    pub layers: Option<Vec<usize>>,
    /// True if the final layer norm is applied to each layer; transformers only.
    pub final_norm: Option<bool>,
    /// The way in which an image is brought to size; DINOv2 only.
    pub dinov2_resize: Option<Dinov2Resize>,
}

impl Extractor {
    /// Returns the row of the extractor, which [`EXTRACTORS`] has for every variant.
    fn row(self) -> &'static ExtractorRow {
        EXTRACTORS.iter().find(|row| row.extractor == self).expect("every extractor has a row")
    }

    /// Returns the name in a pipeline.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// Returns the weights that are used by default: a name of the [`catalogue`](crate::models::catalogue).
    pub fn default_weights(self) -> &'static str {
        self.row().default_weights
    }

    /// Returns the layouts of its weights, as [`architecture`](crate::models::architecture) calls them.
    pub fn layouts(self) -> &'static [&'static str] {
        self.row().layouts
    }

    /// Checks options as far as that is possible without the weights. The error is the name of the option and the
    /// reason.
    pub fn check(self, options: &FeatureOptions) -> Result<(), (&'static str, String)> {
        let ExtractorRow { name, layers, has_final_norm, has_dinov2_resize, .. } = self.row();
        let chosen = options.layers.iter().flatten();
        match layers {
            Layers::Fixed { all, .. } => {
                if let Some(layer) = chosen.into_iter().find(|layer| !all.contains(layer)) {
                    return Err(("layers", format!("{name} has no layer {layer}; it has {all:?}")));
                }
            }
            Layers::Blocks if chosen.into_iter().any(|layer| *layer == 0) => {
                return Err(("layers", format!("the blocks of {name} count from 1")));
            }
            Layers::Blocks => (),
        }
        if options.final_norm.is_some() && !has_final_norm {
            return Err(("final_norm", format!("{name} has no final norm; transformers have one")));
        }
        if options.dinov2_resize.is_some() && !has_dinov2_resize {
            return Err(("dinov2_resize", format!("{name} is no DINOv2")));
        }
        Ok(())
    }

    /// Loads the network from a weight file, or from a folder in Hugging Face layout.
    ///
    /// # Errors
    /// [`ExtractorError`] if the weights are those of another network or lack a layer.
    pub fn open(
        self,
        weights: &Path,
        options: &FeatureOptions,
        device: Device,
    ) -> Result<LoadedExtractor, ExtractorError> {
        self.check(options).map_err(|(option, why)| ExtractorError::Option(format!("`{option}`: {why}")))?;
        let row = self.row();
        let network = row.family.open(&Opening { extractor: row.name, weights, device })?;
        let last = network.last_layer();
        let layers = row.layers(options, last);
        if let Some(layer) = layers.iter().find(|layer| **layer > last) {
            let why = format!("`layers`: the weights {} have no block {layer} but {last}", weights.display());
            return Err(ExtractorError::Option(why));
        }
        Ok(LoadedExtractor {
            network,
            layers,
            final_norm: options.final_norm.unwrap_or(true),
            resize: row.has_dinov2_resize.then(|| options.dinov2_resize.unwrap_or_default()),
        })
    }
}

/// A loaded feature extractor.
#[derive(Debug)]
pub struct LoadedExtractor {
    network: Box<dyn FeatureNetwork>,
    layers: Vec<usize>,
    final_norm: bool,
    resize: Option<Dinov2Resize>,
}

/// The normalisation of the images that [`LoadedExtractor::forward`] takes.
const IMAGENET: Preprocessing = Preprocessing::imagenet(1);

impl LoadedExtractor {
    /// Maps images normalised by ImageNet's mean and deviation, [B, 3, H, W], to a map per layer, [B, C, h, w].
    ///
    /// Values outside of the range of pixels are not clamped, as in the authors' code. If H and W are not multiples of
    /// a transformer's patch, it sees the image resized to the nearest smaller ones.
    pub fn forward(&self, images: &Tensor) -> Vec<Tensor> {
        let preprocessing = self.network.preprocessing();
        let x = sized(images, self.resize, preprocessing.size_multiple);
        // The authors pass the tensors on unchanged, so equal normalisations must not cost a rounding.
        let x = if (preprocessing.mean, preprocessing.std) == (IMAGENET.mean, IMAGENET.std) {
            x
        } else {
            preprocessing.normalize(&IMAGENET.denormalize(&x))
        };
        self.network.features(&x, &self.layers, self.final_norm)
    }
}

#[cfg(test)]
mod tests {
    use tch::nn::VarStore;

    use super::*;
    use crate::models::{
        architecture, catalogue,
        checkpoint::to_safetensors,
        resnet::ResNet,
        vit::{Interpolation, VisionTransformer, VitConfig},
    };

    fn options(layers: &[usize]) -> FeatureOptions {
        FeatureOptions { layers: Some(layers.to_vec()), ..Default::default() }
    }

    #[test]
    fn every_extractor_is_documented_and_has_a_row_that_fits_it() {
        let schema = serde_json::to_value(schemars::schema_for!(Extractor)).unwrap();
        let documented = schema["oneOf"].as_array().unwrap();
        let names = documented.iter().map(|variant| variant["const"].as_str().unwrap());
        assert!(names.eq(EXTRACTORS.iter().map(|row| row.name)), "a row per variant of `Extractor`, in its order");
        for (variant, row) in documented.iter().zip(EXTRACTORS) {
            let ExtractorRow { extractor, name, default_weights, layouts, layers, .. } = row;
            assert_eq!(serde_json::to_value(extractor).unwrap(), *name);
            assert!(variant["description"].as_str().is_some_and(|text| !text.is_empty()), "{name} has a description");
            assert!(catalogue::find(default_weights).is_some(), "{name}: {default_weights} is in the catalogue");
            assert!(!layouts.is_empty(), "{name} has layouts");
            for layout in *layouts {
                assert!(architecture::title(layout).is_some(), "{name}: {layout} is a layout");
            }
            if let Layers::Fixed { all, default } = layers {
                assert!(!default.is_empty() && all.is_sorted(), "{name}");
                assert!(default.iter().all(|layer| all.contains(layer)), "{name} has its default layers");
            }
        }
        assert_eq!(Extractor::default(), EXTRACTORS[0].extractor);
    }

    #[test]
    fn options_are_checked_without_weights() {
        let message = |extractor: Extractor, options: FeatureOptions| {
            let (option, why) = extractor.check(&options).unwrap_err();
            format!("{option}: {why}")
        };
        assert_eq!(Extractor::DinoVits8.check(&options(&[1, 12])), Ok(()));
        let no_layer = message(Extractor::DinoResnet50, options(&[2, 5]));
        assert_eq!(no_layer, "layers: dino-resnet50 has no layer 5; it has [1, 2, 3, 4]");
        assert_eq!(message(Extractor::Dinov2, options(&[0])), "layers: the blocks of dinov2 count from 1");
        let norm = FeatureOptions { final_norm: Some(false), ..Default::default() };
        assert!(
            message(Extractor::EfficientnetLite0, norm).starts_with("final_norm: efficientnet-lite0 has no final norm")
        );
        let resize = FeatureOptions { dinov2_resize: Some(Dinov2Resize::Keep), ..Default::default() };
        assert_eq!(message(Extractor::DinoVits8, resize), "dinov2_resize: dino-vits8 is no DINOv2");
    }

    /// Writes a file with the variables of a network.
    fn file(vs: &VarStore) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, to_safetensors(vs.variables(), Default::default()).unwrap()).unwrap();
        file
    }

    fn small_vit(model_type: &str) -> tempfile::NamedTempFile {
        let config = VitConfig {
            model_type: model_type.to_owned(),
            hidden_size: 64,
            num_hidden_layers: 2,
            image_size: 28,
            patch_size: 14,
            ..Default::default()
        };
        let vs = VarStore::new(Device::Cpu);
        VisionTransformer::new(&vs.root(), &config, Interpolation::Offset);
        file(&vs)
    }

    #[test]
    fn weights_of_another_network_are_refused() {
        let dino = small_vit("vit");
        let refused = |extractor: Extractor, file: &Path| {
            let error = extractor.open(file, &FeatureOptions::default(), Device::Cpu).unwrap_err().to_string();
            error.replace(&file.display().to_string(), "FILE")
        };
        let found = "the weights FILE are a DINO of width 64 with 2 blocks and patches of 14, and";
        assert_eq!(
            refused(Extractor::DinoVits8, dino.path()),
            format!("{found} dino-vits8 is a DINO of width 384 with 12 blocks and patches of 8")
        );
        assert_eq!(refused(Extractor::Dinov2, dino.path()), format!("{found} dinov2 is any DINOv2"));
        assert!(refused(Extractor::ImagenetResnet50, dino.path()).contains("it is no ResNet"));
        let config = ResNetConfig { stem: 4, planes: [1, 2, 3, 4], expansion: 4, layers: [1; 4], num_classes: None };
        let vs = VarStore::new(Device::Cpu);
        ResNet::new(&vs.root(), &config);
        let resnet = file(&vs);
        assert!(refused(Extractor::DinoResnet50, resnet.path()).contains(
            "are a ResNet with a stem of 4 and [1, 1, 1, 1] blocks of [1, 2, 3, 4] channels that widen by 4, and dino-resnet50 is"
        ));
        assert!(refused(Extractor::DinoVits8, resnet.path()).contains("it is no vision transformer"));
    }

    #[test]
    fn the_blocks_of_dinov2_depend_on_the_weights() {
        let weights = small_vit("dinov2");
        let open = |options: &FeatureOptions| Extractor::Dinov2.open(weights.path(), options, Device::Cpu);
        let error = open(&options(&[3])).unwrap_err().to_string();
        assert!(error.starts_with("`layers`: ") && error.ends_with(" have no block 3 but 2"), "{error}");
        let x = Tensor::ones([2, 3, 30, 50], tch::kind::FLOAT_CPU);
        let maps =
            |options: FeatureOptions| open(&options).unwrap().forward(&x).iter().map(Tensor::size).collect::<Vec<_>>();
        assert_eq!(maps(FeatureOptions::default()), [[2, 64, 16, 16]]);
        let keep = FeatureOptions { dinov2_resize: Some(Dinov2Resize::Keep), ..options(&[2, 1]) };
        assert_eq!(maps(keep), [[2, 64, 2, 3], [2, 64, 2, 3]]);
    }
}
