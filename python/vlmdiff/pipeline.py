"""Pipelines: their plans, their runs, and verdicts by them."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional, Union

from . import _vlmdiff
from .errors import InputError
from .pictures import Image, PathLike, separated
from .result import Result, sql

WORKER = "vlmdiff-worker"


@dataclass(frozen=True)
class PlannedTable:
    """What a run would do with a table.

    Attributes:
        table: The table.
        stage: The stage that makes it.
        state: ``fresh``, ``stale`` or ``blocked``.
        stale: The number of rows to compute.
        rows: The number of rows that it will have; 0 if that is known only when it is computed.
        causes: The causes why it is not fresh.
        waits_for: The table above whose rows are not known yet; None if it is not blocked.
        notes: Notes on the table, as far as its rows are known.
        memory: The most bytes of memory that making it takes from so many rows, as ``bytes`` and ``rows``, if its stage knows
            that beforehand. Where the table waits for another, ``rows`` is an example.
        words: The same in words, without notes and memory.
    """

    table: str
    stage: str
    state: str
    words: str
    stale: int = 0
    rows: int = 0
    causes: list[dict[str, Any]] = field(default_factory=list)
    waits_for: Optional[str] = None
    notes: list[Any] = field(default_factory=list)
    memory: Optional[dict[str, int]] = None

    def __str__(self) -> str:
        return f"{self.table}: {self.words}"


@dataclass(frozen=True)
class PublishedTable:
    """A table as a run left it.

    Attributes:
        table: The table.
        rows: Its rows.
        computed: The rows that the run computed; 0 if the table was fresh.
        skipped: The rows that failed and were left out.
        seconds: The time that it took.
    """

    table: str
    rows: int
    computed: int = 0
    skipped: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Summary:
    """What a run did.

    Attributes:
        run: The id of the run; ``select * from metrics@ID`` reads its tables.
        tables: The tables, in the order in which they were done.
        notes: Pairs of a table and a note, on what was left out, cut, emptied or guessed.
        seconds: The time that it took.
    """

    run: str
    tables: list[PublishedTable]
    notes: list[tuple[str, str]]
    seconds: float

    @property
    def skipped(self) -> int:
        """The number of rows that failed and were left out."""
        return sum(table.skipped for table in self.tables)

    @property
    def computed(self) -> dict[str, int]:
        """The number of rows that were computed, by table, without the tables that were fresh."""
        return {table.table: table.computed for table in self.tables if table.computed}


def worker() -> Path:
    """Returns the path of the worker, the program with libtorch that runs the stages of networks.

    It is the one that the variable ``VLMDIFF_WORKER`` names, else the one beside this package, in the folder in which the
    package was built, or on ``PATH``.
    """
    told = os.environ.get("VLMDIFF_WORKER")
    if told:
        return Path(told)
    package = Path(__file__).resolve().parent
    places = [package / WORKER, Path(_vlmdiff.PROGRAMS) / WORKER]
    found = next((place for place in places if place.is_file()), None) or shutil.which(WORKER)
    # A pipeline without networks needs no worker. One with networks names this place in its error.
    return Path(found or package / WORKER)


class Inspector:
    """A pipeline that judges new photographs. Its worker stays loaded from one call to the next."""

    def __init__(self, inspector: _vlmdiff.Inspector) -> None:
        self._inspector = inspector

    def predict(self, images: Union[Image, Iterable[Image]], *, class_name: Optional[str] = None) -> list[dict[str, Any]]:
        """Judges photographs; see :meth:`Pipeline.predict`."""
        named, pictures = separated(images)
        rows: list[str] = []
        if named:
            rows += self._inspector.predict(named, class_name)
        if pictures:
            rows += self._inspector.predict_pixels(pictures, class_name)
        return [json.loads(row) for row in rows]


class Pipeline:
    """A pipeline with its store, as its file was when it was loaded; see :func:`load`."""

    def __init__(self, pipeline: _vlmdiff.Pipeline) -> None:
        self._pipeline = pipeline

    def __repr__(self) -> str:
        return f"<vlmdiff.Pipeline {self.name}, {len(self.tables)} tables, store {self.store}>"

    @property
    def name(self) -> str:
        """The name."""
        return self._pipeline.name

    @property
    def store(self) -> str:
        """The address of the store."""
        return self._pipeline.store

    @property
    def tables(self) -> list[str]:
        """The names of the tables, from top to bottom."""
        return self._pipeline.tables

    def sql(self, query: str, *, stream: bool = False) -> Result:
        """Queries the published tables; bare names refer to this pipeline. See :func:`vlmdiff.sql`."""
        return sql(query, self.store, pipeline=self.name, stream=stream)

    def plan(
        self,
        *,
        targets: Iterable[str] = (),
        until: Optional[str] = None,
        force: Iterable[str] = (),
        retry_errors: bool = False,
        verify: bool = False,
    ) -> list[PlannedTable]:
        """Returns what a run would compute, and why, table by table.

        Args:
            targets: Only these tables and the tables they are made from.
            until: Only the tables from the top of the pipeline down to this one.
            force: Tables that count as not computed.
            retry_errors: Rows that failed and were left out count as not computed.
            verify: Hash every source file, even if its size, times and inode have not changed.
        """
        planned = self._pipeline.plan(_chosen(targets, until, force, retry_errors), verify)
        return [_planned(json.loads(plan), words) for plan, words in planned]

    def run(
        self,
        *,
        progress: Union[bool, Callable[[dict[str, Any]], object]] = False,
        targets: Iterable[str] = (),
        until: Optional[str] = None,
        force: Iterable[str] = (),
        retry_errors: bool = False,
        device: Union[str, Iterable[str]] = "auto",
        workers: Optional[int] = None,
        threads: Optional[int] = None,
        batch_size: Optional[int] = None,
        task_rows: Optional[int] = None,
        save_every: float = 20.0,
        verify: bool = False,
        tag: Optional[str] = None,
    ) -> Summary:
        """Computes what is stale, table by table, and publishes it.

        Ctrl-C ends the run when its work in progress is saved, and raises ``KeyboardInterrupt``; the next run continues from
        there. Other threads of Python go on meanwhile.

        Args:
            progress: True shows lines on standard error, and bars if it is a terminal. A function is called with each event,
                as the run's log has them; an exception in it ends the run.
            targets, until, force, retry_errors: As of :meth:`plan`.
            device: The device of networks: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``. Several have a worker each.
            workers: The number of worker processes; by default one for each device.
            threads: The number of threads, which the workers share.
            batch_size: The number of images that a network sees at once outside of training.
            task_rows: The number of rows in a task.
            save_every: The seconds between two saved states of a training.
            verify: Hash every source file, and check every stored part.
            tag: A name for the run: ``select * from metrics@TAG``.

        Raises:
            RowsError: Rows failed, and their table does not leave them out.
            WorkerError: The worker is missing, or died.
            StageError: A stage failed.
        """
        numbers = {"workers": workers, "threads": threads, "batch_size": batch_size, "task_rows": task_rows}
        how: dict[str, Any] = {name: _positive(name, value) for name, value in numbers.items()}
        how.update(
            devices=_texts(device), save_every=float(save_every), verify=verify, tag=tag, worker=os.fspath(worker())
        )
        events: list[dict[str, Any]] = []

        def hear(text: str) -> None:
            event = json.loads(text)
            if event["event"] not in _SHOWN:
                events.append(event)
            if callable(progress):
                progress(event)

        say = _say if progress is True else None
        chosen = _chosen(targets, until, force, retry_errors)
        run = self._pipeline.run(chosen, how, say, sys.stderr is not None and sys.stderr.isatty(), hear)
        return _summary(run, events)

    def inspector(self, *, decisions: Optional[str] = None, device: str = "auto") -> Inspector:
        """Prepares the pipeline, which has run, to judge new photographs, many times.

        Models, banks and thresholds are taken as the last run left them.

        Args:
            decisions: The table of decisions, where the pipeline has several.
            device: The device of networks.
        """
        return Inspector(self._pipeline.inspector(decisions, device, os.fspath(worker())))

    def predict(
        self,
        images: Union[Image, Iterable[Image]],
        *,
        class_name: Optional[str] = None,
        decisions: Optional[str] = None,
        device: str = "auto",
    ) -> list[dict[str, Any]]:
        """Judges new photographs by the pipeline, which has run.

        Args:
            images: Photographs, folders of them, their URLs, and manifests (CSV, JSON lines, Parquet); arrays of ``numpy.uint8``
                (height x width, or height x width x 1, 3 or 4 channels), and pictures of PIL; one or several.
            class_name: The class of the photographs, where a manifest does not say.
            decisions: The table of decisions, where the pipeline has several.
            device: The device of networks.

        Returns:
            A row for each photograph, as ``vlmdiff predict --json`` prints it: ``image_id``, ``class``, ``anomalous``,
            ``score``, ``threshold``, ``p_value``, ``rate``, ``model``, and ``regions`` and ``nearest`` where the pipeline has
            them. A photograph that could not be judged has ``error`` instead. Pictures in memory come after files; their ids are
            ``picture-0``, ``picture-1`` and so on, in the order in which they are given.
        """
        return self.inspector(decisions=decisions, device=device).predict(images, class_name=class_name)


def load(
    pipeline: PathLike,
    *,
    set: Optional[Mapping[str, Any]] = None,
    only: Iterable[str] = (),
    store: Optional[PathLike] = None,
) -> Pipeline:
    """Loads a pipeline.

    Args:
        pipeline: The file.
        set: Values of parameters: ``{"images.root": "photos", "anomaly_maps.sigma": 3}``.
        only: Only the combinations of a sweep with these values: ``["extractor=dinov2"]``.
        store: The store, a folder or a URL; by default the pipeline's own, else ``.vlmdiff``.

    Raises:
        PipelineError: The file is wrong, with its line and column.
    """
    sets = [f"{name}={json.dumps(value, default=os.fspath)}" for name, value in (set or {}).items()]
    place = None if store is None else os.fspath(store)
    return Pipeline(_vlmdiff.Pipeline(os.fspath(pipeline), sets, _texts(only), place))


# Events that come many times a second and say nothing about the result.
_SHOWN = {"progress", "figure"}


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _texts(names: Union[str, Iterable[str]]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _positive(name: str, value: Optional[int]) -> Optional[int]:
    if value is not None and (not isinstance(value, int) or not 0 < value < 1 << 16):
        raise InputError(f"`{name}` is {value!r}; a whole number from 1 to {(1 << 16) - 1} would work", name)
    return value


def _chosen(
    targets: Iterable[str], until: Optional[str], force: Iterable[str], retry_errors: bool
) -> dict[str, Any]:
    return {"targets": _texts(targets), "until": until, "force": _texts(force), "retry_errors": retry_errors}


def _planned(plan: Mapping[str, Any], words: str) -> PlannedTable:
    names = ("table", "stage", "state", "stale", "rows", "causes", "notes", "memory")
    known = {name: plan[name] for name in names if name in plan}
    return PlannedTable(words=words, waits_for=plan.get("on"), **known)


def _summary(run: str, events: list[dict[str, Any]]) -> Summary:
    tables: list[PublishedTable] = []
    notes: list[tuple[str, str]] = []
    seconds = 0.0
    for event in events:
        kind = event["event"]
        if kind == "table_fresh":
            tables.append(PublishedTable(event["table"], event["rows"]))
        elif kind == "table_published":
            numbers = (event["rows"], event["computed"], event["errors"], event["seconds"])
            tables.append(PublishedTable(event["table"], *numbers))
        elif kind == "note":
            notes.append((event["table"], event["message"]))
        elif kind == "run_finished":
            seconds = event["seconds"]
    return Summary(run, tables, notes, seconds)
