//! Every network, schedule, metric and resampler compared with its reference implementation, on tiny instances.
//!
//! `VLMDIFF_GOLDEN=DIR` compares another set of the same layout, with other sizes and values, and lists the files and
//! tensors that it lacks. Without it, `data/golden` is compared, which lacks those in its `absent.txt`.
//! `VLMDIFF_GOLDEN_ONLY=unet` compares the cases whose names contain `unet`.

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
mod machines;
mod metrics;
mod networks;
mod patchgan;
mod pickles;
mod resnet;
mod schedule;
mod tokenizer;
mod tolerance;
mod training;
mod unet;
mod vae;
mod variants;
mod vit;
mod weights;

pub(crate) use case::Case;

use std::{io::Write, path::PathBuf, process::Command};

/// The cases: a folder of `models`, or files of `reference`, and the function that compares them.
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
    ("models/schedules", schedule::schedules),
    ("reference/schedule", schedule::reference),
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

/// Cases that compare only names and shapes, or only which parameters have a gradient.
const WITHOUT_ARITHMETIC: [&str; 7] = [
    "reference/weight_generator_vectors",
    "models/pickles",
    "reference/sample_ckpt_expected",
    "models/manifests",
    "reference/full_manifest",
    "models/clip_tokenizer",
    "reference/zero_init_experiment",
];

/// The variable that is set in a process that makes only the comparisons of one set.
const ALONE: &str = "VLMDIFF_GOLDEN_ALONE";

/// The value of [`ALONE`] that leaves out the cases without arithmetic.
const NUMBERS: &str = "numbers";

/// Returns a command that runs this program again, to compare another set or with the settings of another machine.
fn child() -> Command {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "golden::networks_equal_their_reference_implementations", "--nocapture"]).env(ALONE, "1");
    child
}

/// Prints a text also if the test passes; the test harness swallows the output of `eprintln`.
fn say(text: &str) {
    std::io::stderr().write_all(text.as_bytes()).unwrap();
}

/// Returns the folder of the set, and true if it is the one of this repository.
fn set() -> (PathBuf, bool) {
    match std::env::var_os("VLMDIFF_GOLDEN") {
        Some(folder) => (PathBuf::from(folder), false),
        None => (PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data/golden"), true),
    }
}

#[test]
fn networks_equal_their_reference_implementations() {
    // The default is one thread, because the comparisons are small.
    if std::env::var_os("OMP_NUM_THREADS").is_none() {
        tch::set_num_threads(1);
    }
    let (folder, own) = set();
    assert!(folder.is_dir(), "{}: there is no such folder", folder.display());
    let only = std::env::var("VLMDIFF_GOLDEN_ONLY").unwrap_or_default();
    let mut report = format!("\ngolden set {}\n", folder.display());
    let (mut cases, mut tensors, mut failed, mut absent) = (0, 0, Vec::new(), Vec::new());
    let numbers_alone = std::env::var(ALONE).is_ok_and(|what| what == NUMBERS);
    let chosen =
        CASES.iter().filter(|(name, _)| name.contains(&only) && !(numbers_alone && WITHOUT_ARITHMETIC.contains(name)));
    for (name, compare) in chosen {
        let case = Case::new(&folder, name);
        if !case.exists() {
            absent.push(format!("{name}: all of it"));
            continue;
        }
        case.part(|| compare(&case));
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
    say(&report);
    if own && only.is_empty() && !numbers_alone {
        let listed = std::fs::read_to_string(folder.join("absent.txt")).unwrap();
        let listed: Vec<&str> = listed.lines().collect();
        assert_eq!(absent, listed, "what data/golden leaves out stands in its absent.txt");
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
