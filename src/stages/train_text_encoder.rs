//! Images and captions -> a text encoder.

use arrow::{array::AsArray, datatypes::SchemaRef};
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{
    Device, Kind, Tensor,
    nn::{Init, VarStore},
    no_grad,
};

use super::{
    journal::{READ_ROWS, train, training_rows},
    tensors::{device, normalise, save_weights, tensor},
};
use crate::{
    engine::{
        Digest, Error, Result,
        stage::{Context, Misfit, Open, Operator, Output, Port, Ports, Rows, Schemas, Sink, Stage},
    },
    models::{
        clip::{ClipTextConfig, ClipTextModel},
        image_tower::ImageTower,
        tokenizer::ClipTokenizer,
    },
    tables::{
        captions::{CAPTION, caption_column, cut_caption, note_missing_captions},
        images::{self, PIXELS},
        training_log,
        weights::TOKENIZER,
    },
    training::{self, Judge, LoggedLoss, MicroBatch, Training, TrainingRows, TrainingRun, optim::train_only},
};

/// Trains a small CLIP text transformer, with a tokeniser of its own, to find the caption that belongs to an image.
///
/// The objective is that of CLIP: symmetric cross-entropy over the cosine similarities of a batch. Equal captions in
/// a batch count as one. Some images are held out. The table has the share of them for which the encoders find the
/// caption among all captions held out (`held_out_accuracy`), and the share for which guessing would
/// (`held_out_guessing`). For published CLIP weights no training is needed.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
#[schemars(extend("examples" = [{
    "config": { "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 48, "projection_dim": 64 },
    "training": { "steps": 160 }
}]))]
pub struct TrainTextEncoder {
    /// The network, as in a published `text_encoder/config.json`. `vocab_size` is the maximum number of tokens that
    /// the tokeniser learns.
    #[garde(skip)]
    pub config: ClipTextConfig,
    /// Widths of the image encoder that the captions are compared with.
    #[garde(length(min = 1), inner(range(min = 8)))]
    #[serde(default = "default_widths")]
    pub image_widths: Vec<i64>,
    /// The largest size at which the image encoder sees images. Captions describe what is visible in a small picture.
    #[garde(range(min = 16))]
    #[serde(default = "default_image_size")]
    pub image_size: u32,
    /// The share of the images that is used for measuring instead of training. The choice depends on the ids alone.
    #[garde(range(min = 0., max = 0.9))]
    #[serde(default = "default_held_out")]
    pub held_out: f64,
    /// The parameters of the training.
    #[garde(dive)]
    #[serde(default)]
    pub training: Training,
}

fn default_widths() -> Vec<i64> {
    vec![16, 32, 64, 96, 128]
}

fn default_image_size() -> u32 {
    64
}

fn default_held_out() -> f64 {
    0.1
}

impl Stage for TrainTextEncoder {
    fn revision(&self) -> u32 {
        4
    }

    fn ports(&self) -> Ports {
        Ports::Named(vec![Port::rows("images", [images::pixels_column()]), Port::rows("captions", [caption_column()])])
    }

    fn makes(&self) -> Output {
        Output::Table
    }

    fn memory_advice(&self) -> &'static str {
        training::MEMORY
    }

    fn needs_rows(&self) -> bool {
        true
    }

    fn output(&self, _: &Schemas) -> Result<SchemaRef, Misfit> {
        self.config.validate().map_err(|e| Misfit::parameter("config", e))?;
        if self.config.vocab_size < 300 {
            return Err(Misfit::parameter(
                "config",
                "vocab_size is at least 300: 256 bytes, two special tokens and some words",
            ));
        }
        if let Some(width) = self.image_widths.iter().find(|width| **width % 8 != 0) {
            return Err(Misfit::parameter("image_widths", format!("{width} does not divide by 8")));
        }
        Ok(training_log::schema(&["accuracy"], &["held_out_accuracy", "held_out_guessing"], &self.config))
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

/// The data of training and of measuring, by row.
struct Data {
    /// The images in the size of the image encoder, [N, 3, H, W].
    images: TrainingRows,
    captions: Vec<String>,
    ids: Vec<String>,
    /// The rows that are trained on.
    trained: Vec<i64>,
    /// The rows that are held out.
    held_out: Vec<i64>,
}

/// The two halves of CLIP, with the learned scale of their similarities.
struct Encoders {
    text: ClipTextModel,
    image: ImageTower,
    logit_scale: Tensor,
}

/// The similarities of a batch's images and captions.
struct Similarity {
    /// The similarity of each image with each caption, [B, B].
    logits: Tensor,
    /// 1 where a caption is the image's own or equal to it, [B, B].
    same: Tensor,
}

impl Encoders {
    fn new(vs: &VarStore, config: &ClipTextConfig, image_widths: &[i64]) -> Result<Self> {
        let text = ClipTextModel::with_projection(vs.root(), config)?;
        let vs = vs.root() / "image";
        let image = ImageTower::new(vs.clone(), image_widths, config.projection_dim);
        let logit_scale = vs.f_var("logit_scale", &[], Init::Const(f64::ln(1. / 0.07)))?;
        Ok(Self { text, image, logit_scale })
    }

    /// Compares images [B, 3, H, W] with their captions' tokens [B, 77].
    fn compare(&self, images: &Tensor, tokens: &Tensor) -> Result<Similarity> {
        let x = self.image.forward(images); // [B, D]
        let pooled = self.text.forward(tokens).pooled;
        let t = self.text.embed(&pooled).ok_or_else(|| Error::Stage("the text encoder has no projection".into()))?; // [B, D]
        let logits = x.matmul(&t.tr()) * self.logit_scale.exp().clamp_max(100.);
        let same = tokens.unsqueeze(0).eq_tensor(&tokens.unsqueeze(1)).all_dim(-1, false).to_kind(Kind::Float);
        Ok(Similarity { logits, same })
    }
}

impl Similarity {
    /// Returns the loss. A caption that occurs twice in the batch is right for both of its images.
    fn loss(&self) -> Tensor {
        let target = &self.same / self.same.sum_dim_intlist([1].as_slice(), true, Kind::Float);
        let entropy = |logits: &Tensor| {
            -(&target * logits.log_softmax(1, Kind::Float))
                .sum_dim_intlist([1].as_slice(), false, Kind::Float)
                .mean(Kind::Float)
        };
        (entropy(&self.logits) + entropy(&self.logits.tr())) / 2.
    }

    /// Returns the share of images whose most similar caption is theirs.
    fn accuracy(&self) -> Tensor {
        self.same.gather(1, &self.logits.argmax(1, true), false).mean(Kind::Float)
    }

    /// Returns that share for captions drawn at random.
    fn guessing(&self) -> Tensor {
        self.same.mean(Kind::Float)
    }
}

impl Trainer {
    fn read(&self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<Data> {
        let (mut images, mut captions, mut ids) = (training_rows()?, Vec::<String>::new(), Vec::new());
        while let Some(batch) = rows.next(READ_ROWS)? {
            images.push(&self.shrunk(&normalise(&tensor(&batch, "images", PIXELS)?)))?;
            let column = batch.column("captions", CAPTION)?.as_string::<i32>();
            note_missing_captions(out, &batch.ids, column, "the empty one");
            captions.extend(column.iter().map(|caption| caption.unwrap_or_default().to_owned()));
            ids.extend(batch.ids);
        }
        let (trained, held_out) = split(&ids, self.stage.held_out);
        Ok(Data { images, captions, ids, trained, held_out })
    }

    /// Returns images [N, 3, H, W] in the size of the image encoder.
    fn shrunk(&self, x: &Tensor) -> Tensor {
        let (height, width) = (x.size()[2], x.size()[3]);
        let most = i64::from(self.stage.image_size);
        if height.max(width) <= most {
            return x.shallow_clone();
        }
        let side = |side: i64| (side * most / height.max(width)).max(1);
        x.adaptive_avg_pool2d([side(height), side(width)])
    }
}

/// The maximum number of images held out, because all are compared with each other.
const MOST_HELD_OUT: usize = 1024;

/// Returns the rows to train on and those to hold out, which are a share of them. Holding out an image does not
/// depend on the order of the rows.
fn split(ids: &[String], share: f64) -> (Vec<i64>, Vec<i64>) {
    let mut order: Vec<usize> = (0..ids.len()).collect();
    order.sort_by_cached_key(|row| *Digest::of(ids[*row].as_bytes()).as_bytes());
    let count = ((ids.len() as f64 * share) as usize).min(MOST_HELD_OUT);
    let sorted = |rows: &[usize]| {
        let mut rows: Vec<i64> = rows.iter().map(|row| *row as i64).collect();
        rows.sort_unstable();
        rows
    };
    (sorted(&order[count..]), sorted(&order[..count]))
}

impl Operator for Trainer {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        let Data { images, captions, ids, trained, held_out } = self.read(rows, out)?;
        let TrainTextEncoder { mut config, image_widths, training, .. } = self.stage.clone();
        let learned: Vec<String> = trained.iter().map(|row| captions[*row as usize].clone()).collect();
        let tokenizer = ClipTokenizer::train(&learned, config.vocab_size as usize)?;
        (config.vocab_size, config.eos_token_id) = (tokenizer.vocab_size() as i64, i64::from(tokenizer.end()));
        let length = config.max_position_embeddings as usize;
        let encode = |caption: &String| tokenizer.encode_or_cut(caption, length);
        let (tokens, is_cut): (Vec<Vec<i64>>, Vec<bool>) =
            captions.iter().map(encode).collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
        let cut = cut_caption(length);
        ids.iter().zip(is_cut).filter(|(_, is_cut)| *is_cut).for_each(|(id, _)| out.note(&cut, id));
        let tokens = Tensor::from_slice(&tokens.concat()).view([captions.len() as i64, length as i64]);
        tch::manual_seed(training.seed as i64);
        let vs = VarStore::new(self.device);
        let encoders = Encoders::new(&vs, &config, &image_widths)?;
        let trainers = vec![training.trainer(train_only(&vs, |_| true))];
        let compare = |rows: &[i64]| {
            let images = images.at(rows)?.f_to_device(self.device)?;
            let tokens = tokens.f_index_select(0, &Tensor::from_slice(rows))?.f_to_device(self.device)?;
            encoders.compare(&images, &tokens)
        };
        let loss = |_, batch: &MicroBatch| {
            let rows: Vec<i64> = batch.rows.iter().map(|row| trained[*row as usize]).collect();
            let similarity = compare(&rows)?;
            let unseen =
                (batch.is_logged && !held_out.is_empty()).then(|| no_grad(|| compare(&held_out))).transpose()?;
            let parts = vec![
                Some(similarity.accuracy()),
                unseen.as_ref().map(Similarity::accuracy),
                unseen.as_ref().map(Similarity::guessing),
            ];
            Ok(LoggedLoss { total: similarity.loss().into(), parts })
        };
        let json = tokenizer.to_json()?;
        let weights = || {
            // The image encoder and the projections serve the training only and are not stored.
            let serves = |name: &str| name.starts_with("image.") || name.starts_with("text_projection.");
            let kept = vs.variables().into_iter().filter(|(name, _)| !serves(name));
            save_weights(kept, &config, &[(TOKENIZER, json.clone())])
        };
        let variables = vs.variables().into_iter().collect();
        let judge = Judge::Guessing(|rows| (rows as f64).ln());
        train(&training, TrainingRun { trainers, variables, rows: trained.len(), loss, weights, judge }, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_out_images_depend_on_ids_and_not_on_row_order() {
        let ids: Vec<String> = (0..40).map(|i| format!("gear/train/good/{i:03}")).collect();
        let (trained, held_out) = split(&ids, 0.1);
        assert_eq!((trained.len(), held_out.len()), (36, 4));
        let reversed: Vec<String> = ids.iter().rev().cloned().collect();
        let names = |ids: &[String], rows: &[i64]| {
            rows.iter().map(|row| ids[*row as usize].clone()).collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(names(&reversed, &split(&reversed, 0.1).1), names(&ids, &held_out));
        assert_eq!(split(&ids[..3], 0.1).1, [0; 0]);
        assert_eq!(split(&ids[..3], 0.), (vec![0, 1, 2], vec![]));
    }

    #[test]
    fn equal_caption_counts_as_the_own_one() {
        let logits = Tensor::from_slice2(&[[0_f32, 9., 1.], [1., 2., 9.], [0., 0., 9.]]);
        let same = Tensor::from_slice2(&[[1_f32, 1., 0.], [1., 1., 0.], [0., 0., 1.]]);
        let similarity = Similarity { logits, same };
        assert!((similarity.accuracy().double_value(&[]) - 2. / 3.).abs() < 1e-6);
        assert!((similarity.guessing().double_value(&[]) - 5. / 9.).abs() < 1e-6);
        // all captions are equal, so no loss is below that of guessing
        let equal = Similarity {
            logits: Tensor::zeros([4, 4], tch::kind::FLOAT_CPU),
            same: Tensor::ones([4, 4], tch::kind::FLOAT_CPU),
        };
        assert!((equal.loss().double_value(&[]) - 4_f64.ln()).abs() < 1e-6);
    }
}
