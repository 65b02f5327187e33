//! BLIP-2 against transformers, from pictures to tokens.

use super::{
    Case,
    language::{F32_ARITHMETIC, Published},
};
use serde_json::{Value, json};
use tch::{Device, Tensor};
use vlmdiff::models::{
    blip2::{Blip2, Blip2Config, Language, memory},
    language::{beam::BeamSearch, weights::WeightBytes},
    nn::observe,
};

/// Compares `models/blip2_*`.
pub(super) fn compare(case: &Case) {
    let _no_grad = tch::no_grad_guard();
    let model = Blip2::open(case.path(""), F32_ARITHMETIC, Device::Cpu).unwrap_or_else(|e| panic!("{e}"));
    let image_token = case.json::<Value>("meta.json")["image_token_index"].as_i64().unwrap();
    let (visual, maps) = observe(|| model.visual_tokens(&case.input("pixel_values")));
    case.close("vision.last_hidden_state", &maps["vision"], 1.);
    case.close("qformer.last_hidden_state", &maps["qformer"], 1.);
    case.close("language_projection", &visual, 1.);
    let ids = case.input("input_ids"); // [B, N]
    let prompt = |row: i64| {
        let ids: Vec<i64> = Vec::try_from(ids.get(row)).unwrap();
        let text: Vec<i64> = ids.into_iter().filter(|id| *id != image_token).collect();
        model.prompt(&visual.get(row), &text)
    };
    let prompts: Vec<Tensor> = (0..ids.size()[0]).map(prompt).collect();
    let embeddings = Tensor::stack(&prompts, 0);
    case.close("inputs_embeds", &embeddings, 1.);
    let decoder_ids = case.input("decoder_input_ids");
    match model.language() {
        Language::Opt(opt) => {
            let (rows, width, _) = embeddings.size3().unwrap();
            let mut cache = opt.cache(rows as usize, width);
            let span = cache.span(&[0, 1], &[width, width]).unwrap();
            let logits = opt.forward(&embeddings, &span, &mut cache);
            case.close("logits", &logits, 1.);
            case.close("direct_lm_logits", &logits, 1.);
        }
        Language::T5(t5) => {
            let states = t5.encode(&embeddings);
            case.close("t5.encoder_last_hidden_state", &states, 1.);
            case.close("logits", &t5.decode(&decoder_ids, &states), 1.);
        }
    }
    greedy(case, &model, &prompts);
}

/// Compares the likeliest tokens, with which the rows of `generate_ids` end. A search of five beams finds a text that is
/// at least as likely.
fn greedy(case: &Case, model: &Blip2, prompts: &[Tensor]) {
    let want = case.tensors("expected.safetensors").get("generate_ids"); // [B, prompt and answer]
    let count = 6;
    let search = |beams| BeamSearch {
        beams,
        max_new_tokens: count,
        min_new_tokens: 0,
        stop: vec![],
        length_penalty: 1.,
        repetition_penalty: 1.,
    };
    for (row, prompt) in prompts.iter().enumerate() {
        let answer = model.answer(prompt, &search(1)).unwrap();
        let row_ids: Vec<i64> = Vec::try_from(want.get(row as i64)).unwrap();
        case.equal("generate_ids", &answer.tokens, &row_ids[row_ids.len() - count..].to_vec());
        let likeliest = model.answer(prompt, &search(5)).unwrap();
        case.equal("five beams are as likely", &(likeliest.score >= answer.score - 1e-6), &true);
    }
}

/// Loads networks of the published sizes, and compares the memory that they announce.
pub(super) fn published_shapes(case: &Case) {
    let opt = json!({
        "model_type": "opt", "vocab_size": 50304, "hidden_size": 2560, "ffn_dim": 10240, "num_hidden_layers": 32,
        "num_attention_heads": 32, "word_embed_proj_dim": 2560,
    });
    let t5 = json!({
        "model_type": "t5", "d_model": 2048, "d_ff": 5120, "num_heads": 32, "num_layers": 24,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": false,
    });
    // Copies of T5's table are not used.
    for (name, text, copies) in [("blip2_opt_2.7b", opt, 0), ("blip2_flan_t5_xl", t5, 2)] {
        let list = format!("{name}.json.gz");
        if !case.has(&list) {
            continue;
        }
        let config = Blip2Config::from_json(&json!({ "text_config": text }).to_string()).unwrap();
        let Published { file, elements, .. } = &Published::open(case, &list);
        let table = file.shape("language_model.shared.weight").map_or(0, |shape| shape.iter().product::<i64>());
        let want = WeightBytes { in_file: 4 * (elements - copies * table as u64), held: 0 };
        case.equal(&format!("{name}: memory"), &memory(file.clone(), &config, F32_ARITHMETIC).unwrap(), &want);
        let model = Blip2::load(file.clone(), &config, F32_ARITHMETIC, Device::Cpu);
        case.equal(&format!("{name}: loads"), &model.err().map(|error| error.to_string()), &None);
    }
}
