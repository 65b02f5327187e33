//! A convolution and the frozen batch normalisation after it, computed as one convolution.

use super::nn::channels_last;
use std::sync::OnceLock;
use tch::{
    Tensor,
    nn::{self, Init},
};

/// A convolution without bias, followed by a batch normalisation with running statistics, for inference.
#[derive(Debug)]
pub(super) struct ConvNorm {
    weight: Tensor,
    norm: nn::BatchNorm,
    eps: f64,
    /// True if the kernel is turned by half a turn.
    is_turned: bool,
    /// Weight and bias of the one convolution, computed from the loaded weights at the first use.
    folded: OnceLock<(Tensor, Tensor)>,
}

impl ConvNorm {
    /// Declares the variables; `shape` is that of the weight, [out, in / groups, kernel, kernel].
    pub(super) fn new(convolution: nn::Path, norm: nn::Path, shape: [i64; 4], eps: f64) -> Self {
        let weight = convolution.var("weight", &shape, Init::Const(0.));
        let config = nn::BatchNormConfig { eps, ws_init: Init::Const(1.), ..Default::default() };
        let norm = nn::batch_norm2d(norm, shape[0], config);
        Self { weight, norm, eps, is_turned: false, folded: OnceLock::new() }
    }

    /// Turns the kernel by half a turn, for maps that are turned in the same way.
    pub(super) fn turned(self) -> Self {
        Self { is_turned: true, ..self }
    }

    /// Returns the height and width of the kernel.
    pub(super) fn kernel(&self) -> i64 {
        self.weight.size()[2]
    }

    /// Maps [B, C, H, W], channels-last in memory, to [B, C', H', W']; `padding` adds zeros on all sides.
    pub(super) fn forward(&self, x: &Tensor, stride: i64, padding: [i64; 2], groups: i64) -> Tensor {
        let (weight, bias) = self.folded.get_or_init(|| {
            let gamma = self.norm.ws.as_ref().unwrap() / (&self.norm.running_var + self.eps).sqrt();
            let weight = &self.weight * gamma.view([-1, 1, 1, 1]);
            let weight = if self.is_turned { weight.flip([2, 3]) } else { weight };
            (channels_last(&weight), self.norm.bs.as_ref().unwrap() - &self.norm.running_mean * gamma)
        });
        x.conv2d(weight, Some(bias), [stride, stride], padding, [1, 1], groups)
    }
}
