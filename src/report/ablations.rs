//! The settings that the paper varies, by the stages and parameters that have them in a pipeline.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Source;
use crate::engine::{Result, store::Manifest};

/// The setting of the paper's main results.
pub(super) const MAIN: &str = "";
/// A vision-language model alone, section 4.5.
pub(super) const MODEL_ALONE: &str = "zero-shot yes/no";
/// Captions of test images lead the reconstruction, tables 4 and 12. On COCO-AD this is [`MAIN`].
const CAPTIONED_TEST: &str = "desc_infer=yes";
/// The autoencoder as it was published, table 6.
const PUBLISHED_AUTOENCODER: &str = "ae_finetune=no";

/// The captioners, tables 5 and 11, by `model` of the stage `caption`. Captions that were written before are taken for the paper's.
const CAPTIONERS: [(&str, &str); 6] = [
    ("internvl2-8b", MAIN),
    ("pairs", MAIN),
    ("file", MAIN),
    ("blip2-flan-t5-xxl", "captioner=Blip2"),
    ("deepseek-vl-1.3b", "captioner=DeepSeekv3-1.3B"),
    ("dataset", "captioner=GT caption"),
];
/// The features that are compared, tables 7 and 13, by `extractor` and `dinov2_resize` of the stage `anomaly_maps`.
const FEATURES: [(&str, &str); 7] = [
    ("dino-vits8", MAIN),
    ("dino-vits16", "features=DINO ViTS/16"),
    ("dino-vitb8", "features=DINO ViTB/8"),
    ("dino-vitb16", "features=DINO ViTB/16"),
    ("dino-resnet50", "features=DINO R50"),
    ("imagenet-resnet50", "features=ImageNet R50"),
    ("dinov2, reinterpret", "features=DINO-v2 ViTS/14"),
];

/// Returns the setting of a row of `paper_results`, whose tables call some settings by several names.
pub(super) fn of_paper(variant: &str) -> &str {
    match variant {
        "multi-class" => MAIN,
        "desc_train=yes;desc_infer=yes" | "delta(desc_infer=PD minus none);captioner=InternVL-2-8B" => CAPTIONED_TEST,
        other => other,
    }
}

/// Returns the setting of the tables from which a table of metrics was made. If the paper has no such setting, no row of it has
/// what is returned. Metrics of a method that reconstructs no image belong to the main one, as results of another method.
/// `dataset` is the data set as pipelines name it.
pub(super) fn of_metrics(source: &Source, metrics: &Manifest, dataset: &str) -> Result<String> {
    let ancestors: Vec<&Manifest> = source.ancestors(metrics).into_iter().map(|(_, table)| table).collect();
    let (mut is_described, mut is_test_captioned) = (false, false);
    for table in &ancestors {
        is_described |= source.describes(table)?;
        if table.made.stage == "reconstruct" {
            let embeddings = source.inputs(table).filter(|input| input.made.stage == "encode_text");
            for captions in embeddings.flat_map(|embeddings| source.inputs(embeddings)) {
                is_test_captioned |= source.describes(captions)?;
            }
        }
    }
    let stages: Vec<(&str, &Value)> =
        ancestors.iter().map(|table| (table.made.stage.as_str(), &table.made.params)).collect();
    let is_captioned_in_paper = dataset == "coco_ad";
    let captions = match (is_described, is_test_captioned) {
        (false, _) => "desc_train=no",
        (true, given) if given == is_captioned_in_paper => MAIN,
        (true, true) => CAPTIONED_TEST,
        (true, false) => "desc_infer=no",
    };
    Ok(of_stages(&stages, captions))
}

/// Returns the setting of stages with their parameters. `captions` is the setting that follows from which images have captions.
fn of_stages(stages: &[(&str, &Value)], captions: &str) -> String {
    let of = |name: &'static str| stages.iter().filter(move |(stage, _)| *stage == name).map(|(_, params)| *params);
    if of("yes_no").next().is_some() {
        return MODEL_ALONE.to_owned();
    }
    if of("reconstruct").next().is_none() {
        return MAIN.to_owned();
    }
    let text = |params: &Value, name: &str| params[name].as_str().unwrap_or_default().to_owned();
    let captioners = of("caption").map(|params| named(&text(params, "model"), &CAPTIONERS, "captioner"));
    let features = of("anomaly_maps").map(|params| {
        let resize = params["dinov2_resize"].as_str().map(|resize| format!(", {resize}"));
        named(&(text(params, "extractor") + &resize.unwrap_or_default()), &FEATURES, "features")
    });
    let is_published = of("pretrained").any(|params| params["network"] == "autoencoder");
    let autoencoder = if is_published { PUBLISHED_AUTOENCODER } else { MAIN };
    let mut settings: BTreeSet<String> = captioners.chain(features).collect();
    settings.extend([captions, autoencoder].map(str::to_owned));
    settings.remove(MAIN);
    settings.into_iter().collect::<Vec<_>>().join(";")
}

/// Returns the paper's name of a value, and `what=value` for one that it does not have.
fn named(value: &str, names: &[(&str, &str)], what: &str) -> String {
    let found = names.iter().find(|(known, _)| *known == value);
    found.map_or_else(|| format!("{what}={value}"), |(_, setting)| (*setting).to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Returns the setting of a pipeline like vlmdiff.yaml, with parameters of `caption` and `anomaly_maps`.
    fn setting(captioner: &str, maps: Value, others: &[(&str, Value)], captions: &str) -> String {
        let usual = [("caption", json!({ "model": captioner })), ("anomaly_maps", maps), ("reconstruct", json!({}))];
        let stages = usual.iter().chain(others);
        of_stages(&stages.map(|(stage, params)| (*stage, params)).collect::<Vec<_>>(), captions)
    }

    #[test]
    fn ablations_have_the_names_of_the_paper() {
        let dino = || json!({ "extractor": "dino-vits8" });
        let autoencoder = |network: &str| [("pretrained", json!({ "network": network }))];
        assert_eq!(setting("internvl2-8b", dino(), &autoencoder("text_encoder"), MAIN), MAIN);
        assert_eq!(setting("blip2-flan-t5-xxl", dino(), &[], MAIN), "captioner=Blip2");
        assert_eq!(setting("pairs", dino(), &autoencoder("autoencoder"), MAIN), "ae_finetune=no");
        assert_eq!(setting("internvl2-8b", dino(), &[], CAPTIONED_TEST), "desc_infer=yes");
        let of_maps = |maps: Value| setting("internvl2-8b", maps, &[], MAIN);
        assert_eq!(of_maps(json!({ "extractor": "dino-vitb16", "dinov2_resize": null })), "features=DINO ViTB/16");
        let dinov2 = |resize: &str| of_maps(json!({ "extractor": "dinov2", "dinov2_resize": resize }));
        assert_eq!(dinov2("reinterpret"), "features=DINO-v2 ViTS/14");
        // The paper has no such setting.
        assert_eq!(dinov2("resample"), "features=dinov2, resample");
        let both = setting("dataset", json!({ "extractor": "dino-resnet50" }), &[], MAIN);
        assert_eq!(both, "captioner=GT caption;features=DINO R50");
    }

    #[test]
    fn other_methods_are_no_ablations() {
        let answers = json!({ "model": "internvl2-8b" });
        assert_eq!(of_stages(&[("yes_no", &json!({})), ("caption", &answers)], MAIN), MODEL_ALONE);
        assert_eq!(of_stages(&[("fit", &json!({})), ("detect", &json!({}))], "desc_train=no"), MAIN);
    }

    #[test]
    fn paper_has_every_setting() {
        let rows = include_str!("../../data/paper_results.csv");
        let settings: BTreeSet<&str> =
            rows.lines().skip(1).map(|row| of_paper(row.split(',').nth(4).unwrap_or_default())).collect();
        let named = CAPTIONERS.iter().chain(&FEATURES).map(|(_, setting)| *setting);
        for setting in named.chain([MAIN, MODEL_ALONE, CAPTIONED_TEST, PUBLISHED_AUTOENCODER]) {
            assert!(settings.contains(setting), "{setting}: {settings:?}");
        }
    }
}
