//! The tokenizers of language models: text -> token ids and back, from the files that repositories ship.
//!
//! | files | read as |
//! |---|---|
//! | `tokenizer.json` | it stands there |
//! | `vocab.json`, `merges.txt` | byte pairs by the [`Rules`] of the model's family |
//! | `tokenizer.model` | byte pairs of sentencepiece |
//!
//! Tokens that were added to a published vocabulary stand in `added_tokens.json` or `tokenizer_config.json` beside them.

mod added;
mod byte_pairs;
mod files;
mod parts;
mod protobuf;
mod sentencepiece;

use std::path::Path;

use tokenizers::Tokenizer;

use super::tokenizer::TokenizerError;
pub use byte_pairs::Rules;
use files::{bytes, text};

/// The files by which a tokenizer is known, in the order in which they are looked for.
pub const FILES: [&str; 6] =
    ["tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model", "added_tokens.json", "tokenizer_config.json"];

/// A language model's tokenizer.
#[derive(Clone)]
pub struct LanguageTokenizer {
    tokenizer: Tokenizer,
    size: usize,
    /// The folder, for messages.
    place: String,
}

impl std::fmt::Debug for LanguageTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LanguageTokenizer({}, {} tokens)", self.place, self.size)
    }
}

impl LanguageTokenizer {
    /// Reads the tokenizer in a folder. `rules` are those of `vocab.json` and `merges.txt` where the
    /// `tokenizer_class` of `tokenizer_config.json` does not tell them.
    ///
    /// # Errors
    /// Names the file that is missing or wrong, and what was looked for.
    pub fn open(folder: impl AsRef<Path>, rules: Rules) -> Result<Self, TokenizerError> {
        let folder = folder.as_ref();
        let place = folder.display().to_string();
        let inside = |e: TokenizerError| TokenizerError(format!("{place}: {}", e.0));
        let tokenizer = Self::read(folder, rules).map_err(inside)?;
        let size = tokenizer.get_vocab(true).into_values().max().map_or(0, |last| last as usize + 1);
        Ok(Self { tokenizer, size, place })
    }

    fn read(folder: &Path, rules: Rules) -> Result<Tokenizer, TokenizerError> {
        let added = added::read(folder)?;
        let config = added::config(folder)?;
        let there = |file: &&str| folder.join(file).exists();
        let json = match ["tokenizer.json", "vocab.json", "tokenizer.model"].iter().find(|file| there(file)) {
            Some(&"tokenizer.json") => text(folder, "tokenizer.json")?,
            Some(&"vocab.json") => {
                let (vocab, merges) = (text(folder, "vocab.json")?, text(folder, "merges.txt")?);
                byte_pairs::json(&vocab, &merges, rules, &config, &added)?.to_string()
            }
            Some(_) => sentencepiece::json(&bytes(folder, "tokenizer.model")?, &config, &added)?.to_string(),
            None => {
                let missing = "it has no tokenizer.json, no vocab.json with merges.txt, and no tokenizer.model";
                return Err(TokenizerError(missing.into()));
            }
        };
        let mut tokenizer: Tokenizer = json.parse().map_err(|e| TokenizerError(format!("{e}")))?;
        tokenizer.with_padding(None).with_truncation(None).map_err(|e| TokenizerError(e.to_string()))?;
        added::ensure(&mut tokenizer, &added)?;
        Ok(tokenizer)
    }

    /// Returns the number of rows that an embedding of these tokens has: one more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.size
    }

    /// Checks that a language model with embeddings of `known` tokens knows all of these.
    ///
    /// # Errors
    /// Says that the files are not of one download.
    pub fn check_fits(&self, known: i64) -> Result<(), TokenizerError> {
        if self.size as i64 <= known {
            return Ok(());
        }
        Err(TokenizerError(format!(
            "{}: its tokenizer has {} tokens and its weights know {known}; both have to be of one download",
            self.place, self.size
        )))
    }

    /// Returns the id of a token, such as `<|im_end|>`.
    pub fn id(&self, token: &str) -> Result<u32, TokenizerError> {
        let missing = || TokenizerError(format!("{}: it has no token {token}", self.place));
        self.tokenizer.token_to_id(token).ok_or_else(missing)
    }

    /// Returns the ids of a text, with the tokens that the tokenizer puts around every text, such as `<s>`. Special
    /// tokens in the text are recognized.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.ids(text, true)
    }

    /// Does as [`encode`](Self::encode) for a piece of a text, without tokens around it.
    pub fn encode_piece(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.ids(text, false)
    }

    fn ids(&self, text: &str, with_specials: bool) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.tokenizer.encode_fast(text, with_specials);
        encoding.map(|encoding| encoding.get_ids().to_vec()).map_err(|e| TokenizerError(format!("{}: {e}", self.place)))
    }

    /// Returns the text of ids without special tokens. Ids that are no token are left out.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.tokenizer.decode(ids, true).map_err(|e| TokenizerError(format!("{}: {e}", self.place)))
    }
}

#[cfg(test)]
mod tests;
