"""How fast every backend was on a device: tables that `benchmark` has measured, for `dispatch`.

A table is a JSON file named after its device. The user's own, in the cache, comes first; it counts
for the versions alone by which it was measured. Then those that come with the package, which a
maintainer has measured. Nothing is guessed: a device without a table is one that nobody measured.
"""

import json
import math
import re
import warnings
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import torch

import fastcka.cache
from fastcka.machine import device_name, installed
from fastcka.options import BACKENDS

SCHEMA = 1
SHIPPED = Path(__file__).parent / "measured"
# What a kernel's speed depends on, beside the device.
PACKAGES = ("fastcka", "torch", "triton")


class Row(NamedTuple):
    """One operation by one backend; a median, or why there is none."""

    operation: str
    dtype: str  # of the activations; of Gram matrices always float64
    n: int  # examples
    backend: str
    median_us: float | None
    error: float | None  # relative, to the same in float64
    why: str | None


class Table(NamedTuple):
    """All that was measured on one device."""

    device: str
    versions: dict[str, str | None]
    date: str
    threads: int | None  # of a CPU
    rows: tuple[Row, ...]

    def nearest(self, operation: str, dtype: str, n: int) -> tuple[Row, ...]:
        """What was measured nearest to n examples, the fastest first; of no other type.

        >>> rows = [Row("gram", "float32", n, "torch", 9.0, 0.0, None) for n in (64, 256)]
        >>> [row.n for row in Table("", {}, "", 1, tuple(rows)).nearest("gram", "float32", 129)]
        [256]
        """
        same = [row for row in self.rows if (row.operation, row.dtype) == (operation, dtype)]
        if not same:
            return ()
        counts = sorted({row.n for row in same})
        closest = min(counts, key=lambda count: abs(math.log(count / max(n, 1))))
        there = [row for row in same if row.n == closest]
        return tuple(sorted(there, key=lambda row: (row.median_us is None, row.median_us)))


class Known(NamedTuple):
    """What is known of a device: its table, where it lies, and which files were passed over."""

    table: Table | None
    path: Path | None
    remarks: tuple[str, ...]


@cache
def known(device: torch.device) -> Known:
    """The table that counts for a device; read once in a process."""
    name, remarks = measured_as(device), []
    if name is None:
        return Known(None, None, ())
    for folder in (own_folder(), SHIPPED):
        path = folder / file_name(name)
        try:
            table = read(path)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            remarks.append(f"{error}; it is ignored, and `fastcka info --measure` makes a new one")
            warnings.warn(remarks[-1], RuntimeWarning, stacklevel=2)
            continue
        reason = _unfit(table, name, folder)
        if reason is None:
            return Known(table, path, tuple(remarks))
        remarks.append(f"{path} is ignored: it was measured {reason}")
    return Known(None, None, tuple(remarks))


@lru_cache(1024)
def nearest(
    operation: str, device: torch.device, dtype: torch.dtype | None, n: int | None
) -> tuple[Row, ...]:
    """Every backend that was measured, the fastest first; empty where nothing was.

    dtype, n: of the activations; None where they are not known.
    """
    table = known(device).table
    if table is None or dtype is None:
        return ()
    return table.nearest(operation, dtype_name(dtype), n)


def cases(operation: str, device: torch.device) -> list[tuple[torch.dtype, int]]:
    """Types and numbers of examples for which an operation was measured."""
    table = known(device).table
    rows = [] if table is None else table.rows
    found = dict.fromkeys((row.dtype, row.n) for row in rows if row.operation == operation)
    return [(getattr(torch, dtype), n) for dtype, n in found]


def forget() -> None:
    """Read the tables again when they are next asked for."""
    known.cache_clear()
    nearest.cache_clear()


def measured_as(device: torch.device) -> str | None:
    """The name by which a device has tables; None where it has none."""
    there = device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_available())
    return device_name(device) if there else None


def own_folder() -> Path:
    """Where tables that were measured on this machine are kept."""
    return fastcka.cache.folder() / "speed"


def file_name(device: str) -> str:
    """
    >>> file_name("NVIDIA H100 80GB HBM3")
    'nvidia-h100-80gb-hbm3.json'
    """
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + ".json"


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def versions() -> dict[str, str | None]:
    """Those that a table bears."""
    return {package: installed(package) for package in PACKAGES}


def as_json(table: Table) -> bytes:
    """As `read` takes it, a row a line."""
    head = {"schema": SCHEMA, **table._asdict()}
    del head["rows"]
    fields = [f'  "{name}": {json.dumps(value)}' for name, value in head.items()]
    rows = ",\n".join(f"    {json.dumps(row._asdict(), allow_nan=False)}" for row in table.rows)
    return ("{\n" + ",\n".join([*fields, f'  "rows": [\n{rows}\n  ]']) + "\n}\n").encode()


def read(path: Path) -> Table:
    """A table from a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, of a newer schema, or no table at all.
    """
    data = path.read_bytes()
    try:
        given = json.loads(data)
        schema = given.pop("schema")
        if schema == SCHEMA:
            rows = tuple(_row(row) for row in given["rows"])
            return Table(**given | {"versions": dict(given["versions"]), "rows": rows})
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError):
        raise ValueError(f"{path} is damaged, or no table of speeds") from None
    raise ValueError(f"{path} has the schema {schema!r}, and this fastcka reads {SCHEMA}")


def _row(given: dict) -> Row:
    row = Row(**given)
    known_type = isinstance(getattr(torch, row.dtype, None), torch.dtype)
    timed = row.why is not None if row.median_us is None else row.median_us > 0
    if not (row.backend in BACKENDS and known_type and row.n > 0 and timed):
        raise ValueError(f"{given} is no measurement")
    return row


def _unfit(table: Table, device: str, folder: Path) -> str | None:
    """How a table was measured that does not count here."""
    if table.device != device:
        return f"on {table.device}"
    if folder == SHIPPED:  # it came with this fastcka, and its maintainer chose it for any torch
        return None
    here = versions()
    other = [name for name in PACKAGES if table.versions.get(name) != here[name]]
    reasons = [f"{name} {table.versions.get(name)}, here is {here[name]}" for name in other]
    return f"by {'; '.join(reasons)}" if reasons else None
