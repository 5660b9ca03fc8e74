"""Do attention heads look near or far? E3 and E4: Raghu et al. 2021, figures 3, 4, C.5 and C.6.

The mean distance in the image between a patch and what a head attends to, averaged over patches and
images. The two lowest blocks of a ViT have heads that look near and heads that look far; in the two
highest all heads look far, nearly as far as attention that is the same everywhere. Distances are
given as shares of that of such uniform attention over the same grid, so networks of other patches
and images can be compared, and in pixels in the result.

Trained on fewer images, E4, the low blocks of the large ViTs have no heads that look near any more,
while a small one keeps them. That depends on how a network is trained: augmentation as CutMix makes
low heads look near without more images, so public weights may say the opposite.

`fastcka study --experiments E3`. Costs one pass of each transformer over the images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastcka.experiments.runner.claims import Claim, Verdict
from fastcka.experiments.runner.needs import Need, NotApplicable
from fastcka.experiments.runner.result import Result
from fastcka.experiments.runner.similarity import Means
from fastcka.experiments.runner.subjects import LESS_DATA, TRANSFORMER, Subject, Subjects
from fastcka.experiments.shared.head_distances import Distances, distances, head_distances
from fastcka.experiments.shared.rehearsed import probed, sort_out, why_not
from fastcka.report.lines import Line, line_plot

NUMBERS = ("E3", "E4")
TITLE = "Attention distances"
FINDING = (
    "Low blocks of a ViT have heads that look near beside heads that look far, in the highest all "
    "look far. Trained on fewer images, large ViTs lose the heads that look near; but that depends "
    "on the recipe, as some augmentations make low heads look near without more images."
)
SPREAD = Claim(
    "E3",
    "each of the two lowest attention layers has heads that look near and heads that look far: "
    "distance of the farthest less that of the nearest, as a share of uniform attention's",
    ">=",
    0.43,
)
NEAR = Claim(
    "E3",
    "each of the two lowest attention layers has a head that looks near: distance of the nearest "
    "head, as a share of uniform attention's",
    "<=",
    0.43,
)
FAR = Claim(
    "E3",
    "in each of the two highest attention layers all heads look far: distance of the nearest "
    "head, as a share of uniform attention's",
    ">=",
    0.69,
)
ABOVE = Claim(
    "E3",
    "the nearer half of the heads look farther in the highest attention layer than in the lowest: "
    "least gain of a head over its like by distance, as a share of uniform attention's",
    ">=",
    0.0,
)
LESS_NEAR = Claim(
    "E4",
    "trained on fewer images, the two lowest attention layers have no head that looks as near: "
    "gain in the distance of the nearest head, as a share of uniform attention's",
    ">=",
    0.0,
)
OF_DEPTH = (SPREAD, NEAR, FAR, ABOVE)
CLAIMS = (*OF_DEPTH, LESS_NEAR)
BLOCKS = 2  # at either end
NO_TRANSFORMER = "needs a transformer"
NO_VARIANT = "needs a transformer and the same one trained on a share of the images"


@dataclass(frozen=True)
class Config:
    """Nothing to choose: what patches give to other tokens is not made up for, as in the paper."""


def plan(config: Config, subjects: Subjects) -> list[Need]:
    usable, left_out = _usable(subjects)
    if not usable:
        raise NotApplicable(why_not(left_out, *left_out) or NO_TRANSFORMER)
    return [head_distances(subjects[name]) for name in usable]


def finish(config: Config, subjects: Subjects, measured: Mapping[Need, Means]) -> Result:
    arrays, layers, verdicts = {}, {}, []
    usable, left_out = _usable(subjects)
    found: dict[str, Distances] = {}
    for name in usable:
        one = subjects[name]
        seen = found[name] = distances(one, measured[head_distances(one)])
        layers[name] = list(seen.layers)
        arrays |= {
            f"pixels/{name}": seen.pixels,
            f"pixels_stderr/{name}": seen.stderr,
            f"uniform_pixels/{name}": seen.uniform,
            f"share/{name}": seen.shares,
            f"stderr/{name}": seen.share_stderr,
        }
    for one in subjects.own(TRANSFORMER):
        if one.name in found:
            verdicts += _by_depth(one.name, found[one.name])
        else:
            why = why_not(left_out, one.name)
            verdicts += [Verdict(claim, one.name, None, why=why) for claim in OF_DEPTH]
    if not subjects.own(TRANSFORMER):
        verdicts += [Verdict(claim, "", None, why=NO_TRANSFORMER) for claim in OF_DEPTH]
    images: dict[str, dict[str, float]] = {}
    for one in _with_less_data(subjects):
        why = why_not(left_out, one.name, one.variant.of)
        if why:
            verdicts.append(Verdict(LESS_NEAR, one.name, None, why=why))
            continue
        images.setdefault(one.variant.of, {})[one.name] = one.variant.value
        (less, less_error), (full, full_error) = (
            nearest(found[name].shares[:BLOCKS], found[name].share_stderr[:BLOCKS])
            for name in (one.name, one.variant.of)
        )
        # Of the same images: they err together, so that their errors add up at the most.
        verdicts.append(Verdict(LESS_NEAR, one.name, less - full, less_error + full_error))
    if not _with_less_data(subjects):
        verdicts.append(Verdict(LESS_NEAR, "", None, why=NO_VARIANT))
    facts = {"layers": layers, "less_data": images, "left_out": left_out, "unit": "pixels"}
    return Result(arrays, facts, tuple(verdicts))


def plot(result: Result) -> dict:
    """Of each network the heads of the lowest and highest blocks, and all blocks in short.

    Of a network with others trained on fewer images, its lowest blocks beside theirs.
    """
    figures = {}
    for name, layers in result.facts["layers"].items():
        if not layers:
            continue
        ends = [*range(len(layers))]
        ends = list(dict.fromkeys(ends[:BLOCKS] + ends[-BLOCKS:]))
        figures[name] = _sorted_heads(
            {f"block {block}": (name, block) for block in ends}, result, name
        )
        figures[f"{name}, all blocks"] = _all_blocks(result, name)
    for base, images in result.facts["less_data"].items():
        for block in range(min(BLOCKS, len(result.facts["layers"][base]))):
            shown = {f"{value:g} %": (name, block) for name, value in images.items()}
            shown["all images"] = (base, block)
            title = f"{base} trained on a share of the images, block {block}"
            figures[f"{base}, less data, block {block}"] = _sorted_heads(shown, result, title)
    return figures


def sorted_heads(shares: np.ndarray, stderr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Heads of one attention from near to far, with their errors; what is NaN is left out.

    >>> sorted_heads(np.array([0.5, 0.2, np.nan]), np.array([0.1, 0.3, np.nan]))
    (array([0.2, 0.5]), array([0.3, 0.1]))
    """
    order = np.argsort(shares, kind="stable")[: np.isfinite(shares).sum()]
    return shares[order], stderr[order]


def nearest(shares: np.ndarray, stderr: np.ndarray) -> tuple[float, float]:
    """The least distance of all heads, and its error."""
    place = np.nanargmin(shares)
    return float(shares.flat[place]), float(stderr.flat[place])


def _by_depth(name: str, seen: Distances) -> list[Verdict]:
    heads = [sorted_heads(*row) for row in zip(seen.shares, seen.share_stderr, strict=True)]
    if len(heads) < 2 * BLOCKS:
        why = f"it has {len(heads)} attention layers, too few for two low and two high ones"
        return [Verdict(claim, name, None, why=why) for claim in OF_DEPTH]
    low, high = heads[:BLOCKS], heads[-BLOCKS:]
    spreads = [(d[-1] - d[0], e[-1] + e[0]) for d, e in low]
    several = all(len(d) > 1 for d, _ in low)
    why = "" if several else "its lowest attention layers have a single head"
    spread = min(spreads) if several else (None, None)
    near = max((d[0], e[0]) for d, e in low)
    far = min((d[0], e[0]) for d, e in high)
    return [
        Verdict(SPREAD, name, *spread, why=why),
        Verdict(NEAR, name, *near),
        Verdict(FAR, name, *far),
        Verdict(ABOVE, name, *_least_gap(heads[0], heads[-1])),
    ]


def _least_gap(low: Sequence[np.ndarray], high: Sequence[np.ndarray]) -> tuple[float, float]:
    """Over the nearer half of the heads of the lowest block; the highest may have other many."""
    count, others = len(low[0]), len(high[0])
    ranks = (np.arange((count + 1) // 2) + 0.5) / count
    theirs = [np.interp(ranks, (np.arange(others) + 0.5) / others, x) for x in high]
    gaps = theirs[0] - low[0][: len(ranks)]
    place = int(np.argmin(gaps))
    return gaps[place], theirs[1][place] + low[1][place]


def _sorted_heads(shown: Mapping[str, tuple[str, int]], result: Result, title: str):
    lines = {}
    for label, (name, block) in shown.items():
        y, error = sorted_heads(
            result.arrays[f"share/{name}"][block], result.arrays[f"stderr/{name}"][block]
        )
        lines[label] = Line(np.arange(len(y)), y, error)
    return line_plot(
        lines,
        x_label="head, sorted by distance",
        y_label="mean attention distance (share of uniform)",
        title=title,
        note=_note(result, [name for name, _ in shown.values()]),
        y_limits=(0, None),
        whole=True,
        ordered=True,
        levels={"uniform attention": 1.0},
    )


def _all_blocks(result: Result, name: str):
    shares, error = result.arrays[f"share/{name}"], result.arrays[f"stderr/{name}"]
    blocks, rows = np.arange(len(shares)), np.arange(len(shares))
    near, far = np.nanargmin(shares, 1), np.nanargmax(shares, 1)
    lines = {
        "farthest head": Line(blocks, shares[rows, far], error[rows, far]),
        "mean of the heads": Line(blocks, np.nanmean(shares, 1), np.nanmean(error, 1)),
        "nearest head": Line(blocks, shares[rows, near], error[rows, near]),
    }
    return line_plot(
        lines,
        x_label="block",
        y_label="mean attention distance (share of uniform)",
        title=name,
        note=_note(result, [name]),
        whole=True,
        levels={"uniform attention": 1.0},
    )


def _note(result: Result, names: Sequence[str]) -> str:
    """What uniform attention is in pixels, where it is the same in all of it."""
    uniform = np.unique(
        np.concatenate([result.arrays[f"uniform_pixels/{n}"] for n in names]).round(6)
    )
    return f"uniform: {uniform[0]:.1f} pixels" if len(uniform) == 1 else ""


def _with_less_data(subjects: Subjects) -> list[Subject]:
    return [
        one
        for one in subjects.variants(LESS_DATA)
        if subjects[one.variant.of].family == TRANSFORMER
    ]


def _usable(subjects: Subjects) -> tuple[dict, dict[str, str]]:
    """Transformers, also those trained on fewer images; and why others are left out."""
    pairs = [(subjects[one.variant.of], one) for one in _with_less_data(subjects)]
    asked = [*subjects.own(TRANSFORMER), *(one for pair in pairs for one in pair)]
    return sort_out(dict.fromkeys(asked), lambda one: probed(one, head_distances(one)))
