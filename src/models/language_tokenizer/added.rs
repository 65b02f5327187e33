//! Tokens that were added to a published vocabulary, and the configuration beside it.

use std::{collections::BTreeMap, path::Path};

use serde_json::{Map, Value, json};
use tokenizers::{AddedToken, Tokenizer};

use super::{super::tokenizer::TokenizerError, files};

/// A token that is recognized as a whole wherever it stands in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Added {
    pub(super) id: u32,
    pub(super) content: String,
    /// True if it is left out of decoded text.
    is_special: bool,
    is_word: bool,
    strips_left: bool,
    strips_right: bool,
}

impl Added {
    /// Makes a special token.
    pub(super) fn special(id: u32, content: &str) -> Self {
        let content = content.to_owned();
        Self { id, content, is_special: true, is_word: false, strips_left: false, strips_right: false }
    }

    /// Makes a token that stays in decoded text.
    pub(super) fn plain(id: u32, content: &str) -> Self {
        Self { is_special: false, ..Self::special(id, content) }
    }

    /// Returns the token as it stands in a `tokenizer.json`.
    pub(super) fn json(&self) -> Value {
        json!({
            "id": self.id, "content": self.content, "special": self.is_special, "normalized": false,
            "single_word": self.is_word, "lstrip": self.strips_left, "rstrip": self.strips_right,
        })
    }

    fn token(&self) -> AddedToken {
        AddedToken::from(self.content.clone(), self.is_special)
            .normalized(false)
            .single_word(self.is_word)
            .lstrip(self.strips_left)
            .rstrip(self.strips_right)
    }
}

/// The configuration beside a tokenizer, of which some files may be missing.
pub(super) struct Config {
    tokenizer: Value,
    specials: Value,
}

impl Config {
    /// Returns the name of the tokenizer's class, without the ending of its fast form.
    pub(super) fn class(&self) -> Option<&str> {
        let class = self.tokenizer["tokenizer_class"].as_str()?;
        Some(class.strip_suffix("Fast").unwrap_or(class))
    }

    /// Returns the token that begins every text. `is_default` says if there is one where the configuration is silent.
    pub(super) fn begin(&self, is_default: bool, default: &str) -> Option<String> {
        let is_added = self.tokenizer["add_bos_token"].as_bool().unwrap_or(is_default);
        // The token is a plain string, or an object with the string in it.
        let token = |config: &Value| {
            let token = &config["bos_token"];
            token.as_str().or_else(|| token["content"].as_str()).map(str::to_owned)
        };
        is_added.then(|| token(&self.tokenizer).or_else(|| token(&self.specials)).unwrap_or_else(|| default.to_owned()))
    }
}

pub(super) fn config(folder: &Path) -> Result<Config, TokenizerError> {
    let read = |file| files::json(folder, file);
    Ok(Config { tokenizer: read("tokenizer_config.json")?, specials: read("special_tokens_map.json")? })
}

/// Reads the added tokens of a folder, ascending by id. `tokenizer_config.json` also says how a token is treated; those that
/// stand in `added_tokens.json` alone are special.
pub(super) fn read(folder: &Path) -> Result<Vec<Added>, TokenizerError> {
    let mut added = BTreeMap::new();
    let config = files::json(folder, "tokenizer_config.json")?;
    for (id, token) in entries(&config["added_tokens_decoder"]) {
        let token = described(id, token)?;
        added.insert(token.content.clone(), token);
    }
    for (content, id) in entries(&files::json(folder, "added_tokens.json")?) {
        let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
        let id = id.ok_or_else(|| TokenizerError(format!("added_tokens.json: `{content}` has no id")))?;
        let known = added.entry(content.clone()).or_insert_with(|| Added::special(id, content)).id;
        if known != id {
            return Err(TokenizerError(format!(
                "added_tokens.json says that {content} is {id}, and tokenizer_config.json that it is {known}"
            )));
        }
    }
    let mut added: Vec<Added> = added.into_values().collect();
    added.sort_by_key(|token| token.id);
    Ok(added)
}

/// Reads a token that `tokenizer_config.json` describes.
fn described(id: &str, token: &Value) -> Result<Added, TokenizerError> {
    let (Ok(id), Some(content)) = (id.parse(), token["content"].as_str()) else {
        let expected = "a token has a number and a `content`";
        let message = format!("tokenizer_config.json: `added_tokens_decoder` has {id}: {token}, and {expected}");
        return Err(TokenizerError(message));
    };
    let is = |flag: &str| token[flag].as_bool().unwrap_or_default();
    Ok(Added {
        id,
        content: content.to_owned(),
        is_special: is("special"),
        is_word: is("single_word"),
        strips_left: is("lstrip"),
        strips_right: is("rstrip"),
    })
}

fn entries(object: &Value) -> impl Iterator<Item = (&String, &Value)> {
    object.as_object().into_iter().flat_map(Map::iter)
}

/// Puts added tokens into a vocabulary under their ids. A token that had such an id is replaced: it was a place kept
/// free.
pub(super) fn into_vocab(vocab: &mut Map<String, Value>, added: &[Added]) {
    let by_id: BTreeMap<u32, &str> = added.iter().map(|token| (token.id, &*token.content)).collect();
    let is_kept = |content: &str, id: &Value| {
        let taken = id.as_u64().and_then(|id| u32::try_from(id).ok()).and_then(|id| by_id.get(&id));
        taken.is_none_or(|new| *new == content)
    };
    vocab.retain(|content, id| is_kept(content, id));
    for token in added {
        vocab.insert(token.content.clone(), json!(token.id));
    }
}

/// Adds tokens that a tokenizer lacks, and checks that each has the id by which the model knows it.
pub(super) fn ensure(tokenizer: &mut Tokenizer, added: &[Added]) -> Result<(), TokenizerError> {
    for token in added {
        if tokenizer.token_to_id(&token.content).is_none() {
            tokenizer.add_tokens(&[token.token()]);
        }
        let id = tokenizer.token_to_id(&token.content);
        if id != Some(token.id) {
            let content = &token.content;
            let has = id.map_or("none".into(), |id| id.to_string());
            let message = format!("the added token {content} has the id {}, and in the vocabulary {has}", token.id);
            return Err(TokenizerError(message));
        }
    }
    Ok(())
}
