"""How sound input is spoilt: bytes, values of JSON and YAML, cells of CSV, columns of tables."""

from __future__ import annotations

import copy
import csv
import io
import json
from collections.abc import Iterator
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

# Values that programs trip over: wrong kinds, ends of ranges, texts that look like something else.
ODD: list[Any] = [
    None, True, False, -1, 0, 1, 999, 1000, 2**31, 2**63, 2**70, -(2**63) - 1, 0.5, -0.0, 1e308, 1e-320,
    float("nan"), float("inf"), float("-inf"), "", " ", "0", "-1", "1e400", "0x10", "1_000", "NaN",
    "None", "²", "١", "\x00", "\ud800", "\u202e", "é" * 3, "x" * 3000, "a,b\n", '"', "'", "../..", "/",
    "~", "$HOME", "%s", "{}", "<b>", "[/]", "[red]", "ILSVRC2012_val_00000001",
    "ILSVRC2012_val_99999999", "n01440764", "2026-02-30", [], {}, [[]], [None], {"": None}, [1, "a",
    None], {"a": {"b": {"c": 1}}}, [0] * 2000,
]  # fmt: skip
TEXTS = [value for value in ODD if isinstance(value, str)] + ["5", "yes", "rejected", "1.5", "True", "0,1,2"]
TOKENS = [
    b"", b"\x00", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\xc3(", b"\r\n", b"\n", b",", b'"', b"{",
    b"}", b"[", b"]", b":", b"&a *a", b"<<: {}", b"!!python/object:os.system", b"- " * 200, b"[" * 2000,
    b"9" * 5000, b"\\ud800", b"null", b"-1", b"NaN", b"1e999", b"\x00" * 64, b"\xff" * 64, b"PAR1",
    b"\x93NUMPY", b"PK\x03\x04",
]  # fmt: skip


def bytes_of(rng: Random, data: bytes) -> bytes:
    """Flip, cut, repeat or insert a few times."""
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(2**20) % (len(data) + 1)
        match rng.randint(0, 5):
            case 0:
                data = data[:at] + bytes([rng.randint(0, 255)]) + data[at + 1 :]
            case 1:
                data = data[:at]
            case 2:
                data = data[:at] + rng.choice(TOKENS) + data[at:]
            case 3:
                data = data[:at] + data[at + 1 + rng.randint(0, 40) :]
            case 4:
                data = data[:at] + data[max(0, at - rng.randint(1, 200)) : at] * 2 + data[at:]
            case _:
                bit = 1 << rng.randint(0, 7)
                data = data[:at] + bytes(byte ^ bit for byte in data[at : at + 1]) + data[at + 1 :]
    return data


def value_of(rng: Random, value: Any) -> Any:
    """Replace, remove or add a node somewhere in JSON-like data, a few times."""
    root = [copy.deepcopy(value)]
    for _ in range(rng.randint(1, 3)):
        places = list(_places(root))
        holder, key = rng.choice(places)
        match rng.randint(0, 4):
            case 0 if holder is not root:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[rng.choice(["", "extra", "schema_version", "source", "\x00"])] = holder[key]
            case 2 if isinstance(holder[key], list):
                holder[key] = holder[key] * 2
            case 3:
                other, there = rng.choice(places)
                holder[key] = copy.deepcopy(other[there])
            case _:
                holder[key] = copy.deepcopy(rng.choice(ODD))
    return root[0]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each container below, with each of its keys."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in list(items):
        yield value, key
        yield from _places(below)


def json_of(rng: Random, data: bytes) -> bytes:
    """Spoil a value of a JSON file."""
    return json.dumps(value_of(rng, json.loads(data))).encode()


def yaml_of(rng: Random, data: bytes) -> bytes:
    """Spoil a value of a YAML file."""
    text = yaml.safe_dump(value_of(rng, yaml.safe_load(data)), allow_unicode=True, sort_keys=False)
    return text.encode("utf-8", "surrogatepass")


def csv_of(rng: Random, data: bytes) -> bytes:
    """Spoil a few cells, rows or columns of a CSV file."""
    rows = list(csv.reader(io.StringIO(data.decode())))
    for _ in range(rng.randint(1, 4)):
        row = rows[rng.randrange(2**20) % len(rows)]
        column = rng.randrange(2**20) % max(1, len(row))
        match rng.randint(0, 6):
            case 0:
                rows = [[cell for i, cell in enumerate(r) if i != column] for r in rows]
            case 1:
                rows.append(list(row))
            case 2:
                row.append(rng.choice(TEXTS))
            case 3:
                rows = rows[:1]
            case 4:
                del row[column:]
            case _ if row:
                row[column] = rng.choice(TEXTS)
            case _:
                rows.insert(0, [])
        rows = rows or [[]]
    sink = io.StringIO()
    csv.writer(sink, lineterminator="\n", escapechar="\\").writerows(rows)
    return sink.getvalue().encode("utf-8", "surrogatepass")


def table_of(rng: Random, data: bytes) -> bytes:
    """Spoil a column or the rows of a Parquet file."""
    table = pq.read_table(pa.BufferReader(data))
    for _ in range(rng.randint(1, 2)):
        names = table.column_names
        if not names:
            break
        at = rng.randrange(2**20) % len(names)
        match rng.randint(0, 7):
            case 0:
                table = table.drop_columns([names[at]])
            case 1:
                table = table.rename_columns([n + " " if i == at else n for i, n in enumerate(names)])
            case 2:
                table = table.slice(0, rng.randint(0, 1))
            case 3:
                table = pa.concat_tables([table, table.slice(0, 1)])
            case 4:
                table = table.append_column(names[at], table.column(at))
                break  # a table with two columns of one name cannot be taken apart by name
            case _:
                table = table.set_column(at, names[at], rng.choice(_columns(table.num_rows)))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


def _columns(rows: int) -> list[Any]:
    """Columns of a length that no reader asks for."""

    def of(values: list[Any], kind: Any = None) -> Any:
        return pa.array((values * (rows // len(values) + 1))[:rows], kind)

    return [
        pa.nulls(rows),
        pa.nulls(rows, pa.string()),
        of([None, 1]),
        of([-5, 5000]),
        of([2**62]),
        of([0.5, float("nan")]),
        of([float("inf")]),
        of(["", None]),
        of(["x" * 2000, "a\nb", "\u202e", "[red]"]),
        of([b"\xff\xfe"], pa.binary()),
        of([True, False]),
        of([[], [1]], pa.list_(pa.int16())),
        of([[1, 2], None], pa.list_(pa.int16())),
        of([[None, 3]], pa.list_(pa.int16())),
        of([["a"]], pa.list_(pa.string())),
        of([[float("nan"), -1.0]], pa.list_(pa.float32())),
        of([{"bytes": b"x", "path": "p"}]),
        of([{"bytes": None, "path": None}], pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        of([0], pa.timestamp("us")),
        of([1], pa.uint64()),
        of([np.float16(1)], pa.float16()),
        pa.array(of(["a", "b"])).dictionary_encode(),
        of([[(1, 2)]], pa.map_(pa.int8(), pa.int8())),
    ]
