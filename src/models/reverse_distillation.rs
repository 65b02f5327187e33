//! The trained half of reverse distillation (Deng and Li 2022, Anomaly Detection via Reverse Distillation from One-Class
//! Embedding): a bottleneck that joins the maps of a frozen ResNet, and a decoder that makes these maps of it again, a
//! ResNet in reverse.
//!
//! Names are those of ADer (`mff_oce.*`, `net_s.*`). The authors' checkpoints have the same parameters under `bn` and
//! `decoder`, and beside them a convolution `conv4` that no layer uses.

use super::{
    conv::Conv2d,
    initialisation::{init, uniform},
    resnet::ResNetConfig,
};
use tch::{
    Tensor,
    nn::{
        self, BatchNorm, BatchNormConfig, ConvConfig, Init, Module, ModuleT,
        init::{FanInOut, NonLinearity, NormalOrUniform},
    },
};

/// The sizes of bottleneck and decoder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DistillationConfig {
    /// Channels of the three maps of the teacher, the first of which is the largest in height and width.
    pub channels: [i64; 3],
    /// The channels of a block of the decoder, in multiples of those of its inner convolutions.
    pub expansion: i64,
    /// Channels of the inner convolutions of the bottleneck's blocks.
    pub bottleneck_width: i64,
    /// Blocks of the bottleneck.
    pub bottleneck_blocks: i64,
    /// Blocks of the decoder's levels, the deepest first.
    pub decoder_blocks: [i64; 3],
}

impl DistillationConfig {
    /// Returns the sizes for a teacher. The bottleneck takes the place of the teacher's last level, and its inner
    /// convolutions have an eighth of its channels for each 32 of `width_per_group`.
    pub fn of(teacher: &ResNetConfig, width_per_group: i64) -> Self {
        let channels = [0, 1, 2].map(|level| teacher.planes[level] * teacher.expansion);
        let [first, second, third, bottleneck_blocks] = teacher.layers;
        Self {
            channels,
            expansion: teacher.expansion,
            bottleneck_width: channels[2] * width_per_group / 128,
            bottleneck_blocks,
            decoder_blocks: [first, second, third],
        }
    }
}

/// Bottleneck and decoder.
#[derive(Debug)]
pub struct DistillationStudent {
    /// The convolutions that bring the first map to the height and width of the third.
    first: [Layer; 2],
    /// The convolution that does so with the second map.
    second: Layer,
    bottleneck: Vec<Block>,
    /// The levels of the decoder, the deepest first.
    levels: Vec<Vec<Block>>,
}

impl DistillationStudent {
    /// Declares the variables, with the initial values of the authors' program.
    pub fn new(vs: &nn::Path, config: &DistillationConfig) -> Self {
        let DistillationConfig { channels: [c1, c2, c3], expansion, bottleneck_width, .. } = *config;
        let (mff_oce, net_s) = (vs / "mff_oce", vs / "net_s");
        let halved =
            |n: usize, channels| Layer::new(&mff_oce / format!("conv{n}"), &mff_oce / format!("bn{n}"), channels, 3, 2);
        let embedding = 2 * c3;
        let bottleneck = level(
            &(&mff_oce / "bn_layer"),
            config.bottleneck_blocks,
            [3 * c3, bottleneck_width, embedding],
            Scale::Halve,
        );
        let mut inputs = embedding;
        let outputs = [c3, c2, c1];
        let levels = outputs.into_iter().zip(config.decoder_blocks).enumerate().map(|(index, (outputs, blocks))| {
            let vs = &net_s / format!("layer{}", index + 1);
            let made = level(&vs, blocks, [inputs, outputs / expansion, outputs], Scale::Double);
            inputs = outputs;
            made
        });
        let levels = levels.collect();
        Self { first: [halved(1, [c1, c2]), halved(2, [c2, c3])], second: halved(3, [c2, c3]), bottleneck, levels }
    }

    /// Joins the teacher's maps [B, C1, h, w], [B, C2, h/2, w/2] and [B, C3, h/4, w/4] to one embedding,
    /// [B, 2 · C3, h/8, w/8]. With `train`, the normalisations use and record the statistics of the batch, else the
    /// recorded ones.
    pub fn embed(&self, maps: &[Tensor; 3], train: bool) -> Tensor {
        let [narrow, wide] = &self.first;
        let first = wide.forward(&narrow.forward(&maps[0], train).relu_(), train).relu_();
        let second = self.second.forward(&maps[1], train).relu_();
        let joined = Tensor::cat(&[&first, &second, &maps[2]], 1); // [B, 3 · C3, h/4, w/4]
        through(&self.bottleneck, joined, train)
    }

    /// Makes the teacher's maps of their embedding, in the order of [`embed`](Self::embed).
    pub fn decode(&self, embedding: &Tensor, train: bool) -> [Tensor; 3] {
        let mut x = embedding.shallow_clone();
        let mut maps = self.levels.iter().map(|level| {
            x = through(level, x.shallow_clone(), train);
            x.shallow_clone()
        });
        let [third, second, first] = [(); 3].map(|()| maps.next().expect("the decoder has three levels"));
        [first, second, third]
    }
}

/// Declares the blocks of a level, of which the first one changes height and width; `channels` are those of its input,
/// of the inner convolutions, and of the output.
fn level(vs: &nn::Path, blocks: i64, [inputs, width, outputs]: [i64; 3], scale: Scale) -> Vec<Block> {
    let block = |block: i64| match block {
        0 => Block::new(&(vs / block), [inputs, width, outputs], scale),
        _ => Block::new(&(vs / block), [outputs, width, outputs], Scale::Keep),
    };
    (0..blocks).map(block).collect()
}

fn through(blocks: &[Block], x: Tensor, train: bool) -> Tensor {
    blocks.iter().fold(x, |x, block| block.forward(&x, train))
}

/// The change of height and width by a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scale {
    Keep,
    Halve,
    Double,
}

/// Convolutions of 1×1, 3×3 and 1×1, whose result is added to the input. A block that doubles height and width has a
/// transposed convolution of 2×2 in place of the one of 3×3.
#[derive(Debug)]
struct Block {
    narrow: Layer,
    middle: Layer,
    widen: Layer,
    /// Brings the input to the size of the result.
    resize: Option<Layer>,
}

impl Block {
    fn new(vs: &nn::Path, [inputs, width, outputs]: [i64; 3], scale: Scale) -> Self {
        let layer = |n: usize, channels, kernel, stride| {
            Layer::new(vs / format!("conv{n}"), vs / format!("bn{n}"), channels, kernel, stride)
        };
        let (downsample, upsample) = (vs / "downsample", vs / "upsample");
        let (middle, resize) = match scale {
            Scale::Keep => (layer(2, [width, width], 3, 1), None),
            Scale::Halve => (
                layer(2, [width, width], 3, 2),
                Some(Layer::new(&downsample / 0, &downsample / 1, [inputs, outputs], 1, 2)),
            ),
            Scale::Double => (
                Layer::doubling(vs / "conv2", vs / "bn2", [width, width]),
                Some(Layer::doubling(&upsample / 0, &upsample / 1, [inputs, outputs])),
            ),
        };
        Self { narrow: layer(1, [inputs, width], 1, 1), middle, widen: layer(3, [width, outputs], 1, 1), resize }
    }

    fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        let y = self.narrow.forward(x, train).relu_();
        let y = self.middle.forward(&y, train).relu_();
        let mut y = self.widen.forward(&y, train);
        match &self.resize {
            Some(resize) => y.g_add_(&resize.forward(x, train)),
            None => y.g_add_(x),
        }
        .relu_()
    }
}

/// A convolution without bias and the batch normalisation after it, both of which are trained.
#[derive(Debug)]
struct Layer {
    convolution: Convolution,
    norm: BatchNorm,
}

#[derive(Debug)]
enum Convolution {
    Plain(Conv2d),
    /// Doubles height and width; the weight is [in, out, 2, 2].
    Transposed(Tensor),
}

impl Layer {
    fn new(convolution: nn::Path, norm: nn::Path, channels: [i64; 2], kernel: i64, stride: i64) -> Self {
        let [inputs, outputs] = channels;
        let normal =
            Init::Kaiming { dist: NormalOrUniform::Normal, fan: FanInOut::FanOut, non_linearity: NonLinearity::ReLU };
        let config =
            ConvConfig { stride, padding: kernel / 2, bias: false, ws_init: init(normal), ..Default::default() };
        let convolution = Convolution::Plain(Conv2d::new(convolution, inputs, outputs, kernel, config));
        Self { convolution, norm: batch_norm(norm, outputs) }
    }

    fn doubling(convolution: nn::Path, norm: nn::Path, [inputs, outputs]: [i64; 2]) -> Self {
        // PyTorch counts the fan of a transposed convolution by its outputs.
        let weight = convolution.var("weight", &[inputs, outputs, 2, 2], uniform(4 * outputs));
        Self { convolution: Convolution::Transposed(weight), norm: batch_norm(norm, outputs) }
    }

    fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        let y = match &self.convolution {
            Convolution::Plain(convolution) => convolution.forward(x),
            Convolution::Transposed(weight) => {
                x.conv_transpose2d(weight, None::<Tensor>, [2, 2], [0, 0], [0, 0], 1, [1, 1])
            }
        };
        self.norm.forward_t(&y, train)
    }
}

fn batch_norm(vs: nn::Path, channels: i64) -> BatchNorm {
    nn::batch_norm2d(vs, channels, BatchNormConfig { ws_init: Init::Const(1.), ..Default::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind, nn::VarStore};

    #[test]
    fn decoder_makes_maps_of_the_sizes_of_the_teachers() {
        let teacher =
            ResNetConfig { stem: 4, planes: [2, 4, 8, 16], expansion: 2, layers: [1, 2, 1, 1], num_classes: None };
        let config = DistillationConfig::of(&teacher, 128);
        assert_eq!((config.channels, config.bottleneck_width), ([4, 8, 16], 16));
        let vs = VarStore::new(Device::Cpu);
        let student = DistillationStudent::new(&vs.root(), &config);
        let map = |channels, h: i64, w: i64| Tensor::rand([2, channels, h, w], (Kind::Float, Device::Cpu));
        let maps = [map(4, 16, 24), map(8, 8, 12), map(16, 4, 6)];
        let embedding = student.embed(&maps, true);
        assert_eq!(embedding.size(), [2, 32, 2, 3]);
        for (map, made) in maps.iter().zip(student.decode(&embedding, true)) {
            assert_eq!(map.size(), made.size());
        }
    }

    /// The sizes of Wide ResNet-50-2: 55.7 million parameters with ADer's width, and the authors' bottleneck is twice
    /// as wide.
    #[test]
    fn sizes_of_a_wide_resnet_are_the_published_ones() {
        let teacher = ResNetConfig::wide_resnet50(None);
        let sizes = DistillationConfig::of(&teacher, 64);
        assert_eq!((sizes.channels, sizes.expansion), ([256, 512, 1024], 2));
        assert_eq!((sizes.bottleneck_width, sizes.bottleneck_blocks), (512, 3));
        assert_eq!(sizes.decoder_blocks, [3, 4, 6]);
        assert_eq!(DistillationConfig::of(&teacher, 128).bottleneck_width, 1024);
        let vs = VarStore::new(Device::Cpu);
        super::super::initialisation::skip_init(|| DistillationStudent::new(&vs.root(), &sizes));
        let parameters: i64 = vs.trainable_variables().iter().map(|variable| variable.numel() as i64).sum();
        assert_eq!(parameters / 100_000, 557);
    }
}
