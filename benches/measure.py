"""Times whole processes side by side and sets their medians against each other."""
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

ENGINES = ["vlmdiff", "DVC", "Snakemake", "HF datasets", "Pixeltable"]


@dataclass
class Run:
    """One process: seconds by the clock, seconds of processors, MiB at its peak, and what it counted."""
    wall: float
    cpu: float
    peak: float
    count: int | None


@dataclass
class System:
    """An engine and its command. `prepare` puts a round's change in place, `count` says what came of it; neither is timed."""
    engine: str
    folder: Path
    command: list | Callable[[int], list]
    prepare: Callable[[int], None] = lambda round: None
    count: Callable[[], int] | None = None
    env: dict = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)

    def run(self, round: int) -> Run:
        self.prepare(round)
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
                sys.exit(f"{words} in {self.folder}: {said.read().decode()[-2000:]}")
        count = self.count() if self.count else None
        return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, count)

    def median(self, what="wall") -> float:
        return statistics.median(getattr(run, what) for run in self.runs)


@dataclass
class Bar:
    """What vlmdiff is to reach: seconds, a share of each peer's seconds, MiB, what it counts: exactly or at most."""
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

    def say(self, unit: str) -> str:
        return ", ".join(filter(None, [
            self.seconds and f"≤ {duration(self.seconds)}",
            self.share and f"≤ 1/{1 / self.share:.0f}",
            self.peak and f"≤ {self.peak} MiB",
            self.count and many(self.count, unit),
            self.at_most and f"≤ {self.at_most} {unit}",
        ]))


@dataclass
class Scenario:
    """Systems that do the same; those of vlmdiff are variants of it, each with a line of the table."""
    title: str
    systems: dict[str, System]
    bar: Bar | None = None
    unit: str = ""

    def run(self, rounds: int) -> "Scenario":
        """Interleaved, after a round that is not counted: a busy moment of the machine falls on all."""
        for round in range(rounds + 1):
            for system in self.systems.values():
                run = system.run(round)
                if round > 0:
                    system.runs.append(run)
        return self

    def lines(self) -> list[list[str]]:
        peers = [system for system in self.systems.values() if system.engine != "vlmdiff"]
        variants = [(name, system) for name, system in self.systems.items() if system.engine == "vlmdiff"]
        return [self.line(self.title if name == "vlmdiff" else f"{self.title}: {name}", ours, peers) for name, ours in variants]

    def line(self, title: str, ours: System, peers: list[System]) -> list[str]:
        walls, counted = [run.wall for run in ours.runs], self.counted(ours)
        peak = f", {ours.median('peak'):.0f} MiB" if not counted and not peers else ""
        cells = {"vlmdiff": f"**{duration(ours.median())}** ({duration(min(walls))} to {duration(max(walls))}){counted}{peak}"}
        for peer in peers:
            cells[peer.engine] = f"{duration(peer.median())}, {peer.median() / ours.median():.0f}×{self.counted(peer)}"
        bar = f"{self.bar.say(self.unit)}: {'met' if self.bar.met(ours, peers) else '**missed**'}" if self.bar else ""
        return [title, *(cells.get(engine, "") for engine in ENGINES), bar]

    def counted(self, system: System) -> str:
        counts = sorted({run.count for run in system.runs if run.count is not None})
        if not counts:
            return ""
        return f", {many(counts[0], self.unit)}" if len(counts) == 1 else f", {counts[0]:,} to {many(counts[-1], self.unit)}"


def environment() -> dict:
    """The caller's, without a store of theirs, and with peers that ask nobody outside."""
    silent = dict(DVC_NO_ANALYTICS="1", DO_NOT_TRACK="1", HF_HUB_OFFLINE="1", PYTHONWARNINGS="ignore")
    return {**{name: value for name, value in os.environ.items() if name != "VLMDIFF_STORE"}, **silent}


def many(count: int, unit: str) -> str:
    return f"{count:,} {unit.replace('rows', 'row') if count == 1 else unit}"


def duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else f"{seconds:.2f} s"


def table(scenarios: list[Scenario]) -> str:
    header = ["scenario", *ENGINES, "bar"]
    lines = [line for scenario in scenarios for line in scenario.lines()]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *lines])
