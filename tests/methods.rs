//! Methods that are fitted on photographs or their features: a training goes on where it was interrupted, and images are scored
//! alike in whatever company they are.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::{BufRead, BufReader},
    process::Stdio,
    time::Duration,
};

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use serde_json::Value;
use tch::{Device, Tensor, nn::VarStore};
use vlmdiff::models::{
    checkpoint::to_safetensors,
    resnet::{ResNet, ResNetConfig},
};

use crate::{
    dataset::hub_parquet,
    lab::{Lab, computed, toy_above},
    web::serve,
};

/// A pipeline that fits a bank on each class and on all, and scores the test images by both.
pub(crate) const BANKS: &str = "
name: banks
tables:
  images: { stage: ingest, with: { dataset: folder, root: data, size: 32 } }
  features:
    stage: extract
    from: [images]
    where: split = 'train'
    with: { extractor: efficientnet-lite0, layers: [4, 8], keep: 8 }
  bank: { stage: fit, from: [features], with: { method: { patchcore: { ratio: 0.5, seed: 3 } } } }
  by_class: { stage: fit, from: [features], with: { method: { knn: {} }, classes: separate } }
  drawn:
    stage: extract
    from: [images]
    where: split = 'train'
    with: { extractor: efficientnet-lite0, layers: [4, 8], keep: 8, choose: random }
  subspace: { stage: fit, from: [drawn], with: { method: { subspace: {} } } }
  maps: { stage: detect, from: [images, bank], where: split = 'test', with: { sigma: 1 } }
  maps_by_class: { stage: detect, from: [images, by_class], where: split = 'test', with: { sigma: 1, score: { top: 0.1 } } }
";

/// Makes a lab for this pipeline.
pub(crate) fn banks() -> Lab {
    let lab = Lab::new(BANKS);
    // A caption would be missed when its photograph is removed.
    fs::remove_file(lab.path("data/tile/captions.jsonl")).unwrap();
    lab
}

/// Returns the contents of the tables that do not name a place or a time, by table.
pub(crate) fn contents(lab: &Lab, store: &str) -> BTreeMap<String, String> {
    lab.contents(store).into_iter().collect()
}

#[test]
fn fit_says_what_it_was_fitted_on() {
    let lab = banks();
    let ended = lab.vlmdiff(&["run", "pipeline.yaml"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let rows = |query: &str| lab.sql(".vlmdiff", query);
    let classes = "array_to_string(classes, ' ')";
    let by_class = rows(&format!("select class, {classes}, images, vectors from by_class order by 1"));
    assert_eq!(by_class, ["gear,gear,4,32", "tile,tile,4,32"]);
    assert_eq!(rows(&format!("select class is null, {classes}, images, vectors from bank")), ["true,gear tile,8,32"]);
    let ids = rows(
        "select count(distinct fitted_on) from (select fitted_on from bank union all select fitted_on from by_class)",
    );
    assert_eq!(ids, ["3"], "each was fitted on other images");
    assert_eq!(rows("select images from subspace"), ["8"]);
    // A photograph that is edited under its name.
    let fitted_on = || ["bank", "by_class"].map(|table| rows(&format!("select fitted_on from {table} order by class")));
    let before = fitted_on();
    let edited = rows("select min(image_id) from images where class = 'gear' and split = 'train'");
    image::RgbImage::from_pixel(32, 32, image::Rgb([200, 90, 10])).save(lab.path("data").join(&edited[0])).unwrap();
    lab.run(&[]);
    let after = fitted_on();
    assert_ne!(before[0], after[0]);
    assert!(before[1][0] != after[1][0] && before[1][1] == after[1][1], "{before:?} {after:?}");
    assert_eq!(
        rows("select count(*) from maps where score > 0"),
        rows("select count(*) from images where split = 'test'")
    );
}

/// A photograph that is scored alone has the map that it has among others, and cutting the tables into other tasks
/// changes no bit.
#[test]
fn maps_do_not_depend_on_other_images_or_on_tasks() {
    let lab = banks();
    lab.run(&[]);
    lab.run(&["--store", "cut", "--task-rows", "3", "--batch-size", "1"]);
    assert_eq!(contents(&lab, ".vlmdiff"), contents(&lab, "cut"));
    // A sum of f16 is exact in f64.
    let maps = "select image_id, score, count(distinct p), sum(cast(p as double)) from \
                (select image_id, score, unnest(map) as p from maps where image_id like 'gear%') group by 1, 2 order by 1";
    let among_others = lab.sql("cut", maps);
    lab.write("alone.yaml", &BANKS.replace("where: split = 'test'", "where: split = 'test' and class = 'gear'"));
    let ended = lab.vlmdiff(&["run", "alone.yaml", "--store", "alone"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(!among_others.is_empty());
    assert_eq!(lab.sql("alone", maps), among_others);
}

/// Images are computed by one thread each, however many there are.
#[test]
fn features_and_maps_do_not_depend_on_the_number_of_threads() {
    let lab = banks();
    let run = |threads: &str| {
        let store = format!("threads-{threads}");
        let arguments = ["run", "pipeline.yaml", "--quiet", "--until", "maps_by_class", "--store", &store];
        let ended = lab.ended(lab.command(&arguments).env("OMP_NUM_THREADS", threads));
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        contents(&lab, &store)
    };
    let (one, three) = (run("1"), run("3"));
    for table in ["features", "maps_by_class"] {
        assert_eq!(one[table], three[table], "{table}");
    }
}

#[test]
fn class_without_a_fit_is_named() {
    let lab = banks();
    let only_tiles = "where: split = 'train' and class = 'tile'";
    lab.write("pipeline.yaml", &BANKS.replace("where: split = 'train'", only_tiles));
    let ended = lab.vlmdiff(&["run", "pipeline.yaml"]);
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("nothing was fitted for the class `gear`; there are tile"), "{}", ended.stderr);
}

#[test]
fn parameters_that_do_not_fit_are_refused_by_name() {
    let lab = banks();
    let refused = |from: &str, to: &str| {
        lab.write("pipeline.yaml", &BANKS.replace(from, to));
        let ended = lab.vlmdiff(&["plan", "pipeline.yaml"]);
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        ended.stderr
    };
    let text = refused("ratio: 0.5", "ratio: 1.5");
    assert!(text.contains("method.patchcore.ratio") && text.contains("above 0 and at most 1"), "{text}");
    let text = refused("knn: {}", "knn: { neighbours: 2 }");
    assert!(text.contains("neighbours") && text.contains("neighbors"), "{text}");
    let text = refused("layers: [4, 8]", "layers: [4, 9]");
    assert!(text.contains("efficientnet-lite0 has no layer 9"), "{text}");
    let text = refused("score: { top: 0.1 }", "score: { window: { kernel_size: 64, repeats: 1 } }");
    assert!(text.contains("leave nothing of a map of 32x32"), "{text}");
    let text = refused("from: [images, bank]", "from: [images, features]");
    assert!(text.contains("`features`") && text.contains("weights"), "{text}");
}

/// RAD compares patches at their places, so that none may be left out. Patches that it was fitted on are at no distance.
#[test]
fn rad_compares_the_patches_of_whole_images() {
    let lab = banks();
    let tables = "  rad: { stage: fit, from: [features], with: { method: { rad: { images: 3 } } } }
  train_maps: { stage: detect, from: [images, rad], where: split = 'train', with: { sigma: 0 } }
  test_maps: { stage: detect, from: [images, rad], where: split = 'test', with: { sigma: 0 } }
";
    let thinned = [BANKS, tables].concat();
    lab.write("pipeline.yaml", &thinned);
    let refused = lab.vlmdiff(&["plan", "pipeline.yaml"]);
    let told = "`rad` compares patches at the same place, and `keep` of the features leaves some out";
    assert!(refused.code == Some(2) && refused.stderr.contains(told), "{}", refused.stderr);

    lab.write("pipeline.yaml", &thinned.replace(", keep: 8", ""));
    lab.run(&["--until", "train_maps"]);
    lab.run(&["--until", "test_maps"]);
    // A grid of 8x8 cells for each of eight images.
    assert_eq!(lab.sql(".vlmdiff", "select images, vectors from rad"), ["8,512"]);
    // Features are kept in f16, with an error of up to 2⁻¹¹, whose square is that of a cosine.
    assert_eq!(lab.sql(".vlmdiff", "select count(*) from train_maps where score < 1e-4"), ["8"]);
    assert_eq!(lab.sql(".vlmdiff", "select count(*) from test_maps where score > 1e-3"), ["6"]);
}

/// A pipeline from photographs to decisions on two classes.
pub(crate) const INSPECTION: &str = "
name: inspection
tables:
  images: { stage: ingest, with: { dataset: folder, root: data, size: 32 } }
  features: { stage: extract, from: [images], where: split = 'train', with: { extractor: efficientnet-lite0, layers: [4, 8], keep: 8 } }
  bank: { stage: fit, from: [features], with: { method: { knn: {} }, classes: separate } }
  anomaly_maps: { stage: detect, from: [images, bank], with: { sigma: 1 } }
  thresholds: { stage: calibrate, from: [images, anomaly_maps], where: split = 'train', with: { rates: [0.5], confidence: 0.5 } }
  decisions: { stage: decide, from: [images, anomaly_maps, thresholds], where: split = 'test', with: { rate: 0.5 } }
";

/// Returns the objects that `predict --json` printed.
fn predicted(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn new_photographs_are_judged_as_those_of_the_run() {
    let lab = Lab::new(INSPECTION);
    lab.run(&[]);
    let picture = fs::read_dir(lab.path("data/gear/test")).unwrap().map(|entry| entry.unwrap().path()).min().unwrap();
    let picture = fs::read_dir(picture).unwrap().map(|entry| entry.unwrap().path()).min().unwrap();
    let id = picture.strip_prefix(lab.path("data")).unwrap().to_string_lossy().into_owned();
    let query = format!("select score, anomalous from decisions where image_id = '{id}'");
    let expected = lab.sql(".vlmdiff", &query);
    assert_eq!(expected.len(), 1, "{id}");
    fs::create_dir(lab.path("new")).unwrap();
    fs::copy(&picture, lab.path("new/a.png")).unwrap();
    lab.write("new/broken.png", "no picture");
    let judge = |arguments: &[&str]| {
        lab.vlmdiff(&[&["predict", "pipeline.yaml", "--class", "gear", "--json"], arguments].concat())
    };

    let alone = judge(&["new/a.png"]);
    let verdict = &predicted(&alone.stdout)[0];
    assert_eq!(format!("{},{}", verdict["score"].as_f64().unwrap() as f32, verdict["anomalous"]), expected[0]);
    assert_eq!(alone.code, Some(if verdict["anomalous"] == true { 4 } else { 0 }), "{}", alone.stderr);
    assert_eq!((&verdict["image_id"], &verdict["class"]), (&"new/a.png".into(), &"gear".into()));

    // Beside one that cannot be read the photograph has the same verdict, by the same model.
    let folder = judge(&["new"]);
    let both = predicted(&folder.stdout);
    assert_eq!((both.len(), &both[0]), (2, verdict), "{}", folder.stderr);
    let error = both[1]["error"].as_str().unwrap();
    assert!(both[1]["image_id"] == "new/broken.png" && error.starts_with("not an image"), "{error}");
    assert!(!folder.stderr.contains("features"), "{}", folder.stderr);
    assert_eq!(folder.code, Some(if verdict["anomalous"] == true { 4 } else { 3 }));
    // The pipeline's own tables are those of its run.
    assert_eq!(lab.sql(".vlmdiff", &query.replace("decisions", "inspection.decisions")), expected);
}

#[test]
fn verdicts_state_the_model_that_made_them() {
    let lab = Lab::new(INSPECTION);
    lab.run(&[]);
    let model = |pipeline: &str| {
        let models = lab.sql(".vlmdiff", &format!("select distinct model from {pipeline}.decisions"));
        assert_eq!(models.len(), 1, "{models:?}");
        models[0].clone()
    };
    let judge = |photographs: &[&str], store: &str| -> Vec<Value> {
        let arguments = ["predict", "pipeline.yaml", "--class", "gear", "--json", "--store", store];
        let told = lab.vlmdiff(&[&arguments[..], photographs].concat());
        predicted(&told.stdout).into_iter().map(|mut verdict| verdict["model"].take()).collect()
    };
    let first = model("inspection");
    let (photograph, other) = ("data/gear/train/good/000.png", "data/gear/train/good/001.png");
    lab.write("broken.png", "no picture");
    assert_eq!(judge(&[photograph], ".vlmdiff"), [first.as_str()]);
    assert_eq!(judge(&[other, "broken.png", photograph], ".vlmdiff"), [first.as_str(); 3]);
    assert_eq!(model("inspection_predict"), first);
    // Another store computes the same model.
    lab.run(&["--store", "again"]);
    assert_eq!(judge(&[other], "again"), [first.as_str()]);

    // Other thresholds are another model of the same maps.
    let again = lab.run(&["--set", "thresholds.confidence=0.6"]);
    let tables: Vec<&str> =
        computed(&again).into_iter().filter(|(_, rows)| *rows > 0).map(|(table, _)| table).collect();
    assert_eq!(tables, ["thresholds", "decisions"]);
    assert_ne!(model("inspection"), first);
    // So is another bank, and what is taken back is the first one.
    lab.run(&["--set", "bank.method={knn: {neighbors: 2}}"]);
    assert_ne!(model("inspection"), first);
    assert!(computed(&lab.run(&[])).iter().all(|(_, rows)| *rows == 0));
    assert_eq!(model("inspection"), first);
}

#[test]
fn prediction_that_cannot_be_made_says_why() {
    let lab = Lab::new(INSPECTION);
    let refused = |arguments: &[&str]| {
        let ended = lab.vlmdiff(&[&["predict", "pipeline.yaml"], arguments].concat());
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        ended.stderr
    };
    let picture = "data/gear/train/good/000.png";
    let text = refused(&[picture, "--class", "gear"]);
    assert!(text.contains("`bank` of `inspection` is not computed yet; `vlmdiff run`"), "{text}");
    lab.run(&[]);
    assert!(refused(&[picture]).contains("Name one by --class: gear, tile"));
    assert!(refused(&["nothing.png", "--class", "gear"]).contains("nothing.png"));
    let text = lab.vlmdiff(&["predict", "pipeline.yaml", picture, "--class", "screw"]);
    assert!(text.stderr.contains("nothing was fitted for the class `screw`; there are gear, tile"), "{}", text.stderr);
    lab.write("pipeline.yaml", BANKS);
    assert!(refused(&[picture]).contains("has no table of decisions"));
}

/// A photograph is judged by a denoiser and its caption as the run judged it.
#[test]
fn new_photographs_are_judged_by_what_a_denoiser_takes_for_noise() {
    let maps = "  latent_maps:\n    stage: score_latents\n";
    let features =
        toy_above("verdicts").split_once("  feature_latents:").unwrap().1.replace("    where: split = 'test'\n", "");
    let decided = "  thresholds: { stage: calibrate, from: [images, latent_maps], where: split = 'train', with: { rates: [0.5], confidence: 0.5 } }
  decisions: { stage: decide, from: [images, latent_maps, thresholds], where: split = 'test', with: { rate: 0.5 } }
";
    assert!(features.contains(maps) && toy_above("autoencoder").contains("{ model: dataset }"));
    let above = toy_above("autoencoder").replace("{ model: dataset }", "{ model: dataset, default: a product }");
    let lab = Lab::new(&[&above, "  feature_latents:", &features, decided].concat());
    for class in ["gear", "tile"] {
        fs::remove_file(lab.path(&format!("data/{class}/captions.jsonl"))).unwrap();
    }
    lab.run(&[]);
    let scores = lab.sql(".vlmdiff", "select image_id, score from decisions order by 1");
    assert_eq!(scores.len(), 6);
    for row in scores {
        let (id, score) = row.split_once(',').unwrap();
        let told = lab.vlmdiff(&["predict", "pipeline.yaml", &format!("data/{id}"), "--class", "gear", "--json"]);
        let verdict = predicted(&told.stdout)[0]["score"].as_f64().unwrap_or_else(|| panic!("{}", told.stderr));
        assert_eq!((verdict as f32).to_string(), score, "{id}");
    }
}

#[test]
fn one_of_several_tables_of_decisions_is_chosen_by_name() {
    let thresholds = "rates: [0.5]";
    let second = "  lenient: { stage: decide, from: [images, anomaly_maps, thresholds], where: split = 'test', with: { rate: 0.6 } }\n";
    let lab = Lab::new(&format!("{}{second}", INSPECTION.replace(thresholds, "rates: [0.5, 0.6]")));
    lab.run(&[]);
    let judge = |arguments: &[&str]| {
        let picture = ["predict", "pipeline.yaml", "data/gear/train/good/000.png", "--class", "gear", "--json"];
        lab.vlmdiff(&[&picture, arguments].concat())
    };
    for (table, rate) in [("decisions", 0.5), ("lenient", 0.6)] {
        let told = judge(&["--decisions", table]);
        assert_eq!(predicted(&told.stdout)[0]["rate"], rate, "{}", told.stderr);
    }
    let text = judge(&[]).stderr;
    assert!(text.contains("several tables of decisions: decisions, lenient; --decisions names one of them"), "{text}");
    let text = judge(&["--decisions", "lenent"]).stderr;
    assert!(text.contains("did you mean `lenient`?; it has decisions, lenient"), "{text}");
}

#[test]
fn good_patch_that_is_nearest_to_the_worst_one_is_named() {
    assert!(INSPECTION.contains("from: [images, bank]") && INSPECTION.contains(", keep: 8"));
    let seeking = INSPECTION.replace("from: [images, bank]", "from: [images, bank, features]").replace(", keep: 8", "");
    let lab = Lab::new(&seeking);
    lab.run(&[]);
    let count = |condition: &str| {
        let from = "from anomaly_maps m join images i using (image_id) left join images n on m.nearest = n.image_id";
        lab.sql(".vlmdiff", &format!("select count(*) {from} where {condition}")).remove(0).parse::<u32>().unwrap()
    };
    assert_eq!(count("n.split = 'train' and n.class = i.class"), 14, "each image has a photograph of its class");
    assert_eq!(count("m.worst_x between 0 and 1 and m.nearest_y between 0 and 1"), 14);
    // Patches of the bank are nearest to themselves, unless others are equal to them.
    let own =
        count("i.split = 'train' and m.nearest = m.image_id and m.nearest_x = m.worst_x and m.nearest_y = m.worst_y");
    assert!(own >= 6, "{own} of 8");
    let maps = "select image_id, score from anomaly_maps order by 1";
    let scores = lab.sql(".vlmdiff", maps);
    let told = lab.vlmdiff(&["predict", "pipeline.yaml", "data/gear/train/good/000.png", "--class", "gear", "--json"]);
    let nearest = &predicted(&told.stdout)[0]["nearest"];
    assert!(nearest["image_id"].as_str().unwrap().starts_with("gear/train/good/"), "{}", told.stdout);
    assert!(nearest["at"].is_array() && nearest["worst"].is_array(), "{nearest}");

    // Scores are those of a table without this.
    lab.write("pipeline.yaml", &seeking.replace("from: [images, bank, features]", "from: [images, bank]"));
    lab.run(&[]);
    assert_eq!(lab.sql(".vlmdiff", maps), scores);

    // A patch that is one of few that are kept has its own place, a centre of a grid of 8x8.
    lab.write("pipeline.yaml", &INSPECTION.replace("from: [images, bank]", "from: [images, bank, features]"));
    lab.run(&[]);
    assert_eq!(
        lab.sql(".vlmdiff", "select count(nearest), count(nearest_x), count(worst_x) from anomaly_maps"),
        ["14,14,14"]
    );
    assert_eq!(lab.sql(".vlmdiff", "select count(*) from features where array_length(places) = 2 * 8"), ["8"]);
    let places = "select distinct cast(p * 16 as int) % 2 from (select unnest(places) as p from features)";
    assert_eq!(lab.sql(".vlmdiff", places), ["1"]);
    let at = "select min(cast(nearest_x * 16 as int) % 2), min(cast(nearest_y * 16 as int) % 2) from anomaly_maps";
    assert_eq!(lab.sql(".vlmdiff", at), ["1,1"]);

    let other =
        "  others: { stage: extract, from: [images], with: { extractor: efficientnet-lite0, layers: [4] } }\n  bank:";
    let other = seeking.replace("  bank:", other).replace("[images, bank, features]", "[images, bank, others]");
    lab.write("pipeline.yaml", &other);
    let refused = lab.vlmdiff(&["plan", "pipeline.yaml"]);
    let why = "its patches were made with other parameters than those that were fitted on";
    assert!(refused.code == Some(2) && refused.stderr.contains(why), "{}", refused.stderr);
}

#[test]
fn class_is_not_asked_for_where_it_changes_no_verdict() {
    let unified = INSPECTION
        .replace("from: [images, bank]", "from: [images, bank, features]")
        .replace(", classes: separate", "")
        .replace("confidence: 0.5 }", "confidence: 0.5, scope: all }");
    let lab = Lab::new(&unified);
    lab.run(&[]);
    let picture = "data/gear/train/good/000.png";
    let verdicts = ["all", "tile"].map(|class| {
        let named = ["--class", class];
        let arguments =
            [&["predict", "pipeline.yaml", picture, "--json"][..], if class == "all" { &[] } else { &named }];
        let ended = lab.vlmdiff(&arguments.concat());
        assert!(!ended.stdout.is_empty(), "{}", ended.stderr);
        predicted(&ended.stdout).remove(0)
    });
    assert_eq!(verdicts[0]["class"], "all");
    assert_eq!((&verdicts[0]["score"], &verdicts[0]["p_value"]), (&verdicts[1]["score"], &verdicts[1]["p_value"]));
    assert!(verdicts[0]["anomalous"].is_boolean());
}

/// Serves files over HTTP, by their names.
fn file_server(files: Vec<(&'static str, Vec<u8>)>) -> String {
    let unchanged = "ETag: \"1\"\r\nLast-Modified: Sun, 01 Jan 2023 00:00:00 GMT\r\n";
    serve(move |request| match files.iter().find(|(name, _)| *name == request.path) {
        Some((_, content)) => ("200 OK", unchanged.to_owned(), content.clone()),
        None => ("404 Not Found", String::new(), Vec::new()),
    })
}

#[test]
fn photographs_are_named_by_files_urls_and_manifests() {
    let regions = "  regions: { stage: regions, from: [decisions, images, anomaly_maps] }\n";
    let pipeline = INSPECTION.replace("confidence: 0.5 }", "confidence: 0.5, pixel_rate: 0.3 }") + regions;
    let lab = Lab::new(&pipeline);
    lab.run(&[]);
    let gear = "data/gear/train/good/000.png";
    let server = file_server(vec![("gear.png", fs::read(lab.path(gear)).unwrap())]);
    let (url, missing) = (format!("{server}/gear.png"), format!("{server}/none.png"));
    lab.write("data/list.csv", "path,class,label\ngear/train/good/000.png,gear,good\ntile/train/good/000.png,tile,\n");
    let judge = |names: &[&str]| {
        let ended = lab.vlmdiff(&[&["predict", "pipeline.yaml", "--class", "gear", "--json"], names].concat());
        (ended.code, predicted(&ended.stdout), ended.stderr)
    };
    let (code, verdicts, said) = judge(&[gear, &url, &missing, "data/list.csv"]);
    let ids: Vec<&str> = verdicts.iter().map(|verdict| verdict["image_id"].as_str().unwrap()).collect();
    let tile = "tile/train/good/000.png";
    assert_eq!(ids, [gear, "gear/train/good/000.png", &url, tile, &missing], "{said}");
    for same in &verdicts[1..3] {
        assert_eq!((&same["score"], &same["regions"]), (&verdicts[0]["score"], &verdicts[0]["regions"]));
    }
    assert_eq!((&verdicts[3]["class"], &verdicts[0]["class"]), (&"tile".into(), &"gear".into()));
    assert!(verdicts[4]["error"].as_str().unwrap().contains("none.png"), "{verdicts:?}");
    let is_bad = verdicts.iter().any(|verdict| verdict["anomalous"] == true);
    assert_eq!(code, Some(if is_bad { 4 } else { 3 }));
    // Regions are those of the table.
    let stored = lab
        .sql(".vlmdiff", "select coalesce(sum(area), 0) from inspection_predict.regions where image_id like 'tile%'");
    let regions = verdicts[3]["regions"].as_array().unwrap();
    assert_eq!(stored, [regions.iter().map(|region| region["area"].as_u64().unwrap()).sum::<u64>().to_string()]);
    // Pictures in a Parquet file.
    hub_parquet(&lab.path("pictures.parquet"), &[(&lab.path(gear).to_string_lossy(), None, 0)]);
    let (_, embedded, said) = judge(&["pictures.parquet"]);
    assert_eq!((embedded.len(), &embedded[0]["score"]), (1, &verdicts[0]["score"]), "{said}");
}

#[test]
fn photograph_that_a_predicate_leaves_out_is_named() {
    let lab = Lab::new(&INSPECTION.replace("where: split = 'test'", "where: split = 'test' and class = 'gear'"));
    lab.run(&[]);
    let [gear, tile] = ["gear/train/good/000.png", "tile/train/good/000.png"];
    lab.write("data/list.csv", &format!("path,class,label\n{gear},gear,good\n{tile},tile,\n"));
    let ended = lab.vlmdiff(&["predict", "pipeline.yaml", "--json", "data/list.csv"]);
    let found = predicted(&ended.stdout);
    let ids: Vec<&str> = found.iter().map(|object| object["image_id"].as_str().unwrap()).collect();
    assert_eq!(ids, [gear, tile], "{}", ended.stderr);
    assert!(found[1]["error"].as_str().unwrap().contains("a `where:` on the way leaves it out"), "{found:?}");
    assert_eq!(ended.code, Some(if found[0]["anomalous"] == true { 4 } else { 3 }));
}

#[test]
fn two_photographs_with_one_id_are_refused() {
    let lab = Lab::new(INSPECTION);
    lab.run(&[]);
    for (folder, class) in [("monday", "gear"), ("tuesday", "tile")] {
        fs::create_dir(lab.path(folder)).unwrap();
        fs::copy(lab.path(&format!("data/{class}/train/good/000.png")), lab.path(&format!("{folder}/a.png"))).unwrap();
        lab.write(&format!("{folder}/list.csv"), &format!("path,class,label\na.png,{class},\n"));
    }
    let judge = |names: &[&str]| lab.vlmdiff(&[&["predict", "pipeline.yaml", "--json"], names].concat());
    let ended = judge(&["monday/list.csv", "tuesday/list.csv"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{}", ended.stderr);
    let says = |what: &str| assert!(ended.stderr.contains(what), "{}", ended.stderr);
    ["the id `a.png`", "monday/a.png and", "tuesday/a.png;", "one by one"].into_iter().for_each(says);
    // One that is named twice is judged once.
    assert_eq!(predicted(&judge(&["monday/list.csv", "monday/list.csv"]).stdout).len(), 1);
}

/// A pipeline in which methods of both kinds are one axis of a sweep.
const COMPARISON: &str = "
name: comparison
tables:
  images: { stage: ingest, with: { dataset: folder, root: data, size: 64 } }
  features: { stage: extract, from: [images], where: split = 'train', with: { extractor: efficientnet-lite0, layers: [4, 8], keep: 8 } }
  fitted:
    stage: fit
    from: { images: images, features: features }
    where: split = 'train'
    with: { method: { knn: {} } }
  maps: { stage: detect, from: [images, fitted], where: split = 'test', with: { sigma: 1 } }
  metrics: { stage: evaluate, from: [images, maps], with: { protocol: exact } }
sweep:
  method: [{ patchcore: { ratio: 0.5 } }, { rd: { weights: teacher.safetensors, training: { steps: 4, batch_size: 4, log_every: 2 } } }]
";

/// A pipeline that trains a model for each class.
const DISTILLATION: &str = "
name: distillation
tables:
  images: { stage: ingest, with: { dataset: folder, root: data, size: 64 } }
  fitted:
    stage: fit
    from: [images]
    where: split = 'train'
    with:
      method: { rd: { protocol: authors, weights: teacher.safetensors, training: { steps: 40, batch_size: 3, log_every: 2, checkpoint_every: 15 } } }
      classes: separate
  maps: { stage: detect, from: [images, fitted], where: split = 'test', with: { sigma: 1 } }
";

/// Makes a lab with a teacher: a ResNet with random weights, narrower than any that is published.
fn distillery(pipeline: &str) -> Lab {
    let lab = Lab::new(pipeline);
    let sizes = ResNetConfig { stem: 8, planes: [4, 8, 16, 4], expansion: 2, layers: [1; 4], num_classes: None };
    let vs = VarStore::new(Device::Cpu);
    let _ = ResNet::new(&vs.root(), &sizes);
    tch::manual_seed(7);
    let random = |(name, variable): (String, Tensor)| {
        let size = variable.size();
        let inputs: i64 = size.iter().skip(1).product();
        let drawn = size.len() == 4;
        let random = || Tensor::randn(&size, tch::kind::FLOAT_CPU) * (2. / inputs as f64).sqrt();
        (name, if drawn { random() } else { variable.detach() })
    };
    let tensors: BTreeMap<String, Tensor> = vs.variables().into_iter().collect();
    let bytes = to_safetensors(tensors.into_iter().map(random).collect::<Vec<_>>(), HashMap::new()).unwrap();
    fs::write(lab.path("teacher.safetensors"), bytes).unwrap();
    lab
}

#[test]
fn methods_of_both_kinds_are_one_axis_of_a_sweep_and_one_table_of_metrics() {
    let lab = distillery(COMPARISON);
    lab.run(&[]);
    let rows = |query: &str| lab.sql(".vlmdiff", query);
    let metrics = rows(
        "select method like '%rd%', count(*), count(image_auroc), count(aupro) from metrics group by 1 order by 1",
    );
    assert_eq!(metrics, ["false,3,3,3", "true,3,3,3"], "two classes and their mean");
    // A fitted model names what it was fitted on, whichever kind the method is of, and a training has its log beside it.
    let fitted =
        rows("select distinct method like '%rd%', images, network like '%safetensors%' from fitted order by 1");
    assert_eq!(fitted, ["false,8,false", "true,8,true"]);
    assert_eq!(rows("select distinct array_to_string(classes, ' ') from fitted"), ["gear tile"]);
    assert_eq!(rows("select count(distinct fitted_on) from fitted"), ["2"], "one on patches, the other on pixels");
    let log = rows("select step, epoch, loss > 0, weights is null from fitted where step is not null order by 1");
    assert_eq!(log, ["2,1,true,true", "4,2,true,false"]);
    assert_eq!(rows("select vectors from fitted where vectors is not null"), ["32"]);
    assert_eq!(computed(&lab.run(&[])), []);
    // The place of the teacher's weights is no part of what was fitted, and their content is.
    fs::rename(lab.path("teacher.safetensors"), lab.path("moved.safetensors")).unwrap();
    lab.write("pipeline.yaml", &COMPARISON.replace("teacher.safetensors", "moved.safetensors"));
    let events = lab.run(&[]);
    let again: Vec<_> =
        computed(&events).into_iter().filter(|(table, rows)| table.starts_with("fitted") && *rows > 0).collect();
    assert_eq!(again, []);
}

#[test]
fn training_of_each_class_is_killed_and_continues_to_the_same_weights() {
    let lab = distillery(DISTILLATION);
    lab.run(&["--store", "undisturbed"]);
    let rows = |query: &str| lab.sql("undisturbed", query);
    let classes = rows(
        "select class, images, count(*), min(step), max(step), count(weights) from fitted group by 1, 2 order by 1",
    );
    assert_eq!(classes, ["gear,4,21,2,40,3", "tile,4,21,42,80,3"]);
    let falls = rows("select class, min(loss) < 0.7 * max(loss) from fitted group by 1 order by 1");
    assert_eq!(falls, ["gear,true", "tile,true"]);
    let seed = rand::rng().next_u64();
    let mut random = StdRng::seed_from_u64(seed);
    let mut resumed = 0;
    for _ in 0..8 {
        let mut run = lab.command(&["run", "pipeline.yaml", "--save-every", "0"]);
        let mut child = run.stderr(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        if said.any(|line| line.contains("training on")) {
            std::thread::sleep(Duration::from_millis(random.random_range(20..120)));
            child.kill().unwrap();
        }
        resumed += said.filter(|line| line.contains("goes on from step")).count();
        child.wait().unwrap();
    }
    let last = lab.vlmdiff(&["run", "pipeline.yaml"]);
    assert_eq!(last.code, Some(0), "{}", last.stderr);
    resumed += last.stderr.matches("goes on from step").count();
    assert!(resumed > 0, "seed {seed}: no kill fell into a training");
    assert_eq!(lab.contents("undisturbed"), lab.contents(".vlmdiff"), "seed {seed}");
    // The weights that were kept on the way are those of the run without kills, too.
    let kept = "select weights from fitted where weights is not null order by step";
    assert_eq!(lab.sql(".vlmdiff", kept), rows(kept), "seed {seed}");
    // Each image is scored by the model of its class, whatever else is scored with it.
    let scores = "select image_id, score from maps order by 1";
    let all = rows(scores);
    lab.write(
        "pipeline.yaml",
        &DISTILLATION.replace("split = 'test', with", "split = 'test' and class = 'tile', with"),
    );
    lab.run(&["--force", "maps", "--batch-size", "1"]);
    let tiles: Vec<&String> = all.iter().filter(|row| row.starts_with("tile")).collect();
    assert_eq!(lab.sql(".vlmdiff", scores).iter().collect::<Vec<_>>(), tiles);
}

#[test]
fn inputs_and_parameters_of_a_training_are_checked_at_the_plan() {
    let lab = distillery(DISTILLATION);
    let refused = |pipeline: &str, from: &str, to: &str, told: &str| {
        assert!(pipeline.contains(from), "{from}");
        lab.write("pipeline.yaml", &pipeline.replace(from, to));
        let ended = lab.vlmdiff(&["plan", "pipeline.yaml"]);
        assert_eq!(ended.code, Some(2), "{}", ended.stdout);
        assert!(ended.stderr.contains(told), "{to}: {}", ended.stderr);
    };
    let both = "from: { images: images, features: features }";
    let without_where = COMPARISON.replace("    where: split = 'train'\n    with: { method", "    with: { method");
    refused(&without_where, both, "from: { features: features }", "stage `fit` also reads `images`");
    refused(COMPARISON, both, "from: { images: images }", "stage `fit` also reads `features`");
    refused(
        DISTILLATION,
        "size: 64",
        "size: 80",
        "`rd` takes images whose sides are multiples of 32 from 64 on, not 80x80",
    );
    refused(DISTILLATION, "steps: 40", "stepz: 40", "unknown parameter `stepz`; did you mean `steps`?");
    refused(DISTILLATION, "steps: 40", "steps: 40, lr: -1", "`method.rd.training.lr`: lower than 0");
    refused(
        DISTILLATION,
        "protocol: authors",
        "width_per_group: 40",
        "`method.rd.width_per_group`: 40 is no multiple of 32",
    );
    refused(
        DISTILLATION,
        "weights: teacher",
        "weights: another",
        "`method.rd.weights`: there is no file another.safetensors",
    );
    let upsampled = "with: { sigma: 1, upsample: nearest }";
    refused(DISTILLATION, "with: { sigma: 1 }", upsampled, "`rd` makes maps of the image's size itself");
    let other = "weights: efficientnet-lite0";
    refused(DISTILLATION, "weights: teacher.safetensors", other, "what fits is ResNet of bottlenecks");
}
