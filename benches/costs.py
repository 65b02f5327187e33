"""Measures what planning, tasks and commits cost, by the real program on tables of two sizes. `scale.py` computes with these costs."""
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import peers
from measure import HERE, VLMDIFF, Failed, System, environment
from pipelines import READ, row_wise, yaml

SMALL, LARGE = 100_000, 1_000_000
# Rows of a task, and so of a part, by default.
PART_ROWS = 256
# The number of tasks from which the cost of one is measured, and how many times fewer there are in the other run.
TASKS, MORE = 1_024, 16
# Bytes of a row's heavy column where the bytes that planning fetches are measured, and the rows: 20 parts of 4 MiB.
HEAVY, HEAVY_ROWS = 16_384, 20 * PART_ROWS
TOOLS = HERE.parent / ".tools/python"

PICTURES = """import sys
import numpy as np, pyarrow as pa
WIDTH = %d
schema = pa.schema([("id", pa.string()), ("n", pa.int64()), ("picture", pa.list_(pa.uint8(), WIDTH))])
with pa.ipc.new_stream(sys.stdout.buffer, schema) as answers:
    for batch in pa.ipc.open_stream(sys.stdin.buffer):
        n = pa.array([len(text) for text in batch["text"].to_pylist()], pa.int64())
        random = np.random.Generator(np.random.SFC64(int(batch["id"][0].as_py()[4:])))
        pixels = pa.array(random.integers(0, 256, len(n) * WIDTH, dtype=np.uint8))
        columns = [batch["id"], n, pa.FixedSizeListArray.from_arrays(pixels, WIDTH)]
        answers.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
        sys.stdout.flush()
""" % HEAVY


def light(added=0) -> str:
    """Returns a pipeline of two row-wise tables over a file of rows. A change of `added` makes both stale."""
    return yaml([
        READ,
        row_wise("lengths", "rows", f"select id, length(text) + {added} as n from rows"),
        row_wise("doubled", "lengths", "select id, 2 * n as n from lengths"),
    ])


def heavy(python, added=0) -> str:
    """Returns a pipeline of a table with a heavy column and one that reads a light column of it."""
    with_ = f'run: "{python} pictures.py", files: [pictures.py], output: {{ n: int64, picture: "uint8[{HEAVY}]" }}'
    return yaml([
        READ,
        f"pictures: {{ stage: command, from: [rows], with: {{ {with_} }} }}",
        row_wise("lengths", "pictures", f"select id, n + {added} as n from pictures"),
    ])


class Toy:
    """A folder with a file of rows and a pipeline, and the runs of vlmdiff in it."""

    def __init__(self, folder: Path, rows: int, text: str, env={}):
        folder.mkdir()
        self.folder, self.env = folder, {"VLMDIFF_CACHE": str(folder / "cache"), **env}
        self.write(text)
        python = [peers.pyarrow(), HERE / "toys/rows.py", "rows.parquet", str(rows)]
        subprocess.run(python, cwd=folder, check=True, env={**environment(), **self.env})

    def write(self, text: str):
        (self.folder / "pipeline.yaml").write_text(text)

    def time(self, *words: str):
        return System("vlmdiff", self.folder, [VLMDIFF, *words], env=self.env).run(0)

    def run(self, *more: str):
        return self.time("run", "pipeline.yaml", "--quiet", *more)

    def bytes(self, below: str, ending="") -> int:
        return sum(file.stat().st_size for file in (self.folder / below).rglob(f"*{ending}") if file.is_file())


def planning(work: Path) -> dict[str, float]:
    """Returns seconds and bytes per row of plans, from two sizes."""
    runs = {}
    for rows in (SMALL, LARGE):
        toy = Toy(work / f"light-{rows}", rows, light())
        first = toy.run()
        fresh = toy.run()
        toy.write(light(1))
        runs[rows] = first, fresh, toy.time("plan", "pipeline.yaml")
        records = toy.bytes(".vlmdiff/computed") / (3 * rows)
        shutil.rmtree(toy.folder)

    def slope(of):
        return (of(runs[LARGE]) - of(runs[SMALL])) / (LARGE - SMALL)

    listing = slope(lambda of: of[1].wall)
    return {
        "list_s_per_row": listing,
        # Two of the three tables are stale.
        "plan_s_per_row": (slope(lambda of: of[2].wall) - listing) / 2,
        "plan_bytes_per_row": slope(lambda of: of[2].peak) * 2**20,
        "record_bytes_per_row": records,
    }


def tasks(work: Path) -> dict[str, float]:
    """Returns the time of a task beside its rows, and the bytes of its part in a manifest, from runs with few and with many tasks."""
    seconds, manifest = [], []
    toy = Toy(work / "tasks", TASKS * PART_ROWS, yaml([READ]))
    for rows in (PART_ROWS, MORE * PART_ROWS):
        walls = []
        for _ in range(3):
            shutil.rmtree(toy.folder / ".vlmdiff", ignore_errors=True)
            walls.append(toy.run("--task-rows", str(rows)).wall)
        seconds.append(min(walls))
        manifest.append(toy.bytes(".vlmdiff/published"))
    fewer = TASKS - TASKS / MORE
    return {"task_s": (seconds[0] - seconds[1]) / fewer, "manifest_bytes_per_part": (manifest[0] - manifest[1]) / fewer}


@contextmanager
def s3():
    """Starts an S3 server on this machine; returns the variables by which it is reached."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    env = {**environment(), "PYTHONPATH": str(TOOLS)}
    server = subprocess.Popen([peers.pyarrow(), "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], env=env,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT"))
                break
            except OSError:
                time.sleep(0.1)
        else:
            raise Failed("the S3 server did not start")
        yield {"VLMDIFF_STORE": "s3://bucket/store", "AWS_ENDPOINT": f"http://127.0.0.1:{port}", "AWS_ALLOW_HTTP": "true",
               "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1", "PYTHONPATH": str(TOOLS)}
    finally:
        server.terminate()
        server.wait()


def ranges(work: Path) -> dict[str, float]:
    """Returns the bytes of a part with a heavy column, and those of it that a plan fetches which reads a light one."""
    with s3() as env:
        toy = Toy(work / "heavy", HEAVY_ROWS, heavy(peers.pyarrow()), env)
        (toy.folder / "pictures.py").write_text(PICTURES)
        toy.run("--task-rows", str(PART_ROWS))
        shutil.rmtree(toy.folder / "cache")
        toy.write(heavy(peers.pyarrow(), 1))
        toy.time("plan", "pipeline.yaml")
        hashes = toy.bytes("cache/objects", ".groups")
    return {"light_bytes_per_part": (toy.bytes("cache/objects/parts") - hashes) / (HEAVY_ROWS / PART_ROWS)}


def measure() -> dict[str, float]:
    """Returns all costs that this machine can measure."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        costs = {**planning(work), **tasks(work)}
        if (TOOLS / "moto").exists():
            costs |= ranges(work)
        return costs
