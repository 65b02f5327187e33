//! Convolutions with channels-last weights, computed as one matrix product if weights outnumber pixels by far.

use super::initialisation::uniform;
use tch::{
    Device, Tensor,
    nn::{self, ConvConfig, Init, Module},
};

/// The number of weights per pixel of the output above which a matrix product is used on the CPU. At the bottom of a
/// U-Net of real size it is two to five times as fast as a convolution (measured with oneDNN 3.10 on AVX2).
const WEIGHTS_PER_PIXEL: i64 = 1 << 14;

/// A square convolution whose weight [out, in, kernel, kernel] lies channels-last in memory, as the maps do.
#[derive(Debug)]
pub(crate) struct Conv2d {
    pub(crate) ws: Tensor,
    bs: Option<Tensor>,
    stride: i64,
    padding: i64,
}

impl Conv2d {
    pub(crate) fn new(vs: nn::Path, inputs: i64, outputs: i64, kernel: i64, config: ConvConfig) -> Self {
        let bs = config.bias.then(|| vs.var("bias", &[outputs], config.bs_init));
        // the variable is declared with the memory's order of dimensions, so that zeros need not be moved
        let mut ws = vs.var("weight", &[outputs, kernel, kernel, inputs], Init::Const(0.));
        tch::no_grad(|| {
            ws.set_data(&ws.permute([0, 3, 1, 2]));
            if !matches!(config.ws_init, Init::Const(0.)) {
                ws.copy_(&nn::init(config.ws_init, &ws.size(), ws.device()));
            }
        });
        Self { ws, bs, stride: config.stride, padding: config.padding }
    }

    /// Computes the convolution as one product: all pixels that an output pixel sees, side by side, times all weights.
    fn product(&self, x: &Tensor, [h, w]: [i64; 2]) -> Tensor {
        let (outputs, _, kernel, _) = self.ws.size4().unwrap();
        let [b, stride, p] = [x.size()[0], self.stride, self.padding];
        let x = x.permute([0, 2, 3, 1]).constant_pad_nd([0, 0, p, p, p, p]); // [B, H + 2p, W + 2p, C]
        let seen = |i: i64, j: i64| {
            let rows = x.slice(1, i, i + stride * (h - 1) + 1, stride);
            rows.slice(2, j, j + stride * (w - 1) + 1, stride) // [B, h, w, C]
        };
        let seen: Vec<Tensor> = (0..kernel * kernel).map(|at| seen(at / kernel, at % kernel)).collect();
        let seen = Tensor::cat(&seen, -1).view([b * h * w, -1]); // [B·h·w, k·k·C]
        let weights = self.ws.permute([0, 2, 3, 1]).reshape([outputs, -1]); // no copy: [out, k·k·C]
        seen.linear(&weights, self.bs.as_ref()).view([b, h, w, outputs]).permute([0, 3, 1, 2])
    }
}

impl Module for Conv2d {
    /// Maps [B, in, H, W] -> [B, out, h, w], channels-last.
    fn forward(&self, x: &Tensor) -> Tensor {
        let (b, _, h, w) = x.size4().unwrap();
        let (_, _, kernel, _) = self.ws.size4().unwrap();
        let size = [h, w].map(|side| (side + 2 * self.padding - kernel) / self.stride + 1);
        let pixels = b * size[0] * size[1];
        if x.device() == Device::Cpu && self.ws.numel() as i64 > WEIGHTS_PER_PIXEL * pixels {
            return self.product(x, size);
        }
        x.conv2d(&self.ws, self.bs.as_ref(), self.stride, self.padding, 1, 1)
    }
}

/// Declares a `kernel`×`kernel` convolution: `weight` [out, in, kernel, kernel], `bias` `[out]`, initialised as by
/// PyTorch.
pub(crate) fn conv2d(vs: nn::Path, inputs: i64, outputs: i64, kernel: i64, stride: i64, padding: i64) -> Conv2d {
    let init = uniform(inputs * kernel * kernel);
    let config = ConvConfig { stride, padding, ws_init: init, bs_init: init, ..Default::default() };
    Conv2d::new(vs, inputs, outputs, kernel, config)
}

/// Declares a 3×3 convolution that keeps height and width.
pub(crate) fn conv3x3(vs: nn::Path, inputs: i64, outputs: i64) -> Conv2d {
    conv2d(vs, inputs, outputs, 3, 1, 1)
}

/// Declares a convolution that starts at zero and keeps height and width (ControlNet, Zhang et al. 2023, section 3.1).
pub(crate) fn zero_conv(vs: nn::Path, inputs: i64, outputs: i64, kernel: i64) -> Conv2d {
    let zero = Init::Const(0.);
    let config = ConvConfig { padding: kernel / 2, ws_init: zero, bs_init: zero, ..Default::default() };
    Conv2d::new(vs, inputs, outputs, kernel, config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Kind, nn::VarStore};

    #[test]
    fn the_matrix_product_equals_the_convolution_and_its_gradients() {
        tch::manual_seed(3);
        for (kernel, stride, padding, size) in
            [(3, 1, 1, [5, 4]), (3, 2, 1, [3, 2]), (3, 2, 0, [2, 1]), (1, 1, 0, [5, 4])]
        {
            let vs = VarStore::new(Device::Cpu);
            let conv = conv2d(vs.root(), 6, 8, kernel, stride, padding);
            let x = Tensor::randn([2, 6, 5, 4], (Kind::Float, Device::Cpu));
            let run = |y: Tensor| {
                vs.variables().into_values().for_each(|mut variable| variable.zero_grad());
                y.square().sum(Kind::Float).backward();
                (y.detach(), conv.ws.grad().copy())
            };
            let (a, b) = (run(conv.forward(&x)), run(conv.product(&x, size)));
            assert_eq!(a.0.size(), b.0.size());
            for (a, b) in [(a.0, b.0), (a.1, b.1)] {
                // Sums of up to 54 products per pixel over 40 pixels, in two orders: 2⁻²⁴ · √(54 · 40) = 2.8e-6.
                assert!((&a - b).abs().max().double_value(&[]) < 1e-5 * a.abs().max().double_value(&[]));
            }
        }
    }

    #[test]
    fn weights_keep_their_shape_and_values() {
        let vs = VarStore::new(Device::Cpu);
        let conv = conv3x3(vs.root(), 4, 2);
        let variable = &vs.variables()["weight"];
        assert_eq!((variable.size(), variable.stride()), (vec![2, 4, 3, 3], vec![36, 1, 12, 4]));
        assert!(variable.requires_grad());
        assert_eq!(*variable, conv.ws);
    }
}
