//! The autoencoder against diffusers and the authors' code.

use super::{
    Case,
    networks::{compare_shapes, filled, manifest},
    tolerance::NETWORK,
};
use serde_json::Value;
use tch::{Kind, Tensor};
use vlmdiff::models::{
    nn::observe,
    vae::{AutoencoderKl, AutoencoderKlConfig},
};

/// Compares `models/vae`: the network, and its weights rounded to half precision under older names.
pub(crate) fn vae(case: &Case) {
    let _no_grad = tch::no_grad_guard();
    let config: AutoencoderKlConfig = case.config();
    let weights = config.canonical(case.checkpoint("diffusion_pytorch_model.safetensors")).unwrap();
    for file in ["diffusion_pytorch_model.oldkeys.safetensors", "ldm.safetensors"] {
        if !case.has(file) {
            continue;
        }
        let older = config.canonical(case.checkpoint(file)).unwrap();
        let _fits = filled(&older, |vs| AutoencoderKl::new(vs, &config));
        for name in weights.names() {
            let [got, want] =
                [&older, &weights].map(|file| file.tensor(name).unwrap().to_kind(Kind::Half).flatten(0, -1));
            case.equal(&format!("{file}: {name}"), &(got == want), &true);
        }
    }
    let vae = filled(&weights, |vs| AutoencoderKl::new(vs, &config));
    let (posterior, maps) = observe(|| vae.encode(&case.input("image")));
    let close = |name: &str, got: &Tensor| case.close(name, got, 1.);
    for (name, ours) in [
        ("enc.conv_in", "conv_in"),
        ("enc.down0", "down_blocks.0"),
        ("enc.mid_attn", "mid_block.attentions.0"),
        ("enc.mid", "mid_block"),
    ] {
        close(name, &maps[ours]);
    }
    close("mean", &posterior.mean);
    close("logvar", &posterior.logvar);
    close("std", &posterior.std());
    let sample = posterior.sample(&case.input("noise"));
    close("sample", &sample);
    close("latent_scaled", &(sample * config.scaling_factor));
    close("kl", &posterior.kl());
    close("decode_z", &vae.decode(&(case.input("z") / config.scaling_factor)));
    let (reconstruction, maps) = observe(|| vae.decode(&posterior.mean));
    close("dec.conv_in(mean)", &maps["conv_in"]);
    close("dec.mid(mean)", &maps["mid_block"]);
    close("reconstruction", &reconstruction);
}

/// Returns the configuration of the autoencoder in a latent-diffusion yaml.
pub(crate) fn of_yaml(yaml: &Value) -> AutoencoderKlConfig {
    of_ddconfig(&yaml["model"]["first_stage_config"]["params"]["ddconfig"])
}

/// Returns the configuration of the autoencoder in the `ddconfig` of a latent-diffusion yaml.
pub(crate) fn of_ddconfig(ddconfig: &Value) -> AutoencoderKlConfig {
    let factors = ddconfig["ch_mult"].as_array().unwrap().iter();
    let widths: Vec<i64> = factors.map(|factor| factor.as_i64().unwrap() * ddconfig["ch"].as_i64().unwrap()).collect();
    serde_json::from_value(serde_json::json!({
        "in_channels": ddconfig["in_channels"], "out_channels": ddconfig["out_ch"], "block_out_channels": widths,
        "latent_channels": ddconfig["z_channels"], "layers_per_block": ddconfig["num_res_blocks"],
    }))
    .unwrap()
}

/// Compares `reference/autoencoder`: the autoencoder of the authors, in the layout of their checkpoints.
pub(crate) fn reference(case: &Case) {
    let _no_grad = tch::no_grad_guard();
    let yaml = case.json::<Value>("config.json");
    let config = of_yaml(&yaml);
    let weights = config.canonical(case.weights("weights")).unwrap();
    let vae = filled(&weights, |vs| AutoencoderKl::new(vs, &config));
    let file = case.tensors("autoencoder.safetensors");
    let near = |name: &str, got: &Tensor| case.near(name, got, NETWORK);
    let (posterior, maps) = observe(|| vae.encode(&file.get("x")));
    near("moments", &maps["moments"]);
    near("mean", &posterior.mean);
    near("logvar_clamped", &posterior.logvar);
    near("std", &posterior.std());
    near("kl", &posterior.kl());
    let z = posterior.sample(&file.get("posterior_noise"));
    near("z_scaled", &(&z * config.scaling_factor));
    near("reconstruction", &vae.decode(&z));
    near("decoded_raw", &vae.decode(&file.get("z_raw")));
}

/// Compares the network of the published size with `models/manifests`.
pub(crate) fn published_shapes(case: &Case) {
    if case.has("sd15_vae.json.gz") {
        let config = AutoencoderKlConfig::default();
        let theirs = config.canonical(manifest(case, "sd15_vae.json.gz")).unwrap();
        compare_shapes(case, "sd15_vae", &theirs, |vs| AutoencoderKl::new(vs, &config));
    }
}
