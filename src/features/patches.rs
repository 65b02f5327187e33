//! Patches: the features of all layers at each place of one grid, as PatchCore embeds them (Roth et al. 2022).

use std::path::Path;

use tch::Tensor;

use super::{
    Extractor, ExtractorError, Family, FeatureOptions, LoadedExtractor,
    embedding::averaged,
    resize::{DINOV2_SIZE, Dinov2Resize},
};
use crate::models::{efficientnet::EfficientNetLite0, vit::VitConfig};

impl Extractor {
    /// Returns true if the shape of its features depends on the weights.
    pub fn has_several_sizes(self) -> bool {
        matches!(self.row().family, Family::Dinov2)
    }

    /// Returns the shape [C, h, w] of the maps of all layers on the grid of the first one, as [`LoadedExtractor::patches`]
    /// returns them, for images of `size`, in pixels. Names and shapes of the weights are read if the extractor
    /// [has several sizes](Self::has_several_sizes).
    ///
    /// # Errors
    /// [`ExtractorError`] if weights that have to be read cannot be.
    pub fn patches_shape(
        self,
        weights: Option<&Path>,
        options: &FeatureOptions,
        size: [usize; 2],
    ) -> Result<[usize; 3], ExtractorError> {
        let row = self.row();
        let dinov2 = weights.map(VitConfig::read).transpose()?.map(|(config, _)| config).unwrap_or_default();
        let vit = |width: i64, patch: i64, size: [usize; 2]| {
            let [h, w] = size.map(|side| (side / patch.max(1) as usize).max(1));
            [width as usize, h, w]
        };
        let map = |layer: usize| match row.family {
            Family::Dino(sizes) => vit(sizes.width, sizes.patch, size),
            Family::Dinov2 => {
                let keeps_size = options.dinov2_resize == Some(Dinov2Resize::Keep);
                let size = if keeps_size { size } else { [DINOV2_SIZE as usize; 2] };
                vit(dinov2.hidden_size, dinov2.patch_size, size)
            }
            Family::ResNet50 | Family::WideResNet50 => {
                let [h, w] = size.map(|side| side.div_ceil(2 << layer));
                [128 << layer, h, w]
            }
            Family::EfficientNetLite0 => {
                let level = EfficientNetLite0::STRIDES.iter().position(|stride| *stride as usize == layer);
                let [h, w] = size.map(|side| side.div_ceil(layer));
                [level.map_or(0, |level| EfficientNetLite0::CHANNELS[level] as usize), h, w]
            }
        };
        let layers = row.layers(options, dinov2.num_hidden_layers as usize);
        let maps: Vec<[usize; 3]> = layers.into_iter().map(map).collect();
        let [_, h, w] = maps[0];
        Ok([maps.iter().map(|[channels, ..]| channels).sum(), h, w])
    }
}

impl LoadedExtractor {
    /// Maps images as [`LoadedExtractor::forward`] does to one map [B, C, h, w] of [averages](averaged).
    pub fn patches(&self, images: &Tensor) -> Tensor {
        averaged(&self.forward(images))
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, nn::VarStore};

    use super::*;
    use crate::models::{
        checkpoint::to_safetensors,
        resnet::{ResNet, ResNetConfig},
        vit::{Interpolation, VisionTransformer},
    };

    /// Writes weights that a function declares, and returns the file.
    fn weights(declare: impl FnOnce(&VarStore)) -> tempfile::NamedTempFile {
        let vs = VarStore::new(Device::Cpu);
        declare(&vs);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, to_safetensors(vs.variables(), Default::default()).unwrap()).unwrap();
        file
    }

    #[test]
    fn the_shape_of_patches_is_known_before_they_are_computed() {
        let dinov2 = VitConfig {
            model_type: "dinov2".to_owned(),
            hidden_size: 64,
            num_hidden_layers: 3,
            image_size: 28,
            patch_size: 14,
            ..Default::default()
        };
        let cases = [
            (
                Extractor::EfficientnetLite0,
                weights(|vs| drop(EfficientNetLite0::new(&vs.root()))),
                Some(vec![8, 4, 16]),
            ),
            (
                Extractor::ImagenetResnet50,
                weights(|vs| drop(ResNet::new(&vs.root(), &ResNetConfig::resnet50(None)))),
                None,
            ),
            (
                Extractor::Dinov2,
                weights(|vs| drop(VisionTransformer::new(&vs.root(), &dinov2, Interpolation::Offset))),
                Some(vec![1, 3]),
            ),
        ];
        let images = Tensor::rand([2, 3, 44, 70], (Kind::Float, Device::Cpu));
        for (extractor, file, layers) in cases {
            for dinov2_resize in [None, extractor.has_several_sizes().then_some(Dinov2Resize::Keep)] {
                let options = FeatureOptions { layers: layers.clone(), dinov2_resize, ..Default::default() };
                let read = extractor.has_several_sizes().then_some(file.path());
                let [c, h, w] = extractor.patches_shape(read, &options, [44, 70]).unwrap().map(|side| side as i64);
                let patches = extractor.open(file.path(), &options, Device::Cpu).unwrap().patches(&images);
                assert_eq!(patches.size(), [2, c, h, w], "{}", extractor.name());
            }
        }
    }
}
