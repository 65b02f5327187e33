//! Feature extractors with a common interface, which map images to the feature maps of chosen layers.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use super::{
    checkpoint::CheckpointError,
    efficientnet::EfficientNetLite0,
    preprocessing::Preprocessing,
    resnet::{ResNet, ResNetConfig},
    vit::{VisionTransformer, VitConfig},
};

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
    /// A DINOv2 vision transformer of any size. Layers are its blocks from 1; by default the last.
    Dinov2,
    /// EfficientNet-Lite0 trained on ImageNet, cheap on a CPU. Layers are strides: 2, 4, 8, 16, 32; by default 4, 8 and
    /// 16.
    EfficientnetLite0,
}

/// The way in which an image is brought to the size at which a DINOv2 sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dinov2Resize {
    /// The image is resized to 224x224, bilinear with antialiasing.
    #[default]
    Resample,
    /// The first 3x224x224 numbers of the image in memory are taken for an image of 224x224: torch's `Tensor.resize_`,
    /// which the authors' code calls and their tables measure. Images need at least as many numbers.
    Reinterpret,
    /// The image keeps its size, or is resized to the nearest smaller multiples of the patch.
    Keep,
}

/// Height and width in pixels that DINOv2 features are published at.
pub const DINOV2_SIZE: i64 = 224;

/// The choice of the features that are compared; absent values are as published.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The layers, counted as the extractor does.
    pub layers: Option<Vec<usize>>,
    /// True if the final layer norm is applied to each layer; transformers only.
    pub final_norm: Option<bool>,
    /// The way in which an image is brought to size; DINOv2 only.
    pub dinov2_resize: Option<Dinov2Resize>,
}

/// The error of an extractor that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ExtractorError {
    /// The weights cannot be read or are of another architecture.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The weights are those of another network of the same architecture.
    #[error("the weights {} are {found}, and {extractor} is {wanted}", path.display())]
    Other {
        /// The file or folder.
        path: PathBuf,
        /// The extractor asked for.
        extractor: String,
        /// The network of the weights, in words.
        found: String,
        /// The network of the extractor, in words.
        wanted: String,
    },
    /// The network has no such layer, or takes no such option.
    #[error("{0}")]
    Option(String),
}

impl Extractor {
    /// Returns the name in a pipeline.
    pub fn name(self) -> String {
        serde_json::to_value(self).ok().and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
    }

    /// Returns the weights that are used by default: a name of the [`catalogue`](super::catalogue).
    pub fn default_weights(self) -> String {
        if self == Self::Dinov2 { "dinov2-small".to_owned() } else { self.name() }
    }

    /// Returns the layouts of its weights, as [`architecture`](super::architecture) calls them.
    pub fn layouts(self) -> &'static [&'static str] {
        match self {
            Self::DinoVits8 | Self::DinoVits16 | Self::DinoVitb8 | Self::DinoVitb16 => {
                &["dino", "dino-hf", "dino-training"]
            }
            Self::DinoResnet50 => &["resnet"],
            Self::ImagenetResnet50 => &["resnet", "resnet-hf"],
            Self::Dinov2 => &["dinov2", "dinov2-hf"],
            Self::EfficientnetLite0 => &["efficientnet-lite"],
        }
    }

    /// Returns width, blocks and patch of a DINO transformer; None for the other extractors.
    fn dino(self) -> Option<[i64; 3]> {
        Some(match self {
            Self::DinoVits8 => [384, 12, 8],
            Self::DinoVits16 => [384, 12, 16],
            Self::DinoVitb8 => [768, 12, 8],
            Self::DinoVitb16 => [768, 12, 16],
            _ => return None,
        })
    }

    /// Returns all layers, and those that are compared by default; None if they depend on the weights.
    fn layers(self) -> Option<(&'static [usize], &'static [usize])> {
        Some(match self {
            Self::DinoVits8 | Self::DinoVits16 | Self::DinoVitb8 | Self::DinoVitb16 => {
                (&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], &[12])
            }
            Self::DinoResnet50 => (&[1, 2, 3, 4], &[2, 3, 4]),
            Self::ImagenetResnet50 => (&[1, 2, 3, 4], &[1, 2, 3]),
            Self::EfficientnetLite0 => (&[2, 4, 8, 16, 32], &[4, 8, 16]),
            Self::Dinov2 => return None,
        })
    }

    /// Checks options as far as that is possible without the weights. The error is the name of the option and the
    /// reason.
    pub fn check(self, options: &Options) -> Result<(), (&'static str, String)> {
        let transformer = self.dino().is_some() || self == Self::Dinov2;
        let layers = options.layers.iter().flatten();
        match self.layers() {
            Some((there, _)) => {
                if let Some(layer) = layers.into_iter().find(|layer| !there.contains(layer)) {
                    return Err(("layers", format!("{} has no layer {layer}; it has {there:?}", self.name())));
                }
            }
            None if layers.into_iter().any(|layer| *layer == 0) => {
                return Err(("layers", format!("the blocks of {} count from 1", self.name())));
            }
            None => (),
        }
        if options.final_norm.is_some() && !transformer {
            return Err(("final_norm", format!("{} has no final norm; transformers have one", self.name())));
        }
        if options.dinov2_resize.is_some() && self != Self::Dinov2 {
            return Err(("dinov2_resize", format!("{} is no DINOv2", self.name())));
        }
        Ok(())
    }

    /// Loads the network from a weight file, or from a folder in Hugging Face layout.
    ///
    /// # Errors
    /// [`ExtractorError`] if the weights are those of another network or lack a layer.
    pub fn open(self, weights: &Path, options: &Options, device: Device) -> Result<Network, ExtractorError> {
        self.check(options).map_err(|(option, why)| ExtractorError::Option(format!("`{option}`: {why}")))?;
        let other = |found: String, wanted: String| ExtractorError::Other {
            path: weights.to_owned(),
            extractor: self.name(),
            found,
            wanted,
        };
        let mut layers = options.layers.clone().or_else(|| Some(self.layers()?.1.to_vec())).unwrap_or_default();
        let (model, preprocessing) = match self {
            Self::EfficientnetLite0 => {
                let model = EfficientNetLite0::open(weights, device)?;
                (Model::EfficientNetLite0(model), EfficientNetLite0::PREPROCESSING)
            }
            Self::DinoResnet50 | Self::ImagenetResnet50 => {
                let model = ResNet::open(weights, device)?;
                let wanted = ResNetConfig::resnet50(model.config().num_classes);
                if *model.config() != wanted {
                    return Err(other(resnet(model.config()), resnet(&wanted)));
                }
                (Model::ResNet(model), Preprocessing::imagenet(1))
            }
            _ => {
                let model = VisionTransformer::open(weights, device)?;
                let config = model.config();
                let found = [config.hidden_size, config.num_hidden_layers, config.patch_size];
                if config.layer_scale() != (self == Self::Dinov2) || self.dino().is_some_and(|wanted| wanted != found) {
                    let wanted = self.dino().map_or("any DINOv2".to_owned(), |sizes| transformer("DINO", sizes));
                    return Err(other(transformer(family(config), found), wanted));
                }
                let last = config.num_hidden_layers as usize;
                if layers.is_empty() {
                    layers.push(last);
                }
                if let Some(layer) = layers.iter().find(|layer| **layer > last) {
                    let why = format!("`layers`: the weights {} have no block {layer} but {last}", weights.display());
                    return Err(ExtractorError::Option(why));
                }
                let patch = config.patch_size;
                (Model::Vit(model), Preprocessing::imagenet(patch))
            }
        };
        Ok(Network {
            model,
            layers,
            final_norm: options.final_norm.unwrap_or(true),
            resize: (self == Self::Dinov2).then(|| options.dinov2_resize.unwrap_or_default()),
            preprocessing,
        })
    }
}

fn family(config: &VitConfig) -> &'static str {
    if config.layer_scale() { "DINOv2" } else { "DINO" }
}

/// Describes a ResNet in words.
fn resnet(ResNetConfig { stem, planes, layers, .. }: &ResNetConfig) -> String {
    format!("a ResNet with a stem of {stem} and {layers:?} blocks of {planes:?} channels")
}

/// Describes a transformer in words.
fn transformer(family: &str, [width, blocks, patch]: [i64; 3]) -> String {
    format!("a {family} of width {width} with {blocks} blocks and patches of {patch}")
}

/// A loaded feature extractor.
#[derive(Debug)]
pub struct Network {
    model: Model,
    layers: Vec<usize>,
    final_norm: bool,
    resize: Option<Dinov2Resize>,
    preprocessing: Preprocessing,
}

#[derive(Debug)]
enum Model {
    Vit(VisionTransformer),
    ResNet(ResNet),
    EfficientNetLite0(EfficientNetLite0),
}

/// The normalisation of the images that [`Network::forward`] takes.
const IMAGENET: Preprocessing = Preprocessing::imagenet(1);

impl Network {
    /// Maps images normalised by ImageNet's mean and deviation, [B, 3, H, W], to a map per layer, [B, C, h, w].
    ///
    /// Values outside of the range of pixels are not clamped, as in the authors' code. If H and W are not multiples of
    /// a transformer's patch, it sees the image resized to the nearest smaller ones.
    pub fn forward(&self, images: &Tensor) -> Vec<Tensor> {
        let x = self.sized(images);
        let (mean, std) = (self.preprocessing.mean, self.preprocessing.std);
        // The authors pass the tensors on unchanged, so equal normalisations must not cost a rounding.
        let x = if (mean, std) == (IMAGENET.mean, IMAGENET.std) {
            x
        } else {
            self.preprocessing.normalize(&IMAGENET.denormalize(&x))
        };
        match &self.model {
            Model::Vit(model) => model.features(&x, &self.layers, self.final_norm),
            Model::ResNet(model) => {
                let maps = model.forward_features(&x, self.layers.iter().copied().max().unwrap_or(0));
                self.layers.iter().map(|level| maps[level - 1].shallow_clone()).collect()
            }
            Model::EfficientNetLite0(model) => {
                let maps = model.forward_features(&x);
                let level = |stride: &usize| EfficientNetLite0::STRIDES.iter().position(|s| *s as usize == *stride);
                self.layers.iter().filter_map(level).map(|level| maps[level].shallow_clone()).collect()
            }
        }
    }

    /// Returns the images at the size that the network sees.
    fn sized(&self, images: &Tensor) -> Tensor {
        let (_, _, height, width) = images.size4().unwrap();
        let multiple = self.preprocessing.size_multiple;
        let whole = |size: i64| (size / multiple).max(1) * multiple;
        let size = match self.resize {
            Some(Dinov2Resize::Reinterpret) => return reinterpret(images, DINOV2_SIZE),
            Some(Dinov2Resize::Resample) => [DINOV2_SIZE; 2],
            _ => [whole(height), whole(width)],
        };
        if size == [height, width] { images.shallow_clone() } else { resample(images, size) }
    }
}

/// Resizes images to `size`, bilinearly with antialiasing.
pub fn resample(images: &Tensor, size: [i64; 2]) -> Tensor {
    images.internal_upsample_bilinear2d_aa(size, false, None, None)
}

/// Returns the first 3 · `side` · `side` numbers of each image [B, 3, H, W] as another image [B, 3, `side`, `side`], as
/// torch's `Tensor.resize_` does for a single image.
///
/// # Panics
/// If an image has fewer numbers.
pub fn reinterpret(images: &Tensor, side: i64) -> Tensor {
    images.flatten(1, -1).narrow(1, 0, 3 * side * side).view([-1, 3, side, side])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::{catalogue, checkpoint::to_safetensors, vit::Interpolation};
    use tch::nn::VarStore;

    fn options(layers: &[usize]) -> Options {
        Options { layers: Some(layers.to_vec()), ..Default::default() }
    }

    #[test]
    fn the_default_weights_of_every_extractor_are_in_the_catalogue() {
        for name in schemars::schema_for!(Extractor).get("oneOf").unwrap().as_array().unwrap() {
            let extractor: Extractor = serde_json::from_value(name["const"].clone()).unwrap();
            let weights = extractor.default_weights();
            assert!(catalogue::find(&weights).is_some(), "{weights} of {}", extractor.name());
        }
    }

    #[test]
    fn options_are_checked_without_weights() {
        let message = |extractor: Extractor, options: Options| {
            let (option, why) = extractor.check(&options).unwrap_err();
            format!("{option}: {why}")
        };
        assert_eq!(Extractor::DinoVits8.check(&options(&[1, 12])), Ok(()));
        let no_layer = message(Extractor::DinoResnet50, options(&[2, 5]));
        assert_eq!(no_layer, "layers: dino-resnet50 has no layer 5; it has [1, 2, 3, 4]");
        assert_eq!(message(Extractor::Dinov2, options(&[0])), "layers: the blocks of dinov2 count from 1");
        let norm = Options { final_norm: Some(false), ..Default::default() };
        assert!(
            message(Extractor::EfficientnetLite0, norm).starts_with("final_norm: efficientnet-lite0 has no final norm")
        );
        let resize = Options { dinov2_resize: Some(Dinov2Resize::Keep), ..Default::default() };
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
            let error = extractor.open(file, &Options::default(), Device::Cpu).unwrap_err().to_string();
            error.replace(&file.display().to_string(), "FILE")
        };
        let found = "the weights FILE are a DINO of width 64 with 2 blocks and patches of 14, and";
        assert_eq!(
            refused(Extractor::DinoVits8, dino.path()),
            format!("{found} dino-vits8 is a DINO of width 384 with 12 blocks and patches of 8")
        );
        assert_eq!(refused(Extractor::Dinov2, dino.path()), format!("{found} dinov2 is any DINOv2"));
        assert!(refused(Extractor::ImagenetResnet50, dino.path()).contains("it is no ResNet"));
        let config = ResNetConfig { stem: 4, planes: [1, 2, 3, 4], layers: [1; 4], num_classes: None };
        let vs = VarStore::new(Device::Cpu);
        ResNet::new(&vs.root(), &config);
        let resnet = file(&vs);
        assert!(refused(Extractor::DinoResnet50, resnet.path()).contains(
            "are a ResNet with a stem of 4 and [1, 1, 1, 1] blocks of [1, 2, 3, 4] channels, and dino-resnet50 is"
        ));
        assert!(refused(Extractor::DinoVits8, resnet.path()).contains("it is no vision transformer"));
    }

    #[test]
    fn the_blocks_of_dinov2_depend_on_the_weights() {
        let weights = small_vit("dinov2");
        let open = |options: &Options| Extractor::Dinov2.open(weights.path(), options, Device::Cpu);
        let error = open(&options(&[3])).unwrap_err().to_string();
        assert!(error.starts_with("`layers`: ") && error.ends_with(" have no block 3 but 2"), "{error}");
        let x = Tensor::ones([2, 3, 30, 50], tch::kind::FLOAT_CPU);
        let maps = |options: Options| open(&options).unwrap().forward(&x).iter().map(Tensor::size).collect::<Vec<_>>();
        assert_eq!(maps(Options::default()), [[2, 64, 16, 16]]);
        let keep = Options { dinov2_resize: Some(Dinov2Resize::Keep), ..options(&[2, 1]) };
        assert_eq!(maps(keep), [[2, 64, 2, 3], [2, 64, 2, 3]]);
    }

    #[test]
    fn reinterpreting_takes_the_first_numbers() {
        let x = Tensor::arange(2 * 3 * 4 * 4, tch::kind::INT64_CPU).view([2, 3, 4, 4]);
        let y = reinterpret(&x, 2);
        assert_eq!(Vec::<i64>::try_from(y.get(1).flatten(0, -1)).unwrap(), (48..60).collect::<Vec<_>>());
    }
}
