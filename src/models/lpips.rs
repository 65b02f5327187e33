//! LPIPS with VGG16 (Zhang et al. 2018): the perceptual distance of two images, a term of the loss of latent
//! diffusion's autoencoder.

use super::{
    checkpoint::{Checkpoint, CheckpointError},
    conv::{Conv2d, conv3x3},
    initialisation::skip_init,
};
use tch::{
    Device, Tensor,
    nn::{self, Init, Module, VarStore},
};

/// The convolutions of torchvision's `vgg16().features` by their index there, block by block. Each is followed by a
/// ReLU; the output of the last one of a block is compared. A pooling by 2 leads from block to block.
const BLOCKS: [&[i64]; 5] = [&[0, 2], &[5, 7], &[10, 12, 14], &[17, 19, 21], &[24, 26, 28]];
/// The mean of each channel by which images are normalised, on the scale -1 to 1; `SCALE` is the deviation.
const SHIFT: [f32; 3] = [-0.030, -0.088, -0.188];
const SCALE: [f32; 3] = [0.458, 0.448, 0.450];
/// The number that is added to the length of a feature vector before dividing by it.
const EPS: f64 = 1e-10;

/// VGG16 up to its last convolution, and a weight for each channel that is compared.
#[derive(Debug)]
pub struct Lpips {
    blocks: Vec<Vec<Conv2d>>,
    /// The weights of the channels of each block, [1, C, 1, 1].
    lins: Vec<Tensor>,
}

impl Lpips {
    /// The smallest side of an image in pixels: it is halved between the blocks.
    pub const SMALLEST: usize = 1 << (BLOCKS.len() - 1);

    /// Declares the parameters, those of VGG16 under `vgg` and the weights of channels under `lin`, by their published
    /// names. `widths` are the channels of each block.
    pub fn new(vgg: &nn::Path, lin: &nn::Path, widths: [i64; 5]) -> Self {
        let mut inputs = 3;
        let mut block = |(indices, width): (&&[i64], i64)| {
            let conv = |index: &i64| conv3x3(vgg / "features" / *index, std::mem::replace(&mut inputs, width), width);
            indices.iter().map(conv).collect()
        };
        let weight = |(i, width): (usize, &i64)| {
            (lin / format!("lin{i}") / "model" / 1).var("weight", &[1, *width, 1, 1], Init::Const(1.))
        };
        Self {
            blocks: BLOCKS.iter().zip(widths).map(&mut block).collect(),
            lins: widths.iter().enumerate().map(weight).collect(),
        }
    }

    /// Makes the network from published weights, frozen: VGG16 as in torchvision (`features.0.weight`; its classifier
    /// is ignored) and the weights of channels as in the lpips package (`lin0.model.1.weight`). Either may stand in a
    /// file with more tensors, also below `loss.perceptual_loss.` of a latent-diffusion autoencoder
    /// (`net.slice1.0.weight`).
    ///
    /// # Errors
    /// [`CheckpointError::Mismatch`] if a file lacks its half, or the halves are those of different networks.
    pub fn load(vgg: Checkpoint, lin: Checkpoint, device: Device) -> Result<Self, CheckpointError> {
        let half =
            |file: Checkpoint, of: &str| file.state_dict().rename(|name| canonical(name).filter(|n| n.starts_with(of)));
        let (vgg, lin) = (half(vgg, "features.")?, half(lin, "lin")?);
        let [mut vgg_vs, mut lin_vs] = [(); 2].map(|()| VarStore::new(device));
        let last = |block: &[i64]| format!("features.{}.weight", block[block.len() - 1]);
        let width = |block: &[i64]| vgg.shape(&last(block)).and_then(|shape| shape.first().copied()).unwrap_or(1);
        let network = skip_init(|| Self::new(&vgg_vs.root(), &lin_vs.root(), BLOCKS.map(width)));
        vgg.load_into(&vgg_vs)?;
        lin.load_into(&lin_vs)?;
        vgg_vs.freeze();
        lin_vs.freeze();
        Ok(network)
    }

    /// Returns the maps that are compared for images [B, 3, H, W] with values -1 to 1: the last of each block, [B, C,
    /// h, w].
    pub fn features(&self, images: &Tensor) -> Vec<Tensor> {
        let channels = |values: &[f32; 3]| Tensor::from_slice(values).to_device(images.device()).view([1, 3, 1, 1]);
        let mut x = (images - channels(&SHIFT)) / channels(&SCALE);
        let block = |(i, block): (usize, &Vec<Conv2d>)| {
            if i > 0 {
                x = x.max_pool2d([2, 2], [2, 2], [0, 0], [1, 1], false);
            }
            x = block.iter().fold(x.shallow_clone(), |x, conv| conv.forward(&x).relu());
            x.shallow_clone()
        };
        self.blocks.iter().enumerate().map(block).collect()
    }

    /// Returns the part of the distance that each block contributes, for images with these
    /// [`features`](Self::features): five tensors `[B]`.
    pub fn distances(&self, a: &[Tensor], b: &[Tensor]) -> Vec<Tensor> {
        let unit = |x: &Tensor| x / (x.square().sum_dim_intlist([1].as_slice(), true, x.kind()).sqrt() + EPS);
        let distance = |((a, b), lin): ((&Tensor, &Tensor), &Tensor)| {
            let weighted = (unit(a) - unit(b)).square() * lin;
            let kind = weighted.kind();
            weighted.sum_dim_intlist([1].as_slice(), false, kind).mean_dim([1, 2].as_slice(), false, kind)
        };
        a.iter().zip(b).zip(&self.lins).map(distance).collect()
    }

    /// Returns the distance of each image of `x` from that of `y`, [B, 3, H, W] with values -1 to 1 -> `[B]`, not
    /// negative. Gradients flow to `y` alone.
    pub fn forward(&self, x: &Tensor, y: &Tensor) -> Tensor {
        let x = tch::no_grad(|| self.features(x));
        let distances = self.distances(&x, &self.features(y));
        distances.into_iter().reduce(|sum, distance| sum + distance).expect("a network has blocks")
    }
}

/// Returns the name in torchvision or in the lpips package for a published name; None for names of neither.
fn canonical(name: &str) -> Option<String> {
    let name = name.strip_prefix("loss.").unwrap_or(name);
    let name = name.strip_prefix("perceptual_loss.").unwrap_or(name);
    // net.slice1.0.weight
    if let Some((_, layer)) = name.strip_prefix("net.slice").and_then(|slice| slice.split_once('.')) {
        return Some(format!("features.{layer}"));
    }
    // the lpips package lists them a second time, as `lins.0`
    let is_lin = name.starts_with("lin") && !name.starts_with("lins.");
    (name.starts_with("features.") || is_lin).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::checkpoint::to_safetensors;
    use super::*;
    use std::collections::HashMap;

    fn file(vs: &VarStore, prefix: &str) -> Checkpoint {
        let tensors = vs.variables().into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor));
        Checkpoint::from_safetensors(to_safetensors(tensors, HashMap::new()).unwrap()).unwrap()
    }

    #[test]
    fn two_files_or_one_in_any_layout_make_the_same_network() {
        let [vgg, lin] = [(); 2].map(|()| VarStore::new(Device::Cpu));
        let network = Lpips::new(&vgg.root(), &lin.root(), [4, 4, 8, 8, 8]);
        let [x, y] = [1, 2].map(|seed| {
            tch::manual_seed(seed);
            Tensor::rand([2, 3, 32, 32], tch::kind::FLOAT_CPU) * 2. - 1.
        });
        let want = tch::no_grad(|| network.forward(&x, &y));
        assert!(want.min().double_value(&[]) > 0. && network.forward(&x, &x).abs().max().double_value(&[]) == 0.);
        let slices = file(&vgg, "loss.perceptual_loss.").rename(|name| {
            let index: i64 = name.split('.').nth(3)?.parse().ok()?;
            let slice = BLOCKS.iter().position(|block| block.contains(&index))? + 1;
            Some(name.replace("features.", &format!("net.slice{slice}.")))
        });
        let lin = |prefix| file(&lin, prefix);
        for (vgg, lin) in [(file(&vgg, ""), lin("")), (slices.unwrap(), lin("loss.perceptual_loss."))] {
            assert_eq!(Lpips::load(vgg, lin, Device::Cpu).unwrap().forward(&x, &y), want);
        }
        let message = Lpips::load(file(&vgg, ""), file(&vgg, ""), Device::Cpu).unwrap_err().to_string();
        assert!(message.contains("5 missing: lin0.model.1.weight"), "{message}");
        let message = Lpips::load(lin(""), lin(""), Device::Cpu).unwrap_err().to_string();
        assert!(message.contains("26 missing: features.0.bias"), "{message}");
    }
}
