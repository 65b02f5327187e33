//! Images and their reconstructions -> anomaly maps.

use arrow::datatypes::SchemaRef;
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, no_grad};

use super::{
    finish::Window,
    tensors::{device, normalise, tensor},
};
use crate::{
    engine::{
        Error, Result,
        stage::{Batch, Context, Misfit, Open, Operator, Output, Port, Ports, Rows, Schemas, Sink, Stage},
    },
    features::{
        Extractor, FeatureOptions, LoadedExtractor,
        distance::{Combine, MapOrder, anomaly_map},
        resize::{DINOV2_SIZE, Dinov2Resize},
    },
    published::Weights,
    tables::{anomaly_maps, images, reconstructions},
};

/// Compares features of each image and of its reconstruction, patch by patch.
///
/// The map of a layer is one minus the cosine similarity of the features, resized to the image. The maps are summed
/// over layers and blurred by a Gaussian. Outside of an image's `roi` the map has its lowest value. The image's score is
/// the largest mean over a window of the map. The defaults are those of the authors' code.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
#[schemars(extend("examples" = [{ "extractor": "dino-vits8" }]))]
pub struct AnomalyMaps {
    /// The network whose features are compared.
    #[garde(skip)]
    #[serde(default)]
    pub extractor: Extractor,
    /// The network's weights: a name that `vlmdiff models list` shows, `ORG/NAME` of the Hugging Face hub, a
    /// published file or a folder in Hugging Face layout; or a URL of either, a folder's ending in `/` (config.json
    /// and model.safetensors are read). Identified by content, not by place. Absent: those that are known under the
    /// extractor's name (`vlmdiff models fetch`).
    #[garde(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
    /// The image that the reconstruction is compared with.
    #[garde(skip)]
    #[serde(default)]
    pub reference: Reference,
    /// The layers, counted as `extractor` says. Absent: the extractor's own.
    #[garde(inner(length(min = 1)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<usize>>,
    /// For transformers: if true, the final layer norm is applied to each layer, as DINO's `get_intermediate_layers`
    /// does. Absent: true.
    #[garde(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub final_norm: Option<bool>,
    /// For `dinov2`: the way an image is resized for the network. Absent: `resample`.
    #[garde(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dinov2_resize: Option<Dinov2Resize>,
    /// The order of comparing features and resizing them to the image: before or after.
    #[garde(skip)]
    #[serde(default)]
    pub map_order: MapOrder,
    /// The way in which the maps of several layers are combined.
    #[garde(skip)]
    #[serde(default)]
    pub combine: Combine,
    /// Standard deviation of the Gaussian blur, in pixels of the map; 0 for none.
    #[garde(range(min = 0., max = 64.))]
    #[serde(default = "default_sigma")]
    pub sigma: f64,
    /// The rule by which a map gives the image's score.
    #[garde(dive)]
    #[serde(default)]
    pub score: Window,
}

fn default_sigma() -> f64 {
    5.
}

/// The image that a reconstruction is compared with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reference {
    /// The image itself, as the authors do.
    #[default]
    Input,
    /// The image after the autoencoder alone. Details that a small autoencoder cannot reproduce are then not
    /// anomalous.
    Autoencoded,
}

impl AnomalyMaps {
    fn weights(&self) -> &str {
        self.weights.as_deref().unwrap_or_else(|| self.extractor.default_weights())
    }

    fn options(&self) -> FeatureOptions {
        FeatureOptions { layers: self.layers.clone(), final_norm: self.final_norm, dinov2_resize: self.dinov2_resize }
    }
}

impl Stage for AnomalyMaps {
    fn revision(&self) -> u32 {
        2
    }

    fn ports(&self) -> Ports {
        Ports::Named(vec![
            Port::rows("images", [images::pixels_column(), images::roi_column()]),
            Port::rows("reconstructions", reconstructions::pixel_columns()),
        ])
    }

    fn makes(&self) -> Output {
        Output::RowPerRow
    }

    fn locations(&self) -> &'static [&'static str] {
        &["weights"]
    }

    fn output(&self, inputs: &Schemas) -> Result<SchemaRef, Misfit> {
        let [height, width] = images::judged_size(inputs)?;
        let [_, h, w] = reconstructions::pixels(inputs)?;
        if (height, width) != (h, w) {
            let message = format!("images are {height}x{width} and reconstructions {h}x{w}");
            return Err(Misfit::input("reconstructions", message));
        }
        self.extractor.check(&self.options()).map_err(|(option, why)| Misfit::parameter(option, why))?;
        if self.dinov2_resize == Some(Dinov2Resize::Reinterpret)
            && height * width < (DINOV2_SIZE * DINOV2_SIZE) as usize
        {
            return Err(Misfit::parameter(
                "dinov2_resize",
                format!(
                    "images of {height}x{width} do not hold the numbers of one of {DINOV2_SIZE}x{DINOV2_SIZE}; \
                 resample would work"
                ),
            ));
        }
        if self.reference == Reference::Autoencoded && inputs.field("reconstructions", "autoencoded")?.is_nullable() {
            return Err(Misfit::parameter(
                "reference",
                "the reconstructions may lack `autoencoded`; `autoencoded: true` in the stage \
                        `reconstruct` makes them",
            ));
        }
        self.score.check([height, width], "score")?;
        Ok(anomaly_maps::schema([height, width]))
    }

    fn files(&self) -> Result<Vec<String>, Misfit> {
        Weights(self.weights()).files_of("weights", self.extractor.layouts())
    }
}

impl Open for AnomalyMaps {
    fn open(self, context: &Context) -> Result<Box<dyn Operator>> {
        let device = device(context)?;
        let weights = Weights(self.weights()).local(&context.sources)?;
        let network = self.extractor.open(&weights, &self.options(), device)?;
        Ok(Box::new(Comparer { stage: self, network, device, batch_size: context.batch_size.unwrap_or(16) }))
    }
}

struct Comparer {
    stage: AnomalyMaps,
    network: LoadedExtractor,
    device: Device,
    batch_size: usize,
}

impl Operator for Comparer {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        let AnomalyMaps { sigma, score, .. } = self.stage;
        while let Some(batch) = rows.next(self.batch_size)? {
            let raw = no_grad(|| self.difference(&batch))?;
            out.write_rows(&batch, score.columns(&raw, sigma, &images::rois(&batch)?)?)?;
        }
        Ok(())
    }
}

impl Comparer {
    /// Returns the unblurred maps, f64 [B, H, W].
    fn difference(&self, batch: &Batch) -> Result<Tensor> {
        let read = |port, name| Ok::<_, Error>(tensor(batch, port, name)?.to_device(self.device));
        let decoded = |name| Ok::<_, Error>(read("reconstructions", name)?.to_kind(Kind::Float)); // [B, 3, H, W]
        let reference = match self.stage.reference {
            Reference::Input => normalise(&read("images", images::PIXELS)?),
            Reference::Autoencoded => decoded(reconstructions::AUTOENCODED)?,
        };
        let (_, _, height, width) = reference.size4()?;
        let (a, b) = (self.network.forward(&reference), self.network.forward(&decoded(reconstructions::PIXELS)?));
        Ok(anomaly_map(&a, &b, [height, width], self.stage.map_order, self.stage.combine))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::{DataType, Schema};
    use serde_json::{Value, json};

    use super::*;
    use crate::engine::store::tensor_field;

    /// Returns the error of parameters for images of 64x64.
    fn problem(params: Value) -> Option<String> {
        let pixels = |item, shape: &[usize]| tensor_field("pixels", item, shape, false);
        let autoencoded = tensor_field("autoencoded", DataType::Float16, &[3, 64, 64], true);
        let images = vec![images::image_id(), pixels(DataType::UInt8, &[64, 64, 3])];
        let reconstructions = vec![images::image_id(), pixels(DataType::Float16, &[3, 64, 64]), autoencoded];
        let all = [("images", images), ("reconstructions", reconstructions)]
            .map(|(port, fields)| (port.to_owned(), Arc::new(Schema::new(fields))));
        let stage: AnomalyMaps = serde_json::from_value(params).unwrap();
        stage.output(&Schemas { all: all.into(), by_row: vec![] }).err().map(|misfit| misfit.to_string())
    }

    #[test]
    fn error_names_the_parameter_that_does_not_fit() {
        let problem = |params| problem(params).unwrap();
        assert_eq!(
            problem(json!({ "layers": [4], "extractor": "imagenet-resnet50", "final_norm": true })),
            "`final_norm`: imagenet-resnet50 has no final norm; transformers have one"
        );
        assert!(problem(json!({ "layers": [13] })).starts_with("`layers`: dino-vits8 has no layer 13; it has [1, 2,"));
        let reinterpret = json!({ "extractor": "dinov2", "dinov2_resize": "reinterpret" });
        assert!(problem(reinterpret).starts_with("`dinov2_resize`: images of 64x64 do not hold"));
        assert!(
            problem(json!({ "reference": "autoencoded" })).contains("`autoencoded: true` in the stage `reconstruct`")
        );
        let windows = json!({ "score": { "kernel_size": 9, "repeats": 8 } });
        assert!(problem(windows).ends_with("8 windows of 9 leave nothing of a map of 64x64"));
    }

    #[test]
    fn defaults_are_those_of_the_authors() {
        assert_eq!(problem(json!({})), None);
        let stage: AnomalyMaps = serde_json::from_value(json!({})).unwrap();
        assert_eq!((stage.extractor, stage.sigma, stage.combine), (Extractor::DinoVits8, 5., Combine::Sum));
        assert_eq!((stage.score.kernel_size, stage.score.repeats), (8, 8));
    }
}
