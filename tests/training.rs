//! Trainings: their visible rows, interruption, and initial weights.

use std::{
    collections::HashMap,
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tch::{Device, Tensor, nn::VarStore};
use vlmdiff::{
    engine::store::{Current, Store},
    models::{
        checkpoint::{Checkpoint, to_safetensors},
        lpips::Lpips,
        unet::UNet2DConditionModel,
    },
};

use crate::lab::{Lab, TOY, toy_above};

/// Returns a pipeline of an autoencoder with all features of a training: two optimisers of which one begins later,
/// micro-batches, an average, stored weights during training.
fn pipeline() -> String {
    replaced(
        "training: { steps: 4, batch_size: 4, lr: 1.0e-3, ema_decay: 0.9, log_every: 2 }",
        "perceptual: [perceptual.safetensors]
      discriminator: { start: 60, batch_norm: train, config: { ndf: 4, n_layers: 1 } }
      training: { steps: 240, batch_size: 3, accumulate: 2, optimizer: adam, betas: [0.5, 0.9], lr: 1.0e-3, ema_decay: 0.9,
                  log_every: 2, checkpoint_every: 50 }",
    )
}

/// Returns the toy pipeline with a part replaced.
fn replaced(part: &str, by: &str) -> String {
    assert!(TOY.contains(part), "the toy pipeline has no `{part}`");
    TOY.replace(part, by)
}

fn lab() -> Lab {
    let lab = Lab::new(&pipeline());
    perceptual(&lab);
    lab
}

/// Writes narrow networks of a perceptual loss, `perceptual.safetensors`.
pub(crate) fn perceptual(lab: &Lab) {
    let [vgg, lin] = [(); 2].map(|()| VarStore::new(Device::Cpu));
    tch::manual_seed(1);
    let _ = Lpips::new(&vgg.root(), &lin.root(), [2, 2, 2, 2, 2]);
    save(lab, "perceptual.safetensors", vgg.variables().into_iter().chain(lin.variables()));
}

pub(crate) fn save(lab: &Lab, file: &str, tensors: impl Iterator<Item = (String, Tensor)>) {
    let bytes = to_safetensors(tensors.collect::<Vec<_>>(), HashMap::new()).unwrap();
    std::fs::write(lab.path(file), bytes).unwrap();
}

/// Starts a run in a process group of its own, as a shell in a terminal does.
fn start(lab: &Lab, until: &str) -> Child {
    let mut run = lab.command(&["run", "pipeline.yaml", "--until", until]);
    run.process_group(0).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Interrupts a run as a terminal does at Ctrl-C. Returns its messages.
fn interrupt(run: Child) -> String {
    let signal = format!("kill -INT -- -{}", run.id());
    assert!(Command::new("bash").args(["-c", &signal]).status().unwrap().success());
    let ended = run.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(130), "{said}");
    assert!(said.contains("stopped at step") && said.contains("error: interrupted"), "{said}");
    said
}

/// Waits until SQL sees rows of a training, and returns them.
fn rows(lab: &Lab, run: &mut Child, query: &str) -> Vec<String> {
    let deadline = Instant::now() + Duration::from_secs(240);
    while Instant::now() < deadline {
        assert!(run.try_wait().unwrap().is_none(), "the training was over before its rows were seen");
        let seen = lab.vlmdiff(&["sql", query, "--format", "csv"]);
        if seen.code == Some(0) && seen.stdout.lines().count() > 1 {
            return seen.stdout.lines().skip(1).map(str::to_owned).collect();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("no rows were seen");
}

const ROWS: &str = "select step, loss, disc_loss, rows_per_s, weights from autoencoder order by step";

fn is_published(lab: &Lab) -> bool {
    let store = Store::open(&lab.path(".vlmdiff").to_string_lossy()).unwrap();
    matches!(store.published("toy", "autoencoder").unwrap(), Current::Whole(..))
}

/// Runs to the end. The result must be that of an uninterrupted run.
fn finish(lab: &Lab, until: &str) {
    let last = lab.vlmdiff(&["run", "pipeline.yaml", "--until", until]);
    assert!(last.code == Some(0) && last.stderr.contains("goes on from step"), "{}", last.stderr);
    assert_eq!(lab.contents("undisturbed"), lab.contents(".vlmdiff"));
}

#[test]
fn rows_of_a_running_training_are_visible_and_ctrl_c_saves() {
    let lab = lab();
    lab.run(&["--store", "undisturbed", "--until", "autoencoder"]);
    let mut run = start(&lab, "autoencoder");
    let seen = rows(&lab, &mut run, ROWS);
    assert!(seen[0].starts_with("2,") && seen.len() < 120, "{seen:?}");
    assert!(!is_published(&lab));
    let plan = lab.vlmdiff(&["plan", "pipeline.yaml", "--target", "autoencoder"]).stdout;
    assert!(plan.contains("autoencoder  to compute"), "{plan}");
    interrupt(run);
    assert_eq!(lab.sql(".vlmdiff", "select status from runs"), ["interrupted"]);
    // An unfinished table is not visible once no run works on it.
    let none = lab.vlmdiff(&["sql", "select * from autoencoder"]);
    assert!(none.code == Some(2) && none.stderr.contains("autoencoder"), "{}{}", none.stdout, none.stderr);
    finish(&lab, "autoencoder");
    // There are 120 rows, of which four name weights during training and the last the final ones. A clean-up keeps
    // them all.
    lab.vlmdiff(&["gc"]);
    let named = "select step from autoencoder where weights is not null order by step";
    assert_eq!(lab.sql(".vlmdiff", named), ["50", "100", "150", "200", "240"]);
    let blobs = std::fs::read_dir(lab.path(".vlmdiff/blobs")).unwrap().count();
    assert_eq!(blobs, 5 + 1, "and those of the text encoder");
    let before = "select count(*) from autoencoder where step <= 60 and disc_loss <> 0";
    assert_eq!(lab.sql(".vlmdiff", before), ["0"]);
    let after =
        "select count(*) from autoencoder where step > 60 and disc_loss > 0 and d_weight > 0 and perceptual_loss > 0";
    assert_eq!(lab.sql(".vlmdiff", after), ["90"]);
}

#[test]
fn denoiser_in_mixed_precision_continues_bit_for_bit() {
    let lab = Lab::new(&replaced(
        "trainable: all
      training: { steps: 4, batch_size: 4, lr: 1.0e-3, log_every: 2 }",
        "trainable: all
      dtype: bf16
      gradient_checkpointing: true
      training: { steps: 120, batch_size: 3, accumulate: 2, lr: 1.0e-3, ema_decay: 0.9, max_grad_norm: 1, log_every: 2 }",
    ));
    lab.run(&["--store", "undisturbed", "--until", "denoiser"]);
    let mut run = start(&lab, "denoiser");
    rows(&lab, &mut run, "select step from denoiser");
    interrupt(run);
    finish(&lab, "denoiser");
    let rows = lab.sql(".vlmdiff", "select count(*), max(loss) < 10, max(grad_norm) > 0 from denoiser");
    assert_eq!(rows, ["60,true,true"]);
}

#[test]
fn killed_training_leaves_no_table() {
    let lab = lab();
    let mut run = start(&lab, "autoencoder");
    rows(&lab, &mut run, ROWS);
    run.kill().unwrap();
    run.wait().unwrap();
    let none = lab.vlmdiff(&["sql", "select * from autoencoder"]);
    assert!(none.code == Some(2) && none.stderr.contains("autoencoder"), "{}{}", none.stdout, none.stderr);
    assert!(!is_published(&lab));
}

/// Returns the weights that a table names.
fn weights(lab: &Lab, table: &str) -> Checkpoint {
    let named = lab.sql(".vlmdiff", &format!("select weights from {table} where weights is not null"));
    Checkpoint::open(lab.path(&format!(".vlmdiff/blobs/{}", named.last().unwrap()))).unwrap()
}

/// With a learning rate of 0 the result is the initial weights.
#[test]
fn training_starts_from_published_weights() {
    let lab = Lab::new(TOY);
    lab.run(&["--until", "autoencoder"]);
    let first = weights(&lab, "autoencoder");
    // as latent diffusion stores them: with a variable of the loss, which is not the network's
    let loss = ("loss.logvar".to_owned(), Tensor::from(0_f32));
    save(&lab, "vae.safetensors", first.tensors().unwrap().into_iter().chain([loss]));
    let still = ["--set", "autoencoder.training.lr=0", "--set", "autoencoder.init=vae.safetensors"];
    lab.run(&[&["--until", "autoencoder"], &still[..]].concat());
    let again = weights(&lab, "autoencoder");
    assert!(first.names().all(|name| first.tensor(name).unwrap() == again.tensor(name).unwrap()));
    // the scale of the latents is that of the configuration and not measured
    let scale = |weights: &Checkpoint| weights.metadata()["config"].contains("\"scaling_factor\":0.18215");
    assert!(scale(&again) && !scale(&first));

    let pipeline = TOY.replacen("trainable: all\n", "init: unet.safetensors\n", 1);
    lab.write("pipeline.yaml", &pipeline);
    let missing = lab.vlmdiff(&["run", "pipeline.yaml", "--until", "denoiser"]);
    assert!(missing.code == Some(2) && missing.stderr.contains("unet.safetensors"), "{}", missing.stderr);
    let config = "{\"block_out_channels\": [8, 16], \"down_block_types\": [\"DownBlock2D\", \"CrossAttnDownBlock2D\"],
        \"layers_per_block\": 1, \"attention_head_dim\": 2, \"cross_attention_dim\": 16, \"norm_num_groups\": 4}";
    let vs = VarStore::new(Device::Cpu);
    tch::manual_seed(2);
    let _ = UNet2DConditionModel::new(vs.root(), &serde_json::from_str(config).unwrap()).unwrap();
    save(&lab, "unet.safetensors", vs.variables().into_iter());
    lab.run(&["--until", "denoiser", "--set", "denoiser.training.lr=0"]);
    let denoiser = weights(&lab, "denoiser");
    for (name, start) in vs.variables() {
        assert_eq!(denoiser.tensor(&format!("unet.{name}")).unwrap(), start, "{name}");
        if !UNet2DConditionModel::is_decoder(&name) {
            assert_eq!(denoiser.tensor(&format!("control.{name}")).unwrap(), start, "{name}");
        }
    }
    // weights that are not trained stay; without weights to start from, such a training is refused
    lab.run(&["--until", "denoiser"]);
    let denoiser = weights(&lab, "denoiser");
    for (name, start) in vs.variables() {
        let is_same = denoiser.tensor(&format!("unet.{name}")).unwrap() == start;
        assert_eq!(is_same, !UNet2DConditionModel::is_decoder(&name), "{name}");
    }
    lab.write("pipeline.yaml", &TOY.replace("      trainable: all\n", ""));
    let refused = lab.vlmdiff(&["plan", "pipeline.yaml"]);
    assert!(refused.code == Some(2) && refused.stderr.contains("name weights to start from"), "{}", refused.stderr);
}

/// Weights of a training can be read like published weights.
#[test]
fn weights_of_a_trained_denoiser_are_read_like_published_ones() {
    let lab = Lab::new(TOY);
    lab.run(&["--until", "denoiser"]);
    let trained = weights(&lab, "denoiser");
    save(&lab, "denoiser.safetensors", trained.tensors().unwrap().into_iter());
    save(&lab, "unet.safetensors", trained.clone().select("unet").tensors().unwrap().into_iter());
    // a config beside weights of diffusers is not that of a denoiser
    lab.write("config.json", "{\"block_out_channels\": [8]}");
    let start = TOY.find("  denoiser:\n").unwrap();
    let end = TOY.find("  reconstructions:\n").unwrap();
    let published = |file: &str| {
        let config = &trained.metadata()["config"];
        let with = format!("{{ network: denoiser, weights: {file}, config: {config} }}");
        let pipeline = format!("{}  denoiser: {{ stage: pretrained, with: {with} }}\n{}", &TOY[..start], &TOY[end..]);
        lab.write("pipeline.yaml", &pipeline);
        lab.vlmdiff(&["run", "pipeline.yaml", "--until", "reconstructions"])
    };
    let refused = published("unet.safetensors");
    assert!(refused.code == Some(2) && refused.stderr.contains("has no control branch"), "{}", refused.stderr);
    let read = published("denoiser.safetensors");
    assert_eq!(read.code, Some(0), "{}", read.stderr);
    let again = weights(&lab, "denoiser");
    assert_eq!(again.len(), trained.len());
    assert!(trained.names().all(|name| trained.tensor(name).unwrap() == again.tensor(name).unwrap()));
    assert_eq!(lab.sql(".vlmdiff", "select count(*) from reconstructions"), ["6"]);
}

#[test]
fn denoiser_is_trained_without_a_control_branch() {
    let lab = Lab::new(
        &TOY.replace("control: { conditioning_embedding_out_channels: [4, 8, 8] }", "control: { form: none }"),
    );
    lab.run(&["--until", "reconstructions"]);
    let trained = weights(&lab, "denoiser");
    assert!(!trained.is_empty() && trained.names().all(|name| name.starts_with("unet.")));
    assert_eq!(lab.sql(".vlmdiff", "select count(*) from reconstructions"), ["6"]);
}

/// Without captions all images have the caption of one row.
#[test]
fn denoiser_is_trained_without_captions() {
    let pipeline = TOY
        .replace(
            "  autoencoder:\n",
            "  nothing: { stage: sql, from: [captions], with: { makes: rows, query: \"select '' as image_id, '' as caption\" } }
  unconditional: { stage: encode_text, from: [nothing, text_encoder] }
  autoencoder:\n",
        )
        .replace(
            "from: [images, latents, text_embeddings, autoencoder]",
            "from: { images: images, latents: latents, autoencoder: autoencoder, unconditional: unconditional }",
        );
    let lab = Lab::new(&pipeline);
    lab.run(&["--until", "denoiser"]);
    assert_eq!(lab.sql(".vlmdiff", "select count(*) from denoiser"), ["2"]);
    lab.write("pipeline.yaml", &pipeline.replace(", unconditional: unconditional }", " }"));
    let refused = lab.vlmdiff(&["plan", "pipeline.yaml"]);
    assert!(refused.code == Some(2) && refused.stderr.contains("captions come from one of"), "{}", refused.stderr);
}

#[test]
fn memory_error_names_the_table_and_the_parameter_to_lower() {
    let lab = Lab::new(TOY);
    // The weights of one convolution take 40 TB.
    let widths = "autoencoder.config.block_out_channels=[1048576, 1048576, 1048576]";
    let ended = lab.vlmdiff(&["run", "pipeline.yaml", "--until", "autoencoder", "--set", widths]);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    let expected =
        ["table `autoencoder`: memory ran out: ", "lower `training.batch_size` and raise `training.accumulate`"];
    assert!(expected.iter().all(|text| ended.stderr.contains(text)), "{}", ended.stderr);
}

/// Returns the numbers of all reconstructed latents under these settings.
fn reconstructed(lab: &Lab, settings: &[&str]) -> Vec<f64> {
    let settings: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    lab.run(&[&["--until", "reconstructions"], &settings[..]].concat());
    let ended = lab.vlmdiff(&["sql", "select latent from reconstructions order by image_id", "--format", "json"]);
    let numbers = ended.stdout.split(|c: char| !(c.is_ascii_digit() || "-+.eE".contains(c)));
    numbers.filter_map(|number| number.parse().ok()).collect()
}

/// Returns the mean distance of two series of numbers.
fn apart(a: &[f64], b: &[f64]) -> f64 {
    assert!(a.len() == b.len() && a.len() > 1000, "{} {}", a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum::<f64>() / a.len() as f64
}

/// A reconstruction begins with noise. The mean of several draws depends less on the noise.
#[test]
fn more_draws_make_reconstructions_of_two_seeds_more_alike() {
    let lab = Lab::new(TOY);
    let distance = |draws: &str| {
        let [a, b] = ["0", "1"].map(|seed| {
            let seed = format!("reconstructions.seed={seed}");
            reconstructed(&lab, &[draws, &seed])
        });
        apart(&a, &b)
    };
    let (one, many) = (distance("reconstructions.draws=1"), distance("reconstructions.draws=8"));
    assert!(one > 0. && many < 0.6 * one, "{one} {many}");
}

/// The inversion of a latent's mean draws no noise.
#[test]
fn reconstruction_from_an_inversion_depends_on_no_seed() {
    let lab = Lab::new(TOY);
    let (mode, steps) = ("reconstructions.latent=mode", "reconstructions.sampler.inversion=[1, 101, 201]");
    let seeds = ["reconstructions.seed=0", "reconstructions.seed=1"];
    let [a, b] = seeds.map(|seed| reconstructed(&lab, &[mode, steps, seed]));
    let noised = reconstructed(&lab, &[mode, seeds[0]]);
    assert_eq!(apart(&a, &b), 0.);
    assert!(apart(&a, &noised) > 1e-3);
    let drawn = ["plan", "pipeline.yaml", "--set", steps, "--set", "reconstructions.draws=2"];
    let refused = lab.vlmdiff(&drawn);
    assert!(refused.code == Some(2) && refused.stderr.contains("all draws are the same"), "{}", refused.stderr);
}

/// Latents of an autoencoder are scored by the denoiser that receives the image.
#[test]
fn rules_score_latents_of_an_autoencoder_and_the_image_counts() {
    let scored = |name: &str, images: &str, rule: &str| {
        format!(
            "  {name}:
    stage: score_latents
    from: {{ images: {images}, latents: latents, text_embeddings: text_embeddings, denoiser: denoiser }}
    where: split = 'test'
    with: {{ rule: {rule}, sigma: 1, score: {{ kernel_size: 3, repeats: 1 }} }}
"
        )
    };
    let rules = ["noise", "inversion", "reconstruction"];
    let tables: String = rules.map(|rule| scored(rule, "images", rule)).concat();
    let middles = "  middles: { stage: ingest, with: { dataset: folder, root: data, size: 32, short_side: 40 } }\n";
    let other = scored("noise_beside_others", "middles", "noise");
    let lab = Lab::new(&[toy_above("reconstructions"), &tables, middles, &other].concat());
    lab.run(&[]);
    for rule in rules {
        let query = format!("select count(*) from {rule} where score > 0 and score < 1e6");
        assert_eq!(lab.sql(".vlmdiff", &query), ["6"], "{rule}");
    }
    let contents = lab.contents(".vlmdiff");
    let of = |table: &str| &contents.iter().find(|(name, _)| name == table).unwrap().1;
    assert_ne!(of("noise"), of("inversion"));
    assert_ne!(of("noise"), of("reconstruction"));
    assert_ne!(of("noise"), of("noise_beside_others"));
}

/// The rule `ddim` takes the steps of `reconstruct`, of features and of an autoencoder's latents.
#[test]
fn ddim_scores_latents_and_features_by_guided_steps() {
    let scored = |name: &str, latents: &str, denoiser: &str, more: &str, with: &str| {
        format!(
            "  {name}:
    stage: score_latents
    from: {{ images: images, latents: {latents}, text_embeddings: text_embeddings, denoiser: {denoiser}{more} }}
    where: split = 'test'
    with: {{ rule: {{ ddim: {with} }}, sigma: 1, score: {{ kernel_size: 3, repeats: 1 }} }}
"
        )
    };
    let of_features =
        |name: &str, more: &str, with: &str| scored(name, "feature_latents", "feature_denoiser", more, with);
    let (away, few) = (", unconditional: text_embeddings", "sampler: { num_inference_steps: 2 }");
    let guided = format!("{{ {few}, guidance_scale: 9 }}");
    let tables = [
        of_features("plain", "", &format!("{{ {few} }}")),
        of_features("guided", away, &guided),
        of_features("ten", "", "{ sampler: { num_inference_steps: 10 } }"),
        scored("of_latents", "latents", "denoiser", away, &guided),
    ];
    let trained = "  feature_latents: { stage: encode_latents, from: [images], with: { extractor: efficientnet-lite0, layers: [8, 4] } }
  feature_denoiser:
    stage: train_denoiser
    from: [images, feature_latents, text_embeddings]
    where: split = 'train'
    with: { feature_unet: { width: 16, levels: 2, norm_num_groups: 4 }, trainable: all, training: { steps: 4, batch_size: 4, lr: 1.0e-3 } }
";
    let toy = [toy_above("reconstructions"), trained].concat();
    let lab = Lab::new(&[&toy[..], &tables.concat()].concat());
    lab.run(&[]);
    for table in ["plain", "guided", "ten", "of_latents"] {
        let query = format!("select count(*) from {table} where score > 0 and score < 1e6");
        assert_eq!(lab.sql(".vlmdiff", &query), ["6"], "{table}");
    }
    let contents = lab.contents(".vlmdiff");
    let of = |table: &str| &contents.iter().find(|(name, _)| name == table).unwrap().1;
    assert_ne!(of("plain"), of("guided"));
    assert_ne!(of("plain"), of("ten"));

    let refused = |tables: &str, told: &str| {
        lab.write("pipeline.yaml", &[&toy[..], tables].concat());
        let plan = lab.vlmdiff(&["plan", "pipeline.yaml"]);
        assert!(plan.code == Some(2) && plan.stderr.contains(told), "{told}: {}", plan.stderr);
    };
    refused(
        &of_features("alone", "", &guided),
        "table `alone`: `rule`: a `guidance_scale` of 9 leads away from the empty",
    );
    refused(
        &of_features("alone", "", "{ sampler: { num_inference_steps: 0 } }"),
        "`rule`: schedule: num_inference_steps 0 has to",
    );
    let both = of_features("alone", "", "{}").replace("sigma: 1", "timesteps: [3], sigma: 1");
    refused(&both, "`timesteps`: the rule `ddim` has those of its `sampler`");
}
