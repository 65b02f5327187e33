//! The report page on sweeps and protocols.

use std::fs;

use crate::{
    lab::{LIGHT, Lab},
    metrics,
};

/// Returns the page, and its text with a line for each piece.
fn page(lab: &Lab, arguments: &[&str]) -> (String, String) {
    let ended = lab.vlmdiff(&[&["report"], arguments].concat());
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let html = fs::read_to_string(lab.path("report.html")).unwrap();
    let body = html.split("<body>").nth(1).unwrap().split("<script>").next().unwrap();
    let pieces = body.split('<').filter_map(|piece| Some(piece.split_once('>')?.1.trim()));
    let text = pieces.filter(|piece| !piece.is_empty()).collect::<Vec<_>>().join("\n");
    (html, text)
}

#[test]
fn pictures_are_those_of_the_combination_that_ran_last() {
    let lab = Lab::new(&format!("{LIGHT}sweep: {{ size: [16, 32] }}\n"));
    let shown = |size: u32| {
        let (html, text) = page(&lab, &[]);
        assert!(text.contains(&format!("\nsize={size}\n, which ran last of 2 combinations")), "{text}");
        assert_eq!(html.matches(": input\"><image id=").count(), 6);
        assert!(html.contains(&format!("viewBox=\"0 0 {size} {size}\"")));
    };
    lab.run(&[]);
    shown(32);
    // Nothing is left to compute.
    lab.run(&["--only", "size=16"]);
    shown(16);
}

#[test]
fn numbers_are_shown_with_their_values_and_protocol() {
    let by_sweep = "sweep: { aupro_limit: [0.3, 0.05], run: [python3 -B maps.py, python3 maps.py] }";
    let (_, text) = page(&metrics::lab(&format!("{}{by_sweep}\n", metrics::PIPELINE)), &[]);
    let count = |piece: &str| text.matches(piece).count();
    assert_eq!(count("chooses on these labelled test images"), 3, "{text}");
    // Each combination has its tiles, and each protocol a row for each class and one for the mean.
    assert_eq!(count("aupro_limit=0.05, run=python3 -B maps.py\n"), 1, "{text}");
    assert_eq!(count("image AUROC by\nexact\n, mean over classes"), 4, "{text}");
    assert_eq!(count("\ntile\n0.05\npython3 maps.py\n"), 3, "{text}");
    assert_eq!(count("\nmean over classes\n0.3\npython3 -B maps.py\n"), 3, "{text}");
    for said in [
        "\nexact\nFrom the definitions:",
        "\nreference\nThe rules of the code of the paper",
        "\nader\nThe rules of ADer",
        "are not to be compared with each other",
        "at most 5 or 30 % of the normal pixels",
    ] {
        assert_eq!(count(said), 1, "{said}\n{text}");
    }
}

#[test]
fn metrics_are_written_beside_published_ones_in_every_format() {
    let lab = metrics::lab(metrics::PIPELINE);
    let written = |arguments: &[&str]| {
        let ended = lab.vlmdiff(&[&["report"], arguments].concat());
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        ended.stdout
    };
    let csv = written(&["--format", "csv", "--dataset", "mvtec"]);
    let lines = |of: &str| csv.lines().filter(|line| line.starts_with(of)).map(str::to_owned).collect::<Vec<_>>();
    // The paper has 86.9 after 100 epochs and 90.6 after 300, to be compared with numbers by its own rules.
    let paper = lines("metrics,reference,,mean,6,4,image_auroc,");
    assert!(paper.len() == 2 && paper[0].contains(",0.869,100,") && paper[1].contains(",0.906,300,"), "{paper:?}");
    let exact = lines("metrics,exact,,mean,6,4,image_auroc,");
    assert!(exact.len() == 1 && exact[0].ends_with(",,,,,"), "{exact:?}");

    let markdown = written(&["--format", "md", "--dataset", "MVTec-AD"]);
    for said in [
        "## `metrics` by the protocol `exact`, in percent\n\n| class | images | anomalous | image AUROC |",
        "## `metrics` by the protocol `reference` beside VLMDiff in the paper on MVTec-AD, in percent\n",
        "\n| DiAD | 300 epochs | the paper, table 9 | 92.0 | 89.3 | 64.4 |\n",
        "\n| INP-Former | multi-class, 2025 | a reader's table of arXiv 2506.03660 (unverified) | 99.7 | 98.5 | 94.9 |\n",
    ] {
        assert!(markdown.contains(said), "{said}\n{markdown}");
    }
    assert!(!written(&["--format", "md"]).contains("in the paper on"));
    let latex = written(&["--format", "latex", "-o", "metrics.tex"]);
    assert_eq!(latex, "");
    assert!(fs::read_to_string(lab.path("metrics.tex")).unwrap().contains("\\begin{tabular}{lrr"));
    let (html, text) = page(&lab, &["--dataset", "visa"]);
    assert!(text.contains("\nPublished results\n") && text.contains("beside VLMDiff in the paper on VisA"), "{text}");
    // A chart of curves for each class, with its three curves.
    for class in ["gear", "tile"] {
        assert_eq!(html.matches(&format!("aria-label=\"curves of {class}\"")).count(), 1);
    }
    assert_eq!(html.matches("<polyline class=\"regions\"").count(), 2);

    let unknown = lab.vlmdiff(&["report", "--dataset", "mnist"]);
    assert_eq!(unknown.code, Some(2));
    let expected = "there are no published results on `mnist`; there are on mvtec, visa, real_iad, coco_ad";
    assert!(unknown.stderr.contains(expected), "{}", unknown.stderr);
}

#[test]
fn model_alone_stands_beside_the_model_alone_of_the_paper() {
    let lab = Lab::new(
        r#"
name: asked
tables:
  images: { stage: ingest, with: { dataset: folder, root: data, size: 32 } }
  answers:
    stage: caption
    from: [images]
    where: split = 'test'
    with: { model: template, text: "Yes, there is a scratch." }
  scores: { stage: yes_no, from: [answers], with: { score: answer } }
  metrics: { stage: evaluate, from: [images, scores] }
"#,
    );
    lab.run(&[]);
    let written = |format: &str| lab.vlmdiff(&["report", "--format", format, "--dataset", "real_iad"]).stdout;
    let csv = written("csv");
    let compared: Vec<&str> = csv.lines().filter(|line| line.contains(",0.545,,")).collect();
    assert!(compared.len() == 1 && compared[0].starts_with("metrics,reference,,mean,6,4,image_auroc,0.5,"), "{csv}");
    assert!(!csv.contains(",0.78,"), "{csv}");
    let markdown = written("md");
    let row = "\n| mean over classes | zero-shot yes/no | – | 50.0 | 54.5 | -4.5 |";
    assert!(markdown.contains(row), "{markdown}");

    // There are no maps, and the page does not blame masks alone.
    let (_, text) = page(&lab, &[]);
    assert!(text.contains("there are no maps, no ground-truth masks of anomalous images"), "{text}");
}

#[test]
fn sweep_over_seeds_has_means_and_deviations() {
    let with = "with: { protocol: [exact, reference, ader] }";
    assert!(metrics::PIPELINE.contains(with));
    let pipeline = metrics::PIPELINE.replace(with, "with: { protocol: exact, bootstrap: { resamples: 100 } }");
    let lab =
        metrics::lab(&format!("{pipeline}sweep: {{ metrics.bootstrap.seed: [1, 2], aupro_limit: [0.3, 0.1] }}\n"));
    let markdown = lab.vlmdiff(&["report", "--format", "md"]).stdout;
    let (_, seeds) = markdown.split_once("in percent: mean ± standard deviation over seeds\n\n").expect(&markdown);
    let rows: Vec<&str> = seeds.lines().skip(2).take(2).collect();
    // Another seed of the resamples changes no metric.
    for limit in ["0.3", "0.1"] {
        let row = rows.iter().find(|row| row.starts_with(&format!("| {limit} | 2 | ")));
        assert!(row.is_some_and(|row| row.matches(" ± 0.0 |").count() == 7), "{markdown}");
    }
    let (_, text) = page(&lab, &[]);
    assert!(text.contains("\nSeeds\n") && text.contains("95 % interval"), "{text}");
    // Nobody chooses among seeds.
    let chooses = "whoever chooses the best of them chooses on these labelled test images\n";
    assert!(markdown.contains(chooses) && text.contains("chooses on these labelled test images"), "{text}");
    let of_seeds = metrics::lab(&format!("{pipeline}sweep: {{ metrics.bootstrap.seed: [1, 2] }}\n"));
    let formats = [of_seeds.vlmdiff(&["report", "--format", "md"]).stdout, page(&of_seeds, &[]).1];
    assert!(
        formats.iter().all(|format| format.contains("over seeds") && !format.contains("chooses on")),
        "{formats:?}"
    );
}

#[test]
fn each_table_of_metrics_has_its_tiles() {
    let again = "  again: { stage: sql, from: [metrics], with: { query: select * from metrics, makes: table } }\n";
    let (_, text) = page(&metrics::lab(&format!("{}{again}", metrics::PIPELINE)), &[]);
    assert_eq!(text.matches("image AUROC by\nexact\n, mean over classes").count(), 2, "{text}");
    let [first, second] = ["\nmetrics\n", "\nagain\n"].map(|name| text.find(name).unwrap());
    assert!(first.min(second) < text.find("image AUROC by").unwrap(), "{text}");
}

/// Returns the number of occurrences of each piece in the page.
fn counts<const N: usize>(html: &str, pieces: [&str; N]) -> [usize; N] {
    pieces.map(|piece| html.matches(piece).count())
}

#[test]
fn maps_of_a_program_are_shown_with_their_pictures_and_scores() {
    let lab = metrics::lab(metrics::PIPELINE);
    let (html, text) = page(&lab, &[]);
    let shown = counts(&html, [": input\"", ": anomaly map\"", "class=\"heat\" width", "no score"]);
    assert_eq!(shown, [6, 6, 6, 0]);
    for score in lab.sql(".vlmdiff", "select score from anomaly_maps") {
        let digits = format!("{:.3}", score.parse::<f64>().unwrap());
        assert!(text.contains(&format!("score\n{digits}\n")), "{digits}\n{text}");
    }
    assert!(
        text.contains("\nNo reconstructions: no published table of this pipeline has a row per image with\npixels\n")
    );
    assert!(!text.contains("No anomaly maps") && text.contains("\nNo training curves: no published table"), "{text}");
    // Pictures come first, and the page says how its run can be repeated.
    let sections = ["pictures", "scores", "metrics", "training", "run", "tables"];
    let places = sections.map(|name| html.find(&format!("<section id=\"{name}\">")).unwrap());
    assert!(places.is_sorted(), "{places:?}");
    for said in ["last run", "machine", "device", "vlmdiff", "digest of the pipeline", "parameters"] {
        assert!(text.contains(&format!("\n{said}\n")), "{said}\n{text}");
    }
    assert!(text.contains(" of 2 anomalous images score above every normal one"), "{text}");
    assert!(html.contains("<pre>") && html.contains("maps.py"), "{text}");
}

/// No table of this pipeline was made by the stage that usually makes it, and the column of ids has another name.
#[test]
fn tables_are_recognised_by_their_columns() {
    let lab = Lab::new(
        r#"
name: roles
tables:
  listed: { stage: ingest, with: { dataset: folder, root: data, size: 64 } }
  photographs:
    stage: sql
    from: [listed]
    with: { query: "select image_id as \"Name\", class, label, pixels from listed", makes: rows }
  found:
    stage: command
    from: [photographs]
    with: { run: python3 maps.py, columns: [pixels], output: { map: "float16[64,64]", score: float32 } }
  doubled:
    stage: sql
    from: [found]
    with: { query: "select \"Name\", map, 2 * score as score from found", makes: rows }
  numbers:
    stage: sql
    from: [photographs, doubled]
    with:
      query: "select class, 'own' as protocol, pr.f as image_f1, pr.f as sharpness from (select class, avg(score) as f
        from photographs join doubled using (\"Name\") group by class) pr order by class"
  course: { stage: read, with: { path: log.csv, id: run } }
"#,
    );
    lab.write("maps.py", &metrics::MAPS.replace("image_id", "Name"));
    lab.write("log.csv", "run,step,loss\na,1,0.5\nb,2,0.25\nc,3,0.2\n");
    lab.run(&[]);
    let (html, text) = page(&lab, &["--per-kind", "9"]);
    // Without a split every image is judged; nothing says where it is anomalous.
    let shown = counts(&html, [": input\"", ": anomaly map\"", "ground truth\""]);
    assert_eq!(shown, [14, 14, 0], "{text}");
    // The scores are those that the numbers were made from.
    for score in lab.sql(".vlmdiff", "select score from doubled") {
        let digits = format!("{:.3}", score.parse::<f64>().unwrap());
        assert!(text.contains(&format!("score\n{digits}\n")), "{digits}\n{text}");
    }
    assert!(text.contains("\n3 steps, last loss 0.2\n") && html.contains("class=\"chart\""), "{text}");
    assert!(text.contains("\nnumbers by the protocol\nown\n"), "{text}");
    assert!(text.contains("\nImages: is the product flawed?\nOthers\nf1\nsharpness\ngear\n–\n–\n"), "{text}");
}
