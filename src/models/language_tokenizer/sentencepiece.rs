//! `tokenizer.model`: a byte-pair model of sentencepiece, which is a message of protocol buffers.
//!
//! sentencepiece keeps no merges. A text is merged by the scores of the pieces that result, so that every split of a piece
//! into two pieces is a merge, in the order of the scores.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Map, Value as Json, json};

use super::{
    super::tokenizer::TokenizerError,
    added::{self, Added, Config},
    parts::{Parts, begin_with},
    protobuf::{Broken, Fields, Value},
};

/// The numbers of the kinds of a piece, and of the kinds of a model, in `sentencepiece_model.proto`.
const CONTROL: u64 = 3;
const UNKNOWN: u64 = 2;
const USER_DEFINED: u64 = 4;
const MODEL_KINDS: [&str; 5] = ["", "unigram", "bpe", "word", "char"];
const BPE: u64 = 2;

/// A sign for a space, which pieces contain in its place.
const SPACE: &str = "\u{2581}";

struct Piece {
    text: String,
    score: f32,
    kind: u64,
}

/// A model, with the defaults of the message.
struct Model {
    pieces: Vec<Piece>,
    kind: u64,
    falls_back_to_bytes: bool,
    adds_space: bool,
    removes_spaces: bool,
    /// Sentencepiece's table of characters that are replaced.
    replaced: Vec<u8>,
    begin: String,
}

fn broken(_: Broken) -> TokenizerError {
    TokenizerError("tokenizer.model is cut short, or no model of sentencepiece".into())
}

impl Model {
    fn parse(bytes: &[u8]) -> Result<Self, TokenizerError> {
        let mut model = Self {
            pieces: Vec::new(),
            kind: 1,
            falls_back_to_bytes: false,
            adds_space: true,
            removes_spaces: true,
            replaced: Vec::new(),
            begin: "<s>".into(),
        };
        for field in Fields(bytes) {
            match field.map_err(broken)? {
                (1, Value::Bytes(piece)) => model.pieces.push(Self::piece(piece)?),
                (2, Value::Bytes(trainer)) => model.trainer(trainer)?,
                (3, Value::Bytes(normalizer)) => model.normalizer(normalizer)?,
                _ => {}
            }
        }
        if model.pieces.is_empty() {
            return Err(TokenizerError("tokenizer.model has no pieces; it is no model of sentencepiece".into()));
        }
        if model.kind != BPE {
            let kind = usize::try_from(model.kind).ok().and_then(|kind| MODEL_KINDS.get(kind));
            let kind = kind.copied().unwrap_or("unknown");
            let message =
                format!("tokenizer.model is of the kind {kind}, and bpe is read; a tokenizer.json is read of any kind");
            return Err(TokenizerError(message));
        }
        Ok(model)
    }

    fn piece(bytes: &[u8]) -> Result<Piece, TokenizerError> {
        let mut piece = Piece { text: String::new(), score: 0., kind: 1 };
        for field in Fields(bytes) {
            match field.map_err(broken)? {
                (1, Value::Bytes(text)) => piece.text = utf8(text)?,
                (2, Value::Float(score)) => piece.score = score,
                (3, Value::Integer(kind)) => piece.kind = kind,
                _ => {}
            }
        }
        Ok(piece)
    }

    fn trainer(&mut self, bytes: &[u8]) -> Result<(), TokenizerError> {
        for field in Fields(bytes) {
            match field.map_err(broken)? {
                (3, Value::Integer(kind)) => self.kind = kind,
                (35, Value::Integer(falls_back)) => self.falls_back_to_bytes = falls_back != 0,
                (46, Value::Bytes(begin)) => self.begin = utf8(begin)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn normalizer(&mut self, bytes: &[u8]) -> Result<(), TokenizerError> {
        for field in Fields(bytes) {
            match field.map_err(broken)? {
                (2, Value::Bytes(table)) => self.replaced = table.to_vec(),
                (3, Value::Integer(adds)) => self.adds_space = adds != 0,
                (4, Value::Integer(removes)) => self.removes_spaces = removes != 0,
                _ => {}
            }
        }
        Ok(())
    }

    /// Returns the tokens that are recognized as a whole: those of the model, and those that were added.
    fn added(&self, added: &[Added]) -> Vec<Added> {
        let is_given =
            |id: usize, text: &str| added.iter().any(|token| token.id as usize == id || token.content == text);
        let own = self.pieces.iter().enumerate().filter(|(id, piece)| !is_given(*id, &piece.text));
        let own = own.filter_map(|(id, piece)| match piece.kind {
            CONTROL | UNKNOWN => Some(Added::special(id as u32, &piece.text)),
            USER_DEFINED => Some(Added::plain(id as u32, &piece.text)),
            _ => None,
        });
        let mut all: Vec<Added> = own.chain(added.iter().cloned()).collect();
        all.sort_by_key(|token| token.id);
        all
    }

    /// Returns every split of a piece into two pieces: by falling score of the piece, then by falling lengths of its
    /// parts, as transformers converts such models.
    fn merges<'a>(&'a self, vocab: &Map<String, Json>) -> Vec<[&'a str; 2]> {
        let id = |part: &str| vocab.get(part).and_then(Json::as_u64);
        let mut merges = Vec::new();
        for piece in self.pieces.iter().filter(|piece| vocab.contains_key(&piece.text)) {
            let mut splits: Vec<(u64, u64, &str, &str)> = Vec::new();
            for (at, _) in piece.text.char_indices().skip(1) {
                let (left, right) = piece.text.split_at(at);
                if let (Some(left_id), Some(right_id)) = (id(left), id(right)) {
                    splits.push((left_id, right_id, left, right));
                }
            }
            splits.sort_unstable();
            let merge = |(_, _, left, right)| (piece.score, length(left), length(right), [left, right]);
            merges.extend(splits.into_iter().map(merge));
        }
        merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)).then(b.2.cmp(&a.2)));
        merges.into_iter().map(|(.., pair)| pair).collect()
    }

    fn normalizer_json(&self) -> Json {
        let mut steps = Vec::new();
        if !self.replaced.is_empty() {
            let table = BASE64_STANDARD.encode(&self.replaced);
            steps.push(json!({ "type": "Precompiled", "precompiled_charsmap": table }));
        }
        if self.removes_spaces {
            steps.push(json!({ "type": "Strip", "strip_left": true, "strip_right": true }));
            steps.push(json!({ "type": "Replace", "pattern": { "Regex": " {2,}" }, "content": " " }));
        }
        if self.adds_space {
            steps.push(json!({ "type": "Prepend", "prepend": SPACE }));
        }
        steps.push(json!({ "type": "Replace", "pattern": { "String": " " }, "content": SPACE }));
        json!({ "type": "Sequence", "normalizers": steps })
    }

    fn decoder_json(&self) -> Json {
        let mut steps = vec![
            json!({ "type": "Replace", "pattern": { "String": SPACE }, "content": " " }),
            json!({ "type": "ByteFallback" }),
            json!({ "type": "Fuse" }),
        ];
        if self.adds_space {
            steps.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
        }
        json!({ "type": "Sequence", "decoders": steps })
    }
}

fn utf8(bytes: &[u8]) -> Result<String, TokenizerError> {
    String::from_utf8(bytes.to_vec())
        .map_err(|_| TokenizerError("tokenizer.model has a piece that is not UTF-8".into()))
}

fn length(text: &str) -> usize {
    text.chars().count()
}

/// Returns the `tokenizer.json` of a model of sentencepiece.
pub(super) fn json(bytes: &[u8], config: &Config, added: &[Added]) -> Result<Json, TokenizerError> {
    let model = Model::parse(bytes)?;
    let mut vocab = Map::new();
    for (id, piece) in model.pieces.iter().enumerate() {
        vocab.insert(piece.text.clone(), json!(id));
    }
    added::into_vocab(&mut vocab, added);
    let begin = config.begin(true, &model.begin);
    let post_processor = match begin.and_then(|begin| Some((vocab.get(&begin)?.as_u64()?, begin))) {
        Some((id, begin)) => begin_with(&begin, id as u32),
        None => Json::Null,
    };
    let unknown = model.pieces.iter().find(|piece| piece.kind == UNKNOWN).map(|piece| &piece.text);
    let merges = model.merges(&vocab);
    let pairs = json!({
        "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": model.falls_back_to_bytes,
        "vocab": vocab, "merges": merges,
    });
    let parts = Parts {
        normalizer: model.normalizer_json(),
        pre_tokenizer: Json::Null,
        post_processor,
        decoder: model.decoder_json(),
        model: pairs,
    };
    Ok(parts.json(&model.added(added)))
}
