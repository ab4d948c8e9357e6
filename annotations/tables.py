"""Parquet files from anywhere: columns of the types that were asked for, or one line that says why not."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from annotations.errors import BeyondError, one_line


def read_parquet(
    source: Path | bytes,
    types: Mapping[str, pa.DataType],
    *,
    where: str | None = None,
    filled: Collection[str] = (),
    columns: list[str] | None = None,
    remedy: str = "get it again",
) -> pa.Table:
    """Read a Parquet file whose maker is not to be trusted, not even to have closed it.

    Args:
        source: The file, or its bytes.
        types: Columns that the caller reads, with their types. What is there is brought to its type where no
            value changes by it (integers of another width, text in a dictionary, NaN for no integer); columns
            that are not there are the caller's business, and columns that are not named pass as they are.
        where: What to call the file in a message; its path by default.
        filled: Columns of `types` in which every row needs a value.
        columns: Read these alone.
        remedy: What to do about a file that is not sound, at the end of the message.

    Raises:
        BeyondError: The file is damaged or no Parquet file, two columns have one name, or a column does not
            hold what its type says.
        OSError: The file cannot be opened.
    """
    where = where or str(source)
    if isinstance(source, Path):
        source.open("rb").close()  # what the system refuses is not what the file is to blame for
    try:
        file = pa.BufferReader(source) if isinstance(source, bytes) else source
        table = pq.read_table(file, columns=columns, partitioning=None)
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        why = re.sub(r"^Could not open Parquet input source '.*?': ", "", one_line(error))
        raise BeyondError(f"{where} is not a readable Parquet file ({why}); {remedy}") from None
    names = table.column_names
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise BeyondError(f"{where} has two columns {twice[0]!r}; {remedy}")
    for name in set(names) & set(types):
        column = table[name]
        if column.type != types[name]:
            try:
                column = _as(column, types[name])
            except (pa.ArrowException, ValueError, TypeError) as error:
                raise BeyondError(
                    f"{where}: column {name!r} holds {column.type}, which is not {types[name]} "
                    f"({one_line(error)}); {remedy}"
                ) from None
            table = table.set_column(names.index(name), name, column)
        if name in filled and column.null_count:
            raise BeyondError(f"{where}: column {name!r} has a row without a value; {remedy}")
    return table


def _as(column: pa.ChunkedArray, wanted: pa.DataType) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_integer(wanted) and pa.types.is_floating(column.type):
        column = column.cast(pa.float64())
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, pa.float64()), column)
    if pa.types.is_string(wanted) and not (
        pa.types.is_string(column.type)
        or pa.types.is_large_string(column.type)
        or pa.types.is_string_view(column.type)
        or pa.types.is_null(column.type)
        or pa.types.is_integer(column.type)
    ):
        raise TypeError("it is no text")
    return column.cast(wanted)
