//! CLIP's byte-pair tokeniser: text -> a fixed number of token ids.

use tokenizers::{
    AddedToken, Tokenizer, TokenizerImpl,
    decoders::byte_level::ByteLevel,
    models::bpe::{BPE, BpeTrainer},
    normalizers::{Sequence, unicode::NFC, utils::Lowercase},
    pre_tokenizers::{PreTokenizerWrapper, byte_level::ByteLevel as PreByteLevel},
};

/// Begins every text.
pub const START: &str = "<|startoftext|>";
/// Ends every text and fills what is left.
pub const END: &str = "<|endoftext|>";

/// A tokeniser that cannot be made or used.
#[derive(Debug, thiserror::Error)]
#[error("tokenizer: {0}")]
pub struct TokenizerError(String);

/// Text -> `[start, tokens…, end, end…]`.
#[derive(Clone)]
pub struct ClipTokenizer {
    tokenizer: Tokenizer,
    start: u32,
    end: u32,
}

impl std::fmt::Debug for ClipTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ClipTokenizer({} tokens)", self.vocab_size())
    }
}

fn failed(error: impl ToString) -> TokenizerError {
    TokenizerError(error.to_string())
}

impl ClipTokenizer {
    /// Learns merges from texts, for a vocabulary of at most `vocab_size` tokens (at least the 256 bytes and the two specials).
    pub fn train(texts: &[String], vocab_size: usize) -> Result<Self, TokenizerError> {
        let specials = [START, END].map(|token| AddedToken::from(token, true));
        let mut trainer = BpeTrainer::builder()
            .vocab_size(vocab_size)
            .show_progress(false)
            .special_tokens(specials.to_vec())
            .initial_alphabet(PreByteLevel::alphabet().into_iter().collect())
            .build();
        let bytes = PreByteLevel::default().add_prefix_space(true);
        let mut tokenizer: TokenizerImpl<BPE, Sequence, PreTokenizerWrapper, PreByteLevel, ByteLevel> =
            TokenizerImpl::new(BPE::default());
        tokenizer.with_normalizer(Some(Sequence::new(vec![NFC.into(), Lowercase.into()])));
        tokenizer.with_pre_tokenizer(Some(PreTokenizerWrapper::ByteLevel(bytes)));
        tokenizer.with_decoder(Some(ByteLevel::default()));
        tokenizer.train(&mut trainer, texts.iter()).map_err(failed)?;
        let json = tokenizer.to_string(false).map_err(failed)?;
        Self::from_json(&json)
    }

    /// Reads a `tokenizer.json` that has the two special tokens.
    pub fn from_json(json: &str) -> Result<Self, TokenizerError> {
        let tokenizer: Tokenizer = json.parse().map_err(failed)?;
        let id = |token: &str| {
            tokenizer.token_to_id(token).ok_or_else(|| TokenizerError(format!("it has no token {token}")))
        };
        let (start, end) = (id(START)?, id(END)?);
        Ok(Self { tokenizer, start, end })
    }

    /// The tokeniser as a `tokenizer.json`.
    pub fn to_json(&self) -> Result<String, TokenizerError> {
        self.tokenizer.to_string(false).map_err(failed)
    }

    /// Number of token ids.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// The id that ends a text.
    pub fn end(&self) -> u32 {
        self.end
    }

    /// `length` ids; of a longer text the tokens beyond are cut, and the last id stays the end.
    pub fn encode(&self, text: &str, length: usize) -> Result<Vec<i64>, TokenizerError> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(failed)?;
        let mut ids = vec![i64::from(self.start)];
        ids.extend(encoding.get_ids().iter().take(length.saturating_sub(2)).map(|id| i64::from(*id)));
        ids.resize(length, i64::from(self.end));
        Ok(ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_learnt_tokenizer_survives_its_json() {
        let texts = ["A photo of a silver gear.".to_owned(), "A photo of a Golden gear".to_owned()];
        let tokenizer = ClipTokenizer::train(&texts, 400).unwrap();
        let again = ClipTokenizer::from_json(&tokenizer.to_json().unwrap()).unwrap();
        let ids = tokenizer.encode("a photo of a GEAR", 16).unwrap();
        assert_eq!(ids, again.encode("A photo of a gear", 16).unwrap());
        assert_eq!((ids.len(), ids[0], ids[15]), (16, i64::from(tokenizer.start), i64::from(tokenizer.end)));
        // Learnt words are single tokens; unknown ones fall back to bytes and are cut at the length.
        assert!(ids.iter().position(|id| *id == i64::from(tokenizer.end)).unwrap() <= 7);
        let long = tokenizer.encode(&"zyx ".repeat(50), 16).unwrap();
        assert_eq!((long.len(), long[15]), (16, i64::from(tokenizer.end)));
        assert_eq!(tokenizer.encode("", 4).unwrap()[1..], [i64::from(tokenizer.end); 3]);
    }
}
