use vlmdiff_metrics::METRICS;

use super::{
    metrics::{Cell, Measure},
    *,
};
use crate::engine::store::Store;

#[test]
fn shares_and_times_are_formatted() {
    assert_eq!([Some(0.98765), Some(1.), None].map(charts::percent), ["98.8", "100.0", "–"]);
    assert_eq!(time(1_700_000_000_000), "2023-11-14 22:13 UTC");
}

#[test]
fn a_metric_without_a_number_says_why() {
    let why =
        |of, images: f64, anomalous: f64| Cell::new(None, of, Some(images), Some(anomalous)).why.unwrap_or_default();
    assert!(why("Images", 5., 0.).contains("anomalous") && why("Pixels", 5., 5.).contains("normal"));
    let of_images = why("Images", 5., 2.);
    assert!(of_images.contains("too small") && of_images.contains("all images score the same"), "{of_images}");
    let of_pixels = why("Pixels", 5., 2.);
    assert!(
        of_pixels.contains("no maps") && of_pixels.contains("mask") && of_pixels.contains("protocol"),
        "{of_pixels}"
    );
    assert_eq!(Cell::new(Some(0.5), "Images", Some(5.), None), Cell { percent: "50.0".into(), bar: 50., why: None });
    assert_eq!(Cell::new(Some(f64::NAN), "Images", Some(5.), Some(2.)).percent, "–");
}

#[test]
fn every_metric_is_explained() {
    for column in METRICS.map(|metric| metric.column) {
        let measure = Measure::new(column, &[0.05]);
        assert_eq!(measure.of == "Images", column.starts_with("image"), "{column}");
        assert!(measure.about.len() > 20 && measure.name != column, "{measure:?}");
    }
    assert!(Measure::new("aupro", &[0.05, 0.3]).about.contains("at most 5 or 30 %"));
    assert_eq!(
        Measure::new("sharpness", &[]),
        Measure { column: "sharpness".into(), of: "Others", name: "sharpness".into(), about: String::new() }
    );
}

#[test]
fn empty_store_is_an_input_error() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().to_string_lossy()).unwrap();
    let error = Source::open(&store, None, &[]).err().unwrap();
    assert!(error.is_input() && error.to_string().contains("vlmdiff run"), "{error}");
}

#[test]
fn a_page_names_the_roles_that_no_table_has() {
    let page = |missing: Vec<&'static str>, total: usize| {
        let cards: Vec<Value> = (0..total).map(|_| context! { class => "c" }).collect();
        let tables = vec![context! { name => "t" }];
        render(context! { pipeline => "p", tables, missing, total, cards }).unwrap()
    };
    let none = page(vec!["images", "reconstructions", "anomaly maps"], 0);
    for said in [
        "No metrics: no published table of this pipeline has <code>class</code>, <code>protocol</code> and metrics",
        "No training curves: no published table of this pipeline has <code>step</code> and <code>loss</code>.",
        "No pictures: no published table of this pipeline has a row per image with <code>pixels</code>",
    ] {
        assert!(none.contains(said), "{said}\n{none}");
    }
    assert!(!none.contains("{{") && !none.contains("{%"));
    let images_alone = page(vec!["reconstructions", "anomaly maps"], 1);
    for role in ["reconstructions", "anomaly maps"] {
        let said = format!("No {role}: no published table of this pipeline has a row per image with");
        assert!(images_alone.contains(&said), "{said}\n{images_alone}");
    }
}

#[test]
fn notes_stand_above_the_numbers() {
    let notes = vec![
        context! { table => "denoiser", text => "the loss began at 1 <b> and ended at 1; try more `training.steps`" },
    ];
    let html = render(context! { pipeline => "p", tables => [context! { name => "t" }].to_vec(), notes }).unwrap();
    let (above, below) = html.split_once("<h2>Notes</h2>").unwrap();
    assert!(!above.contains("id=\"metrics\"") && below.contains("id=\"metrics\""));
    assert!(
        below.contains("<code>denoiser</code>: the loss began at 1 &lt;b&gt; and")
            && below.contains("<code>training.steps</code>")
    );
    let none = render(context! { pipeline => "p", tables => [context! { name => "t" }].to_vec() }).unwrap();
    assert!(!none.contains("<h2>Notes</h2>"));
}

#[test]
fn loss_of_guessing_is_known_where_batches_are_full() {
    let of = |steps: [u32; 2], epochs: [u32; 2]| {
        let params = serde_json::json!({ "training": { "batch_size": 32 } });
        let [steps, epochs] = [steps, epochs].map(|values| values.map(|value| Some(f64::from(value))));
        guessing(&params, &steps, &epochs)
    };
    // Five steps an epoch, and a training that ends within its first epoch.
    assert_eq!([of([10, 20], [2, 4]), of([1, 2], [0, 0])], [Some(32_f64.ln()); 2]);
    // A step sees all rows, of which there may be two.
    assert_eq!(of([10, 20], [10, 20]), None);
}

#[test]
fn scores_of_a_class_are_told_in_words() {
    let image = |anomalous, score| TestImage {
        id: String::new(),
        class: "a".into(),
        defect: String::new(),
        anomalous: Some(anomalous),
        caption: None,
        score,
    };
    let images = [(false, 0.5), (false, 0.25), (true, 0.75), (true, 0.5)].map(|(bad, score)| image(bad, Some(score)));
    let told = |images: &[TestImage]| {
        histograms(images).iter().map(|h| h.get_attr("note").unwrap().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(told(&images), ["1 of 2 anomalous images score above every normal one, of which the highest has 0.5"]);
    assert_eq!(told(&images[..2]), ["2 normal, 0 anomalous"]);
    assert_eq!(told(&[image(true, None)]), [""; 0]);
    assert_eq!(missed(&images[3], 0.501), "no higher than 51 % of the normal images");
}

#[test]
fn names_cannot_break_the_page() {
    let image = TestImage {
        id: "<b>/test/&".into(),
        class: "\"><script>alert(1)</script>".into(),
        defect: "hole".into(),
        anomalous: Some(true),
        caption: None,
        score: Some(1.5),
    };
    let pictures = Pictures {
        size: (8, 4),
        input: "data:a/b".into(),
        ground_truth: GroundTruth::Unknown,
        autoencoded: None,
        reconstruction: None,
        heat: None,
    };
    let cards = vec![card(&image, Some(0.004), &pictures, None)];
    let html = render(context! { pipeline => "<i>", tables => [context! { name => "t" }].to_vec(), total => 1, scored => true, has_truth => true, classes => vec![image.class.clone()], missing => ["reconstructions"].to_vec(), cards }).unwrap();
    assert!(
        !html.contains("<script>alert")
            && !html.contains("<i>/")
            && !html.contains("<b>/")
            && html.contains("&lt;b&gt;")
    );
    assert!(
        html.contains("href=\"data:a/b\"")
            && html.contains("no ground truth")
            && html.contains("data-score=\"1.5\"")
            && html.contains("scores no higher than 1 % of the normal images")
    );
}
