//! Tokenizers from small files of each kind.

use std::{fs, path::Path};

use serde_json::{Value, json};

use super::*;

/// The letters of GPT-2's bytes that the tests use, each a token, and one merge.
fn vocab(more: &[&str]) -> String {
    let letters = ["a", "b", "c", "\u{120}", "ab", "\u{120}ab", "1", "2", "12"];
    let tokens = letters.iter().chain(more).enumerate().map(|(id, token)| ((*token).to_owned(), json!(id)));
    Value::Object(tokens.collect()).to_string()
}

const MERGES: &str = "#version: 0.2\na b\n\u{120} ab\n1 2\n";

fn open(folder: &Path, rules: Rules) -> LanguageTokenizer {
    LanguageTokenizer::open(folder, rules).unwrap_or_else(|e| panic!("{e}"))
}

fn error(folder: &Path) -> String {
    LanguageTokenizer::open(folder, Rules::Qwen2).unwrap_err().to_string()
}

#[test]
fn rules_of_a_vocabulary_come_from_the_class_or_from_the_caller() {
    let folder = tempfile::tempdir().unwrap();
    let write = |file: &str, text: &str| fs::write(folder.path().join(file), text).unwrap();
    assert!(
        error(folder.path())
            .ends_with("it has no tokenizer.json, no vocab.json with merges.txt, and no tokenizer.model")
    );
    write("vocab.json", &vocab(&["</s>"]));
    assert!(error(folder.path()).contains("cannot read merges.txt: "), "{}", error(folder.path()));
    write("merges.txt", MERGES);
    // Qwen2 takes each digit for a word, GPT-2 a number.
    assert_eq!(open(folder.path(), Rules::Qwen2).encode("ab ab12").unwrap(), [4, 5, 6, 7]);
    assert_eq!(open(folder.path(), Rules::Gpt2).encode("ab ab12").unwrap(), [4, 5, 8]);
    write(
        "tokenizer_config.json",
        r#"{"tokenizer_class": "GPT2Tokenizer", "add_bos_token": true, "bos_token": "</s>"}"#,
    );
    let opt = open(folder.path(), Rules::Qwen2);
    assert_eq!(opt.encode("ab12").unwrap(), [9, 4, 8], "OPT begins every text with a token");
    assert_eq!(opt.encode_piece("ab12").unwrap(), [4, 8]);
    write("tokenizer_config.json", r#"{"tokenizer_class": "LlamaTokenizer"}"#);
    assert!(
        error(folder.path()).contains("`tokenizer_class` is LlamaTokenizer; a vocab.json with merges.txt is read as")
    );
    write("tokenizer_config.json", "{");
    assert!(error(folder.path()).contains("tokenizer_config.json: "), "{}", error(folder.path()));
    write("tokenizer_config.json", "{}");
    write("merges.txt", "a b c\n");
    assert!(error(folder.path()).ends_with("merges.txt: line 1 is `a b c`, and a merge is two tokens"));
    write("merges.txt", "a z\n");
    assert!(error(folder.path()).contains("Token `z` out of vocabulary"), "{}", error(folder.path()));
}

#[test]
fn added_tokens_have_the_ids_by_which_the_model_knows_them() {
    let folder = tempfile::tempdir().unwrap();
    let write = |file: &str, text: &str| fs::write(folder.path().join(file), text).unwrap();
    write("vocab.json", &vocab(&[]));
    write("merges.txt", MERGES);
    write("added_tokens.json", r#"{"<img>": 20, "</img>": 30}"#);
    let config = r#"{"added_tokens_decoder": {"20": {"content": "<img>", "special": false}}}"#;
    write("tokenizer_config.json", config);
    let tokenizer = open(folder.path(), Rules::Qwen2);
    assert_eq!(tokenizer.encode("ab<img>ab</img>c").unwrap(), [4, 20, 4, 30, 2]);
    assert_eq!(tokenizer.decode(&[4, 20, 4, 30, 2, 25, 99]).unwrap(), "ab<img>abc");
    assert_eq!((tokenizer.vocab_size(), tokenizer.id("</img>").unwrap()), (31, 30));
    assert!(tokenizer.id("<box>").unwrap_err().to_string().ends_with("it has no token <box>"));
    // The same tokens beside a tokenizer.json that lacks them, where ids follow each other.
    let json = tokenizer.tokenizer.to_string(false).unwrap();
    for file in ["vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json"] {
        fs::remove_file(folder.path().join(file)).unwrap();
    }
    write("tokenizer.json", &json);
    assert_eq!(open(folder.path(), Rules::Qwen2).encode("ab<img>c").unwrap(), [4, 20, 2]);
    write("added_tokens.json", r#"{"<img>": 21}"#);
    assert!(error(folder.path()).ends_with("the added token <img> has the id 21, and in the vocabulary 20"));
    write("added_tokens.json", r#"{"<img>": "x"}"#);
    assert!(error(folder.path()).ends_with("added_tokens.json: `<img>` has no id"));
    write("tokenizer_config.json", config);
    write("added_tokens.json", r#"{"<img>": 21}"#);
    assert!(
        error(folder.path())
            .contains("added_tokens.json says that <img> is 21, and tokenizer_config.json that it is 20")
    );
}

/// Writes a field of bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, bytes.len() as u8], bytes].concat()
}

/// Writes a model of sentencepiece with these pieces: text, score and kind.
fn model(kind: u8, adds_space: u8, pieces: &[(&str, f32, u8)]) -> Vec<u8> {
    let piece = |(text, score, kind): &(&str, f32, u8)| {
        let body = [field(1, text.as_bytes()), [&[2 << 3 | 5], &score.to_le_bytes()[..], &[3 << 3, *kind]].concat()];
        field(1, &body.concat())
    };
    let trainer = [&[3 << 3, kind][..], &[0x98, 2, 1]].concat();
    let normalizer = [3 << 3, adds_space, 4 << 3, 0];
    [pieces.iter().map(piece).collect::<Vec<_>>().concat(), field(2, &trainer), field(3, &normalizer)].concat()
}

const PIECES: [(&str, f32, u8); 12] = [
    ("<unk>", 0., 2),
    ("<s>", 0., 3),
    ("</s>", 0., 3),
    ("<0x41>", 0., 6),
    ("\u{2581}a", -1., 1),
    ("ab", -2., 1),
    ("abc", -3., 1),
    ("\u{2581}", -4., 1),
    ("a", -5., 1),
    ("b", -6., 1),
    ("c", -7., 1),
    ("[UNUSED]", 0., 4),
];

#[test]
fn sentencepiece_merges_by_score_and_falls_back_to_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let write = |file: &str, bytes: &[u8]| fs::write(folder.path().join(file), bytes).unwrap();
    write("tokenizer.model", &model(2, 0, &PIECES));
    let tokenizer = open(folder.path(), Rules::Qwen2);
    // The piece of the higher score comes first: `▁a` before `ab`.
    assert_eq!(tokenizer.encode("abc abcA").unwrap(), [1, 6, 4, 9, 10, 3]);
    assert_eq!(tokenizer.decode(&[1, 6, 4, 9, 10, 3, 2]).unwrap(), "abc abcA");
    assert_eq!(tokenizer.encode_piece("<s>a").unwrap(), [1, 8]);
    assert_eq!(tokenizer.decode(&[11, 4]).unwrap(), "[UNUSED] a", "a user's token stays in the text");
    write("tokenizer.model", &model(2, 1, &PIECES));
    let tokenizer = open(folder.path(), Rules::Qwen2);
    assert_eq!(tokenizer.encode("a").unwrap(), [1, 4]);
    assert_eq!(tokenizer.decode(&[1, 4]).unwrap(), "a");
    // An added token takes the place that the vocabulary kept free.
    write("added_tokens.json", br#"{"<|im_end|>": 11}"#);
    let tokenizer = open(folder.path(), Rules::Qwen2);
    assert_eq!(tokenizer.encode_piece("<|im_end|>").unwrap(), [11]);
    assert_eq!((tokenizer.vocab_size(), tokenizer.decode(&[4, 11]).unwrap()), (12, "a".to_owned()));
}

#[test]
fn file_that_is_no_byte_pair_model_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let told = |bytes: &[u8]| {
        fs::write(folder.path().join("tokenizer.model"), bytes).unwrap();
        error(folder.path())
    };
    assert!(told(&model(1, 0, &PIECES)).contains("tokenizer.model is of the kind unigram, and bpe is read"));
    assert!(told(b"").contains("tokenizer.model has no pieces"));
    assert!(told(b"version https://git-lfs").contains("tokenizer.model"));
    let whole = model(2, 0, &PIECES);
    assert!(told(&whole[..whole.len() - 1]).ends_with("is cut short, or no model of sentencepiece"));
}
