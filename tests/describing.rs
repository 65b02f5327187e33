//! Captions by vision-language models, with tiny weights.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use image::RgbImage;
use serde_json::{Value, json};
use vlmdiff::engine::store::Event;

use crate::lab::{Lab, TOY, computed, project};

/// Writes a tokenizer of one word per token, with the tokens of InternVL's conversations at the ids of a golden instance.
fn tokenizer(folder: &Path, image: u32) {
    words_and_special(folder, &["<img>", "</img>", "<IMG_CONTEXT>", "<|im_start|>", "<|im_end|>"], image - 2);
}

/// Writes a tokenizer of one word per token, with special tokens from an id on.
fn words_and_special(folder: &Path, special: &[&str], first: u32) {
    let mut vocab = serde_json::Map::new();
    vocab.insert("[UNK]".into(), json!(0));
    for (word, id) in ["yes", "no"].into_iter().map(str::to_owned).chain((3..first).map(|i| format!("w{i}"))).zip(1..) {
        vocab.insert(word, json!(id));
    }
    let added = special.iter().zip(first..).map(|(content, id)| {
        json!({ "id": id, "content": content, "special": true, "normalized": false,
                "single_word": false, "lstrip": false, "rstrip": false })
    });
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null, "decoder": null,
        "pre_tokenizer": { "type": "Whitespace" },
        "added_tokens": added.collect::<Vec<_>>(),
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]" },
    });
    fs::write(folder.join("tokenizer.json"), json.to_string()).unwrap();
}

/// Copies a tiny published model of the golden set into the lab, with a tokenizer.
pub(crate) fn weights(lab: &Lab, case: &str) {
    let (from, to) = published(lab, case);
    let meta: Value = serde_json::from_str(&fs::read_to_string(from.join("meta.json")).unwrap()).unwrap();
    tokenizer(&to, meta["tokens"]["<IMG_CONTEXT>"].as_u64().unwrap() as u32);
}

/// Copies a tiny published model of the golden set into the lab, without a tokenizer. Returns both folders.
fn published(lab: &Lab, case: &str) -> (PathBuf, PathBuf) {
    let (from, to) = (project().join("data/golden/models").join(case), lab.path("weights"));
    fs::create_dir_all(&to).unwrap();
    for file in fs::read_dir(&from).unwrap().map(|file| file.unwrap().path()) {
        let name = file.file_name().unwrap().to_str().unwrap();
        if name == "config.json" || name.starts_with("model") {
            fs::copy(&file, to.join(name)).unwrap();
        }
    }
    (from, to)
}

/// Makes a lab with `count` photographs of one class, of which the sizes differ, and captions with these parameters.
fn lab(case: &str, count: u32, with: &str) -> Lab {
    let lab = Lab::empty();
    weights(&lab, case);
    for number in 0..count {
        picture(&lab, &format!("data/nut/train/good/{number:03}.png"), (40 + 30 * (number % 4), 60), number);
    }
    lab.write("pipeline.yaml", &pipeline(with));
    lab
}

fn pipeline(with: &str) -> String {
    format!(
        "name: captions\ntables:\n  images: {{ stage: ingest, with: {{ dataset: folder, root: data, size: 16 }} }}\n  \
         captions: {{ stage: caption, from: [images], with: {{ model: internvl2-1b, weights: weights, {with} }} }}\n"
    )
}

fn picture(lab: &Lab, name: &str, (width, height): (u32, u32), seed: u32) {
    let path = lab.path(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let level = |x: u32, y: u32, of: u32| ((x * (3 + seed) + y * of + 40 * seed) % 256) as u8;
    RgbImage::from_fn(width, height, |x, y| image::Rgb([level(x, y, 5), level(x, y, 7), level(y, x, 2)]))
        .save(path)
        .unwrap();
}

const ALL: &str = "select image_id, caption, tokens, finish_reason, prompt, model from captions order by image_id";

#[test]
fn captions_of_a_model_go_through_the_text_encoder_into_a_training() {
    let model = "{ model: internvl2-1b, weights: weights, precision: f32, max_new_tokens: 5, max_tiles: 2, prompt: 'A {class} of what?' }";
    let lab = Lab::new(&TOY.replace("with: { model: dataset }", &format!("with: {model}")));
    weights(&lab, "internvl2_qwen2");
    lab.run(&["--until", "denoiser"]);
    let rows = lab.sql(".vlmdiff", ALL);
    assert_eq!(rows.len(), 14);
    assert!(rows[0].starts_with("gear/") && rows[0].ends_with(",A gear of what?,internvl2-1b"), "{}", rows[0]);
    let yes = "select count(*) from captions where yes_probability > 0 and yes_probability < 1 and tokens = 5";
    assert_eq!(lab.sql(".vlmdiff", yes), ["14"]);
    assert_eq!(lab.sql(".vlmdiff", "select count(*) from text_embeddings"), ["14"]);
    assert_eq!(computed(&lab.run(&["--until", "denoiser"])), []);
    // The model is shown files and not pixels: of another size, nothing is described again.
    lab.write(
        "pipeline.yaml",
        &fs::read_to_string(lab.path("pipeline.yaml")).unwrap().replace("size: 32 }", "size: 16 }"),
    );
    assert_eq!(computed(&lab.run(&["--until", "captions"])), [("images", 14), ("captions", 0)]);
}

#[test]
fn captions_do_not_depend_on_the_batch_and_equal_photographs_are_described_once() {
    let lab = lab("internvl2_qwen2", 9, "precision: f32, max_new_tokens: 12, max_tiles: 6");
    for copy in ["100.png", "101.png"] {
        fs::copy(lab.path("data/nut/train/good/004.png"), lab.path("data/nut/train/good").join(copy)).unwrap();
    }
    let said = lab.vlmdiff(&["run", "pipeline.yaml", "--store", "one", "--batch-size", "1"]).stderr;
    assert!(said.contains("weights take") && said.contains("tokens written at"), "{said}");
    // the first token of each is read with the prompt
    assert!(said.contains(&format!("{} tokens written", 9 * 11)), "nine photographs are described: {said}");
    lab.run(&["--store", "sixteen", "--batch-size", "16"]);
    lab.run(&["--store", "tasks", "--batch-size", "3", "--task-rows", "4"]);
    let one = lab.sql("one", ALL);
    assert_eq!((one.len(), &one), (11, &lab.sql("sixteen", ALL)));
    assert_eq!(one, lab.sql("tasks", ALL));
    assert_eq!(one[4].split_once(',').unwrap().1, one[10].split_once(',').unwrap().1);
    assert_ne!(one[4].split_once(',').unwrap().1, one[5].split_once(',').unwrap().1);
}

/// A tokenizer has the tokens that the family looks for: of OPT the line break with which it ends a caption.
#[test]
fn models_of_every_family_and_layout_describe_photographs() {
    for (model, case, special, first, question) in [
        ("blip2-opt-2.7b", "blip2_opt", &["\n"][..], 149, "a photo of"),
        ("blip2-flan-t5-xl", "blip2_t5", &["</s>"], 149, "a photo of"),
        ("deepseek-vl-1.3b", "deepseek_vl/hf", &["<｜end▁of▁sentence｜>", "<image_placeholder>"], 126, "What is it?"),
        (
            "internvl3-1b",
            "internvl_hf",
            &["<img>", "</img>", "<IMG_CONTEXT>", "<|im_start|>", "<|im_end|>"],
            148,
            "What is it?",
        ),
    ] {
        let lab = Lab::empty();
        let (_, folder) = published(&lab, case);
        words_and_special(&folder, special, first);
        for number in 0..3 {
            picture(&lab, &format!("data/nut/train/good/{number:03}.png"), (40 + 30 * number, 60), number);
        }
        let with = format!("precision: f32, max_new_tokens: 4, prompt: '{question}'");
        lab.write("pipeline.yaml", &pipeline(&with).replace("internvl2-1b", model));
        lab.run(&["--store", "one", "--batch-size", "1"]);
        let rows = lab.sql("one", ALL);
        lab.run(&[]);
        assert_eq!(rows, lab.sql(".vlmdiff", ALL), "{model}");
        assert_eq!(rows.len(), 3, "{model}");
        for row in &rows {
            assert!(row.ends_with(&format!(",{question},{model}")), "{model}: {row}");
        }
        let written =
            "select count(*) from captions where tokens between 1 and 4 and caption <> '' and yes_probability > 0";
        assert_eq!(lab.sql("one", written), ["3"], "{model}: {rows:?}");
        // A model of another family is not what is asked for.
        let other = if model.starts_with("blip2") { "deepseek-vl-1.3b" } else { "blip2-opt-2.7b" };
        lab.write("pipeline.yaml", &pipeline("").replace("internvl2-1b", other));
        let said = lab.vlmdiff(&["run", "pipeline.yaml"]);
        assert!(said.code == Some(2) && said.stderr.contains("`weights`: "), "{model}: {}", said.stderr);
    }
}

#[test]
fn random_tokens_depend_on_the_seed_and_not_on_the_batch() {
    let with = |seed: u32| format!("precision: f32, temperature: 1.5, seed: {seed}, max_new_tokens: 8, max_tiles: 1");
    let lab = lab("internvl2_qwen2", 3, &with(1));
    lab.run(&["--store", "one", "--batch-size", "1"]);
    lab.run(&[]);
    let drawn = lab.sql("one", ALL);
    assert_eq!(drawn, lab.sql(".vlmdiff", ALL));
    lab.write("pipeline.yaml", &pipeline(&with(2)));
    lab.run(&[]);
    assert_ne!(drawn, lab.sql(".vlmdiff", ALL));
}

#[test]
fn matrices_of_eight_bits_describe_photographs_in_as_few_words_as_asked() {
    let lab =
        lab("internvl2_qwen2", 2, "precision: int8, max_words: 9, prompt: paper, max_new_tokens: 3, max_tiles: 1");
    lab.run(&[]);
    let asked = "select count(*) from captions where prompt = 'Describe the main object in detail. Use at most 9 words.' \
                 and (tokens > 0 or finish_reason = 'stop')";
    assert_eq!(lab.sql(".vlmdiff", asked), ["2"]);
}

#[test]
fn a_killed_run_loses_no_caption_that_was_saved() {
    let lab = lab("internvl2_qwen2", 40, "max_new_tokens: 900, max_tiles: 1");
    let mut run = lab.command(&["run", "pipeline.yaml", "--batch-size", "2"]);
    let mut child = run.stderr(Stdio::null()).spawn().unwrap();
    let records = lab.path(".vlmdiff/computed");
    let start = Instant::now();
    // One record is that of the images.
    while files(&records) < 3 && start.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(50));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let rest = computed(&lab.run(&[])).into_iter().find(|(table, _)| *table == "captions").map(|(_, rows)| rows);
    assert!(rest.is_some_and(|rows| rows > 0 && rows < 40), "{rest:?} of 40 were left");
    assert_eq!(lab.sql(".vlmdiff", "select count(*) from captions where tokens > 0"), ["40"]);
}

/// Returns the number of files below a folder.
fn files(folder: &Path) -> usize {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries.flatten().map(|entry| if entry.path().is_dir() { files(&entry.path()) } else { 1 }).sum()
}

/// Runs a pipeline that has to fail with this code, and returns what it says.
fn told(lab: &Lab, with: &str, code: i32) -> String {
    lab.write("pipeline.yaml", &pipeline(with));
    let ended = lab.vlmdiff(&["run", "pipeline.yaml"]);
    assert_eq!(ended.code, Some(code), "{with}: {}", ended.stderr);
    ended.stderr
}

#[test]
fn what_does_not_fit_is_told_before_anything_runs() {
    let lab = lab("internvl2_internlm2", 1, "");
    for (with, words) in [
        ("beams: 3", "`beams`: internvl2-1b, internvl2-2b"),
        ("top_p: 0.9", "`top_p`: it belongs to draws at random; `temperature: 1` makes them"),
        ("prompt: papr", "`prompt`: no prompt is called `papr`; there are paper"),
        ("prompt: 'a {klass} of what'", "`{klass}` at character 3 is no placeholder"),
        ("max_tiles: 0", "max_tiles"),
        ("precision: int4", "unknown variant `int4`"),
    ] {
        let said = told(&lab, with, 2);
        assert!(said.contains(words), "{with}: {said}");
    }
    let said = told(&lab, "prompt: pd", 2);
    assert!(!said.contains("panicked"), "{said}");
    let plain = pipeline("").replace("weights: weights", "weights: elsewhere");
    lab.write("pipeline.yaml", &plain);
    let said = lab.vlmdiff(&["run", "pipeline.yaml"]);
    assert!(said.code == Some(2) && said.stderr.contains("there is no file elsewhere"), "{}", said.stderr);
    let none = pipeline("").replace(", weights: weights", "");
    lab.write("pipeline.yaml", &none);
    let said = lab.vlmdiff(&["run", "pipeline.yaml"]);
    assert!(said.code == Some(2) && said.stderr.contains("vlmdiff models fetch internvl2-1b"), "{}", said.stderr);
    fs::remove_file(lab.path("weights/model-00002-of-00003.safetensors")).unwrap();
    let said = told(&lab, "", 2);
    assert!(said.contains("model-00002-of-00003.safetensors"), "{said}");
    weights(&lab, "internvl2_internlm2");
    tokenizer(&lab.path("weights"), 400);
    let said = told(&lab, "", 2);
    assert!(said.contains("its tokenizer has 403 tokens and its weights know 210"), "{said}");
    fs::remove_file(lab.path("weights/tokenizer.json")).unwrap();
    let said = told(&lab, "", 2);
    assert!(said.contains("no tokenizer.json, no vocab.json with merges.txt, and no tokenizer.model"), "{said}");
}

#[test]
fn photographs_of_any_size_are_described_and_long_prompts_fail_alone() {
    let lab = lab("internvl2_qwen2", 1, "max_new_tokens: 3");
    picture(&lab, "data/nut/train/good/dot.png", (1, 1), 1);
    picture(&lab, "data/nut/train/good/line.png", (20_000, 10), 2);
    lab.run(&[]);
    assert_eq!(lab.sql(".vlmdiff", "select count(*) from captions where tokens > 0 or finish_reason = 'stop'"), ["3"]);
    // 64 positions hold a tile, and not the 13 of a photograph that is wide.
    weights(&lab, "internvl2_internlm2");
    fs::remove_file(lab.path("weights/model.safetensors")).unwrap();
    let said = told(&lab, "max_new_tokens: 3, prompt: 'what is it'", 2);
    assert!(said.contains("line.png") && said.contains("the model reads and writes 64 at most"), "{said}");
    let said = told(&lab, "max_new_tokens: 3, prompt: 'what is it', max_tiles: 2", 0);
    assert!(said.contains("3 rows"), "{said}");
    // A generated image has no file.
    let synthetic =
        "dataset: synthetic, size: 16, synthetic: { classes: [gear], train: 2, test_good: 0, test_per_defect: 0 }";
    let generated =
        pipeline("max_tiles: 1, max_new_tokens: 2").replace("dataset: folder, root: data, size: 16", synthetic);
    lab.write("pipeline.yaml", &generated);
    let said = lab.vlmdiff(&["run", "pipeline.yaml"]);
    assert!(
        said.code == Some(2) && said.stderr.contains("`image: pixels` shows the model its pixels"),
        "{}",
        said.stderr
    );
    lab.write("pipeline.yaml", &generated.replace("max_tiles: 1", "max_tiles: 1, image: pixels"));
    lab.run(&[]);
    assert_eq!(lab.sql(".vlmdiff", "select count(*) from captions"), ["2"]);
}

#[test]
fn answers_are_scores_that_are_evaluated() {
    let model =
        "model: internvl2-1b, weights: weights, precision: f32, max_new_tokens: 2, max_tiles: 1, prompt: yes-no";
    let lab = Lab::new(&format!(
        "name: verdicts\ntables:\n  images: {{ stage: ingest, with: {{ dataset: folder, root: data, size: 16 }} }}\n  \
         answers: {{ stage: caption, from: [images], where: \"split = 'test'\", with: {{ {model} }} }}\n  \
         verdicts: {{ stage: yes_no, from: [answers] }}\n  \
         metrics: {{ stage: evaluate, from: {{ images: images, anomaly_maps: verdicts }} }}\n"
    ));
    weights(&lab, "internvl2_qwen2");
    let notes = lab.run(&[]).into_iter().filter_map(|event| match event {
        Event::Note { table, message } if table == "verdicts" => Some(message),
        _ => None,
    });
    assert!(notes.into_iter().any(|note| note.starts_with("the answer says neither yes nor no: ")));
    let query = "select n_images, image_auroc is null, pixel_auroc is null, aupro is null from metrics \
                 where class = 'gear' and protocol = 'exact'";
    assert_eq!(lab.sql(".vlmdiff", query), ["3,false,true,true"]);
}

#[test]
fn the_command_prints_captions_of_single_photographs() {
    let lab = lab("internvl2_qwen2", 2, "");
    let [first, second] = ["data/nut/train/good/000.png", "data/nut/train/good/001.png"];
    let caption = |more: &[&str]| {
        let all = [
            "caption",
            "--model",
            "internvl2-1b",
            "--weights",
            "weights",
            "--set",
            "max_new_tokens=4",
            "--set",
            "precision=f32",
        ];
        lab.vlmdiff(&[&all[..], more].concat())
    };
    let one = caption(&[first]);
    assert_eq!(one.code, Some(0), "{}", one.stderr);
    assert_eq!((one.stdout.lines().count(), one.stdout.split_whitespace().count()), (1, 4), "{}", one.stdout);
    assert!(one.stderr.contains("tokens/s") && !one.stderr.contains("photographs "), "{}", one.stderr);
    let two = caption(&[second, first, "--quiet", "--prompt", "What is it?"]);
    let lines: Vec<&str> = two.stdout.lines().collect();
    assert!(
        lines.len() == 2 && lines[0].starts_with(&format!("{second}: w")) && lines[1].starts_with(first),
        "{lines:?}"
    );
    assert_eq!(two.stderr, "");
    let broken = lab.path("broken.png");
    fs::write(&broken, "no picture").unwrap();
    let said = caption(&["broken.png", first]);
    assert!(said.code == Some(3) && said.stderr.contains("not an image"), "{:?} {}", said.code, said.stderr);
    let said = caption(&["nowhere.png"]);
    assert!(said.code == Some(2) && said.stderr.contains("cannot read nowhere.png"), "{}", said.stderr);
    let said = lab.vlmdiff(&["caption", first, "--model", "internvl9"]);
    assert!(
        said.code == Some(2) && said.stderr.contains("there is no captioner `internvl9`; there are"),
        "{}",
        said.stderr
    );
}

#[test]
fn the_authors_pipeline_is_planned_before_its_weights_are_here() {
    let lab = lab("internvl2_qwen2", 3, "");
    let shipped = project().join("pipelines/vlmdiff.yaml");
    let arguments = |command| [command, shipped.to_str().unwrap(), "--set", "images.root=data"];
    let ended = |command| {
        let mut command = lab.command(&arguments(command));
        lab.ended(command.env("HF_HUB_CACHE", lab.path("hub")).env("VLMDIFF_CACHE", lab.path("cache")))
    };
    let plan = ended("plan");
    assert_eq!(plan.code, Some(0), "{}", plan.stderr);
    let line = |table: &str| plan.stdout.lines().find(|line| line.starts_with(table)).unwrap_or_default().to_owned();
    let fetch = "at most 3 of 3 rows to compute: `weights`: internvl2-8b is not on this machine: vlmdiff models fetch internvl2-8b";
    assert!(line("captions ").contains(fetch), "{}", plan.stdout);
    assert!(line("denoiser ").contains("`init`: stable-diffusion-1.5 is not on this machine"), "{}", plan.stdout);
    let run = ended("run");
    assert!(run.code == Some(2) && run.stderr.contains("vlmdiff models fetch internvl2-8b"), "{}", run.stderr);
}

#[test]
fn model_that_is_none_is_named_without_a_place_in_a_file() {
    let lab = Lab::empty();
    lab.write("nut.png", "a picture");
    let ended = lab.vlmdiff(&["caption", "nut.png", "--model", "nothing"]);
    assert_eq!(ended.code, Some(2));
    let expected = "error: table `captions`: `model`: there is no captioner `nothing`; there are";
    assert!(ended.stderr.starts_with(expected), "{}", ended.stderr);
}
