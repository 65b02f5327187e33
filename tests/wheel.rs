//! The Python package: its results are those of the programs, its errors say the same, and it has no libtorch.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use crate::{
    lab::{Ended, LIGHT, Lab, project},
    methods::INSPECTION,
    remote,
};

/// Returns the extension, which is built beside the programs.
fn extension() -> PathBuf {
    let file = Path::new(env!("CARGO_BIN_EXE_vlmdiff")).with_file_name("lib_vlmdiff.so");
    assert!(file.is_file(), "{} is missing: run make test, or cargo build -p vlmdiff-python", file.display());
    file
}

/// Returns a folder with the package as an installation has it.
fn site() -> &'static Path {
    static SITE: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = SITE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let package = folder.path().join("vlmdiff");
        fs::create_dir(&package).unwrap();
        for file in fs::read_dir(project().join("python/vlmdiff")).unwrap().map(|entry| entry.unwrap().path()) {
            // An editable installation has built files there, and Python has compiled some, which are left out.
            if file.is_file() && file.extension().is_none_or(|extension| extension != "so") {
                symlink(&file, package.join(file.file_name().unwrap())).unwrap();
            }
        }
        symlink(extension(), package.join("_vlmdiff.abi3.so")).unwrap();
        folder
    });
    folder.path()
}

/// Returns a Python in a lab that finds the package.
fn python(lab: &Lab, arguments: &[&str]) -> Command {
    let packages = std::env::join_paths([site().to_owned(), project().join(".tools/python")]).unwrap();
    // The environment of the lab's programs.
    let mut command = lab.command(&[]);
    let mut python = remote::python();
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => python.env(name, value),
            None => python.env_remove(name),
        };
    }
    command = python;
    command.args(arguments).current_dir(lab.path("")).env("PYTHONPATH", packages);
    command.env("PYTHONDONTWRITEBYTECODE", "1").env_remove("VLMDIFF_WORKER");
    command
}

/// Runs a script, which must succeed.
fn succeeds(lab: &Lab, script: &str, arguments: &[&str]) -> Ended {
    lab.write("script.py", script);
    let ended = lab.ended(&mut python(lab, &[&["script.py"], arguments].concat()));
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    ended
}

/// Functions that the scripts share.
const HELP: &str = "
import vlmdiff

def raised(kind, work):
    try:
        work()
    except vlmdiff.Error as error:
        assert type(error) is kind, f'{type(error)}: {error}'
        return error
    raise AssertionError(f'no {kind}')
";

#[test]
fn extension_does_not_load_libtorch() {
    let bytes = fs::read(extension()).unwrap();
    let names = |name: &[u8]| bytes.windows(name.len()).any(|window| window == name);
    assert!(!names(b"libtorch_cpu.so") && !names(b"libc10.so"), "the extension refers to libtorch");
    assert!(names(b"PyInit__vlmdiff"), "this test no longer reads the extension");
}

#[test]
fn rows_reach_other_packages_in_their_shape_and_without_a_copy() {
    let lab = Lab::new(LIGHT);
    lab.run(&[]);
    let script = r#"
import numpy, polars, pyarrow

query = """select i.image_id, label, width, pixels, d.mask from images i
    left join (select image_id, mask from images where label) d on i.image_id = d.image_id order by 1"""
result = vlmdiff.sql(query)
assert len(result) == 14 and result.columns == ["image_id", "label", "width", "pixels", "mask"], result
table = result.arrow()
assert table.schema.field("pixels").type.shape == [32, 32, 3], table.schema
assert table.schema.field("pixels").type.value_type == pyarrow.uint8()

# Each stream has the same memory.
address = lambda table, name: table.column(name).chunk(0).buffers()[1].address
other = pyarrow.table(vlmdiff.Result(result._rows))
assert table.column("width").num_chunks == 1 and address(table, "width") == address(other, "width")
pixels = result.numpy("pixels")
assert pixels.shape == (14, 32, 32, 3) and pixels.dtype == numpy.uint8 and pixels.std() > 1
stored = table.column("pixels").chunk(0).storage.flatten()
assert pixels.__array_interface__["data"][0] == stored.buffers()[1].address
assert (pixels == table.column("pixels").combine_chunks().to_numpy_ndarray()).all()
assert result.numpy("width").tolist() == [48] * 14 and result.numpy("label").dtype == bool
assert result.numpy("label").tolist() == table.column("label").to_pylist()

frame = result.polars()
assert frame["pixels"].dtype == polars.Array(polars.UInt8, (32, 32, 3)), frame.schema
assert (frame["pixels"].to_numpy() == pixels).all() and frame["image_id"].to_list() == table.column("image_id").to_pylist()
good = table.column("mask").null_count
assert 0 < good < 14 and frame["mask"].null_count() == good, frame["mask"]
assert polars.DataFrame(result).shape == (14, 5)
rows = result.pandas()
assert rows["pixels"][3].shape == (32, 32, 3) and (rows["pixels"][3] == pixels[3]).all() and rows["width"].sum() == 14 * 48

error = raised(vlmdiff.InputError, lambda: result.numpy("mask"))
assert error.place == "mask" and f"has {good} null rows" in str(error) and "where mask is not null" in str(error), error
assert "it has image_id, label" in str(raised(vlmdiff.InputError, lambda: result.numpy("pixel")))
assert "numbers and tensors" in str(raised(vlmdiff.InputError, lambda: result.numpy("image_id")))
masks = vlmdiff.sql("select mask from images where label").numpy("mask")
assert masks.shape == (14 - good, 32, 32) and masks.any(), masks.shape
assert vlmdiff.sql("select width from images where false").numpy("width").shape == (0,)

try:
    import torch
except ImportError:
    pass
else:
    tensor = result.torch("pixels")
    assert tensor.shape == (14, 32, 32, 3) and (tensor.numpy() == pixels).all()
    assert tensor.data_ptr() == stored.buffers()[1].address

# Rows of a stream are computed while they are read: all of these would take hours.
many = "with recursive t(n) as (select 1 union all select n + 1 from t where n < 1000000000) select n from t"
batches = vlmdiff.sql(many, stream=True).batches()
assert batches.read_next_batch().num_rows > 0
del batches
stream = vlmdiff.sql(query, stream=True)
assert stream.arrow().num_rows == 14 and len(stream) == 14
once = vlmdiff.sql(query, stream=True)
assert sum(batch.num_rows for batch in once.batches()) == 14
assert "can be read once" in str(raised(vlmdiff.InputError, once.batches))
failing = vlmdiff.sql("select 1 / (width - 48) from images", stream=True).batches()
try:
    failing.read_all()
except pyarrow.ArrowException as error:
    assert "ivide by zero" in str(error), error
else:
    raise AssertionError("a division by zero")
"#;
    succeeds(&lab, &format!("{HELP}{script}"), &[]);
}

#[test]
fn plans_runs_and_verdicts_are_those_of_the_command_line() {
    let lab = Lab::new(INSPECTION);
    let planned = lab.vlmdiff(&["plan", "pipeline.yaml", "--json", "--store", "python"]);
    assert_eq!(planned.code, Some(0), "{}", planned.stderr);
    lab.write("planned.jsonl", &planned.stdout);
    let script = r#"
import dataclasses, json, sys

def plain(table):
    return {name: value for name, value in dataclasses.asdict(table).items() if value not in ([], 0, None) and name != "words"}

def told(line):
    names = {"on": "waits_for"}
    return {names.get(name, name): value for name, value in json.loads(line).items() if value not in ([], 0) and name != "at_most"}

pipeline = vlmdiff.load("pipeline.yaml", store="python")
assert (pipeline.name, len(pipeline.tables)) == ("inspection", 6), pipeline
plan = pipeline.plan()
assert list(map(plain, plan)) == [told(line) for line in open("planned.jsonl")], plan
assert [(table.table, table.memory) for table in plan if table.memory] == [("bank", {"bytes": 16384, "rows": 8})], plan
assert str(plan[0]) == "images: 14 of 14 rows to compute: not computed yet", plan[0]
summary = pipeline.run(progress=True, device="cpu", tag="first")
assert summary.computed["images"] == 14 and list(summary.computed) == pipeline.tables, summary
assert summary.skipped == 0 and summary.seconds > 0
assert [table.state for table in pipeline.plan()] == ["fresh"] * 6
events = []
again = pipeline.run(progress=events.append, workers=1)
assert again.computed == {} and [event["event"] for event in events][1] == "table_fresh", events
assert vlmdiff.sql("select count(*) as n from decisions@first", "python").arrow().to_pylist() == [{"n": 6}]
assert pipeline.sql("select run from runs order by run").arrow().column("run").to_pylist() == [summary.run, again.run]

changed = vlmdiff.load("pipeline.yaml", set={"anomaly_maps.sigma": 2, "images.root": "data"}, store="python")
states = {table.table: table.state for table in changed.plan(until="anomaly_maps")}
assert states == {"images": "fresh", "features": "fresh", "bank": "fresh", "anomaly_maps": "stale"}, states
causes = changed.plan(targets=["anomaly_maps"])[-1].causes
assert causes == [{"cause": "parameter", "path": "sigma", "from": 1.0, "to": 2.0}], causes
assert changed.plan(targets="bank", force=["bank"])[-1].causes == [{"cause": "forced"}]

inspector = pipeline.inspector(device="cpu")
verdicts = inspector.predict(["data/gear/train/good/000.png", "broken.png"], class_name="gear")
assert inspector.predict("data/gear/train/good/000.png", class_name="gear") == verdicts[:1]

# Pictures in memory are judged as their files are.
import numpy, PIL.Image

def without_id(rows):
    return [{name: value for name, value in row.items() if name != "image_id"} for row in rows]

picture = PIL.Image.open("data/gear/train/good/000.png")
pixels = numpy.asarray(picture.convert("RGB"))
judged = inspector.predict([picture, "data/gear/train/good/000.png", pixels], class_name="gear")
assert [row["image_id"] for row in judged] == ["data/gear/train/good/000.png", "picture-0", "picture-1"], judged
assert without_id(judged) == without_id(verdicts[:1]) * 3, judged
assert inspector.predict(pixels, class_name="gear") == inspector.predict(pixels[None], class_name="gear") == judged[1:2]
many = inspector.predict([255 - pixels] + [pixels] * 10, class_name="gear")
assert [row["image_id"] for row in many] == [f"picture-{number}" for number in range(11)], many
assert many[0]["score"] != many[1]["score"] == judged[1]["score"], many
grey, transparent = picture.convert("L"), picture.convert("RGBA")
assert without_id(inspector.predict([transparent], class_name="gear")) == without_id(verdicts[:1])
assert inspector.predict(grey, class_name="gear") == inspector.predict(numpy.asarray(grey), class_name="gear")
for wrong, said in [(pixels / 255, "array of float64 of "), (pixels[..., :2], "numpy.uint8"), (3, "int is no photograph"), (picture.convert("I"), "mode I")]:
    assert said in str(raised(vlmdiff.InputError, lambda: inspector.predict([wrong]))), wrong
assert inspector.predict([]) == []
print("\n".join(json.dumps(verdict) for verdict in verdicts))
"#;
    lab.write("broken.png", "no picture");
    let ended = succeeds(&lab, &format!("{HELP}{script}"), &[]);
    for said in
        ["images        14 of 14 rows to compute: not computed yet", "decisions     6 rows, 6 computed in", "done in "]
    {
        assert!(ended.stderr.contains(said), "{}", ended.stderr);
    }
    lab.run(&["--store", "program"]);
    let (python, program) = (lab.contents("python"), lab.contents("program"));
    assert!(program.len() == 6 && program.iter().all(|table| python.contains(table)), "{python:?}, {program:?}");
    let photographs = ["data/gear/train/good/000.png", "broken.png"];
    let arguments =
        [&["predict", "pipeline.yaml", "--class", "gear", "--json", "--store", "program"][..], &photographs];
    let told = lab.vlmdiff(&arguments.concat());
    let rows =
        |text: &str| text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<serde_json::Value>>();
    assert_eq!(rows(&ended.stdout), rows(&told.stdout), "{}", told.stderr);
    assert_eq!(rows(&ended.stdout).len(), 2);
}

#[test]
fn errors_are_exceptions_with_the_message_and_the_place() {
    let lab = Lab::new(LIGHT);
    lab.run(&[]);
    let message = |arguments: &[&str]| {
        let ended = lab.vlmdiff(arguments);
        assert!(ended.code.is_some_and(|code| code != 0), "{arguments:?}");
        ended.stderr.trim_end().strip_prefix("error: ").unwrap().to_owned()
    };
    lab.write("wrong.yaml", "name: wrong\ntables:\n  images: { stage: ingst }\n");
    lab.write("inspection.yaml", INSPECTION);
    let query = "select widht from images";
    let expected = [message(&["sql", query]), message(&["plan", "wrong.yaml"])];
    let script = r#"
import os, pathlib, sys

wrong_query, wrong_pipeline = sys.argv[1:3]
error = raised(vlmdiff.InputError, lambda: vlmdiff.sql("select widht from images"))
assert str(error) == error.message == wrong_query and "width" in wrong_query, error
error = raised(vlmdiff.PipelineError, lambda: vlmdiff.load("wrong.yaml"))
assert str(error) == wrong_pipeline, error
assert (error.file, error.line) == ("wrong.yaml", 3) and error.place == f"wrong.yaml:3:{error.column}", error.place
assert isinstance(error, vlmdiff.InputError)
error = raised(vlmdiff.InputError, lambda: vlmdiff.load("nothing.yaml"))
assert error.place == "nothing.yaml" and "nothing.yaml" in str(error), error
assert "name one by `store=`" in str(raised(vlmdiff.InputError, lambda: vlmdiff.sql("select 1", "nowhere")))
assert not pathlib.Path("nowhere").exists()
assert "it has light" in str(raised(vlmdiff.InputError, lambda: vlmdiff.sql("select 1", pipeline="dark")))

pipeline = vlmdiff.load(pathlib.Path("pipeline.yaml"))
assert "no table `imags`; did you mean `images`?" in str(raised(vlmdiff.InputError, lambda: pipeline.plan(targets=["imags"])))
assert raised(vlmdiff.InputError, lambda: pipeline.run(workers=0)).place == "workers"
assert "is no device" in str(raised(vlmdiff.InputError, lambda: pipeline.run(device="tpu")))
assert "is no tag" in str(raised(vlmdiff.InputError, lambda: pipeline.run(tag="a b")))
assert "save_every" in str(raised(vlmdiff.InputError, lambda: pipeline.run(save_every=-1)))

photograph = pathlib.Path("data/gear/train/good/000.png")
picture = photograph.read_bytes()
photograph.write_text("no picture")
error = raised(vlmdiff.RowsError, pipeline.run)
assert (error.table, error.total, error.place) == ("images", 1, "images"), vars(error)
[(row, why)] = error.failures
assert row == "gear/train/good/000.png" and "not an image" in why and "on_error: skip" in str(error), error

assert vlmdiff.worker().name == "vlmdiff-worker" and vlmdiff.worker().is_file(), vlmdiff.worker()
os.environ["VLMDIFF_WORKER"] = "/nowhere/vlmdiff-worker"
inspection = vlmdiff.load("inspection.yaml", store="other")
photograph.write_bytes(picture)
error = raised(vlmdiff.WorkerError, inspection.run)
assert "cannot start /nowhere/vlmdiff-worker" in str(error) and "VLMDIFF_WORKER" in str(error), error

for part in pathlib.Path(".vlmdiff/parts").glob("*.parquet"):
    bytes_ = bytearray(part.read_bytes())
    bytes_[len(bytes_) // 2] ^= 1
    part.chmod(0o600)
    part.write_bytes(bytes_)
error = raised(vlmdiff.DamagedError, lambda: vlmdiff.sql("select * from captions"))
assert len(error.place) >= 32 and error.place in str(error) and "vlmdiff run --verify" in str(error), vars(error)
"#;
    succeeds(&lab, &format!("{HELP}{script}"), &[&expected[0], &expected[1]]);
}

/// A pipeline with a table whose rows take their time.
const SLOW: &str = "
  slow:
    stage: command
    from: [images]
    with: { run: python3 slow.py, output: { width: int64 } }
";

const SLOW_PROGRAM: &str = "
import sys, time
import pyarrow as pa

rows = pa.ipc.open_stream(sys.stdin.buffer)
schema = pa.schema([('image_id', pa.string()), ('width', pa.int64())])
with pa.ipc.new_stream(sys.stdout.buffer, schema) as answers:
    for batch in rows:
        time.sleep(0.15 * batch.num_rows)
        answers.write_batch(pa.RecordBatch.from_pydict({'image_id': batch['image_id'], 'width': [1] * batch.num_rows}, schema))
        sys.stdout.flush()
";

#[test]
fn interrupt_ends_runs_and_queries_and_other_threads_go_on() {
    let lab = Lab::new(&format!("{}{SLOW}", LIGHT.trim_end()));
    lab.write("slow.py", SLOW_PROGRAM);
    let script = r#"
import os, signal, threading, time
# A shell lets its background processes ignore the signal, and Python then leaves it so.
signal.signal(signal.SIGINT, signal.default_int_handler)

def interrupted(work, when):
    """Interrupts the work at an event. Returns the time from there to its end, and how often another thread ran before."""
    turns, at = 0, []
    def wait():
        nonlocal turns
        while not when.wait(0.001):
            turns += 1
        at.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)
    thread = threading.Thread(target=wait)
    thread.start()
    try:
        work()
    except KeyboardInterrupt:
        ended = time.monotonic()
        thread.join()
        return ended - at[0], turns
    raise AssertionError("no interrupt")

pipeline = vlmdiff.load("pipeline.yaml")
committed = threading.Event()

def hear(event):
    if event["event"] == "part_committed" and event["table"] == "slow":
        committed.set()

seconds, turns = interrupted(lambda: pipeline.run(progress=hear, targets=["slow"], task_rows=1), committed)
assert turns > 20, turns
left = pipeline.plan(targets=["slow"])[-1].stale
assert 0 < left < 14, left
summary = pipeline.run(targets=["slow"], task_rows=1)
assert summary.computed == {"slow": left}, (summary, left)

begun = threading.Event()
threading.Timer(0.3, begun.set).start()
many = "with recursive t(n) as (select 1 union all select n + 1 from t where n < 1000000000) select max(n) from t"
seconds, turns = interrupted(lambda: vlmdiff.sql(many), begun)
assert seconds < 5 and turns > 20, (seconds, turns)

class Enough(Exception):
    pass

def fail(event):
    raise Enough(event["event"])

try:
    pipeline.run(progress=fail)
except Enough as error:
    assert str(error) == "run_started", error
else:
    raise AssertionError("an exception of the listener is lost")
"#;
    succeeds(&lab, &format!("{HELP}{script}"), &[]);
}

#[test]
fn tables_are_tables_of_datafusion() {
    let lab = Lab::new(LIGHT);
    lab.run(&[]);
    let script = r#"
import sys

if sys.version_info >= (3, 10):
    import datafusion, pyarrow

    context = vlmdiff.context()
    rows = lambda query, of=context: pyarrow.table(of.sql(query)).to_pylist()
    query = "select class, count(*) as n, max(width) as width from images where split = 'train' group by class order by class"
    assert rows(query) == vlmdiff.sql(query).arrow().to_pylist() == [
        {"class": "gear", "n": 4, "width": 48}, {"class": "tile", "n": 4, "width": 48}], rows(query)
    other = datafusion.SessionContext()
    other.register_table("photographs", vlmdiff.table("light.images"))
    chosen = pyarrow.table({"id": ["gear/train/good/000.png", "tile/train/good/001.png"]})
    other.register_record_batches("chosen", [chosen.to_batches()])
    joined = pyarrow.table(other.sql("select image_id, pixels from photographs join chosen on image_id = id order by image_id"))
    assert joined.column("image_id").to_pylist() == chosen.column("id").to_pylist(), joined
    expected = vlmdiff.sql("select pixels from images where image_id in "
                           "('gear/train/good/000.png', 'tile/train/good/001.png') order by image_id").numpy("pixels")
    values = joined.column("pixels").combine_chunks()
    values = getattr(values, "storage", values).flatten().to_numpy().reshape(expected.shape)
    assert (values == expected).all()
    assert rows("select image_id from photographs limit 3", other).__len__() == 3
    assert "no table `nothing`" in str(raised(vlmdiff.InputError, lambda: vlmdiff.table("nothing")))
    # A session with other tables outlives the objects that it was made of.
    del context
    assert rows("select count(*) as n from photographs", other) == [{"n": 14}]

for missing in ("datafusion",):
    sys.modules[missing] = None
    error = raised(vlmdiff.InputError, lambda: vlmdiff.table("images"))
    assert error.place == "datafusion" and "pip install 'datafusion==55.*'" in str(error), error
"#;
    succeeds(&lab, &format!("{HELP}{script}"), &[]);
}

#[test]
fn stubs_have_the_names_and_parameters_of_the_extension() {
    let lab = Lab::empty();
    let script = r#"
import ast, inspect, pathlib
from vlmdiff import _vlmdiff

assert (pathlib.Path(vlmdiff.__file__).parent / "py.typed").is_file()
stub = ast.parse((pathlib.Path(vlmdiff.__file__).parent / "_vlmdiff.pyi").read_text())
functions = {node.name: node for node in stub.body if isinstance(node, ast.FunctionDef)}
classes = {node.name: node for node in stub.body if isinstance(node, ast.ClassDef)}
constants = {node.target.id for node in stub.body if isinstance(node, ast.AnnAssign)}
public = {name for name in dir(_vlmdiff) if not name.startswith("__") or name in constants}
assert public == set(functions) | set(classes) | constants, public ^ (set(functions) | set(classes) | constants)

def parameters(node):
    return [argument.arg for argument in node.args.args if argument.arg != "self"]

def signature(what):
    return [name for name in inspect.signature(what).parameters if name != "self"]

for name, node in functions.items():
    assert parameters(node) == signature(getattr(_vlmdiff, name)), name
for name, node in classes.items():
    kind = getattr(_vlmdiff, name)
    methods = {method.name: method for method in node.body if isinstance(method, ast.FunctionDef)}
    own = {method for method in vars(kind) if not method.startswith("__") or method.startswith(("__arrow", "__datafusion"))}
    assert own == set(methods) - {"__init__"}, (name, own, set(methods))
    for method, of_stub in methods.items():
        if not of_stub.decorator_list:
            assert parameters(of_stub) == signature(kind if method == "__init__" else getattr(kind, method)), (name, method)

# What people call is documented.
for name in vlmdiff.__all__:
    what = getattr(vlmdiff, name)
    assert name == "__version__" or (what.__doc__ or "").strip(), name
"#;
    succeeds(&lab, &format!("{HELP}{script}"), &[]);
}

#[test]
fn notebook_runs_and_shows_what_it_says() {
    let lab = Lab::empty();
    let notebook = project().join("docs/python.ipynb");
    let runner = project().join("tests/notebook.py");
    let mut command = python(&lab, &[runner.to_str().unwrap(), notebook.to_str().unwrap()]);
    let programs = Path::new(env!("CARGO_BIN_EXE_vlmdiff")).parent().unwrap().to_owned();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::iter::once(programs).chain(std::env::split_paths(&path));
    let ended = lab.ended(command.env("PATH", std::env::join_paths(path).unwrap()));
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    let compared = ended.stdout.trim().strip_suffix(" outputs are as stored").and_then(|n| n.parse::<u32>().ok());
    assert!(compared.is_some_and(|outputs| outputs >= 5), "{}", ended.stdout);
}
