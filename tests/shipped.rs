//! The pipelines of the folder `pipelines`, on small data sets in their layouts.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tch::{Device, nn::VarStore};
use vlmdiff::{
    engine::store::Event,
    models::{
        clip::{ClipTextConfig, ClipTextModel},
        tokenizer::ClipTokenizer,
        unet::UNet2DConditionModel,
        vae::AutoencoderKl,
    },
};

use crate::{
    captions::captions_of_coco,
    dataset::{mask, picture},
    describing,
    lab::{Lab, computed, project},
    published::{coco, real_iad, visa},
    training::{perceptual, save},
};

/// Returns all pipelines below a folder.
fn pipelines(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(pipelines(&path));
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Writes the data set that a pipeline reads into `data`. Returns false for a pipeline that generates its photographs.
fn write_data(lab: &Lab, pipeline: &Path) -> bool {
    let name = pipeline.file_stem().unwrap().to_str().unwrap();
    let square = "[[2, 1, 9, 1, 9, 9, 2, 9]]";
    match name {
        "quickstart" | "pixels" | "samplers" | "feature_samplers" | "captions" | "products_captions" => return false,
        name if name.ends_with("visa") => visa(lab, [1, 2]),
        name if name.ends_with("real_iad") => drop(real_iad(lab)),
        name if name.ends_with("coco_ad") => {
            let last = (1, 79, square);
            coco(lab, "train2017", &[1, 2, 3], &[last, (2, 0, square), (3, 25, square)]);
            // One photograph for each split in which it is anomalous.
            let tested = [(5, 19, square), (6, 30, square), (7, 70, square), (8, 45, square)];
            coco(lab, "val2017", &[5, 6, 7, 8], &tested);
            for (half, pictures) in [("train2017", 1..4), ("val2017", 5..9)] {
                lab.write(
                    &format!("data/annotations/captions_{half}.json"),
                    &captions_of_coco(pictures.map(|picture| (picture, 5))),
                );
            }
        }
        _ => {
            for class in ["bottle", "screw"] {
                for image in ["train/good/0", "train/good/1", "test/good/0"] {
                    picture(&lab.path(&format!("data/{class}/{image}.png")), 40, 40);
                }
                // A defective photograph is nothing but its mask, so that an inspector finds it.
                for image in ["test/bent/0", "ground_truth/bent/0_mask"] {
                    mask(&lab.path(&format!("data/{class}/{image}.png")), 40, 40, 20);
                }
            }
        }
    }
    true
}

/// Plans a shipped pipeline with these settings, on the data of a pipeline that may be another. Its images must be what is
/// missing first.
fn assert_planned(shipped: &Path, data: &Path, settings: &[&str]) {
    let lab = Lab::empty();
    let root: &[&str] = if write_data(&lab, data) { &["images.root=data"] } else { &[] };
    let mut arguments = vec!["plan", shipped.to_str().unwrap()];
    root.iter().chain(settings).for_each(|setting| arguments.extend(["--set", setting]));
    let plan = lab.vlmdiff(&arguments);
    assert_eq!(plan.code, Some(0), "{}: {}", shipped.display(), plan.stderr);
    let first = plan.stdout.lines().next().unwrap_or_default();
    assert!(
        first.starts_with("images") && first.contains("rows to compute: not computed yet"),
        "{}: {first}",
        shipped.display()
    );
}

#[test]
fn every_pipeline_is_planned_before_weights_are_here() {
    let folder = project().join("pipelines");
    for pipeline in pipelines(&folder) {
        let places: &[&str] = match pipeline.file_stem().unwrap().to_str().unwrap() {
            "tiles" => &["tiles.root=data"],
            "human_captions_drawn_coco_ad" => {
                &["captions.path=data/annotations", "test_captions.path=data/annotations"]
            }
            _ => &[],
        };
        assert_planned(&pipeline, &pipeline, places);
    }
    // Their headers have commands for other data sets.
    let hundred = "denoiser.training.epochs=100";
    for shipped in ["diad.yaml", "ablations/as_printed.yaml"].map(|shipped| folder.join(shipped)) {
        assert_planned(&shipped, Path::new("visa.yaml"), &["images.dataset=visa"]);
        assert_planned(&shipped, Path::new("real_iad.yaml"), &["images.dataset=real_iad", hundred]);
    }
    assert_planned(&folder.join("divad.yaml"), Path::new("visa.yaml"), &["images.dataset=visa"]);
    let split = ["images.dataset=coco_ad", hundred, "images.coco_ad={ split: 0 }"];
    assert_planned(&folder.join("diad.yaml"), Path::new("coco_ad.yaml"), &split);
}

#[test]
fn header_of_every_pipeline_has_its_command_cost_and_downloads() {
    let folder = project().join("pipelines");
    for pipeline in pipelines(&folder) {
        let text = fs::read_to_string(&pipeline).unwrap();
        let header: String =
            text.lines().take_while(|line| line.starts_with('#')).flat_map(|line| [line, "\n"]).collect();
        let has = |words: &[&str]| words.iter().any(|word| header.contains(*word));
        let run = format!("vlmdiff run pipelines/{}", pipeline.strip_prefix(&folder).unwrap().display());
        assert!(has(&[&run]), "{run}: its header lacks this command");
        assert!(has(&[" hour", " minute"]) && has(&[" GB", " MB"]), "{run}: its header lacks the time or the disk");
        assert!(has(&["vlmdiff models fetch ", "make weights"]), "{run}: its header lacks the downloads");
    }
}

/// The sizes of the small networks that stand for the published ones.
const AUTOENCODER: &str = r#"{ "block_out_channels": [8, 8, 16, 16], "layers_per_block": 1, "norm_num_groups": 4 }"#;
const UNET: &str = r#"{ "block_out_channels": [8, 16], "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
          "layers_per_block": 1, "attention_head_dim": 2, "cross_attention_dim": 16, "norm_num_groups": 4 }"#;

/// Makes a lab with small networks in the place of published ones, and the data set of a shipped pipeline.
fn small_lab(shipped: &str) -> Lab {
    let lab = Lab::empty();
    write_data(&lab, Path::new(shipped));
    perceptual(&lab);
    let vs = VarStore::new(Device::Cpu);
    let _ = AutoencoderKl::new(vs.root(), &serde_json::from_str(AUTOENCODER).unwrap()).unwrap();
    save(&lab, "autoencoder.safetensors", vs.variables().into_iter());
    let vs = VarStore::new(Device::Cpu);
    let _ = UNet2DConditionModel::new(vs.root(), &serde_json::from_str(UNET).unwrap()).unwrap();
    save(&lab, "unet.safetensors", vs.variables().into_iter());

    let tokenizer = ClipTokenizer::train(&["a photo of a screw".to_owned()], 300).unwrap();
    let config = serde_json::json!({
        "vocab_size": tokenizer.vocab_size(), "eos_token_id": tokenizer.end(), "hidden_size": 16, "intermediate_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 24, "projection_dim": 8,
    });
    let vs = VarStore::new(Device::Cpu);
    let _ = ClipTextModel::new(vs.root(), &ClipTextConfig::from_json(&config.to_string()).unwrap()).unwrap();
    fs::create_dir(lab.path("text")).unwrap();
    save(&lab, "text/model.safetensors", vs.variables().into_iter());
    lab.write("text/config.json", &config.to_string());
    lab.write("text/tokenizer.json", &tokenizer.to_json().unwrap());
    lab
}

/// Returns the tables of vlmdiff.yaml that differ where its networks are small: all but those with captions and features.
fn small_tables() -> String {
    small_tables_around(
        "init: autoencoder.safetensors, perceptual: [perceptual.safetensors], discriminator.config: { ndf: 4, n_layers: 1 },
      training.epochs: 2",
    )
}

/// Returns these tables with an autoencoder that has these parameters and the small sizes.
fn small_tables_around(autoencoder: &str) -> String {
    format!(
        "  images: {{ with: {{ root: data, size: 64 }} }}
  text_encoder: {{ with: {{ weights: text }} }}
  autoencoder:
    with: {{ {autoencoder}, config: {AUTOENCODER} }}
  denoiser:
    with:
      init: unet.safetensors
      config: {UNET}
      control: {{ conditioning_embedding_out_channels: [4, 4, 8, 8] }}
      training.epochs: 2
"
    )
}

/// Returns the tables of divad.yaml that differ where its networks are small.
fn published_unet() -> String {
    let control = UNET.replacen('{', "{ \"form\": \"none\",", 1);
    format!(
        "  images: {{ with: {{ root: data, size: 64 }} }}
  text_encoder: {{ with: {{ weights: text }} }}
  autoencoder: {{ with: {{ weights: autoencoder.safetensors, config: {AUTOENCODER} }} }}
  denoiser: {{ with: {{ weights: unet.safetensors, config.control: {control} }} }}
"
    )
}

/// Tables that differ in most pipelines: a text for each class, and the features of a network that is here.
const CAPTIONS: &str = "  captions: { with: { model: template, prompt: null, text: 'a photo of a {class}' } }\n";
const MAPS: &str = "  anomaly_maps: { with: { extractor: efficientnet-lite0 } }\n";

/// A sweep of the network that is here and of a tiny one of the golden set.
const EXTRACTORS: &str = concat!(
    "sweep: [{ anomaly_maps.extractor: efficientnet-lite0, anomaly_maps.weights: null }, \
     { anomaly_maps.extractor: dinov2, anomaly_maps.weights: '",
    env!("CARGO_MANIFEST_DIR"),
    "/data/golden/models/dinov2/hf' }]\n"
);

/// A sweep of one split of COCO-AD.
const SPLIT: &str = "sweep: { images.coco_ad: [{ split: 0 }] }\n";

/// Runs a shipped pipeline with tables that differ. Returns the run's events and the metrics as Markdown.
fn ran(lab: &Lab, shipped: &str, tables: &str) -> (Vec<Event>, String) {
    let path = project().join("pipelines").join(shipped);
    let name = path.file_stem().unwrap().to_str().unwrap();
    lab.write("pipeline.yaml", &format!("name: {name}\nextends: {path:?}\ntables:\n{tables}"));
    let events = lab.run(&[]);
    let report = lab.vlmdiff(&["report", "--format", "md"]);
    assert_eq!(report.code, Some(0), "{shipped}: {}", report.stderr);
    (events, report.stdout)
}

/// The title of metrics beside those of the method in the paper. The small networks of these tests are none of its settings.
const BESIDE_VLMDIFF: &str = "beside VLMDiff in the paper";

/// Returns the rows in which a report has the metrics of a method in the paper beside ours.
fn beside<'r>(report: &'r str, method: &str, dataset: &str) -> Vec<&'r str> {
    let title =
        format!("`metrics` by the protocol `reference` beside {method} in the paper on {dataset}, in percent\n\n");
    let (_, table) = report.split_once(&title).unwrap_or_else(|| panic!("no {title}{report}"));
    let mut lines = table.lines();
    let head = lines.next().unwrap_or_default();
    assert!(head.contains("| image AUROC: ours | paper | difference |"), "{head}");
    lines.skip(1).take_while(|line| line.starts_with('|')).collect()
}

/// The classes for which all metrics that the paper prints are there.
const JUDGED: &str = "select class from metrics where protocol = 'exact' and image_auroc is not null \
                      and pixel_auroc is not null and aupro is not null order by class";

#[test]
fn pipelines_on_mvtec_run_to_their_metrics_and_train_once_what_they_share() {
    let lab = small_lab("mvtec.yaml");
    let tables = small_tables();
    let (_, report) = ran(&lab, "mvtec.yaml", &[&tables, CAPTIONS, MAPS].concat());
    let classes = ["bottle", "mean", "screw"];
    assert_eq!(lab.sql(".vlmdiff", JUDGED), classes);
    assert!(!report.contains(BESIDE_VLMDIFF), "{report}");

    // Maps of three levels are summed, as in diad.yaml; they are those of another network.
    let levels = "  anomaly_maps: { with: { extractor: efficientnet-lite0, layers: [4, 8, 16] } }\n";
    let (events, report) = ran(&lab, "diad.yaml", &[&tables, levels].concat());
    assert_eq!(lab.sql(".vlmdiff", JUDGED), classes);
    let rows = beside(&report, "DiAD", "MVTec-AD");
    assert!(rows.len() == 2 && rows[0].contains("| 88.9 |") && rows[1].contains("| 92.0 |"), "{report}");
    let rows = computed(&events);
    assert!(rows.contains(&("autoencoder", 0)) && rows.contains(&("latents", 0)), "{rows:?}");
    assert!(rows.iter().any(|(table, rows)| *table == "denoiser" && *rows > 0), "{rows:?}");

    let described = CAPTIONS.replace("captions:", "test_captions:");
    let both = [&tables, CAPTIONS, &described, MAPS].concat();
    let (events, report) = ran(&lab, "ablations/caption_at_test_mvtec.yaml", &both);
    assert_eq!(lab.sql(".vlmdiff", JUDGED), classes.map(|class| [class; 2]).concat());
    assert!(!report.contains(BESIDE_VLMDIFF), "{report}");
    let rows = computed(&events);
    assert!(rows.contains(&("denoiser", 0)), "{rows:?}");
    // Without a caption, the maps are those of mvtec.yaml.
    let maps: Vec<u64> = rows.iter().filter(|(table, _)| table.starts_with("anomaly_maps[")).map(|row| row.1).collect();
    assert_eq!(maps, [4, 0], "{rows:?}");

    // Maps and metrics of another extractor are computed, and nothing else.
    let (events, _) = ran(&lab, "ablations/extractor_mvtec.yaml", &[&tables, CAPTIONS, EXTRACTORS].concat());
    assert_eq!(lab.sql(".vlmdiff", JUDGED), classes.map(|class| [class; 2]).concat());
    let rows = computed(&events);
    let anew: Vec<&str> = rows.iter().filter(|(_, rows)| *rows > 0).map(|(table, _)| *table).collect();
    let is_of_the_other = |table: &&str| table.contains("[extractor=dinov2,");
    assert!(anew.len() == 2 && anew[0].starts_with("anomaly_maps[") && anew[1].starts_with("metrics["), "{rows:?}");
    assert!(anew.iter().all(is_of_the_other), "{rows:?}");
}

#[test]
fn pipelines_on_visa_and_real_iad_run_to_their_metrics() {
    for (shipped, dataset, classes) in
        [("visa.yaml", "VisA", ["candle", "mean"]), ("real_iad.yaml", "Real-IAD", ["mean", "usb"])]
    {
        let lab = small_lab(shipped);
        let (_, report) = ran(&lab, shipped, &[&small_tables(), CAPTIONS, MAPS].concat());
        assert_eq!(lab.sql(".vlmdiff", JUDGED), classes, "{shipped}");
        assert!(report.contains(&format!("## Published results on {dataset}")), "{report}");
        assert!(!report.contains(BESIDE_VLMDIFF), "{report}");
    }
}

#[test]
fn pipeline_on_coco_ad_runs_to_the_metrics_of_four_splits() {
    let lab = small_lab("coco_ad.yaml");
    let (events, report) = ran(&lab, "coco_ad.yaml", &[&small_tables(), CAPTIONS, MAPS].concat());
    let rows = computed(&events);
    for declared in ["images", "autoencoder", "denoiser", "anomaly_maps", "metrics"] {
        let instances = rows.iter().filter(|(table, _)| table.starts_with(&format!("{declared}[")));
        assert_eq!(instances.count(), 4, "{declared}: {rows:?}");
    }
    assert_eq!(lab.sql(".vlmdiff", JUDGED), [&["mean"; 4][..], &["split0", "split1", "split2", "split3"]].concat());
    // Nobody chooses among splits, and each protocol has a mean over them.
    assert!(report.contains(": means over classes\n") && !report.contains("chooses on"), "{report}");
    let means: Vec<&str> = report.lines().filter(|line| line.starts_with("| mean over splits | – | ")).collect();
    assert!(!means.is_empty() && means.len() == report.matches(": means over classes\n").count(), "{report}");
    assert!(!report.contains(BESIDE_VLMDIFF), "{report}");
    let csv = lab.vlmdiff(&["report", "--format", "csv"]).stdout;
    let of_mean: Vec<&str> = csv.lines().filter(|line| line.starts_with("metrics,exact,,mean over splits,")).collect();
    let image_auroc =
        of_mean.iter().find_map(|line| line.split_once(",image_auroc,")?.1.split(',').next()?.parse::<f64>().ok());
    let of_splits = "select avg(image_auroc) from metrics where protocol = 'exact' and class <> 'mean'";
    let expected: f64 = lab.sql(".vlmdiff", of_splits)[0].parse().unwrap();
    // Four numbers below 1 are added in any order.
    assert!(image_auroc.is_some_and(|mean| (mean - expected).abs() < 4. * f64::EPSILON), "{image_auroc:?} {expected}");
}

#[test]
fn pipeline_that_draws_among_human_captions_runs_to_metrics() {
    let shipped = "ablations/human_captions_drawn_coco_ad.yaml";
    let lab = small_lab(shipped);
    let captions =
        "  captions: { with: { path: data/annotations } }\n  test_captions: { with: { path: data/annotations } }\n";
    ran(&lab, shipped, &[&small_tables(), captions, MAPS, SPLIT].concat());
    assert_eq!(lab.sql(".vlmdiff", JUDGED), ["mean", "split0"]);
    // An embedding has 24 tokens of 16 numbers.
    let numbers = |table: &str| format!("select image_id, array_length(embedding) from {table} order by image_id");
    let trained = ["train2017/000000000001.jpg,1920", "train2017/000000000003.jpg,1920"];
    assert_eq!(lab.sql(".vlmdiff", &numbers("text_embeddings")), trained);
    assert_eq!(lab.sql(".vlmdiff", &numbers("test_embeddings"))[0], "val2017/000000000005.jpg,384");
}

#[test]
fn pipeline_of_a_model_alone_runs_to_metrics_of_images() {
    let shipped = "ablations/vlm_only_real_iad.yaml";
    let lab = Lab::empty();
    write_data(&lab, Path::new(shipped));
    describing::weights(&lab, "internvl2_qwen2");
    let tables = "  images: { with: { root: data, size: 64 } }
  answers: { with: { model: internvl2-1b, weights: weights, precision: f32, max_new_tokens: 2, max_tiles: 1 } }
";
    let (_, report) = ran(&lab, shipped, tables);
    let judged = "select class, pixel_auroc is null from metrics where protocol = 'exact' and image_auroc is not null \
                  order by class";
    assert_eq!(lab.sql(".vlmdiff", judged), [["mean,true"; 2], ["usb,true"; 2]].concat());
    // The mean over the single class that is here is not that over the thirty of section 4.5.
    assert!(!report.contains(BESIDE_VLMDIFF), "{report}");
}

/// The pipelines that the tests above run.
const RUN_ABOVE: [&str; 9] = [
    "ablations/caption_at_test_mvtec.yaml",
    "ablations/extractor_mvtec.yaml",
    "ablations/human_captions_drawn_coco_ad.yaml",
    "ablations/vlm_only_real_iad.yaml",
    "coco_ad.yaml",
    "diad.yaml",
    "mvtec.yaml",
    "real_iad.yaml",
    "visa.yaml",
];

/// A few generated products.
const PRODUCTS: &str = "  images:
    with: { size: 32, synthetic: { classes: [wood, tile], train: 2, test_good: 1, test_per_defect: 1 } }\n";

/// Photographs that `write_data` writes.
const PHOTOGRAPHS: &str = "  images: { with: { root: data, size: 64 } }\n";

/// A small text encoder for [`FEATURES`] and [`PIXELS`].
const TEXT: &str = "  text_encoder:
    with:
      config.hidden_size: 16
      config.intermediate_size: 16
      config.num_hidden_layers: 1
      config.num_attention_heads: 2
      config.projection_dim: 8
      training.steps: 2\n";

/// A small denoiser of features.
const FEATURES: &str = "  denoiser:
    with: { feature_unet: { width: 16, levels: 2, norm_num_groups: 4 }, training.steps: 2 }\n";

/// Small networks from pixels to pixels.
const PIXELS: &str = "  autoencoder:
    with:
      config: { block_out_channels: [8, 8, 16, 16], layers_per_block: 1, norm_num_groups: 4 }
      crop: null
      training.steps: 2
  denoiser:
    with:
      config.block_out_channels: [8, 16, 16]
      config.cross_attention_dim: 16
      config.norm_num_groups: 4
      control.conditioning_embedding_out_channels: [4, 4, 8, 8]
      training.steps: 2\n";

/// One photograph of each class that is held out, and thresholds that promise what one photograph can.
const VERDICTS: &str = "  images: { with: { root: data, size: 64, hold_out: 0.5, hold_out_seed: 6 } }
  thresholds: { with: { rates: [0.9], confidence: 0.6, scope: all, pixel_rate: 0.4 } }
  decisions: { with: { rate: 0.9 } }\n";

/// Tiles of the same photographs.
const TILES: &str =
    "  tiles: { with: { root: data, size: 32, tile: { overlap: 8 }, hold_out: 0.5, hold_out_seed: 6 } }\n";

/// The network that is here in place of that of PatchCore, and a tiny teacher of the golden set.
const METHODS: &str = concat!(
    "  features: { with: { extractor: efficientnet-lite0, layers: [4, 8], pooling: null } }
sweep:
  method:
    - { patchcore: { protocol: authors } }
    - { rd: { training: { steps: 2, batch_size: 2 }, weights: '",
    env!("CARGO_MANIFEST_DIR"),
    "/data/golden/models/resnet50/model.safetensors' } }\n"
);

/// Captions by the tiny InternVL of the golden set.
const DESCRIBED: &str = "  captions:
    with: { model: internvl2-1b, weights: weights, precision: f32, max_new_tokens: 2, max_tiles: 1 }\n";

/// A sweep of two models for which that one stands.
const MODELS: &str = "sweep: { captions.model: [internvl2-1b, internvl2-2b] }\n";

/// Returns all other pipelines that are shipped: one whose data it reads, its file, and the tables and the sweep that make it
/// small.
fn others() -> Vec<(&'static str, &'static str, String)> {
    let small = &small_tables();
    let published = &small_tables_around("weights: autoencoder.safetensors");
    let test_captions = &CAPTIONS.replace("captions:", "test_captions:");
    let models_of_split = "sweep: { images.coco_ad: [{ split: 0 }], captions.model: [internvl2-1b, internvl2-2b] }\n";
    let other = |data, shipped, tables: &[&str]| (data, shipped, tables.concat());
    vec![
        other("quickstart.yaml", "quickstart.yaml", &[PRODUCTS, TEXT, FEATURES]),
        other("quickstart.yaml", "captions.yaml", &[PRODUCTS, TEXT, FEATURES]),
        other("quickstart.yaml", "pixels.yaml", &[PRODUCTS, TEXT, PIXELS]),
        other("quickstart.yaml", "samplers.yaml", &[PRODUCTS, TEXT, PIXELS]),
        other("quickstart.yaml", "feature_samplers.yaml", &[PRODUCTS, TEXT, FEATURES]),
        other("quickstart.yaml", "ablations/products_captions.yaml", &[PRODUCTS, TEXT, PIXELS]),
        other("folder.yaml", "folder.yaml", &[PHOTOGRAPHS, TEXT, FEATURES]),
        other("folder.yaml", "inspect.yaml", &[VERDICTS]),
        other("folder.yaml", "tiles.yaml", &[VERDICTS, TILES]),
        other("folder.yaml", "methods.yaml", &[PHOTOGRAPHS, METHODS]),
        other("mvtec.yaml", "vlmdiff.yaml", &[small, CAPTIONS, MAPS]),
        other("mvtec.yaml", "divad.yaml", &[&published_unet(), MAPS]),
        other("mvtec.yaml", "ablations/as_printed.yaml", &[small, DESCRIBED, MAPS]),
        other("mvtec.yaml", "ablations/captioner_mvtec.yaml", &[small, DESCRIBED, MAPS, MODELS]),
        other("mvtec.yaml", "ablations/no_captions.yaml", &[small, MAPS]),
        other("visa.yaml", "ablations/caption_at_test_visa.yaml", &[small, CAPTIONS, test_captions, MAPS]),
        other("visa.yaml", "ablations/captioner_visa.yaml", &[small, DESCRIBED, MAPS, MODELS]),
        other("real_iad.yaml", "ablations/autoencoder_real_iad.yaml", &[published, CAPTIONS, MAPS]),
        other("real_iad.yaml", "ablations/caption_at_test_real_iad.yaml", &[small, CAPTIONS, test_captions, MAPS]),
        other("real_iad.yaml", "ablations/captioner_real_iad.yaml", &[small, DESCRIBED, MAPS, MODELS]),
        other("real_iad.yaml", "ablations/extractor_real_iad.yaml", &[small, CAPTIONS, EXTRACTORS]),
        other("coco_ad.yaml", "ablations/as_printed_coco_ad.yaml", &[small, DESCRIBED, MAPS, SPLIT]),
        other("coco_ad.yaml", "ablations/captioner_coco_ad.yaml", &[small, DESCRIBED, MAPS, models_of_split]),
        other("coco_ad.yaml", "ablations/human_captions_coco_ad.yaml", &[small, MAPS, SPLIT]),
    ]
}

/// Runs all other pipelines on this data in one store. No table may be empty, and the last has to hold the metrics.
fn run_others(data: &str) {
    let lab = small_lab(data);
    describing::weights(&lab, "internvl2_qwen2");
    for (_, shipped, tables) in others().iter().filter(|(of, ..)| *of == data) {
        let (events, _) = ran(&lab, shipped, tables);
        for event in &events {
            assert!(!matches!(event, Event::TablePublished { rows: 0, .. }), "{shipped}: {event:?}");
        }
        let judged = lab.sql(".vlmdiff", JUDGED);
        assert!(judged.iter().any(|class| class == "mean"), "{shipped}: {judged:?}");
    }
}

#[test]
fn other_pipelines_on_generated_products_run_to_their_metrics() {
    run_others("quickstart.yaml");
}

#[test]
fn other_pipelines_on_a_folder_run_to_their_metrics() {
    run_others("folder.yaml");
}

#[test]
fn other_pipelines_on_mvtec_and_visa_run_to_their_metrics() {
    run_others("mvtec.yaml");
    run_others("visa.yaml");
}

#[test]
fn other_pipelines_on_real_iad_and_coco_ad_run_to_their_metrics() {
    run_others("real_iad.yaml");
    run_others("coco_ad.yaml");
}

#[test]
fn every_pipeline_is_run_by_a_test() {
    let folder = project().join("pipelines");
    let relative = |path: &PathBuf| path.strip_prefix(&folder).unwrap().to_str().unwrap().to_owned();
    let shipped: Vec<String> = pipelines(&folder).iter().map(relative).collect();
    let others = others();
    let mut run: Vec<&str> = RUN_ABOVE.into_iter().chain(others.iter().map(|(_, shipped, _)| *shipped)).collect();
    run.sort_unstable();
    assert_eq!(shipped, run);
}
