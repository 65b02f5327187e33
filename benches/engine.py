#!/usr/bin/env python3
"""Times runs of the engine and of its peers in which there is little or nothing to compute.

    python3 benches/engine.py [-n 5] [--only start,eight,…] [--quick] [--output FOLDER]

prints a table, and writes every single run (engine.json) and a picture (planning.svg) to the folder. A peer that is not installed
is left out. benches/README.md says what each scenario does.
"""
import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import peers
import pipelines
from measure import HERE, TARGET, VLMDIFF, Bar, Failed, Scenario, System, environment, need_vlmdiff, table
from plot import plot

DVC, SNAKEMAKE = peers.program("dvc", "dvc"), peers.program("snakemake", "snakemake")
PYTHON = peers.pyarrow()
HF = [peers.program("hfdatasets"), "hf_rows.py"]
PIXELTABLE = [peers.program("pixeltable"), "pixeltable_rows.py"]
RUN, REPRO, SNAKE = [VLMDIFF, "run", "pipeline.yaml", "--quiet"], [DVC, "repro", "-q"], [SNAKEMAKE, "-q", "all", "-c1"]

TABLES, ROWS, IMAGES, APPENDED, TASK = 200, 20_000, 20_000, 10, 256
SIZES = [10_000, 30_000, 100_000, 150_000, 300_000, 1_000_000]
# The sizes at which plans and peers are timed too, with the bars of a run and of a plan. Appended rows are computed at the first alone; at the second it takes minutes.
COMPARED = {
    150_000: {"run": Bar(seconds=0.5), "plan": Bar(seconds=0.5)},
    1_000_000: {"run": Bar(seconds=3, peak=500), "plan": Bar(seconds=3, peak=600)},
}


class Bench:
    """Writes toys below a folder. Each scenario is a method that yields the systems to time."""

    def __init__(self, work: Path, output: Path):
        self.work, self.output = work, output
        self.env = {"VLMDIFF_CACHE": str(work / "cache")}

    def folder(self, name: str, file: str = "", text: str = "") -> Path:
        """Makes a folder with the toys and an engine's file, under git as projects are."""
        folder = self.work / name
        shutil.copytree(HERE / "toys", folder)
        if file:
            (folder / file).write_text(text)
        git = ["git", "-c", "user.name=bench", "-c", "user.email=bench@localhost"]
        call([*git, "init", "-q"], folder)
        call([*git, "commit", "-q", "--allow-empty", "-m", "toys"], folder)
        if file == "dvc.yaml" and peers.installed("dvc"):
            call([DVC, "init", "-q"], folder)
            for option in ("analytics", "check_update", "autostage"):
                call([DVC, "config", f"core.{option}", "false"], folder)
        return folder

    def rows(self, folder: Path, n: int, file="rows.parquet"):
        """Writes N rows (id, text). Without pyarrow, vlmdiff writes them; the file is larger, because it is not compressed."""
        if PYTHON:
            return call([PYTHON, "rows.py", file, n], folder)
        store = self.work / "rows-store"
        if not store.exists():
            (folder / "store.yaml").write_text('tables: { one: { stage: sql, with: { query: "select 1 as n" } } }')
            call([VLMDIFF, "run", "store.yaml", "--store", store, "--quiet"], folder, self.env)
        numbers = f"(select unnest(range(0, {n})) as i)"
        columns = "concat('row-', lpad(cast(i as varchar), 7, '0')) as id, concat('a photograph of part ', i) as text"
        query = f"select {columns} from {numbers} order by id"
        call([VLMDIFF, "sql", query, "--store", store, "--output", file], folder, self.env)

    def vlmdiff(self, folder: Path, command=RUN, **more) -> System:
        return System("vlmdiff", folder, command, env=self.env, **more)

    def python(self, folder: Path, **more) -> System:
        """Returns vlmdiff with a program in Python, which needs pyarrow."""
        return self.vlmdiff(folder, left_out="" if PYTHON else "pyarrow not installed", **more)

    def warm(self, systems: dict[str, System]):
        """Runs each system once, so that the timed runs find its results."""
        for system in systems.values():
            system.attempt(-1, warm=True)

    def start(self):
        here = self.folder("start")
        commands = {"vlmdiff": VLMDIFF, "DVC": DVC, "Snakemake": SNAKEMAKE}
        systems = {name: System(name, here, [program, "--version"]) for name, program in commands.items()}
        yield Scenario("start of the process", systems, Bar(seconds=0.03))

    def eight(self):
        as_commands = lambda train=1: pipelines.eight_commands(PYTHON, train)
        commands = self.folder("eight-commands", "pipeline.yaml", as_commands())
        sql = self.folder("eight-sql", "pipeline.yaml", pipelines.eight_queries())
        dvc = self.folder("eight-dvc", "dvc.yaml", pipelines.eight_dvc(PYTHON))
        snakemake = self.folder("eight-snakemake", "Snakefile", pipelines.eight_snakemake(PYTHON))
        for folder in (dvc, snakemake):
            (folder / "params.yaml").write_text(pipelines.parameters())

        def systems(parameter=None):
            def changed(folder, file, text):
                def prepare(round):
                    (folder / "runs.log").unlink(missing_ok=True)
                    if parameter:
                        (folder / file).write_text(text(parameter + round))
                return prepare

            logged = lambda folder: lambda: len(lines(folder / "runs.log"))
            value = pipelines.parameters
            return {
                "commands": self.python(
                    commands, prepare=changed(commands, "pipeline.yaml", as_commands), count=logged(commands)),
                "SQL": self.vlmdiff(
                    sql, prepare=changed(sql, "pipeline.yaml", pipelines.eight_queries), count=lambda: len(computed(sql))),
                "DVC": System("DVC", dvc, REPRO, changed(dvc, "params.yaml", value), logged(dvc)),
                "Snakemake": System("Snakemake", snakemake, SNAKE, changed(snakemake, "params.yaml", value), logged(snakemake)),
            }

        self.warm(systems())
        yield Scenario("8 tables, nothing changed", systems(), Bar(seconds=0.06, share=1 / 20, count=0), "ran")
        yield Scenario("8 tables, a parameter in the middle changed", systems(100), Bar(count=4), "ran")

    def many(self):
        commands = self.folder("many-commands", "pipeline.yaml", pipelines.many_commands(TABLES))
        self.rows(commands, 10, "seed.parquet")
        sql = self.folder("many-sql", "pipeline.yaml", pipelines.many_queries(TABLES))
        dvc = self.folder("many-dvc", "dvc.yaml", pipelines.many_dvc(TABLES))
        snakemake = self.folder("many-snakemake", "Snakefile", pipelines.many_snakemake(TABLES))
        systems = {
            "commands": self.vlmdiff(commands), "SQL": self.vlmdiff(sql),
            "DVC": System("DVC", dvc, REPRO), "Snakemake": System("Snakemake", snakemake, SNAKE),
        }
        self.warm(systems)
        yield Scenario(f"{TABLES} tables, nothing changed", systems, Bar(seconds=0.2))

    def appended(self):
        sql = self.folder("rows-sql", "pipeline.yaml", pipelines.row_query())
        command = self.folder("rows-command", "pipeline.yaml", pipelines.row_command(PYTHON))
        stage = pipelines.one_dvc(f"{PYTHON} dvc_rows.py", ["dvc_rows.py", "rows.parquet"], "lengths.parquet")
        dvc, hf, pixeltable = self.folder("rows-dvc", "dvc.yaml", stage), self.folder("rows-hf"), self.folder("rows-pixeltable")
        for folder in (sql, command, dvc, hf):
            self.rows(folder, ROWS)
        rows = lambda round: ROWS + APPENDED * (round + 1)
        appended = lambda folder: lambda round: self.rows(folder, rows(round))
        called = lambda folder: lambda: int((folder / "calls.txt").read_text())
        systems = {
            "SQL": self.vlmdiff(sql, prepare=appended(sql), count=lambda: computed(sql)["lengths"]),
            "Python": self.python(command, prepare=appended(command), count=lambda: computed(command)["lengths"]),
            "DVC": System("DVC", dvc, REPRO, appended(dvc), called(dvc)),
            "HF": System("HF datasets", hf, HF, appended(hf), called(hf)),
            "Pixeltable": System("Pixeltable", pixeltable, lambda round: [*PIXELTABLE, rows(round)], count=called(pixeltable)),
        }
        try:
            self.warm(systems)
            yield Scenario(f"{ROWS:,} rows, {APPENDED} appended", systems, Bar(seconds=0.3, count=APPENDED), "rows")
        finally:
            # Pixeltable leaves its database server running.
            for pid in lines(pixeltable / "pixeltable/pgdata/postmaster.pid")[:1]:
                os.kill(int(pid), signal.SIGINT)

    def killed(self):
        ours = self.folder("killed", "pipeline.yaml", pipelines.row_command(PYTHON))

        def system(engine, folder, command, leftovers, **more):
            """Returns a system that is killed after half of the rows, each time at another place in a task; the next run is timed."""
            calls, env = folder / "calls.bin", {**self.env, "CALLS": "calls.bin"}

            def prepare(round):
                shutil.rmtree(folder / leftovers, ignore_errors=True)
                calls.unlink(missing_ok=True)
                process = subprocess.Popen(command, cwd=folder, env={**environment(), **env}, start_new_session=True,
                                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                while process.poll() is None and (not calls.exists() or calls.stat().st_size < ROWS // 2 + 50 * round):
                    time.sleep(0.001)
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

            self.rows(folder, ROWS)
            return System(engine, folder, command, prepare, lambda: calls.stat().st_size - ROWS, env, **more)

        yield Scenario(f"{ROWS:,} slow rows, killed in the middle, run again", {
            "vlmdiff": system("vlmdiff", ours, RUN, ".vlmdiff", left_out="" if PYTHON else "pyarrow not installed"),
            "HF": system("HF datasets", self.folder("killed-hf"), HF, "cache"),
        }, Bar(at_most=TASK), "rows again")

    def images(self):
        ours = self.folder("images", "pipeline.yaml", pipelines.INGEST)
        stage = pipelines.one_dvc("find photographs -name '*.png' | wc -l > n.txt", ["photographs"], "n.txt")
        dvc = self.folder("images-dvc", "dvc.yaml", stage)
        synth = "synth pictures --size 32 --classes tile --train 20 --test-good 1 --test-per-defect 1"
        call([VLMDIFF, *synth.split()], self.work)
        pictures = sorted((self.work / "pictures/tile/train/good").glob("*.png"))

        def add(folder, n):
            good = folder / "photographs/tile/train/good"
            good.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(pictures[n % len(pictures)], good / f"{n:06}.png")

        for folder in (ours, dvc):
            for n in range(IMAGES):
                add(folder, n)
        # A file that changed within the last two seconds is hashed again by the next run.
        time.sleep(3)
        count = lambda: computed(ours).get("images", 0)
        unchanged = {"vlmdiff": self.vlmdiff(ours, count=count), "DVC": System("DVC", dvc, REPRO)}
        self.warm(unchanged)
        self.warm(unchanged)
        yield Scenario(f"a folder of {IMAGES:,} images, nothing changed", unchanged, Bar(seconds=0.5, count=0), "rows")
        added = self.vlmdiff(ours, prepare=lambda round: add(ours, IMAGES + round), count=count)
        yield Scenario(f"a folder of {IMAGES:,} images, one added", {"vlmdiff": added}, Bar(count=1), "rows")

    def planning(self):
        points = []
        for n in SIZES:
            ours = self.folder(f"planning-{n}", "pipeline.yaml", pipelines.EIGHT_ROW_WISE)
            dvc = snakemake = None
            if n in COMPARED:
                dvc = self.folder(f"planning-{n}-dvc", "dvc.yaml", pipelines.seven_dvc(PYTHON))
                snakemake = self.folder(f"planning-{n}-snakemake", "Snakefile", pipelines.seven_snakemake(PYTHON))

            def systems(command, repro, snake, rows=None, **more):
                prepare = lambda folder: lambda round: rows and self.rows(folder, rows(round))
                systems = {"vlmdiff": self.vlmdiff(ours, command, prepare=prepare(ours), **more)}
                if n in COMPARED:
                    systems["DVC"] = System("DVC", dvc, repro, prepare(dvc))
                    systems["Snakemake"] = System("Snakemake", snakemake, snake, prepare(snakemake))
                return systems

            for folder in filter(None, (ours, dvc, snakemake)):
                self.rows(folder, n)
            unchanged = systems(RUN, REPRO, SNAKE)
            self.warm(unchanged)
            yield Scenario(f"8 tables of {n:,} rows, nothing changed", unchanged, COMPARED.get(n, {}).get("run"), memory=True)
            seconds, peak = unchanged["vlmdiff"].median(), unchanged["vlmdiff"].median("peak")
            points.append((n, seconds, f"{seconds:.2f} s, {peak:.0f} MiB"))
            if n in COMPARED:
                plan, status, dry = [VLMDIFF, "plan", "pipeline.yaml"], [DVC, "status"], [*SNAKE, "-n"]
                same = systems(plan, status, dry, lambda round: n + APPENDED)
                yield Scenario(f"8 tables of {n:,} rows, {APPENDED} appended: plan", same, COMPARED[n].get("plan"), memory=True)
            if n == next(iter(COMPARED)):
                more = systems(RUN, REPRO, SNAKE, lambda round: n + APPENDED * (round + 1), count=lambda: max(computed(ours).values()))
                yield Scenario(f"8 tables of {n:,} rows, {APPENDED} appended", more, Bar(count=APPENDED), "rows", memory=True)
        title = "A run of eight tables in which nothing changed"
        (self.output / "planning.svg").write_text(plot(title, points, "rows in each of six tables", "seconds"))


def computed(folder: Path) -> dict[str, int]:
    """Returns the number of rows that the last run computed of each table that it published."""
    events = [json.loads(line) for line in lines(max((folder / ".vlmdiff/runs").glob("*.jsonl")))]
    return {event["table"]: event["computed"] for event in events if event.get("event") == "table_published"}


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def call(command, folder: Path, env={}):
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=folder, env={**environment(), **env}, capture_output=True, text=True)
    if done.returncode != 0:
        raise Failed(f"{' '.join(words)} in {folder}: {done.stdout}{done.stderr}"[-3000:])


def quick():
    """Makes all sizes small and removes the bars, which are for the sizes above."""
    global TABLES, ROWS, IMAGES, SIZES, COMPARED
    TABLES, ROWS, IMAGES, SIZES, COMPARED = 20, 2_000, 500, [1_000, 10_000], {1_000: {}, 10_000: {}}


def main():
    scenarios = ["start", "eight", "many", "appended", "killed", "images", "planning"]
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("-n", type=int, help="rounds, after one that is not counted: 5, or 1 if quick")
    arguments.add_argument("--only", default=",".join(scenarios), help=f"some of {','.join(scenarios)}")
    arguments.add_argument("--quick", action="store_true", help="a small version of each, to see that everything works")
    arguments.add_argument("--output", type=Path, default=TARGET / "bench", help="the folder for engine.json and planning.svg")
    options = arguments.parse_args()
    chosen = options.only.split(",")
    for name in chosen:
        if name not in scenarios:
            arguments.error(f"no scenario {name}; there are {', '.join(scenarios)}")
    need_vlmdiff()
    if options.quick:
        quick()
    options.output.mkdir(parents=True, exist_ok=True)
    peers.say_missing("dvc", "snakemake", "hfdatasets", "pixeltable")
    if not PYTHON:
        print(f"vlmdiff with programs in Python: left out, since they need pyarrow. To install: {peers.how('dvc')}", file=sys.stderr)
    done, failed = [], False
    with tempfile.TemporaryDirectory(prefix="vlmdiff-bench-", ignore_cleanup_errors=True) as work:
        bench = Bench(Path(work), options.output)
        for name in chosen:
            try:
                for scenario in getattr(bench, name)():
                    print(scenario.title, file=sys.stderr, flush=True)
                    scenario.bar = None if options.quick else scenario.bar
                    done.append(scenario.run(options.n or (1 if options.quick else 5)))
            except Failed as failure:
                print(f"{name} failed: {failure}", file=sys.stderr, flush=True)
                failed = True
            except KeyboardInterrupt:
                print("Interrupted; the table has what was measured before.", file=sys.stderr, flush=True)
                failed = True
                break
    print(table(done))
    runs = {scenario.title: {name: [vars(run) for run in system.runs] for name, system in scenario.systems.items()}
            for scenario in done}
    (options.output / "engine.json").write_text(json.dumps(runs, indent=1))
    failed |= any(system.left_out == "failed" for scenario in done for system in scenario.systems.values())
    sys.exit(failed)


if __name__ == "__main__":
    main()
