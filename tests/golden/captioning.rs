//! The inputs of a language model: token ids, tiles of a photograph, and prompts.

use std::{fs, path::Path};

use serde::Deserialize;
use tch::Tensor;
use vlmdiff::{
    captioners::prompts::Conversation,
    models::language_tokenizer::{LanguageTokenizer, Rules},
    vision::tiling::Tiling,
};

use super::{
    Case,
    images::{IMAGENET, NORMALISED, of_rgb, pixel_values, rgb},
};

#[derive(Deserialize)]
struct Texts {
    rows: Vec<Text>,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    ids_slow: Vec<u32>,
    ids_fast: Vec<u32>,
    /// The decoded text, if it is the same for both of Qwen2's tokenizers.
    decoded: Option<String>,
    decoded_slow_skip_special: Option<String>,
    decoded_fast_skip_special: Option<String>,
}

impl Text {
    fn compare(&self, case: &Case, files: &str, tokenizer: &LanguageTokenizer, is_fast: bool) {
        let name = format!("{files}: {:?}", self.text);
        let ids = if is_fast { &self.ids_fast } else { &self.ids_slow };
        let decoded = if is_fast { &self.decoded_fast_skip_special } else { &self.decoded_slow_skip_special };
        case.equal(&name, &tokenizer.encode(&self.text).unwrap(), ids);
        let decoded = decoded.as_ref().or(self.decoded.as_ref()).unwrap();
        case.equal(&name, &tokenizer.decode(ids).unwrap(), decoded);
    }
}

/// Opens the tokenizer of a folder with only some of the files of the case.
fn open(case: &Case, files: &[&str], more: &[(&str, String)]) -> LanguageTokenizer {
    let folder = tempfile::tempdir().unwrap();
    let write = |file: &str, bytes: &[u8]| fs::write(folder.path().join(Path::new(file)), bytes).unwrap();
    files.iter().for_each(|file| write(file, &fs::read(case.path(file)).unwrap()));
    more.iter().for_each(|(file, text)| write(file, text.as_bytes()));
    LanguageTokenizer::open(folder.path(), Rules::Qwen2).unwrap_or_else(|e| panic!("{e}"))
}

pub(super) fn qwen2_tokenizer(case: &Case) {
    let Texts { rows } = case.json("expected.json");
    let byte_pairs = ["vocab.json", "merges.txt", "added_tokens.json"];
    let tokenizer = open(case, &byte_pairs, &[]);
    rows.iter().for_each(|row| row.compare(case, "vocab.json", &tokenizer, false));
    if case.has("tokenizer.json") {
        let tokenizer = open(case, &["tokenizer.json"], &[]);
        rows.iter().for_each(|row| row.compare(case, "tokenizer.json", &tokenizer, true));
    }
}

/// Compares the tokenizer that is read from sentencepiece's own file. The tokens that were added to it stand in the
/// converted `tokenizer.json` alone.
pub(super) fn internlm2_tokenizer(case: &Case) {
    let Texts { rows } = case.json("expected.json");
    let converted: serde_json::Value = case.json("tokenizer.json");
    let token = |token: &serde_json::Value| (token["content"].as_str().unwrap().to_owned(), token["id"].clone());
    let added: serde_json::Value = converted["added_tokens"].as_array().unwrap().iter().map(token).collect();
    let tokenizer = open(case, &["tokenizer.model"], &[("added_tokens.json", added.to_string())]);
    rows.iter().for_each(|row| row.compare(case, "tokenizer.model", &tokenizer, false));
    let tokenizer = open(case, &["tokenizer.json"], &[]);
    rows.iter().for_each(|row| row.compare(case, "tokenizer.json", &tokenizer, true));
}

#[derive(Deserialize)]
struct Grids {
    rows: Vec<Grid>,
}

#[derive(Deserialize)]
struct Grid {
    w: u32,
    h: u32,
    max_num: u32,
    use_thumbnail: bool,
    grid_cols: u32,
    grid_rows: u32,
    tiles: usize,
}

#[derive(Deserialize)]
struct Sizes {
    image_size: u32,
    max_num: Vec<u32>,
}

pub(super) fn internvl_tiling(case: &Case) {
    let Grids { rows } = case.json("grids.json");
    for Grid { w, h, max_num, use_thumbnail, grid_cols, grid_rows, tiles } in rows {
        let tiling = Tiling { max: max_num, has_thumbnail: use_thumbnail, ..Tiling::default() };
        case.equal(&format!("{w}x{h}, {max_num}"), &tiling.grid(w, h), &(grid_cols, grid_rows));
        case.equal(&format!("{w}x{h}, {max_num}"), &tiling.count(w, h), &tiles);
    }
    let Sizes { image_size, max_num } = case.json("meta.json");
    for (at, max) in max_num.into_iter().enumerate() {
        let image = rgb(&case.input(&format!("img{at}")));
        let tiles = Tiling { size: image_size, max, ..Tiling::default() }.tiles(&image);
        case.exact(&format!("img{at}.n_tiles"), &Tensor::from(tiles.len() as i64));
        case.exact(&format!("img{at}.tiles_u8"), &Tensor::stack(&tiles.iter().map(of_rgb).collect::<Vec<_>>(), 0));
        for (name, tile) in [("0", tiles.first()), ("-1", tiles.last())] {
            let values = pixel_values(tile.unwrap(), IMAGENET);
            let bound = |want: &Tensor| super::tolerance::share(want, NORMALISED);
            case.expect(&format!("img{at}.pixel_values[{name}]"), &values, bound);
        }
    }
}

#[derive(Deserialize)]
struct Prompts {
    rows: Vec<Asked>,
}

#[derive(Deserialize)]
struct Asked {
    template: String,
    question: String,
    history: Vec<(String, String)>,
    prompt: String,
    eos: String,
}

pub(super) fn internvl_prompts(case: &Case) {
    let Prompts { rows } = case.json("expected.json");
    for Asked { template, question, history, prompt, eos } in rows {
        let conversation = Conversation::of_template(&template).unwrap();
        let earlier: Vec<(&str, &str)> = history.iter().map(|(question, answer)| (&**question, &**answer)).collect();
        case.equal(&template, &conversation.prompt(&question, &earlier), &prompt);
        case.equal(&template, &conversation.stop().unwrap().to_owned(), &eos);
    }
}
