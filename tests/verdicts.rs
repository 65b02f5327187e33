//! Thresholds, verdicts and regions, and their files, through the program.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};
use serde_json::Value;
use vlmdiff::engine::store::Event;
use vlmdiff_metrics::conformal;

use crate::{
    lab::{Lab, computed},
    methods, metrics,
};

/// A pipeline that calibrates by the training images, which its maps are not trained on.
fn pipeline() -> String {
    let maps = metrics::PIPELINE.split("  metrics:").next().unwrap().replace("    where: split = 'test'\n", "");
    format!(
        "{maps}
  thresholds:
    stage: calibrate
    from: [images, anomaly_maps]
    where: split = 'train'
    with: {{ rates: [0.5, 0.6], confidence: 0.8, pixel_rate: 0.21 }}
  decisions: {{ stage: decide, from: [images, anomaly_maps, thresholds], where: split = 'test', with: {{ rate: 0.6 }} }}
  regions: {{ stage: regions, from: [decisions, images, anomaly_maps] }}
"
    )
}

/// Returns the tables of which a run computed rows.
fn changed(events: &[Event]) -> Vec<&str> {
    computed(events).into_iter().filter(|(_, rows)| *rows > 0).map(|(table, _)| table).collect()
}

#[test]
fn threshold_names_the_photographs_and_scores_that_it_was_calibrated_on() {
    let lab = metrics::lab(&pipeline());
    let rows = |query: &str| lab.sql(".vlmdiff", query);
    // The thresholds of a class follow from the same photographs.
    let calibrated_on = || rows("select distinct class, calibrated_on from thresholds order by 1");
    let before = calibrated_on();
    assert_eq!(before.len(), 2, "{before:?}");
    let edited = rows("select min(image_id) from images where class = 'gear' and split = 'train'");
    image::RgbImage::from_pixel(32, 32, image::Rgb([230, 20, 20])).save(lab.path("data").join(&edited[0])).unwrap();
    lab.run(&[]);
    let after = calibrated_on();
    assert!(before[0] != after[0] && before[1] == after[1], "{before:?} {after:?}");
}

#[test]
fn verdicts_follow_from_the_scores_of_good_photographs() {
    let lab = metrics::lab(&pipeline());
    let rows = lab.sql(
        ".vlmdiff",
        "select class, level, rate, photographs, round(least_rate, 4) from thresholds order by 1, 2, 3",
    );
    // Four good photographs: 1 - 0.2^(1/4) for a score, 1/5 for pixels.
    let of = |class: &str| {
        [("image", "0.5", "0.3313"), ("image", "0.6", "0.3313"), ("pixel", "0.21", "0.2")]
            .map(|(level, rate, least)| format!("{class},{level},{rate},4,{least}"))
    };
    assert_eq!(rows, [of("gear"), of("tile")].concat());
    let calibrated = "select i.class, m.score from images i join anomaly_maps m using (image_id)
        where i.split = 'train' order by 1, 2";
    let calibrated = lab.sql(".vlmdiff", calibrated);
    let stored = "select class, unnest(scores) as score from thresholds where rate = 0.5 order by 1, 2";
    assert_eq!(lab.sql(".vlmdiff", stored), calibrated);
    // P(Binomial(4, 0.6) >= 2) = 0.82, so the second highest score is the threshold; for the rate 0.5 it is the highest.
    let thresholds = "select class, threshold from thresholds where level = 'image' order by class, rate";
    assert_eq!(lab.sql(".vlmdiff", thresholds), [3, 2, 7, 6].map(|at: usize| calibrated[at].clone()));
    let verdicts =
        "select count(*), sum(cast(d.anomalous = (m.score > t.threshold) and d.threshold = t.threshold as int))
        from decisions d join anomaly_maps m using (image_id) join thresholds t on t.class = d.class
        where t.level = 'image' and t.rate = 0.6 and d.rate = 0.6";
    assert_eq!(lab.sql(".vlmdiff", verdicts), ["6,6"]);
    // A score is above none, some or all of the four of its class.
    let p_values =
        "select count(*) from (select d.image_id, d.p_value, (1 + sum(cast(t.s >= d.score as int))) / 5.0 as p
        from decisions d join (select class, unnest(scores) as s from thresholds where rate = 0.6) t using (class)
        group by 1, 2) where abs(p - p_value) < 1e-9";
    assert_eq!(lab.sql(".vlmdiff", p_values), ["6"]);

    // Another rate computes verdicts again, and no map. They are by the same model.
    let model = "select distinct model from decisions";
    let (before, again) = (lab.sql(".vlmdiff", model), lab.run(&["--set", "decisions.rate=0.5"]));
    assert_eq!(changed(&again), ["decisions"]);
    assert_eq!((before.len(), lab.sql(".vlmdiff", model)), (1, before));
    let ended = lab.vlmdiff(&["run", "pipeline.yaml", "--quiet", "--set", "decisions.rate=0.05"]);
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("has no threshold for the rate 0.05; it has 0.5, 0.6"), "{}", ended.stderr);
}

#[test]
fn too_few_photographs_give_no_verdict_and_a_note() {
    let lab = metrics::lab(&pipeline());
    let rare =
        ["--set", "thresholds.rates=[0.05]", "--set", "decisions.rate=0.05", "--set", "thresholds.pixel_rate=0.01"];
    let ended = lab.vlmdiff(&[&["run", "pipeline.yaml"][..], &rare].concat());
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    for said in [
        "a rate of 0.05 with a confidence of 0.8 needs 32 good photographs; there is no threshold for gear (4 allow a rate of \
         0.3313), tile (4 allow a rate of 0.3313)",
        "`pixel_rate: 0.01` needs 99 good photographs; there is no threshold for gear (4 allow a rate of 0.2), tile (4 allow",
        "there is no verdict, for there is no threshold for the class gear: 3 of 6 rows",
        "there is no threshold of pixels, so that no region is sought",
    ] {
        assert!(ended.stderr.contains(said), "{said}\n{}", ended.stderr);
    }
    let counts = "select count(*), count(anomalous), count(p_value), count(pixel_threshold) from decisions";
    assert_eq!(lab.sql(".vlmdiff", counts), ["6,0,6,0"]);
    assert_eq!(lab.sql(".vlmdiff", "select count(*) from regions"), ["0"]);
    let all = lab.vlmdiff(&[&["run", "pipeline.yaml"][..], &rare, &["--set", "thresholds.scope=all"]].concat());
    assert!(all.stderr.contains("there is no threshold for all classes (8 allow a rate of 0.1823)"), "{}", all.stderr);
}

/// The images of the test have NaN for a score.
const UNORDERED: &str = r#"
name: unordered
tables:
  images: { stage: ingest, with: { dataset: folder, root: data, size: 64 } }
  anomaly_maps:
    stage: sql
    from: [images]
    with:
      makes: row_per_row
      query: "select image_id, cast(case when split = 'test' then 'NaN' else '0.5' end as real) as score from images"
  good: { stage: calibrate, from: [images, anomaly_maps], where: split = 'train', with: { rates: [0.6], confidence: 0.8 } }
  thresholds: { stage: calibrate, from: [images, anomaly_maps] }
  decisions: { stage: decide, from: { images: images, anomaly_maps: anomaly_maps, thresholds: good }, with: { rate: 0.6 } }
  metrics: { stage: evaluate, from: [images, anomaly_maps], where: split = 'test', with: { protocol: exact } }
"#;

#[test]
fn score_that_is_nan_is_an_error_that_names_the_image() {
    let lab = Lab::new(UNORDERED);
    for table in ["thresholds", "decisions", "metrics"] {
        let ended = lab.vlmdiff(&["run", "pipeline.yaml", "--quiet", "--target", table]);
        assert_eq!(ended.code, Some(2), "{table}: {}", ended.stderr);
        assert!(ended.stderr.contains(".png: the score is NaN"), "{table}: {}", ended.stderr);
    }
}

#[test]
fn known_defects_are_left_out_or_set_the_costs() {
    let lab = metrics::lab(&pipeline().replace("    where: split = 'train'\n", ""));
    let note = "the photograph has a known defect and is left out of the calibration: 4";
    let ended = lab.vlmdiff(&["run", "pipeline.yaml"]);
    assert!(ended.stderr.contains(note), "{}", ended.stderr);
    assert_eq!(lab.sql(".vlmdiff", "select distinct photographs from thresholds"), ["5"]);
    let costs = ["--set", "thresholds.costs={false_alarm: 1, miss: 5}"];
    let ended = lab.vlmdiff(&[&["run", "pipeline.yaml"][..], &costs].concat());
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(!ended.stderr.contains("known defect"), "{}", ended.stderr);
    // The threshold is the cheapest of the curve, which has a point for each score that differs and one below all.
    for class in ["gear", "tile"] {
        let row = format!("from thresholds where class = '{class}' and level = 'image'");
        let curve = format!(
            "select t, c from (select unnest(curve_thresholds) as t, unnest(curve_costs) as c {row}) order by c, t"
        );
        let curve = lab.sql(".vlmdiff", &curve);
        assert!((2..=8).contains(&curve.len()), "{curve:?}");
        let chosen = lab.sql(".vlmdiff", &format!("select threshold, rate {row}"));
        assert_eq!(chosen, [format!("{},", curve[0].split(',').next().unwrap())]);
    }
    assert_eq!(
        lab.sql(".vlmdiff", "select count(*) from decisions where anomalous is not null and rate is null"),
        ["6"]
    );
}

#[test]
fn report_shows_promised_and_realised_rates() {
    let lab = metrics::lab(&pipeline());
    assert_eq!(lab.vlmdiff(&["report"]).code, Some(0));
    let html = fs::read_to_string(lab.path("report.html")).unwrap();
    let section = html.split("<section id=\"verdicts\">").nth(1).unwrap().split("</section>").next().unwrap();
    let model = lab.sql(".vlmdiff", "select distinct model from decisions").remove(0);
    assert!(section.contains(&format!("<code>{model}</code>")), "{section}");
    for class in ["gear", "tile"] {
        let [alarms, false_alarms, found] = ["true", "not label", "label"].map(|which| {
            let count = format!(
                "select count(*) from decisions d join images i using (image_id) where d.anomalous and i.class = '{class}' and i.{which}"
            );
            lab.sql(".vlmdiff", &count.replace("i.true", "true").replace("i.not label", "not i.label"))[0].clone()
        });
        let row =
            section.split(&format!("<th scope=\"row\">{class}</th>")).nth(1).unwrap().split("</tr>").next().unwrap();
        assert!(row.contains(&format!("<td class=\"n\">{alarms}</td><td class=\"n\">60 %</td>")), "{row}");
        assert!(row.contains(&format!("<td class=\"n\">{false_alarms} of 1 (")), "{row}");
        assert!(row.contains(&format!("<td class=\"n\">{found} of 2 (")), "{row}");
    }
}

/// Good photographs, of which few are fitted on, and their scores.
const GOOD: &str = "
name: good
tables:
  images: { stage: ingest, with: { size: 32, hold_out: 0.9, PHOTOGRAPHS } }
  features: { stage: extract, from: [images], where: split = 'train', with: { extractor: efficientnet-lite0, layers: [4, 8], keep: 8 } }
  bank: { stage: fit, from: [features], with: { method: { knn: {} } } }
  maps: { stage: detect, from: [images, bank], where: split <> 'train' and not label, with: { sigma: 1 } }
";

/// Returns the probability that at most `alarms` photographs of `rest` score above the k-th highest of `calibration` others, where
/// all N scores differ and it is drawn at random which are which: the sum over x of C(x + k - 1, x) C(N - k - x, rest - x) / C(N, rest).
fn probability(calibration: usize, rest: usize, k: usize, alarms: usize) -> f64 {
    // The logarithm of C(n, r).
    let choices = |n: usize, r: usize| (1..=r).map(|i| ((n - r + i) as f64 / i as f64).ln()).sum::<f64>();
    let total = calibration + rest;
    let exactly = |x: usize| (choices(x + k - 1, x) + choices(total - k - x, rest - x) - choices(total, rest)).exp();
    (0..=alarms.min(rest)).map(exactly).sum()
}

/// The good photographs of each class are parted at random a thousand times: thresholds of some are kept by the others as often as
/// scores do that are exchangeable, and more often where scores are equal. `VLMDIFF_PHOTOGRAPHS` names a folder of photographs
/// that is taken in place of generated ones.
#[test]
fn realised_rates_of_products_keep_the_stated_confidence() {
    const SPLITS: usize = 1_000;
    let generated =
        "dataset: synthetic, synthetic: { classes: [gear, capsule], train: 300, test_good: 0, test_per_defect: 0 }";
    let given = std::env::var("VLMDIFF_PHOTOGRAPHS").map(|root| format!("dataset: folder, root: {root}"));
    let lab = Lab::empty();
    lab.write("pipeline.yaml", &GOOD.replace("PHOTOGRAPHS", &given.unwrap_or(generated.to_owned())));
    lab.run(&[]);
    let rows = lab.sql(".vlmdiff", "select class, score from maps join images using (image_id) order by 1");
    let mut by_class: BTreeMap<&str, Vec<f32>> = BTreeMap::new();
    for (class, score) in rows.iter().map(|row| row.split_once(',').unwrap()) {
        by_class.entry(class).or_default().push(score.parse().unwrap());
    }
    assert!(by_class.len() > 1);
    let mut random = StdRng::seed_from_u64(5);
    for (class, scores) in &mut by_class {
        for (share, confidence) in [(0.5, 0.9), (0.95, 0.9), (0.3, 0.5)] {
            let calibration = (scores.len() as f64 * share) as usize;
            let rest = scores.len() - calibration;
            let promised = [0.01, 0.05, 0.1].map(|rate| (rate, conformal::rank(calibration, rate, confidence)));
            let mut counts = [0_u32; 3];
            for _ in 0..SPLITS {
                let (chosen, others) = scores.partial_shuffle(&mut random, calibration);
                chosen.sort_by(f32::total_cmp);
                for ((rate, k), count) in promised.iter().zip(&mut counts) {
                    let threshold = conformal::threshold(chosen, *rate, confidence);
                    assert_eq!(threshold.is_some(), k.is_some(), "{calibration} photographs of {class}, {rate}");
                    let Some(threshold) = threshold else { continue };
                    let alarms = others.iter().filter(|score| **score > threshold).count();
                    *count += u32::from(alarms as f64 <= rate * rest as f64);
                }
            }
            for ((rate, k), count) in promised.into_iter().zip(counts) {
                let Some(k) = k else {
                    assert!(conformal::least_rate(calibration, confidence) > rate, "{calibration} photographs, {rate}");
                    continue;
                };
                let expected = probability(calibration, rest, k, (rate * rest as f64) as usize);
                let deviation = (expected * (1. - expected) / SPLITS as f64).sqrt();
                let kept = f64::from(count) / SPLITS as f64;
                let told =
                    format!("{class}: {calibration} and {rest}, rate {rate}: kept in {kept}, expected {expected}");
                assert!(kept >= expected - 4. * deviation, "{told}");
            }
        }
    }
}

fn json(lab: &Lab, name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(lab.path(name)).unwrap()).unwrap()
}

#[test]
fn exported_files_have_the_size_of_the_photographs_and_agree_with_the_tables() {
    let lab = metrics::lab(&pipeline());
    let ended = lab.vlmdiff(&["export", "found"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let ids = lab.sql(".vlmdiff", "select image_id from images where split = 'test' order by 1");
    let regions: usize = lab.sql(".vlmdiff", "select count(*) from regions")[0].parse().unwrap();
    assert!(regions > 0);
    assert!(ended.stdout.contains(&format!("found: 14 images, {regions} region")), "{}", ended.stdout);
    let scales: Vec<String> =
        fs::read_to_string(lab.path("found/scales.csv")).unwrap().lines().skip(1).map(str::to_owned).collect();
    let expected = lab.sql(
        ".vlmdiff",
        "select class, cast(min(v) as real), cast(max(v) as real) from (select i.class, unnest(m.map) as v from images i join
         anomaly_maps m using (image_id)) group by 1 order by 1",
    );
    let numbers = |rows: &[String]| -> Vec<Vec<f64>> {
        rows.iter().map(|row| row.split(',').skip(1).map(|value| value.parse().unwrap()).collect()).collect()
    };
    assert_eq!(numbers(&scales), numbers(&expected));
    let mut inside = 0;
    for id in &ids {
        let picture = |kind: &str| image::open(lab.path(&format!("found/{kind}/{id}"))).unwrap();
        let photograph = image::open(lab.path(&format!("data/{id}"))).unwrap();
        for kind in ["heat", "overlay", "mask", "contour"] {
            assert_eq!((picture(kind).width(), picture(kind).height()), (48, 48), "{kind} {id}");
        }
        assert_eq!(picture("heat").color(), image::ColorType::L16);
        let mask = picture("mask").into_luma8();
        let area: usize = mask.pixels().filter(|pixel| pixel.0[0] == 255).count();
        let stored =
            lab.sql(".vlmdiff", &format!("select coalesce(sum(area), 0) from regions where image_id = '{id}'"));
        assert_eq!(stored, [area.to_string()], "{id}");
        inside += area;
        // Outside the mask the contour is the photograph.
        let (contour, photograph) = (picture("contour").into_rgb8(), photograph.into_rgb8());
        let is_kept = |(x, y): (u32, u32)| {
            mask.get_pixel(x, y).0[0] == 255 || contour.get_pixel(x, y) == photograph.get_pixel(x, y)
        };
        assert!((0..48 * 48).all(|i| is_kept((i % 48, i / 48))), "{id}");
        let labelme = json(&lab, &format!("found/labelme/{}.json", id.strip_suffix(".png").unwrap()));
        assert_eq!((labelme["imageWidth"].as_u64(), labelme["imageHeight"].as_u64()), (Some(48), Some(48)));
        assert!(labelme["imagePath"].as_str().unwrap().ends_with(id.as_str()), "{labelme}");
    }
    assert!(inside > 0);
    let coco = json(&lab, "found/regions.json");
    let annotations = coco["annotations"].as_array().unwrap();
    assert_eq!((coco["images"].as_array().unwrap().len(), annotations.len()), (14, regions));
    for annotation in annotations {
        let bounds: Vec<f64> = annotation["bbox"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        let polygon: Vec<f64> =
            annotation["segmentation"][0].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        assert!(polygon.len() >= 6 && polygon.len().is_multiple_of(2));
        for (at, value) in polygon.iter().enumerate() {
            let (low, length) = (bounds[at % 2], bounds[2 + at % 2]);
            assert!((low..=low + length).contains(value), "{annotation}");
        }
    }
    let csv = fs::read_to_string(lab.path("found/regions.csv")).unwrap();
    assert!(csv.starts_with(
        "region_id,image_id,class,x,y,width,height,area,mean_score,max_score,centre_x,centre_y,polygon\n"
    ));
    assert_eq!(csv.lines().count(), 1 + regions);

    // A folder with other files is not written to, and only alarms are exported if that is asked for.
    let again = lab.vlmdiff(&["export", "found"]);
    assert_eq!(again.code, Some(2));
    assert!(again.stderr.contains("found is not empty; name a new folder"), "{}", again.stderr);
    let alarms = lab.vlmdiff(&["export", "alarms", "--alarms"]);
    assert_eq!(alarms.code, Some(0), "{}", alarms.stderr);
    let listed: BTreeSet<String> = json(&lab, "alarms/regions.json")["images"]
        .as_array()
        .unwrap()
        .iter()
        .map(|image| image["file_name"].as_str().unwrap().to_owned())
        .collect();
    let anomalous = lab.sql(".vlmdiff", "select image_id from decisions where anomalous");
    assert_eq!(listed, anomalous.into_iter().collect());
    // A photograph that has changed is not taken for the one that was judged.
    fs::copy(lab.path(&format!("data/{}", ids[1])), lab.path(&format!("data/{}", ids[0]))).unwrap();
    let changed = lab.vlmdiff(&["export", "changed"]);
    assert_eq!(changed.code, Some(2));
    assert!(
        changed.stderr.contains("changed since the images were read; run the pipeline again"),
        "{}",
        changed.stderr
    );
}

#[test]
fn export_without_thresholds_says_what_is_missing() {
    let lab = metrics::lab(metrics::PIPELINE);
    let ended = lab.vlmdiff(&["export", "found"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stdout.contains("found: 6 images\n"), "{}", ended.stdout);
    assert!(
        ended.stderr.contains("6 images without mask and contour: no threshold of pixels is known"),
        "{}",
        ended.stderr
    );
    assert!(ended.stderr.contains("no regions: no published table"), "{}", ended.stderr);
    let kinds: BTreeSet<String> =
        fs::read_dir(lab.path("found")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(kinds, ["heat", "overlay", "scales.csv"].map(str::to_owned).into());
    let alarms = lab.vlmdiff(&["export", "alarms", "--alarms"]);
    assert_eq!(alarms.code, Some(2));
    assert!(
        alarms.stderr.contains("has a row per image with `class`, `score`, `threshold` and `anomalous`"),
        "{}",
        alarms.stderr
    );
}

#[test]
fn new_photographs_leave_bare_names_alone_and_are_exported() {
    let lab = Lab::new(methods::INSPECTION);
    lab.run(&[]);
    let own = lab.sql(".vlmdiff", "select image_id from images order by 1");
    fs::create_dir(lab.path("new")).unwrap();
    fs::copy(lab.path("data/gear/train/good/000.png"), lab.path("new/a.png")).unwrap();
    // A folder that a link inside it leads back to has the same pictures.
    std::os::unix::fs::symlink(".", lab.path("new/again")).unwrap();
    let judged = lab.vlmdiff(&["predict", "pipeline.yaml", "new", "--class", "gear"]);
    assert_eq!((judged.code, judged.stdout.lines().count()), (Some(0), 1), "{} {}", judged.stdout, judged.stderr);
    assert_eq!(lab.sql(".vlmdiff", "select image_id from images order by 1"), own);
    assert_eq!(lab.sql(".vlmdiff", "select image_id from inspection_predict.decisions"), ["new/a.png"]);

    let export = |arguments: &[&str]| lab.vlmdiff(&[&["export"], arguments].concat());
    let ended = export(&["own"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(lab.path("own/heat").join(&own[0]).is_file(), "{own:?}");
    let new = ["--pipeline", "inspection_predict"];
    let ended = export(&[&["found"][..], &new].concat());
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(lab.path("found/overlay/new/a.png").is_file());
    // Another photograph in the place of the one that was judged is not drawn on.
    fs::copy(lab.path("data/tile/train/good/000.png"), lab.path("new/a.png")).unwrap();
    let ended = export(&[&["changed"][..], &new].concat());
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("the photograph of `new/a.png` has been moved or deleted"), "{}", ended.stderr);
}
