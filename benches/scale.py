#!/usr/bin/env python3
"""Computes how far one driver and its store go: runs of 1 to 1,000 workers over 10⁶ and 10⁸ photographs in a store on S3.

    python3 benches/scale.py               the simulation, from the costs below; a minute
    python3 benches/scale.py --measure     measures the costs on this machine first; minutes, and 4 GB of disk

The pipeline is that of a method with features: photographs, their features, anomaly maps, and a verdict from each map's score. Every
table is simulated task by task: the driver hands out one task at a time, a worker reads the rows' parts, computes, and writes a part, its
hashes and a record; the latency of each request is drawn from a distribution with a fixed seed. The driver's own work (plans,
publications) is computed from the costs. docs/scale.md says what follows.
"""
import argparse
import heapq
import math
import random
from dataclasses import dataclass

# Measured by costs.py: seconds and bytes, on two cores of an EPYC with a store on the local disk.
COSTS = {
    "list_s_per_row": 0.69e-6,         # a listed row: read, hashed, compared
    "plan_s_per_row": 0.99e-6,         # a row of a stale table: joined, given its key, looked up
    "plan_bytes_per_row": 363,         # memory of the driver while it plans the largest table
    "record_bytes_per_row": 32,
    "manifest_bytes_per_part": 68,
    "task_s": 1.15e-3,                 # of the driver for a task beside its rows; with the local disk's share of the commit
    "light_bytes_per_part": 114_140,   # fetched of a large part: its two ends, without the hashes
}

# Assumed: what S3 and machines of a cluster do.
LATENCY, SLOWEST = 0.030, 0.200        # seconds of a request: the median, and that of one in a hundred
STREAM = 80e6                          # bytes/s of one request
READS = 5_500                          # requests for objects in a second below one prefix
PAGE, PAGE_S = 1_000, 0.050            # names in an answer to a list request, and its seconds
NETWORK = 1.25e9                       # bytes/s of the driver's network
CORES = 8                              # of the driver

# Limits of a driver that people have.
MEMORY, DISK = 64 * 2**30, 10**12
PATIENCE = 600                         # seconds that a plan of one table may take
ID_BYTES, ID_LIMIT = 24, 2**31         # bytes of an id, and of all ids of a table: Arrow's text has 32-bit offsets

PART_ROWS = 256                        # rows of a task of a stage that is not quick, and of its part
GROUP, HASH = 32 * 2**10, 32           # bytes of a group, and of its hash


@dataclass(frozen=True)
class Table:
    """A table: the heavy bytes that it has and those that its tasks read, by row, and the seconds of a row."""
    name: str
    writes: float
    reads: float
    row_s: float


TABLES = [
    Table("images", 100e3, 0, 0.020),
    Table("features", 150e3, 100e3, 0.030),
    Table("maps", 128e3, 150e3, 0.010),
    Table("verdicts", 0, 0, 0.0001),
]


@dataclass(frozen=True)
class Layout:
    """How light columns of a heavy part are read: the whole part, or its ends and the hashes beside it."""
    name: str
    ranges: bool
    reads: int                         # parts that are read at a time
    records: int                       # records that are read at a time

    def light(self, table: Table) -> tuple[float, int, int]:
        """Returns what is read of a part for its light columns: bytes, requests, and round trips one after another."""
        whole = PART_ROWS * table.writes
        if not table.writes:
            return PART_ROWS * 40, 1, 1
        if not self.ranges or whole <= 2**20:
            return whole, 1, 1
        return COSTS["light_bytes_per_part"] + whole / GROUP * HASH, 4, 3


BEFORE = Layout("whole parts", False, CORES, 32)
AFTER = Layout("ranges of parts", True, 64, 64)


def latency(draw: random.Random) -> float:
    """Draws the seconds of a request: log-normal, with the assumed median, and longer than the slowest in one of a hundred."""
    return LATENCY * math.exp(draw.gauss(0, 1) * math.log(SLOWEST / LATENCY) / 2.326)


def execute(table: Table, rows: int, workers: int, layout: Layout) -> tuple[float, float]:
    """Simulates the tasks of a table; returns the seconds that they take and the share of them in which workers compute."""
    draw = random.Random(0)
    tasks = math.ceil(rows / PART_ROWS)
    idle = [0.0] * min(workers, tasks)  # the times at which workers are free; a list of equal numbers is a heap
    driver = end = 0.0
    read, gets, written = PART_ROWS * table.reads, 1 if table.reads else 0, PART_ROWS * table.writes
    for source in inputs(table) if not table.reads else []:
        size, _, trips = layout.light(source)
        read, gets = read + size, gets + trips
    requests = gets + (3 if layout.ranges and written > 2**20 else 2)
    io, computes = (read + written) / STREAM, PART_ROWS * table.row_s
    for _ in range(tasks):
        asks = heapq.heappop(idle)
        driver = max(driver, asks) + COSTS["task_s"]
        done = driver + io + sum(latency(draw) for _ in range(requests)) + computes
        end = max(end, done)
        heapq.heappush(idle, done)
    return end, tasks * computes / (end * workers)


def plan_s(table: Table, inputs: list[Table], rows: int, layout: Layout, known: bool) -> float:
    """Returns the seconds of a plan of a table whose rows are all stale; with `known`, of a table that was computed before."""
    parts = rows / PART_ROWS
    seconds = rows * (COSTS["plan_s_per_row"] if inputs else COSTS["list_s_per_row"])
    for source in inputs:
        size, requests, trips = layout.light(source)
        seconds += parts * max(size / NETWORK, (trips * LATENCY + size / STREAM) / layout.reads, requests / READS)
    if known:
        seconds += parts / PAGE * PAGE_S
        seconds += parts * max(LATENCY / layout.records, PART_ROWS * COSTS["record_bytes_per_row"] / NETWORK, 1 / READS)
    return seconds


def inputs(table: Table) -> list[Table]:
    at = TABLES.index(table)
    return TABLES[at - 1:at] if at else []


def copies(layout: Layout, rows: int) -> float:
    """Returns the bytes that a driver fetches, and has copies of, which did not write the parts itself."""
    return sum(rows / PART_ROWS * layout.light(table)[0] for table in TABLES if table.writes)


def listing_s(rows: int, layout: Layout) -> float:
    """Returns the seconds in which a run finds that no part is missing: it lists parts, and the hashes beside them."""
    objects = sum(rows / PART_ROWS * (2 if layout.ranges and table.writes else 1) for table in TABLES)
    return objects / PAGE * PAGE_S + sum(rows / PART_ROWS * COSTS["manifest_bytes_per_part"] for _ in TABLES) / NETWORK


def bounds(layout: Layout) -> list[tuple[str, float]]:
    """Returns the number of rows at which each limit is reached, the first one first."""
    plan = max(plan_s(table, inputs(table), 10**6, layout, True) for table in TABLES) / 10**6
    found = [
        (f"the driver's disk, {DISK / 1e12:.0f} TB of copies", DISK / copies(layout, 1)),
        (f"a plan of a table in {PATIENCE // 60} minutes", PATIENCE / plan),
        (f"a run in which nothing changed, in {PATIENCE // 60} minutes", PATIENCE / listing_s(1, layout)),
        (f"the driver's memory, {MEMORY >> 30} GiB", MEMORY / COSTS["plan_bytes_per_row"]),
        (f"ids of {ID_BYTES} bytes in a column of 2 GiB", ID_LIMIT / ID_BYTES),
    ]
    return sorted(found, key=lambda bound: bound[1])


def workers_fed(table: Table) -> float:
    """Returns the number of workers that one driver keeps busy."""
    return PART_ROWS * table.row_s / COSTS["task_s"]


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if count >= limit:
            return f"{count / limit:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


def rows_of(count: float) -> str:
    return f"{count / 1e6:.3g} M"


def show(header: list[str], lines: list[list[str]]) -> None:
    for line in (header, ["---"] * len(header), *lines):
        print(f"| {' | '.join(line)} |")
    print()


def report(all_workers: list[int], all_rows: list[int]) -> None:
    layouts = [BEFORE, AFTER]
    print("What gives first, in rows:\n")
    ends = [bounds(layout) for layout in layouts]
    show(["", *(layout.name for layout in layouts)],
          [[str(number + 1), *(f"{rows_of(found[number][1])}: {found[number][0]}" for found in ends)] for number in range(len(ends[0]))])
    print("Workers that one driver keeps busy, by the seconds of a row:\n")
    show(["table", "seconds of a row", "workers"], [[one.name, f"{one.row_s:g}", f"{workers_fed(one):,.0f}"] for one in TABLES])
    print("The driver of a store that others filled, as after a change of the last two tables:\n")
    lines = []
    for rows in all_rows:
        for layout in layouts:
            plans = [plan_s(one, inputs(one), rows, layout, True) for one in TABLES]
            lines.append([f"{rows:,}", layout.name, *map(duration, plans), duration(listing_s(rows, layout)), size(copies(layout, rows)),
                          size(rows * COSTS["plan_bytes_per_row"])])
    show(["rows", "layout", *(f"plan of {one.name}" for one in TABLES), "nothing changed", "fetched and kept", "memory"], lines)
    print("A first run: the whole time, and in brackets the share of the workers' time in which they compute:\n")
    lines = []
    for rows in all_rows:
        for layout in layouts:
            line = [f"{rows:,}", layout.name]
            for workers in all_workers:
                seconds = busy = 0.0
                for one in TABLES:
                    plan = plan_s(one, inputs(one), rows, layout, False)
                    ran, share = execute(one, rows, workers, layout)
                    seconds += plan + ran
                    busy += ran * share
                line.append(f"{duration(seconds)} ({busy / seconds:.0%})")
            lines.append(line)
    show(["rows", "layout", *(f"{workers:,} worker{'s' if workers > 1 else ''}" for workers in all_workers)], lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure the costs first, and compute with these")
    parser.add_argument("--workers", default="1,10,100,1000")
    parser.add_argument("--rows", default="1000000,100000000")
    options = parser.parse_args()
    if options.measure:
        import costs

        measured = costs.measure()
        show(["cost", "measured", "written down"], [[name, f"{value:.3g}", f"{COSTS[name]:.3g}"] for name, value in measured.items()])
        COSTS.update(measured)
    report(*([int(number) for number in numbers.split(",")] for numbers in (options.workers, options.rows)))


if __name__ == "__main__":
    main()
