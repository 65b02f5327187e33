//! Models whose language model is a decoder, which reads visual tokens in place of an image token: InternVL, DeepSeek-VL.

use std::collections::VecDeque;

use image::RgbImage;
use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

use super::{
    Opening,
    asking::Settings,
    memory::Memory,
    model::{Answer, Question, Told, VisionLanguageModel, YesNo},
    pictures::Pictures,
};
use crate::{
    engine::{Error, Result},
    models::{
        checkpoint::{Checkpoint, CheckpointError},
        language::{
            config::DecoderConfig,
            decoder::Decoder,
            generate::{Generation, Heard, Prompt, PromptTooLong, generate},
            weights::{Arithmetic, WeightBytes},
        },
        language_tokenizer::LanguageTokenizer,
        preprocessing::Preprocessing,
    },
    published::input,
};

/// The number of pictures that the vision tower sees at once.
const PICTURES_AT_ONCE: usize = 16;
/// The number of tokens for words that a row has places for, beside pictures and answer, where no text is longer.
const WORDS: i64 = 256;

/// A network that answers in a conversation.
pub(in crate::captioners) trait ChatNetwork: Send {
    /// Returns the language model.
    fn decoder(&self) -> &Decoder;

    /// Returns the mean and deviation by which pictures are normalised.
    fn preprocessing(&self) -> Preprocessing;

    /// Maps normalised pictures [B, 3, S, S] to visual tokens [B, tokens, width of the language model].
    fn visual_tokens(&self, pictures: &Tensor) -> Tensor;

    /// Returns the prompt that asks `text` about a photograph of `count` pictures, with an image token for each visual
    /// token.
    fn prompt(&self, text: &str, count: usize) -> Result<String>;
}

/// A network with its tokenizer and parameters.
pub(in crate::captioners) struct Chat<N> {
    network: N,
    pictures: Pictures,
    tokens: Tokens,
    yes_no: YesNo,
    settings: Settings,
    memory: Memory,
    /// The most tokens of a prompt and its answer.
    places: i64,
}

/// The tokens of a conversation.
pub(in crate::captioners) struct Tokens {
    pub(in crate::captioners) tokenizer: LanguageTokenizer,
    /// The token in whose places visual tokens are read.
    pub(in crate::captioners) image: i64,
    /// The tokens that end an answer.
    pub(in crate::captioners) stop: Vec<i64>,
}

impl<N: ChatNetwork> Chat<N> {
    /// Checks that tokenizer and memory fit, and then loads the network by `load`. `text` are the sizes of the language
    /// model and `tokens_per_picture` the visual tokens of a picture.
    pub(in crate::captioners) fn load(
        opening: Opening,
        pictures: Pictures,
        tokens: Tokens,
        text: &DecoderConfig,
        tokens_per_picture: i64,
        weights: WeightBytes,
        load: impl FnOnce(Checkpoint, Arithmetic, Device) -> Result<N, CheckpointError>,
    ) -> Result<Self> {
        let Opening { checkpoint, settings, device, rows, .. } = opening;
        tokens.tokenizer.check_fits(text.vocab_size)?;
        let most = pictures.most() as i64 * tokens_per_picture + settings.max_new_tokens as i64 + WORDS;
        let places = most.min(text.rope.max_positions);
        let kind = settings.arithmetic.computing.kind();
        let memory = Memory::plan(weights, rows, |rows| text.cache_bytes(rows, places, kind), device)?;
        let network = load(checkpoint, settings.arithmetic, device).map_err(input)?;
        Ok(Self { network, pictures, yes_no: YesNo::of(&tokens.tokenizer), tokens, settings, memory, places })
    }

    /// Returns the tokens of the prompt that asks `text` about `count` pictures.
    fn ids(&self, text: &str, count: usize) -> Result<Vec<i64>> {
        let ids = self.tokens.tokenizer.encode(&self.network.prompt(text, count)?)?;
        Ok(ids.into_iter().map(i64::from).collect())
    }

    /// Returns the tokens before the first image token that the prompts of all texts have in common.
    fn prefix(&self, texts: &[String]) -> Result<Vec<i64>> {
        let mut common: Option<Vec<i64>> = None;
        for text in texts {
            let ids = self.ids(text, 1)?;
            let before = ids.into_iter().take_while(|id| *id != self.tokens.image);
            common = Some(match common {
                Some(common) => before.zip(common).take_while(|(a, b)| a == b).map(|(a, _)| a).collect(),
                None => before.collect(),
            });
        }
        Ok(common.unwrap_or_default())
    }

    /// Returns the prompts of questions, without the first `prefix` tokens. All their pictures are seen in a few batches.
    fn prompts(&self, questions: &[Question], prefix: usize) -> Result<Vec<Prompt>> {
        let pictures = self.pictures;
        let cut: Vec<Vec<RgbImage>> = questions.par_iter().map(|one| pictures.cut(&one.photograph)).collect();
        let all: Vec<&RgbImage> = cut.iter().flatten().collect();
        let seen: Vec<Tensor> = all
            .chunks(PICTURES_AT_ONCE)
            .map(|some| self.network.visual_tokens(&normalised(&self.network.preprocessing(), some)))
            .collect();
        let seen = Tensor::f_cat(&seen, 0)?; // [pictures, tokens, width]
        let mut first = 0;
        let mut prompt = |(question, pictures): (&Question, &Vec<RgbImage>)| {
            let count = pictures.len() as i64;
            let visual = seen.f_narrow(0, first, count)?;
            first += count;
            let ids = self.ids(&question.text, pictures.len())?;
            let rest = &ids[prefix.min(ids.len())..];
            let embeddings = self.network.decoder().embed_with(rest, self.tokens.image, &visual);
            let embeddings = embeddings.map_err(|wrong| Error::Stage(wrong.to_string()))?;
            Ok(Prompt { key: question.key.clone(), embeddings })
        };
        questions.iter().zip(&cut).map(&mut prompt).collect()
    }
}

/// Returns pictures of one size as [B, 3, S, S], normalised.
pub(in crate::captioners) fn normalised(preprocessing: &Preprocessing, pictures: &[&RgbImage]) -> Tensor {
    let (width, height) = pictures.first().map_or((0, 0), |picture| picture.dimensions());
    let bytes: Vec<u8> = pictures.iter().flat_map(|picture| picture.as_raw().iter().copied()).collect();
    let pixels = Tensor::from_slice(&bytes).view([pictures.len() as i64, i64::from(height), i64::from(width), 3]);
    preprocessing.normalize(&(pixels.permute([0, 3, 1, 2]).to_kind(Kind::Float) / 255.))
}

/// Returns the text of an answer's tokens.
pub(in crate::captioners) fn words(tokenizer: &LanguageTokenizer, tokens: &[i64]) -> Result<String> {
    let ids: Vec<u32> = tokens.iter().filter_map(|token| u32::try_from(*token).ok()).collect();
    Ok(tokenizer.decode(&ids)?.trim().to_owned())
}

/// The prompts of questions, made a few at a time when the first of them is asked for.
struct Prompts<'a, N> {
    chat: &'a Chat<N>,
    prefix: usize,
    questions: &'a mut dyn Iterator<Item = Result<Question>>,
    made: VecDeque<Prompt>,
}

impl<N: ChatNetwork> Prompts<'_, N> {
    fn make(&mut self) -> Result<()> {
        let some: Vec<Question> = (&mut *self.questions).take(self.chat.memory.rows).collect::<Result<_>>()?;
        if !some.is_empty() {
            self.made = self.chat.prompts(&some, self.prefix)?.into();
        }
        Ok(())
    }
}

impl<N: ChatNetwork> Iterator for Prompts<'_, N> {
    type Item = Result<Prompt>;

    fn next(&mut self) -> Option<Result<Prompt>> {
        if self.made.is_empty()
            && let Err(error) = self.make()
        {
            return Some(Err(error));
        }
        self.made.pop_front().map(Ok)
    }
}

impl<N: ChatNetwork> VisionLanguageModel for Chat<N> {
    fn memory(&self) -> String {
        self.memory.sentence()
    }

    fn pictures(&self) -> Pictures {
        self.pictures
    }

    fn answer(
        &mut self,
        texts: &[String],
        questions: &mut dyn Iterator<Item = Result<Question>>,
        told: &mut dyn FnMut(Told) -> Result<()>,
    ) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let prefix = self.prefix(texts)?;
        let embedded = (!prefix.is_empty()).then(|| self.network.decoder().embed(&Tensor::from_slice(&prefix)));
        let generation = Generation {
            max_new_tokens: self.settings.max_new_tokens,
            stop: self.tokens.stop.clone(),
            rows: self.memory.rows,
            places: self.places,
            sampling: self.settings.sampling,
            repetition_penalty: self.settings.repetition_penalty,
            prefix: embedded,
        };
        let prompts = Prompts { chat: self, prefix: prefix.len(), questions, made: VecDeque::new() };
        generate(self.network.decoder(), &generation, prompts, |heard| {
            told(match heard {
                Heard::Answer(answer) => Told::Answer {
                    number: answer.prompt,
                    answer: Answer {
                        text: words(&self.tokens.tokenizer, &answer.tokens)?,
                        tokens: answer.tokens.len(),
                        finish: answer.finish,
                        yes: self.yes_no.probability(&answer.first_logits),
                    },
                },
                Heard::TooLong(too_long) => Told::Unanswered { number: too_long.prompt, reason: advice(&too_long) },
                Heard::Step(speed) => Told::Step(speed),
            })
        })?;
        Ok(())
    }
}

fn advice(too_long: &PromptTooLong) -> String {
    let PromptTooLong { tokens, places, .. } = too_long;
    format!(
        "the prompt has {tokens} tokens, and the model reads and writes {places} at most; a shorter prompt or fewer \
         `max_tiles` fit"
    )
}
