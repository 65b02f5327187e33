"""A dataflow engine for visual anomaly detection.

    import vlmdiff

    vlmdiff.sql("select class, pixel_auroc from metrics").polars()

    pipeline = vlmdiff.load("pipelines/folder.yaml", set={"images.root": "photos"})
    pipeline.plan()
    pipeline.run(progress=True, tag="baseline")
    pipeline.predict("new.png")
"""

from ._vlmdiff import __version__
from .errors import (
    DamagedError,
    Error,
    InputError,
    OutOfMemoryError,
    PipelineError,
    RowsError,
    StageError,
    StoreError,
    WorkerError,
)
from .pipeline import Inspector, Pipeline, PlannedTable, PublishedTable, Summary, load, worker
from .result import Result, sql
from .tables import Table, context, table

__all__ = [
    "DamagedError",
    "Error",
    "InputError",
    "Inspector",
    "OutOfMemoryError",
    "Pipeline",
    "PipelineError",
    "PlannedTable",
    "PublishedTable",
    "Result",
    "RowsError",
    "StageError",
    "StoreError",
    "Summary",
    "Table",
    "WorkerError",
    "__version__",
    "context",
    "load",
    "sql",
    "table",
    "worker",
]
