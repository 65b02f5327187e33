//! A temporary folder for each test, with the programs and access to the results of their runs.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use vlmdiff::engine::store::{Event, Logged};

/// A temporary folder with a pipeline and a store.
pub(crate) struct Lab {
    folder: tempfile::TempDir,
}

/// The end of a program.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A pipeline with every stage, small enough for a test.
pub(crate) const TOY: &str = concat!(
    r#"
name: toy
tables:
  images:
    stage: ingest
    with: { dataset: folder, root: data, size: 32 }
  captions: { stage: caption, from: [images], with: { model: dataset } }
  text_encoder:
    stage: train_text_encoder
    from: [images, captions]
    where: split = 'train'
    with:
      config: { vocab_size: 300, hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 2, max_position_embeddings: 24, projection_dim: 8 }
      image_widths: [8, 8]
      training: { steps: 4, batch_size: 4, lr: 1.0e-3, log_every: 2 }
  text_embeddings: { stage: encode_text, from: [captions, text_encoder] }
  autoencoder:
    stage: train_autoencoder
    from: [images]
    where: split = 'train'
    with:
      config: { block_out_channels: [8, 16, 16], layers_per_block: 1, norm_num_groups: 4 }
      training: { steps: 4, batch_size: 4, lr: 1.0e-3, ema_decay: 0.9, log_every: 2 }
  latents: { stage: encode_latents, from: [images, autoencoder] }
  denoiser:
    stage: train_denoiser
    from: [images, latents, text_embeddings, autoencoder]
    where: split = 'train'
    with:
      config: { block_out_channels: [8, 16], down_block_types: [DownBlock2D, CrossAttnDownBlock2D], layers_per_block: 1, attention_head_dim: 2, cross_attention_dim: 16, norm_num_groups: 4 }
      control: { conditioning_embedding_out_channels: [4, 8, 8] }
      trainable: all
      training: { steps: 4, batch_size: 4, lr: 1.0e-3, log_every: 2 }
  reconstructions:
    stage: reconstruct
    from: [images, latents, text_embeddings, autoencoder, denoiser]
    where: split = 'test'
    with: { guidance_scale: 1, sampler: { num_inference_steps: 2 } }
  anomaly_maps:
    stage: anomaly_maps
    from: [images, reconstructions]
    with: { extractor: efficientnet-lite0, layers: [4, 8], sigma: 1, score: { kernel_size: 3, repeats: 1 } }
  metrics: { stage: evaluate, from: [images, anomaly_maps] }
  features: { stage: extract, from: [images], where: split = 'train', with: { extractor: efficientnet-lite0, layers: [4, 8], keep: 12 } }
  bank: { stage: fit, from: [features], with: { method: { patchcore: { ratio: 0.4 } } } }
  bank_maps: { stage: detect, from: [images, bank], where: split = 'test', with: { sigma: 1 } }
  tiles: { stage: ingest, with: { dataset: folder, root: data, size: 32, tile: { overlap: 8 } } }
  tile_maps: { stage: detect, from: [tiles, bank], where: split = 'test', with: { sigma: 2 } }
  stitched: { stage: stitch, from: [images, tiles, tile_maps], where: split = 'test' }
  thresholds:
    stage: calibrate
    from: [images, anomaly_maps]
    where: not label
    with: { rates: [0.9], confidence: 0.6, scope: all, pixel_rate: 0.4 }
  decisions: { stage: decide, from: [images, anomaly_maps, thresholds], with: { rate: 0.9 } }
  regions: { stage: regions, from: [decisions, images, anomaly_maps], where: anomalous }
  feature_latents: { stage: encode_latents, from: [images], with: { extractor: efficientnet-lite0, layers: [8, 4] } }
  feature_denoiser:
    stage: train_denoiser
    from: [images, feature_latents, text_embeddings]
    where: split = 'train'
    with:
      feature_unet: { width: 16, levels: 2, norm_num_groups: 4, dilation: 2 }
      trainable: all
      training: { steps: 4, batch_size: 4, lr: 1.0e-3, log_every: 2 }
  latent_maps:
    stage: score_latents
    from: [images, feature_latents, text_embeddings, feature_denoiser]
    where: split = 'test'
    with: { sigma: 1, score: { kernel_size: 3, repeats: 1 } }
  verdicts: { stage: yes_no, from: { answers: captions }, with: { score: answer } }
  ranking: { stage: sql, from: [images, anomaly_maps], with: { query: "select i.image_id, i.label, m.score from images i join anomaly_maps m on i.image_id = m.image_id order by 1" } }
  notes: { stage: read, with: { path: "#,
    env!("CARGO_MANIFEST_DIR"),
    r#"/tests/notes.csv, id: image_id } }
  copied:
    stage: command
    from: [notes]
    with: { run: "cp {notes} {output}", output: { image_id: utf8, note: utf8? }, makes: rows }
"#
);

/// Returns the number of tables of the toy pipeline.
pub(crate) fn toy_tables() -> usize {
    TOY.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   ")).count()
}

/// Returns the toy pipeline above a table.
pub(crate) fn toy_above(table: &str) -> &'static str {
    TOY.split_once(&format!("  {table}:")).unwrap().0
}

/// A pipeline of stages that need no libtorch and are fast.
pub(crate) const LIGHT: &str = r#"
name: light
tables:
  images: { stage: ingest, with: { dataset: folder, root: data, size: 32 } }
  captions: { stage: caption, from: [images], where: "split = 'train'", with: { model: dataset, default: nothing } }
  counts: { stage: sql, from: [captions], with: { query: "select count(*) as n from captions" } }
"#;

impl Lab {
    /// Makes a lab with this pipeline and pictures of two classes: eight for training and six for testing.
    pub(crate) fn new(pipeline: &str) -> Self {
        let lab = Self { folder: tempfile::tempdir().unwrap() };
        lab.write("pipeline.yaml", pipeline);
        let synth = ["synth", "data", "--size", "48", "--classes", "tile,gear", "--train", "4", "--test-good", "1"];
        let ended = lab.vlmdiff(&[&synth[..], &["--test-per-defect", "1"]].concat());
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        for class in ["tile", "gear"] {
            for kind in ["crack", "hole", "stain", "contamination"] {
                fs::remove_dir_all(lab.path(&format!("data/{class}/test/{kind}"))).unwrap();
                fs::remove_dir_all(lab.path(&format!("data/{class}/ground_truth/{kind}"))).unwrap();
            }
            let captions = fs::read_to_string(lab.path(&format!("data/{class}/captions.jsonl"))).unwrap();
            let kept = captions.lines().filter(|line| {
                ["crack", "hole", "stain", "contamination"].iter().all(|kind| !line.contains(&format!("test/{kind}/")))
            });
            lab.write(&format!("data/{class}/captions.jsonl"), &(kept.collect::<Vec<_>>().join("\n") + "\n"));
        }
        lab
    }

    /// Makes an empty lab.
    pub(crate) fn empty() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: &str) {
        fs::write(self.path(name), content).unwrap();
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vlmdiff"));
        command.args(arguments).current_dir(self.folder.path()).stdin(Stdio::null());
        // Threads of several concurrent workers would compete for the same cores.
        command.env("OMP_NUM_THREADS", "1").env_remove("VLMDIFF_STORE");
        command.env("VLMDIFF_CACHE", self.path("cache"));
        command.env("HF_HUB_CACHE", self.path("hub")).env("HF_HOME", self.path("home")).env_remove("HF_TOKEN");
        // Packages that programs in Python import.
        command.env("PYTHONPATH", project().join(".tools/python"));
        command
    }

    pub(crate) fn vlmdiff(&self, arguments: &[&str]) -> Ended {
        self.ended(&mut self.command(arguments))
    }

    /// Waits for a program, and replaces the lab's folder by `[lab]` in its output.
    pub(crate) fn ended(&self, command: &mut Command) -> Ended {
        let Output { status, stdout, stderr } = command.output().unwrap();
        let text = |bytes: Vec<u8>| {
            let folder = self.folder.path().canonicalize().unwrap();
            String::from_utf8(bytes)
                .unwrap()
                .replace(&*folder.to_string_lossy(), "[lab]")
                .replace(&*self.folder.path().to_string_lossy(), "[lab]")
        };
        Ended { code: status.code(), stdout: text(stdout), stderr: text(stderr) }
    }

    /// Runs the pipeline, which must succeed, and returns the run's events.
    pub(crate) fn run(&self, arguments: &[&str]) -> Vec<Event> {
        let ended = self.vlmdiff(&[&["run", "pipeline.yaml", "--quiet"], arguments].concat());
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let store = arguments.iter().skip_while(|a| **a != "--store").nth(1);
        self.events(store.unwrap_or(&".vlmdiff"))
    }

    /// Returns the events of the last run in a store.
    pub(crate) fn events(&self, store: &str) -> Vec<Event> {
        let mut runs: Vec<PathBuf> =
            fs::read_dir(self.path(store).join("runs")).unwrap().map(|e| e.unwrap().path()).collect();
        runs.sort();
        let text = fs::read_to_string(runs.last().unwrap()).unwrap();
        // The first line is the digest of the others.
        text.lines().skip(1).map(|line| serde_json::from_str::<Logged>(line).unwrap().event).collect()
    }

    /// Returns a query's result as CSV without its header.
    pub(crate) fn sql(&self, store: &str, query: &str) -> Vec<String> {
        let ended = self.vlmdiff(&["sql", query, "--format", "csv", "--store", store]);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        ended.stdout.lines().skip(1).map(str::to_owned).collect()
    }

    /// Returns the content digest of every published table, by name.
    pub(crate) fn contents(&self, store: &str) -> Vec<(String, String)> {
        let store = vlmdiff::engine::store::Store::open(&self.path(store).to_string_lossy()).unwrap();
        let manifests = vlmdiff::query::manifests(&store).unwrap();
        manifests.into_iter().map(|(_, m)| (m.table, m.content.to_string())).collect()
    }
}

/// Returns the number of computed rows of each table that was not fresh, in order.
pub(crate) fn computed(events: &[Event]) -> Vec<(&str, u64)> {
    let published = |event: &Event| matches!(event, Event::TablePublished { .. });
    events
        .iter()
        .filter(|e| published(e))
        .filter_map(|event| match event {
            Event::TablePublished { table, computed, .. } => Some((table.as_str(), *computed)),
            _ => None,
        })
        .collect()
}

/// Returns the project's folder.
pub(crate) fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A program that ends with the test.
pub(crate) struct Process(pub(crate) Child);

impl Process {
    pub(crate) fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.0.id().to_string()]).status().unwrap().success());
    }

    pub(crate) fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Waits for its end. Returns its exit code and what it has said on standard error.
    pub(crate) fn end(&mut self) -> (Option<i32>, String) {
        let mut said = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (self.0.wait().unwrap().code(), said)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has ended where a test waited for it.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
