//! Captions -> the text encoder's hidden states.

use std::collections::HashMap;

use arrow::{
    array::AsArray,
    datatypes::{Float32Type, SchemaRef},
};
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor, no_grad};

use super::tensors::{device, floats, network};
use crate::{
    engine::{
        Error, Result,
        stage::{Context, Misfit, Open, Operator, Output, Port, Ports, Rows, Schemas, Sink, Stage},
    },
    models::{
        clip::{ClipTextConfig, ClipTextModel},
        tokenizer::ClipTokenizer,
    },
    tables::{
        captions::{CAPTION, caption_column, cut_caption, note_missing_captions},
        embeddings,
        tensor::tensor_column,
        weights::{TOKENIZER, config_of, weights_column},
    },
};

/// The number of encoded captions that are kept for later rows, with 0.24 MB each for CLIP ViT-L.
const KEPT: usize = 1024;

/// Encodes captions by CLIP's text transformer: the hidden states of all tokens after the final normalisation, which
/// is the context of Stable Diffusion. Equal captions are encoded once.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
#[schemars(extend("examples" = [{}]))]
pub struct EncodeText {}

impl Stage for EncodeText {
    fn revision(&self) -> u32 {
        1
    }

    fn ports(&self) -> Ports {
        Ports::Named(vec![Port::rows("captions", [caption_column()]), Port::table("text_encoder", [weights_column()])])
    }

    fn makes(&self) -> Output {
        Output::RowPerRow
    }

    fn output(&self, inputs: &Schemas) -> Result<SchemaRef, Misfit> {
        let config: ClipTextConfig = config_of(inputs, "text_encoder")?;
        let shape = [config.max_position_embeddings as usize, config.hidden_size as usize];
        Ok(embeddings::schema(shape))
    }
}

impl Open for EncodeText {
    fn open(self, context: &Context) -> Result<Box<dyn Operator>> {
        let device = device(context)?;
        let (network, config, weights) =
            network::<ClipTextConfig, _>(context, "text_encoder", device, ClipTextModel::new)?;
        let json = weights
            .metadata()
            .get(TOKENIZER)
            .ok_or_else(|| Error::Stage("the text encoder's weights have no tokeniser".into()))?;
        Ok(Box::new(Encoder {
            tokenizer: ClipTokenizer::from_json(json)?,
            network,
            device,
            length: config.max_position_embeddings as usize,
            batch_size: context.batch_size.unwrap_or(64),
            encoded: HashMap::new(),
        }))
    }
}

struct Encoder {
    tokenizer: ClipTokenizer,
    network: ClipTextModel,
    device: Device,
    length: usize,
    batch_size: usize,
    /// The captions encoded last. In most test sets nearly all captions are empty, so few are encoded.
    encoded: HashMap<String, Encoded>,
}

/// An encoded caption.
struct Encoded {
    /// The hidden states of its tokens.
    states: Vec<f32>,
    /// True if it has more tokens than the encoder takes.
    is_cut: bool,
}

impl Operator for Encoder {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        let cut = cut_caption(self.length);
        while let Some(batch) = rows.next(self.batch_size)? {
            let column = batch.column("captions", CAPTION)?.as_string::<i32>();
            note_missing_captions(out, &batch.ids, column, "the empty one");
            let captions: Vec<&str> = column.iter().map(Option::unwrap_or_default).collect();
            self.encode(&captions)?;
            let encoded: Vec<&Encoded> = captions.iter().map(|caption| &self.encoded[*caption]).collect();
            let is_cut = batch.ids.iter().zip(&encoded).filter(|(_, encoded)| encoded.is_cut);
            is_cut.for_each(|(id, _)| out.note(&cut, id));
            let values: Vec<f32> = encoded.iter().flat_map(|encoded| encoded.states.iter().copied()).collect();
            let size = values.len() / batch.len();
            out.write_rows(&batch, vec![tensor_column::<Float32Type>(values, size, None)?])?;
        }
        Ok(())
    }
}

impl Encoder {
    /// Encodes the captions that are not yet in the cache.
    fn encode(&mut self, captions: &[&str]) -> Result<()> {
        if self.encoded.len() > KEPT {
            self.encoded.retain(|caption, _| captions.contains(&caption.as_str()));
        }
        let mut new: Vec<&str> =
            captions.iter().copied().filter(|caption| !self.encoded.contains_key(*caption)).collect();
        new.sort_unstable();
        new.dedup();
        if new.is_empty() {
            return Ok(());
        }
        let encode = |caption: &&str| self.tokenizer.encode_or_cut(caption, self.length);
        let (ids, cut): (Vec<Vec<i64>>, Vec<bool>) =
            new.iter().map(encode).collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
        let ids = Tensor::from_slice(&ids.concat()).view([new.len() as i64, self.length as i64]).to_device(self.device);
        let states = no_grad(|| self.network.forward(&ids).last_hidden_state); // [B, 77, D]
        for (i, (caption, is_cut)) in new.into_iter().zip(cut).enumerate() {
            let states = floats(&states.f_get(i as i64)?)?;
            self.encoded.insert(caption.to_owned(), Encoded { states, is_cut });
        }
        Ok(())
    }
}
