//! InternVL against the authors' code and transformers, from tiles to tokens.

use super::{
    Case,
    language::{F32_ARITHMETIC, Published, greedy, ids, logits},
    tolerance::{F32, each, share},
};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use vlmdiff::models::{
    internvl::{InternVl, InternVlConfig, memory},
    language::weights::{Arithmetic, Computing, WeightBytes},
    nn::observe,
};

/// The tolerance of logits computed in bf16, as a share of the largest. Numbers are rounded to 8 bits, by at most 2⁻⁹.
/// Some 20 roundings per layer, in two layers of the tower and two of the language model, add up as independent errors:
/// 2⁻⁹ · √80 = 1.7e-2 of a typical value. The largest of some 6000 errors is four deviations, and the largest of as many
/// logits is three to four deviations of all of them.
const BF16: f64 = 1.7e-2 * 4. / 3.;

fn open(case: &Case, arithmetic: Arithmetic) -> InternVl {
    InternVl::open(case.path(""), arithmetic, Device::Cpu).unwrap_or_else(|e| panic!("{e}"))
}

/// Returns the id that stands for visual tokens.
fn image_token(case: &Case, model: &InternVl) -> i64 {
    let stated = || case.json::<Value>("meta.json")["tokens"]["<IMG_CONTEXT>"].as_i64().unwrap();
    model.config().image_token.unwrap_or_else(stated)
}

/// Compares `models/internvl2_*`.
pub(super) fn chat(case: &Case) {
    let _no_grad = tch::no_grad_guard();
    let model = open(case, F32_ARITHMETIC);
    let (ids, tiles) = (ids(case, "input_ids"), case.input("pixel_values"));
    let image_token = image_token(case, &model);
    let (visual, maps) = observe(|| model.visual_tokens(&tiles));
    case.close("vit.embeddings", &maps["vision.embeddings"], 1.);
    case.close("vit.layer0", &maps["vision.layers.0"], 1.);
    case.close("vit.last_hidden_state", &maps["vision"], 1.);
    case.close("pixel_shuffle", &maps["pixel_shuffle"], 1.);
    case.close("vit_embeds", &visual, 1.);
    let embeddings = model.decoder().embed_with(&ids, image_token, &visual).unwrap();
    case.close("inputs_embeds", &embeddings.unsqueeze(0), 1.);
    let (whole, maps) = observe(|| logits(model.decoder(), &embeddings));
    case.close("lm.hidden1", &maps["layers.0"], 1.);
    case.close("lm.hidden_last_normed", &maps["norm"], 1.);
    case.close("logits", &whole, 1.);
    case.part(|| cached(case, &model, &embeddings));
    case.part(|| greedy(case, model.decoder(), &embeddings, &whole));
    case.part(|| long(case, &model));
    let narrow = open(case, Arithmetic { computing: Computing::Bf16, int8: false });
    let embeddings = narrow.decoder().embed_with(&ids, image_token, &narrow.visual_tokens(&tiles)).unwrap();
    case.expect("logits", &logits(narrow.decoder(), &embeddings), |want| share(want, BF16));
}

/// Compares the logits after the prompt and three tokens, one after another.
fn cached(case: &Case, model: &InternVl, embeddings: &Tensor) {
    let decoder = model.decoder();
    let count = embeddings.size()[0];
    let mut cache = decoder.cache(1, count + 3);
    let mut append = |x: &Tensor| {
        let span = cache.span(&[0], &[x.size()[1]]).unwrap();
        decoder.logits(&decoder.forward(x, &span, &mut cache))
    };
    let mut last = append(&embeddings.unsqueeze(0)).narrow(1, count - 1, 1); // [1, 1, vocabulary]
    for _ in 0..3 {
        last = append(&decoder.embed(&last.argmax(-1, false)));
    }
    case.close("logits_after_3_cached_steps", &last, 1.);
}

/// Compares a text that is longer than the positions of the training.
fn long(case: &Case, model: &InternVl) {
    let expected = case.tensors("expected.safetensors");
    if !expected.names().any(|name| name.starts_with("long_")) {
        return;
    }
    let ids = expected.get("long_ids");
    let text = &model.config().text;
    // the base, a power of it and its inverse are each rounded a few times
    let frequencies = text.rope.frequencies(text.head_dim, ids.size()[1]);
    case.expect("long_inv_freq", &frequencies, |want| each(want, 8. * F32));
    case.close("long_logits", &logits(model.decoder(), &model.decoder().embed(&ids.get(0))), 1.);
}

/// Compares `models/internvl_hf`.
pub(super) fn native(case: &Case) {
    let _no_grad = tch::no_grad_guard();
    let model = open(case, F32_ARITHMETIC);
    let (visual, maps) = observe(|| model.visual_tokens(&case.input("pixel_values")));
    case.close("vision.embeddings", &maps["vision.embeddings"], 1.);
    case.close("vision.layer0", &maps["vision.layers.0"], 1.);
    case.close("vision.last_hidden_state", &maps["vision"], 1.);
    case.close("image_features", &visual, 1.);
    let embeddings = model.decoder().embed_with(&ids(case, "input_ids"), image_token(case, &model), &visual).unwrap();
    case.close("logits", &logits(model.decoder(), &embeddings), 1.);
}

/// Returns the config of a published model.
fn published(text: Value) -> InternVlConfig {
    let whole = json!({ "llm_config": text, "vision_config": {}, "downsample_ratio": 0.5, "select_layer": -1 });
    InternVlConfig::from_json(&whole.to_string()).unwrap()
}

fn internlm2(hidden: i64, layers: i64, heads: i64, intermediate: i64) -> InternVlConfig {
    published(json!({
        "model_type": "internlm2", "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": 8, "intermediate_size": intermediate, "vocab_size": 92553, "bias": false,
        "rms_norm_eps": 1e-5, "rope_theta": 1e6, "rope_scaling": { "type": "dynamic", "factor": 2.0 },
    }))
}

/// Loads networks of the published sizes, and compares the memory that they announce.
pub(super) fn published_shapes(case: &Case) {
    let qwen2 = json!({
        "model_type": "qwen2", "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 151_655, "rope_theta": 1e6,
    });
    let networks = [
        ("internvl2_1b", published(qwen2)),
        ("internvl2_2b", internlm2(2048, 24, 16, 8192)),
        ("internvl2_8b", internlm2(4096, 32, 32, 14336)),
    ];
    for (name, config) in networks.iter().filter(|(name, _)| case.has(&format!("{name}.json.gz"))) {
        let Published { file, elements, .. } = &Published::open(case, &format!("{name}.json.gz"));
        let bf16 = Arithmetic { computing: Computing::Bf16, int8: false };
        let announced = memory(file.clone(), config, bf16).unwrap();
        case.equal(&format!("{name}: memory"), &announced, &WeightBytes { in_file: 2 * elements, held: 0 });
        let wide = memory(file.clone(), config, F32_ARITHMETIC).unwrap();
        let table = (config.text.vocab_size * config.text.hidden_size) as u64;
        let want = WeightBytes { in_file: 2 * table, held: 4 * (elements - table) };
        case.equal(&format!("{name}: memory in f32"), &wide, &want);
        let model = InternVl::load(file.clone(), config, bf16, Device::Cpu).unwrap_or_else(|e| panic!("{name}: {e}"));
        case.equal(&format!("{name}: tokens of a tile"), &model.config().tokens_per_tile(), &256);
    }
    // 32 layers of 8 heads of 128 numbers, keys and values, in two bytes
    let bytes = internlm2(4096, 32, 32, 14336).text.cache_bytes(16, 4096, Kind::BFloat16);
    case.equal("keys and values of 16 texts", &bytes, &(16 * 4096 * 32 * 8 * 128 * 2 * 2));
}
