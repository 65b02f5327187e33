//! ResNet-50 (He et al. 2016) and Wide ResNet-50-2 with its batch normalisation frozen, as a feature extractor: trained on ImageNet, or by
//! DINO.
//!
//! Names are those of torchvision and timm (`resnet50-0676ba61.pth`, `resnet50_ram-a26f946b.pth`,
//! `dino_resnet50_pretrain.pth`); Hugging Face's (`microsoft/resnet-50`) are translated to these. The stride of a level
//! is on the 3×3 convolution of its first block (v1.5), as in all of these files.

use super::{
    checkpoint::{Checkpoint, CheckpointError},
    conv_norm::ConvNorm,
    initialisation::skip_init,
    nn::{channels_last, linear},
};
use std::path::Path;
use tch::{Device, Tensor, nn};

const EPS: f64 = 1e-5;

/// The sizes of a network of bottleneck blocks with four levels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResNetConfig {
    /// Channels of the first convolution.
    pub stem: i64,
    /// Channels of the 3×3 convolutions of each level.
    pub planes: [i64; 4],
    /// The channels of a block's output, in multiples of those of its 3×3 convolution.
    pub expansion: i64,
    /// Blocks of each level.
    pub layers: [i64; 4],
    /// Classes of the head; None without a head.
    pub num_classes: Option<i64>,
}

impl ResNetConfig {
    /// Returns the sizes of ResNet-50.
    pub const fn resnet50(num_classes: Option<i64>) -> Self {
        Self { stem: 64, planes: [64, 128, 256, 512], expansion: 4, layers: [3, 4, 6, 3], num_classes }
    }

    /// Returns the sizes of Wide ResNet-50-2 (Zagoruyko and Komodakis 2016), whose 3×3 convolutions are twice as wide.
    pub const fn wide_resnet50(num_classes: Option<i64>) -> Self {
        Self { planes: [128, 256, 512, 1024], expansion: 2, ..Self::resnet50(num_classes) }
    }

    /// Reads the sizes from weights with torchvision's names; None if they are not those of such a network.
    pub fn of(weights: &Checkpoint) -> Option<Self> {
        let out = |name: &str| weights.shape(name)?.first().copied();
        let level = |level: usize| {
            let name = |block: i64| format!("layer{level}.{block}.conv2.weight");
            Some((out(&name(0))?, (0..).take_while(|&block| weights.contains(&name(block))).count() as i64))
        };
        let levels = [level(1)?, level(2)?, level(3)?, level(4)?];
        let outputs = out("layer1.0.conv3.weight")?;
        Some(Self {
            stem: out("conv1.weight")?,
            planes: levels.map(|(planes, _)| planes),
            expansion: outputs / levels[0].0.max(1),
            layers: levels.map(|(_, blocks)| blocks),
            num_classes: out("fc.weight"),
        })
    }
}

/// The network, for inference.
#[derive(Debug)]
pub struct ResNet {
    config: ResNetConfig,
    stem: ConvNorm,
    levels: Vec<Vec<Bottleneck>>,
    fc: Option<nn::Linear>,
}

impl ResNet {
    /// Declares the variables. Weights have to be loaded before the first forward pass, which folds the normalisations
    /// into the convolutions.
    pub fn new(vs: &nn::Path, config: &ResNetConfig) -> Self {
        let mut inputs = config.stem;
        let mut level = |index: usize| -> Vec<Bottleneck> {
            let vs = vs / format!("layer{}", index + 1);
            let planes = config.planes[index];
            let outputs = planes * config.expansion;
            let block = |block: i64| {
                let stride = if index > 0 && block == 0 { 2 } else { 1 };
                let made = Bottleneck::new(&(&vs / block), [inputs, planes, outputs], stride, block == 0);
                inputs = outputs;
                made
            };
            (0..config.layers[index]).map(block).collect()
        };
        let levels: Vec<Vec<Bottleneck>> = (0..4).map(&mut level).collect();
        let head = |classes| linear(vs / "fc", config.planes[3] * config.expansion, classes);
        Self {
            stem: ConvNorm::new(vs / "conv1", vs / "bn1", [config.stem, 3, 7, 7], EPS),
            levels,
            fc: config.num_classes.map(head),
            config: config.clone(),
        }
    }

    /// Opens a weight file, or a folder in Hugging Face layout. The sizes are read from the weights, which are frozen
    /// float32.
    ///
    /// # Errors
    /// The errors of [`Checkpoint::open`] and [`Checkpoint::load_into`], and [`CheckpointError::Format`] for weights of
    /// another architecture.
    pub fn open(path: impl AsRef<Path>, device: Device) -> Result<Self, CheckpointError> {
        let weights = torchvision_names(Checkpoint::open(path)?.state_dict())?;
        let lacks = "no conv1 or no layer4.0.conv2";
        let config = ResNetConfig::of(&weights).ok_or_else(|| weights.foreign("ResNet of bottleneck blocks", lacks))?;
        Self::load(&weights, &config, device)
    }

    /// Builds the network and fills it from weights with torchvision's names.
    ///
    /// # Errors
    /// The errors of [`Checkpoint::load_into`].
    pub fn load(weights: &Checkpoint, config: &ResNetConfig, device: Device) -> Result<Self, CheckpointError> {
        let mut vs = nn::VarStore::new(device);
        let model = skip_init(|| Self::new(&vs.root(), config));
        weights.load_into(&vs)?;
        vs.freeze();
        Ok(model)
    }

    /// Returns the sizes of the network.
    pub fn config(&self) -> &ResNetConfig {
        &self.config
    }

    /// Maps normalised images [B, 3, H, W] to the input of the first level: [B, stem, H/4, W/4].
    pub fn forward_stem(&self, x: &Tensor) -> Tensor {
        let x = self.stem.forward(&channels_last(x), 2, [3, 3], 1).relu_(); // [B, stem, H/2, W/2]
        x.max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false)
    }

    /// Maps normalised images [B, 3, H, W] to the outputs of levels 1 to `last`: the first is [B, C, H/4, W/4], and each further one is half as high and wide.
    pub fn forward_features(&self, x: &Tensor, last: usize) -> Vec<Tensor> {
        let mut x = self.forward_stem(x);
        let mut level = |blocks: &Vec<Bottleneck>| {
            blocks.iter().for_each(|block| x = block.forward(&x));
            x.shallow_clone()
        };
        self.levels[..last].iter().map(&mut level).collect()
    }

    /// Maps the output of the last level to logits [B, classes]; without a head, to its mean over height and width, [B,
    /// C].
    pub fn forward_head(&self, map: &Tensor) -> Tensor {
        let pooled = map.mean_dim([2i64, 3].as_slice(), false, None);
        self.fc.as_ref().map_or_else(|| pooled.shallow_clone(), |fc| pooled.apply(fc))
    }
}

/// Convolutions of 1×1, 3×3 and 1×1, whose result is added to the input.
#[derive(Debug)]
struct Bottleneck {
    narrow: ConvNorm,
    middle: ConvNorm,
    widen: ConvNorm,
    downsample: Option<ConvNorm>,
    stride: i64,
}

impl Bottleneck {
    fn new(vs: &nn::Path, [inputs, planes, outputs]: [i64; 3], stride: i64, first: bool) -> Self {
        let layer = |n: usize, shape| ConvNorm::new(vs / format!("conv{n}"), vs / format!("bn{n}"), shape, EPS);
        let downsample = vs / "downsample";
        Self {
            narrow: layer(1, [planes, inputs, 1, 1]),
            middle: layer(2, [planes, planes, 3, 3]),
            widen: layer(3, [outputs, planes, 1, 1]),
            downsample: (first && (stride > 1 || inputs != outputs))
                .then(|| ConvNorm::new(&downsample / 0, &downsample / 1, [outputs, inputs, 1, 1], EPS)),
            stride,
        }
    }

    /// Maps [B, inputs, H, W] to [B, outputs, H / stride, W / stride].
    fn forward(&self, x: &Tensor) -> Tensor {
        let y = self.narrow.forward(x, 1, [0, 0], 1).relu_();
        let y = self.middle.forward(&y, self.stride, [1, 1], 1).relu_();
        let mut y = self.widen.forward(&y, 1, [0, 0], 1);
        match &self.downsample {
            Some(downsample) => y.g_add_(&downsample.forward(x, self.stride, [0, 0], 1)),
            None => y.g_add_(x),
        }
        .relu_()
    }
}

/// Renames weights to torchvision's names, and leaves out the counts of batches, which only training reads. From a full
/// checkpoint of DINO, the backbone is taken.
///
/// # Errors
/// [`CheckpointError::Format`] if two tensors would get one name.
pub fn torchvision_names(weights: Checkpoint) -> Result<Checkpoint, CheckpointError> {
    weights.part("backbone").rename(rename)
}

/// Returns torchvision's name of a tensor, or None for one that is left out.
fn rename(name: &str) -> Option<String> {
    if name.ends_with("num_batches_tracked") {
        return None;
    }
    let rest = name.strip_prefix("resnet.").unwrap_or(name);
    Some(huggingface(rest).unwrap_or_else(|| name.to_owned()))
}

/// Returns torchvision's name for one of Hugging Face's `ResNetModel` or `ResNetForImageClassification` (transformers,
/// `modeling_resnet.py`).
fn huggingface(name: &str) -> Option<String> {
    const OUTSIDE: [(&str, &str); 3] = [
        ("embedder.embedder.convolution", "conv1"),
        ("embedder.embedder.normalization", "bn1"),
        ("classifier.1", "fc"),
    ];
    if let Some(name) = OUTSIDE.iter().find_map(|(theirs, ours)| Some(format!("{ours}{}", name.strip_prefix(theirs)?)))
    {
        return Some(name);
    }
    // stages.I.layers.J.layer.K.convolution.weight or stages.I.layers.J.shortcut.normalization.bias
    let parts: Vec<&str> = name.strip_prefix("encoder.stages.")?.split('.').collect();
    let &[stage, "layers", block, ref rest @ ..] = &parts[..] else { return None };
    let level = stage.parse::<usize>().ok()? + 1;
    Some(match rest {
        ["layer", k, "convolution", part] => {
            format!("layer{level}.{block}.conv{}.{part}", k.parse::<usize>().ok()? + 1)
        }
        ["layer", k, "normalization", part] => {
            format!("layer{level}.{block}.bn{}.{part}", k.parse::<usize>().ok()? + 1)
        }
        ["shortcut", "convolution", part] => format!("layer{level}.{block}.downsample.0.{part}"),
        ["shortcut", "normalization", part] => format!("layer{level}.{block}.downsample.1.{part}"),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hugging_faces_names_are_translated_to_torchvisions() {
        let names = [
            ("resnet.embedder.embedder.convolution.weight", "conv1.weight"),
            ("embedder.embedder.normalization.running_var", "bn1.running_var"),
            ("resnet.encoder.stages.0.layers.2.layer.1.convolution.weight", "layer1.2.conv2.weight"),
            ("resnet.encoder.stages.3.layers.0.layer.2.normalization.running_mean", "layer4.0.bn3.running_mean"),
            ("resnet.encoder.stages.1.layers.0.shortcut.convolution.weight", "layer2.0.downsample.0.weight"),
            ("resnet.encoder.stages.1.layers.0.shortcut.normalization.bias", "layer2.0.downsample.1.bias"),
            ("classifier.1.bias", "fc.bias"),
            ("layer1.0.conv1.weight", "layer1.0.conv1.weight"),
            ("encoder.stages.0.other", "encoder.stages.0.other"),
        ];
        for (theirs, ours) in names {
            assert_eq!(rename(theirs).as_deref(), Some(ours));
        }
        assert_eq!(rename("resnet.embedder.embedder.normalization.num_batches_tracked"), None);
    }

    #[test]
    fn maps_have_the_documented_shapes() {
        let vs = nn::VarStore::new(Device::Cpu);
        let config =
            ResNetConfig { stem: 4, planes: [2, 3, 4, 5], expansion: 4, layers: [1, 2, 1, 1], num_classes: None };
        let model = ResNet::new(&vs.root(), &config);
        let maps = tch::no_grad(|| model.forward_features(&Tensor::zeros([2, 3, 64, 96], tch::kind::FLOAT_CPU), 3));
        let shapes: Vec<_> = maps.iter().map(Tensor::size).collect();
        assert_eq!(shapes, [[2, 8, 16, 24], [2, 12, 8, 12], [2, 16, 4, 6]]);
        assert_eq!(model.forward_head(&maps[2]).size(), [2, 16]);
    }
}
