//! CLIP's byte pairs.

use super::Case;
use serde::Deserialize;
use std::{fs::File, io::Read};
use vlmdiff::models::tokenizer::ClipTokenizer;

#[derive(Deserialize)]
struct Expected {
    rows: Vec<Row>,
    openclip_pad_0: Vec<Padded>,
    bos: i64,
    eos: i64,
}

#[derive(Deserialize)]
struct Row {
    text: String,
    ids77_fast: Vec<i64>,
    ids77_slow: Vec<i64>,
    ids_full_fast: Vec<i64>,
    /// True if Python's slow tokenizer, after ftfy, agrees with the fast one.
    same: bool,
}

#[derive(Deserialize)]
struct Padded {
    text: String,
    ids77_sd_pad_0: Vec<i64>,
}

fn text(case: &Case, file: &str) -> String {
    let mut text = String::new();
    flate2::read::GzDecoder::new(File::open(case.path(file)).unwrap()).read_to_string(&mut text).unwrap();
    text
}

pub(super) fn compare(case: &Case) {
    let expected: Expected = case.json("expected.json");
    let tokenizer = ClipTokenizer::from_vocab(&text(case, "vocab.json.gz"), &text(case, "merges.txt.gz")).unwrap();
    case.equal("end", &i64::from(tokenizer.end()), &expected.eos);
    for Row { text, ids77_fast, ids77_slow, ids_full_fast, same } in &expected.rows {
        let ids = tokenizer.encode(text, ids77_fast.len()).unwrap();
        case.equal(text, &ids, ids77_fast);
        if *same {
            case.equal(text, &ids, ids77_slow);
        }
        case.equal(text, &tokenizer.encode(text, ids_full_fast.len()).unwrap(), ids_full_fast);
        case.equal(text, &ids[0], &expected.bos);
    }
    let zero = tokenizer.with_pad("!").unwrap();
    for Padded { text, ids77_sd_pad_0 } in &expected.openclip_pad_0 {
        case.equal(text, &zero.encode(text, ids77_sd_pad_0.len()).unwrap(), ids77_sd_pad_0);
    }
}
