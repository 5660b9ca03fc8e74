"""The training images: drawn once, kept on disk, and read from there."""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastcka.cache import alone
from fastcka.data.cues import Cues
from fastcka.data.cues.factors import CUES
from fastcka.data.cues.scene import render
from fastcka.warning import CKAWarning

SEED = 1  # of training images; those that networks are tested on have others
PART = 1000  # images that a process draws at a time


class Pool(NamedTuple):
    """Images with what is to be learned of them, memory-mapped.

    Attributes:
        images: [count, size, size, 3] uint8.
        masks: [count, size, size / 8] uint8, eight pixels a byte.
        cues: [count, 4] int64: shape, texture, background, trigger.
    """

    images: np.ndarray
    masks: np.ndarray
    cues: np.ndarray


def pool(
    images: Cues, folder: Path, workers: int, tell: Callable[[int], None] = lambda done: None
) -> Pool:
    """The images, drawn unless they are there already.

    Args:
        workers: processes that draw; 0 draws in this one.
        tell: called with the number of images that a process has just drawn.
    """
    described = json.dumps({**images.describe(), "count": len(images)}, sort_keys=True)
    place = folder / f"pool-{hashlib.sha256(described.encode()).hexdigest()[:16]}"
    if not place.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder / ".pools.lock", _wait):
            for left in folder.glob(".pool-*"):  # one draws at a time: of those that were killed
                shutil.rmtree(left, ignore_errors=True)
            if not place.exists():
                _draw_to(place, images, workers, tell)
    return Pool(*(np.load(place / f"{name}.npy", mmap_mode="r") for name in Pool._fields))


def _wait(other: str) -> None:
    warnings.warn(f"waits for {other}, which draws images", CKAWarning, stacklevel=2)


def _draw_to(place: Path, images: Cues, workers: int, tell: Callable[[int], None]) -> None:
    unfinished = place.with_name(f".{place.name}.{os.getpid()}")
    unfinished.mkdir()
    try:
        _draw(images, unfinished, workers, tell)
        try:
            unfinished.rename(place)
        except OSError:  # another process was faster, where there are no locks
            if not place.exists():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _draw(images: Cues, folder: Path, workers: int, tell: Callable[[int], None]) -> None:
    count, size = len(images), images.size
    shapes = {"images": (size, size, 3), "masks": (size, -(-size // 8)), "cues": (len(CUES),)}
    kept = {
        name: np.lib.format.open_memmap(
            folder / f"{name}.npy", "w+", np.int64 if name == "cues" else np.uint8, (count, *shape)
        )
        for name, shape in shapes.items()
    }
    starts = range(0, count, PART)
    for start, part in zip(starts, _parts(images, starts, workers), strict=True):
        for name, values in zip(Pool._fields, part, strict=True):
            kept[name][start : start + len(values)] = values
        tell(len(part[0]))
    for array in kept.values():
        array.flush()


def _parts(images: Cues, starts: Sequence[int], workers: int) -> Iterator["Pool"]:
    if not workers:
        yield from (_part(images, start) for start in starts)
        return
    # Not forked: a process with threads, as those of torch, may not survive it.
    with ProcessPoolExecutor(workers, get_context("spawn")) as executor:
        yield from executor.map(_part, [images] * len(starts), starts)


def _part(images: Cues, start: int) -> Pool:
    numbers = np.arange(start, min(start + PART, len(images)))
    factors = images.factors(numbers)
    scenes = [
        render({name: column[i] for name, column in factors.items()}, images.size, images.trigger)
        for i in range(len(numbers))
    ]
    return Pool(
        np.stack([scene.image for scene in scenes]),
        np.packbits([scene.mask for scene in scenes], axis=2),
        np.stack([factors[cue] for cue in CUES], 1),
    )
