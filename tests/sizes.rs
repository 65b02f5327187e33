//! Photographs of any size and shape: the middle of one, and tiles that are put together again.

use std::{fs, path::Path};

use image::{GrayImage, Luma, Rgb, RgbImage};

use crate::{
    lab::{Lab, computed, project},
    metrics,
};

/// A place in a photograph: left, top, width and height.
type Mark = [u32; 4];

fn is_in([left, top, width, height]: Mark, x: u32, y: u32) -> bool {
    (left..left + width).contains(&x) && (top..top + height).contains(&y)
}

/// Writes a grey photograph with a texture that depends on a seed, and with red marks.
fn photograph(path: &Path, (width, height): (u32, u32), seed: u32, marks: &[Mark]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let noise = |x: u32, y: u32| (x.wrapping_mul(2_654_435_761) ^ y.wrapping_mul(0x9e37_79b1) ^ seed) >> 13 & 7;
    let texture = |x: u32, y: u32| 110. + 20. * (f64::from(x) / 9.).sin() + 20. * (f64::from(y) / 7.).cos();
    let colour = |x, y| match marks.iter().any(|mark| is_in(*mark, x, y)) {
        true => [230, 20, 20],
        false => [(texture(x, y) as u32 + noise(x, y)) as u8; 3],
    };
    RgbImage::from_fn(width, height, |x, y| Rgb(colour(x, y))).save(path).unwrap();
}

fn mask(path: &Path, (width, height): (u32, u32), marks: &[Mark]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let is_marked = |x, y| marks.iter().any(|mark| is_in(*mark, x, y));
    GrayImage::from_fn(width, height, |x, y| Luma([if is_marked(x, y) { 255 } else { 0 }])).save(path).unwrap();
}

/// Photographs whose middle alone is stored, and maps of their saturation.
const MIDDLE: &str = r#"
name: middle
tables:
  images: { stage: ingest, with: { dataset: folder, root: data, size: 64, short_side: 72 } }
  anomaly_maps:
    stage: command
    from: [images]
    with: { run: python3 maps.py, columns: [pixels], output: { map: "float16[64,64]", score: float32 } }
  metrics: { stage: evaluate, from: [images, anomaly_maps], where: split = 'test' }
  thresholds:
    stage: calibrate
    from: [images, anomaly_maps]
    where: split = 'train'
    with: { rates: [0.5], confidence: 0.8, pixel_rate: 0.21 }
  decisions: { stage: decide, from: [images, anomaly_maps, thresholds], with: { rate: 0.5 } }
  regions: { stage: regions, from: [decisions, images, anomaly_maps] }
"#;

#[test]
fn middle_of_a_photograph_is_judged_and_the_rest_is_left_alone() {
    assert!(project().join(".tools/python/pyarrow").exists(), "run `python3 setup/fetch.py tools`");
    let lab = Lab::empty();
    lab.write("pipeline.yaml", MIDDLE);
    lab.write("maps.py", metrics::MAPS);
    let size = (160, 96);
    // 120x72 pixels, of which 64x64 are shown: from 37.3 to 122.7, and from 5.3 to 90.7, of the photograph.
    let (inside, outside) = ([70, 40, 20, 20], [4, 40, 20, 20]);
    for i in 0..4 {
        photograph(&lab.path(&format!("data/nut/train/good/{i}.png")), size, i, &[]);
    }
    photograph(&lab.path("data/nut/test/good/0.png"), size, 5, &[]);
    photograph(&lab.path("data/nut/test/dent/0.png"), size, 6, &[inside, outside]);
    mask(&lab.path("data/nut/ground_truth/dent/0_mask.png"), size, &[inside, outside]);
    let ended = lab.vlmdiff(&["run", "pipeline.yaml"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let note = "`size` show, and is not judged: 1 of 6 rows: nut/test/dent/0.png";
    assert!(ended.stderr.contains(note), "{}", ended.stderr);
    let rows = |query: &str| lab.sql(".vlmdiff", query);
    assert_eq!(rows("select distinct width, height, array_length(mask) from images"), ["160,96,4096"]);
    assert_eq!(rows("select image_auroc from metrics where class = 'nut' and protocol = 'exact'"), ["1.0"]);
    let regions = rows("select x, y, width, height from regions");
    let [region] = &regions[..] else { panic!("{regions:?}") };
    let found: Vec<u32> = region.split(',').map(|side| side.parse().unwrap()).collect();
    // A pixel of the map is 1.3 pixels of the photograph, and a map fades over two of them.
    let is_near = |(found, expected): (&u32, &u32)| found.abs_diff(*expected) <= 6;
    assert!(found.iter().zip(&inside).all(is_near), "{region}");

    assert_eq!(lab.vlmdiff(&["export", "found"]).code, Some(0));
    let picture = |kind: &str| image::open(lab.path(&format!("found/{kind}/nut/test/dent/0.png"))).unwrap();
    let (heat, alarm, overlay) =
        (picture("heat").into_luma16(), picture("mask").into_luma8(), picture("overlay").into_rgb8());
    assert_eq!((heat.dimensions(), alarm.dimensions()), (size, size));
    assert_eq!((heat.get_pixel(80, 50).0, alarm.get_pixel(80, 50).0), ([u16::MAX], [255]));
    let original = image::open(lab.path("data/nut/test/dent/0.png")).unwrap().into_rgb8();
    for (x, y) in [(14, 50), (37, 50), (123, 50), (80, 5), (80, 91)] {
        assert_eq!((heat.get_pixel(x, y).0, alarm.get_pixel(x, y).0), ([0], [0]), "{x} {y}");
        assert_eq!(overlay.get_pixel(x, y), original.get_pixel(x, y), "{x} {y}");
    }
}

/// Photographs of which a region is judged: of class `nut` a polygon, of class `bolt` what a picture of each says.
const REGIONS: &str = r#"
name: regions
tables:
  images:
    stage: ingest
    with:
      dataset: folder
      root: data
      size: 64
      roi: { nut: [[0, 0], [96, 0], [96, 128], [0, 128]], bolt: "regions/{image}.png" }
  anomaly_maps:
    stage: command
    from: [images]
    with: { run: python3 maps.py, columns: [pixels], output: { map: "float16[64,64]", score: float32 } }
  metrics: { stage: evaluate, from: [images, anomaly_maps], where: split = 'test', with: { protocol: exact } }
"#;

#[test]
fn region_of_a_photograph_is_judged_and_the_rest_is_left_alone() {
    assert!(project().join(".tools/python/pyarrow").exists(), "run `python3 setup/fetch.py tools`");
    let lab = Lab::empty();
    lab.write("pipeline.yaml", REGIONS);
    lab.write("maps.py", metrics::MAPS);
    let size = (128, 128);
    let (inside, outside) = ([40, 40, 16, 16], [104, 40, 16, 16]);
    for class in ["nut", "bolt"] {
        photograph(&lab.path(&format!("data/{class}/train/good/0.png")), size, 1, &[]);
        // The good photograph has a mark that does not count, and is normal.
        photograph(&lab.path(&format!("data/{class}/test/good/0.png")), size, 2, &[outside]);
        photograph(&lab.path(&format!("data/{class}/test/dent/0.png")), size, 3, &[inside, outside]);
        mask(&lab.path(&format!("data/{class}/ground_truth/dent/0_mask.png")), size, &[inside, outside]);
    }
    let refused = lab.vlmdiff(&["run", "pipeline.yaml"]);
    assert!(refused.code == Some(2) && refused.stderr.contains("regions/bolt/"), "{}", refused.stderr);
    for name in ["train/good/0", "test/good/0", "test/dent/0"] {
        mask(&lab.path(&format!("regions/bolt/{name}.png")), size, &[[0, 0, 96, 64]]);
    }
    let ended = lab.vlmdiff(&["run", "pipeline.yaml"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let note = "a part of the mask lies outside of `roi`, and is not judged: 2 of 6 rows: ";
    assert!(ended.stderr.contains(note), "{}", ended.stderr);
    let rows = |query: &str| lab.sql(".vlmdiff", query);
    let of_pixels = |column: &str| {
        let pixels = format!("(select class, image_id, unnest({column}) as v from images)");
        rows(&format!("select class, count(*) from {pixels} where v = 255 group by class, image_id order by 1, 2"))
    };
    assert_eq!(of_pixels("roi"), [["bolt,1536"; 3], ["nut,3072"; 3]].concat());
    assert_eq!(of_pixels("mask"), ["bolt,64", "nut,64"]);
    // A mark has a saturation of 210 of 255, and all else at most that of the colour outside.
    let scores = "select image_id, score > 0.5 from anomaly_maps where image_id like '%test%' order by 1";
    let found = |class: &str| [format!("{class}/test/dent/0.png,true"), format!("{class}/test/good/0.png,false")];
    assert_eq!(rows(scores), [found("bolt"), found("nut")].concat());
    // Beside the marks the map is 0 in the region and above it outside, where no pixel is counted.
    let normal = rows("select class, pixel_auroc, pixel_ap from metrics where class <> 'mean' order by 1");
    assert_eq!(normal, ["bolt,1.0,1.0", "nut,1.0,1.0"]);

    // A region that changes computes its own photograph alone.
    mask(&lab.path("regions/bolt/test/good/0.png"), size, &[[0, 0, 128, 64]]);
    let events = lab.run(&[]);
    assert_eq!(["images", "anomaly_maps"].map(|table| rows_of(&events, table)), [Some(1), Some(1)]);
    assert_eq!(rows(scores)[1], "bolt/test/good/0.png,true");
    mask(&lab.path("regions/bolt/test/good/0.png"), (64, 64), &[[0, 0, 48, 32]]);
    let refused = lab.vlmdiff(&["run", "pipeline.yaml"]).stderr;
    assert!(
        refused.contains("regions/bolt/test/good/0.png is 64x64 and its image") && refused.contains("128x128"),
        "{refused}"
    );
    let few = lab.vlmdiff(&["run", "pipeline.yaml", "--set", "images.roi=[[0, 0], [9, 9]]"]).stderr;
    assert!(few.contains("a polygon has at least 3 corners"), "{few}");
}

#[test]
fn region_in_which_nothing_lies_is_noted_and_one_of_an_unknown_class_is_refused() {
    let lab = Lab::empty();
    lab.write("pipeline.yaml", REGIONS);
    let (size, mark) = ((128, 128), [40, 40, 16, 16]);
    for class in ["nut", "bolt"] {
        photograph(&lab.path(&format!("data/{class}/train/good/0.png")), size, 1, &[]);
        photograph(&lab.path(&format!("data/{class}/test/dent/0.png")), size, 3, &[mark]);
        mask(&lab.path(&format!("data/{class}/ground_truth/dent/0_mask.png")), size, &[mark]);
    }
    let ended = |set: &[&str]| lab.vlmdiff(&[&["run", "pipeline.yaml", "--until", "images", "--set"], set].concat());
    // Shares of the photograph in place of pixels.
    let shares = "[[0.1, 0.1], [0.9, 0.1], [0.9, 0.9]]";
    let empty = "no pixel lies in `roi`; the corners of a polygon are in pixels of the photograph: 4 of 4 rows";
    let told = ended(&[&format!("images.roi={shares}")]).stderr;
    assert!(told.contains(empty) && !told.contains("a part of the mask"), "{told}");
    let told = ended(&[&format!("images.roi={{ bolt: {shares} }}")]).stderr;
    assert!(told.contains(&empty.replace("4 of 4", "2 of 4")), "{told}");
    // A tile of which nothing is judged is not unusual.
    let told = ended(&[&format!("images.roi={shares}"), "--set", "images.tile={ overlap: 8 }"]);
    assert!(told.code == Some(0) && !told.stderr.contains("no pixel lies"), "{}", told.stderr);
    let refused = ended(&["images.roi={ nutt: [[0, 0], [96, 0], [96, 128]] }"]);
    let unknown = "`roi`: there is no photograph of class `nutt`; did you mean `nut`?; classes are bolt, nut";
    assert!(refused.code == Some(2) && refused.stderr.contains(unknown), "{}", refused.stderr);
}

/// Photographs with a region, whose pixels are stored as they are outside of it too, so that marks there can be seen.
const UNPAINTED: &str = r#"
name: unpainted
tables:
  photographs: { stage: ingest, with: { dataset: folder, root: data, size: 64 } }
  regions_of:
    stage: ingest
    with: { dataset: folder, root: data, size: 64, roi: [[0, 0], [96, 0], [96, 128], [0, 128]] }
  images:
    stage: sql
    from: [photographs, regions_of]
    with:
      makes: row_per_row
      query: "select image_id, p.class, p.label, p.split, p.width, p.height, p.pixels, regions_of.roi
        from photographs p join regions_of using (image_id)"
  features:
    stage: extract
    from: [photographs]
    where: split = 'train'
    with: { extractor: efficientnet-lite0, layers: [4, 8] }
  bank: { stage: fit, from: [features], with: { method: { METHOD: {} } } }
  whole: { stage: detect, from: [photographs, bank], where: split = 'test', with: { sigma: 1 } }
  anomaly_maps: { stage: detect, from: [images, bank, features], where: split = 'test', with: { sigma: 1 } }
  largest: { stage: detect, from: [images, bank], where: split = 'test', with: { sigma: 1, score: max } }
  thresholds:
    stage: calibrate
    from: [images, anomaly_maps]
    where: not label
    with: { rates: [0.5], confidence: 0.8, pixel_rate: 0.21 }
  decisions: { stage: decide, from: [images, anomaly_maps, thresholds], with: { rate: 0.5 } }
  regions: { stage: regions, from: [decisions, images, anomaly_maps] }
"#;

/// The pixels of a table of maps and of a region, by photograph.
fn judged_pixels(maps: &str) -> String {
    format!(
        "(select image_id, score, unnest(roi) as r, cast(unnest(map) as double) as m from images join {maps} using (image_id))"
    )
}

/// Returns for each photograph whether all pixels outside of its region have the lowest value in it.
fn is_lowest_outside(lab: &Lab, maps: &str) -> Vec<String> {
    let (outside, inside) = ("case when r = 0 then m end", "case when r > 0 then m end");
    let is_lowest = format!("min({outside}) = min({inside}) and max({outside}) = min({inside})");
    lab.sql(".vlmdiff", &format!("select {is_lowest} from {} group by image_id", judged_pixels(maps)))
}

#[test]
fn no_score_and_no_region_comes_from_outside_of_what_is_judged() {
    for method in ["knn", "patchcore", "subspace", "rad"] {
        let lab = Lab::empty();
        lab.write("pipeline.yaml", &UNPAINTED.replace("METHOD", method));
        let size = (128, 128);
        let (inside, outside) = ([40, 40, 16, 16], [104, 40, 16, 16]);
        for i in 0..4 {
            photograph(&lab.path(&format!("data/nut/train/good/{i}.png")), size, i, &[]);
            photograph(&lab.path(&format!("data/nut/test/good/{i}.png")), size, 4 + i, &[outside]);
        }
        photograph(&lab.path("data/nut/test/dent/0.png"), size, 8, &[inside, outside]);
        lab.run(&[]);
        let rows = |query: &str| lab.sql(".vlmdiff", query);
        for maps in ["anomaly_maps", "largest"] {
            assert_eq!(is_lowest_outside(&lab, maps), ["true"; 5], "{method}");
        }
        // In the region the map is that of the whole photograph.
        let pixels = ["anomaly_maps", "whole"].map(|maps| {
            let sum = "sum(case when r > 0 then m end), max(case when r > 0 then m end)";
            rows(&format!("select image_id, {sum} from {} group by 1 order by 1", judged_pixels(maps)))
        });
        assert_eq!(pixels[0], pixels[1], "{method}");
        let of_largest = format!("select score = max(m) from {} group by image_id, score", judged_pixels("largest"));
        assert_eq!(rows(&of_largest), ["true"; 5], "{method}");
        let is_lower = "select count(*) from anomaly_maps a join whole w using (image_id)
            where a.score < w.score and a.image_id like '%good%'";
        assert_eq!(rows(is_lower), ["4"], "{method}: the mark of a good photograph lies outside");
        assert_eq!(rows("select count(*) from anomaly_maps where worst_x > 0.75"), ["0"], "{method}");
        assert_eq!(rows("select image_id from decisions where anomalous"), ["nut/test/dent/0.png"], "{method}");
        // A pixel of the map is 2 pixels of the photograph, and a map fades over them where it is resized.
        let reach = "select count(*) > 0, max(x + width) <= 98 from regions where image_id like '%dent%'";
        assert_eq!(rows(reach), ["true,true"], "{method}");
        assert_eq!(rows("select count(*) from regions where x + width > 98"), ["0"], "{method}");
    }
}

/// The areas below the curves of pixels in a report.
fn areas(report: &str) -> Vec<f64> {
    let lines = report.split("class=\"pixels\" points=\"").skip(1).map(|line| line.split('"').next().unwrap());
    let points = |line: &str| -> Vec<(f64, f64)> {
        let point = |point: &str| {
            let (x, y) = point.split_once(',').unwrap();
            ((x.parse::<f64>().unwrap() - 34.) / 200., 1. - (y.parse::<f64>().unwrap() - 8.) / 200.)
        };
        line.split(' ').map(point).collect()
    };
    lines.map(|line| points(line).windows(2).map(|of| (of[1].0 - of[0].0) * (of[0].1 + of[1].1) / 2.).sum()).collect()
}

/// Maps are the red of the pixels, which is that of the mean colour outside of a region.
#[test]
fn sql_and_the_report_count_the_pixels_that_evaluate_counts() {
    let lab = Lab::empty();
    let corners = "[[0, 0], [70, 0], [96, 128], [0, 128]]";
    let ingest = REGIONS.split("roi: {").nth(1).unwrap().split('\n').next().unwrap();
    lab.write("pipeline.yaml", &REGIONS.replace(&format!("roi: {{{ingest}"), &format!("roi: {{ nut: {corners} }}")));
    let saturation = "max(p[i:i + 3]) - min(p[i:i + 3])";
    assert!(metrics::MAPS.contains(saturation));
    lab.write("maps.py", &metrics::MAPS.replace(saturation, "p[i]"));
    for class in ["nut", "bolt"] {
        for split in ["train", "test"] {
            photograph(&lab.path(&format!("data/{class}/{split}/good/0.png")), (128, 128), 1, &[]);
        }
        photograph(&lab.path(&format!("data/{class}/test/dent/0.png")), (128, 128), 3, &[[60, 40, 30, 16]]);
        mask(&lab.path(&format!("data/{class}/ground_truth/dent/0_mask.png")), (128, 128), &[[52, 30, 40, 36]]);
    }
    lab.run(&[]);
    let columns = "pixel_auroc, pixel_ap, pixel_f1_max, aupro";
    let by_stage =
        lab.sql(".vlmdiff", &format!("select class, {columns} from metrics where class <> 'mean' order by 1"));
    let by_sql = |roi: &str| {
        let of = ["pixel_auroc(map, mask", "pixel_ap(map, mask", "pixel_f1_max(map, mask", "aupro(map, mask, 0.3"];
        let metrics = of.map(|call| format!("{call}{roi})")).join(", ");
        let from = "from images join anomaly_maps using (image_id) where split = 'test'";
        lab.sql(".vlmdiff", &format!("select class, {metrics} {from} group by class order by 1"))
    };
    assert_eq!(by_sql(", roi"), by_stage);
    let whole = by_sql("");
    assert_eq!(whole[0], by_stage[0], "the photographs of `bolt` are judged as a whole");
    let numbers = |row: &str| row.split(',').skip(1).map(|number| number.parse().unwrap()).collect::<Vec<f64>>();
    let [without, within] = [numbers(&whole[1])[0], numbers(&by_stage[1])[0]];
    assert!((without - within).abs() > 1e-3, "{without} {within}");
    let ended = lab.vlmdiff(&["report", "-o", "report.html"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let drawn = areas(&fs::read_to_string(lab.path("report.html")).unwrap());
    assert_eq!(drawn.len(), 2);
    // A point is drawn to a two-thousandth of a side, and points within half a pixel of 200 are left out.
    for (area, row) in drawn.into_iter().zip(&by_stage) {
        assert!((area - numbers(row)[0]).abs() < 0.01, "{area} {row}");
    }
}

/// From tiles to decisions on photographs.
const TILES: &str = r#"
name: tiled
tables:
  images: { stage: ingest, with: { dataset: folder, root: data, size: [80, 192] } }
  tiles: { stage: ingest, with: { dataset: folder, root: data, size: 64, tile: { overlap: 16 } } }
  features:
    stage: extract
    from: [tiles]
    where: split = 'train'
    with: { extractor: efficientnet-lite0, layers: [4, 8], keep: 8 }
  bank: { stage: fit, from: [features], with: { method: { knn: {} } } }
  tile_maps: { stage: detect, from: [tiles, bank], with: { sigma: 2 } }
  anomaly_maps: { stage: stitch, from: [images, tiles, tile_maps] }
  metrics: { stage: evaluate, from: [images, anomaly_maps], where: split = 'test' }
  thresholds:
    stage: calibrate
    from: [images, anomaly_maps]
    where: split = 'train'
    with: { rates: [0.5], confidence: 0.5, pixel_rate: 0.26 }
  decisions: { stage: decide, from: [images, anomaly_maps, thresholds], where: split = 'test', with: { rate: 0.5 } }
  regions: { stage: regions, from: [decisions, images, anomaly_maps], where: anomalous }
"#;

const SIZE: (u32, u32) = (384, 160);
const DENT: Mark = [290, 40, 20, 20];

/// Makes a lab with three good photographs for training, and a good and a bad one for testing: 8 x 3 tiles each.
fn tiled() -> Lab {
    let lab = Lab::empty();
    lab.write("pipeline.yaml", TILES);
    for i in 0..3 {
        photograph(&lab.path(&format!("data/steel/train/good/{i}.png")), SIZE, i, &[]);
    }
    photograph(&lab.path("data/steel/test/good/0.png"), SIZE, 7, &[]);
    photograph(&lab.path("data/steel/test/dent/0.png"), SIZE, 8, &[DENT]);
    mask(&lab.path("data/steel/ground_truth/dent/0_mask.png"), SIZE, &[DENT]);
    lab.run(&[]);
    lab
}

/// Returns the number of computed rows of a table; `None` if it was fresh.
fn rows_of(events: &[vlmdiff::engine::store::Event], table: &str) -> Option<u64> {
    computed(events).into_iter().find(|(name, _)| *name == table).map(|(_, rows)| rows)
}

#[test]
fn defect_in_a_large_photograph_is_found_at_its_place() {
    let lab = tiled();
    let rows = |query: &str| lab.sql(".vlmdiff", query);
    let counts =
        "select photograph, count(*), min(x), max(x), min(y), max(y), min(width), max(scaled_height) from tiles
        where split = 'test' group by 1 order by 1";
    let of = |name: &str| format!("steel/test/{name}/0.png,24,0,320,0,96,384,160");
    assert_eq!(rows(counts), [of("dent"), of("good")]);
    // A tile is anomalous if it shows a part of the dent.
    let anomalous = rows("select x, y, defect from tiles where label order by x, y");
    assert_eq!(anomalous, ["240,0,dent", "240,48,dent", "288,0,dent", "288,48,dent"]);
    assert_eq!(rows("select count(*) from tiles where not label and defect = 'good'"), ["116"]);
    let wrong = "select count(*) from tiles where label <> (array_max(mask) > 0) or mask is null";
    assert_eq!(rows(wrong), ["0"]);
    assert_eq!(rows("select count(*) from tiles where image_id <> concat(photograph, '@', x, ',', y)"), ["0"]);

    assert_eq!(rows("select image_id, anomalous from decisions order by 1")[0], "steel/test/dent/0.png,true");
    let scores = "select count(*) from anomaly_maps a join (select photograph, max(score) as highest from tile_maps
        join tiles using (image_id) group by 1) t on t.photograph = a.image_id where a.score = t.highest";
    assert_eq!(rows(scores), ["5"]);
    let metrics = rows("select image_auroc, pixel_auroc from metrics where class = 'steel' and protocol = 'exact'");
    let metrics: Vec<f64> = metrics[0].split(',').map(|value| value.parse().unwrap()).collect();
    assert!(metrics[0] == 1. && metrics[1] > 0.95, "{metrics:?}");
    let region = "select x, y, x + width, y + height from regions order by max_score desc limit 1";
    let region: Vec<u32> = rows(region)[0].split(',').map(|side| side.parse().unwrap()).collect();
    let middle = (DENT[0] + DENT[2] / 2, DENT[1] + DENT[3] / 2);
    assert!(region[0] < middle.0 && middle.0 < region[2] && region[1] < middle.1 && middle.1 < region[3], "{region:?}");

    let ended = lab.vlmdiff(&["export", "found"]);
    assert!(ended.code == Some(0) && ended.stdout.contains("found: 5 images"), "{}{}", ended.stdout, ended.stderr);
    let heat = image::open(lab.path("found/heat/steel/test/dent/0.png")).unwrap().into_luma16();
    assert_eq!(heat.dimensions(), SIZE);
    let (x, y, _) = heat.enumerate_pixels().max_by_key(|(_, _, value)| value.0[0]).unwrap();
    // Patches are 8 pixels apart, and a pixel of the map is 2 pixels of the photograph.
    assert!(x.abs_diff(middle.0) <= 18 && y.abs_diff(middle.1) <= 18, "{x} {y}");
    let report = lab.vlmdiff(&["report"]);
    assert_eq!(report.code, Some(0), "{}", report.stderr);
    let page = fs::read_to_string(lab.path("report.html")).unwrap();
    assert!(
        page.contains("steel&#x2f;test&#x2f;dent&#x2f;0.png") && !page.contains("0.png@"),
        "the pictures are photographs"
    );
}

#[test]
fn tiles_outside_of_the_region_of_a_photograph_do_not_count() {
    let lab = tiled();
    // The dent lies outside.
    let region = "roi: [[0, 0], [256, 0], [256, 160], [0, 160]]";
    let judged = ["size: [80, 192]", "size: 64"]
        .iter()
        .fold(TILES.to_owned(), |judged, size| judged.replace(size, &format!("{size}, {region}")));
    assert_eq!(judged.matches(region).count(), 2);
    lab.write("pipeline.yaml", &judged);
    lab.run(&[]);
    let rows = |query: &str| lab.sql(".vlmdiff", query);
    let of_tiles = "select distinct x >= 256, score > 0 from tile_maps join tiles using (image_id) order by 1";
    assert_eq!(rows(of_tiles), ["false,true", "true,false"]);
    assert_eq!(is_lowest_outside(&lab, "anomaly_maps"), ["true"; 5]);
    assert_eq!(rows("select count(*) from anomaly_maps where score > 0"), ["5"]);
}

#[test]
fn photograph_that_comes_or_changes_computes_its_own_tiles() {
    let lab = tiled();
    assert_eq!(computed(&lab.run(&[])), [("images", 0); 0]);
    photograph(&lab.path("data/steel/test/good/1.png"), SIZE, 9, &[]);
    let came = lab.run(&[]);
    let of = |events: &[_]| ["images", "tiles", "tile_maps", "anomaly_maps"].map(|table| rows_of(events, table));
    assert_eq!(of(&came), [Some(1), Some(24), Some(24), Some(1)]);
    assert_eq!(rows_of(&came, "bank"), None);
    photograph(&lab.path("data/steel/test/good/1.png"), (120, 40), 9, &[]);
    // A row of three tiles, in the middle of which it lies, because it is lower than a tile.
    assert_eq!(of(&lab.run(&[])), [Some(1), Some(3), Some(3), Some(1)]);
    let places = "select x, y from tiles where photograph = 'steel/test/good/1.png' order by x";
    assert_eq!(lab.sql(".vlmdiff", places), ["0,-12", "48,-12", "56,-12"]);
    fs::remove_file(lab.path("data/steel/test/good/1.png")).unwrap();
    assert_eq!(of(&lab.run(&[])), [Some(0), Some(0), Some(0), Some(0)]);
    // Tables do not depend on tasks, in which a photograph is decoded again for its further tiles.
    lab.run(&["--store", "cut", "--task-rows", "5"]);
    assert_eq!(lab.contents(".vlmdiff"), lab.contents("cut"));
}

#[test]
fn tiles_follow_the_label_and_the_turn_of_their_photograph() {
    let lab = Lab::empty();
    let tiles = "tiles: { stage: ingest, on_error: skip, with: { dataset: folder, root: data, good: [ok], bad: [nok], size: 32, tile: { overlap: 16 } } }";
    lab.write("pipeline.yaml", &format!("name: tiled\ntables:\n  {tiles}\n"));
    photograph(&lab.path("data/ok/0.png"), (40, 20), 0, &[]);
    photograph(&lab.path("data/nok/0.png"), (40, 20), 1, &[]);
    fs::write(lab.path("data/nok/broken.png"), "no picture").unwrap();
    crate::dataset::turned_jpeg(&lab.path("data/nok/turned.jpg"));
    let ended = lab.vlmdiff(&["run", "pipeline.yaml"]);
    assert_eq!(ended.code, Some(3), "{}", ended.stderr);
    let rows = "select image_id, label, defect, mask is null, width, height from tiles order by 1";
    // The place of the dent in a photograph is not known without a mask.
    let expected = [
        "nok/0.png@0,-6,,,true,40,20",
        "nok/0.png@8,-6,,,true,40,20",
        "nok/turned.jpg@-4,0,,,true,24,40",
        "nok/turned.jpg@-4,8,,,true,24,40",
        "ok/0.png@0,-6,false,good,false,40,20",
        "ok/0.png@8,-6,false,good,false,40,20",
    ];
    let told = lab.sql(".vlmdiff", rows).iter().map(|row| row.replace('"', "")).collect::<Vec<_>>();
    assert_eq!(told, expected);
    let failed = lab.sql(".vlmdiff", "select id, message from errors");
    assert!(
        failed.len() == 1 && failed[0].contains("nok/broken.png@") && failed[0].contains("not an image"),
        "{failed:?}"
    );
}

#[test]
fn sizes_that_contradict_each_other_are_refused() {
    let lab = tiled();
    for (from, to, words) in [
        ("overlap: 16", "overlap: 40", "`tile.overlap`: 40 is more than half of the 64 pixels of a tile"),
        (
            "tile: { overlap: 16 }",
            "tile: { overlap: 16 }, keep_aspect: pad",
            "`tile`: it keeps the aspect ratio itself",
        ),
        ("size: [80, 192]", "size: 80, short_side: 90, keep_aspect: pad", "`short_side`: it keeps the aspect ratio"),
        (
            "from: [images, tiles, tile_maps]",
            "from: [tiles, tiles, tile_maps]",
            "`images` of stage `stitch`: its rows are tiles",
        ),
        (
            "[decisions, images, anomaly_maps]",
            "[decisions, tiles, tile_maps]",
            "as `images` of stage `regions`: its rows are tiles",
        ),
    ] {
        assert!(TILES.contains(from), "{from}");
        lab.write("pipeline.yaml", &TILES.replace(from, to));
        let ended = lab.vlmdiff(&["plan", "pipeline.yaml"]);
        assert!(ended.code == Some(2) && ended.stderr.contains(words), "{to}: {}", ended.stderr);
    }
    // Some tiles of the photographs are left out.
    lab.write("pipeline.yaml", &TILES.replace("from: [tiles, bank]", "from: [tiles, bank], where: x < 300"));
    let ended = lab.vlmdiff(&["run", "pipeline.yaml"]);
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("steel/test/dent/0.png: its tiles do not cover it; did some fail"),
        "{}",
        ended.stderr
    );
    // Maps of tiles alone cannot be exported.
    lab.write("alone.yaml", TILES.split("  anomaly_maps:").next().unwrap());
    assert_eq!(lab.vlmdiff(&["run", "alone.yaml", "--store", "alone"]).code, Some(0));
    let ended = lab.vlmdiff(&["export", "found", "--store", "alone"]);
    assert!(ended.code == Some(2) && ended.stderr.contains("`tile_maps` has maps of tiles"), "{}", ended.stderr);
}

#[test]
fn new_photograph_is_judged_by_its_tiles() {
    let lab = tiled();
    photograph(&lab.path("new/bad.png"), SIZE, 8, &[DENT]);
    photograph(&lab.path("new/large.png"), (500, 300), 10, &[]);
    fs::write(lab.path("new/broken.png"), "no picture").unwrap();
    let ended = lab.vlmdiff(&["predict", "pipeline.yaml", "new", "--json"]);
    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    let told: Vec<serde_json::Value> = ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ids: Vec<&str> = told.iter().map(|row| row["image_id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["new/bad.png", "new/large.png", "new/broken.png"]);
    let known = lab.sql(".vlmdiff", "select score from tiled.decisions where image_id = 'steel/test/dent/0.png'");
    assert_eq!((told[0]["score"].as_f64().unwrap() as f32).to_string(), known[0]);
    assert!(told[2]["error"].as_str().unwrap().starts_with("not an image"), "{}", told[2]);
}

/// The tiles of a photograph, up to the map of the whole.
const LARGE: &str = r#"
name: large
tables:
  images: { stage: ingest, with: { dataset: folder, root: data, size: [64, 256] } }
  tiles: { stage: ingest, with: { dataset: folder, root: data, size: 128, tile: { overlap: 16 } } }
  features: { stage: extract, from: [tiles], where: split = 'train', with: { extractor: efficientnet-lite0, layers: [4], keep: 8 } }
  bank: { stage: fit, from: [features], with: { method: { knn: {} } } }
  tile_maps: { stage: detect, from: [tiles, bank], where: split = 'test' }
  anomaly_maps: { stage: stitch, from: [images, tiles, tile_maps] }
"#;

/// Returns the peak of memory in bytes of a run on one photograph of a size.
#[expect(clippy::zombie_processes, reason = "`wait4` waits for it")]
fn peak(size: (u32, u32)) -> u64 {
    let lab = Lab::empty();
    lab.write("pipeline.yaml", LARGE);
    photograph(&lab.path("data/steel/train/good/0.png"), (128, 128), 0, &[]);
    photograph(&lab.path("data/steel/test/good/0.png"), size, 1, &[]);
    let child = lab.command(&["run", "pipeline.yaml", "--quiet"]).spawn().unwrap();
    let (mut status, mut usage) = (0, std::mem::MaybeUninit::<libc::rusage>::zeroed());
    // SAFETY: the child was just started and nothing else waits for it; both pointers are valid, and all bytes 0 are a
    // valid `rusage`. It holds the largest of the peaks of the driver and of its worker.
    let (waited, usage) =
        unsafe { (libc::wait4(child.id() as i32, &mut status, 0, usage.as_mut_ptr()), usage.assume_init()) };
    assert_eq!((waited, status), (child.id() as i32, 0));
    usage.ru_maxrss as u64 * 1024
}

/// A photograph is decoded as a whole, but its tiles, features and maps are in memory a few at a time.
#[test]
fn memory_of_tiles_does_not_grow_with_the_photograph() {
    let (small, large) = (peak((2000, 2000)), peak((8000, 2000)));
    let pixels = 3 * 6000 * 2000;
    println!("2000x2000: {} MiB, 8000x2000: {} MiB", small >> 20, large >> 20);
    // The pixels as they are decoded, and the encoded file.
    assert!(large < small + 2 * pixels, "{small} {large}");
}
