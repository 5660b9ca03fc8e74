"""The state of a long comparison on disk: written now and then, read to go on."""

import os
import re
import shutil
import time
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

from fastcka import array_file
from fastcka.options import check_seconds
from fastcka.warning import CKAWarning

TENSOR = "sums."  # names of arrays within the file begin so
GRAMS = ".grams"


class Checkpoint:
    """A file that holds the state of one comparison, replaced every so often.

    Args:
        path: of the file; its folder is there.
        resume: go on from it where it is there. Without, a file that is there is an error: it may
            hold hours of work.
        every: seconds between two writes.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Checkpoint(f"{folder}/state").save({"turn": 1}, {"sums": torch.ones(2).double()})
    ...     Checkpoint(f"{folder}/state", resume=True).load()
    ({'turn': 1}, {'sums': tensor([1., 1.], dtype=torch.float64)})
    """

    def __init__(self, path: str | os.PathLike, resume: bool = False, every: float = 300.0):
        check_seconds("save_every", every)
        self.path, self.resume, self.every = Path(path), resume, every
        if not self.path.parent.is_dir():
            raise FileNotFoundError(
                f"cannot write the state {self.path}: its folder does not exist, create it first"
            )
        for there in (self.path, grams_of(self.path)):
            if there.exists() and not resume:
                raise FileExistsError(
                    f"{there} holds the state of an unfinished comparison: resume it, or remove it"
                )
        self._last = time.monotonic()  # the time of day may jump
        self._failed = False

    def load(self) -> tuple[dict, dict[str, torch.Tensor]] | None:
        """What was saved last; None where nothing was.

        Raises:
            ValueError: the file is damaged, or of a newer version.
        """
        for left in self.path.parent.glob(f".{self.path.name}.*"):
            if left.suffix[1:].isdigit():  # of a process that was killed while it wrote
                left.unlink(missing_ok=True)
        if not self.path.exists():
            return None
        (record,) = array_file.read(self.path, "state")
        tensors = {
            name.removeprefix(TENSOR): torch.from_numpy(record.pop(name))
            for name in list(record)
            if name.startswith(TENSOR)
        }
        return record, tensors

    def due(self) -> bool:
        return time.monotonic() - self._last >= self.every

    def save(self, plain: Mapping, tensors: Mapping[str, torch.Tensor]) -> None:
        """Replace what was saved. Where that fails the older state stays, and work goes on."""
        arrays = {TENSOR + name: value.numpy() for name, value in tensors.items()}
        try:
            array_file.write(self.path, "state", [{**plain, **arrays}])
            self._failed = False
        except OSError as error:
            if not self._failed:
                warnings.warn(
                    f"cannot save the state to {self.path}: {error.strerror or error}; the "
                    "comparison goes on, and tries again",
                    CKAWarning,
                    stacklevel=2,
                )
            self._failed = True
        self._last = time.monotonic()


def grams_of(state: Path) -> Path:
    """The folder of what models that run one by one leave for one another, beside their state."""
    return state.with_name(state.name + GRAMS)


def states(path: Path) -> list[tuple[int, int, Path]]:
    """The states beside `path`, which is that of one process: process, of how many, and file.

    Of models that run one by one there may be the folder alone.
    """
    name = rf"{re.escape(path.stem)}(?:-(\d+)-of-(\d+))?{re.escape(path.suffix)}"
    named = re.compile(rf"({name})({re.escape(GRAMS)})?")
    found = {}
    if path.parent.is_dir():
        for other in sorted(path.parent.iterdir()):
            if match := named.fullmatch(other.name):
                rank, ranks = (0, 1) if match[2] is None else (int(match[2]), int(match[3]))
                found[rank, ranks] = other.with_name(match[1])
    return [(*which, state) for which, state in sorted(found.items())]


def forget(path: Path) -> None:
    """Remove the states beside `path`, and what belongs to them."""
    for *_, state in states(path):
        state.unlink(missing_ok=True)
        # Of another process, which removes what was its own.
        shutil.rmtree(grams_of(state), ignore_errors=True)


def difference(ours: Mapping, theirs: Mapping) -> tuple[str, str, str] | None:
    """The first entry in which two nested mappings differ: its name, and what it is in both.

    >>> difference({"n": 64, "a": {"x": 1, "y": 2}}, {"n": 64, "a": {"x": 1, "y": 3}})
    ('a.y', '2', '3')
    """
    for name in dict.fromkeys((*ours, *theirs)):
        one, other = ours.get(name), theirs.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            if within := difference(one, other):
                return f"{name}.{within[0]}", *within[1:]
        elif one != other:
            return name, _short(one), _short(other)
    return None


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]} ... {text[-15:]}"
