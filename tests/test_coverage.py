"""How often intervals of whole comparisons hold the CKA of all images that there could be."""

import warnings
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

import fastcka

LAYERS = ["0", "1", "2", "3"]
N = 32
REPETITIONS = 300


def networks():
    torch.manual_seed(1)
    a = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
    b = nn.Sequential(nn.Linear(20, 48), nn.Tanh(), nn.Linear(48, 48), nn.ReLU())
    return a.eval(), b.eval()


def draw(count, generator, kind):
    """Images of one normal distribution; or of ten classes, a normal distribution each."""
    x = torch.randn(count, 20, generator=generator)
    if kind == "classes":
        means = torch.randn(10, 20, generator=torch.Generator().manual_seed(7))
        x = means[torch.randint(0, 10, (count,), generator=generator)] + 0.7 * x
    return x


class Shuffled:
    """Batches in another order each time."""

    def __init__(self, x, generator):
        self.x, self.generator = x, generator

    def __iter__(self):
        return iter(self.x[torch.randperm(len(self.x), generator=self.generator)].split(N))


@cache
def population(kind):
    """CKA of some half a million images: its error is a hundredth of those below."""
    generator = torch.Generator().manual_seed(99)
    cka = fastcka.MinibatchCKA(LAYERS, LAYERS)

    def activations(network, x):
        return [x := module(x) for module in network]

    with torch.no_grad():
        for _ in range(2000):
            x = draw(256, generator, kind)
            cka.update(*(activations(network, x) for network in networks()))
    return cka.compute().cka


def measured(kind, batches, passes, weighting, tail):
    """Of every pair of layers: standard error over spread, and how often an interval holds."""
    a, b = networks()
    estimates, errors, held = [], [], []
    for repetition in range(REPETITIONS):
        generator = torch.Generator().manual_seed(1000 + repetition)
        x = draw(N * batches + tail, generator, kind)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", fastcka.CKAWarning)  # as if it did not shuffle
            result = fastcka.compare(
                a, b, Shuffled(x, generator), layers_a=LAYERS, passes=passes, weighting=weighting,
                progress=False,
            )  # fmt: skip
        low, high = result.ci(0.95)
        estimates.append(result.cka)
        errors.append(result.stderr)
        held.append((low <= population(kind)) & (population(kind) <= high))
    spread = np.std(estimates, axis=0, ddof=1)
    return np.sqrt(np.mean(np.square(errors), axis=0)) / spread, np.mean(held, axis=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "batches", "passes", "weighting", "tail"),
    [
        ("normal", 8, 1, "pairs", 0),
        ("normal", 32, 1, "pairs", 0),
        ("normal", 8, 3, "pairs", 0),
        ("normal", 32, 3, "pairs", 0),
        ("classes", 16, 1, "pairs", 12),
        ("classes", 16, 3, "pairs", 12),
        ("classes", 16, 1, "equal", 0),
        ("classes", 16, 3, "equal", 0),
    ],
)
def test_intervals_of_comparisons_hold_as_often_as_they_say(kind, batches, passes, weighting, tail):
    ratios, held = measured(kind, batches, passes, weighting, tail)
    print(
        f"\n{kind}, {batches} batches, passes {passes}, {weighting}, tail {tail}: error over "
        f"spread {ratios.min():.2f} to {ratios.max():.2f}, covered {held.min():.3f} to "
        f"{held.max():.3f}, in the mean {held.mean():.3f}"
    )
    # 300 repetitions tell a spread to 4 % and a coverage of 0.95 to 0.013; the pairs hang together.
    assert ratios.min() > 0.88
    assert 0.92 <= held.mean() <= (0.985 if passes == 1 else 1)
    assert held.min() >= 0.90
    # A single pass says no more than there is; several may vary less than one.
    assert ratios.max() < (1.13 if passes == 1 else 1.4)
