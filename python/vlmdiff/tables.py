"""Published tables in sessions of the Python package ``datafusion``."""

from __future__ import annotations

import importlib
import importlib.metadata
from types import ModuleType
from typing import TYPE_CHECKING, Optional

from . import _vlmdiff
from .errors import InputError

if TYPE_CHECKING:
    import datafusion


class Table:
    """The rows of a query as a table of DataFusion: ``context.register_table("name", table)``.

    They are computed here, and are as the store has them when the table is made.
    """

    def __init__(self, table: _vlmdiff.Table) -> None:
        self._table = table

    def __datafusion_table_provider__(self, session: object) -> object:
        return self._table.__datafusion_table_provider__(session)


def table(name: str, store: str = ".vlmdiff", *, pipeline: Optional[str] = None) -> Table:
    """Returns a published table for sessions of DataFusion.

    Args:
        name: The table as a query names it: ``metrics``, ``metrics@baseline``, ``quickstart.metrics``.
        store: The store, a folder or a URL.
        pipeline: The pipeline to which bare table names refer; by default the one that ran last.
    """
    _package()
    return Table(_vlmdiff.Table(f"select * from {name}", str(store), pipeline))


def context(store: str = ".vlmdiff", *, pipeline: Optional[str] = None) -> datafusion.SessionContext:
    """Returns a session of DataFusion with all tables of a pipeline, under their names.

    Args:
        store: The store, a folder or a URL.
        pipeline: The pipeline; by default the one that ran last.
    """
    package = _package()
    made = package.SessionContext()
    for name in _vlmdiff.tables(str(store), pipeline):
        quoted = '"' + name.replace('"', '""') + '"'
        made.register_table(name, table(quoted, store, pipeline=pipeline))
    return made


def _package() -> ModuleType:
    """Imports the package, whose tables are exchanged in the memory layout of one version."""
    needed = _vlmdiff.DATAFUSION
    advice = f"`pip install 'datafusion=={needed}.*'` gets the one that fits"
    try:
        package = importlib.import_module("datafusion")
    except ImportError as error:
        raise InputError(f"the Python package datafusion is not installed; {advice}", "datafusion") from error
    version = importlib.metadata.version("datafusion")
    if version.split(".")[0] != str(needed):
        raise InputError(f"the Python package datafusion is {version}, and tables need {needed}; {advice}", "datafusion")
    return package
