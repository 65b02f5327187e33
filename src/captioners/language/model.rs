//! The contract of a loaded vision-language model: questions about photographs in, answers out.

use image::RgbImage;
use tch::{Kind, Tensor};

use super::pictures::Pictures;
use crate::{
    engine::Result,
    models::{
        language::generate::{Finish, Speed},
        language_tokenizer::LanguageTokenizer,
    },
};

/// A question about a photograph.
#[derive(Debug)]
pub struct Question {
    /// Identifies photograph and question; with the seed, decides the random draws.
    pub key: String,
    /// The photograph.
    pub photograph: RgbImage,
    /// The words.
    pub text: String,
}

/// An answer to a question.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The words.
    pub text: String,
    /// The number of tokens.
    pub tokens: usize,
    /// The reason for which the text ends.
    pub finish: Finish,
    /// The probability that the first token says yes, among those that say yes or no; `None` if the tokenizer has no
    /// such tokens.
    pub yes: Option<f32>,
}

/// A message of a model that answers questions.
#[derive(Debug)]
pub enum Told {
    /// The answer to question `number`, counted from 0 in the order of the questions.
    Answer {
        /// The question.
        number: usize,
        /// The answer.
        answer: Answer,
    },
    /// The reason why question `number` has no answer.
    Unanswered {
        /// The question.
        number: usize,
        /// The reason, with what would work.
        reason: String,
    },
    /// The tokens and times so far.
    Step(Speed),
}

/// A loaded model.
pub trait VisionLanguageModel: Send {
    /// Returns a sentence about the memory that it takes.
    fn memory(&self) -> String;

    /// Returns what it sees of a photograph.
    fn pictures(&self) -> Pictures;

    /// Answers questions, of which it takes a few at a time. `texts` are the different texts among them. Answers come in
    /// the order in which they end.
    ///
    /// # Errors
    /// The first error of `questions` or `told`, at once.
    fn answer(
        &mut self,
        texts: &[String],
        questions: &mut dyn Iterator<Item = Result<Question>>,
        told: &mut dyn FnMut(Told) -> Result<()>,
    ) -> Result<()>;
}

/// The tokens that say yes or no at the begin of an answer.
#[derive(Clone, Debug)]
pub(in crate::captioners) struct YesNo {
    yes: Vec<i64>,
    no: Vec<i64>,
}

impl YesNo {
    /// Finds the tokens of a tokenizer.
    pub(in crate::captioners) fn of(tokenizer: &LanguageTokenizer) -> Self {
        let tokens = |words: [&str; 6]| {
            let one = |word: &str| match tokenizer.encode_piece(word).as_deref() {
                Ok([token]) => Some(i64::from(*token)),
                _ => None,
            };
            let mut tokens: Vec<i64> = words.into_iter().filter_map(one).collect();
            tokens.sort_unstable();
            tokens.dedup();
            tokens
        };
        Self {
            yes: tokens(["yes", "Yes", "YES", " yes", " Yes", " YES"]),
            no: tokens(["no", "No", "NO", " no", " No", " NO"]),
        }
    }

    /// Returns the probability of yes among the tokens of both, by the logits \[vocabulary\] of an answer's first token.
    pub(in crate::captioners) fn probability(&self, logits: &Tensor) -> Option<f32> {
        if self.yes.is_empty() || self.no.is_empty() {
            return None;
        }
        let both = Tensor::from_slice(&[&self.yes[..], &self.no].concat());
        let shares = logits.to_kind(Kind::Double).index_select(0, &both).softmax(0, Kind::Double);
        Some(shares.narrow(0, 0, self.yes.len() as i64).sum(Kind::Double).double_value(&[]) as f32)
    }
}
