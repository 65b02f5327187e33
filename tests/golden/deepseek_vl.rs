//! DeepSeek-VL against the authors' code and transformers, from pictures to tokens.

use super::{
    Case,
    language::{F32_ARITHMETIC, greedy, ids, logits},
};
use serde_json::Value;
use tch::Device;
use vlmdiff::models::{
    deepseek_vl::{DeepseekVl, DeepseekVlConfig, picture_size, read_config},
    nn::observe,
};

/// Opens a folder. The heads of a tower this small do not follow from its weights, and only the native config states
/// them.
fn open(case: &Case, folder: &str) -> DeepseekVl {
    let config = |folder| read_config(case.path(folder)).unwrap_or_else(|e| panic!("{e}"));
    let config = DeepseekVlConfig { vision_heads: config("hf").vision_heads, ..config(folder) };
    DeepseekVl::load(case.checkpoint(folder), &config, F32_ARITHMETIC, Device::Cpu).unwrap_or_else(|e| panic!("{e}"))
}

/// Compares `models/deepseek_vl`, both layouts.
pub(super) fn compare(case: &Case) {
    let _no_grad = tch::no_grad_guard();
    let ids = ids(case, "input_ids");
    let image_token = case.json::<Value>("meta.json")["image_token_id"].as_i64().unwrap();
    for (folder, logits_name) in [("orig", "logits"), ("hf", "hf_logits")] {
        case.part(|| {
            let model = open(case, folder);
            let images = case.input("pixel_values");
            let side = picture_size(&case.checkpoint(folder)).unwrap().side;
            case.equal("side of a picture", &side, &images.size()[3]);
            let (visual, maps) = observe(|| model.visual_tokens(&images));
            case.close("vision", &maps["vision"], 1.);
            case.close("aligned", &visual, 1.);
            let embeddings = model.decoder().embed_with(&ids, image_token, &visual).unwrap();
            case.close("inputs_embeds", &embeddings.unsqueeze(0), 1.);
            let whole = logits(model.decoder(), &embeddings);
            case.close(logits_name, &whole, 1.);
            greedy(case, model.decoder(), &embeddings, &whole);
        });
    }
}
