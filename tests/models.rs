//! Tests `vlmdiff models` with a hub on this machine.

use std::{collections::HashMap, fs};

use sha2::{Digest, Sha256};
use tch::{Device, Tensor, nn::VarStore};
use vlmdiff::models::{
    checkpoint::to_safetensors,
    vae::{AutoencoderKl, AutoencoderKlConfig},
};

use crate::{
    lab::{Ended, Lab},
    web::{Request, serve},
};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Serves repositories as the Hugging Face hub does: every file at one commit, weights with their SHA-256, other
/// files with git's SHA-1.
fn hub(files: Vec<(&'static str, Vec<u8>)>) -> String {
    serve(move |Request { path, range }| {
        let file = files.iter().find(|(file, _)| path.replace("/resolve/main/", "/") == *file);
        match (file, range) {
            (Some((name, content)), Some((start, end))) => {
                let part = &content[*start..(end + 1).min(content.len())];
                let etag = if name.ends_with(".safetensors") { sha256(content) } else { git(content) };
                let range = format!("Content-Range: bytes {start}-{end}/{}", content.len());
                let head = format!("{range}\r\nETag: \"{etag}\"\r\nX-Repo-Commit: {COMMIT}\r\n");
                ("206 Partial Content", head, part.to_vec())
            }
            _ if path.starts_with("api/models/org/") => {
                let repo = path.trim_start_matches("api/models/").split("/revision").next().unwrap();
                let below = files.iter().filter_map(|(file, _)| file.strip_prefix(repo)?.strip_prefix('/'));
                let siblings: Vec<_> = below.map(|file| serde_json::json!({ "rfilename": file })).collect();
                let info = serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string();
                ("200 OK", "Content-Type: application/json\r\n".to_owned(), info.into_bytes())
            }
            _ if path.starts_with("closed/") => ("401 Unauthorized", String::new(), Vec::new()),
            _ => ("404 Not Found", String::new(), Vec::new()),
        }
    })
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sha256(content: &[u8]) -> String {
    hex(Sha256::digest(content))
}

fn git(content: &[u8]) -> String {
    use sha1::Sha1;
    hex(Sha1::new_with_prefix(format!("blob {}\0", content.len())).chain_update(content).finalize())
}

/// Returns weights of a DINO ViT in Hugging Face layout: two blocks, 4x4 patches of side 8, width 12.
fn dino() -> Vec<u8> {
    let mut tensors: Vec<(String, Vec<i64>)> = vec![
        ("embeddings.cls_token".into(), vec![1, 1, 12]),
        ("embeddings.position_embeddings".into(), vec![1, 17, 12]),
    ];
    let mut layer = |name: String, shape: Vec<i64>| {
        tensors.push((format!("{name}.bias"), shape[..1].to_vec()));
        tensors.push((format!("{name}.weight"), shape));
    };
    layer("embeddings.patch_embeddings.projection".into(), vec![12, 3, 8, 8]);
    layer("layernorm".into(), vec![12]);
    for block in 0..2 {
        let at = |name: &str| format!("encoder.layer.{block}.{name}");
        let square = [
            "attention.attention.query",
            "attention.attention.key",
            "attention.attention.value",
            "attention.output.dense",
        ];
        square.iter().for_each(|name| layer(at(name), vec![12, 12]));
        layer(at("intermediate.dense"), vec![48, 12]);
        layer(at("output.dense"), vec![12, 48]);
        ["layernorm_before", "layernorm_after"].iter().for_each(|name| layer(at(name), vec![12]));
    }
    let tensors = tensors.into_iter().map(|(name, shape)| (name, Tensor::ones(shape, tch::kind::FLOAT_CPU)));
    to_safetensors(tensors, HashMap::from([("format".to_owned(), "pt".to_owned())])).unwrap()
}

fn models(lab: &Lab, hub: &str, arguments: &[&str]) -> Ended {
    lab.ended(
        lab.command(&[&["models"], arguments].concat()).env("HF_ENDPOINT", hub).env("XDG_CACHE_HOME", lab.path("user")),
    )
}

fn shown(ended: &Ended) -> String {
    format!("exit {}\n--- stdout\n{}--- stderr\n{}", ended.code.unwrap_or(-1), ended.stdout, ended.stderr)
}

#[test]
fn fetched_checkpoint_is_found_inspected_and_verified() {
    let weights = dino();
    let config = b"{\"patch_size\": 8}".to_vec();
    let hub = hub(vec![
        ("facebook/dino-vits8/config.json", config.clone()),
        ("facebook/dino-vits8/model.safetensors", weights.clone()),
        ("org/many/config.json", config.clone()),
        ("org/many/model.safetensors", weights.clone()),
        ("org/many/flax_model.msgpack", config),
        ("org/choice/a/one.safetensors", weights.clone()),
        ("org/choice/two.ckpt", weights),
    ]);
    let lab = Lab::empty();
    let run = |arguments: &[&str]| models(&lab, &hub, arguments);
    let absent = run(&["inspect", "dino-vits8"]);
    assert_eq!(absent.stderr, "error: dino-vits8 is not on this machine: vlmdiff models fetch dino-vits8\n");
    assert_eq!(absent.code, Some(2));

    let folder = format!("[lab]/hub/models--facebook--dino-vits8/snapshots/{COMMIT}");
    let fetched = run(&["fetch", "dino-vits8"]);
    assert_eq!((fetched.code, fetched.stdout), (Some(0), format!("dino-vits8  {folder}\n")), "{}", fetched.stderr);
    assert_eq!(fetched.stderr, "fetching model.safetensors\nfetching config.json\n");
    assert_eq!(run(&["fetch", "dino-vits8"]).stderr, "", "nothing is fetched again");
    insta::assert_snapshot!("models_inspect", shown(&run(&["inspect", "dino-vits8"])).replace(COMMIT, "[commit]"));
    insta::assert_snapshot!("models_verify", shown(&run(&["verify", "dino-vits8"])).replace(COMMIT, "[commit]"));

    // The usual files of a repository that is not in the list are fetched, and one file of another.
    assert_eq!(run(&["fetch", "org/many"]).stderr, "fetching model.safetensors\nfetching config.json\n");
    assert_eq!(run(&["verify", "org/many"]).code, Some(0));
    assert_eq!(run(&["fetch", "org/choice/two.ckpt"]).code, Some(0));
    let choice = "org/choice has several files of weights; name one: org/choice/a/one.safetensors, org/choice/two.ckpt";
    assert_eq!(run(&["fetch", "org/choice"]).stderr, format!("error: {choice}\n"));

    // Damage is reported.
    let path = lab.path(&folder.replace("[lab]/", "")).join("model.safetensors").canonicalize().unwrap();
    let mut damaged = fs::read(&path).unwrap();
    *damaged.last_mut().unwrap() ^= 1;
    fs::write(&path, &damaged).unwrap();
    let verified = run(&["verify", "dino-vits8"]);
    assert_eq!(verified.code, Some(1));
    assert!(verified.stdout.contains("wrong  dino-vits8  model.safetensors: SHA-256 is "), "{}", verified.stdout);
    fs::remove_file(path).unwrap();
    let part = run(&["inspect", "dino-vits8"]).stderr;
    assert!(part.starts_with("error: dino-vits8 is not whole, [lab]/hub/models--facebook"), "{part}");
    assert!(part.ends_with("/model.safetensors is missing: vlmdiff models fetch dino-vits8\n"), "{part}");
}

#[test]
fn error_of_a_missing_repository_or_file_names_it() {
    let lab = Lab::empty();
    let hub = hub(vec![]);
    let error = |hub: &str, name: &str| {
        let ended = models(&lab, hub, &["fetch", name]);
        (ended.code, ended.stderr.lines().last().unwrap_or_default().replace(hub, "[hub]"))
    };
    let missing = "error: [hub]/org/none/model.bin does not exist";
    assert_eq!(error(&hub, "org/none/model.bin"), (Some(2), missing.into()));
    let (code, text) = error(&hub, "closed/model/model.bin");
    assert_eq!(code, Some(2));
    assert!(
        text.contains("it does not exist or needs a login; accept its licence on its page there and set HF_TOKEN"),
        "{text}"
    );
    let (code, text) = error("http://127.0.0.1:9", "dino-vits8");
    assert_eq!(code, Some(1));
    let offline = "error: cannot fetch dino-vits8: 127.0.0.1:9 cannot be reached (Connection refused (os error 111)). \
                   What was received is kept. Without a network, copy the files from a machine that has one: [lab]/hub \
                   or [lab]/cache, or name their path";
    assert_eq!(text, offline);
}

#[test]
fn error_of_invalid_weights_names_the_defect() {
    let lab = Lab::empty();
    let whole = dino();
    let files: [(&str, &[u8]); 5] = [
        ("pointer.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"),
        ("page.ckpt", b"<!DOCTYPE html><html><title>Sign in</title></html>"),
        ("cut.safetensors", &whole[..whole.len() / 2]),
        ("cut.ckpt", b"PK\x03\x04cut"),
        ("config.json", b"{\"patch_size\": 8}"),
    ];
    for (name, content) in files {
        fs::write(lab.path(name), content).unwrap();
    }
    fs::create_dir_all(lab.path("folder/unet")).unwrap();
    let names = files.iter().map(|(name, _)| *name).chain(["folder", "dino-vit8", "nothing/here"]);
    let told = names.map(|name| models(&lab, "http://127.0.0.1:9", &["inspect", name])).map(|ended| {
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""));
        ended.stderr
    });
    insta::assert_snapshot!("models_wrong", told.collect::<String>());
}

#[test]
fn weights_saved_within_a_wrapper_are_loaded() {
    let lab = Lab::empty();
    let config = r#"{ "block_out_channels": [4], "layers_per_block": 1, "norm_num_groups": 2 }"#;
    let vs = VarStore::new(Device::Cpu);
    let _network =
        AutoencoderKl::new(vs.root(), &serde_json::from_str::<AutoencoderKlConfig>(config).unwrap()).unwrap();
    lab.write(
        "pipeline.yaml",
        &format!(
            "name: wrapped\ntables:\n  autoencoder: {{ stage: pretrained, with: {{ network: autoencoder, \
             weights: weights.safetensors, config: {config} }} }}\n"
        ),
    );
    for prefix in ["", "module.", "_orig_mod.", "module._orig_mod.", "trainer.vae."] {
        let wrapped = vs.variables().into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor));
        fs::write(lab.path("weights.safetensors"), to_safetensors(wrapped, HashMap::new()).unwrap()).unwrap();
        let ended = lab.vlmdiff(&["run", "pipeline.yaml", "--quiet"]);
        assert_eq!(ended.code, Some(0), "{prefix}: {}", ended.stderr);
    }
    let other = vs.variables().into_iter().map(|(name, tensor)| (format!("module.other.{name}"), tensor)).skip(1);
    fs::write(lab.path("weights.safetensors"), to_safetensors(other, HashMap::new()).unwrap()).unwrap();
    assert_eq!(lab.vlmdiff(&["run", "pipeline.yaml", "--quiet"]).code, Some(2), "one of its tensors is missing");
}

#[test]
fn list_names_every_checkpoint() {
    let lab = Lab::empty();
    insta::assert_snapshot!("models_list", shown(&models(&lab, "", &["list"])));
    let all: serde_json::Value = serde_json::from_str(&models(&lab, "", &["list", "--format", "json"]).stdout).unwrap();
    assert!(all.as_array().unwrap().iter().all(|known| known["path"].is_null() && known["licence"].is_string()));
}
