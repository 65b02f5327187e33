#!/usr/bin/env python3
"""Times one photograph more: in a bank of many photographs, and judged by a process that starts for it or by a server.

    python3 benches/growing.py [--photographs 20000] [--rounds 5]

The bank has the nearest patches of `--photographs` generated pictures of 64x64, 16 of each. In each round a run finds nothing new, and
another one after a picture was added; the seconds of its tables are those of `stage_runs`. Those of `features` are the start of a worker
with its network, and the forward pass. The inspector is pipelines/inspect.yaml on pictures of 512x512, and each round judges one by
`vlmdiff predict`. Then one client sends 50 others to `vlmdiff serve`, one after another; the seconds of its tables are the medians of its
last batches, and those of `anomaly_maps` are the network and the search. The network is EfficientNet-Lite0, of which `python3 setup/fetch.py weights` fetches the weights.
"""
import argparse
import http.client
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from measure import HERE, VLMDIFF, Failed, System, call, need_vlmdiff
from serving import memory, server

INSPECTOR = HERE.parent / "pipelines/inspect.yaml"
CLASS, SERVED = "gear", 50
BANK = """name: growing
tables:
  images: { stage: ingest, with: { dataset: folder, root: products, size: 64 } }
  features:
    stage: extract
    from: [images]
    with: { extractor: efficientnet-lite0, layers: [16] }
  bank: { stage: fit, from: [features], with: { method: { knn: { neighbors: 3, distance: euclidean } } } }
"""


def products(folder: Path, side: int, train: int, seed: int) -> list[Path]:
    """Makes good photographs; returns them in the order of their names."""
    call([VLMDIFF, "synth", folder, "--size", side, "--classes", CLASS, "--train", train, "--test-good", 2, "--test-per-defect", 1,
          "--seed", seed])
    return sorted((folder / CLASS / "train/good").iterdir())


def by_table(folder: Path, condition: str) -> dict[str, list[float]]:
    """Returns the seconds of tables in the runs that meet a condition."""
    query = f"select \"table\", seconds from stage_runs where {condition}"
    seconds: dict[str, list[float]] = {}
    for row in map(json.loads, call([VLMDIFF, "sql", query, "--store", folder / "store", "--format", "json"]).splitlines()):
        seconds.setdefault(row["table"], []).append(row["seconds"])
    return seconds


def medians(seconds: dict[str, list[float]]) -> str:
    return ", ".join(f"{table} {statistics.median(of):.2f} s" for table, of in sorted(seconds.items()))


def grow(folder: Path, photographs: int, rounds: int):
    """Adds a photograph in each round; prints the medians."""
    first = products(folder / "products", 64, photographs, 3)[0]
    more = products(folder / "more", 64, rounds + 1, 4)
    (folder / "growing.yaml").write_text(BANK)
    run = [VLMDIFF, "run", "growing.yaml", "--store", "store", "--quiet"]
    add = lambda round: shutil.copy(more[round], first.with_name(f"more-{round}.png"))
    same, another = System("vlmdiff", folder, run), System("vlmdiff", folder, run, add)
    same.run(0)
    seconds: dict[str, list[float]] = {}
    for round in range(rounds + 1):
        runs = [same.attempt(round), another.attempt(round)]
        # The first round is not counted.
        if round > 0:
            for system, measured in zip((same, another), runs):
                system.runs.append(measured)
            for table, of in by_table(folder, "run = (select max(run) from stage_runs)").items():
                seconds.setdefault(table, []).extend(of)
    print(f"| a bank of {photographs:,}, nothing changed | {same.median():.2f} s | {same.median('peak'):.0f} MiB | |")
    print(f"| a photograph more | {another.median():.2f} s | {another.median('peak'):.0f} MiB | {medians(seconds)} |")


def judge(folder: Path, rounds: int):
    """Judges another photograph in each round by a process of its own, and further ones by a server; prints the medians."""
    # They are too few for a threshold, so that no verdict is an alarm, which would be another exit code.
    products(folder / "photographs", 512, 60, 3)
    new = products(folder / "new", 512, rounds + SERVED + 2, 4)
    (folder / "inspect.yaml").write_text(INSPECTOR.read_text())
    System("vlmdiff", folder, [VLMDIFF, "run", "inspect.yaml", "--store", "store", "--quiet"]).run(0)
    predict = lambda round: [VLMDIFF, "predict", "inspect.yaml", "--store", "store", new[round]]
    cold = System("vlmdiff", folder, predict)
    runs = [cold.run(round) for round in range(rounds + 1)]
    cold.runs = runs[1:]
    print(f"| `predict` of one photograph, by a process that starts | {cold.median():.2f} s | {cold.median('peak'):.0f} MiB | |")
    serve(folder, new[rounds + 1:])


def serve(folder: Path, photographs: list[Path]):
    """Sends photographs to a server, one after another; prints the median and the 95th percentile of all but the first."""
    seconds = []
    with server(folder, "inspect.yaml", "--store", "store") as (process, address):
        connection = http.client.HTTPConnection(address, timeout=120)
        for photograph in photographs:
            content, started = photograph.read_bytes(), time.monotonic()
            connection.request("POST", f"/v1/predict?class={CLASS}", content, {"content-type": "image/png"})
            response = connection.getresponse()
            answer = response.read().decode()
            seconds.append(time.monotonic() - started)
            if response.status != 200:
                raise Failed(f"serve answered {response.status} to {photograph}: {answer}")
        taken = memory(process.pid)
    median, late = statistics.median(seconds[1:]), statistics.quantiles(seconds[1:], n=20)[18]
    parts = medians(by_table(folder, "pipeline = 'inspect_serve' and computed > 0"))
    print(f"| `serve`, {len(seconds) - 1} photographs of one client | {median:.3f} s, p95 {late:.3f} s | {taken:.0f} MiB | {parts} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=int, default=20000, help="the photographs of the bank")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    need_vlmdiff()
    print("| | wall time | memory | of it, by table |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        for name in ("bank", "inspector"):
            (Path(temporary) / name).mkdir()
        grow(Path(temporary) / "bank", options.photographs, options.rounds)
        judge(Path(temporary) / "inspector", options.rounds)


if __name__ == "__main__":
    main()
