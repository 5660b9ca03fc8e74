"""What do skip connections carry? E8 and E9: Raghu et al. 2021, figures 7, E.1 and E.2.

Of every token at every addition z + f(z), how much larger the skip connection z is than its branch
f(z), and how far the direction of z is kept, cos(z, z + f(z)). In a ViT there are two halves: in
the lower blocks the class token is carried by the skip connections while the patches are changed by
the branches, in the upper ones it is the other way round. The ratios of a ViT are above those of a
ResNet. Means over images of what each token has, not ratios of means.

`fastcka study --experiments E8`. Costs one pass of each network over the images.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from fastcka.analysis.observer import Observer, Values
from fastcka.analysis.skip_connections import MEASURES, SkipConnections
from fastcka.analysis.sublayers import residuals
from fastcka.experiments.runner.claims import Claim, Verdict
from fastcka.experiments.runner.needs import Need, NotApplicable, Watch
from fastcka.experiments.runner.result import Result
from fastcka.experiments.runner.similarity import Means
from fastcka.experiments.runner.subjects import CNN, TRANSFORMER, Subject, Subjects
from fastcka.experiments.shared.depth import shares
from fastcka.experiments.shared.rehearsed import probed, sort_out, why_not
from fastcka.report.lines import Line, line_plot
from fastcka.report.maps import maps

NUMBERS = ("E8", "E9")
TITLE = "Skip connections and their branches"
FINDING = (
    "In the lower half of a ViT the skip connections carry the class token and the branches change "
    "the patches, in the upper half it is the other way round; a ViT's skip connections outweigh "
    "their branches more than a ResNet's do."
)
RATIO, KEPT = "norm_ratio", "cos_skip_total"
CLASS_IS_CARRIED = Claim(
    "E8",
    "skip connections carry more of the class token in the lower half of the blocks than in the "
    "upper: difference of the mean norm ratio of skip connection to branch",
    ">=",
    0.0,
)
PATCHES_ARE_CHANGED = Claim(
    "E8",
    "skip connections carry less of the patches in the lower half of the blocks than in the "
    "upper: difference of the mean norm ratio of skip connection to branch",
    ">=",
    0.0,
)
ABOVE_CNN = Claim(
    "E8",
    "skip connections carry more of the patches in the transformer than in the CNN: its median "
    "norm ratio of skip connection to branch over that of the CNN",
    ">=",
    1.0,
)
CLASS_KEEPS_DIRECTION = Claim(
    "E9",
    "additions turn the class token less in the lower half of the blocks than in the upper: "
    "difference of the mean cosines before and after",
    ">=",
    0.0,
)
PATCHES_TURN = Claim(
    "E9",
    "additions turn the patches more in the lower half of the blocks than in the upper: "
    "difference of the mean cosines before and after",
    ">=",
    0.0,
)
# By measure: of the class token, and of the patches.
HALVES = {
    RATIO: (CLASS_IS_CARRIED, PATCHES_ARE_CHANGED),
    KEPT: (CLASS_KEEPS_DIRECTION, PATCHES_TURN),
}
CLAIMS = (CLASS_IS_CARRIED, PATCHES_ARE_CHANGED, ABOVE_CNN, CLASS_KEEPS_DIRECTION, PATCHES_TURN)
WHAT = "skip connections"
PATCHES = "patches/"  # before the name of a value: its mean over the patches
NOTHING = "a branch adds nothing to some tokens, and the ratio is infinite"
# By measure: the figure, and what its axis shows.
WORDS = {
    RATIO: ("ratio", "‖skip connection‖ / ‖branch‖"),
    KEPT: ("cosine", "cosine before and after the addition"),
}
BRANCHES = {
    "attn": "attention",
    "mlp": "MLP",
    "mlp_tokens": "MLP of tokens",
    "mlp_channels": "MLP of channels",
}
SHOWN = 50  # tokens, as many as figure E.1 has


@dataclass(frozen=True)
class Config:
    """Nothing to choose: all additions, and the ratio with all three cosines."""


class _WithPatches:
    """An observer: what each token has, and of each image the mean over its patches."""

    def __init__(self, prefix: int):
        self._prefix, self._tokens = prefix, SkipConnections()

    @contextmanager
    def watching(self, model: nn.Module, n: int) -> Iterator[Values]:
        values: Values = {}
        with self._tokens.watching(model, n) as seen:
            yield values
        values.update(seen)
        values.update({PATCHES + name: x[:, self._prefix :].mean(1) for name, x in seen.items()})


def observer(module: nn.Module) -> Observer:
    return _WithPatches(_prefix(module))


def _prefix(module: nn.Module) -> int:
    return getattr(module, "num_prefix_tokens", 0)


def plan(config: Config, subjects: Subjects) -> list[Need]:
    usable, left_out = _usable(subjects)
    if not usable:
        raise NotApplicable(why_not(left_out, *left_out))
    return [_watch(subjects[name]) for name in usable]


def finish(config: Config, subjects: Subjects, measured: Mapping[Need, Means]) -> Result:
    arrays, facts = {}, {"places": {}, "prefix": {}, "family": {}, "class_token": {}}
    usable, facts["left_out"] = _usable(subjects)
    for one in map(subjects.get, usable):
        means = measured[_watch(one)]
        places = facts["places"][one.name] = _places(one)
        facts["prefix"][one.name] = _prefix(one.network.module)
        facts["family"][one.name] = one.family
        facts["class_token"][one.name] = one.has_class_token
        for measure in MEASURES:
            key = f"{measure}/{one.name}"
            for name, values in (("tokens", means.mean), ("tokens_stderr", means.stderr)):
                arrays[f"{name}/{key}"] = _rows(values, measure, places)
            for name, values in (("patches", means.mean), ("patches_stderr", means.stderr)):
                rows = [values[f"{PATCHES}{measure}/{place}"] for place in places]
                arrays[f"{name}/{key}"] = _finite(np.array(rows))
    result, cnns = Result(arrays, facts), subjects.own(CNN)
    verdicts = [v for one in subjects.own(TRANSFORMER) for v in _verdicts(result, one, cnns)]
    if not verdicts:
        verdicts = [Verdict(claim, "", None, why="needs a transformer") for claim in CLAIMS]
    elif not cnns:
        verdicts.append(Verdict(ABOVE_CNN, "", None, why="needs a CNN"))
    return replace(result, verdicts=tuple(verdicts))


def plot(result: Result) -> dict:
    """Ratio and cosine over depth, a figure a network; of transformers also token by token."""
    figures, families = {}, result.facts["family"]
    cnns = [name for name, family in families.items() if family == CNN]
    for name, family in families.items():
        if family == CNN and len(families) > len(cnns):
            continue  # it is beside the others
        if family == TRANSFORMER:
            figures[f"{name}, tokens"] = _tokens(result, name)
        for measure, (title, y_label) in WORDS.items():
            lines = _lines(result, measure, name)
            for cnn in (one for one in cnns if one != name):
                (line,) = _lines(result, measure, cnn).values()
                lines[cnn] = Line(line.x, line.y, line.stderr, reference=True)
            figures[f"{name}, {title}"] = line_plot(
                lines,
                x_label="depth (share of the blocks)",
                y_label=y_label,
                title=name,
                x_limits=(0, 1),
                y_limits=(0 if measure == RATIO else None, None),
            )
    return figures


def low_and_high(values: np.ndarray, blocks: int) -> tuple[float, float]:
    """Means over the additions of the lower and of the upper half of so many blocks.

    Of an odd number of blocks, the middle one is in neither.

    >>> low_and_high(np.array([1.0, 3.0, 9.0, 9.0, 4.0, 6.0]), blocks=3)
    (2.0, 5.0)
    """
    count = blocks // 2 * (len(values) // blocks)
    if not count:
        return np.nan, np.nan
    return float(values[:count].mean()), float(values[-count:].mean())


def _halves(
    claim: Claim, name: str, blocks: int, values: np.ndarray, stderr: np.ndarray, sign: int
) -> Verdict:
    low, high = low_and_high(values, blocks)
    # All are of the same images and err together: errors of means are no more than their means.
    error = sum(low_and_high(stderr, blocks))
    why = ""
    if not np.isfinite(low - high):
        why = NOTHING if blocks > 1 else "it has a single block"
    return Verdict(claim, name, sign * (low - high), error, why)


def _verdicts(result: Result, one: Subject, cnns: list[Subject]) -> Iterator[Verdict]:
    """Of a transformer, by itself and beside each CNN."""
    arrays, left_out = result.arrays, result.facts["left_out"]
    for measure, (of_class, of_patches) in HALVES.items():
        if one.name in left_out:
            why = why_not(left_out, one.name)
            yield from (Verdict(claim, one.name, None, why=why) for claim in (of_class, of_patches))
            continue
        at, blocks = f"{measure}/{one.name}", len(one.blocks)
        if one.has_class_token:
            tokens = arrays[f"tokens/{at}"][:, 0], arrays[f"tokens_stderr/{at}"][:, 0]
            yield _halves(of_class, one.name, blocks, *tokens, 1)
        else:
            yield Verdict(of_class, one.name, None, why="it has no class token")
        patches = arrays[f"patches/{at}"], arrays[f"patches_stderr/{at}"]
        yield _halves(of_patches, one.name, blocks, *patches, -1)
    for cnn in cnns:
        pair = f"{one.name}, {cnn.name}"
        reason = why_not(left_out, one.name, cnn.name)
        if reason:
            yield Verdict(ABOVE_CNN, pair, None, why=reason)
            continue
        both = [np.median(arrays[f"patches/{RATIO}/{of.name}"]) for of in (one, cnn)]
        times = float(both[0] / both[1])
        yield Verdict(ABOVE_CNN, pair, times, why="" if np.isfinite(times) else NOTHING)


def _usable(subjects: Subjects) -> tuple[dict, dict[str, str]]:
    return sort_out(subjects.own(), lambda one: probed(one, _watch(one)))


def _watch(one: Subject) -> Watch:
    return Watch(one.name, WHAT, observer)


def _places(one: Subject) -> list[str]:
    return [place.name for place in residuals(one.network.module)]


def _rows(values: Mapping[str, np.ndarray], measure: str, places: list[str]) -> np.ndarray:
    """[additions, tokens]; NaN where another addition has more of them, or without a value."""
    found = [values[f"{measure}/{place}"] for place in places]
    rows = np.full((len(places), max(map(len, found))), np.nan)
    for row, value in zip(rows, found, strict=True):
        row[: len(value)] = value
    return _finite(rows)


def _finite(values: np.ndarray) -> np.ndarray:
    """The ratio to a branch that adds nothing is none."""
    return np.where(np.isfinite(values), values, np.nan)


def _branches(places: list[str]) -> dict[str, slice]:
    """The additions of each branch, in words: of CNNs there is one a block."""
    last = [place.rpartition(".")[2] for place in places[:2]]
    if not all(part in BRANCHES for part in last):
        return {"": slice(None)}
    return {BRANCHES[part]: slice(number, None, 2) for number, part in enumerate(last)}


def _lines(result: Result, measure: str, name: str) -> dict[str, Line]:
    """Over depth, of each branch: the mean of the patches, and the class token."""
    arrays, lines, at = result.arrays, {}, f"{measure}/{name}"
    for branch, rows in _branches(result.facts["places"][name]).items():
        y, error = arrays[f"patches/{at}"][rows], arrays[f"patches_stderr/{at}"][rows]
        lines[f"patches, {branch}" if branch else name] = Line(shares(len(y)), y, error)
        if result.facts["class_token"][name]:
            y, error = (arrays[f"{key}/{at}"][rows, 0] for key in ("tokens", "tokens_stderr"))
            lines[f"class token, {branch}"] = Line(shares(len(y)), y, error)
    return lines


def _tokens(result: Result, name: str):
    """The ratio of every token and block, of both branches."""
    ratio = result.arrays[f"tokens/{RATIO}/{name}"]
    count, prefix = ratio.shape[1], result.facts["prefix"][name]
    branches = _branches(result.facts["places"][name])
    note = f"the first {prefix} before the patches" if prefix > 1 else ""
    note = "0: class token" if result.facts["class_token"][name] and prefix == 1 else note
    more = f"the first {SHOWN} of {count} tokens" if count > SHOWN else ""
    return maps(
        {name: {branch: ratio[rows, :SHOWN] for branch, rows in branches.items()}},
        label=WORDS[RATIO][1],
        limits=(None, None),
        logarithmic=True,
        ticks=True,
        x_label="token",
        y_label="block",
        title=name,
        note="; ".join(part for part in (note, more) if part),
    )
