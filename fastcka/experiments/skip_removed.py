"""What do the skip connections of a block do? E10: Raghu et al. 2021, figure 8.

A transformer is trained anew without the two skip connections of one block. Its layers fall apart
into those before and those after, with little alike across, where the intact network is nearly
uniform; and it is a little worse. `fastcka study --experiments E10`. Costs one pass of each network
over the images, and the training of a network for each block: `fastcka train NAME --no-skip BLOCK`.

To cut the two skip connections post hoc, out of a trained network, is another test, which destroys
what it has learned: the small ViT of the package then guesses. No claim is about it; its map and
numbers stand beside, and are named post hoc. `--models NAME --pretrained --variant skip-cut NAME
BLOCK` makes one of any ViT that is made of timm's blocks.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fastcka.experiments.runner.claims import Claim, Verdict
from fastcka.experiments.runner.needs import Need, NotApplicable
from fastcka.experiments.runner.result import Result
from fastcka.experiments.runner.subjects import NO_SKIP, SKIP_CUT, Subject, Subjects
from fastcka.experiments.shared.coarse_layers import BRANCHES, layers_alike
from fastcka.experiments.shared.same_block import OTHER_BLOCKS, variants
from fastcka.experiments.shared.two_groups import across_to_within, sides
from fastcka.models import small
from fastcka.report.heatmap import heatmap
from fastcka.result import CKAResult
from fastcka.training.evaluation import COUNT
from fastcka.training.weights_file import known_of

NUMBERS = ("E10",)
TITLE = "Skip connections removed"
FINDING = (
    "Without the skip connections of a block, the layers before and those after it are groups with "
    "little similarity across; without those of a middle block, accuracy falls by 4 %."
)
APART = Claim(
    "E10",
    "without the skip connections of a block, the layers before it and those from it on are two "
    "groups: CKA across, as a share of CKA within",
    "<=",
    0.5,
)
FAR_BELOW_INTACT = Claim(
    "E10",
    "without the skip connections of a block, layers before it are far less like those from it on "
    "than with them: CKA across, as a share of that in the intact network",
    "<=",
    0.5,
)
WORSE = Claim(
    "E10",
    "without the skip connections of a block in the middle third the network answers worse: loss "
    "in the share of right answers",
    ">=",
    0.02,
)
CLAIMS = (APART, FAR_BELOW_INTACT, WORSE)
POST_HOC = "cut post hoc, not trained without them"
LACKING = (
    "needs a transformer trained without the skip connections of a block, or one that loses them "
    "post hoc"
)


@dataclass(frozen=True)
class Config:
    """Nothing to choose: about four layers a block."""


def plan(config: Config, subjects: Subjects) -> list[Need]:
    if not subjects.variants(NO_SKIP) + subjects.variants(SKIP_CUT):
        raise NotApplicable(LACKING)
    if not _pairs(subjects):
        raise NotApplicable(OTHER_BLOCKS)
    for one in variants(subjects, NO_SKIP):
        if one.variant.value not in range(len(one.blocks)):
            raise ValueError(
                f"{one.name!r} is said to lack the skip connections of block "
                f"{one.variant.value:g}, but its blocks are 0 to {len(one.blocks) - 1}"
            )
    shown = dict.fromkeys(one for pair in _pairs(subjects) for one in pair)
    return [layers_alike(one, one) for one in shown]


def finish(config: Config, subjects: Subjects, measured: Mapping[Need, CKAResult]) -> Result:
    arrays, facts, verdicts = {}, {"layers": {}, "cuts": {}, "blocks": {}, "accuracy": {}}, []
    for intact, one in _pairs(subjects):
        for shown in (intact, one):
            result = measured[layers_alike(shown, shown)]
            arrays[f"cka/{shown.name}"], arrays[f"stderr/{shown.name}"] = result.cka, result.stderr
            facts["layers"][shown.name] = list(result.layers_a)
            facts["accuracy"][shown.name] = accuracy(shown)
        cut = _cut(one, facts["layers"][one.name])
        facts["cuts"][one.name], facts["blocks"][one.name] = cut, _block(one)
        cka, full = (arrays[f"cka/{shown.name}"] for shown in (one, intact))
        arrays[f"sides/{one.name}"] = np.array([sides(cka, cut), sides(full, cut)])
        across, kept = arrays[f"sides/{one.name}"][:, 2]
        to_intact = float(across / kept) if kept > 0 else np.nan
        shares = ((APART, across_to_within(cka, cut)), (FAR_BELOW_INTACT, to_intact))
        for claim, share in shares:
            verdicts.append(_share(claim, one, share))
        verdicts.append(_worse(intact, one))
    compared = variants(subjects, NO_SKIP)
    for one in (one for one in subjects.variants(NO_SKIP) if one not in compared):
        verdicts += [Verdict(claim, one.name, None, why=OTHER_BLOCKS) for claim in CLAIMS]
    return Result(arrays, facts, tuple(verdicts))


def plot(result: Result) -> dict:
    """A heat map a network, by its name; where a block lacks its skip connections, a line.

    The intact one comes first, then by block what was trained so and what lost them post hoc.
    """
    layers, figures = result.facts["layers"], {}
    for name, names in layers.items():
        cut, block = result.facts["cuts"].get(name, 0), result.facts["blocks"].get(name)
        parts = {name: names}
        if cut:  # the number alone: the side of one block has room for no more
            number = block.rpartition(".")[2]
            parts = {f"< {number}": names[:cut], f"≥ {number}": names[cut:]}
        title = name if cut else None
        figures[name] = heatmap(result.arrays[f"cka/{name}"], parts, parts, title=title)
    return figures


def accuracy(one: Subject) -> float | None:
    """The share of right answers, where the weights were trained by fastcka and say it."""
    facts = one.network.provenance
    if "skips_cut" in facts:  # it was said of what the network was before
        return None
    for path in small.trained(facts["architecture"]).values():
        if facts["weights"] == f"trained {path.stem}":
            return known_of(path).get("accuracy")
    return None


def _share(claim: Claim, one: Subject, share: float) -> Verdict:
    if not np.isfinite(share):
        return Verdict(claim, one.name, None, why="there is no CKA to compare it with")
    if one.variant.kind == SKIP_CUT:
        return Verdict(claim, one.name, None, why=f"{POST_HOC}; it is {share:.2f}")
    return Verdict(claim, one.name, share)


def _worse(intact: Subject, one: Subject) -> Verdict:
    if one.variant.kind == SKIP_CUT:
        return Verdict(WORSE, one.name, None, why=POST_HOC)
    place = (one.variant.value + 0.5) / len(one.blocks)
    if not 1 / 3 <= place <= 2 / 3:
        return Verdict(WORSE, one.name, None, why="its block is not in the middle third")
    known, full = accuracy(one), accuracy(intact)
    if known is None or full is None:
        why = "the accuracy of weights is known where `fastcka train` made them"
        return Verdict(WORSE, one.name, None, why=why)
    stderr = np.sqrt((known * (1 - known) + full * (1 - full)) / COUNT)
    return Verdict(WORSE, one.name, full - known, float(stderr))


def _cut(one: Subject, layers: list[str]) -> int:
    """The place of the first layer that the missing skip connections led past."""
    block = _block(one)
    first = [f"{block}.{branch}" for branch, _ in BRANCHES]
    return next(place for place, name in enumerate(layers) if name in (*first, block))


def _block(one: Subject) -> str:
    return one.blocks[int(one.variant.value)]


def _pairs(subjects: Subjects) -> list[tuple[Subject, Subject]]:
    found = variants(subjects, NO_SKIP) + variants(subjects, SKIP_CUT)
    found.sort(key=lambda one: (one.variant.of, one.variant.value))
    return [(subjects[one.variant.of], one) for one in found]
