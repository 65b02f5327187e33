//! Maps of tiles that become maps of photographs, beside maps that are computed by hand.

use image::RgbImage;

use crate::lab::{Lab, project};

/// Photographs as they lie in the middle of 24x16 pixels, and tiles of 16x16, of which neighbours share 8 pixels.
const PIPELINE: &str = r#"
name: stitched
tables:
  images: { stage: ingest, with: { dataset: folder, root: data, size: [16, 24], keep_aspect: pad } }
  tiles: { stage: ingest, with: { dataset: folder, root: data, size: 16, tile: { overlap: 8 } } }
  tile_maps:
    stage: command
    from: [tiles]
    with: { run: python3 maps.py, columns: [x], output: { map: "float16[16,16]", score: float32 } }
  anomaly_maps: { stage: stitch, from: [images, tiles, tile_maps] }
"#;

/// A program whose map of a tile is 1 at the left end of a photograph and 10 elsewhere, where the score is lower; that of a
/// narrow photograph counts its columns from 1, and the second tile of a broken one has NaN.
const MAPS: &str = r#"
import sys
import pyarrow as pa

rows = pa.ipc.open_stream(sys.stdin.buffer)
schema = pa.schema([("image_id", pa.string()), ("map", pa.list_(pa.float16(), 16 * 16)), ("score", pa.float32())])
with pa.ipc.new_stream(sys.stdout.buffer, schema) as answers:
    for batch in rows:
        maps, scores = [], []
        for name, x in zip(batch["image_id"].to_pylist(), batch["x"].to_pylist()):
            row = list(range(1, 17)) if "narrow" in name else [1 if x == 0 else 10] * 16
            maps.append(pa.array(row * 16, pa.float32()).cast(pa.float16()).to_pylist())
            scores.append(0.5 if x == 0 else 0.25)
            if "broken" in name and x > 0:
                maps[-1], scores[-1] = [float("nan")] * (16 * 16), float("nan")
        answers.write_batch(pa.RecordBatch.from_pydict({"image_id": batch["image_id"], "map": maps, "score": scores}, schema))
        sys.stdout.flush()
"#;

/// Makes a lab with photographs of these names and widths, which are 16 pixels high, and runs a pipeline on them.
fn lab(pipeline: &str, photographs: &[(&str, u32)]) -> Lab {
    let tools = project().join(".tools/python/pyarrow");
    assert!(tools.exists(), "programs in Python need pyarrow; run `python3 setup/fetch.py tools`");
    let lab = Lab::empty();
    lab.write("pipeline.yaml", pipeline);
    lab.write("maps.py", MAPS);
    std::fs::create_dir_all(lab.path("data/steel/train/good")).unwrap();
    for (name, width) in photographs {
        RgbImage::new(*width, 16).save(lab.path(&format!("data/steel/train/good/{name}.png"))).unwrap();
    }
    lab.run(&[]);
    lab
}

/// Returns the rows of the map of a photograph.
fn map(lab: &Lab, name: &str, width: usize) -> Vec<Vec<f32>> {
    let values = format!("select unnest(map) as v from anomaly_maps where image_id = 'steel/train/good/{name}.png'");
    let values = lab.sql(".vlmdiff", &format!("select cast(v as real) from ({values})"));
    let values: Vec<f32> = values.iter().map(|value| value.parse().unwrap()).collect();
    values.chunks(width).map(<[f32]>::to_vec).collect()
}

/// Returns the scores by the order of the photographs' names.
fn scores(lab: &Lab) -> Vec<f32> {
    let scores = lab.sql(".vlmdiff", "select score from anomaly_maps order by image_id");
    scores.iter().map(|score| score.parse().unwrap()).collect()
}

/// The tiles of the wide photograph begin at 0 and 8. At a column x that both have, the first weighs 16 - x and the second
/// x - 7, which are 9 together: (1 (16 - x) + 10 (x - 7)) / 9 = x - 6.
#[test]
fn maps_of_tiles_fade_into_each_other_and_a_border_has_the_lowest_value() {
    let lab = lab(PIPELINE, &[("narrow", 16), ("wide", 24)]);
    let faded = [vec![1.; 8], (2..10).map(|value| value as f32).collect(), vec![10.; 8]].concat();
    assert_eq!(map(&lab, "wide", 24), vec![faded; 16]);
    // One tile, in the middle of the picture.
    let bordered = [vec![1.; 4], (1..17).map(|value| value as f32).collect(), vec![1.; 4]].concat();
    assert_eq!(map(&lab, "narrow", 24), vec![bordered; 16]);
    assert_eq!(scores(&lab), [0.5, 0.5], "the highest score of the tiles");
    lab.run(&["--set", "anomaly_maps.score=map"]);
    assert_eq!(scores(&lab), [16., 10.], "the highest value of the map");
}

/// The tiles of the photograph begin at 0, 8, 16, 24 and 32, and its middle are the columns 16 to 31, before which
/// the first tile ends, which has the highest score.
#[test]
fn tile_of_which_the_map_shows_nothing_does_not_count() {
    assert!(PIPELINE.contains("size: [16, 24], keep_aspect: pad"));
    let middle = PIPELINE.replace("size: [16, 24], keep_aspect: pad", "size: 16, short_side: 16");
    let lab = lab(&middle, &[("long", 48)]);
    assert_eq!(map(&lab, "long", 16), vec![vec![10.; 16]; 16]);
    assert_eq!(scores(&lab), [0.25]);
}

#[test]
fn score_of_a_photograph_is_nan_where_that_of_a_tile_is() {
    let lab = lab(PIPELINE, &[("broken", 24)]);
    for rule in ["tiles", "map"] {
        lab.run(&["--set", &format!("anomaly_maps.score={rule}")]);
        assert!(scores(&lab)[0].is_nan(), "{rule}");
    }
}
