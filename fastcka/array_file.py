"""How results and states lie on disk: arrays in a safetensors file, all else as JSON in its header.

tensors              "<number of the record>.<name of the array>"
metadata["fastcka"]  {"schema", "kind", "sha256", "results": one object a record}
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

SCHEMA = 1
# What a kind is in a message, and who reads it.
KINDS = {
    "CKAResult": ("CKAResult", ": use CKAResult.load"),
    "CKAResults": ("CKAResults", ": use CKAResults.load"),
    "fingerprint": ("a fingerprint", ": give it to fastcka.compare"),
    "state": ("the state of an unfinished comparison", ": resume it"),
    "experiment": ("the result of an experiment", ": see `fastcka study`"),
    "measurement": ("a measurement of a study", ": run the study again"),
    "training": ("the state of an unfinished training", ": train on with the same command"),
}
# Other arrays are written in float64.
KEPT = (np.dtype(np.float64), np.dtype(np.int64))
# One key for all: safetensors writes several in any order, and equal results shall be equal files.
KEY = "fastcka"


def write(path: str | os.PathLike, kind: str, records: Sequence[Mapping]) -> Path:
    """Write records, each a mapping from name to array or plain value.

    Goes to a temporary file first: an interrupted write leaves an older file as it was.

    Args:
        kind: one of `KINDS`.

    Raises:
        TypeError: a value is neither an array nor what JSON can hold; the message names it.
        FileNotFoundError: the folder does not exist.
    """
    from safetensors.numpy import save

    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: its folder does not exist, create it first")
    arrays, rest = _parted(records)
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    data = save(arrays, metadata=_metadata(kind, rest, _digest(arrays, rest)))
    with replacing(path) as file:
        file.write(data)
    return path


def size(kind: str, records: Sequence[Mapping]) -> int:
    """Bytes of the file that `write` would write; of an array, its type and shape alone matter.

    >>> import tempfile
    >>> record = {"x": np.zeros((3, 4)), "name": "x"}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     size("state", [record]) == write(f"{folder}/x", "state", [record]).stat().st_size
    True
    """
    arrays, rest = _parted(records)
    metadata = _metadata(kind, rest, hashlib.sha256().hexdigest())
    head, end = {"__metadata__": metadata}, 0
    for name, array in sorted(arrays.items(), key=lambda one: (one[1].dtype != np.int64, one[0])):
        dtype = "I64" if array.dtype == np.int64 else "F64"
        offsets = [end, end := end + array.nbytes]
        head[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    return 8 + len(text) + -len(text) % 8 + end


def shaped(shape: Sequence[int]) -> np.ndarray:
    """An array for `size` that takes no memory, float64.

    >>> shaped((1000, 1000, 1000)).nbytes
    8000000000
    """
    return np.broadcast_to(np.float64(0), shape)


def _parted(records: Sequence[Mapping]) -> tuple[dict[str, np.ndarray], list[dict]]:
    """All arrays, of the types that are kept, and of each record the rest."""
    arrays, rest = {}, []
    for number, record in enumerate(records):
        rest.append({})
        for name, value in record.items():
            if isinstance(value, np.ndarray):
                arrays[f"{number}.{name}"] = (
                    value if value.dtype in KEPT else value.astype(np.float64)
                )
            else:
                rest[-1][name] = plain(value, name)
    return arrays, rest


def _metadata(kind: str, rest: list[dict], sha256: str) -> dict[str, str]:
    header = {"schema": SCHEMA, "kind": kind, "sha256": sha256, "results": rest}
    return {KEY: json.dumps(header)}


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when all is written; not after an error."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(unfinished, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def read(path: str | os.PathLike, kind: str) -> list[dict]:
    """What `write` was given, with lists for tuples.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, of another kind, of a newer schema, or no such file at all.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, "numpy") as file:
            header = json.loads((file.metadata() or {})[KEY])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        check_header(path, header, kind)
        records = header["results"]
        if _digest(arrays, records) != header["sha256"]:
            raise ValueError("the checksum differs")
        for name, array in arrays.items():
            number, name = name.split(".", 1)
            records[int(number)][name] = array
    except Unexpected:
        raise
    except (SafetensorError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, or no file of fastcka's: {error}") from None
    return records


class Unexpected(ValueError):
    """A file that is whole, but not what was asked for."""


def check_header(path: str | os.PathLike, header: Mapping, kind: str) -> None:
    schema, found = header["schema"], header["kind"]
    if schema > SCHEMA:
        raise Unexpected(
            f"{path} was written by a newer fastcka, in format {schema}, and this one reads "
            f"formats up to {SCHEMA}: update fastcka"
        )
    if found != kind:
        what, reader = KINDS.get(str(found), (found, ""))
        raise Unexpected(f"{path} holds {what}, not {KINDS[kind][0]}{reader}")


@contextmanager
def understood(path: str | os.PathLike) -> Iterator[None]:
    """Say of a file, whose checksum is right, that its contents cannot be what they should."""
    try:
        yield
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged, or no file of fastcka's: {error}") from None


def _digest(arrays: Mapping[str, np.ndarray], records: list[dict]) -> str:
    digest = hashlib.sha256(json.dumps(records).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.shape} {array.dtype}".encode())
        digest.update(array)
    return digest.hexdigest()


def plain(value, name: str):
    """The value as JSON holds it: tuples as lists, NumPy scalars as numbers, dtypes by name."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, torch.dtype | np.dtype):
        return str(value)
    if isinstance(value, list | tuple):
        return [plain(item, f"{name}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: plain(item, f"{name}.{key}") for key, item in value.items()}
    raise TypeError(
        f"`{name}` must be a string, a number, None, or lists and mappings by string of such, to "
        f"be saved, but is {type(value).__name__}: convert or remove it"
    )
