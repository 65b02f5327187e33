#!/usr/bin/env python3
"""Times `vlmdiff flight`: a million light rows to clients in Python beside the CSV of `vlmdiff sql`, and the first row of a result; then
100 clients at once for a minute, each of which checks every answer, while the memory of the server is watched.

    python3 benches/flight.py [-n 5] [--rows 1000000] [--clients 100] [--seconds 60]

The rows have an id, a class, a split, a label, a score and a number. The clients are ADBC's driver, which is written in Go, and pyarrow's,
which is written in C++; both hand Arrow batches to Python. Their time is that from the statement to the last batch, over a connection that
exists. One server keeps in memory what it has read, as it does by default, another one reads the table each time. CSV is written to a file
by a process that is timed from outside. All run in turns; the first round is not counted.
"""
import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import peers
from measure import VLMDIFF, Failed, call, duration, environment, need_vlmdiff
from serving import memory

PIPELINE = """
name: wide
tables:
  scores: { stage: read, with: { path: rows.csv, id: image_id } }
  images: { stage: ingest, with: { dataset: folder, root: products, size: 64 } }
"""
ALL = "select * from scores"
# The bars: times as fast as CSV, and seconds to the first row.
TIMES, FIRST = 5, 0.030


def generate(folder: Path, rows: int) -> None:
    """Makes the tables."""
    chance = random.Random(7)
    with open(folder / "rows.csv", "w") as file:
        file.write("image_id,class,split,label,score,area\n")
        for row in range(rows):
            kind = f"class_{row % 30:02}"
            split, label = ("train", "false") if row % 3 else ("test", "true" if row % 2 else "false")
            file.write(f"{kind}/{split}/{row:07}.png,{kind},{split},{label},{chance.random():.6f},{row * 37 % 5000}\n")
    (folder / "wide.yaml").write_text(PIPELINE)
    call([VLMDIFF, "synth", "products", "--classes", "gear", "--train", "40", "--size", "64"])
    call([VLMDIFF, "run", "wide.yaml", "--quiet"])


def adbc(address: str):
    """Returns a function that runs a statement by ADBC's driver and returns a reader of its rows."""
    import adbc_driver_flightsql.dbapi

    cursor = adbc_driver_flightsql.dbapi.connect(f"grpc://{address}", autocommit=True).cursor()

    def run(statement: str):
        cursor.execute(statement)
        return cursor.fetch_record_batch()
    return run


def pyarrow(address: str):
    """Returns a function that runs a statement by pyarrow's client and returns a reader of its rows."""
    from flightsql import FlightSQLClient

    host, port = address.rsplit(":", 1)
    client = FlightSQLClient(host=host, port=int(port), insecure=True)

    def run(statement: str):
        return (chunk.data for chunk in client.do_get(client.execute(statement).endpoints[0].ticket))
    return run


CLIENTS = {"ADBC (Go)": adbc, "pyarrow (C++)": pyarrow}


def fetch(address: str, name: str) -> None:
    """Is run as a process of its own, by a Python with the clients: fetches all rows each time that a line is read."""
    run = CLIENTS[name](address)
    for _ in sys.stdin:
        started, processor = time.monotonic(), time.process_time()
        rows, first = 0, None
        for batch in run(ALL):
            first = first or time.monotonic() - started
            rows += batch.num_rows
        every, processor = time.monotonic() - started, time.process_time() - processor
        started = time.monotonic()
        next(iter(run("select image_id, score from scores limit 1")))
        one = time.monotonic() - started
        print(json.dumps({"rows": rows, "every": every, "first": first, "one": one, "processor": processor}), flush=True)


def load(address: str, clients: int, seconds: float, rows: int) -> None:
    """Is run as a process of its own: many clients ask for seconds, and check what they are told."""
    import adbc_driver_flightsql.dbapi as adbc

    until, done, wrong, latencies, lock = time.monotonic() + seconds, 0, [], [], threading.Lock()
    statements = [
        ("select count(*) from scores where class = ?", lambda: ("class_07",), lambda table: table[0][0].as_py() == rows // 30 + (rows % 30 > 7)),
        ("select image_id, pixels from images where split = 'train'", lambda: None, lambda table: len(table) == 40 and table["pixels"].type.shape == [64, 64, 3]),
        ("select * from scores limit 20000", lambda: None, lambda table: len(table) == min(20000, rows)),
        ("select class, max(score) as m from scores group by class order by m desc", lambda: None, lambda table: len(table) == 30),
    ]

    def client():
        nonlocal done
        with adbc.connect(f"grpc://{address}", autocommit=True) as connection, connection.cursor() as cursor:
            while time.monotonic() < until:
                sql, values, fits = random.choice(statements)
                started = time.monotonic()
                try:
                    cursor.execute(sql, values())
                    problem = None if fits(cursor.fetch_arrow_table()) else f"wrong: {sql}"
                except Exception as error:
                    problem = str(error)
                with lock:
                    done += 1
                    latencies.append(time.monotonic() - started)
                    wrong.extend([problem] if problem else [])

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"done": done, "wrong": len(wrong), "first": wrong[:3], "p50": statistics.median(latencies), "greatest": max(latencies)}))


def client(*words) -> list[str]:
    """Returns the command of a client."""
    return [str(word) for word in (peers.program("flightsql"), __file__, *words)]


def speed(servers: dict[str, tuple[subprocess.Popen, str]], options) -> bool:
    """Prints the times of all rows and of the first. Returns True if the bars are met."""
    fetching = {}
    for kind, (process, address) in servers.items():
        for name in CLIENTS:
            started = subprocess.Popen(client("--fetch", address, "--client", name), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            fetching[name, kind] = started, process.pid
    runs, csv = {key: [] for key in fetching}, []
    for _ in range(options.n + 1):
        for key, (process, pid) in fetching.items():
            before = processor_time(pid)
            process.stdin.write("\n")
            process.stdin.flush()
            line = process.stdout.readline()
            if not line:
                raise Failed("a client ended; its message is above")
            runs[key].append({**json.loads(line), "server": processor_time(pid) - before})
        started = time.monotonic()
        call([VLMDIFF, "sql", ALL, "--format", "csv", "-o", "rows_again.csv"])
        csv.append(time.monotonic() - started)
    for process, _ in fetching.values():
        process.stdin.close()
        process.wait()
    print(f"{options.rows:,} rows, medians of {options.n} rounds; as CSV {duration(statistics.median(csv[1:]))}\n")
    print("| client | the server | all rows | times as fast as CSV | first row of all | one row | processor time of client and server | bars |")
    print("|---|---|---|---|---|---|---|---|")
    met = []
    for (name, kind), times in runs.items():
        # The first round is not counted.
        times = times[1:]
        if any(one["rows"] != options.rows for one in times):
            raise Failed(f"a client has seen {times[0]['rows']:,} rows of {options.rows:,}")
        every, first, one, processor, server = (
            statistics.median(run[what] for run in times) for what in ("every", "first", "one", "processor", "server"))
        ratio = statistics.median(written / run["every"] for written, run in zip(csv[1:], times))
        met.append(ratio >= TIMES and max(first, one) <= FIRST)
        print(f"| {name} | {kind} | **{duration(every)}** | {ratio:.1f}x | {duration(first)} | {duration(one)} "
              f"| {duration(processor)}, {duration(server)} | ≥ {TIMES}x, ≤ {FIRST * 1000:.0f} ms: {'met' if met[-1] else '**missed**'} |")
    print()
    return any(met)


def processor_time(pid: int) -> float:
    """Returns the processor time of a process in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def many(address: str, pid: int, options) -> None:
    """Prints what many clients have seen, and the memory of the server."""
    def asked(seconds):
        done = subprocess.run(client("--load", address, "--clients", options.clients, "--seconds", seconds, "--rows", options.rows),
                              stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            raise Failed("the clients ended; their message is above")
        return json.loads(done.stdout)
    # The first statements fill caches of the allocator.
    warm, before = asked(options.seconds / 3), memory(pid)
    middle, at_middle = asked(options.seconds / 2), memory(pid)
    last, after = asked(options.seconds / 2), memory(pid)
    done = middle["done"] + last["done"]
    print(f"{done:,} statements of {options.clients} clients in {options.seconds:.0f} s: {done / options.seconds:.0f}/s, "
          f"half within {last['p50']:.2f} s, all within {max(middle['greatest'], last['greatest']):.1f} s")
    print(f"memory of the server {before:.0f} MiB at the beginning, {at_middle:.0f} MiB in the middle, {after:.0f} MiB at the end")
    for part in (warm, middle, last):
        if part["wrong"]:
            raise Failed(f"{part['wrong']} answers were wrong: {part['first']}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=5, help="rounds that are timed after the first")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--fetch", help=argparse.SUPPRESS)
    parser.add_argument("--client", choices=CLIENTS, help=argparse.SUPPRESS)
    parser.add_argument("--load", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fetch:
        return fetch(options.fetch, options.client)
    if options.load:
        return load(options.load, options.clients, options.seconds, options.rows)
    need_vlmdiff()
    if peers.say_missing("flightsql"):
        raise SystemExit(0)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        generate(Path(folder), options.rows)
        servers = {}
        try:
            for kind, arguments in {"keeps what it has read": [], "reads each time": ["--max-kept", "0"]}.items():
                command = [str(VLMDIFF), "flight", "--listen", "127.0.0.1:0", *arguments]
                server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
                servers[kind] = server, server.stdout.readline().strip().removeprefix("listening on grpc://")
            met = speed(servers, options)
            server, address = next(iter(servers.values()))
            many(address, server.pid, options)
            if server.poll() is not None:
                raise Failed(f"the server ended with {server.returncode}")
        finally:
            for server, _ in servers.values():
                server.send_signal(signal.SIGTERM)
                server.wait()
            os.chdir("/")
    raise SystemExit(not met and options.rows >= 1_000_000)


if __name__ == "__main__":
    main()
