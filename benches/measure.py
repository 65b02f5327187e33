"""Times whole processes in interleaved rounds and compares their medians."""
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

import peers

HERE = Path(__file__).resolve().parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent / "target")).resolve()
VLMDIFF = Path(os.environ.get("VLMDIFF", TARGET / "debug/vlmdiff")).resolve()
# The columns of a table, with the Python environment of each.
ENGINES = {"vlmdiff": None, **{peers.PEERS[name].title: name for name in ("dvc", "snakemake", "hfdatasets", "pixeltable")}}


class Failed(SystemExit):
    """The failure of a process. If it is not caught, the script ends with its message."""


def need_vlmdiff():
    if not os.access(VLMDIFF, os.X_OK):
        raise Failed(f"There is no program {VLMDIFF}. `cargo build` makes it, and the variable VLMDIFF names another one.")


def built(bench: str) -> str:
    """Returns the program of a benchmark in Rust; cargo compiles it first if it has changed."""
    command = ["cargo", "bench", "--profile", "dev", "--bench", bench, "--no-run", "--message-format", "json-render-diagnostics"]
    try:
        done = subprocess.run(command, cwd=HERE.parent, stdout=subprocess.PIPE, text=True)
    except FileNotFoundError:
        raise Failed(f"cargo is not installed, which compiles the benchmark {bench}. https://rustup.rs installs it.")
    if done.returncode != 0:
        raise Failed(f"cargo did not compile the benchmark {bench}: exit code {done.returncode}, its message is above.")
    said = [json.loads(line) for line in done.stdout.splitlines()]
    return next(one["executable"] for one in said if one.get("executable") and one["target"]["name"] == bench)


def call(command) -> str:
    """Returns what a command prints; its failure is raised with the end of its message."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        raise Failed(f"{' '.join(words)}: {done.stderr[-2000:]}")
    return done.stdout


@dataclass
class Run:
    """The measures of one process: wall-clock seconds, processor seconds, peak memory in MiB, and its count."""
    wall: float
    cpu: float
    peak: float
    count: int | None


@dataclass
class System:
    """An engine and its command. `prepare` makes a round's change, `count` counts the work that was done; neither is timed.
    `left_out` is the reason why it is not measured: it is not installed, or it has failed."""
    engine: str
    folder: Path
    command: list | Callable[[int], list]
    prepare: Callable[[int], None] = lambda round: None
    count: Callable[[], int] | None = None
    env: dict = field(default_factory=dict)
    left_out: str = ""
    runs: list[Run] = field(default_factory=list)

    def __post_init__(self):
        needs = ENGINES[self.engine]
        if needs and not peers.installed(needs):
            self.left_out = "not installed"

    def attempt(self, round: int, warm=False) -> Run | None:
        """Runs the command; returns None if it is left out. A peer that fails is left out from then on, a failure of vlmdiff is raised."""
        if self.left_out:
            return None
        try:
            if not warm:
                self.prepare(round)
            return self.run(round)
        except Failed as failure:
            if self.engine == "vlmdiff":
                raise
            print(f"{self.engine} failed and is left out: {failure}", file=sys.stderr, flush=True)
            self.left_out = "failed"
            return None

    def run(self, round: int) -> Run:
        command = self.command(round) if callable(self.command) else self.command
        words, env = [str(word) for word in command], {**environment(), **self.env}
        with tempfile.TemporaryFile() as said:
            started = time.monotonic()
            process = subprocess.Popen(words, cwd=self.folder, env=env, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.monotonic() - started
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode != 0:
                said.seek(0)
                raise Failed(f"{' '.join(words)} in {self.folder} ended with {process.returncode}: {said.read().decode()[-2000:]}")
        count = self.count() if self.count else None
        return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, count)

    def median(self, what="wall") -> float:
        return statistics.median(getattr(run, what) for run in self.runs)


@dataclass
class Bar:
    """The limits for vlmdiff: seconds, a share of each peer's seconds, peak memory in MiB, and an exact or largest count."""
    seconds: float | None = None
    share: float | None = None
    peak: float | None = None
    count: int | None = None
    at_most: int | None = None

    def met(self, ours: System, peers: list[System]) -> bool:
        counts = [run.count for run in ours.runs]
        return all([
            self.seconds is None or ours.median() <= self.seconds,
            self.share is None or all(ours.median() <= self.share * peer.median() for peer in peers),
            self.peak is None or ours.median("peak") <= self.peak,
            self.count is None or all(count == self.count for count in counts),
            self.at_most is None or all(count <= self.at_most for count in counts),
        ])

    def say(self, unit: str, beside: bool) -> str:
        """Returns the limits in words. `beside` is true if a peer was measured; otherwise shares are left out."""
        return ", ".join(filter(None, [
            self.seconds and f"≤ {duration(self.seconds)}",
            self.share and beside and f"≤ 1/{1 / self.share:.0f}",
            self.peak and f"≤ {self.peak} MiB",
            self.count is not None and many(self.count, unit),
            self.at_most and f"≤ {self.at_most} {unit}",
        ]))


@dataclass
class Scenario:
    """Systems that do the same work. Each variant of vlmdiff has a line of the table."""
    title: str
    systems: dict[str, System]
    bar: Bar | None = None
    unit: str = ""
    memory: bool = False

    def run(self, rounds: int) -> "Scenario":
        """Runs all systems in each round, so that a busy moment of the machine affects all. The first round is not counted."""
        for round in range(rounds + 1):
            for system in self.systems.values():
                run = system.attempt(round)
                if run and round > 0:
                    system.runs.append(run)
        return self

    def lines(self) -> list[list[str]]:
        others = [system for system in self.systems.values() if system.engine != "vlmdiff"]
        variants = [(name, system) for name, system in self.systems.items() if system.engine == "vlmdiff"]
        return [self.line(self.title if name == "vlmdiff" else f"{self.title}: {name}", ours, others) for name, ours in variants]

    def line(self, title: str, ours: System, others: list[System]) -> list[str]:
        cells = {system.engine: self.cell(system, ours) for system in [ours, *others]}
        bar, beside = "", [other for other in others if not other.left_out]
        if self.bar and not ours.left_out:
            bar = f"{self.bar.say(self.unit, bool(beside))}: {'met' if self.bar.met(ours, beside) else '**missed**'}"
        return [title, *(cells.get(engine, "") for engine in ENGINES), bar]

    def cell(self, system: System, ours: System) -> str:
        if system.left_out:
            return system.left_out
        if system is ours:
            walls = [run.wall for run in ours.runs]
            time = f"**{duration(ours.median())}** ({duration(min(walls))} to {duration(max(walls))})"
        else:
            time = duration(system.median()) + ("" if ours.left_out else f", {times(system.median() / ours.median())}")
        return time + self.counted(system) + (f", {system.median('peak'):.0f} MiB" if self.memory else "")

    def counted(self, system: System) -> str:
        counts = sorted({run.count for run in system.runs if run.count is not None})
        if not counts:
            return ""
        return f", {many(counts[0], self.unit)}" if len(counts) == 1 else f", {counts[0]:,} to {many(counts[-1], self.unit)}"


def environment() -> dict:
    """Returns the caller's environment without their store, and with settings by which peers use no network."""
    silent = dict(DVC_NO_ANALYTICS="1", DO_NOT_TRACK="1", HF_HUB_OFFLINE="1", PYTHONWARNINGS="ignore")
    return {**{name: value for name, value in os.environ.items() if name != "VLMDIFF_STORE"}, **silent}


def many(count: int, unit: str) -> str:
    return f"{count:,} {unit.replace('rows', 'row') if count == 1 else unit}"


def times(ratio: float) -> str:
    return f"{ratio:.0f}×" if ratio >= 9.5 else f"{ratio:.1f}×"


def duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else f"{seconds:.2f} s"


def table(scenarios: list[Scenario]) -> str:
    header = ["scenario", *ENGINES, "bar"]
    lines = [line for scenario in scenarios for line in scenario.lines()]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *lines])
