//! Tables made by SQL: the columns that they read, the identity of their rows, and row-by-row queries.

use std::fs;

use crate::lab::{Lab, computed};

const PIPELINE: &str = r#"
name: sql
tables:
  images: { stage: ingest, with: { dataset: folder, root: data, size: 32 } }
  counts: { stage: sql, from: [images], with: { query: "select count(*) as n from images" } }
  test: { stage: sql, from: [images], with: { query: "select image_id, class, pixels from images where split = 'test'", makes: rows } }
  names:
    stage: sql
    from: [images, test, counts]
    with:
      query: "select t.image_id, upper(t.class) as name, i.width * n as many from test t join images i on t.image_id = i.image_id cross join counts"
      makes: row_per_row
"#;

#[test]
fn only_columns_that_a_query_reads_rerun_it() {
    let lab = Lab::new(PIPELINE);
    assert_eq!(computed(&lab.run(&["--task-rows", "4"])), [("images", 14), ("counts", 1), ("test", 6), ("names", 6)]);
    assert_eq!(lab.sql(".vlmdiff", "select name, many from names order by image_id limit 1"), ["GEAR,672"]);
    // The pixels change but not the size, so that no row is added and no name changes.
    let image = lab.path("data/gear/test/good/000.png");
    fs::copy(lab.path("data/gear/train/good/000.png"), &image).unwrap();
    assert_eq!(computed(&lab.run(&[])), [("images", 1), ("counts", 0), ("test", 6), ("names", 0)]);
    // An added image changes the whole table `counts`, and so every row that was computed with it.
    fs::copy(&image, lab.path("data/gear/train/good/extra.png")).unwrap();
    assert_eq!(computed(&lab.run(&[])), [("images", 1), ("counts", 1), ("test", 6), ("names", 6)]);
}

#[test]
fn row_by_row_query_computes_changed_rows_only() {
    let query = "select image_id, length(defect) as n from images";
    let pipeline = PIPELINE.split("  counts:").next().unwrap();
    let pipeline = format!(
        "{pipeline}  lengths: {{ stage: sql, from: [images], with: {{ query: \"{query}\", makes: row_per_row }} }}"
    );
    let lab = Lab::new(&pipeline);
    lab.run(&[]);
    fs::copy(lab.path("data/gear/train/good/000.png"), lab.path("data/gear/train/good/extra.png")).unwrap();
    assert_eq!(computed(&lab.run(&[])), [("images", 1), ("lengths", 1)]);
    for (query, message) in [
        ("select image_id from images limit 3", "no `limit` where the rows of images are read one by one"),
        ("select count(*) as n from images", "no aggregates where the rows of images are"),
        ("select label, image_id from images", "the first column identifies a row and is text; `label` is Boolean"),
        ("select image_id from images where split = 'test'", "wrote no row for `gear/train/good/000.png`"),
        ("select 'x' as image_id from images", "wrote a row `x` that it did not read"),
    ] {
        let ended = lab.vlmdiff(&["run", "pipeline.yaml", "--quiet", "--set", &format!("lengths.query=\"{query}\"")]);
        assert_ne!(ended.code, Some(0), "{query}");
        assert!(ended.stderr.contains(message), "{query}: {}", ended.stderr);
    }
}

#[test]
fn duplicate_ids_are_refused() {
    let lab = Lab::new(PIPELINE.split("  names:").next().unwrap());
    let ended =
        lab.vlmdiff(&["run", "pipeline.yaml", "--quiet", "--set", "test.query=select class, pixels from images"]);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("table `test`: the id `gear` stands in two rows"), "{}", ended.stderr);
}

#[test]
fn column_of_type_null_is_refused_at_its_place() {
    let lab = Lab::new(PIPELINE.split("  names:").next().unwrap());
    let query = "test.query=select image_id, null as note from images";
    let ended = lab.vlmdiff(&["plan", "pipeline.yaml", "--set", query]);
    assert_eq!(ended.code, Some(2));
    assert!(
        ended.stderr.contains("table `test`: column `note` is of type Null, which no table holds"),
        "{}",
        ended.stderr
    );
}
