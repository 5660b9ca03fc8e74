"""How far the heads of a transformer look: what several experiments ask for, measured once."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fastcka.analysis.attention_distance import AttentionDistance
from fastcka.analysis.observer import Observer, Values
from fastcka.experiments.runner.needs import Watch
from fastcka.experiments.runner.similarity import Means
from fastcka.experiments.runner.subjects import Subject

WHAT = "attention distance"
UNIFORM = "uniform/"  # before the name of an attention: what uniform attention gives there


class _WithUniform:
    """An observer: the distances, and beside them those of uniform attention on the same grid."""

    def __init__(self):
        self._distance = AttentionDistance()

    @contextmanager
    def watching(self, model: nn.Module, n: int) -> Iterator[Values]:
        values: Values = {}
        with self._distance.watching(model, n) as seen:
            yield values
        uniform = self._distance.uniform
        values.update(seen)
        values.update(
            {UNIFORM + name: torch.full((n,), uniform[name], dtype=torch.float64) for name in seen}
        )


def observer(module: nn.Module) -> Observer:
    return _WithUniform()


def head_distances(one: Subject) -> Watch:
    return Watch(one.name, WHAT, observer)


@dataclass(frozen=True)
class Distances:
    """Mean attention distances, attentions in the order of the network.

    Attributes:
        layers: names of the attention modules.
        pixels, stderr: [attentions, heads]; NaN where another attention has more heads.
        uniform: [attentions], of uniform attention over the same grid, pixels.
    """

    layers: tuple[str, ...]
    pixels: np.ndarray
    stderr: np.ndarray
    uniform: np.ndarray

    @property
    def shares(self) -> np.ndarray:
        """The distances as shares of that of uniform attention."""
        return self.pixels / self.uniform[:, None]

    @property
    def share_stderr(self) -> np.ndarray:
        return self.stderr / self.uniform[:, None]


def distances(one: Subject, means: Means) -> Distances:
    """From what the `Watch` measured; attention over a single cell has no distance."""
    names = [name for name in means.mean if means.mean.get(UNIFORM + name, 0) > 0]
    names.sort(key=lambda name: _place(one, name))
    return Distances(
        tuple(names),
        _rows(means.mean, names),
        _rows(means.stderr, names),
        np.array([float(means.mean[UNIFORM + name]) for name in names]),
    )


def _place(one: Subject, name: str) -> tuple[int, int]:
    """The place of a module in its network, and which of its calls."""
    module, _, call = name.partition("#")
    return list(one.modules).index(module), int(call or 1)


def _rows(values: Mapping[str, np.ndarray], names: list[str]) -> np.ndarray:
    rows = np.full((len(names), max((values[name].size for name in names), default=0)), np.nan)
    for row, name in zip(rows, names, strict=True):
        row[: values[name].size] = values[name]
    return rows
