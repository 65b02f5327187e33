#!/usr/bin/env python3
"""Times tasks on a cluster beside tasks on local workers, the submission of many tasks, and two workers beside one.

    python3 benches/cluster.py [--rounds 3] [--only overhead,submission,workers] [--quick]

Scheduler, two executors, driver and store are on this machine. The tasks are embeddings of captions by a tiny text encoder, one row a
task, so that a task is little but its own cost. The cost of a task is the difference of two tables of different lengths by the
difference of their tasks, in which the start of processes does not count.
"""
import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import tempfile
from pathlib import Path

from measure import VLMDIFF, Failed, need_vlmdiff

# The bars of the table: milliseconds of a task over a local one, seconds and MB of a submission, and two workers by one.
OVERHEAD, SUBMISSION, MEMORY, TWICE = 40, 5, 300, 1.8

TEXTS = """
name: texts
tables:
  images: {{ stage: ingest, with: {{ dataset: synthetic, size: 32, synthetic: {{ classes: [tile], train: {rows}, test_good: 1, test_per_defect: 1 }} }} }}
  captions: {{ stage: caption, from: [images], with: {{ model: template, text: 'a {{class}}' }} }}
  encoder:
    stage: train_text_encoder
    from: [images, captions]
    where: split = 'train'
    with:
      config: {{ vocab_size: 300, hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 2, max_position_embeddings: 24, projection_dim: 8 }}
      image_widths: [8, 8]
      training: {{ steps: 4, batch_size: 4, lr: 1.0e-3, log_every: 2 }}
  many: {{ stage: encode_text, from: [captions, encoder] }}
  few: {{ stage: encode_text, from: [captions, encoder], where: "image_id >= 'tile/train/good/{first}'" }}
"""

PICTURES = """
name: pictures
tables:
  images: {{ stage: ingest, with: {{ dataset: synthetic, size: 32, synthetic: {{ classes: [tile], train: {rows}, test_good: 1, test_per_defect: 1 }} }} }}
"""

NETWORK = """
name: network
tables:
  images: {{ stage: ingest, with: {{ dataset: synthetic, size: 128, synthetic: {{ classes: [tile], train: {rows}, test_good: 1, test_per_defect: 1 }} }} }}
  autoencoder:
    stage: train_autoencoder
    from: [images]
    where: split = 'train'
    with:
      config: {{ block_out_channels: [32, 64, 64], layers_per_block: 2, norm_num_groups: 8 }}
      training: {{ steps: 2, batch_size: 2, lr: 1.0e-3, log_every: 2 }}
  latents: {{ stage: encode_latents, from: [images, autoencoder] }}
"""


class Lab:
    """A folder with a pipeline and a store."""

    def __init__(self, folder: Path, pipeline: str):
        self.folder = folder
        folder.mkdir()
        (folder / "pipeline.yaml").write_text(pipeline)
        self.env = {**os.environ, "VLMDIFF_CACHE": str(folder / "cache")}
        self.env.pop("VLMDIFF_STORE", None)

    def start(self, *words, **more) -> subprocess.Popen:
        words = [VLMDIFF, *map(str, words)]
        return subprocess.Popen(words, cwd=self.folder, env=self.env, stdin=subprocess.DEVNULL, text=True, **more)

    def run(self, *words) -> dict[str, float]:
        """Runs the pipeline. Returns the seconds of each table that was computed."""
        process = self.start("run", "pipeline.yaml", "--quiet", *words, stderr=subprocess.PIPE)
        said = process.communicate()[1]
        if process.returncode != 0:
            raise Failed(f"vlmdiff run {' '.join(map(str, words))} ended with {process.returncode}: {said[-2000:]}")
        log = max((self.folder / ".vlmdiff/runs").iterdir(), key=lambda file: file.name)
        events = [json.loads(line) for line in log.read_text().splitlines()[1:]]
        started = {event["table"]: event["at_ms"] for event in events if event["event"] == "table_started"}
        ended = {event["table"]: event["at_ms"] for event in events if event["event"] == "table_published"}
        return {table: (at - started[table]) / 1000 for table, at in ended.items()}

    def until(self, process: subprocess.Popen, pipe, text: str) -> str:
        """Returns the first line of a process that contains a text."""
        for line in pipe:
            if text in line:
                return line
        raise Failed(f"no `{text}`: the process ended with {process.wait()}")


class Cluster:
    """A scheduler and two executors with one thread each."""

    def __init__(self, lab: Lab, executors=2):
        scheduler = lab.start("cluster", "scheduler", "--bind", "127.0.0.1:0", stdout=subprocess.PIPE)
        self.processes = [scheduler]
        self.url = lab.until(scheduler, scheduler.stdout, "listening on").split()[-1]
        for _ in range(executors):
            words = ["cluster", "executor", "--scheduler", self.url, "--device", "cpu", "--threads", 1]
            executor = lab.start(*words, stderr=subprocess.PIPE)
            self.processes.append(executor)
            lab.until(executor, executor.stderr, "takes tasks of")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()


def cost(lab: Lab, rows: dict[str, int], *words) -> float:
    """Returns the milliseconds of a task."""
    seconds = lab.run("--task-rows", 1, "--force", "many", "--force", "few", *words)
    return 1000 * (seconds["many"] - seconds["few"]) / (rows["many"] - rows["few"])


def overhead(folder: Path, rounds: int, quick: bool):
    many, few = (60, 20) if quick else (600, 100)
    lab = Lab(folder / "overhead", TEXTS.format(rows=many, first=f"{many - few:03}"))
    lab.run("--workers", 2, "--threads", 2)
    counts = {table: count(lab, table) for table in ("many", "few")}
    local, remote = [], []
    with Cluster(lab) as cluster:
        for _ in range(rounds + 1):
            local.append(cost(lab, counts, "--workers", 2, "--threads", 2))
            remote.append(cost(lab, counts, "--cluster", cluster.url))
    # The first round is not counted.
    local, remote = statistics.median(local[1:]), statistics.median(remote[1:])
    print(f"| a task on two local workers | {local:.1f} ms | |")
    print(f"| a task on two executors | {remote:.1f} ms | |")
    bar("more of a task on two executors", remote - local, "ms", at_most=OVERHEAD)


def count(lab: Lab, table: str) -> int:
    done = subprocess.run([VLMDIFF, "sql", f"select count(*) from {table}", "--format", "csv"], cwd=lab.folder, env=lab.env,
                          capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def submission(folder: Path, _rounds: int, quick: bool):
    tasks = 500 if quick else 10_000
    # Defects add some pictures, whose tasks are a second job.
    lab = Lab(folder / "submission", PICTURES.format(rows=tasks))
    with Cluster(lab, executors=0) as cluster:
        driver = lab.start("run", "pipeline.yaml", "--cluster", cluster.url, "--task-rows", 1, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT)
        line = lab.until(driver, driver.stdout, "went to the cluster in")
        peak = int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{driver.pid}/status").read_text())[1]) / 1000
        driver.send_signal(signal.SIGINT)
        driver.stdout.read()
        driver.wait()
    submitted, seconds = re.search(r"(\d+) tasks went to the cluster in ([\d.]+) s", line).groups()
    bar(f"submission of {submitted} tasks", float(seconds), "s", at_most=SUBMISSION)
    bar("memory of the driver", peak, "MB", at_most=MEMORY)


def workers(folder: Path, rounds: int, quick: bool):
    lab = Lab(folder / "workers", NETWORK.format(rows=16 if quick else 160))
    lab.run("--threads", 1)
    one, two = [], []
    for _ in range(1 if quick else rounds):
        force = ["--force", "latents", "--task-rows", 4, "--batch-size", 4]
        one.append(lab.run(*force, "--workers", 1, "--threads", 1)["latents"])
        two.append(lab.run(*force, "--workers", 2, "--threads", 2)["latents"])
    one, two = statistics.median(one), statistics.median(two)
    print(f"| latents on one worker of one thread | {one:.1f} s | |")
    print(f"| latents on two workers of one thread | {two:.1f} s | |")
    bar("two workers by one", one / two, "×", at_least=TWICE)


def bar(what: str, value: float, unit: str, at_most=None, at_least=None):
    held = (at_most is None or value <= at_most) and (at_least is None or value >= at_least)
    limit = f"at most {at_most}" if at_most is not None else f"at least {at_least}"
    print(f"| {what} | {value:.2f} {unit} | {limit}: {'held' if held else '**missed**'} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = {"overhead": overhead, "submission": submission, "workers": workers}
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(known), help=f"some of {','.join(known)}")
    parser.add_argument("--quick", action="store_true", help="small versions, which show that everything works")
    options = parser.parse_args()
    unknown = [name for name in options.only.split(",") if name not in known]
    if unknown:
        parser.error(f"no scenario {unknown[0]}; there are {', '.join(known)}")
    need_vlmdiff()
    print("| what | value | bar |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only.split(","):
            known[name](Path(folder), options.rounds, options.quick)


if __name__ == "__main__":
    main()
