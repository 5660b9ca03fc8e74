"""Which layers need many images to be learned? E17: Raghu et al. 2021, figure 12.

Networks trained on a share of the images, each block compared with the same block of the network
that was trained on all. The low blocks are alike at a tenth of the images and less, the high ones
need many more. What training alike from other random numbers gives is the most that can be
expected, and drawn beside. `fastcka study --experiments E17`. Costs one pass of each network over
the images, and the training of a network for each share: `fastcka train NAME --data-fraction 0.1`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fastcka.experiments.runner.claims import Claim, Verdict
from fastcka.experiments.runner.needs import Need, NotApplicable
from fastcka.experiments.runner.result import Result
from fastcka.experiments.runner.subjects import LESS_DATA, OTHER_SEED, Subjects
from fastcka.experiments.shared.depth import low_and_high_stderr, low_less_high
from fastcka.experiments.shared.same_block import OTHER_BLOCKS, blocks_alike, same_block, variants
from fastcka.report.lines import Line, line_plot
from fastcka.result import CKAResult

NUMBERS = ("E17",)
TITLE = "Trained on fewer images"
FINDING = (
    "The low layers of a ViT are alike from a tenth of the images on and less; the high ones, and "
    "those of the larger network, need many more."
)
FALLS = Claim(
    "E17",
    "trained on fewer images, the lowest third of the blocks are more like those of the network "
    "trained on all than the highest third: difference of the mean CKA of a block with its like",
    ">=",
    0.0,
)
RISES = Claim(
    "E17",
    "the more images a network was trained on, the more its blocks are like those of the network "
    "trained on all: least rise of their mean CKA from one share of the images to the next",
    ">=",
    0.0,
)
A_TENTH_IS_ENOUGH = Claim(
    "E17",
    "trained on a tenth of the images, the lowest third of the blocks are much like those of the "
    "network trained on all: mean CKA of a block with its like",
    ">=",
    0.8,
)
CLAIMS = (FALLS, RISES, A_TENTH_IS_ENOUGH)
TENTH = 10  # per cent


@dataclass(frozen=True)
class Config:
    """Nothing to choose."""


def plan(config: Config, subjects: Subjects) -> list[Need]:
    less = variants(subjects, LESS_DATA)
    if not less:
        raise NotApplicable(
            OTHER_BLOCKS
            if subjects.variants(LESS_DATA)
            else "needs a network and the same one trained on a share of the images"
        )
    bases = {one.variant.of for one in less}
    ceilings = [one for one in variants(subjects, OTHER_SEED) if one.variant.of in bases]
    return [blocks_alike(one) for one in (*less, *ceilings)]


def finish(config: Config, subjects: Subjects, measured: Mapping[Need, CKAResult]) -> Result:
    arrays, shares, seeds, verdicts = {}, {}, {}, []
    less = variants(subjects, LESS_DATA)
    for base in dict.fromkeys(one.variant.of for one in less):
        those = [one for one in less if one.variant.of == base]
        ceilings = [one for one in variants(subjects, OTHER_SEED) if one.variant.of == base]
        for one in (*those, *ceilings):
            arrays[f"cka/{one.name}"], arrays[f"stderr/{one.name}"] = same_block(one, measured)
        shares[base] = {one.name: one.variant.value for one in those}
        seeds[base] = [one.name for one in ceilings]
        for one in those:
            cka, stderr = arrays[f"cka/{one.name}"], arrays[f"stderr/{one.name}"]
            drop = low_less_high(cka)
            why = "" if np.isfinite(drop) else "it has fewer than three blocks with a CKA"
            verdicts.append(Verdict(FALLS, one.name, drop, low_and_high_stderr(stderr), why))
        curves = [(v, *(arrays[f"{k}/{n}"] for k in KEPT)) for n, v in shares[base].items()]
        verdicts.append(_rises(base, curves))
        tenths = [name for name, share in shares[base].items() if share == TENTH]
        for name in tenths:
            third = slice(max(1, len(arrays[f"cka/{name}"]) // 3))
            mean, stderr = (float(arrays[f"{what}/{name}"][third].mean()) for what in KEPT)
            why = "" if np.isfinite(mean) else "a low block has no CKA"
            verdicts.append(Verdict(A_TENTH_IS_ENOUGH, name, mean, stderr, why))
        if not tenths:
            why = "needs a network trained on 10 % of the images"
            verdicts.append(Verdict(A_TENTH_IS_ENOUGH, base, None, why=why))
    return Result(arrays, {"shares": shares, "other_seed": seeds}, tuple(verdicts))


KEPT = ("cka", "stderr")


def plot(result: Result) -> dict:
    """Of each network trained on all images: a line a share, by block."""
    figures = {}
    for base, shares in result.facts["shares"].items():
        lines = {f"{share:g} %": _line(result, name) for name, share in shares.items()}
        seeds = result.facts["other_seed"][base]
        for number, name in enumerate(seeds, 1):
            told = f"all, other seed{f' {number}' if len(seeds) > 1 else ''}"
            lines[told] = _line(result, name, reference=True)
        figures[base] = line_plot(
            lines,
            x_label="block",
            y_label="CKA with the block trained on all images",
            title=base,
            y_limits=(0, 1),
            whole=True,
            ordered=True,
        )
    return figures


def _rises(base: str, curves: list[tuple[float, np.ndarray, np.ndarray]]) -> Verdict:
    means = {}
    for share, cka, stderr in curves:
        means.setdefault(share, []).append((cka.mean(), stderr.mean()))
    rising = [np.mean(means[share], axis=0) for share in sorted(means)]
    if len(rising) < 2:
        return Verdict(RISES, base, None, why="needs networks trained on two shares of the images")
    steps = [(b - a, error_a + error_b) for (a, error_a), (b, error_b) in pairwise(rising)]
    # All are of the same images: errors of means are no more than means of errors.
    least, stderr = (float(value) for value in steps[np.argmin([step for step, _ in steps])])
    why = "" if np.isfinite(least) else "a block has no CKA"
    return Verdict(RISES, base, least, stderr, why)


def _line(result: Result, name: str, reference: bool = False) -> Line:
    cka, stderr = (result.arrays[f"{what}/{name}"] for what in KEPT)
    return Line(np.arange(len(cka)), cka, stderr, reference)
