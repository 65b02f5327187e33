"""What can go wrong. Each message names the place, what is wrong, and what would work, as on the command line.

Ctrl-C raises Python's own ``KeyboardInterrupt``, after what was done is saved.
"""

from __future__ import annotations

from typing import Optional


class Error(Exception):
    """An error of vlmdiff.

    Attributes:
        message: The place, what is wrong, and what would work.
        place: The place alone, where the kind of error has one: a file with line and column, a file, a table, or the digest
            of a stored object. None otherwise.
    """

    def __init__(self, message: str, place: Optional[str] = None) -> None:
        super().__init__(message)
        self.message = message
        self.place = place


class InputError(Error):
    """Arguments, data, weights or a query are wrong, and can be corrected."""


class PipelineError(InputError):
    """A pipeline file is wrong at a place.

    Attributes:
        file: The file.
        line: The line, from 1.
        column: The column, from 1.
    """

    def __init__(self, message: str, file: str, line: int, column: int) -> None:
        super().__init__(message, f"{file}:{line}:{column}")
        self.file, self.line, self.column = file, line, column


class RowsError(InputError):
    """Rows of a table failed, and the table does not leave such rows out. All other rows are kept.

    Attributes:
        table: The table.
        failures: The first failures, as pairs of a row's id and a message.
        total: The number of rows that failed.
    """

    def __init__(self, message: str, table: str, failures: list[tuple[str, str]], total: int) -> None:
        super().__init__(message, table)
        self.table, self.failures, self.total = table, failures, total


class StageError(Error):
    """A stage failed."""


class WorkerError(Error):
    """The worker, which has libtorch, is missing or has died."""


class OutOfMemoryError(Error):
    """Memory ran out."""


class DamagedError(Error):
    """An object of the store is damaged or missing."""


class StoreError(Error):
    """The store cannot be read or written."""
