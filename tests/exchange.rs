//! Tables in the formats of other programs: written here and opened by the real packages, and the other way round.

use std::{fs, path::Path};

use serde_json::Value;

use crate::{
    lab::{Lab, computed},
    remote::python,
};

/// Photographs, and rows of every type that a table may have.
const PIPELINE: &str = "
name: out
tables:
  images: { stage: ingest, with: { dataset: folder, root: data, size: 32 } }
  things: { stage: read, with: { path: things.parquet, id: id } }
";

/// Reads the same rows again from another place.
const AGAIN: &str = "
name: again
tables:
  things: { stage: read, with: { path: PLACE, id: id } }
";

/// Writes `things.parquet` with this number of rows, and `things.arrow` with the same, as Python does not read tensors that
/// are null from Parquet.
const THINGS: &str = r#"
import datetime, sys
import numpy, pyarrow, pyarrow.feather, pyarrow.parquet

n = int(sys.argv[2])

def values(seed, shape):
    # A row has the same values whatever rows follow it.
    return numpy.stack([numpy.random.default_rng([seed, i]).random(shape) for i in range(n)])

def tensors(values, shape):
    of = pyarrow.fixed_shape_tensor(pyarrow.from_numpy_dtype(values.dtype), shape)
    lists = [row.ravel() for row in values]
    # The last row has no tensor.
    lists[-1] = None
    return pyarrow.ExtensionArray.from_storage(of, pyarrow.array(lists, of.storage_type))

floats = [0.1 * i for i in range(n)]
floats[:3] = [float("nan"), float("inf"), None]
day = datetime.date(2024, 2, 29)
table = pyarrow.table({
    "id": [f"row {i}/é.\"x\"\n" for i in range(n)],
    "truth": [None if i == 1 else i % 2 == 0 for i in range(n)],
    "small": pyarrow.array(range(n), pyarrow.uint8()),
    "large": pyarrow.array([2**64 - 1 - i for i in range(n)], pyarrow.uint64()),
    "float": pyarrow.array(floats, pyarrow.float64()),
    "half": pyarrow.array(numpy.arange(n, dtype=numpy.float16) / 3),
    "day": [day + datetime.timedelta(days=i) for i in range(n)],
    "time": pyarrow.array([1_700_000_000_123 + i for i in range(n)], pyarrow.timestamp("ms", tz="UTC")),
    "bytes": [bytes([i, 0, 255]) if i else None for i in range(n)],
    "numbers": pyarrow.array([list(range(i % 4)) if i != 2 else None for i in range(n)], pyarrow.list_(pyarrow.uint32())),
    "record": [{"x": i, "s": str(i)} for i in range(n)],
    "map": tensors(values(1, (4, 5)).astype(numpy.float16), [4, 5]),
    "cube": tensors(values(2, (2, 4, 5)).astype(numpy.float32), [2, 4, 5]),
    "vector": tensors(values(3, (3,)), [3]),
    "picture": tensors((values(4, (6, 5, 3)) * 256).astype(numpy.uint8), [6, 5, 3]),
})
pyarrow.parquet.write_table(table, sys.argv[1])
pyarrow.feather.write_feather(table, "things.arrow", "uncompressed")
"#;

/// The beginning of the scripts below: `ROWS`, the rows of `things` as Arrow, and how values of them are compared.
const EXPECTED: &str = r#"
import json, math, pathlib, sys
import numpy, pyarrow, pyarrow.feather

ROWS = pyarrow.feather.read_table("things.arrow")
TENSORS = {"map": (4, 5), "cube": (2, 4, 5), "vector": (3,), "picture": (6, 5, 3)}

def tensor(name, row):
    value = ROWS[name][row].as_py() if ROWS[name][row].is_valid else None
    return None if value is None else numpy.asarray(value).reshape(TENSORS[name])

def same(a, b):
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
        return math.isnan(b)
    return a == b

def plain(row):
    return {name: ROWS[name][row].as_py() for name in ROWS.column_names if name not in TENSORS}
"#;

impl Lab {
    /// Runs a script of Python in the lab, offline, and returns what it prints.
    fn script(&self, text: &str, arguments: &[&str]) -> String {
        // Python's own clean-up is left out, because a thread of the package deltalake that still reads may abort the process in it.
        self.write("script.py", &format!("{text}\nimport os, sys\nsys.stdout.flush()\nos._exit(0)\n"));
        let mut command = python();
        command.arg("script.py").args(arguments).current_dir(self.path(""));
        command.env("HF_HOME", self.path("home")).env("HF_DATASETS_OFFLINE", "1").env("HF_HUB_OFFLINE", "1");
        let ended = self.ended(&mut command);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        ended.stdout
    }

    /// Makes a lab with the pipeline, which has run on this number of things.
    fn with_things(count: usize) -> Self {
        let lab = Self::new(PIPELINE);
        lab.things(count);
        lab
    }

    /// Runs the pipeline on this number of things. Returns the number of rows of `things` that were computed.
    fn things(&self, count: usize) -> u64 {
        self.script(THINGS, &["things.parquet", &count.to_string()]);
        let events = self.run(&[]);
        let rows = computed(&events).into_iter().find(|(table, _)| *table == "things");
        rows.map_or(0, |(_, rows)| rows)
    }

    fn export(&self, arguments: &[&str]) -> String {
        let ended = self.vlmdiff(&[&["export"], arguments].concat());
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        ended.stdout
    }

    /// Reads `things` again from an address in a store of its own. Returns the number of rows that were computed.
    fn again(&self, place: &str, set: &[&str]) -> u64 {
        self.write("again.yaml", &AGAIN.replace("PLACE", place));
        let set: Vec<&str> = set.iter().flat_map(|set| ["--set", set]).collect();
        let ended = self.vlmdiff(&[&["run", "again.yaml", "--quiet", "--store", "again"], &set[..]].concat());
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let events = self.events("again");
        computed(&events).first().map_or(0, |(_, rows)| *rows)
    }

    /// Returns the content digest of a table.
    fn content(&self, store: &str, table: &str) -> String {
        self.contents(store).into_iter().find(|(name, _)| name == table).unwrap().1
    }
}

#[test]
fn hugging_face_datasets_opens_an_export() {
    let lab = Lab::with_things(6);
    assert_eq!(lab.export(&["images", "--to", "hf", "-o", "out/photographs"]), "out/photographs: 14 rows in 2 files\n");
    assert_eq!(lab.export(&["things", "--to", "hf"]), "things: 6 rows in 1 file\n");
    let rows = ["sql", "select * from images", "-o", "images.jsonl"];
    assert_eq!(lab.vlmdiff(&rows).code, Some(0));
    let script = r#"
import datasets
from datasets import Array2D, Array3D, Image, List, Value

photographs = datasets.load_dataset("out/photographs")
assert {split: len(rows) for split, rows in photographs.items()} == {"train": 8, "test": 6}, photographs
features = photographs["test"].features
assert features["pixels"] == features["mask"] == Image() and features["label"] == Value("bool"), features
expected = [json.loads(line) for line in pathlib.Path("images.jsonl").read_text().splitlines()]
expected = {row["image_id"]: row for row in expected}
masks = 0
for split, rows in photographs.items():
    for row in rows:
        want = expected.pop(row["image_id"])
        assert row["split"] == split and row["class"] == want["class"] and row["label"] == want["label"]
        assert (numpy.asarray(row["pixels"]).ravel() == numpy.asarray(want["pixels"])).all(), row["image_id"]
        if want["mask"] is None:
            assert row["mask"] is None
        else:
            masks += 1
            assert (numpy.asarray(row["mask"]).ravel() == numpy.asarray(want["mask"])).all(), row["image_id"]
assert not expected and masks > 0

things = datasets.load_dataset("things", split="train")
features = things.features
assert features["map"] == Array2D((4, 5), "float16") and features["cube"] == Array3D((2, 4, 5), "float32"), features
assert features["vector"] == List(Value("float64"), length=3) and features["picture"] == Image(), features
assert features["time"] == Value("timestamp[ms, tz=UTC]") and features["numbers"] == List(Value("uint32")), features
assert len(things) == ROWS.num_rows == 6
for number, row in enumerate(things):
    for name, value in plain(number).items():
        assert same(value, row[name]), (number, name, value, row[name])
    for name in TENSORS:
        want = tensor(name, number)
        if want is None:
            # The library makes NaN of an array that is null, when it makes lists of it.
            assert not things.data.column(name)[number].is_valid, (number, name)
        else:
            assert (numpy.asarray(row[name]) == want).all(), (number, name)
"#;
    lab.script(&format!("{EXPECTED}{script}"), &[]);
    // The same rows come back.
    assert_eq!(lab.again("things", &[]), 6);
    assert_eq!(lab.content("again", "things"), lab.content(".vlmdiff", "things"));
    assert_eq!(
        lab.sql("again", "select map[1] from things limit 1"),
        lab.sql(".vlmdiff", "select map[1] from things limit 1")
    );
}

#[test]
fn data_set_of_the_library_is_read() {
    let lab = Lab::empty();
    let script = r#"
import os
import datasets, numpy
from datasets import Array2D, Features, Image, Value

features = Features({"id": Value("int64"), "image": Image(), "map": Array2D((2, 3), "float32"), "name": Value("large_string")})
os.makedirs("theirs/data")
for split, rows in [("train", range(3)), ("test", range(3, 5))]:
    rows = datasets.Dataset.from_dict({
        "id": list(rows),
        "image": [numpy.full((4, 5, 3), i, numpy.uint8) for i in rows],
        "map": [numpy.full((2, 3), i / 2, numpy.float32) for i in rows],
        "name": [f"n{i}" for i in rows],
    }, features=features)
    rows.to_parquet(f"theirs/data/{split}-00000-of-00001.parquet")
"#;
    lab.script(script, &[]);
    assert_eq!(lab.again("theirs", &[]), 5);
    let query = "select id, split, name, map[6], left(encode(image, 'hex'), 8) from things order by id";
    let rows = [
        "0,train,n0,0.0,89504e47",
        "1,train,n1,0.5,89504e47",
        "2,train,n2,1.0,89504e47",
        "3,test,n3,1.5,89504e47",
        "4,test,n4,2.0,89504e47",
    ];
    assert_eq!(lab.sql("again", query), rows);
}

#[test]
fn webdataset_opens_an_export() {
    let lab = Lab::with_things(5);
    assert_eq!(lab.export(&["things", "--to", "webdataset", "-o", "shards"]), "shards: 5 rows in 1 file\n");
    lab.export(&["images", "--to", "webdataset", "-o", "photographs"]);
    let script = r#"
import webdataset

def samples(*shards):
    paths = [str(path) for path in shards]
    return list(webdataset.WebDataset(paths, shardshuffle=False).decode("rgb8"))

things = samples("shards/train-000000.tar")
assert [sample["__key__"] for sample in things] == [f"{i:09}" for i in range(5)], things
for number, sample in enumerate(things):
    want = plain(number)
    for name in ["id", "truth", "small", "large", "numbers", "record"]:
        assert sample["json"][name] == want[name], (number, name)
    for name in TENSORS:
        value, found = tensor(name, number), sample.get(f"{name}.png" if name == "picture" else f"{name}.npy")
        assert (found is None) == (value is None), (number, name)
        if value is not None:
            assert found.shape == value.shape and (found == value).all(), (number, name)
    assert sample.get("bytes.bin") == want["bytes"], number
photographs = samples(*sorted(pathlib.Path("photographs").glob("*.tar")))
assert len(photographs) == 14 and len({sample["__key__"] for sample in photographs}) == 14
assert {sample["json"]["split"] for sample in samples("photographs/train-000000.tar")} == {"train"}
assert all(sample["pixels.png"].shape == (32, 32, 3) for sample in photographs)
"#;
    lab.script(&format!("{EXPECTED}{script}"), &[]);
    // The same table gives the same bytes.
    let shard = fs::read(lab.path("shards/train-000000.tar")).unwrap();
    lab.export(&["things", "--to", "webdataset", "-o", "shards"]);
    assert!(fs::read(lab.path("shards/train-000000.tar")).unwrap() == shard, "the shard differs");
    assert_eq!(lab.again("shards", &[]), 5);
    assert_eq!(lab.content("again", "things"), lab.content(".vlmdiff", "things"));
}

#[test]
fn shards_of_the_library_are_read() {
    let lab = Lab::empty();
    let script = r#"
import numpy, webdataset
with webdataset.ShardWriter("theirs/part-%02d.tar", maxcount=2, verbose=0) as shards:
    for i in range(5):
        picture = numpy.full((4, 5, 3), i, numpy.uint8)
        array = numpy.full((2, 3), i, numpy.int16)
        shards.write({"__key__": f"a/{i}", "png": picture, "json": {"n": i}, "npy": array, "txt": f"text {i}", "cls": i})
"#;
    fs::create_dir(lab.path("theirs")).unwrap();
    lab.script(script, &[]);
    assert_eq!(lab.again("theirs", &["things.id=__key__"]), 5);
    let query = "select __key__, n, txt, cls, npy[6], left(encode(png, 'hex'), 8) from things order by n";
    let rows = lab.sql("again", query);
    assert_eq!(rows.len(), 5);
    assert_eq!(rows[3..], ["a/3,3,text 3,3,3,89504e47", "a/4,4,text 4,4,4,89504e47"]);
    // One shard alone.
    assert_eq!(lab.again("theirs/part-00.tar", &["things.id=__key__"]), 0);
    assert_eq!(lab.sql("again", "select count(*) from things"), ["2"]);
}

#[cfg(feature = "delta")]
#[test]
fn delta_lake_opens_every_version_of_an_export() {
    let lab = Lab::with_things(5);
    assert_eq!(lab.export(&["things", "--to", "delta", "-o", "lake"]), "lake: 5 rows in 1 file, version 0\n");
    let first = lab.content(".vlmdiff", "things");
    lab.things(7);
    assert_eq!(lab.export(&["things", "--to", "delta", "-o", "lake"]), "lake: 7 rows in 1 file, version 1\n");
    let script = r#"
import deltalake

table = deltalake.DeltaTable("lake")
assert table.version() == 1 and len(table.file_uris()) == 1
rows = table.to_pyarrow_table()
assert rows.num_rows == ROWS.num_rows == 7
shape = {field.name: field.metadata for field in table.schema().fields}["cube"]
assert json.loads(shape["vlmdiff.shape"]) == [2, 4, 5], shape
by_id = {row["id"]: row for row in rows.to_pylist()}
for number in range(7):
    row = by_id[plain(number)["id"]]
    for name, value in plain(number).items():
        found = int(row[name]) if name == "large" else row[name]
        assert same(value, found), (number, name, value, found)
    for name in TENSORS:
        want = tensor(name, number)
        assert (row[name] is None) if want is None else (numpy.asarray(row[name]) == want.ravel()).all(), (number, name)
assert deltalake.DeltaTable("lake", version=0).to_pyarrow_table().num_rows == 5
"#;
    lab.script(&format!("{EXPECTED}{script}"), &[]);
    // The old version, then the two rows that the new one adds and the one that has tensors now, then nothing: the rows decide.
    assert_eq!(lab.again("lake", &["things.version=0"]), 5);
    assert_eq!(lab.content("again", "things"), first);
    assert_eq!(lab.again("lake", &[]), 3);
    assert_eq!(lab.content("again", "things"), lab.content(".vlmdiff", "things"));
    assert_eq!(lab.again("lake", &["things.version=1"]), 0);
    let ended = lab.vlmdiff(&["plan", "again.yaml", "--store", "again", "--set", "things.version=9"]);
    assert!(ended.stderr.contains("there is no version 9; the newest is 1"), "{}", ended.stderr);
    let ended =
        lab.vlmdiff(&["plan", "again.yaml", "--set", "things.path=things.parquet", "--set", "things.version=0"]);
    assert!(ended.stderr.contains("things.parquet is no Delta table"), "{}", ended.stderr);
}

#[cfg(feature = "delta")]
#[test]
fn delta_table_of_the_library_is_read_and_not_replaced() {
    let lab = Lab::with_things(3);
    let script = r#"
import deltalake, pyarrow
rows = pyarrow.table({"id": ["a", "b", "c"], "part": [1, 1, 2], "x": [0.5, None, 2.5]})
deltalake.write_deltalake("theirs", rows, partition_by=["part"])
more = pyarrow.table({"id": ["d"], "part": [2], "x": [3.5], "new": ["n"]})
deltalake.write_deltalake("theirs", more, mode="append", schema_mode="merge")
deltalake.DeltaTable("theirs").delete("id = 'a'")
"#;
    lab.script(script, &[]);
    assert_eq!(lab.again("theirs", &[]), 3);
    let query = "select id, part, x, new from things order by id";
    assert_eq!(lab.sql("again", query), ["b,1,,", "c,2,2.5,", "d,2,3.5,n"]);
    assert_eq!(lab.again("theirs", &["things.version=0"]), 3);
    let ended = lab.vlmdiff(&["export", "things", "--to", "delta", "-o", "theirs"]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("is a Delta table that no export wrote"), "{}", ended.stderr);
    lab.export(&["things", "--to", "delta", "-o", "ours"]);
    let ended = lab.vlmdiff(&["export", "images", "--to", "delta", "-o", "ours"]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("is the Delta table of `out.things`"), "{}", ended.stderr);
}

#[test]
fn export_refuses_what_it_would_spoil() {
    let lab = Lab::with_things(3);
    let told = |arguments: &[&str]| {
        let ended = lab.vlmdiff(&[&["export"], arguments].concat());
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        ended.stderr
    };
    fs::create_dir(lab.path("mine")).unwrap();
    lab.write("mine/notes.txt", "mine");
    for format in ["hf", "webdataset", "delta", "coco"] {
        let message = told(&["things", "--to", format, "-o", "mine"]);
        let expected = if format == "coco" { "has no regions of images" } else { "name a new folder" };
        assert!(message.contains(expected), "{format}: {message}");
    }
    assert_eq!(fs::read_dir(lab.path("mine")).unwrap().count(), 1);
    assert!(told(&["thing", "--to", "hf"]).contains("`things`"), "no advice");
    assert!(told(&["things", "--to", "hf", "-o", "s3://bucket/x"]).contains("`--to delta` takes a URL too"));
    assert!(told(&["things", "-o", "x"]).contains("--to"));
    assert!(told(&["things", "--to", "hf", "--alarms"]).contains("--alarms"));
    // An export that failed leaves nothing.
    let left: Vec<_> = fs::read_dir(lab.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("unfinished")), "{left:?}");
    assert!(!Path::new(&lab.path("things")).exists());
}

#[test]
fn regions_are_annotations_of_the_judged_images() {
    let lab = Lab::new(
        "
name: found
tables:
  images: { stage: ingest, with: { dataset: folder, root: data, size: 32 } }
  regions: { stage: read, with: { path: regions.jsonl, id: region_id } }
",
    );
    let image = "gear/test/good/000.png";
    let region = serde_json::json!({
        "region_id": "r", "image_id": image, "polygon": [1, 2, 5, 2, 5, 8], "area": 12, "x": 1, "y": 2, "width": 4,
        "height": 6, "max_score": 0.5,
    });
    lab.write("regions.jsonl", &format!("{region}\n"));
    lab.run(&[]);
    assert_eq!(lab.export(&["regions", "--to", "coco", "-o", "coco"]), "coco/annotations.json: 14 images, 1 region\n");
    let written: Value = serde_json::from_slice(&fs::read(lab.path("coco/annotations.json")).unwrap()).unwrap();
    let annotation = &written["annotations"][0];
    assert_eq!(annotation["segmentation"], serde_json::json!([[1, 2, 5, 2, 5, 8]]));
    assert_eq!((&annotation["bbox"], &annotation["score"]), (&serde_json::json!([1., 2., 4., 6.]), &0.5.into()));
    let about =
        written["images"].as_array().unwrap().iter().find(|image| image["id"] == annotation["image_id"]).unwrap();
    assert_eq!(about, &serde_json::json!({ "id": about["id"], "file_name": image, "width": 48, "height": 48 }));
}
