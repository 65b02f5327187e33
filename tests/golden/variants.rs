//! Comparison of sets with the layout of this repository's set but other content.

use super::compared;
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
};
use tch::Tensor;
use vlmdiff::models::checkpoint::to_safetensors;

/// Copies the set of this repository to a folder of its own.
fn copy() -> tempfile::TempDir {
    let (own, folder) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("data/golden"), tempfile::tempdir().unwrap());
    for entry in walkdir::WalkDir::new(&own).into_iter().map(Result::unwrap) {
        let target = folder.path().join(entry.path().strip_prefix(&own).unwrap());
        if entry.file_type().is_dir() {
            fs::create_dir_all(&target).unwrap();
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
    folder
}

/// Changes the tensors of a file.
fn change(file: &Path, change: impl FnOnce(&mut BTreeMap<String, Tensor>)) {
    let mut tensors: BTreeMap<String, Tensor> = Tensor::read_safetensors(file).unwrap().into_iter().collect();
    change(&mut tensors);
    fs::write(file, to_safetensors(tensors, HashMap::new()).unwrap()).unwrap();
}

/// Changes the content of a JSON file.
fn rewrite(file: &Path, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    change(&mut value);
    fs::write(file, value.to_string()).unwrap();
}

/// Returns ᾱ of Stable Diffusion's schedule.
fn alphas() -> Vec<f64> {
    let (first, last) = (0.00085_f64.sqrt(), 0.012_f64.sqrt());
    let beta = |t: u32| (first + f64::from(t) * (last - first) / 999.).powi(2);
    let mut alpha = 1.;
    let mut next = |t| {
        alpha *= 1. - beta(t);
        alpha
    };
    (0..1000).map(&mut next).collect()
}

/// Makes a set with samplers of 10 and 25 steps, other timesteps and rows, fewer layers and without some files.
fn others() -> tempfile::TempDir {
    let folder = copy();
    let at = |name: &str| folder.path().join(name);
    let inputs = Tensor::read_safetensors(at("models/schedules/inputs.safetensors")).unwrap();
    let inputs: HashMap<String, Tensor> = inputs.into_iter().collect();
    let (x, eps, noise) = (&inputs["x"], &inputs["eps"], &inputs["noise"]);
    let alphas = alphas();
    rewrite(&at("models/schedules/meta.json"), |meta| meta["note"] = "after set_timesteps(10)".into());
    change(&at("models/schedules/expected.safetensors"), |tensors| {
        tensors.retain(|name, _| {
            let steps = name.starts_with("ddim.") || name.contains("_timesteps.");
            !steps && !name.starts_with("cosine.") && !name.ends_with(".250")
        });
        for name in ["timestep_embedding.320.flip", "timestep_embedding.32.noflip_shift1"] {
            let some = tensors[name].index_select(0, &Tensor::from_slice(&[3_i64, 1]));
            tensors.insert(name.to_owned(), some);
        }
        let leading: Vec<i64> = (0..25).rev().map(|i| 40 * i + 1).collect();
        tensors.insert("ddim_timesteps.leading.25".to_owned(), Tensor::from_slice(&leading));
        let noisy = x * alphas[500].sqrt() + noise * (1. - alphas[500]).sqrt();
        tensors.insert("sd.add_noise.500".to_owned(), noisy);
        for (set, offset) in [("sd", 1), ("plain", 0)] {
            for t in [900 + offset, 400 + offset, offset] {
                let alpha = alphas[t];
                let last = if set == "plain" { 1. } else { alphas[0] };
                let end = t.checked_sub(100).map_or(last, |t| alphas[t]);
                let x0 = (x - eps * (1. - alpha).sqrt()) / alpha.sqrt();
                let name = |what: &str| format!("ddim.{set}.epsilon.t{t}.eta0.0.{what}");
                tensors.insert(name("prev"), &x0 * end.sqrt() + eps * (1. - end).sqrt());
                tensors.insert(name("x0"), x0);
            }
        }
    });
    fs::remove_file(at("models/resnet50/model.safetensors")).unwrap();
    fs::remove_dir_all(at("models/dinov2/hf")).unwrap();
    fs::remove_dir_all(at("models/pos_embed")).unwrap();
    change(&at("models/unet/inputs.safetensors"), |tensors| _ = tensors.remove("sample_odd"));
    change(&at("models/unet/expected.safetensors"), |tensors| tensors.retain(|name, _| name != "up3"));
    change(&at("models/training/expected.safetensors"), |tensors| tensors.retain(|name, _| !name.ends_with(".4")));
    rewrite(&at("reference/training.json"), |json| _ = json.as_object_mut().unwrap().remove("checkpointing_check"));
    change(&at("reference/sampling.safetensors"), |tensors| tensors.retain(|name, _| !name.starts_with("caption.")));
    folder
}

#[test]
fn the_files_that_another_set_has_are_compared_and_missing_ones_are_listed() {
    let set = others();
    let (passes, [cases, _], said) = compared(super::child("").env("VLMDIFF_GOLDEN", set.path()));
    assert!(passes && cases > 0, "{said}");
    for absent in [
        "models/resnet50: model.safetensors",
        "models/dinov2: hf",
        "models/pos_embed: all of it",
        "models/unet: sample_odd of inputs.safetensors, and what needs it",
        "reference/training: checkpointing_check",
        "reference/sampling: caption.context of sampling.safetensors, and what needs it",
    ] {
        assert!(said.contains(&format!("not compared, absent: {absent}")), "{absent} is not said\n{said}");
    }
    // A wrong value of a file that is there fails, and so does an unknown tensor.
    change(&set.path().join("models/schedules/expected.safetensors"), |tensors| {
        let step = tensors.get_mut("ddim.sd.epsilon.t401.eta0.0.prev").unwrap();
        *step = &*step * 1.0001;
        tensors.insert("sd.colour.7".to_owned(), Tensor::from_slice(&[1_f32]));
    });
    let (passes, _, said) = compared(super::child("schedules").env("VLMDIFF_GOLDEN", set.path()));
    assert!(!passes, "{said}");
    assert!(said.contains("models/schedules: ddim.sd.epsilon.t401.eta0.0.prev differs by"), "{said}");
    assert!(said.contains("models/schedules: sd.colour.7 of expected.safetensors is not compared"), "{said}");
}
