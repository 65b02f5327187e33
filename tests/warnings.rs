//! Notes on tables that were made without an error but missed their purpose. Each note is provoked, and absent if
//! all is well.

use std::fs;

use crate::{
    lab::{LIGHT, Lab, TOY},
    metrics,
};

/// Returns the notes of a run, a plan and the page, which must be the same.
fn notes(lab: &Lab, arguments: &[&str]) -> Vec<String> {
    let ran = lab.vlmdiff(&[&["run", "pipeline.yaml"], arguments].concat());
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let store = vlmdiff::engine::store::Store::open(&lab.path(".vlmdiff").to_string_lossy()).unwrap();
    let manifests = vlmdiff::query::manifests(&store).unwrap();
    let notes = manifests.iter().flat_map(|(_, m)| m.notes.iter().map(|note| format!("{}: {note}", m.table)));
    let notes: Vec<String> = notes.collect();
    let again = lab.vlmdiff(&[&["run", "pipeline.yaml"], arguments].concat());
    let plan = lab.vlmdiff(&[&["plan", "pipeline.yaml"], arguments].concat());
    let page = lab.vlmdiff(&["report"]);
    assert_eq!((plan.code, page.code), (Some(0), Some(0)), "{}{}", plan.stderr, page.stderr);
    let page = fs::read_to_string(lab.path("report.html")).unwrap();
    let page = page.replace("&#x27;", "'").replace("&#x2f;", "/");
    assert_eq!(page.contains("<h2>Notes</h2>"), !notes.is_empty());
    for note in &notes {
        let (_, text) = note.split_once(": ").unwrap();
        // Each note is printed once by a run that made the table, by one that found it fresh, by a plan, and on the
        // page.
        for said in [&ran.stderr, &again.stderr, &plan.stdout] {
            assert_eq!(said.matches(text).count(), 1, "{text}\n{said}");
        }
        let words = text.split('`').next().unwrap();
        assert!(page.contains(words.trim()), "{words}");
    }
    notes
}

/// Returns the notes on a table except those on captions that are longer than the small encoder of these tests.
fn only(notes: &[String], table: &str) -> Vec<String> {
    let prefix = format!("{table}: ");
    let of_table = notes.iter().filter_map(|note| note.strip_prefix(&prefix));
    of_table.filter(|note| !note.starts_with("the caption is longer")).map(str::to_owned).collect()
}

#[test]
fn note_on_equal_captions() {
    let lab = Lab::new(LIGHT);
    assert_eq!(notes(&lab, &[]), [""; 0]);
    for class in ["tile", "gear"] {
        fs::remove_file(lab.path(&format!("data/{class}/captions.jsonl"))).unwrap();
    }
    let told = only(&notes(&lab, &[]), "captions");
    assert!(told.iter().any(|note| note.starts_with("all 8 captions are equal: `nothing`")), "{told:?}");
    let told = only(&notes(&lab, &["--set", "captions.default=''"]), "captions");
    assert!(told.iter().any(|note| note.starts_with("all 8 captions are empty")), "{told:?}");
    let told = only(&notes(&lab, &["--set", "captions.default=a photo of a {class}"]), "captions");
    assert!(!told.iter().any(|note| note.contains("equal")), "{told:?}");
}

#[test]
fn note_on_metrics_that_guessing_reaches() {
    let lab = metrics::lab(metrics::PIPELINE);
    // The map has the same value everywhere.
    lab.write(
        "maps.py",
        &fs::read_to_string(lab.path("maps.py")).unwrap().replace("max(p[i:i + 3]) - min(p[i:i + 3])", "7"),
    );
    let told = only(&notes(&lab, &["--set", "anomaly_maps.run=python3 -B maps.py"]), "metrics");
    let expected =
        "`image_auroc` is no better than guessing: gear 50.0 % (guessing: 50 ± 41), tile 50.0 % (guessing: 50 ± 41)";
    assert!(told.contains(&expected.to_owned()), "{told:?}");
    assert!(
        told.iter().any(|note| note.starts_with("`pixel_auroc` is no better than guessing: gear 50.0 %")),
        "{told:?}"
    );
    // These maps are the ground truth.
    let known = metrics::PIPELINE
        .replace("run: python3 maps.py", "run: python3 known.py")
        .replace("columns: [pixels]", "columns: [mask]")
        .replace("protocol: [exact, reference, ader]", "protocol: exact");
    lab.write("pipeline.yaml", &known);
    let script = fs::read_to_string(lab.path("maps.py")).unwrap();
    let script = script
        .replace("batch[\"pixels\"]", "batch[\"mask\"]")
        .replace("values = [7 for i in range(0, len(p), 3)]", "values = [255 * (v > 0) for v in p]");
    lab.write("known.py", &script);
    assert_eq!(only(&notes(&lab, &[]), "metrics"), [""; 0]);
}

#[test]
fn note_on_a_training_that_learns_nothing() {
    let lab = Lab::new(TOY);
    let until = |table: &'static str| vec!["--until", table];
    let still = [until("text_encoder"), vec!["--set", "text_encoder.training.lr=0"]].concat();
    let told = only(&notes(&lab, &still), "text_encoder");
    assert!(told.len() == 1 && told[0].contains("guessing has 1.386: the network has learned nothing"), "{told:?}");
    let learns = ["--set", "text_encoder.training.steps=60", "--set", "text_encoder.training.lr=0.005"];
    assert_eq!(only(&notes(&lab, &[until("text_encoder"), learns.to_vec()].concat()), "text_encoder"), [""; 0]);

    let still =
        [until("autoencoder"), vec!["--set", "autoencoder.training.lr=0", "--set", "autoencoder.training.steps=20"]];
    let told = only(&notes(&lab, &still.concat()), "autoencoder");
    assert!(told.len() == 1 && told[0].contains("the network has learned next to nothing"), "{told:?}");
    let learns = ["--set", "autoencoder.training.steps=60", "--set", "autoencoder.training.lr=0.005"];
    assert_eq!(only(&notes(&lab, &[until("autoencoder"), learns.to_vec()].concat()), "autoencoder"), [""; 0]);
}

#[test]
fn note_on_reconstructions_that_do_not_depend_on_their_images() {
    let lab = Lab::new(TOY);
    let until = ["--until", "reconstructions"];
    // The networks are untrained, so their output does not depend on the image.
    let told = only(&notes(&lab, &[&until[..], &["--set", "autoencoder.training.lr=0"]].concat()), "reconstructions");
    assert!(told.len() == 1 && told[0].contains("gear (") && told[0].contains("tile ("), "{told:?}");
    // Hardly any noise is added and removed, so the reconstructions are those of the autoencoder.
    let healthy = [
        "--set",
        "autoencoder.training.steps=150",
        "--set",
        "autoencoder.training.lr=0.005",
        "--set",
        "reconstructions.latent=mode",
        "--set",
        "reconstructions.sampler={ num_inference_steps: 1, noise_level: 1, first_step: 1 }",
    ];
    let told = only(&notes(&lab, &[&until[..], &healthy[..]].concat()), "reconstructions");
    // After so short a training the network reproduces gears on their backgrounds but not the pattern of tiles.
    assert!(!told.iter().any(|note| note.contains("gear (")), "{told:?}");
}
