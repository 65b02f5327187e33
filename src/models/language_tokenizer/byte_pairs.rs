//! `vocab.json` and `merges.txt`: byte pairs of GPT-2's kind.

use serde_json::{Map, Value, json};

use super::{
    super::tokenizer::TokenizerError,
    added::{self, Added, Config},
    parts::{Parts, begin_with},
};

/// The rules of a byte-pair tokenizer that its vocabulary and merges do not tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// Qwen2's: texts in composed Unicode, digits alone, no token before a text.
    Qwen2,
    /// GPT-2's, which OPT has too: a configuration says if a token begins every text.
    Gpt2,
}

/// Qwen2's pattern of a word.
const QWEN2_WORDS: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl Rules {
    /// Returns the rules of a class of tokenizers, or those that the caller expects if there is no configuration.
    fn of(config: &Config, expected: Self) -> Result<Self, TokenizerError> {
        match config.class() {
            None | Some("PreTrainedTokenizer") => Ok(expected),
            Some("Qwen2Tokenizer") => Ok(Self::Qwen2),
            Some("GPT2Tokenizer") => Ok(Self::Gpt2),
            Some(other) => Err(TokenizerError(format!(
                "tokenizer_config.json: `tokenizer_class` is {other}; a vocab.json with merges.txt is read as \
                 Qwen2Tokenizer or GPT2Tokenizer, and any other needs a tokenizer.json"
            ))),
        }
    }

    fn normalizer(self) -> Value {
        match self {
            Self::Qwen2 => json!({ "type": "NFC" }),
            Self::Gpt2 => Value::Null,
        }
    }

    fn pre_tokenizer(self) -> Value {
        let bytes = |has_words| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": has_words });
        match self {
            Self::Qwen2 => json!({ "type": "Sequence", "pretokenizers": [
                { "type": "Split", "pattern": { "Regex": QWEN2_WORDS }, "behavior": "Isolated", "invert": false },
                bytes(false),
            ] }),
            Self::Gpt2 => bytes(true),
        }
    }
}

/// Returns the `tokenizer.json` of a vocabulary and its merges.
pub(super) fn json(
    vocab: &str,
    merges: &str,
    expected: Rules,
    config: &Config,
    added: &[Added],
) -> Result<Value, TokenizerError> {
    let rules = Rules::of(config, expected)?;
    let mut vocab: Map<String, Value> =
        serde_json::from_str(vocab).map_err(|e| TokenizerError(format!("vocab.json: {e}; it should be an object")))?;
    added::into_vocab(&mut vocab, added);
    let post_processor = match config.begin(false, "<|endoftext|>") {
        Some(begin) => {
            let id = vocab.get(&begin).and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
            let id =
                id.ok_or_else(|| TokenizerError(format!("vocab.json has no token {begin}, which begins a text")))?;
            begin_with(&begin, id)
        }
        None => Value::Null,
    };
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "", "end_of_word_suffix": "",
        "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": pairs(merges)?,
    });
    let parts = Parts {
        normalizer: rules.normalizer(),
        pre_tokenizer: rules.pre_tokenizer(),
        post_processor,
        decoder: json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true }),
        model,
    };
    Ok(parts.json(added))
}

/// Returns the merges of a `merges.txt`: two tokens a line, after a line with the version.
fn pairs(merges: &str) -> Result<Vec<[&str; 2]>, TokenizerError> {
    let lines = merges.lines().zip(1..).filter(|(line, _)| !line.starts_with("#version") && !line.is_empty());
    lines
        .map(|(line, number)| match line.split_once(' ') {
            Some((left, right)) if !right.contains(' ') => Ok([left, right]),
            _ => Err(TokenizerError(format!("merges.txt: line {number} is `{line}`, and a merge is two tokens"))),
        })
        .collect()
}
