#!/usr/bin/env python3
"""Loads `vlmdiff serve` with many clients at once, and checks every verdict.

    python3 benches/serving.py [--clients 200] [--seconds 60]

The pipeline is pipelines/inspect.yaml on generated products. Each client sends one photograph after the other over its own
connection. No photograph is sent twice: bytes behind the end of a PNG make it another one with the same pixels, so that its
verdict is known from `vlmdiff predict`. Prints photographs per second, latencies, photographs that were lost (no answer) or
wrong (another verdict), and the memory of the server and its worker at the beginning and at the end.
"""
import argparse
import http.client
import json
import os
import random
import re
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

from measure import HERE, VLMDIFF, Failed, call, environment, need_vlmdiff

PIPELINE = HERE.parent / "pipelines/inspect.yaml"
FIELDS = ("anomalous", "score", "p_value", "threshold")
CLASSES = ("gear", "wood")


def memory(pid: int) -> float:
    """Returns the memory of a process and of the processes that it has started, in MiB."""
    total, waiting = 0, [pid]
    while waiting:
        process = waiting.pop()
        try:
            status = Path(f"/proc/{process}/status").read_text()
            total += int(re.search(r"VmRSS:\s+(\d+)", status)[1])
            for task in Path(f"/proc/{process}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except (FileNotFoundError, TypeError):
            pass
    return total / 1024


@contextmanager
def server(folder: Path, *arguments):
    """Runs `vlmdiff serve` in a folder; gives its process and its address, and ends it."""
    command = [VLMDIFF, "serve", *arguments, "--listen", "127.0.0.1:0", "--folder", folder / "served"]
    process = subprocess.Popen(list(map(str, command)), cwd=folder, stdout=subprocess.PIPE, text=True, env=environment())
    try:
        yield process, process.stdout.readline().strip().removeprefix("listening on http://")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


class Load:
    """Photographs with the verdicts that are expected, and what the clients have seen."""

    def __init__(self, address: str, photographs: list[tuple[str, bytes, dict]]):
        self.address, self.photographs = address, photographs
        self.lock, self.count = threading.Lock(), 0
        self.latencies, self.lost, self.wrong, self.busy = [], [], [], 0

    def next(self) -> tuple[str, bytes, dict]:
        """Returns a photograph that was not sent yet."""
        with self.lock:
            self.count += 1
            kind, content, expected = self.photographs[self.count % len(self.photographs)]
            return kind, content + self.count.to_bytes(8, "big") + random.randbytes(8), expected

    def send(self, connection: http.client.HTTPConnection, kind: str, content: bytes, expected: dict):
        """Sends a photograph until it is judged, and checks its verdict."""
        while True:
            started = time.monotonic()
            connection.request("POST", f"/v1/predict?class={kind}", content, {"content-type": "image/png"})
            response = connection.getresponse()
            answer = json.loads(response.read())
            if response.status != 429:
                break
            with self.lock:
                self.busy += 1
            time.sleep(float(response.headers["retry-after"]))
        with self.lock:
            self.latencies.append(time.monotonic() - started)
            if response.status != 200 or any(answer[field] != expected[field] for field in FIELDS):
                self.wrong.append((response.status, answer, expected))

    def client(self, until: float):
        connection = http.client.HTTPConnection(self.address, timeout=120)
        while time.monotonic() < until:
            try:
                self.send(connection, *self.next())
            except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
                with self.lock:
                    self.lost.append(repr(error))
                connection.close()

    def run(self, clients: int, seconds: float) -> float:
        """Lets clients send photographs for some seconds. Returns the time until the last answer."""
        started = time.monotonic()
        threads = [threading.Thread(target=self.client, args=[started + seconds]) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.monotonic() - started


def expected(folder: Path) -> list[tuple[str, bytes, dict]]:
    """Returns photographs of each class with the verdicts of `predict`."""
    found = []
    for kind in CLASSES:
        files = sorted((folder / f"products/{kind}/test").glob("*/*.png"))
        command = [VLMDIFF, "predict", PIPELINE, "--set", f"images.root={folder / 'products'}", "--class", kind, "--json", *files]
        done = subprocess.run(list(map(str, command)), cwd=folder, env=environment(), capture_output=True, text=True)
        if done.returncode not in (0, 4):
            raise Failed(done.stderr)
        verdicts = [json.loads(line) for line in done.stdout.splitlines()]
        found += [(kind, Path(verdict["image_id"]).read_bytes(), verdict) for verdict in verdicts]
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--size", type=int, default=256, help="the side of the photographs in pixels")
    options = parser.parse_args()
    need_vlmdiff()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.chdir(folder)
        synth = ["synth", "products", "--classes", ",".join(CLASSES), "--train", "120", "--size", str(options.size)]
        call([VLMDIFF, *synth])
        root = f"images.root={folder / 'products'}"
        call([VLMDIFF, "run", PIPELINE, "--quiet", "--set", root])
        photographs = expected(folder)
        with server(folder, PIPELINE, "--set", root) as (process, address):
            # The first photographs load the network, and fill what is kept of earlier ones.
            warm = Load(address, photographs)
            warm.run(options.clients, options.seconds / 3)
            before = memory(process.pid)
            load = Load(address, photographs)
            took = load.run(options.clients, options.seconds)
            after = memory(process.pid)
        code = process.returncode
        judged = len(load.latencies)
        centiles = statistics.quantiles(load.latencies, n=100)
        print(f"{judged:,} photographs of {options.size}x{options.size} by {options.clients} clients in {took:.0f} s: {judged / took:.0f}/s")
        print(f"latency p50 {centiles[49]:.2f} s, p95 {centiles[94]:.2f} s, greatest {max(load.latencies):.2f} s")
        print(f"lost {len(load.lost)}, wrong {len(load.wrong)}, sent away by a full queue {load.busy}")
        print(f"memory of server and worker {before:.0f} MiB at the beginning, {after:.0f} MiB at the end; exit code {code}")
        for problem in [*load.lost[:3], *load.wrong[:3]]:
            print(problem)
        if load.lost or load.wrong or warm.lost or warm.wrong or code != 0:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
