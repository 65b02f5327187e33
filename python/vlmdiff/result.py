"""Rows that SQL answers, for pyarrow, polars, pandas, NumPy and PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional, Union

import pyarrow

from . import _vlmdiff
from .errors import InputError

if TYPE_CHECKING:
    import numpy
    import pandas
    import polars
    import torch


class Result:
    """The rows of a query.

    Whatever reads Arrow's C stream interface reads it without copying: ``pyarrow.table(result)``,
    ``polars.DataFrame(result)``, ``duckdb.from_arrow(result)``.
    """

    def __init__(self, rows: Union[_vlmdiff.Answer, _vlmdiff.Rows]) -> None:
        self._rows = rows
        self._table: Optional[pyarrow.Table] = None

    def __arrow_c_schema__(self) -> object:
        return self._rows.__arrow_c_schema__()

    def __arrow_c_stream__(self, requested_schema: Optional[object] = None) -> object:
        if self._table is not None:
            return self._table.__arrow_c_stream__(requested_schema)
        return self._rows.__arrow_c_stream__(requested_schema)

    def __len__(self) -> int:
        return int(self.arrow().num_rows)

    def __repr__(self) -> str:
        schema = pyarrow.schema(self)
        return f"<vlmdiff.Result: {', '.join(f'{field.name}: {field.type}' for field in schema)}>"

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        return list(pyarrow.schema(self).names)

    def arrow(self) -> pyarrow.Table:
        """Returns the rows as a table of pyarrow, which shares their memory. Tensors have the type
        ``pyarrow.FixedShapeTensorType``."""
        if self._table is None:
            self._table = pyarrow.table(self)
        return self._table

    def batches(self) -> pyarrow.RecordBatchReader:
        """Returns a reader of the rows, some at a time. With ``sql(query, stream=True)`` they are computed while they are
        read, and never all in memory."""
        return pyarrow.RecordBatchReader.from_stream(self)

    def polars(self) -> polars.DataFrame:
        """Returns the rows as a data frame of polars, in which a tensor is a ``polars.Array`` of its shape."""
        import polars

        table = self.arrow()
        columns = [polars.from_arrow(_nested(column)).alias(name) for name, column in zip(table.column_names, table.columns)]
        return polars.DataFrame(columns)

    def pandas(self) -> pandas.DataFrame:
        """Returns the rows as a data frame of pandas, in which a tensor is an array of its shape."""
        import pandas

        table = self.arrow()
        columns = {
            name: list(self.numpy(name)) if _is_tensor(column) and not column.null_count else column.to_pandas()
            for name, column in zip(table.column_names, table.columns)
        }
        return pandas.DataFrame(columns)

    def numpy(self, column: str) -> numpy.ndarray:
        """Returns a column of numbers or tensors as an array: rows first, then the shape of a tensor.

        It shares the memory of the rows, and can therefore not be written, unless the rows came in several batches, which are
        then copied into one.
        """
        import numpy

        values, shape = self._values(column)
        if pyarrow.types.is_boolean(values.type):
            return values.to_numpy(zero_copy_only=False).reshape(shape)
        return numpy.from_dlpack(values).reshape(shape)

    def torch(self, column: str) -> torch.Tensor:
        """Returns a column of numbers or tensors as a tensor: rows first, then the shape of a tensor.

        It shares the memory of the rows, so it must not be written in place, unless the rows came in several batches, which
        are then copied into one.
        """
        import torch

        values, shape = self._values(column)
        if pyarrow.types.is_boolean(values.type):
            return torch.from_numpy(values.to_numpy(zero_copy_only=False)).reshape(shape)
        return torch.from_dlpack(values).reshape(shape)

    def _values(self, name: str) -> tuple[pyarrow.Array, tuple[int, ...]]:
        """Returns the numbers of a column, row after row, and their shape."""
        table = self.arrow()
        if name not in table.column_names:
            raise InputError(f"the query has no column `{name}`; it has {', '.join(table.column_names)}", name)
        column = table.column(name)
        if column.null_count:
            count = f"{column.null_count} null row{'' if column.null_count == 1 else 's'}"
            raise InputError(f"column `{name}` has {count}, which an array cannot have; add `where {name} is not null`", name)
        shape: tuple[int, ...] = (len(column),)
        kind, chunks = column.type, column.chunks
        if _is_tensor(column):
            shape += tuple(kind.shape)
            kind, chunks = kind.value_type, [chunk.storage.flatten() for chunk in chunks]
        while pyarrow.types.is_fixed_size_list(kind):
            shape += (kind.list_size,)
            kind, chunks = kind.value_type, [chunk.flatten() for chunk in chunks]
        is_number = pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind) or pyarrow.types.is_boolean(kind)
        if not is_number:
            raise InputError(
                f"column `{name}` holds {kind}; numbers and tensors become arrays, and `.arrow()` has all types", name
            )
        values = chunks[0] if len(chunks) == 1 else pyarrow.concat_arrays([*chunks, pyarrow.array([], kind)])
        return values, shape


def _is_tensor(column: Union[pyarrow.Array, pyarrow.ChunkedArray]) -> bool:
    return isinstance(column.type, pyarrow.FixedShapeTensorType)


def _nested(column: pyarrow.ChunkedArray) -> pyarrow.ChunkedArray:
    """Returns a column of tensors as lists of lists, which share its memory; other columns as they are."""
    if not _is_tensor(column):
        return column
    length, *inner = column.type.shape
    kind = column.type.value_type
    for size in reversed((length, *inner)):
        kind = pyarrow.list_(kind, size)
    chunks = []
    for chunk in column.chunks:
        storage = chunk.storage
        size = storage.type.list_size
        # The values of null rows are there too, as lists of a fixed size have them.
        values = storage.values.slice(storage.offset * size, len(storage) * size)
        for part in reversed(inner):
            values = pyarrow.FixedSizeListArray.from_arrays(values, part)
        mask = storage.is_null() if storage.null_count else None
        chunks.append(pyarrow.FixedSizeListArray.from_arrays(values, length, mask=mask))
    return pyarrow.chunked_array(chunks, kind)


def sql(query: str, store: str = ".vlmdiff", *, pipeline: Optional[str] = None, stream: bool = False) -> Result:
    """Queries the published tables of a store.

    Args:
        query: The query, in the SQL of ``vlmdiff sql``: ``select * from metrics@baseline``.
        store: The store, a folder or a URL.
        pipeline: The pipeline to which bare table names refer; by default the one that ran last.
        stream: Compute the rows while they are read, once, instead of before. They need not fit into memory.

    Raises:
        InputError: The query is wrong, or there is no such store or pipeline.
        DamagedError: A table that it reads is damaged.
    """
    run: Any = _vlmdiff.rows if stream else _vlmdiff.query
    return Result(run(query, str(store), pipeline))
