"""Which layers of a CNN are like which of a transformer? E2: Raghu et al. 2021, figures 2 and B.1.

All that the lower half of a ResNet does is done by the lowest quarter or third of a ViT, the rest
of the ResNet is like the ViT's middle, and the ViT's last layers are like nothing in the ResNet.
The paper reads this off the heat maps; here every layer of the CNN has its best match, the layer of
the transformer with the highest CKA. `fastcka study --experiments E2`. Costs one pass of each
network over the images.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fastcka.experiments.runner.claims import Claim, Verdict
from fastcka.experiments.runner.needs import Comparison, Need, NotApplicable, Side
from fastcka.experiments.runner.result import Result
from fastcka.experiments.runner.subjects import CNN, TRANSFORMER, Subject, Subjects
from fastcka.experiments.shared.depth import (
    by_tenths,
    low_and_high_stderr,
    low_less_high,
    rank_correlation,
    shares,
)
from fastcka.report.heatmap import heatmap
from fastcka.report.lines import Line, line_plot
from fastcka.result import CKAResult

NUMBERS = ("E2",)
TITLE = "Layers of a transformer and of a CNN"
FINDING = (
    "The lower half of a ResNet's layers is like the lowest quarter of a ViT's, the upper half is "
    "like the next third; the last layers of the ViT are unlike all of the ResNet."
)
LOW_HALF_IS_LOW_THIRD = Claim(
    "E2",
    "the lower half of the CNN is like the lowest third of the transformer: median depth of its "
    "layers' best matches there, from 0 to 1",
    "<=",
    1 / 3,
)
TOP_IS_UNLIKE = Claim(
    "E2",
    "the highest third of the transformer is less like the CNN than the lowest: difference of the "
    "mean CKA of their layers with the best match",
    ">=",
    0.0,
)
MATCHES_RISE = Claim(
    "E2",
    "the deeper a layer of the CNN, the deeper its best match in the transformer: rank correlation",
    ">=",
    0.8,
)
CLAIMS = (LOW_HALF_IS_LOW_THIRD, TOP_IS_UNLIKE, MATCHES_RISE)


@dataclass(frozen=True)
class Config:
    """Nothing to choose: the layers are those of the paper, where the network has them."""


def plan(config: Config, subjects: Subjects) -> list[Need]:
    pairs = _pairs(subjects)
    if not pairs:
        raise NotApplicable("needs a transformer and a CNN")
    return [_all_layers(*pair) for pair in pairs]


def finish(config: Config, subjects: Subjects, measured: Mapping[Need, CKAResult]) -> Result:
    arrays, layers, verdicts = {}, {}, []
    for transformer, cnn in _pairs(subjects):
        result = measured[_all_layers(transformer, cnn)]
        pair = f"{transformer.name}, {cnn.name}"
        layers[transformer.name], layers[cnn.name] = list(result.layers_a), list(result.layers_b)
        deep, best = best_matches(result.cka), best_of_rows(result.cka)
        error = best_of_rows(result.cka, result.stderr)
        arrays |= {
            f"cka/{pair}": result.cka,
            f"stderr/{pair}": result.stderr,
            f"match/{pair}": deep,
            f"match_tenths/{pair}": by_tenths(deep, np.median),
            f"best/{pair}": best,
            f"best_stderr/{pair}": error,
            f"best_tenths/{pair}": by_tenths(best, np.max),
        }
        low = deep[: len(deep) // 2]
        low = low[np.isfinite(low)]
        numbers = (
            (LOW_HALF_IS_LOW_THIRD, float(np.median(low)) if len(low) else np.nan, None),
            (TOP_IS_UNLIKE, low_less_high(best), low_and_high_stderr(error)),
            (MATCHES_RISE, rank_correlation(shares(len(deep)), deep), None),
        )
        why = "too few layers have a CKA, or all have the same best match"
        for claim, number, stderr in numbers:
            verdicts.append(
                Verdict(claim, pair, number, stderr, "" if np.isfinite(number) else why)
            )
    pairs = [[transformer.name, cnn.name] for transformer, cnn in _pairs(subjects)]
    return Result(arrays, {"layers": layers, "pairs": pairs}, tuple(verdicts))


def plot(result: Result) -> dict:
    """A heat map a pair; for each CNN, where its layers have their match, and how good it is."""
    layers, pairs = result.facts["layers"], result.facts["pairs"]
    figures = {
        f"{a}, {b}": heatmap(result.arrays[f"cka/{a}, {b}"], {a: layers[a]}, {b: layers[b]})
        for a, b in pairs
    }
    tenths = shares(10)
    for cnn in dict.fromkeys(b for _, b in pairs):
        those = [a for a, b in pairs if b == cnn]
        figures[f"best match, {cnn}"] = line_plot(
            {a: Line(tenths, result.arrays[f"match_tenths/{a}, {cnn}"]) for a in those}
            | {"equal depth": Line([0, 1], [0, 1], reference=True)},
            x_label="depth in the CNN (share of its layers)",
            y_label="depth of the best match (share)",
            title=f"transformers and {cnn}",
            x_limits=(0, 1),
            y_limits=(0, 1),
            note="medians of tenths of the layers",
        )
        figures[f"best CKA, {cnn}"] = line_plot(
            {a: Line(tenths, result.arrays[f"best_tenths/{a}, {cnn}"]) for a in those},
            x_label="depth in the transformer (share of its layers)",
            y_label="best CKA with any layer of the CNN",
            title=f"transformers and {cnn}",
            x_limits=(0, 1),
            y_limits=(0, 1),
            note="the best of tenths of the layers",
        )
    return figures


def best_matches(cka: np.ndarray) -> np.ndarray:
    """How deep the row of the highest CKA is, for every column; NaN where it has no value.

    >>> best_matches(np.array([[0.9, 0.2], [0.1, 0.3]]))
    array([0.25, 0.75])
    """
    rows = np.argmax(np.where(np.isfinite(cka), cka, -np.inf), axis=0)
    return np.where(np.isfinite(cka).any(axis=0), shares(len(cka))[rows], np.nan)


def best_of_rows(cka: np.ndarray, values: np.ndarray | None = None) -> np.ndarray:
    """The highest CKA of every row, or another value of the cell that has it.

    >>> best_of_rows(np.array([[0.9, 0.2], [0.1, 0.3]]))
    array([0.9, 0.3])
    """
    columns = np.argmax(np.where(np.isfinite(cka), cka, -np.inf), axis=1)
    return (cka if values is None else values)[np.arange(len(cka)), columns]


def _pairs(subjects: Subjects) -> list[tuple[Subject, Subject]]:
    return [(a, b) for a in subjects.own(TRANSFORMER) for b in subjects.own(CNN)]


def _all_layers(transformer: Subject, cnn: Subject) -> Comparison:
    return Comparison(Side(transformer.name, transformer.fine), Side(cnn.name, cnn.fine))
