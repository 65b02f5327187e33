//! Feature extractors behind one face: images in, feature maps of the chosen layers out.

use std::path::PathBuf;

use tch::{Device, Tensor};

use super::{
    checkpoint::{Checkpoint, CheckpointError},
    dinov2::Dinov2,
    efficientnet::EfficientNetLite0,
};

/// A feature extractor and where its weights lie.
#[derive(Clone, Debug)]
pub enum Extractor {
    /// EfficientNet-Lite0, a PyTorch file. Layers are strides.
    EfficientNetLite0 {
        /// The file.
        weights: PathBuf,
    },
    /// DINOv2, a folder in Hugging Face layout or a file. Layers are blocks from 1.
    Dinov2 {
        /// The folder or file.
        weights: PathBuf,
    },
}

/// The file that `make setup` fetches: below the user's cache folder.
pub fn default_weights() -> PathBuf {
    let home = || std::env::home_dir().unwrap_or_default().join(".cache");
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()).map_or_else(home, PathBuf::from);
    cache.join("vlmdiff").join("efficientnet-lite0-57934424.pth")
}

impl Extractor {
    /// The layers to compare where nobody says which.
    pub fn default_layers(&self) -> &'static [usize] {
        match self {
            Self::EfficientNetLite0 { .. } => &[4, 8, 16],
            Self::Dinov2 { .. } => &[6, 9],
        }
    }

    /// Says which layers there are, if one that is asked for is not.
    pub fn check_layers(&self, layers: &[usize]) -> Result<(), String> {
        let strides = EfficientNetLite0::STRIDES.map(|stride| stride as usize);
        match self {
            Self::EfficientNetLite0 { .. } => match layers.iter().find(|layer| !strides.contains(layer)) {
                Some(layer) => Err(format!("EfficientNet-Lite0 has no stride {layer}; it has {strides:?}")),
                None => Ok(()),
            },
            Self::Dinov2 { .. } if layers.contains(&0) => Err("DINOv2's blocks count from 1".into()),
            Self::Dinov2 { .. } => Ok(()),
        }
    }

    /// The files whose content decides what the network computes.
    pub fn files(&self) -> Vec<PathBuf> {
        let (Self::EfficientNetLite0 { weights } | Self::Dinov2 { weights }) = self;
        let config = weights.is_dir().then(|| weights.join("config.json"));
        config.into_iter().chain(Checkpoint::files(weights)).collect()
    }

    /// Loads the network for chosen layers.
    pub fn open(&self, layers: &[usize], device: Device) -> Result<Network, CheckpointError> {
        match self {
            Self::EfficientNetLite0 { weights } => {
                let level = |stride: &usize| EfficientNetLite0::STRIDES.iter().position(|s| *s as usize == *stride);
                Ok(Network::EfficientNetLite0(
                    EfficientNetLite0::open(weights, device)?,
                    layers.iter().filter_map(level).collect(),
                ))
            }
            Self::Dinov2 { weights } => Ok(Network::Dinov2(Dinov2::open(weights, device)?, layers.to_vec())),
        }
    }
}

/// A loaded feature extractor.
#[derive(Debug)]
pub enum Network {
    /// EfficientNet-Lite0 and indices of its levels.
    EfficientNetLite0(EfficientNetLite0, Vec<usize>),
    /// DINOv2 and numbers of its blocks, from 1.
    Dinov2(Dinov2, Vec<usize>),
}

impl Network {
    /// Images of 1, [B, 3, H, W] -> per layer [B, C, h, w]. A transformer sees them at the nearest smaller multiple of its patch.
    pub fn forward(&self, images: &Tensor) -> Vec<Tensor> {
        match self {
            Self::EfficientNetLite0(network, levels) => {
                let maps = network.forward_features(&EfficientNetLite0::PREPROCESSING.normalize(images));
                levels.iter().map(|level| maps[*level].shallow_clone()).collect()
            }
            Self::Dinov2(network, blocks) => {
                let (b, _, height, width) = images.size4().unwrap();
                let patch = network.preprocessing().size_multiple;
                let (h, w) = ((height / patch).max(1), (width / patch).max(1));
                let fitted = images.internal_upsample_bilinear2d_aa([h * patch, w * patch], false, None, None);
                let tokens = network.hidden_states(&network.preprocessing().normalize(&fitted), blocks, false);
                tokens.iter().map(|t| t.transpose(1, 2).reshape([b, -1, h, w])).collect()
            }
        }
    }
}
