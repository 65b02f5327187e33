#!/usr/bin/env python3
"""Times SQL over 100,000 light rows into pyarrow, by the Python package of vlmdiff and by that of DataFusion over the same Parquet files.

    python3 benches/python.py [-n 25] [--rows 100000]

Both run in one process, in interleaved rounds, the first of which is not counted. Each call opens a session, as `vlmdiff.sql` does;
DataFusion is timed with a session that is kept, too. vlmdiff checks every byte that it reads against its digest, DataFusion does not.
It needs the extension (`cargo build -p vlmdiff-python`) and the Python packages of the tests (`make tools`).
"""
import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import HERE, TARGET, VLMDIFF, Failed, need_vlmdiff

BAR = 1.2
PIPELINE = """
name: light
tables:
  light:
    stage: sql
    with:
      query: >
        select concat('row-', lpad(cast(i as varchar), 7, '0')) as id, concat('a photograph of part ', i % 1000) as text,
        i as number, i * 0.25 as score, i % 3 = 0 as flag from (select unnest(range(0, ROWS)) as i) order by id
"""
QUERIES = {
    "all columns": "select id, text, number, score, flag from light",
    "a filter": "select id, score from light where number % 7 = 0 and flag",
    "groups": "select text, count(*) as n, avg(score) as score from light group by text order by text",
}


def installed(folder: Path) -> None:
    """Lays the package out as an installation has it, and makes it importable."""
    extension = TARGET / "debug/lib_vlmdiff.so"
    if not extension.is_file():
        raise Failed(f"There is no {extension}. `cargo build -p vlmdiff-python` makes it.")
    (folder / "vlmdiff").mkdir()
    for file in (HERE.parent / "python/vlmdiff").glob("*.py"):
        (folder / "vlmdiff" / file.name).symlink_to(file)
    (folder / "vlmdiff/_vlmdiff.abi3.so").symlink_to(extension)
    sys.path[:0] = [str(folder), str(HERE.parent / ".tools/python")]
    try:
        import datafusion  # noqa: F401
    except ImportError:
        raise Failed("The Python package datafusion is not there. `make tools` fetches it, for Python 3.10 and later.")


def seconds(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=25, help="rounds")
    parser.add_argument("--rows", type=int, default=100_000)
    options = parser.parse_args()
    need_vlmdiff()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        installed(folder)
        import datafusion
        import vlmdiff

        (folder / "pipeline.yaml").write_text(PIPELINE.replace("ROWS", str(options.rows)))
        store = folder / "store"
        command = [VLMDIFF, "run", folder / "pipeline.yaml", "--store", store, "--quiet"]
        subprocess.run(command, check=True, env={**os.environ, "VLMDIFF_CACHE": str(folder / "cache")})

        def context():
            made = datafusion.SessionContext()
            made.register_parquet("light", str(store / "parts"))
            return made

        kept = context()
        print(f"{options.rows} rows, medians of {options.n} rounds in ms\n")
        print("| query | rows | vlmdiff | DataFusion | times | DataFusion, session kept |\n|---|---|---|---|---|---|")
        missed = []
        for name, query in QUERIES.items():
            ways = {
                "vlmdiff": lambda: vlmdiff.sql(query, store).arrow(),
                "datafusion": lambda: context().sql(query).to_arrow_table(),
                "kept": lambda: kept.sql(query).to_arrow_table(),
            }
            first = {way: work() for way, work in ways.items()}
            rows = first["vlmdiff"].num_rows
            sorted_rows = [sorted(map(tuple, map(dict.values, table.to_pylist()))) for table in first.values()]
            if not sorted_rows[0] == sorted_rows[1] == sorted_rows[2]:
                raise Failed(f"{query}: the rows differ: {[rows[:1] for rows in sorted_rows]}")
            times = {way: [] for way in ways}
            for _ in range(options.n):
                for way, work in ways.items():
                    times[way].append(seconds(work))
            ours, theirs, with_kept = (statistics.median(times[way]) * 1000 for way in ways)
            print(f"| {name} | {rows} | {ours:.1f} | {theirs:.1f} | {ours / theirs:.2f} | {with_kept:.1f} |", flush=True)
            if ours > BAR * theirs:
                missed.append(name)
        if missed:
            raise Failed(f"more than {BAR} times the time of DataFusion: {', '.join(missed)}")


if __name__ == "__main__":
    main()
