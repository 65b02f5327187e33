//! DINO and DINOv2 vision transformers, and the resizing of their position tables.

use super::{
    Case,
    networks::{compare_shapes, manifest},
    tolerance::{F32, NETWORK, share},
};
use tch::{Device, Tensor};
use vlmdiff::{
    features::{
        distance::upsample,
        resize::{reinterpret, resample},
    },
    models::{
        checkpoint::Checkpoint,
        vit::{Interpolation, VisionTransformer, VitConfig, interpolate, names},
    },
};

/// The tolerance of a resized table: a coordinate below 16 in f32 is wrong by four roundings of it, and so are the
/// weights of the up to 16 cells around it.
const RESIZED: f64 = 64. * F32;

/// Compares every way to resize a table, by its name in the set.
pub(super) fn positions(case: &Case) {
    let (table, grid) = (case.input("table_with_cls"), case.input("grid_nchw"));
    let expected = case.tensors("expected.safetensors");
    for name in expected.names() {
        let (way, size) = name.rsplit_once('.').unwrap();
        let (h, w) = size.split_once('x').unwrap();
        let size = [h, w].map(|side| side.parse::<i64>().unwrap());
        let positions = |interpolation| {
            let all = interpolate(&table, size, interpolation); // [1, 1 + h · w, D]
            case.equal(&format!("{name}: class token"), &all.narrow(1, 0, 1), &table.narrow(1, 0, 1));
            all.narrow(1, 1, size[0] * size[1]).transpose(1, 2).reshape([1, -1, size[0], size[1]])
        };
        let got = match way {
            "dino_orig_scale_offset" => positions(Interpolation::Offset),
            "bicubic_size" => positions(Interpolation::Exact),
            "bicubic_size_antialias(timm)" => positions(Interpolation::Antialias),
            "bilinear_size_align" => upsample(&grid, size),
            "bilinear_antialias" => resample(&grid, size),
            "bilinear_size" => grid.upsample_bilinear2d(size, false, None, None),
            "nearest" => grid.upsample_nearest2d(size, None, None),
            "nearest_exact" => grid.internal_upsample_nearest_exact2d(size, None, None),
            "area" => grid.adaptive_avg_pool2d(size),
            _ => panic!("{name} is no known way to resize"),
        };
        case.expect(name, &got, |want| share(want, RESIZED));
    }
}

/// Opens a folder in Hugging Face layout and computes as transformers does.
fn huggingface(case: &Case) -> VisionTransformer {
    let weights = names::original(case.checkpoint("hf")).unwrap();
    let config = case.json("hf/config.json");
    VisionTransformer::load(&weights, &config, Interpolation::Exact, Device::Cpu).unwrap_or_else(|e| panic!("{e}"))
}

/// Makes a network of weights with original names. The config is that of the Hugging Face folder, because the number of
/// heads of networks this small does not follow from the weights.
fn original(weights: Checkpoint, config: VitConfig) -> VisionTransformer {
    let config = VitConfig { layer_norm_eps: 1e-6, ..config };
    let weights = names::original(weights).unwrap();
    VisionTransformer::load(&weights, &config, Interpolation::Offset, Device::Cpu).unwrap_or_else(|e| panic!("{e}"))
}

pub(super) fn dino(case: &Case) {
    let [x, large, square] = ["", "_large", "_square2"].map(|end| case.input(&format!("pixel_values{end}")));
    let (_, _, height, width) = large.size4().unwrap();
    let compare = |names: &str, model: &VisionTransformer| {
        let last = model.config().num_hidden_layers as usize;
        let compare = |name: &str, got: &Tensor| case.close(&format!("{names}.{name}"), got, 1.);
        compare("last_attn", &model.last_self_attention(&x));
        compare("pos_large", &model.positions(height, width));
        let [hidden, hidden_large] = [&x, &large].map(|x| model.forward(x));
        if names == "hf" {
            compare("last_hidden_state", &hidden);
            compare("last_hidden_state_large", &hidden_large);
            let states = model.tokens(&x, &[1, 0], false);
            compare("layer0", &states[0]);
            compare("embeddings", &states[1]);
        } else {
            compare("tokens", &hidden);
            compare("tokens_large", &hidden_large);
            compare("tokens_minus2", &model.tokens(&x, &[last, last - 1], true)[1]);
            compare("cls", &hidden.select(1, 0));
            compare("cls_square2", &model.forward(&square).select(1, 0));
        }
    };
    let config: VitConfig = case.json("hf/config.json");
    // Weights below the prefixes of other files give the same outputs.
    case.part(|| {
        compare("hf", &huggingface(case));
        let with_head = case.checkpoint("hf").rename(|name| Some(format!("vit.{name}"))).unwrap();
        let weights = names::original(with_head).unwrap();
        compare("hf", &VisionTransformer::load(&weights, &config, Interpolation::Exact, Device::Cpu).unwrap());
    });
    case.part(|| {
        let weights = case.checkpoint("dino_deitsmall8_pretrain.pth");
        compare("orig", &original(weights.clone(), config.clone()));
        let backbone = weights.rename(|name| Some(format!("backbone.{name}"))).unwrap();
        compare("orig", &original(backbone, config.clone()));
    });
}

pub(super) fn dinov2(case: &Case) {
    let compare = |names: &str, model: &VisionTransformer| {
        let x = case.input("pixel_values");
        let last = model.config().num_hidden_layers as usize;
        let compare = |name: &str, got: &Tensor| case.close(&format!("{names}.{name}"), got, 1.);
        let hidden = model.forward(&x);
        let patches = |tokens: &Tensor| tokens.narrow(1, 1, tokens.size()[1] - 1);
        if names == "hf" {
            compare("last_hidden_state", &hidden);
            compare("pooler_output", &hidden.select(1, 0));
            let states = model.tokens(&x, &[1, 0], false);
            compare("layer0", &states[0]);
            compare("embeddings", &states[1]);
        } else {
            compare("x_norm_clstoken", &hidden.select(1, 0));
            compare("x_norm_patchtokens", &patches(&hidden));
            compare("x_prenorm", &model.tokens(&x, &[last], false)[0]);
            compare("layer_minus2_normed", &model.features(&x, &[last - 1], true)[0]);
        }
        let inputs = case.tensors("inputs.safetensors");
        for size in inputs.names().filter_map(|name| name.strip_prefix("pixel_values_")) {
            let x = inputs.get(&format!("pixel_values_{size}"));
            compare(&format!("tokens_{size}"), &patches(&model.forward(&x)));
        }
    };
    case.part(|| compare("hf", &huggingface(case)));
    case.part(|| {
        compare("orig", &original(case.checkpoint("dinov2_vits14_pretrain.pth"), case.json("hf/config.json")));
    });
}

pub(super) fn reference(case: &Case) {
    let file = case.tensors("dino.safetensors");
    let weights = case.weights("dino_weights");
    let config = VitConfig::of(&names::original(weights.clone()).unwrap()).unwrap();
    // heads are 16 wide here, and 64 in published networks
    let model = original(weights, VitConfig { num_attention_heads: config.hidden_size / 16, ..config });
    let last = model.config().num_hidden_layers as usize;
    for image in file.names().filter_map(|name| name.strip_suffix(".x")) {
        let x = file.get(&format!("{image}.x"));
        let (_, _, height, width) = x.size4().unwrap();
        case.near(&format!("{image}.pos"), &model.positions(height, width), NETWORK);
        case.near(&format!("{image}.tokens"), &model.forward(&x), NETWORK);
        if height == width {
            case.near(&format!("{image}.features"), &model.features(&x, &[last], true)[0], NETWORK);
        }
    }
    if let Some(out) = file.find("resize_quirk.out") {
        case.near("resize_quirk.out", &reinterpret(&file.get("interp.x"), out.size()[3]), 0.);
    }
}

/// Compares networks of the real sizes with the lists of the published files.
pub(super) fn manifests(case: &Case) {
    let dino = |hidden_size: i64, patch_size| VitConfig {
        hidden_size,
        num_attention_heads: hidden_size / 64,
        intermediate_size: Some(4 * hidden_size),
        patch_size,
        ..Default::default()
    };
    let dinov2_small = VitConfig { model_type: "dinov2".to_owned(), image_size: 518, ..dino(384, 14) };
    let networks = [
        ("dino_vits8", dino(384, 8)),
        ("dino_vits16", dino(384, 16)),
        ("dino_vitb8", dino(768, 8)),
        ("dino_vitb16", dino(768, 16)),
        ("dinov2_small", dinov2_small),
    ];
    for (name, config) in networks.iter().filter(|(name, _)| case.has(&format!("{name}.json.gz"))) {
        let theirs = names::original(manifest(case, &format!("{name}.json.gz"))).unwrap();
        compare_shapes(case, name, &theirs, |vs| Ok(VisionTransformer::new(&vs, config, Interpolation::Exact)));
    }
}
