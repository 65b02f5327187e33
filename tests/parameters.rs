//! Meaning of values from the command line, from the environment, and in paths.

use std::fs;

use crate::lab::Lab;

const PIPELINE: &str = r#"
name: values
tables:
  images: { stage: ingest, with: { dataset: folder, root: "${ROOT:-data}", size: "${SIZE:-32}" } }
  captions: { stage: caption, from: [images], with: { model: dataset, default: "${CAPTION:-none}" } }
"#;

/// Runs the pipeline with a variable and a setting. Returns the exit code and the messages.
fn run(lab: &Lab, variable: (&str, &str), set: &str) -> (Option<i32>, String) {
    let mut command = lab.command(&["run", "pipeline.yaml", "--quiet", "--set", set]);
    let ended = lab.ended(command.env(variable.0, variable.1));
    (ended.code, ended.stderr)
}

fn images(lab: &Lab) -> String {
    lab.sql(".vlmdiff", "select count(*) from images").remove(0)
}

/// Makes a folder of one image with this name.
fn folder(lab: &Lab, name: &str) {
    fs::create_dir_all(lab.path(name).join("tile/train/good")).unwrap();
    fs::copy(lab.path("data/tile/train/good/000.png"), lab.path(name).join("tile/train/good/000.png")).unwrap();
}

#[test]
fn text_parameter_is_the_whole_text_after_the_equals_sign() {
    let lab = Lab::new(PIPELINE);
    for name in ["photos #2", "2024", "007", "no", "[z]", "[z", "a: b", "{x}", "*", "1e3", "it's"] {
        folder(&lab, name);
        assert_eq!(run(&lab, ("X", ""), &format!("images.root={name}")), (Some(0), String::new()), "{name}");
        assert_eq!(images(&lab), "1", "{name}");
    }
    // Quotes around the whole value are those of YAML.
    assert_eq!(run(&lab, ("X", ""), "images.root=\"2024\"").0, Some(0));
    // A parameter that may be absent is taken away by YAML's word for nothing.
    assert!(run(&lab, ("X", ""), "images.root=null").1.contains("`root`: it is missing"));
    // Other parameters take what YAML reads, and nothing else.
    assert_eq!(run(&lab, ("X", ""), "images.size=48").0, Some(0));
    assert_eq!(lab.sql(".vlmdiff", "select distinct array_length(mask) from images"), ["2304"]);
    let wrong = |set| run(&lab, ("X", ""), set).1;
    assert!(wrong("images.size=[48]").contains("`size`: a size is a whole number of pixels, or `[H, W]`"));
    assert!(wrong("images.size=48 #2").contains("`size`: a size is a whole number of pixels, or `[H, W]`"));
    assert!(
        wrong("images.size=3").contains("--set: table `images`: `size`: lower than 16"),
        "{}",
        wrong("images.size=3")
    );
}

#[test]
fn variable_is_read_in_the_type_of_its_parameter() {
    let lab = Lab::new(PIPELINE);
    let pixels = || lab.sql(".vlmdiff", "select distinct array_length(mask) from images");
    let caption = || lab.sql(".vlmdiff", "select caption from captions where caption not like 'A %' limit 1");
    assert_eq!(run(&lab, ("X", ""), "images.root=data"), (Some(0), String::new()));
    assert_eq!(pixels(), ["1024"]);
    assert_eq!(run(&lab, ("SIZE", "48"), "images.root=data"), (Some(0), String::new()));
    assert_eq!(pixels(), ["2304"]);
    fs::remove_file(lab.path("data/tile/captions.jsonl")).unwrap();
    assert_eq!(run(&lab, ("CAPTION", "007"), "images.root=data"), (Some(0), String::new()));
    assert_eq!(caption(), ["007"]);
    for (size, message) in [
        ("large", "`size`: a size is a whole number of pixels, or `[H, W]`"),
        ("4.5", "`size`: a size is a whole number of pixels, or `[H, W]`"),
        ("3", "`size`: lower than 16"),
    ] {
        let (code, said) = run(&lab, ("SIZE", size), "images.root=data");
        assert_eq!(code, Some(2));
        assert!(said.contains(message), "{said}");
    }
}

#[test]
fn paths_may_begin_in_the_home_folder() {
    let lab = Lab::new(PIPELINE);
    let home = lab.path("").to_string_lossy().into_owned();
    let run = |arguments: &[&str], root: &str| {
        let mut command = lab.command(&[&["run", "pipeline.yaml", "--quiet"], arguments].concat());
        lab.ended(command.env("HOME", &home).env("ROOT", root))
    };
    for (arguments, root) in
        [(&["--set", "images.root=~/data"][..], ""), (&[], "~/data"), (&["--store", "~/kept"], "~/data")]
    {
        let ended = run(arguments, root);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    }
    assert!(lab.path("kept/runs").is_dir());
    // A folder named `~` can still be given.
    folder(&lab, "~");
    assert_eq!(run(&["--set", "images.root=./~"], "").code, Some(0));
    assert_eq!(images(&lab), "1");
}
