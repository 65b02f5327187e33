#!/usr/bin/env python3
"""The engine's own speed beside its peers: what is left of a run where there is little or nothing to compute.

    PYROOT=… python3 benches/engine.py [-n 5] [--only start,eight,…] [--json FILE]

benches/README.md says what each scenario does and how PYROOT comes about.
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

import pipelines
from measure import Bar, Scenario, System, environment, table
from plot import plot

HERE = Path(__file__).resolve().parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent / "target"))
VLMDIFF = Path(os.environ.get("VLMDIFF", TARGET / "debug/vlmdiff")).resolve()
PYROOT = Path(os.environ.get("PYROOT", HERE / ".venvs")).resolve()
DVC, SNAKEMAKE = PYROOT / "dvc/bin/dvc", PYROOT / "snakemake/bin/snakemake"
# One interpreter runs the toys of DVC, Snakemake and vlmdiff.
PYTHON = PYROOT / "dvc/bin/python"
HF = [PYROOT / "hfdatasets/bin/python", "hf_rows.py"]
PIXELTABLE = [PYROOT / "pixeltable/bin/python", "pixeltable_rows.py"]
RUN, REPRO, SNAKE = [VLMDIFF, "run", "pipeline.yaml", "--quiet"], [DVC, "repro", "-q"], [SNAKEMAKE, "-q", "all", "-c1"]

TABLES, ROWS, IMAGES, APPENDED, TASK = 200, 20_000, 20_000, 10, 256
SIZES = [10_000, 30_000, 100_000, 150_000, 300_000, 1_000_000]


class Bench:
    """Lays toys out below a folder. Each scenario is a method that yields what is to be timed."""

    def __init__(self, work: Path):
        self.work = work
        self.env = {"VLMDIFF_CACHE": str(work / "cache")}

    def folder(self, name: str, file: str = "", text: str = "") -> Path:
        """A folder of its own with the toys and an engine's file, in git as projects are."""
        folder = self.work / name
        shutil.copytree(HERE / "toys", folder)
        if file:
            (folder / file).write_text(text)
        git = ["git", "-c", "user.name=bench", "-c", "user.email=bench@localhost"]
        call([*git, "init", "-q"], folder)
        call([*git, "commit", "-q", "--allow-empty", "-m", "toys"], folder)
        if file == "dvc.yaml":
            call([DVC, "init", "-q"], folder)
            for option in ("analytics", "check_update", "autostage"):
                call([DVC, "config", f"core.{option}", "false"], folder)
        return folder

    def vlmdiff(self, folder: Path, **more) -> System:
        return System("vlmdiff", folder, RUN, env=self.env, **more)

    def warm(self, *runs):
        """Runs commands in their folders once: what is timed later starts from there."""
        for folder, command in runs:
            call(command, folder, self.env)

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
        self.warm((commands, RUN), (sql, RUN), (dvc, REPRO), (snakemake, SNAKE))

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
                "commands": self.vlmdiff(
                    commands, prepare=changed(commands, "pipeline.yaml", as_commands), count=logged(commands)),
                "SQL": self.vlmdiff(
                    sql, prepare=changed(sql, "pipeline.yaml", pipelines.eight_queries), count=lambda: len(computed(sql))),
                "DVC": System("DVC", dvc, REPRO, changed(dvc, "params.yaml", value), logged(dvc)),
                "Snakemake": System("Snakemake", snakemake, SNAKE, changed(snakemake, "params.yaml", value), logged(snakemake)),
            }

        yield Scenario("8 tables, nothing changed", systems(), Bar(seconds=0.06, share=1 / 20, count=0), "ran")
        yield Scenario("8 tables, a parameter in the middle changed", systems(100), Bar(count=4), "ran")

    def many(self):
        commands = self.folder("many-commands", "pipeline.yaml", pipelines.many_commands(TABLES))
        call([PYTHON, "rows.py", "seed.parquet", 10], commands)
        sql = self.folder("many-sql", "pipeline.yaml", pipelines.many_queries(TABLES))
        dvc = self.folder("many-dvc", "dvc.yaml", pipelines.many_dvc(TABLES))
        snakemake = self.folder("many-snakemake", "Snakefile", pipelines.many_snakemake(TABLES))
        self.warm((commands, RUN), (sql, RUN), (dvc, REPRO), (snakemake, SNAKE))
        yield Scenario(f"{TABLES} tables, nothing changed", {
            "commands": self.vlmdiff(commands), "SQL": self.vlmdiff(sql),
            "DVC": System("DVC", dvc, REPRO), "Snakemake": System("Snakemake", snakemake, SNAKE),
        }, Bar(seconds=0.2))

    def rows(self):
        sql = self.folder("rows-sql", "pipeline.yaml", pipelines.row_query())
        command = self.folder("rows-command", "pipeline.yaml", pipelines.row_command(PYTHON))
        stage = pipelines.one_dvc(f"{PYTHON} dvc_rows.py", ["dvc_rows.py", "rows.parquet"], "lengths.parquet")
        dvc, hf, pixeltable = self.folder("rows-dvc", "dvc.yaml", stage), self.folder("rows-hf"), self.folder("rows-pixeltable")
        for folder in (sql, command, dvc, hf):
            write_rows(folder, ROWS)
        self.warm((sql, RUN), (command, RUN), (dvc, REPRO), (hf, HF), (pixeltable, [*PIXELTABLE, ROWS]))
        rows = lambda round: ROWS + APPENDED * (round + 1)
        appended = lambda folder: lambda round: write_rows(folder, rows(round))
        called = lambda folder: lambda: int((folder / "calls.txt").read_text())
        systems = {
            "SQL": self.vlmdiff(sql, prepare=appended(sql), count=lambda: computed(sql)["lengths"]),
            "Python": self.vlmdiff(command, prepare=appended(command), count=lambda: computed(command)["lengths"]),
            "DVC": System("DVC", dvc, REPRO, appended(dvc), called(dvc)),
            "HF": System("HF datasets", hf, HF, appended(hf), called(hf)),
            "Pixeltable": System("Pixeltable", pixeltable, lambda round: [*PIXELTABLE, rows(round)], count=called(pixeltable)),
        }
        try:
            yield Scenario(f"{ROWS:,} rows, {APPENDED} appended", systems, Bar(seconds=0.3, count=APPENDED), "rows")
        finally:
            # Its database stays behind it.
            os.kill(int(lines(pixeltable / "pixeltable/pgdata/postmaster.pid")[0]), signal.SIGINT)

    def killed(self):
        ours = self.folder("killed", "pipeline.yaml", pipelines.row_command(PYTHON))

        def system(engine, folder, command, leftovers):
            """Killed after half of the rows, each time elsewhere in a task; what is timed is the run after that."""
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

            write_rows(folder, ROWS)
            return System(engine, folder, command, prepare, lambda: calls.stat().st_size - ROWS, env)

        yield Scenario(f"{ROWS:,} slow rows, killed in the middle, run again", {
            "vlmdiff": system("vlmdiff", ours, RUN, ".vlmdiff"),
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
        # A file that changed just now may change again unseen, and is hashed once more.
        time.sleep(3)
        self.warm((ours, RUN), (ours, RUN), (dvc, REPRO), (dvc, REPRO))
        count = lambda: computed(ours).get("images", 0)
        unchanged = {"vlmdiff": self.vlmdiff(ours, count=count), "DVC": System("DVC", dvc, REPRO)}
        yield Scenario(f"a folder of {IMAGES:,} images, nothing changed", unchanged, Bar(seconds=0.5, count=0), "rows")
        added = self.vlmdiff(ours, prepare=lambda round: add(ours, IMAGES + round), count=count)
        yield Scenario(f"a folder of {IMAGES:,} images, one added", {"vlmdiff": added}, Bar(count=1), "rows")

    def planning(self):
        bars = {150_000: Bar(seconds=0.5), 1_000_000: Bar(seconds=3, peak=500)}
        points = []
        for n in SIZES:
            folder = self.folder(f"planning-{n}", "pipeline.yaml", pipelines.EIGHT_ROW_WISE)
            write_rows(folder, n)
            self.warm((folder, RUN))
            system = self.vlmdiff(folder)
            yield Scenario(f"8 tables of {n:,} rows, nothing changed", {"vlmdiff": system}, bars.get(n))
            points.append((n, system.median(), f"{system.median():.2f} s, {system.median('peak'):.0f} MiB"))
            if n == 150_000:
                appended = self.vlmdiff(folder, prepare=lambda round: write_rows(folder, n + APPENDED * (round + 1)),
                                        count=lambda: max(computed(folder).values()))
                yield Scenario(f"8 tables of {n:,} rows, {APPENDED} appended", {"vlmdiff": appended}, Bar(count=APPENDED), "rows")
        title = "A run of eight tables in which nothing changed"
        (HERE / "planning.svg").write_text(plot(title, points, "rows in each of six tables", "seconds"))


def computed(folder: Path) -> dict[str, int]:
    """Rows that the last run computed of each table that it published."""
    events = [json.loads(line) for line in lines(max((folder / ".vlmdiff/runs").glob("*.jsonl")))]
    return {event["table"]: event["computed"] for event in events if event["event"] == "table_published"}


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def write_rows(folder: Path, n: int):
    call([PYTHON, "rows.py", "rows.parquet", n], folder)


def call(command, folder: Path, env={}):
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=folder, env={**environment(), **env}, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{command} in {folder}: {done.stdout}{done.stderr}"[-3000:])


def main():
    scenarios = ["start", "eight", "many", "rows", "killed", "images", "planning"]
    arguments = argparse.ArgumentParser(description="Times the engine beside its peers.")
    arguments.add_argument("-n", type=int, default=5, help="rounds, after one that is not counted")
    arguments.add_argument("--only", default=",".join(scenarios), help=f"some of {','.join(scenarios)}")
    arguments.add_argument("--json", type=Path, help="also write every single run to this file")
    options = arguments.parse_args()
    done = []
    with tempfile.TemporaryDirectory(prefix="vlmdiff-bench-") as work:
        bench = Bench(Path(work))
        for name in options.only.split(","):
            for scenario in getattr(bench, name)():
                print(scenario.title, file=sys.stderr, flush=True)
                done.append(scenario.run(options.n))
    print(table(done))
    if options.json:
        runs = {scenario.title: {name: [vars(run) for run in system.runs] for name, system in scenario.systems.items()}
                for scenario in done}
        options.json.write_text(json.dumps(runs, indent=1))


if __name__ == "__main__":
    main()
