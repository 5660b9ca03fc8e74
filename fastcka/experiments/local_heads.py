"""Are heads that look near like a CNN, others less? E5: Raghu et al. 2021, figure 5.

The heads of a transformer's first block, sorted by mean attention distance, and CKA of every few
that are neighbours in this order with blocks in the lower half of a CNN, up to five of them. CKA
falls as distance grows, for every one of these blocks: what is seen from near is like what
convolutions see, what is seen from afar is something else. Heads are taken side by side before the
projection that mixes them, at the patches alone; so many at a time as are a quarter of all, at
least one. With few heads there are few such groups, and their order says little.

`fastcka study --experiments E5`. Costs one pass of each transformer and each CNN over the images.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fastcka.analysis.head_windows import windows
from fastcka.capture import Tap
from fastcka.experiments.runner.claims import Claim, Verdict
from fastcka.experiments.runner.needs import Comparison, Need, NotApplicable, Side
from fastcka.experiments.runner.result import Result
from fastcka.experiments.runner.subjects import CNN, TRANSFORMER, Subject, Subjects
from fastcka.experiments.shared.depth import rank_correlation
from fastcka.experiments.shared.head_distances import distances, head_distances
from fastcka.experiments.shared.rehearsed import probed, sort_out, taken, why_not
from fastcka.report.lines import Line, line_plot

NUMBERS = ("E5",)
TITLE = "Local and global heads beside a CNN"
FINDING = (
    "Heads of the first block that look near are like the lower layers of a ResNet; the farther "
    "they look, the less like them they are."
)
FALLS = Claim(
    "E5",
    "the farther heads of the first block look, the less alike they are to a block in the lower "
    "half of the CNN: rank correlation of distance and CKA",
    "<=",
    -0.8,
)
CLAIMS = (FALLS,)
NEEDS_BOTH = "needs a transformer and a CNN"
FEWEST = 4  # groups of heads: by chance their order is the claimed one in 1 of 24 cases
DIGITS = 9  # of a correlation of ranks, so that one of -0.8 is not more for rounding


@dataclass(frozen=True)
class Config:
    """How heads are grouped.

    Attributes:
        share: heads in a group, as a share of all; at least one head.
        blocks: of the lower half of the CNN, at most so many.
    """

    share: float = 0.25
    blocks: int = 5


def plan(config: Config, subjects: Subjects) -> list[Need]:
    if not _pairs(subjects):
        raise NotApplicable(NEEDS_BOTH)
    usable, left_out = _usable(subjects)
    if not usable:
        raise NotApplicable(why_not(left_out, *left_out))
    needs: list[Need] = []
    for one in map(subjects.get, usable):
        needs += [head_distances(one), _among_themselves(one)]
        needs += [_with(one, cnn, config) for cnn in subjects.own(CNN)]
    return needs


def finish(config: Config, subjects: Subjects, measured: Mapping[Need, object]) -> Result:
    _, left_out = _usable(subjects)
    arrays, facts, verdicts = {}, {"lines": {}, "k": {}, "heads": {}, "left_out": left_out}, []
    for one, cnn in _pairs(subjects):
        pair = f"{one.name}, {cnn.name}"
        if one.name in left_out:
            verdicts.append(Verdict(FALLS, pair, None, why=why_not(left_out, one.name)))
            continue
        name = _first_attention(one)
        seen = distances(one, measured[head_distances(one)])
        place = seen.layers.index(name)
        count = one.modules[name].num_heads
        shares, errors = seen.shares[place, :count], seen.share_stderr[place, :count]
        k = max(1, int(config.share * count))
        result = measured[_with(one, cnn, config)]
        heads = measured[_among_themselves(one)].hsic_ab
        grouped, cka = windows(heads, result.hsic_ab, result.hsic_bb, shares, k)
        order = np.argsort(shares, kind="stable")
        groups = np.stack([order[first : first + k] for first in range(count - k + 1)])
        arrays |= {
            f"share/{one.name}": shares,
            f"share_stderr/{one.name}": errors,
            f"groups/{one.name}": groups,
            f"distance/{one.name}": grouped,
            f"distance_stderr/{one.name}": errors[groups].mean(1),  # the most it can be
            f"cka/{pair}": cka,
            f"single/{pair}": result.cka,
            f"single_stderr/{pair}": result.stderr,
        }
        facts["lines"][pair] = [one.name, list(result.layers_b)]
        facts["k"][one.name], facts["heads"][one.name] = k, count
        for layer, column in zip(result.layers_b, cka.T, strict=True):
            of = f"{pair} {layer}, {len(grouped)} groups of {k} of {count} heads"
            verdicts.append(_verdict(of, grouped, column, count))
    return Result(arrays, facts, tuple(verdicts))


def plot(result: Result) -> dict:
    """A figure a pair of networks: CKA of groups of heads over distance, a line a block."""
    figures = {}
    for pair, (name, layers) in result.facts["lines"].items():
        k, count = result.facts["k"][name], result.facts["heads"][name]
        x, cka = result.arrays[f"distance/{name}"], result.arrays[f"cka/{pair}"]
        # A group of one head is a layer that was compared; of more there is no error.
        single = result.arrays[f"single_stderr/{pair}"][result.arrays[f"groups/{name}"][:, 0]]
        figures[pair] = line_plot(
            {
                layer: Line(x, cka[:, column], single[:, column] if k == 1 else None)
                for column, layer in enumerate(layers)
            },
            x_label="mean attention distance of the heads (share of uniform)",
            y_label="CKA with a block of the CNN",
            title=f"heads of {name}, blocks of {pair[len(name) + 2 :]}",
            note=f"each point: {k} of the {count} heads of the first block",
            y_limits=(0, None),
            ordered=True,
        )
    return figures


def _verdict(of: str, distance: np.ndarray, cka: np.ndarray, heads: int) -> Verdict:
    if len(distance) < FEWEST:
        why = f"{heads} heads make {len(distance)} groups, fewer than {FEWEST}"
        return Verdict(FALLS, of, None, why=why)
    correlation = round(rank_correlation(distance, cka), DIGITS)
    why = "" if np.isfinite(correlation) else "all heads have the same distance, or none has a CKA"
    return Verdict(FALLS, of, correlation, why=why)


def _usable(subjects: Subjects) -> tuple[dict, dict[str, str]]:
    """Transformers whose first heads can be told apart, with their distances; why others not."""

    def attempt(one: Subject) -> None:
        taken(one, _heads(one))
        probed(one, head_distances(one))

    return sort_out(subjects.own(TRANSFORMER), attempt)


def _first_attention(one: Subject) -> str:
    """The first attention in the blocks.

    Raises:
        ValueError: it has no heads before a projection.
    """
    for name, module in one.modules.items():
        inside = name.startswith(tuple(f"{block}." for block in one.blocks))
        if inside and isinstance(getattr(module, "num_heads", None), int):
            if f"{name}.proj" not in one.modules:
                raise ValueError(f"its {name!r} has no projection `proj` that heads come before")
            return name
    raise ValueError("no attention in its blocks says how many heads it has (`num_heads`)")


def _heads(one: Subject) -> tuple[Tap, ...]:
    name = _first_attention(one)
    return tuple(
        Tap(f"{name}.proj", side="input", select=f"head:{head}", tokens="patches")
        for head in range(one.modules[name].num_heads)
    )


def _among_themselves(one: Subject) -> Comparison:
    return Comparison(Side(one.name, _heads(one)), Side(one.name, _heads(one)))


def _with(one: Subject, cnn: Subject, config: Config) -> Comparison:
    low = cnn.blocks[: max(1, len(cnn.blocks) // 2)][: config.blocks]
    return Comparison(Side(one.name, _heads(one)), Side(cnn.name, low))


def _pairs(subjects: Subjects) -> list[tuple[Subject, Subject]]:
    return [(a, b) for a in subjects.own(TRANSFORMER) for b in subjects.own(CNN)]
