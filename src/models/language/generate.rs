//! Generation of texts for many prompts, several at once: a finished text's row is taken by the next prompt.

use super::{
    cache::Cache,
    choose::{Draws, Sampling, draw, likeliest, penalise},
    decoder::Decoder,
};
use std::time::{Duration, Instant};
use tch::{Kind, Tensor};

/// Prompts of which the longest is longer than a shorter one by more than this share are not padded into one batch.
const PADDING: f64 = 1. / 8.;

/// A prompt, as embeddings.
#[derive(Debug)]
pub struct Prompt {
    /// Identifies the text; with the seed, decides its random numbers.
    pub key: String,
    /// The embeddings of the prompt after [`Generation::prefix`], [tokens ≥ 1, hidden_size].
    pub embeddings: Tensor,
}

/// The reason for which a text ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model gave a stop token.
    Stop,
    /// The text has as many tokens as were allowed, or as its row has places for.
    Length,
}

/// A generated text.
#[derive(Debug)]
pub struct Answer {
    /// The number of the prompt, from 0.
    pub prompt: usize,
    /// The tokens, without the stop token.
    pub tokens: Vec<i64>,
    /// The reason for which the text ends.
    pub finish: Finish,
    /// The logits of the first token before any penalty, \[vocabulary\] f32 on the CPU.
    pub first_logits: Tensor,
}

/// A message of [`generate`], which works on many texts.
#[derive(Debug)]
pub enum Heard {
    /// A text has ended.
    Answer(Answer),
    /// A prompt is left out.
    TooLong(PromptTooLong),
    /// One more token of each text was computed; the tokens and times so far.
    Step(Speed),
}

/// A prompt that has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the prompt has {tokens} tokens, and a row has places for {places} with at least one of the answer")]
pub struct PromptTooLong {
    /// The number of the prompt, from 0.
    pub prompt: usize,
    /// The tokens of the prompt, with the prefix.
    pub tokens: i64,
    /// The places of a row.
    pub places: i64,
}

/// The settings of generating texts.
#[derive(Debug)]
pub struct Generation {
    /// The most tokens of an answer.
    pub max_new_tokens: usize,
    /// The tokens that end an answer.
    pub stop: Vec<i64>,
    /// The most texts at once.
    pub rows: usize,
    /// The most tokens of a prompt and its answer, with the prefix. The cache is allocated for as many per row.
    pub places: i64,
    /// None takes the likeliest token.
    pub sampling: Option<Sampling>,
    /// Divides the likelihood of the tokens that the answer has already; 1 changes nothing. Tokens of the prompt are
    /// not penalised, as in transformers for prompts given as embeddings.
    pub repetition_penalty: f64,
    /// Embeddings with which all prompts begin, [tokens, hidden_size]: computed once.
    pub prefix: Option<Tensor>,
}

/// The tokens computed, and the time that they took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Speed {
    /// Tokens of prompts, without padding and without the prefix.
    pub prompt_tokens: usize,
    /// The time for these.
    pub prefill: Duration,
    /// Tokens of answers after the first of each.
    pub decoded_tokens: usize,
    /// The time for these.
    pub decode: Duration,
}

/// Answers prompts in the order in which texts end. Prompts are taken as rows become free, so that few of them are in
/// memory; prompts of similar lengths are best neighbours.
///
/// The tokens of an answer do not depend on the other prompts, nor on `rows`, except where two logits are equal but for
/// the last digits of the arithmetic.
///
/// # Errors
/// The first error of `prompts` or `heard`, at once.
pub fn generate<E>(
    model: &Decoder,
    options: &Generation,
    prompts: impl IntoIterator<Item = Result<Prompt, E>>,
    mut heard: impl FnMut(Heard) -> Result<(), E>,
) -> Result<Speed, E> {
    let _no_grad = tch::no_grad_guard();
    let mut prompts = prompts.into_iter().enumerate().fuse();
    let mut batch = Batch::new(model, options);
    loop {
        let mut admitted = Vec::new();
        while batch.texts.len() + admitted.len() < batch.cache.rows() {
            let Some((number, prompt)) = prompts.next() else { break };
            match batch.check(number, prompt?) {
                Ok(prompt) => admitted.push(prompt),
                Err(too_long) => heard(Heard::TooLong(too_long))?,
            }
        }
        let mut ended = batch.admit(admitted);
        if batch.texts.is_empty() && ended.is_empty() {
            return Ok(batch.speed);
        }
        ended.extend(batch.step());
        for answer in ended {
            heard(Heard::Answer(answer))?;
        }
        heard(Heard::Step(batch.speed))?;
    }
}

/// A prompt with its number.
struct Admitted {
    number: usize,
    prompt: Prompt,
}

/// A text that is being generated.
struct Text {
    number: usize,
    draws: Draws,
    tokens: Vec<i64>,
    first_logits: Tensor,
}

/// The texts at work: text i has row i of the cache.
struct Batch<'a> {
    model: &'a Decoder,
    options: &'a Generation,
    cache: Cache,
    /// The keys and values of the prefix, in one row.
    prefix: Option<Cache>,
    texts: Vec<Text>,
    speed: Speed,
}

impl<'a> Batch<'a> {
    fn new(model: &'a Decoder, options: &'a Generation) -> Self {
        let prefix = options.prefix.as_ref().map(|embeddings| {
            let tokens = embeddings.size()[0];
            let mut cache = model.cache(1, tokens);
            if let Ok(span) = cache.span(&[0], &[tokens]) {
                let _states = model.forward(&embeddings.unsqueeze(0), &span, &mut cache);
            }
            cache
        });
        let cache = model.cache(options.rows.max(1), options.places);
        Self { model, options, cache, prefix, texts: vec![], speed: Speed::default() }
    }

    fn prefix_length(&self) -> i64 {
        self.prefix.as_ref().map_or(0, |prefix| prefix.length(0))
    }

    /// Returns a prompt that leaves a place for its answer.
    fn check(&self, number: usize, prompt: Prompt) -> Result<Admitted, PromptTooLong> {
        let tokens = self.prefix_length() + prompt.embeddings.size()[0];
        let places = self.options.places;
        if tokens >= places {
            return Err(PromptTooLong { prompt: number, tokens, places });
        }
        Ok(Admitted { number, prompt })
    }

    /// Computes the prompts and the first token of each. Returns the answers that end with it.
    fn admit(&mut self, mut admitted: Vec<Admitted>) -> Vec<Answer> {
        admitted.sort_by_key(|one| (one.prompt.embeddings.size()[0], one.number));
        let mut ended = Vec::new();
        while let Some(first) = admitted.first() {
            let most = first.prompt.embeddings.size()[0] as f64 * (1. + PADDING);
            let similar = admitted.iter().take_while(|one| one.prompt.embeddings.size()[0] as f64 <= most).count();
            let rest = admitted.split_off(similar);
            self.prefill(admitted);
            admitted = rest;
        }
        self.retire(&mut ended);
        ended
    }

    /// Computes prompts of similar lengths in one batch.
    fn prefill(&mut self, admitted: Vec<Admitted>) {
        let start = Instant::now();
        let counts: Vec<i64> = admitted.iter().map(|one| one.prompt.embeddings.size()[0]).collect();
        let longest = counts.iter().copied().max().unwrap_or(0);
        let rows: Vec<usize> = (self.texts.len()..).take(admitted.len()).collect();
        let shared = self.is_prefix_shared(longest);
        for &row in &rows {
            self.cache.clear(row);
            if let Some(prefix) = self.prefix.as_ref().filter(|_| shared) {
                self.cache.copy_from(row, prefix, 0, prefix.length(0));
            }
        }
        let own = |one: &Admitted| match &self.options.prefix {
            Some(prefix) if !shared => Tensor::cat(&[prefix, &one.prompt.embeddings], 0),
            _ => one.prompt.embeddings.shallow_clone(),
        };
        let own: Vec<Tensor> = admitted.iter().map(own).collect();
        let counts: Vec<i64> = own.iter().map(|x| x.size()[0]).collect();
        let x = Tensor::pad_sequence(&own, true, 0., "right"); // [rows, longest, hidden_size]
        // `check` has made sure that every prompt fits.
        let Ok(span) = self.cache.span(&rows, &counts) else { return };
        let states = self.model.forward(&x, &span, &mut self.cache);
        let last = counts.iter().enumerate().map(|(i, count)| states.get(i as i64).get(count - 1));
        let last = Tensor::stack(&last.collect::<Vec<_>>(), 0); // [rows, hidden_size]
        let logits = self.model.logits(&last); // [rows, vocabulary]
        for (i, Admitted { number, prompt }) in admitted.into_iter().enumerate() {
            let seed = self.options.sampling.map_or(0, |sampling| sampling.seed);
            let first_logits = logits.get(i as i64).to_device(tch::Device::Cpu).copy();
            let draws = Draws::new(seed, &prompt.key);
            self.texts.push(Text { number, draws, tokens: vec![], first_logits });
        }
        self.choose(rows[0], &logits);
        self.speed.prompt_tokens += counts.iter().sum::<i64>() as usize;
        self.speed.prefill += start.elapsed();
    }

    /// Returns false for prompts so long that their positions are scaled: then the prefix has other keys.
    fn is_prefix_shared(&self, longest: i64) -> bool {
        let rope = self.model.config().rope;
        rope.dynamic.is_none() || self.prefix_length() + longest <= rope.max_positions
    }

    /// Computes one more token of each text. Returns the answers that end with it.
    fn step(&mut self) -> Vec<Answer> {
        let start = Instant::now();
        if self.texts.is_empty() {
            return vec![];
        }
        let last: Vec<i64> = self.texts.iter().filter_map(|text| text.tokens.last().copied()).collect();
        let rows: Vec<usize> = (0..last.len()).collect();
        let x = self.model.embed(&Tensor::from_slice(&last).unsqueeze(1)); // [rows, 1, hidden_size]
        // `retire` has ended the texts whose rows are full.
        let Ok(span) = self.cache.span(&rows, &vec![1; rows.len()]) else { return vec![] };
        let states = self.model.forward(&x, &span, &mut self.cache).squeeze_dim(1); // [rows, hidden_size]
        let logits = self.model.logits(&states); // [rows, vocabulary]
        self.choose(0, &logits);
        self.speed.decoded_tokens += rows.len();
        self.speed.decode += start.elapsed();
        let mut ended = Vec::new();
        self.retire(&mut ended);
        ended
    }

    /// Appends a token to each text from number `first`, by its row of the logits.
    fn choose(&mut self, first: usize, logits: &Tensor) {
        let (penalty, sampling) = (self.options.repetition_penalty, self.options.sampling);
        if penalty == 1. && sampling.is_none() {
            let tokens = Vec::<i64>::try_from(logits.argmax(-1, false)).unwrap_or_default();
            self.texts[first..].iter_mut().zip(tokens).for_each(|(text, token)| text.tokens.push(token));
            return;
        }
        for (i, text) in self.texts[first..].iter_mut().enumerate() {
            let mut row = Vec::<f32>::try_from(logits.get(i as i64).to_kind(Kind::Float)).unwrap_or_default();
            if penalty != 1. {
                penalise(&mut row, &text.tokens, penalty);
            }
            let token = match sampling {
                Some(sampling) => draw(&row, sampling, &text.draws, text.tokens.len()),
                None => likeliest(&row),
            };
            text.tokens.push(token);
        }
    }

    /// Takes out the texts that have ended, and moves the last ones into their rows.
    fn retire(&mut self, ended: &mut Vec<Answer>) {
        for row in (0..self.texts.len()).rev() {
            let Some(finish) = self.finish(row) else { continue };
            let Text { number, mut tokens, first_logits, .. } = self.texts.swap_remove(row);
            if row < self.texts.len() {
                self.cache.move_row(self.texts.len(), row);
            }
            if finish == Finish::Stop {
                tokens.pop();
            }
            ended.push(Answer { prompt: number, tokens, finish, first_logits });
        }
    }

    /// Returns the reason for which a text ends here, if it does.
    fn finish(&self, row: usize) -> Option<Finish> {
        let tokens = &self.texts[row].tokens;
        let is_stop = tokens.last().is_some_and(|token| self.options.stop.contains(token));
        let is_full = tokens.len() >= self.options.max_new_tokens || self.cache.length(row) >= self.cache.places();
        match (is_stop, is_full) {
            (true, _) => Some(Finish::Stop),
            (false, true) => Some(Finish::Length),
            (false, false) => None,
        }
    }
}

#[cfg(test)]
mod tests;
