//! Images -> the features of their patches.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, ArrowPrimitiveType, ListArray, PrimitiveArray, StringArray, UInt32Array},
    buffer::OffsetBuffer,
    datatypes::{DataType, Field, Float16Type, Float32Type, SchemaRef},
};
use garde::Validate;
use half::f16;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, TchError, Tensor, no_grad};

use super::{
    network_files::NetworkFiles,
    side_by_side::SideBySide,
    tensors::{device, halves, normalise, tensor},
};
use crate::{
    engine::{
        Result,
        source::Sources,
        stage::{Column, Context, Misfit, Open, Operator, Output, Port, Ports, Rows, Schemas, Sink, Stage},
    },
    features::{
        Extractor, FeatureOptions, LoadedExtractor,
        embedding::{PatchFeatures, Pooling},
        resize::Dinov2Resize,
    },
    methods::coreset,
    published::Weights,
    tables::{
        features,
        images::{self, CLASS},
    },
};

/// Extracts a vector for each patch of an image, which the methods of the stage `fit` compare.
///
/// Each image is computed on its own, so that its row is the same bit for bit whatever else is in the table: adding a
/// photograph to thousands computes one row. The files of the network are kept in the store with the rows.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
#[schemars(extend("examples" = [{ "extractor": "efficientnet-lite0", "keep": 64 }]))]
pub struct Extract {
    /// The network whose features are taken.
    #[garde(skip)]
    #[serde(default)]
    pub extractor: Extractor,
    /// The network's weights, named as for `anomaly_maps`. Absent: those that are known under the extractor's name.
    #[garde(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
    /// The layers, counted as `extractor` says; the first one has the grid of the patches. Absent: the extractor's own.
    #[garde(inner(length(min = 1)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<usize>>,
    /// For transformers: if true, the final layer norm is applied to each layer. Absent: true.
    #[garde(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub final_norm: Option<bool>,
    /// For `dinov2`: the way an image is resized for the network. Absent: `resample`.
    #[garde(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dinov2_resize: Option<Dinov2Resize>,
    /// The way in which a patch takes in its neighbours and in which layers are joined.
    #[garde(skip)]
    #[serde(default)]
    pub pooling: Pooling,
    /// The number of an image's patches that are kept. Absent: all.
    #[garde(inner(range(min = 1)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<u32>,
    /// The way in which the patches that are kept are chosen. Absent: `greedy`.
    #[garde(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choose: Option<Choice>,
}

/// The way in which some of an image's patches are chosen. The choice depends on the image alone.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    /// Each is the farthest from those before it, so that all others lie close to one: rare patches are kept.
    #[default]
    Greedy,
    /// At random, by the image's id: what many patches look like is kept many times.
    Random,
}

impl Choice {
    /// Returns the positions of up to `count` of the patches [P, C] of an image.
    fn of(self, patches: &Tensor, count: i64, id: &str) -> Result<Vec<i64>, TchError> {
        match self {
            Self::Greedy => coreset::of_image(patches, count),
            Self::Random => Ok(coreset::at_random(patches.size()[0], count, id)),
        }
    }
}

impl Extract {
    fn weights(&self) -> Weights<'_> {
        Weights(self.weights.as_deref().unwrap_or_else(|| self.extractor.default_weights()))
    }

    /// Returns true if patches that are made with these parameters and with others can be compared.
    pub(super) fn is_comparable(&self, other: &Self) -> bool {
        let made = |parameters: &Self| {
            let any = Self { keep: None, choose: None, weights: None, ..parameters.clone() };
            serde_json::to_value(any).unwrap_or_default()
        };
        made(self) == made(other)
    }

    /// Returns the choice of features.
    pub(super) fn options(&self) -> FeatureOptions {
        FeatureOptions { layers: self.layers.clone(), final_norm: self.final_norm, dinov2_resize: self.dinov2_resize }
    }

    /// Returns the number of patches that are kept of an image of this size and the length of their vectors; `None` if that
    /// depends on weights that are not on this machine.
    fn shape(&self, size: [usize; 2]) -> Option<[usize; 2]> {
        let weights = match self.extractor.has_several_sizes() {
            true => Some(self.weights().path().ok()?),
            false => None,
        };
        let [channels, height, width] = self.extractor.patches_shape(weights.as_deref(), &self.options(), size).ok()?;
        let patches = self.keep.map_or(height * width, |most| (height * width).min(most as usize));
        Some([patches, self.pooling.channels(channels)])
    }

    /// Extracts the patches of an image u8 [1, H, W, 3].
    fn of(&self, network: &LoadedExtractor, id: &str, image: &Tensor) -> Result<Extracted> {
        let all = patches_of(network, self.pooling, &normalise(image));
        let kept = self.choose.unwrap_or_default().of(&all.values, self.keep.map_or(i64::MAX, i64::from), id)?;
        let vectors = coreset::select(&all.values, &kept)?;
        Ok(Extracted {
            vectors: halves(&vectors)?,
            channels: vectors.size()[1] as u32,
            places: kept.into_iter().flat_map(|row| all.centre(row)).collect(),
        })
    }
}

/// The patches that are kept of an image.
struct Extracted {
    /// The vectors, one after another.
    vectors: Vec<f16>,
    /// The length of a vector.
    channels: u32,
    /// The centres, x and y of one after another.
    places: Vec<f32>,
}

/// Makes a column of lists of numbers.
fn lists<'a, T: ArrowPrimitiveType>(rows: impl Iterator<Item = &'a [T::Native]>) -> Result<ArrayRef> {
    let rows: Vec<&[T::Native]> = rows.collect();
    let item = Arc::new(Field::new_list_field(T::DATA_TYPE, false));
    let offsets = OffsetBuffer::from_lengths(rows.iter().map(|row| row.len()));
    let values = PrimitiveArray::<T>::new(rows.concat().into(), None);
    Ok(Arc::new(ListArray::try_new(item, offsets, Arc::new(values), None)?))
}

/// Returns the features of the patches of a normalised image [1, 3, H, W].
pub(super) fn patches_of(network: &LoadedExtractor, pooling: Pooling, image: &Tensor) -> PatchFeatures {
    no_grad(|| pooling.patches(&network.forward(image)))
}

impl Stage for Extract {
    fn revision(&self) -> u32 {
        3
    }

    fn ports(&self) -> Ports {
        let class = Column::new(CLASS, DataType::Utf8);
        Ports::Named(vec![Port::rows("images", [class, images::pixels_column()])])
    }

    fn makes(&self) -> Output {
        Output::RowPerRow
    }

    fn locations(&self) -> &'static [&'static str] {
        &["weights"]
    }

    fn output(&self, inputs: &Schemas) -> Result<SchemaRef, Misfit> {
        let [height, width, _] = images::pixels(inputs)?;
        self.extractor.check(&self.options()).map_err(|(option, why)| Misfit::parameter(option, why))?;
        // The place of the weights is no part of the rows' identity, and their content goes with the rows.
        Ok(features::schema(&Self { weights: None, ..self.clone() }, self.shape([height, width])))
    }

    fn files(&self) -> Result<Vec<String>, Misfit> {
        self.weights().files_of("weights", self.extractor.layouts())
    }
}

impl Open for Extract {
    fn open(self, context: &Context) -> Result<Box<dyn Operator>> {
        let device = device(context)?;
        let network = self.extractor.open(&self.weights().local(&context.sources)?, &self.options(), device)?;
        Ok(Box::new(Extracting {
            stage: self,
            network,
            sources: context.sources.clone(),
            images: SideBySide::new(device)?,
            device,
            batch_size: context.batch_size.unwrap_or(16),
        }))
    }
}

struct Extracting {
    stage: Extract,
    network: LoadedExtractor,
    sources: Sources,
    images: SideBySide,
    device: Device,
    /// The number of rows that are written at a time; each image is computed on its own.
    batch_size: usize,
}

impl Operator for Extracting {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        let files = NetworkFiles::keep(self.stage.weights(), &self.sources, out)?.to_text();
        while let Some(batch) = rows.next(self.batch_size)? {
            let pixels = tensor(&batch, "images", images::PIXELS)?.to_device(self.device);
            let stage = &self.stage;
            let extract =
                |network: &LoadedExtractor, row: usize, image: &Tensor| stage.of(network, &batch.ids[row], image);
            // SAFETY: nothing writes to a network while it extracts, and what its layers keep lies in `OnceLock`s.
            let found = unsafe { self.images.each(&self.network, &pixels, extract) }?;
            let columns: [ArrayRef; 5] = [
                batch.column("images", CLASS)?.clone(),
                lists::<Float16Type>(found.iter().map(|image| &*image.vectors))?,
                lists::<Float32Type>(found.iter().map(|image| &*image.places))?,
                Arc::new(UInt32Array::from_iter_values(found.iter().map(|image| image.channels))),
                Arc::new(StringArray::from_iter_values(std::iter::repeat_n(&files, batch.len()))),
            ];
            out.write_rows(&batch, columns.into())?;
        }
        Ok(())
    }
}
