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

/// The number of captions that are encoded at once.
const AT_ONCE: usize = 64;

/// Encodes captions by CLIP's text transformer: the hidden states of all tokens after the final normalisation, which
/// is the context of Stable Diffusion. Equal captions are encoded once.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
#[schemars(extend("examples" = [{}]))]
pub struct EncodeText {
    /// The number of lines of a caption that are encoded, each as a caption of its own: a row then has so many embeddings,
    /// of which `train_denoiser` draws one in each epoch. Blank lines do not count. Where a caption has fewer lines, they are
    /// repeated in turn; of more, the first are taken. Absent: a caption is encoded as a whole, and a row has one embedding.
    #[garde(inner(range(min = 1, max = 64)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lines: Option<u32>,
}

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
        Ok(embeddings::schema(self.lines.map(|lines| lines as usize), shape))
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
        let lines = self.lines.map(|lines| lines as usize);
        Ok(Box::new(Encoder {
            lines,
            tokenizer: ClipTokenizer::from_json(json)?,
            network,
            device,
            length: config.max_position_embeddings as usize,
            batch_size: context.batch_size.unwrap_or_else(|| AT_ONCE.div_ceil(lines.unwrap_or(1))),
            encoded: HashMap::new(),
        }))
    }
}

struct Encoder {
    /// See [`EncodeText::lines`].
    lines: Option<usize>,
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
            let mut captions: Vec<&str> = column.iter().map(Option::unwrap_or_default).collect();
            if let Some(count) = self.lines {
                let lines: Vec<Vec<&str>> = captions.into_iter().map(lines_of).collect();
                for (id, lines) in batch.ids.iter().zip(&lines) {
                    note_other_number(out, id, lines.len(), count);
                }
                captions = lines.into_iter().flat_map(|lines| in_turn(lines, count)).collect();
            }
            self.encode(&captions)?;
            let encoded: Vec<&Encoded> = captions.iter().map(|caption| &self.encoded[*caption]).collect();
            let of_rows = encoded.chunks(self.lines.unwrap_or(1));
            let is_cut = batch.ids.iter().zip(of_rows).filter(|(_, of_row)| of_row.iter().any(|one| one.is_cut));
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

/// Returns the lines of a caption that are not blank.
fn lines_of(caption: &str) -> Vec<&str> {
    caption.lines().map(str::trim).filter(|line| !line.is_empty()).collect()
}

/// Returns `count` of these lines: the first ones, or all of them in turn. Without any, the empty text is the only line.
fn in_turn(mut lines: Vec<&str>, count: usize) -> Vec<&str> {
    if lines.is_empty() {
        lines.push("");
    }
    lines.into_iter().cycle().take(count).collect()
}

/// Notes a caption whose lines are more than are encoded, or fewer. The stage that makes captions notes those without a line.
fn note_other_number(out: &mut Sink<'_>, id: &str, lines: usize, count: usize) {
    if lines > count {
        out.note(&format!("the caption has more than {count} lines, and the rest is left out"), id);
    } else if lines > 0 && lines < count {
        out.note(&format!("the caption has fewer than {count} lines, which are repeated in turn"), id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_in_turn_and_blank_ones_do_not_count() {
        let taken = |caption, count| in_turn(lines_of(caption), count);
        assert_eq!(taken("a nut\n\n of steel \r\nold\n", 2), ["a nut", "of steel"]);
        assert_eq!(taken("a nut\nof steel", 5), ["a nut", "of steel", "a nut", "of steel", "a nut"]);
        assert_eq!(taken(" \n", 2), ["", ""]);
        assert_eq!(taken("", 1), [""]);
    }
}
