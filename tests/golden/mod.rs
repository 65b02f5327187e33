//! Every network, schedule, metric and resampler compared with its reference implementation, on tiny instances: one
//! test per case.
//!
//! `VLMDIFF_GOLDEN=DIR` compares another set of the same layout, with other sizes and values; its cases name the files
//! and tensors that it lacks. Without it, `data/golden` is compared, which lacks those in its `absent.txt`.

mod anomaly;
mod blip2;
mod captioning;
mod case;
mod clip;
mod control;
mod deepseek_vl;
mod denoising;
mod diad;
mod diffusion;
mod images;
mod inspect;
mod internvl;
mod language;
mod latent_diffusion;
mod lpips;
mod machines;
mod methods;
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

use case::Outcome;
use std::{
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

/// Defines a test for each case: `unet: "models/unet" => unet::unet,` compares these files of the set, which [`Case`]
/// describes, by this function.
macro_rules! cases {
    ($($name:ident: $files:literal => $compare:path,)*) => {
        pub(super) const FILES: &[&str] = &[$($files),*];

        $(
            #[test]
            fn $name() {
                check(stringify!($name), $files, $compare);
            }
        )*
    };
}

/// Cases with arithmetic, whose last digits may differ from machine to machine.
mod numbers {
    use super::*;

    cases! {
        pillow: "models/pil_resize" => images::pillow,
        transforms: "reference/transforms" => images::transforms,
        internvl_tiling: "models/internvl_tiling" => captioning::internvl_tiling,
        clip_text: "models/clip_text" => clip::text,
        clip_full: "models/clip_full" => clip::full,
        clip_reference: "reference/text" => clip::reference,
        vae: "models/vae" => vae::vae,
        vae_reference: "reference/autoencoder" => vae::reference,
        lpips: "models/lpips_vgg" => lpips::compare,
        patchgan: "models/patchgan" => patchgan::compare,
        autoencoder_training: "reference/ae_loss" => training::autoencoder,
        unet: "models/unet" => unet::unet,
        controlnet: "models/controlnet" => control::controlnet,
        control_reference: "reference/network" => control::reference,
        latent_diffusion_in_one_file: "models/sd_ddim_loop" => latent_diffusion::single_file,
        schedules: "models/schedules" => schedule::schedules,
        schedule_reference: "reference/schedule" => schedule::reference,
        sampling_loops: "models/sd_ddim_loop" => diffusion::loops,
        sampling_reference: "reference/sampling" => diffusion::reference_sampling,
        training_steps: "models/training" => training::steps,
        denoiser_training: "reference/training" => denoising::steps,
        positions: "models/pos_embed" => vit::positions,
        dino: "models/dino_vit" => vit::dino,
        dino_reference: "reference/dino" => vit::reference,
        dinov2: "models/dinov2" => vit::dinov2,
        resnet50: "models/resnet50" => resnet::resnet50,
        internvl_qwen2: "models/internvl2_qwen2" => internvl::chat,
        internvl_internlm2: "models/internvl2_internlm2" => internvl::chat,
        internvl_native: "models/internvl_hf" => internvl::native,
        deepseek_vl: "models/deepseek_vl" => deepseek_vl::compare,
        blip2_opt: "models/blip2_opt" => blip2::compare,
        blip2_t5: "models/blip2_t5" => blip2::compare,
        patchcore: "methods/patchcore" => methods::patchcore,
        nearest_patches: "methods/knn_dinov2" => methods::nearest_patches,
        anomaly_dino: "methods/anomalib_dino" => methods::anomaly_dino,
        rad: "methods/rad" => methods::rad,
        diad: "methods/diad" => diad::compare,
        reverse_distillation: "methods/rd" => methods::reverse_distillation,
        anomaly_maps: "reference/anomaly" => anomaly::maps,
        metrics: "models/metrics" => metrics::metrics,
        metrics_reference: "reference/metrics" => metrics::reference,
    }
}

/// Cases that compare only names, shapes and stored values, or only which parameters have a gradient.
mod names {
    use super::*;

    cases! {
        weight_generator: "reference/weight_generator_vectors" => weights::compare,
        pickles: "models/pickles" => pickles::compare,
        training_checkpoints: "reference/sample_ckpt_expected" => pickles::samples,
        architectures: "models/manifests" => inspect::manifests,
        vlmdiff_architecture: "reference/full_manifest" => inspect::full_manifest,
        clip_tokenizer: "models/clip_tokenizer" => tokenizer::compare,
        qwen2_tokenizer: "models/qwen2_tokenizer" => captioning::qwen2_tokenizer,
        internlm2_tokenizer: "models/internlm2_tokenizer" => captioning::internlm2_tokenizer,
        internvl_prompts: "models/internvl_prompts" => captioning::internvl_prompts,
        clip_shapes: "models/manifests" => clip::published_shapes,
        vae_shapes: "models/manifests" => vae::published_shapes,
        vgg16_shapes: "models/manifests" => lpips::vgg16,
        patchgan_shapes: "models/manifests" => patchgan::real,
        unet_shapes: "models/manifests" => unet::published_shapes,
        controlnet_shapes: "models/manifests" => control::published_shapes,
        vlmdiff_shapes: "reference/full_manifest" => latent_diffusion::full_manifest,
        zero_init: "reference/zero_init_experiment" => denoising::zero_init,
        vit_shapes: "models/manifests" => vit::manifests,
        blip2_shapes: "models/manifests" => blip2::published_shapes,
        internvl_shapes: "models/manifests" => internvl::published_shapes,
        resnet_shapes: "models/manifests" => resnet::manifest,
        distillation_shapes: "methods/manifests" => methods::distillation_shapes,
    }
}

/// Returns a command that runs the cases with arithmetic again, to compare another set or with the settings of another
/// machine. With a name, it runs those whose names contain it.
fn child(name: &str) -> Command {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args([&format!("golden::numbers::{name}"), "--nocapture"]);
    child
}

/// Runs a [`child`]. Returns true if all its cases passed, the numbers of cases and values that it compared, and its
/// output.
fn compared(child: &mut Command) -> (bool, [usize; 2], String) {
    let output = child.output().unwrap();
    let said = String::from_utf8_lossy(&[output.stderr, output.stdout].concat()).into_owned();
    let count = |line: &str| line.strip_prefix(SAID)?.split_once(" compared")?.0.rsplit_once(' ')?.1.parse().ok();
    let counts: Vec<usize> = said.lines().filter_map(count).collect();
    (output.status.success(), [counts.len(), counts.iter().sum()], said)
}

/// The begin of the lines that cases print.
const SAID: &str = "golden case ";

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

/// Compares a case, and prints how many values it compared and what the set lacks.
fn check(name: &str, files: &str, compare: fn(&Case)) {
    // The default is one thread, because the comparisons are small.
    if std::env::var_os("OMP_NUM_THREADS").is_none() {
        tch::set_num_threads(1);
    }
    let (folder, is_own) = set();
    assert!(folder.is_dir(), "{}: there is no such folder", folder.display());
    let case = Case::new(&folder, files);
    if case.exists() {
        case.part(|| compare(&case));
    } else {
        case.absent("all of it");
    }
    let Outcome { compared, worst, mut absent, failures } = case.finish();
    absent.sort();
    absent.dedup();
    let worst = worst.map_or(String::new(), |(of, share)| format!(", worst {share:.0e} of what is allowed: {of}"));
    let mut said = String::new();
    if compared > 0 {
        said += &format!("{SAID}{name}, {files}: {compared} compared{worst}\n");
    }
    said.extend(absent.iter().map(|what| format!("{SAID}{name}, not compared, absent: {files}: {what}\n")));
    say(&said);
    let failures: Vec<String> = failures.iter().map(|failure| format!("{files}: {failure}")).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(compared > 0 || !absent.is_empty(), "{files}: nothing is compared");
    if is_own {
        let listed = absent_from(&folder);
        let listed: Vec<&String> = listed.iter().filter(|(of, _)| of == files).map(|(_, what)| what).collect();
        assert_eq!(absent.iter().collect::<Vec<_>>(), listed, "what data/golden lacks stands in its absent.txt");
    }
}

/// Returns the lines of `absent.txt`: the files of a case, and what they lack.
fn absent_from(folder: &Path) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(folder.join("absent.txt")).unwrap();
    let pair = |line: &str| line.split_once(": ").map(|(files, what)| (files.to_owned(), what.to_owned()));
    text.lines().map(|line| pair(line).unwrap_or_else(|| panic!("absent.txt: {line}"))).collect()
}

#[test]
fn every_line_of_absent_txt_is_about_a_case() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/golden");
    for (files, _) in absent_from(&folder) {
        assert!([numbers::FILES, names::FILES].concat().contains(&&*files), "absent.txt: there is no case `{files}`");
    }
}
