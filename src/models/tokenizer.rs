//! CLIP's byte-pair tokenizer: text -> a fixed number of token ids.
//!
//! Published files are read as by Hugging Face's fast tokenizer. The slow one, in Python, first passes the text through
//! `ftfy` if that is installed, which turns curly quotes, ligatures, full-width letters and HTML entities into plain
//! ones; that is not done here.

use std::path::Path;

use serde_json::{Value, json};
use tokenizers::{
    AddedToken, Tokenizer, TokenizerImpl,
    decoders::byte_level::ByteLevel,
    models::bpe::{BPE, BpeTrainer},
    normalizers::{Sequence, unicode::NFC, utils::Lowercase},
    pre_tokenizers::{PreTokenizerWrapper, byte_level::ByteLevel as PreByteLevel},
};

/// The token that begins every text.
pub const START: &str = "<|startoftext|>";
/// The token that ends every text.
pub const END: &str = "<|endoftext|>";

/// The pattern of a word: an English suffix, letters, one digit, or anything else without spaces.
const WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// A tokenizer that cannot be made or used.
#[derive(Debug, thiserror::Error)]
#[error("tokenizer: {0}")]
pub struct TokenizerError(pub(super) String);

/// CLIP's tokenizer: text -> `[start, tokens…, end, pad…]`.
#[derive(Clone)]
pub struct ClipTokenizer {
    tokenizer: Tokenizer,
    start: u32,
    end: u32,
    pad: u32,
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
    /// Learns merges from texts, for a vocabulary of at most `vocab_size` tokens (at least the 256 bytes and the two
    /// specials).
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

    /// Reads a folder in Hugging Face layout: `tokenizer.json`, or `vocab.json` and `merges.txt`. Short texts are
    /// padded with the `pad_token` of its `tokenizer_config.json` or `special_tokens_map.json`, else with the end.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, TokenizerError> {
        let folder = folder.as_ref();
        let read = |file: &str| {
            let path = folder.join(file);
            std::fs::read_to_string(&path).map_err(|e| TokenizerError(format!("cannot read {}: {e}", path.display())))
        };
        let there = |file: &&str| folder.join(file).exists();
        let inside = |e: TokenizerError| TokenizerError(format!("{}: {}", folder.display(), e.0));
        let tokenizer = match ["tokenizer.json", "vocab.json"].iter().find(|file| there(file)) {
            Some(&"tokenizer.json") => Self::from_json(&read("tokenizer.json")?).map_err(inside)?,
            Some(_) => Self::from_vocab(&read("vocab.json")?, &read("merges.txt")?).map_err(inside)?,
            None => {
                let missing = "has neither tokenizer.json nor vocab.json and merges.txt";
                return Err(TokenizerError(format!("{} {missing}", folder.display())));
            }
        };
        for file in ["tokenizer_config.json", "special_tokens_map.json"].iter().filter(|file| there(file)) {
            let config: Value = serde_json::from_str(&read(file)?).map_err(failed).map_err(inside)?;
            // The token is a plain string, or an object with the string in it.
            let pad = config["pad_token"].as_str().or_else(|| config["pad_token"]["content"].as_str());
            if let Some(pad) = pad {
                return tokenizer.with_pad(pad).map_err(inside);
            }
        }
        Ok(tokenizer)
    }

    /// Reads the content of the two files of OpenAI's tokenizer, `vocab.json` and `merges.txt`.
    pub fn from_vocab(vocab: &str, merges: &str) -> Result<Self, TokenizerError> {
        let vocab: Value = serde_json::from_str(vocab).map_err(|e| TokenizerError(format!("vocab.json: {e}")))?;
        let merges: Vec<&str> =
            merges.lines().filter(|line| !line.starts_with("#version") && !line.is_empty()).collect();
        let special = |token: &str| {
            let id = vocab[token].as_u64().ok_or_else(|| TokenizerError(format!("vocab.json has no token {token}")))?;
            let no = json!(false);
            Ok(
                json!({ "id": id, "content": token, "special": true, "normalized": no, "single_word": no, "lstrip": no, "rstrip": no }),
            )
        };
        let json = json!({
            "version": "1.0",
            "added_tokens": [special(START)?, special(END)?],
            "normalizer": { "type": "Sequence", "normalizers": [
                { "type": "NFC" },
                { "type": "Replace", "pattern": { "Regex": r"\s+" }, "content": " " },
                { "type": "Lowercase" },
            ] },
            "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
                { "type": "Split", "pattern": { "Regex": WORDS }, "behavior": "Removed", "invert": true },
                { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true },
            ] },
            "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true },
            "model": {
                "type": "BPE", "unk_token": END, "continuing_subword_prefix": "", "end_of_word_suffix": "</w>",
                "fuse_unk": false, "vocab": vocab, "merges": merges,
            },
        });
        Self::from_json(&json.to_string())
    }

    /// Pads short texts with another token than the end, as with `!` in Stable Diffusion 2.
    pub fn with_pad(self, token: &str) -> Result<Self, TokenizerError> {
        Ok(Self { pad: id(&self.tokenizer, token)?, ..self })
    }

    /// Reads a `tokenizer.json` that has the two special tokens. Its padding and truncation are ignored, because
    /// [`encode`](Self::encode) takes the length.
    pub fn from_json(json: &str) -> Result<Self, TokenizerError> {
        let mut tokenizer: Tokenizer = json.parse().map_err(failed)?;
        tokenizer.with_padding(None).with_truncation(None).map_err(failed)?;
        let (start, end) = (id(&tokenizer, START)?, id(&tokenizer, END)?);
        Ok(Self { tokenizer, start, end, pad: end })
    }

    /// Returns the tokenizer as a `tokenizer.json`.
    pub fn to_json(&self) -> Result<String, TokenizerError> {
        self.tokenizer.to_string(false).map_err(failed)
    }

    /// Returns the number of token ids.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// Returns the id that ends a text.
    pub fn end(&self) -> u32 {
        self.end
    }

    /// Returns `length` ids. The tokens of a longer text are cut so that its last id is the end. In CLIP `length` is
    /// 77.
    pub fn encode(&self, text: &str, length: usize) -> Result<Vec<i64>, TokenizerError> {
        Ok(self.encode_or_cut(text, length)?.0)
    }

    /// Returns the ids of [`encode`](Self::encode), and true if tokens were cut.
    pub fn encode_or_cut(&self, text: &str, length: usize) -> Result<(Vec<i64>, bool), TokenizerError> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(failed)?;
        let (tokens, room) = (encoding.get_ids(), length.saturating_sub(2));
        let mut ids = vec![i64::from(self.start)];
        ids.extend(tokens.iter().take(room).map(|id| i64::from(*id)));
        ids.push(i64::from(self.end));
        ids.resize(length, i64::from(self.pad));
        Ok((ids, tokens.len() > room))
    }
}

fn id(tokenizer: &Tokenizer, token: &str) -> Result<u32, TokenizerError> {
    tokenizer.token_to_id(token).ok_or_else(|| TokenizerError(format!("it has no token {token}")))
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

    /// Returns a vocabulary in which `ab` and `c` are tokens at the end of a word, and `a` and `b` within one; and its
    /// merges.
    fn published() -> (String, &'static str) {
        let tokens = ["!", "a", "b", "c", "!</w>", "a</w>", "b</w>", "c</w>", "ab</w>", START, END];
        let vocab: Value = tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), json!(id))).collect();
        (vocab.to_string(), "#version: 0.2\na b</w>\n")
    }

    #[test]
    fn published_files_are_read() {
        let (vocab, merges) = published();
        let tokenizer = ClipTokenizer::from_vocab(&vocab, merges).unwrap();
        assert_eq!(tokenizer.encode(" AB  c\nb", 8).unwrap(), [9, 8, 7, 6, 10, 10, 10, 10]);
        assert_eq!(tokenizer.encode("ab ab ab ab", 4).unwrap(), [9, 8, 8, 10], "the end stays");
        assert_eq!(
            tokenizer.encode("c<|endoftext|>c", 6).unwrap(),
            [9, 7, 10, 7, 10, 10],
            "a special token in the text"
        );
        let zero = tokenizer.with_pad("!").unwrap();
        assert_eq!(zero.encode("", 4).unwrap(), [9, 10, 0, 0]);
        assert!(zero.with_pad("?").unwrap_err().to_string().contains("no token ?"));
    }

    #[test]
    fn the_length_in_a_tokenizer_json_is_ignored() {
        let (vocab, merges) = published();
        let plain = ClipTokenizer::from_vocab(&vocab, merges).unwrap();
        let mut json: Value = serde_json::from_str(&plain.to_json().unwrap()).unwrap();
        json["truncation"] = json!({ "max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right" });
        json["padding"] = json!({
            "strategy": { "Fixed": 4 }, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "!",
        });
        let with_lengths = ClipTokenizer::from_json(&json.to_string()).unwrap();
        for text in ["", "c c c c c"] {
            assert_eq!(with_lengths.encode(text, 8).unwrap(), plain.encode(text, 8).unwrap(), "{text}");
        }
    }

    #[test]
    fn the_pad_token_of_a_folder_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| std::fs::write(folder.path().join(file), text).unwrap();
        let error = || ClipTokenizer::open(folder.path()).unwrap_err().to_string();
        assert!(error().ends_with("has neither tokenizer.json nor vocab.json and merges.txt"), "{}", error());
        let (vocab, merges) = published();
        write("vocab.json", &vocab);
        assert!(error().contains("cannot read") && error().contains("merges.txt"), "{}", error());
        write("merges.txt", merges);
        let encode = || ClipTokenizer::open(folder.path()).unwrap().encode("c", 4).unwrap();
        assert_eq!(encode(), [9, 7, 10, 10]);
        write("tokenizer_config.json", r#"{"pad_token": {"content": "!"}}"#);
        assert_eq!(encode(), [9, 7, 10, 0]);
        write("tokenizer.json", &ClipTokenizer::open(folder.path()).unwrap().to_json().unwrap());
        assert_eq!(encode(), [9, 7, 10, 0]);
        write("tokenizer_config.json", r#"{"pad_token": "?"}"#);
        assert!(error().ends_with("it has no token ?"), "{}", error());
        write("vocab.json", "{}");
        std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
        assert!(error().ends_with("vocab.json has no token <|startoftext|>"), "{}", error());
    }
}
