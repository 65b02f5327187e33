//! The common functions of the cases of vision-language models.

use super::Case;
use serde_json::{Value, json};
use std::{collections::BTreeMap, convert::Infallible, fs::File, io::Write};
use tch::Tensor;
use vlmdiff::models::{
    checkpoint::Checkpoint,
    language::{
        decoder::Decoder,
        generate::{Answer, Finish, Generation, Heard, Prompt, generate},
        weights::{Arithmetic, Computing},
    },
};

/// The values of the set are computed in f32, some from bf16 weights, which widening does not change.
pub(super) const F32_ARITHMETIC: Arithmetic = Arithmetic { computing: Computing::F32, int8: false };

/// Returns an input of one row of ids.
pub(super) fn ids(case: &Case, name: &str) -> Vec<i64> {
    Vec::try_from(case.input(name).flatten(0, -1)).unwrap()
}

/// Returns the logits [1, N, vocabulary] of embeddings [N, width].
pub(super) fn logits(decoder: &Decoder, embeddings: &Tensor) -> Tensor {
    let count = embeddings.size()[0];
    let mut cache = decoder.cache(1, count);
    let span = cache.span(&[0], &[count]).unwrap();
    decoder.logits(&decoder.forward(&embeddings.unsqueeze(0), &span, &mut cache))
}

/// Compares the likeliest tokens after embeddings [N, width], and the logits of the first of them with those of the
/// whole prompt [1, N, vocabulary].
pub(super) fn greedy(case: &Case, decoder: &Decoder, embeddings: &Tensor, whole: &Tensor) {
    let want = Vec::<i64>::try_from(case.tensors("expected.safetensors").get("greedy_ids")).unwrap();
    let options = Generation {
        max_new_tokens: want.len(),
        stop: vec![],
        rows: 2,
        places: embeddings.size()[0] + want.len() as i64,
        sampling: None,
        repetition_penalty: 1.,
        prefix: None,
    };
    let prompt = Prompt { key: String::new(), embeddings: embeddings.shallow_clone() };
    let mut answers: Vec<Answer> = vec![];
    generate::<Infallible>(decoder, &options, [Ok(prompt)], |heard| {
        match heard {
            Heard::Answer(answer) => answers.push(answer),
            Heard::TooLong(too_long) => panic!("{too_long}"),
            Heard::Step(_) => {}
        }
        Ok(())
    })
    .unwrap_or_else(|never| match never {});
    let [answer] = &answers[..] else { panic!("one prompt has {} answers", answers.len()) };
    case.equal("greedy_ids", &answer.tokens, &want);
    case.equal("finish", &answer.finish, &Finish::Length);
    case.close_to("first logits", &answer.first_logits, &whole.get(0).get(-1));
}

/// A file with the names, shapes and types that are listed for a published one, without its content: it takes no memory
/// and no room on the disk, and shows that a network finds every tensor.
pub(super) struct Published {
    pub(super) file: Checkpoint,
    /// The elements of all tensors.
    pub(super) elements: u64,
    /// Holds the file until the checkpoint is dropped.
    _folder: tempfile::TempDir,
}

impl Published {
    pub(super) fn open(case: &Case, list: &str) -> Self {
        let listed: BTreeMap<String, (Vec<i64>, String)> = case.json(list);
        let mut header = serde_json::Map::new();
        let (mut end, mut elements) = (0, 0);
        for (name, (shape, kind)) in &listed {
            let (dtype, width) = if kind == "bfloat16" { ("BF16", 2) } else { ("F32", 4) };
            let (start, count) = (end, shape.iter().product::<i64>() as u64);
            end += width * count;
            elements += count;
            header.insert(name.clone(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] }));
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let mut file = File::create(&path).unwrap();
        file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
        file.write_all(&header).unwrap();
        file.set_len(8 + header.len() as u64 + end).unwrap();
        Self { file: Checkpoint::open(path).unwrap(), elements, _folder: folder }
    }
}
