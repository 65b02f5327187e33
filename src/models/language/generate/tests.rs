use super::super::{
    super::{
        checkpoint::{Checkpoint, to_safetensors},
        nn::quietly,
    },
    config::DecoderConfig,
    family,
    weights::{Arithmetic, Computing, Weights},
};
use super::*;
use std::{collections::BTreeMap, convert::Infallible};
use tch::Device;

const VOCABULARY: i64 = 40;

/// Returns the config of a small InternLM2, whose positions are scaled from 16 tokens on.
fn config() -> DecoderConfig {
    let text = serde_json::json!({
        "model_type": "internlm2", "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "bias": false,
        "max_position_embeddings": 16, "rope_theta": 10000, "rope_scaling": { "type": "dynamic", "factor": 2.0 },
    });
    family::parse(&text).unwrap()
}

/// Makes a decoder with random weights.
fn decoder(config: &DecoderConfig) -> Decoder {
    tch::manual_seed(1);
    let random = |name: &str, shape: &[i64]| {
        let spread = if name.contains("norm") { 0.1 } else { 1. / (shape[shape.len() - 1] as f64).sqrt() };
        let mean = if name.contains("norm") { 1. } else { 0. };
        (name.to_owned(), Tensor::randn(shape, (Kind::Float, Device::Cpu)) * spread + mean)
    };
    let (d, f) = (config.hidden_size, config.intermediate_size);
    let mut tensors = vec![
        random("model.tok_embeddings.weight", &[VOCABULARY, d]),
        random("model.norm.weight", &[d]),
        random("output.weight", &[VOCABULARY, d]),
    ];
    for layer in 0..config.layers {
        let sizes: [(&str, &[i64]); 7] = [
            ("attention_norm", &[d]),
            ("attention.wqkv", &[2 * d, d]),
            ("attention.wo", &[d, d]),
            ("ffn_norm", &[d]),
            ("feed_forward.w1", &[f, d]),
            ("feed_forward.w2", &[d, f]),
            ("feed_forward.w3", &[f, d]),
        ];
        tensors.extend(sizes.map(|(name, shape)| random(&format!("model.layers.{layer}.{name}.weight"), shape)));
    }
    let file = Checkpoint::from_safetensors(to_safetensors(tensors, Default::default()).unwrap()).unwrap();
    let arithmetic = Arithmetic { computing: Computing::F32, int8: false };
    Decoder::load(&Weights::new(&file, arithmetic, Device::Cpu), config).unwrap()
}

/// Returns nine prompts of 2 to 18 tokens, some of which are scaled from the start.
fn prompts() -> Vec<Vec<i64>> {
    [5, 2, 18, 7, 7, 3, 12, 17, 4].iter().map(|n| (0..*n).map(|i| (i * i + 3 * n) % VOCABULARY).collect()).collect()
}

fn options(rows: usize) -> Generation {
    Generation {
        max_new_tokens: 9,
        stop: vec![],
        rows,
        places: 32,
        sampling: None,
        repetition_penalty: 1.,
        prefix: None,
    }
}

/// Returns the answers by the numbers of their prompts.
fn answers(model: &Decoder, options: &Generation, prompts: &[Vec<i64>]) -> BTreeMap<usize, Answer> {
    let prompt = |ids: &Vec<i64>| -> Result<Prompt, Infallible> {
        Ok(Prompt { key: format!("{ids:?}"), embeddings: model.embed(&Tensor::from_slice(ids)) })
    };
    let mut answers = BTreeMap::new();
    generate(model, options, prompts.iter().map(prompt), |heard| {
        match heard {
            Heard::Answer(answer) => assert!(answers.insert(answer.prompt, answer).is_none()),
            Heard::TooLong(too_long) => panic!("{too_long}"),
            Heard::Step(_) => {}
        }
        Ok(())
    })
    .unwrap_or_else(|never| match never {});
    answers
}

fn tokens(answers: &BTreeMap<usize, Answer>) -> Vec<&[i64]> {
    answers.values().map(|answer| answer.tokens.as_slice()).collect()
}

/// Returns the likeliest tokens, each computed from the whole text without a cache that holds anything.
fn without_cache(model: &Decoder, prompt: &[i64], count: usize) -> Vec<i64> {
    let mut ids = prompt.to_vec();
    for _ in 0..count {
        let mut cache = model.cache(1, 64);
        let span = cache.span(&[0], &[ids.len() as i64]).unwrap();
        let states = model.forward(&model.embed(&Tensor::from_slice(&ids).unsqueeze(0)), &span, &mut cache);
        ids.push(model.logits(&states.get(0).get(-1)).argmax(-1, false).int64_value(&[]));
    }
    ids.split_off(prompt.len())
}

#[test]
fn greedy_tokens_do_not_depend_on_the_batch() {
    quietly(|| {
        let model = decoder(&config());
        let prompts = prompts();
        let one = answers(&model, &options(1), &prompts);
        assert_eq!(one.len(), prompts.len());
        for rows in [2, 4, 16] {
            let many = answers(&model, &options(rows), &prompts);
            assert_eq!(tokens(&many), tokens(&one), "{rows} rows");
            for (a, b) in many.values().zip(one.values()) {
                let far = (&a.first_logits - &b.first_logits).abs().max().double_value(&[]);
                assert!(far < 1e-4, "{far}");
            }
        }
        assert!(one.values().all(|answer| answer.tokens.len() == 9 && answer.finish == Finish::Length));
    });
}

/// Positions are scaled from 16 tokens on, where the keys of a longer text differ from those in the cache. Before that,
/// the cache changes nothing.
#[test]
fn cached_tokens_are_those_of_the_whole_text() {
    quietly(|| {
        let model = decoder(&config());
        let short: Vec<Vec<i64>> = prompts().into_iter().filter(|prompt| prompt.len() < 7).collect();
        let answers = answers(&model, &options(3), &short);
        for (prompt, answer) in short.iter().zip(answers.values()) {
            assert_eq!(answer.tokens, without_cache(&model, prompt, 9), "{prompt:?}");
        }
    });
}

#[test]
fn a_stop_token_ends_one_row_alone() {
    quietly(|| {
        let model = decoder(&config());
        let prompts = prompts();
        let free = answers(&model, &options(4), &prompts);
        let stop = free[&3].tokens[2];
        let stopped = answers(&model, &Generation { stop: vec![stop], ..options(4) }, &prompts);
        for (number, answer) in &stopped {
            let want: Vec<i64> = free[number].tokens.iter().copied().take_while(|token| *token != stop).collect();
            assert_eq!(answer.tokens, want, "prompt {number}");
            assert_eq!(answer.finish == Finish::Stop, want.len() < 9);
        }
    });
}

#[test]
fn the_common_prefix_is_computed_once_and_changes_nothing() {
    quietly(|| {
        let model = decoder(&config());
        let prefix = [1, 2, 3];
        let whole: Vec<Vec<i64>> = prompts().iter().map(|prompt| [&prefix[..], prompt].concat()).collect();
        let options = |prefix| Generation { prefix, ..options(3) };
        let want = answers(&model, &options(None), &whole);
        let shared = answers(&model, &options(Some(model.embed(&Tensor::from_slice(&prefix)))), &prompts());
        assert_eq!(tokens(&shared), tokens(&want));
    });
}

#[test]
fn drawn_tokens_depend_on_seed_and_key_and_not_on_the_batch() {
    quietly(|| {
        let model = decoder(&config());
        let sampled = |rows, seed| {
            let sampling = Some(Sampling { temperature: 1., top_p: 0.95, seed });
            answers(&model, &Generation { sampling, repetition_penalty: 1.1, ..options(rows) }, &prompts())
        };
        let (one, many, other) = (sampled(1, 5), sampled(4, 5), sampled(4, 6));
        assert_eq!(tokens(&one), tokens(&many));
        assert_ne!(tokens(&one), tokens(&other));
    });
}

#[test]
fn a_prompt_without_a_place_for_its_answer_is_told_and_the_others_go_on() {
    quietly(|| {
        let model = decoder(&config());
        let options = Generation { places: 18, ..options(2) };
        let mut told = vec![];
        let prompt = |ids: Vec<i64>| -> Result<Prompt, Infallible> {
            Ok(Prompt { key: String::new(), embeddings: model.embed(&Tensor::from_slice(&ids)) })
        };
        let mut lengths = BTreeMap::new();
        generate(&model, &options, prompts().into_iter().map(prompt), |heard| {
            match heard {
                Heard::Answer(answer) => _ = lengths.insert(answer.prompt, answer.tokens.len()),
                Heard::TooLong(too_long) => told.push(too_long),
                Heard::Step(_) => {}
            }
            Ok(())
        })
        .unwrap_or_else(|never| match never {});
        assert_eq!(told, [PromptTooLong { prompt: 2, tokens: 18, places: 18 }]);
        // 17 tokens leave one place: the token that is written there, and the one after it
        assert_eq!((lengths.len(), lengths[&7], lengths[&6]), (8, 2, 7));
    });
}
