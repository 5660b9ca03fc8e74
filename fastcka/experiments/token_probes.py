"""Do single tokens know the class? E13 and E14: Raghu et al. 2021, figures 11, D.4 and F.3.

Few-shot probes on every single token of a layer (class token and other prefix tokens left out), and
on the class token, the mean of the tokens, or the first. Where a ViT classifies by its class token,
its other tokens know little of the class at any depth; tokens of a ViT that averages them, and
positions of a CNN, know it in the last layers, and all tokens alike. Either ViT does as well by its
own way to put tokens together. In claims an accuracy counts from chance, 0, to always right, 1.

`fastcka study --experiments E13 E14`. Costs one pass of each network over the images that probes
are fitted to and one over those they are tested on, and memory for single tokens: 4 bytes for each
image fitted, token and channel of a layer, and 8 for each token, channel and channel plus class of
the probe of each draw; layers are five of more than eight, tokens at most 7 x 7 at equal distances.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import hypot

import numpy as np

from fastcka.analysis.observer import Taps
from fastcka.analysis.token_features import token_features
from fastcka.experiments.runner.claims import Claim, Verdict
from fastcka.experiments.runner.needs import Need, NotApplicable, Probe
from fastcka.experiments.runner.probing import Accuracies
from fastcka.experiments.runner.result import Result
from fastcka.experiments.runner.subjects import CNN, TRANSFORMER, Subject, Subjects
from fastcka.experiments.shared.accuracy import above_chance, at, curve, depths, of_gain
from fastcka.experiments.shared.classifier import (
    CLASS_TOKEN,
    NO_TWINS,
    classifies_by,
    transformers,
    twins,
)
from fastcka.experiments.shared.classifier import MEAN as BY_MEAN
from fastcka.experiments.shared.probes import CLS, FIRST, MEAN, MEAN_OF_ALL, names_of, of_blocks
from fastcka.experiments.shared.rehearsed import grid, probed, sort_out, why_not
from fastcka.report.lines import Line, line_plot
from fastcka.report.maps import maps

NUMBERS = ("E13", "E14")
TITLE = "What single tokens know"
FINDING = (
    "Single tokens of a ViT with a class token classify poorly at all depths; those of a ViT that "
    "averages them, and of a ResNet, do well in the last layers, and are interchangeable."
)
MEAN_KNOWS = Claim(
    "E13",
    "single tokens of the last layer classify better where a network averages them than where it "
    "has a class token: ratio of their accuracies above chance",
    ">=",
    4.0,
)
INTERCHANGEABLE = Claim(
    "E13",
    "where a transformer averages its tokens, those of the last layer classify equally well: "
    "difference of the best and the worst accuracy above chance",
    "<=",
    0.02,
)
EQUAL_HEADS = Claim(
    "E14",
    "at the end, the class token of a transformer and the mean of its twin's tokens classify "
    "equally well: difference of their accuracies above chance",
    "<=",
    0.05,
)
CLASS_TOKEN_BEST = Claim(
    "E14",
    "at the end, the class token of a transformer classifies better than the mean of its other "
    "tokens: gain in accuracy above chance",
    ">=",
    0.0,
)
FIRST_IS_ENOUGH = Claim(
    "E14",
    "at the end, the first token of a transformer that averages its tokens classifies as well as "
    "their mean: difference of their accuracies above chance",
    "<=",
    0.02,
)
FIRST_IS_LATE = Claim(
    "E14",
    "at a depth of 0.3, the first token of a transformer that averages its tokens classifies "
    "worse than their mean: loss in accuracy above chance",
    ">=",
    0.1,
)
CLAIMS = (
    MEAN_KNOWS,
    INTERCHANGEABLE,
    EQUAL_HEADS,
    CLASS_TOKEN_BEST,
    FIRST_IS_ENOUGH,
    FIRST_IS_LATE,
)
EARLY = 0.3
NOISE = 4  # errors of a difference: so far apart are the ends of some 50 equal values at most
KEPT = ("accuracy", "stderr")
TOGETHER = {CLASS_TOKEN: (CLS, MEAN, MEAN_OF_ALL), BY_MEAN: (FIRST, MEAN)}
SHORT = {CLASS_TOKEN: "CLS", BY_MEAN: "GAP"}
IN_WORDS = {
    CLASS_TOKEN: {CLS: "class token", MEAN: "mean without it", MEAN_OF_ALL: "mean of all"},
    BY_MEAN: {FIRST: "first token", MEAN: "mean"},
}


@dataclass(frozen=True)
class Config:
    """Which single tokens are probed.

    Attributes:
        depths: of networks with more than `all_up_to` blocks, at how many, from the first to
            the last at equal distances.
        all_up_to: blocks.
        side: rows and columns of single tokens that are probed, at most.
    """

    depths: int = 5
    all_up_to: int = 8
    side: int = 7


@dataclass(frozen=True)
class Single:
    """Which tokens of some blocks are probed, row by row of a coarser grid.

    Attributes:
        blocks: their numbers.
        sides: by block, rows and columns.
        need: the probe.
    """

    blocks: tuple[int, ...]
    sides: dict[str, tuple[int, int]]
    need: Probe


def plan(config: Config, subjects: Subjects) -> list[Need]:
    single, alone = _single(config, subjects)
    together, apart = _together(subjects)
    if not single and not together:
        reasons = alone | apart
        raise NotApplicable(why_not(reasons, *reasons) or "needs a network with blocks")
    needs = [one.need for one in single.values()]
    return needs + [need for series in together.values() for need in series.values()]


def finish(config: Config, subjects: Subjects, measured: Mapping[Need, Accuracies]) -> Result:
    single, alone = _single(config, subjects)
    together, apart = _together(subjects)
    arrays, maps, series, classes = {}, {}, {}, 0
    for name, one in single.items():
        found, layers = measured[one.need], list(one.sides)
        classes = found.classes
        for layer, sides in one.sides.items():
            for what in KEPT:
                values = getattr(found, what)[f"{layer}[each]"]
                arrays[f"{what}/{name}/{layer}"] = np.asarray(values).reshape(sides)
        for what in KEPT:
            # All tokens meet the same images: the error of the mean is no more than that of one.
            means = [arrays[f"{what}/{name}/{layer}"].mean() for layer in layers]
            arrays[f"tokens/{what}/{name}"] = np.array(means)
        count = len(subjects[name].blocks)
        arrays[f"tokens/depth/{name}"] = depths(count)[list(one.blocks)]
        maps[name] = layers
    for name, needs in together.items():
        series[name] = classifies_by(subjects[name])
        for tokens, need in needs.items():
            classes = measured[need].classes
            values = curve(measured[need], names_of(subjects[name], tokens))
            for what, value in zip(KEPT, values, strict=True):
                arrays[f"{tokens}/{what}/{name}"] = value
    known = _Known(arrays, classes, alone, apart)
    facts = {
        "layers": maps,
        "series": series,
        "twins": [[one.name, other.name] for one, other in twins(subjects)],
        "classes": classes,
        "left_out": {"single tokens": alone, "tokens together": apart},
    }
    return Result(arrays, facts, tuple(_verdicts(subjects, known)))


def plot(result: Result) -> dict:
    """Single tokens by depth and at their places; and tokens put together in several ways."""
    figures = {}
    arrays, facts = result.arrays, result.facts
    look = {
        "x_label": "depth (share of the blocks)",
        "y_label": "accuracy",
        "levels": {"chance": 1 / facts["classes"]},
        "x_limits": (0, 1.02),
        "y_limits": (0, 1),
    }
    if facts["layers"]:
        lines = {
            name: Line(*(arrays[f"tokens/{what}/{name}"] for what in ("depth", *KEPT)))
            for name in facts["layers"]
        }
        figures["single tokens"] = line_plot(lines, title="single tokens, their mean", **look)
    for name, layers in facts["layers"].items():
        tables = {layer: arrays[f"accuracy/{name}/{layer}"] for layer in layers}
        error = max(arrays[f"stderr/{name}/{layer}"].max() for layer in layers)
        figures[f"{name}, token by token"] = maps(
            {"": {f"{layer}: {table.mean():.2f}": table for layer, table in tables.items()}},
            label="accuracy",
            limits=(0, 1),
            title=name,
            note="numbers: mean of the tokens; standard error of a token at most "
            f"{error:.2f}; chance: {1 / facts['classes']:.3g}",
        )
    paired = [tuple(pair) for pair in facts["twins"] if all(one in facts["series"] for one in pair)]
    lonely = [(name,) for name in facts["series"] if not any(name in pair for pair in paired)]
    for names in (*paired, *lonely):
        lines = {}
        for name in names:
            by = facts["series"][name]
            for tokens, told in IN_WORDS[by].items():
                accuracy, stderr = (arrays[f"{tokens}/{what}/{name}"] for what in KEPT)
                lines[f"{SHORT[by]}; {told}"] = Line(depths(len(accuracy)), accuracy, stderr)
        figures[f"{', '.join(names)}, together"] = line_plot(lines, title=", ".join(names), **look)
    return figures


def _single(config: Config, subjects: Subjects) -> tuple[dict[str, Single], dict[str, str]]:
    """Of each network the probes on single tokens, and why there are none."""

    def attempt(one: Subject) -> Single:
        blocks = _spaced(len(one.blocks), _depths(config, len(one.blocks)))
        sides, tokens = {}, {}
        for block in (one.blocks[number] for number in blocks):
            places = grid(one, block)
            rows, columns = (_spaced(side, config.side) for side in (places.rows, places.cols))
            sides[block] = len(rows), len(columns)
            numbers = [places.index(r, c) - places.prefix for r in rows for c in columns]
            tokens[f"{block}[each]"] = numbers
        what = f"single tokens of {', '.join(sides)}, {config.side} x {config.side} at most"

        def make(module) -> Taps:
            taps = token_features(module, list(sides), "each").layers
            return Taps(taps, lambda layer, x: x[:, tokens[layer]])

        need = Probe(one.name, what, make)
        probed(one, need)
        return Single(tuple(blocks), sides, need)

    return sort_out(subjects.own(), attempt)


def _depths(config: Config, blocks: int) -> int:
    return blocks if blocks <= config.all_up_to else config.depths


def _spaced(count: int, most: int) -> list[int]:
    """So many of `count` numbers from 0 on, at equal distances, the first and last among them.

    >>> _spaced(12, 5), _spaced(3, 5)
    ([0, 3, 6, 8, 11], [0, 1, 2])
    """
    return [round(place) for place in np.linspace(0, count - 1, min(count, most))]


def _together(subjects: Subjects) -> tuple[dict[str, dict[str, Probe]], dict[str, str]]:
    """Of each transformer the probes on tokens put together, and why there are none."""

    def attempt(one: Subject) -> dict[str, Probe]:
        by = classifies_by(one)
        if by is None:
            raise ValueError(
                "it classifies neither by its class token nor by the mean of its tokens"
            )
        return {tokens: of_blocks(one, tokens) for tokens in TOGETHER[by]}

    return sort_out(subjects.own(TRANSFORMER), attempt)


@dataclass(frozen=True)
class _Known:
    """Accuracies from chance, 0, to always right, 1, each with its error."""

    arrays: Mapping[str, np.ndarray]
    classes: int
    alone: Mapping[str, str]
    apart: Mapping[str, str]

    def single(self, one: Subject) -> tuple[float, float]:
        """Of single tokens of the last block, their mean."""
        accuracy, stderr = (self.arrays[f"tokens/{what}/{one.name}"][-1] for what in KEPT)
        return above_chance(accuracy, self.classes), of_gain(stderr, self.classes)

    def spread(self, one: Subject) -> tuple[float, float]:
        """From the worst to the best of these."""
        accuracy, stderr = (self.arrays[f"{what}/{one.name}/{one.blocks[-1]}"] for what in KEPT)
        ends = [f(accuracy) for f in (np.argmin, np.argmax)]
        errors = stderr.ravel()[ends]
        return (
            of_gain(float(np.ptp(accuracy)), self.classes),
            of_gain(hypot(*errors), self.classes),
        )

    def together(self, one: Subject, tokens: str, depth: float = 1.0) -> tuple[float, float]:
        accuracy, stderr = (at(depth, self.arrays[f"{tokens}/{what}/{one.name}"]) for what in KEPT)
        return above_chance(accuracy, self.classes), of_gain(stderr, self.classes)


def _verdicts(subjects: Subjects, known: _Known) -> list[Verdict]:
    with_token, by_mean = (transformers(subjects, by) for by in (CLASS_TOKEN, BY_MEAN))
    rows = [
        _times(mean, one, known) for one in with_token for mean in (*by_mean, *subjects.own(CNN))
    ]
    for one in by_mean:
        rows.append(_spread(one, known))
        for claim, depth, sign in ((FIRST_IS_ENOUGH, 1.0, 0), (FIRST_IS_LATE, EARLY, 1)):
            rows.append(_difference(claim, (one, MEAN), (one, FIRST), known, depth, sign))
    for one in with_token:
        rows.append(_difference(CLASS_TOKEN_BEST, (one, CLS), (one, MEAN), known, 1.0, 1))
    for one, other in twins(subjects):
        rows.append(_difference(EQUAL_HEADS, (one, CLS), (other, MEAN), known, 1.0, 0))
    a_mean = "needs a transformer that classifies by the mean of its tokens"
    a_token = "needs a transformer that classifies by its class token"
    told = {
        MEAN_KNOWS: f"{a_token}, and one that classifies by their mean or a CNN",
        INTERCHANGEABLE: a_mean,
        EQUAL_HEADS: NO_TWINS,
        CLASS_TOKEN_BEST: a_token,
        FIRST_IS_ENOUGH: a_mean,
        FIRST_IS_LATE: a_mean,
    }
    answered = {row.claim for row in rows}
    rows += [Verdict(claim, "", None, why=told[claim]) for claim in CLAIMS if claim not in answered]
    return sorted(rows, key=lambda row: CLAIMS.index(row.claim))


def _times(mean: Subject, one: Subject, known: _Known) -> Verdict:
    """How many times as much single tokens know; what is below its error counts as that."""
    of, why = f"{mean.name}, {one.name}", why_not(known.alone, mean.name, one.name)
    if why:
        return Verdict(MEAN_KNOWS, of, None, why=why)
    (high, error), (low, floor) = known.single(mean), known.single(one)
    if _by_chance((high, error), (low, floor)):
        return Verdict(MEAN_KNOWS, of, None, why="single tokens of neither classify above chance")
    low = max(low, floor)
    if low == 0:
        return Verdict(
            MEAN_KNOWS, of, None, why=f"single tokens of {one.name} never classify right"
        )
    return Verdict(MEAN_KNOWS, of, high / low, hypot(error / low, high * floor / low**2))


def _by_chance(*found: tuple[float, float]) -> bool:
    """Whether none of these, each with its error, is above chance: then they are alike anyway.

    >>> _by_chance((0.1, 0.1), (-0.1, 0.1)), _by_chance((0.1, 0.1), (0.3, 0.1))
    (True, False)
    """
    return all(value <= 2 * error for value, error in found)


def _spread(one: Subject, known: _Known) -> Verdict:
    """From the worst to the best token, unless noise alone may make it more than is claimed."""
    why = why_not(known.alone, one.name)
    if why:
        return Verdict(INTERCHANGEABLE, one.name, None, why=why)
    if _by_chance(known.single(one)):
        why = "its single tokens do not classify above chance"
        return Verdict(INTERCHANGEABLE, one.name, None, why=why)
    spread, error = known.spread(one)
    if INTERCHANGEABLE.threshold < spread < NOISE * error:
        why = f"it is {spread:.2g}, with an error of {error:.2g}: more images to test on would tell"
        spread = None
    return Verdict(INTERCHANGEABLE, one.name, spread, error, why)


def _difference(claim, more, less, known: _Known, depth: float, sign: int) -> Verdict:
    """Of two ways to put tokens together; with `sign` 0, its size."""
    names = list(dict.fromkeys(one.name for one, _ in (more, less)))
    of, why = ", ".join(names), why_not(known.apart, *names)
    if why:
        return Verdict(claim, of, None, why=why)
    (a, error_a), (b, error_b) = (known.together(*one, depth) for one in (more, less))
    if not sign and _by_chance((a, error_a), (b, error_b)):
        return Verdict(claim, of, None, why="neither classify above chance")
    return Verdict(claim, of, a - b if sign else abs(a - b), hypot(error_a, error_b))
