"""Which layers does fine-tuning change? E18: Raghu et al. 2021, figures G.1 and G.2.

Each block before fine-tuning with the same block after. The first blocks stay as they were, the
last change, and more where the new task is less like the old. Beside it, as in the paper, all
layers of transformers of several sizes with those of each other, of which it claims nothing.
`fastcka study --experiments E18`. Costs one pass of each network over the images.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from fastcka.experiments.runner.claims import Claim, Verdict
from fastcka.experiments.runner.needs import Need, NotApplicable
from fastcka.experiments.runner.result import Result
from fastcka.experiments.runner.subjects import FINE_TUNED, TRANSFORMER, Subject, Subjects
from fastcka.experiments.shared.coarse_layers import layers_alike
from fastcka.experiments.shared.depth import low_and_high_stderr, low_less_high
from fastcka.experiments.shared.same_block import OTHER_BLOCKS, blocks_alike, same_block, variants
from fastcka.report.heatmap import heatmap
from fastcka.report.lines import Line, line_plot
from fastcka.result import CKAResult

NUMBERS = ("E18",)
TITLE = "Before and after fine-tuning"
FINDING = (
    "Fine-tuning leaves the first four or five blocks nearly as they were, and changes the last; "
    "tasks that are unlike the pre-training change more."
)
FIRST_BLOCKS_STAY = Claim(
    "E18",
    "fine-tuning changes the lowest third of the blocks less than the highest: difference of the "
    "mean CKA of a block before with itself after",
    ">=",
    0.0,
)
CLAIMS = (FIRST_BLOCKS_STAY,)


@dataclass(frozen=True)
class Config:
    """Nothing to choose."""


def plan(config: Config, subjects: Subjects) -> list[Need]:
    needs = [blocks_alike(one) for one in variants(subjects, FINE_TUNED)]
    needs += [layers_alike(a, b) for a, b in _pairs(subjects)]
    if not needs:
        raise NotApplicable(f"{_why(subjects)}, or two transformers")
    return needs


def finish(config: Config, subjects: Subjects, measured: Mapping[Need, CKAResult]) -> Result:
    arrays, tuned, layers, verdicts = {}, {}, {}, []
    for one in variants(subjects, FINE_TUNED):
        cka, stderr = same_block(one, measured)
        arrays[f"cka/{one.name}"], arrays[f"stderr/{one.name}"] = cka, stderr
        tuned.setdefault(one.variant.of, []).append(one.name)
        drop = low_less_high(cka)
        why = "" if np.isfinite(drop) else "it has fewer than three blocks with a CKA"
        stderr = low_and_high_stderr(stderr)
        verdicts.append(Verdict(FIRST_BLOCKS_STAY, one.name, drop, stderr, why))
    if not verdicts:
        verdicts.append(Verdict(FIRST_BLOCKS_STAY, "", None, why=_why(subjects)))
    for a, b in _pairs(subjects):
        result, pair = measured[layers_alike(a, b)], f"{a.name}, {b.name}"
        arrays[f"map/{pair}"], arrays[f"map_stderr/{pair}"] = result.cka, result.stderr
        layers[a.name], layers[b.name] = list(result.layers_a), list(result.layers_b)
    pairs = [[a.name, b.name] for a, b in _pairs(subjects)]
    facts = {"fine_tuned": tuned, "layers": layers, "pairs": pairs}
    return Result(arrays, facts, tuple(verdicts))


def plot(result: Result) -> dict:
    """Of each network that was fine-tuned, a line a task; a heat map of any two transformers."""
    figures, layers = {}, result.facts["layers"]
    for base, names in result.facts["fine_tuned"].items():
        lines = {}
        for name in names:
            cka, stderr = result.arrays[f"cka/{name}"], result.arrays[f"stderr/{name}"]
            lines[name] = Line(np.arange(len(cka)), cka, stderr)
        figures[base] = line_plot(
            lines,
            x_label="block",
            y_label="CKA of the block before and after",
            title=f"fine-tuning of {base}",
            y_limits=(0, 1),
            whole=True,
        )
    for a, b in result.facts["pairs"]:
        map_ = result.arrays[f"map/{a}, {b}"]
        figures[f"{a}, {b}"] = heatmap(map_, {a: layers[a]}, {b: layers[b]})
    return figures


def _why(subjects: Subjects) -> str:
    if subjects.variants(FINE_TUNED):
        return OTHER_BLOCKS
    return "needs a network and the same one fine-tuned"


def _pairs(subjects: Subjects) -> list[tuple[Subject, Subject]]:
    return list(combinations(subjects.own(TRANSFORMER), 2))
