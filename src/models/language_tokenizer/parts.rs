//! A `tokenizer.json` that is put together from other files.

use serde_json::{Map, Value, json};

use super::added::Added;

/// The parts of a `tokenizer.json`.
pub(super) struct Parts {
    pub(super) normalizer: Value,
    pub(super) pre_tokenizer: Value,
    pub(super) post_processor: Value,
    pub(super) decoder: Value,
    pub(super) model: Value,
}

impl Parts {
    /// Returns the JSON of the file. `added` are tokens that are recognized in a text.
    pub(super) fn json(self, added: &[Added]) -> Value {
        json!({
            "version": "1.0",
            "added_tokens": added.iter().map(Added::json).collect::<Vec<_>>(),
            "normalizer": self.normalizer,
            "pre_tokenizer": self.pre_tokenizer,
            "post_processor": self.post_processor,
            "decoder": self.decoder,
            "model": self.model,
        })
    }
}

/// Returns the processor that puts a token before every text.
pub(super) fn begin_with(token: &str, id: u32) -> Value {
    let special = |id: &str| json!({ "SpecialToken": { "id": id, "type_id": 0 } });
    let text = |id: &str| json!({ "Sequence": { "id": id, "type_id": 0 } });
    let mut tokens = Map::new();
    tokens.insert(token.to_owned(), json!({ "id": token, "ids": [id], "tokens": [token] }));
    json!({
        "type": "TemplateProcessing",
        "single": [special(token), text("A")],
        "pair": [special(token), text("A"), special(token), text("B")],
        "special_tokens": tokens,
    })
}
