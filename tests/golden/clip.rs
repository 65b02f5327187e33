//! CLIP's text transformer against transformers.

use super::{
    Case,
    networks::{compare_shapes, filled, manifest},
    tolerance::NETWORK,
};
use serde_json::Value;
use vlmdiff::models::{
    clip::{ClipTextConfig, ClipTextModel},
    nn::observe,
};

fn config(case: &Case) -> ClipTextConfig {
    ClipTextConfig::from_json(&std::fs::read_to_string(case.path("config.json")).unwrap()).unwrap()
}

/// Compares `models/clip_text`.
pub(crate) fn text(case: &Case) {
    let _no_grad = tch::no_grad_guard();
    let config = config(case);
    let weights = config.canonical(case.checkpoint("model.safetensors"));
    let model = filled(&weights, |vs| ClipTextModel::new(vs, &config));
    let (output, maps) = observe(|| model.forward(&case.input("input_ids")));
    case.close("embeddings", &maps["embeddings"], 1.);
    case.close("layer.0", &maps["encoder.layers.0"], 1.);
    if let Some(map) = maps.get(&format!("encoder.layers.{}", config.num_hidden_layers - 2)) {
        case.close("penultimate", map, 1.);
    }
    case.close("last_hidden_state", &output.last_hidden_state, 1.);
    case.close("pooler_output", &output.pooled, 1.);
}

/// Compares `models/clip_full`: the text half of a whole model.
pub(crate) fn full(case: &Case) {
    let _no_grad = tch::no_grad_guard();
    let config = config(case);
    let weights = config.canonical_with_projection(case.checkpoint("model.safetensors"));
    let model = filled(&weights, |vs| ClipTextModel::with_projection(vs, &config));
    let output = model.forward(&case.input("input_ids"));
    case.close("text_last_hidden_state", &output.last_hidden_state, 1.);
    case.close("text_embeds", &model.embed(&output.pooled).unwrap(), 1.);
    // this program has no image encoder of CLIP
    case.tensors("inputs.safetensors").skip("pixel_values");
    for vision in ["image_embeds", "logits_per_image", "vision_"] {
        case.tensors("expected.safetensors").skip(vision);
    }
}

/// Compares `reference/text`: the text encoder of the authors, in the layout of their checkpoints.
pub(crate) fn reference(case: &Case) {
    let _no_grad = tch::no_grad_guard();
    let yaml = case.json::<Value>("config.json");
    let clip = &yaml["model"]["cond_stage_config"]["params"];
    let number = |name: &str| clip[name].as_i64().unwrap();
    let config = ClipTextConfig {
        vocab_size: number("vocab"),
        hidden_size: number("hidden"),
        intermediate_size: 4 * number("hidden"),
        num_hidden_layers: number("layers"),
        num_attention_heads: number("heads"),
        max_position_embeddings: number("max_length"),
        ..Default::default()
    };
    let weights = config.canonical(case.weights("weights"));
    let model = filled(&weights, |vs| ClipTextModel::new(vs, &config));
    let file = case.tensors("text.safetensors");
    let states = model.forward(&file.get("input_ids")).last_hidden_state;
    case.near("last_hidden_state", &states, NETWORK);
    // the empty caption, for each of the others but the last
    let unconditional = states.size()[0] - 2;
    let count = file.find("unconditional").map_or(0, |expected| expected.size()[0]);
    case.near("unconditional", &states.narrow(0, unconditional, 1).repeat([count, 1, 1]), NETWORK);
}

/// Compares networks of the published sizes with `models/manifests`.
pub(crate) fn published_shapes(case: &Case) {
    let large = ClipTextConfig {
        hidden_size: 768,
        intermediate_size: 3072,
        num_attention_heads: 12,
        projection_dim: 768,
        ..Default::default()
    };
    if case.has("sd15_text_encoder.json.gz") {
        let theirs = large.canonical(manifest(case, "sd15_text_encoder.json.gz"));
        compare_shapes(case, "sd15_text_encoder", &theirs, |vs| ClipTextModel::new(vs, &large));
    }
    if case.has("clip_vit_large_patch14.json.gz") {
        let theirs = large.canonical_with_projection(manifest(case, "clip_vit_large_patch14.json.gz"));
        compare_shapes(case, "clip_vit_large_patch14", &theirs, |vs| ClipTextModel::with_projection(vs, &large));
    }
}
