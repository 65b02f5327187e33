//! Trainings while they go on, and how they are interrupted.

use std::{
    collections::HashMap,
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tch::{Device, nn::VarStore};
use vlmdiff::{
    engine::Store,
    models::{checkpoint::to_safetensors, lpips::Lpips},
};

use crate::lab::{Lab, TOY};

/// An autoencoder with all that can be in a training: two optimisers of which one begins later, micro-batches, an average,
/// weights kept on the way.
fn pipeline() -> String {
    TOY.replace(
        "training: { steps: 4, batch_size: 4, lr: 1.0e-3, ema_decay: 0.9, log_every: 2 }",
        "perceptual: [perceptual.safetensors]
      discriminator: { start: 60, batch_norm: train, config: { ndf: 4, n_layers: 1 } }
      training: { steps: 240, batch_size: 3, accumulate: 2, optimizer: adam, betas: [0.5, 0.9], lr: 1.0e-3, ema_decay: 0.9,
                  log_every: 2, checkpoint_every: 50 }",
    )
}

fn lab() -> Lab {
    let lab = Lab::new(&pipeline());
    let [vgg, lin] = [(); 2].map(|()| VarStore::new(Device::Cpu));
    tch::manual_seed(1);
    let _ = Lpips::new(&vgg.root(), &lin.root(), [2, 2, 2, 2, 2]);
    let tensors: Vec<_> = vgg.variables().into_iter().chain(lin.variables()).collect();
    std::fs::write(lab.path("perceptual.safetensors"), to_safetensors(tensors, HashMap::new()).unwrap()).unwrap();
    lab
}

/// Starts a run in a group of its own, as a shell with a terminal does.
fn start(lab: &Lab) -> Child {
    let mut run = lab.command(&["run", "pipeline.yaml", "--until", "autoencoder"]);
    run.process_group(0).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// What the terminal does at Ctrl-C.
fn signal(run: &Child, signal: &str) {
    let sent = Command::new("bash").args(["-c", &format!("kill -{signal} -- -{}", run.id())]).status().unwrap();
    assert!(sent.success());
}

/// Waits until SQL sees rows of the training, and returns them.
fn rows(lab: &Lab, run: &mut Child) -> Vec<String> {
    let deadline = Instant::now() + Duration::from_secs(120);
    while Instant::now() < deadline {
        assert!(run.try_wait().unwrap().is_none(), "the training was over before its rows were seen");
        let query = "select step, loss, disc_loss, rows_per_s, weights from autoencoder order by step";
        let seen = lab.vlmdiff(&["sql", query, "--format", "csv"]);
        if seen.code == Some(0) && seen.stdout.lines().count() > 1 {
            return seen.stdout.lines().skip(1).map(str::to_owned).collect();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("no rows were seen");
}

fn is_published(lab: &Lab) -> bool {
    let store = Store::open(&lab.path(".vlmdiff").to_string_lossy()).unwrap();
    store.published("toy", "autoencoder").unwrap().is_some()
}

#[test]
fn its_rows_are_seen_while_it_goes_on_and_ctrl_c_saves() {
    let lab = lab();
    lab.run(&["--store", "undisturbed", "--until", "autoencoder"]);
    let mut run = start(&lab);
    let seen = rows(&lab, &mut run);
    assert!(seen[0].starts_with("2,") && seen.len() < 120, "{seen:?}");
    assert!(!is_published(&lab));
    let plan = lab.vlmdiff(&["plan", "pipeline.yaml", "--target", "autoencoder"]).stdout;
    assert!(plan.contains("autoencoder  to compute"), "{plan}");
    signal(&run, "INT");
    let ended = run.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(130), "{said}");
    assert!(said.contains("stopped at step") && said.contains("error: interrupted"), "{said}");
    // What is not finished is nothing once nobody works on it.
    let none = lab.vlmdiff(&["sql", "select * from autoencoder"]);
    assert!(none.code == Some(2) && none.stderr.contains("autoencoder"), "{}{}", none.stdout, none.stderr);
    let last = lab.vlmdiff(&["run", "pipeline.yaml", "--until", "autoencoder"]);
    assert!(last.code == Some(0) && last.stderr.contains("goes on from step"), "{}", last.stderr);
    assert_eq!(lab.contents("undisturbed"), lab.contents(".vlmdiff"));
    // 120 rows, of which four name weights on the way and the last the final ones; a clean-up keeps them all.
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
fn a_killed_training_leaves_no_table() {
    let lab = lab();
    let mut run = start(&lab);
    let _ = rows(&lab, &mut run);
    run.kill().unwrap();
    run.wait().unwrap();
    let none = lab.vlmdiff(&["sql", "select * from autoencoder"]);
    assert!(none.code == Some(2) && none.stderr.contains("autoencoder"), "{}{}", none.stdout, none.stderr);
    assert!(!is_published(&lab));
}

#[test]
fn where_memory_runs_out_the_table_and_what_to_lower_are_named() {
    let lab = Lab::new(TOY);
    // more bytes than an address has bits for
    let ended = lab.vlmdiff(&["run", "pipeline.yaml", "--set", "text_encoder.config.intermediate_size=4398046511104"]);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    let expected =
        ["table `text_encoder`: memory ran out: ", "lower `training.batch_size` and raise `training.accumulate`"];
    assert!(expected.iter().all(|text| ended.stderr.contains(text)), "{}", ended.stderr);
}
