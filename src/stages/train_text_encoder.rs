//! Images and captions -> a text encoder.

use arrow::{
    array::AsArray,
    datatypes::{DataType, SchemaRef},
};
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{
    Device, Kind, Tensor,
    nn::{Init, VarStore},
};

use super::{
    column,
    tensors::{Column, device, normalise, save_weights},
    training::{self, LoggedLoss, MicroBatch, Subject, Training},
};
use crate::{
    diffusion::optim::train_only,
    engine::{
        Error, Result,
        stage::{Context, Open, Operator, Output, Port, Ports, Schemas, Stage},
        task::{Rows, Sink},
    },
    models::{
        clip::{ClipTextConfig, ClipTextModel},
        image_tower::ImageTower,
        tokenizer::ClipTokenizer,
    },
};

/// Trains a small CLIP text transformer, with a tokeniser of its own, to tell which caption belongs to which image.
///
/// The objective is CLIP's: symmetric cross-entropy over the cosine similarities of a batch. Equal captions in a batch count
/// as one. For published CLIP weights no training is needed.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
pub struct TrainTextEncoder {
    /// The network, as in a published `text_encoder/config.json`. `vocab_size` is the most tokens that the tokeniser learns.
    #[garde(skip)]
    pub config: ClipTextConfig,
    /// Widths of the image encoder that the captions are compared with.
    #[garde(length(min = 1), inner(range(min = 8)))]
    #[serde(default = "default_widths")]
    pub image_widths: Vec<i64>,
    /// How to train.
    #[garde(dive)]
    #[serde(default)]
    pub training: Training,
}

fn default_widths() -> Vec<i64> {
    vec![16, 32, 64, 96, 128]
}

/// The metadata key of the tokeniser in the weights file.
pub(super) const TOKENIZER: &str = "tokenizer";

impl Stage for TrainTextEncoder {
    const NAME: &'static str = "train_text_encoder";
    const REVISION: u32 = 3;
    const PORTS: Ports = Ports::Named(&[Port::rows("images", &["pixels"]), Port::rows("captions", &["caption"])]);
    const OUTPUT: &'static [Output] = &[Output::Table];
    const NEEDS_ROWS: bool = true;
    const MEMORY: &'static str = training::MEMORY;

    fn output(&self, inputs: &Schemas) -> Result<SchemaRef, String> {
        self.config.validate().map_err(|e| format!("`config`: {e}"))?;
        if self.config.vocab_size < 300 {
            return Err("`config`: vocab_size is at least 300: 256 bytes, two special tokens and some words".into());
        }
        if let Some(width) = self.image_widths.iter().find(|width| **width % 8 != 0) {
            return Err(format!("`image_widths`: {width} does not divide by 8"));
        }
        column::pixels(inputs)?;
        column::typed(inputs, "captions", "caption", &DataType::Utf8)?;
        Ok(training::schema(&["accuracy"], &self.config))
    }
}

impl Open for TrainTextEncoder {
    fn open(self, context: &Context) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Trainer { stage: self, device: device(context)? }))
    }
}

struct Trainer {
    stage: TrainTextEncoder,
    device: Device,
}

impl Operator for Trainer {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        let mut pixels = Column::new(rows.len());
        let (mut captions, mut image_ids) = (Vec::<String>::new(), Vec::<String>::new());
        while let Some(batch) = rows.next(256)? {
            pixels.push(&batch, "images", "pixels")?;
            let column = batch.column("captions", "caption")?.as_string::<i32>();
            column::note_missing_captions(out, &batch.ids, column, "the empty one");
            captions.extend(column.iter().map(|caption| caption.unwrap_or_default().to_owned()));
            image_ids.extend(batch.ids);
        }
        let pixels = pixels.done();
        let TrainTextEncoder { mut config, image_widths, training } = self.stage.clone();
        let tokenizer = ClipTokenizer::train(&captions, config.vocab_size as usize)?;
        (config.vocab_size, config.eos_token_id) = (tokenizer.vocab_size() as i64, i64::from(tokenizer.end()));
        let length = config.max_position_embeddings as usize;
        let encode = |caption: &String| tokenizer.encode_or_cut(caption, length);
        let (ids, is_cut): (Vec<Vec<i64>>, Vec<bool>) =
            captions.iter().map(encode).collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
        let cut = column::cut_caption(length);
        image_ids.iter().zip(is_cut).filter(|(_, is_cut)| *is_cut).for_each(|(id, _)| out.note(&cut, id));
        let ids = Tensor::from_slice(&ids.concat()).view([captions.len() as i64, length as i64]);
        tch::manual_seed(training.seed as i64);
        let vs = VarStore::new(self.device);
        let text = ClipTextModel::with_projection(vs.root(), &config)?;
        let image = vs.root() / "image";
        let tower = ImageTower::new(image.clone(), &image_widths, config.projection_dim);
        let logit_scale = image.f_var("logit_scale", &[], Init::Const(f64::ln(1. / 0.07)))?;
        let trainers = vec![training.trainer(train_only(&vs, |_| true))];
        let loss = |_, batch: &MicroBatch| {
            let x = tower.forward(&normalise(&batch.of(&pixels, self.device))); // [B, D]
            let tokens = batch.of(&ids, self.device); // [B, 77]
            let pooled = text.forward(&tokens).pooled;
            let t = text.embed(&pooled).ok_or_else(|| Error::Stage("the text encoder has no projection".into()))?; // [B, D]
            let logits = x.matmul(&t.tr()) * logit_scale.exp().clamp_max(100.); // [B, B]
            // A caption that stands twice in the batch is right for both of its images.
            let same = tokens.unsqueeze(0).eq_tensor(&tokens.unsqueeze(1)).all_dim(-1, false).to_kind(Kind::Float);
            let target = &same / same.sum_dim_intlist([1].as_slice(), true, Kind::Float);
            let entropy = |logits: &Tensor| {
                -(&target * logits.log_softmax(1, Kind::Float))
                    .sum_dim_intlist([1].as_slice(), false, Kind::Float)
                    .mean(Kind::Float)
            };
            let hit = same.gather(1, &logits.argmax(1, true), false).mean(Kind::Float);
            let total = (entropy(&logits) + entropy(&logits.tr())) / 2.;
            Ok(LoggedLoss { total: total.into(), parts: vec![hit] })
        };
        let json = tokenizer.to_json()?;
        let weights = || {
            // The image half and the way to it serve the training and are no part of what is kept.
            let serves = |name: &str| name.starts_with("image.") || name.starts_with("text_projection.");
            let kept = vs.variables().into_iter().filter(|(name, _)| !serves(name));
            save_weights(kept, &config, &[(TOKENIZER, json.clone())])
        };
        let variables = vs.variables().into_iter().collect();
        training.run(Subject { trainers, variables, rows: captions.len(), loss, weights }, out)
    }
}
