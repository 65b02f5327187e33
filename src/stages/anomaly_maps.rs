//! Images and their reconstructions -> anomaly maps.

use std::{path::PathBuf, sync::Arc};

use arrow::{
    array::{ArrayRef, Float32Array, RecordBatch, StringArray},
    datatypes::{DataType, Field, Float16Type, Schema, SchemaRef},
};
use garde::Validate;
use half::f16;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, no_grad};

use super::{
    column,
    tensors::{denormalise, device, floats, normalise, tensor, torch},
};
use crate::{
    engine::{
        Error, Result, Sources,
        source::is_url,
        stage::{Context, Open, Operator, Output, Port, Ports, Schemas, Stage},
        task::{Batch, Rows, Sink},
        tensor_field,
    },
    models::extractor::{self, Network},
    vision::blur,
};

/// Compares features of each image and of its reconstruction, patch by patch.
///
/// At each chosen layer one minus the cosine similarity of the features, brought to the image's size and summed over layers;
/// then a Gaussian blur. The image's score is the largest mean over a window of the map.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
pub struct AnomalyMaps {
    /// The network whose features are compared. Absent: DINOv2 where `weights` is a folder or a URL that ends in `/`, else
    /// EfficientNet-Lite0.
    #[garde(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extractor: Option<Extractor>,
    /// The network's weights: a file, or for DINOv2 a folder in Hugging Face layout; or a URL of either, a folder's ending in
    /// `/` (config.json and model.safetensors are read). Identified by content, not by place.
    #[garde(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
    /// What the reconstruction is compared with.
    #[garde(skip)]
    #[serde(default)]
    pub reference: Reference,
    /// Which layers: for EfficientNet-Lite0 strides (2, 4, 8, 16, 32), for DINOv2 blocks from 1. Absent: the extractor's own.
    #[garde(inner(length(min = 1)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<usize>>,
    /// Standard deviation of the Gaussian blur, in pixels of the map; 0 for none.
    #[garde(range(min = 0., max = 64.))]
    #[serde(default = "default_sigma")]
    pub sigma: f64,
    /// How a map becomes the image's score.
    #[garde(dive)]
    #[serde(default)]
    pub score: Score,
}

fn default_sigma() -> f64 {
    5.
}

/// A feature extractor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Extractor {
    /// EfficientNet-Lite0 trained on ImageNet; without `weights` the file that `make setup` fetched.
    EfficientnetLite0,
    /// A DINOv2 vision transformer; `weights` is needed.
    Dinov2,
}

/// What a reconstruction is compared with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reference {
    /// The image itself, as the authors do.
    #[default]
    Input,
    /// The image after the autoencoder alone: what a small autoencoder cannot show is then no anomaly.
    Autoencoded,
}

/// The largest mean over a square window that moves by one pixel, the averaging done `repeats` times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
pub struct Score {
    /// Side of the window in pixels; 1 is the plain maximum.
    #[garde(range(min = 1, max = 256))]
    pub kernel_size: usize,
    /// How often the map is averaged; the authors' rule is 8 times 8.
    #[garde(range(min = 1, max = 64))]
    pub repeats: usize,
}

impl Default for Score {
    fn default() -> Self {
        Self { kernel_size: 8, repeats: 8 }
    }
}

impl AnomalyMaps {
    /// The extractor with its weights at a path.
    fn extractor_at(&self, weights: PathBuf) -> extractor::Extractor {
        let folder = self.remote_folder().is_some() || weights.is_dir();
        let guess = if folder { Extractor::Dinov2 } else { Extractor::EfficientnetLite0 };
        match self.extractor.unwrap_or(guess) {
            Extractor::EfficientnetLite0 => extractor::Extractor::EfficientNetLite0 { weights },
            Extractor::Dinov2 => extractor::Extractor::Dinov2 { weights },
        }
    }

    /// The extractor with its weights as they are named.
    fn extractor(&self) -> extractor::Extractor {
        self.extractor_at(self.weights.as_ref().map_or_else(extractor::default_weights, PathBuf::from))
    }

    fn remote_folder(&self) -> Option<&str> {
        self.weights.as_deref().filter(|weights| is_url(weights) && weights.ends_with('/'))
    }

    /// The extractor with its weights fetched.
    fn local_extractor(&self, sources: &Sources) -> Result<extractor::Extractor> {
        Ok(match &self.weights {
            Some(_) if self.remote_folder().is_some() => self.extractor_at(sources.local_folder(&self.files())?),
            Some(weights) => self.extractor_at(sources.local(weights)?),
            None => self.extractor(),
        })
    }

    fn layers(&self) -> Vec<usize> {
        self.layers.clone().unwrap_or_else(|| self.extractor().default_layers().to_vec())
    }
}

impl Stage for AnomalyMaps {
    const NAME: &'static str = "anomaly_maps";
    const REVISION: u32 = 1;
    const PORTS: Ports =
        Ports::Named(&[Port::rows("images", &["pixels"]), Port::rows("reconstructions", &["pixels", "autoencoded"])]);
    const OUTPUT: &'static [Output] = &[Output::RowPerRow];
    const LOCATIONS: &'static [&'static str] = &["weights"];

    fn output(&self, inputs: &Schemas) -> Result<SchemaRef, String> {
        let [height, width, _] = column::pixels(inputs)?;
        let [_, h, w] = column::shape(inputs.field("reconstructions", "pixels")?, &DataType::Float16, "[3, H, W]")?;
        if (height, width) != (h, w) {
            return Err(format!("images are {height}x{width} and reconstructions {h}x{w}"));
        }
        if self.extractor == Some(Extractor::Dinov2) && self.weights.is_none() {
            return Err("`weights` is missing: a DINOv2 in Hugging Face layout (config.json, model.safetensors)".into());
        }
        self.extractor().check_layers(&self.layers()).map_err(|e| format!("`layers`: {e}"))?;
        let Score { kernel_size, repeats } = self.score;
        if (kernel_size - 1) * repeats >= height.min(width) {
            return Err(format!(
                "`score`: {repeats} windows of {kernel_size} leave nothing of a map of {height}x{width}"
            ));
        }
        Ok(Arc::new(Schema::new(vec![
            column::image_id(),
            tensor_field("map", DataType::Float16, &[height, width], false),
            Field::new("score", DataType::Float32, false),
        ])))
    }

    fn files(&self) -> Vec<String> {
        if let Some(folder) = self.remote_folder() {
            return ["config.json", "model.safetensors"].map(|name| format!("{folder}{name}")).into();
        }
        self.extractor().files().iter().map(|path| path.to_string_lossy().into_owned()).collect()
    }
}

impl Open for AnomalyMaps {
    fn open(self, context: &Context) -> Result<Box<dyn Operator>> {
        let device = device(context)?;
        let network = self
            .local_extractor(&context.sources)?
            .open(&self.layers(), device)
            .map_err(|e| Error::Input(e.to_string()))?;
        let field = |port, name| context.schemas.field(port, name).map_err(Error::Stage);
        Ok(Box::new(Comparer {
            pixels: column::pixels(&context.schemas).map_err(Error::Stage)?,
            reconstruction: column::shape(field("reconstructions", "pixels")?, &DataType::Float16, "[3, H, W]")
                .map_err(Error::Stage)?,
            stage: self,
            network,
            device,
            output: context.output.clone(),
        }))
    }
}

struct Comparer {
    stage: AnomalyMaps,
    network: Network,
    device: Device,
    pixels: [usize; 3],
    reconstruction: [usize; 3],
    output: SchemaRef,
}

impl Operator for Comparer {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        let [height, width, _] = self.pixels;
        while let Some(batch) = rows.next(16)? {
            let raw = floats(&no_grad(|| self.difference(&batch))?)?;
            let sigma = self.stage.sigma;
            let maps: Vec<f16> = raw
                .par_chunks(height * width)
                .map(|map| if sigma > 0. { blur::gaussian(map, width, height, sigma) } else { map.to_vec() })
                .flat_map_iter(|map| map.into_iter().map(f16::from_f32))
                .collect();
            let scores = scores(&maps, batch.len(), [height, width], self.stage.score)?;
            let ids: ArrayRef = Arc::new(StringArray::from_iter_values(&batch.ids));
            let columns = vec![
                ids,
                column::tensors::<Float16Type>(maps, height * width, None)?,
                Arc::new(Float32Array::from(scores)),
            ];
            out.write(&RecordBatch::try_new(self.output.clone(), columns)?)?;
        }
        Ok(())
    }
}

impl Comparer {
    /// The unblurred maps [B, H, W].
    fn difference(&self, batch: &Batch) -> Result<Tensor> {
        let decoded = |name| -> Result<Tensor> {
            let pixels = tensor(batch.column("reconstructions", name)?, &self.reconstruction)?;
            Ok(pixels.to_device(self.device).to_kind(Kind::Float))
        };
        let reference = match self.stage.reference {
            Reference::Input => {
                normalise(&tensor(batch.column("images", "pixels")?, &self.pixels)?.to_device(self.device))
            }
            Reference::Autoencoded => decoded("autoencoded")?,
        };
        let features = |x: &Tensor| self.network.forward(&denormalise(x));
        let (a, b) = (features(&reference), features(&decoded("pixels")?));
        let size = [self.pixels[0] as i64, self.pixels[1] as i64];
        let layers = a.iter().zip(&b).map(|(a, b)| {
            let distance: Tensor = 1. - Tensor::f_cosine_similarity(a, b, 1, 1e-8)?; // [B, h, w]
            distance.f_unsqueeze(1)?.f_upsample_bilinear2d(size, true, None, None)
        });
        let sum = layers.reduce(|a, b| a?.f_add(&b?)).transpose().map_err(torch)?;
        sum.map(|map| map.squeeze_dim(1)).ok_or_else(|| Error::Stage("no layer was compared".into()))
    }
}

/// The score of each map, computed from the map as stored.
fn scores(maps: &[f16], count: usize, [height, width]: [usize; 2], score: Score) -> Result<Vec<f32>> {
    let x = Tensor::f_from_slice(maps)
        .and_then(|x| x.f_to_kind(Kind::Double)?.f_view([count as i64, 1, height as i64, width as i64]))
        .map_err(torch)?;
    let side = score.kernel_size as i64;
    let x = (0..score.repeats)
        .try_fold(x, |x, _| x.f_avg_pool2d([side, side], [1, 1], [0, 0], false, true, None::<i64>))
        .map_err(torch)?;
    floats(&x.flatten(1, -1).amax([1].as_slice(), false))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(weights: &str) -> Vec<String> {
        let stage: AnomalyMaps = serde_json::from_value(serde_json::json!({ "weights": weights })).unwrap();
        stage.files()
    }

    #[test]
    fn the_files_that_are_loaded_are_identity() {
        assert_eq!(files("s3://b/w.pth"), ["s3://b/w.pth"]);
        assert_eq!(files("s3://b/dino/"), ["s3://b/dino/config.json", "s3://b/dino/model.safetensors"]);
        assert_eq!(files("w.pth"), ["w.pth"]);
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        ["config.json", "pytorch_model.bin"].iter().for_each(|name| std::fs::write(place(name), "{}").unwrap());
        assert_eq!(files(&place("")), [place("config.json"), place("pytorch_model.bin")]);
        std::fs::write(place("model.safetensors"), "").unwrap();
        assert_eq!(files(&place("")), [place("config.json"), place("model.safetensors")]);
    }
}
