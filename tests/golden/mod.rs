//! Every network, schedule, metric and resampler beside its reference implementation, on tiny instances.
//!
//! `VLMDIFF_GOLDEN=DIR` compares another set of the same layout, with other sizes and values, and lists what it lacks; without it
//! `data/golden` is compared, which lacks what its `absent.txt` says. `VLMDIFF_GOLDEN_ONLY=unet` compares the cases whose name has `unet` in it.

mod anomaly;
mod case;
mod clip;
mod control;
mod denoising;
mod diffusion;
mod images;
mod inspect;
mod latent_diffusion;
mod lpips;
mod metrics;
mod networks;
mod patchgan;
mod pickles;
mod resnet;
mod tokenizer;
mod training;
mod unet;
mod vae;
mod vit;
mod weights;

use case::Absent;
pub(crate) use case::Case;

use std::{
    io::Write,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
};

/// The cases: a folder of `models`, or files of `reference`, and what is compared there.
const CASES: &[(&str, fn(&Case))] = &[
    ("reference/weight_generator_vectors", weights::compare),
    ("models/pickles", pickles::compare),
    ("reference/sample_ckpt_expected", pickles::samples),
    ("models/manifests", inspect::manifests),
    ("reference/full_manifest", inspect::full_manifest),
    ("models/pil_resize", images::pillow),
    ("reference/transforms", images::transforms),
    ("models/clip_tokenizer", tokenizer::compare),
    ("models/clip_text", clip::text),
    ("models/clip_full", clip::full),
    ("models/manifests", clip::published_shapes),
    ("reference/text", clip::reference),
    ("models/vae", vae::vae),
    ("models/manifests", vae::published_shapes),
    ("reference/autoencoder", vae::reference),
    ("models/lpips_vgg", lpips::compare),
    ("models/manifests", lpips::vgg16),
    ("models/patchgan", patchgan::compare),
    ("models/manifests", patchgan::real),
    ("reference/ae_loss", training::autoencoder),
    ("models/unet", unet::unet),
    ("models/manifests", unet::published_shapes),
    ("models/controlnet", control::controlnet),
    ("models/manifests", control::published_shapes),
    ("reference/network", control::reference),
    ("reference/full_manifest", latent_diffusion::full_manifest),
    ("models/sd_ddim_loop", latent_diffusion::single_file),
    ("models/schedules", diffusion::schedules),
    ("reference/schedule", diffusion::reference_schedule),
    ("models/sd_ddim_loop", diffusion::loops),
    ("reference/sampling", diffusion::reference_sampling),
    ("models/training", training::steps),
    ("reference/training", denoising::steps),
    ("reference/zero_init_experiment", denoising::zero_init),
    ("models/pos_embed", vit::positions),
    ("models/dino_vit", vit::dino),
    ("reference/dino", vit::reference),
    ("models/dinov2", vit::dinov2),
    ("models/manifests", vit::manifests),
    ("models/resnet50", resnet::resnet50),
    ("models/manifests", resnet::manifest),
    ("reference/anomaly", anomaly::maps),
    ("models/metrics", metrics::metrics),
    ("reference/metrics", metrics::reference),
];

/// The folder of the set, and whether it is the one of this repository.
fn set() -> (PathBuf, bool) {
    match std::env::var_os("VLMDIFF_GOLDEN") {
        Some(folder) => (PathBuf::from(folder), false),
        None => (PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data/golden"), true),
    }
}

#[test]
fn networks_equal_their_reference_implementations() {
    let (folder, own) = set();
    assert!(folder.is_dir(), "{}: there is no such folder", folder.display());
    let only = std::env::var("VLMDIFF_GOLDEN_ONLY").unwrap_or_default();
    let mut report = format!("\ngolden set {}\n", folder.display());
    let (mut cases, mut tensors, mut failed, mut absent) = (0, 0, Vec::new(), Vec::new());
    for (name, compare) in CASES.iter().filter(|(name, _)| name.contains(&only)) {
        let case = Case::new(&folder, name);
        if !case.exists() {
            absent.push(format!("{name}: all of it"));
            continue;
        }
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| compare(&case))) {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            match panic.downcast_ref::<Absent>() {
                Some(Absent(file)) => case.absent(&format!("{file}, and what needs it")),
                None => case.fail(text.unwrap_or_default()),
            }
        }
        let outcome = case.finish();
        report += &format!("  {name:36} {:4} compared", outcome.compared);
        report += &outcome
            .worst
            .map_or(String::new(), |(name, share)| format!(", worst {share:.0e} of what is allowed: {name}"));
        report += "\n";
        failed.extend(outcome.failures.iter().map(|failure| format!("{name}: {failure}")));
        absent.extend(outcome.absent.iter().map(|what| format!("{name}: {what}")));
        cases += 1;
        tensors += outcome.compared;
    }
    absent.sort();
    absent.dedup();
    report.extend(absent.iter().map(|what| format!("  not compared, absent: {what}\n")));
    report += &format!("{cases} cases and {tensors} tensors and numbers compared, {} differ\n", failed.len());
    // not by `eprintln`, which a passing test swallows
    std::io::stderr().write_all(report.as_bytes()).unwrap();
    if own && only.is_empty() {
        let listed = std::fs::read_to_string(folder.join("absent.txt")).unwrap();
        let listed: Vec<&str> = listed.lines().collect();
        assert_eq!(absent, listed, "what data/golden leaves out stands in its absent.txt");
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
