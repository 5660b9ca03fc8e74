"""How alike are the layers of an MLP-Mixer? E19 and E20: Raghu et al. 2021, figures H.1 and H.2.

Its layers fall into two groups that are unlike each other, a small early and a large later one,
whatever its size; as a whole it is more like a ViT than like a ResNet. The groups are those of the
best of all splits into two runs of layers: the one whose three mean values, within either and
across, are nearest to CKA of all pairs. `fastcka study --experiments E19 E20`. Costs one pass of
each network over the images.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fastcka.experiments.runner.claims import Claim, Verdict
from fastcka.experiments.runner.needs import Need, NotApplicable
from fastcka.experiments.runner.result import Result
from fastcka.experiments.runner.subjects import CNN, MIXER, TRANSFORMER, Subjects
from fastcka.experiments.shared.coarse_layers import layers_alike
from fastcka.experiments.shared.two_groups import across_to_within, best_split
from fastcka.report.heatmap import heatmap
from fastcka.result import CKAResult

NUMBERS = ("E19", "E20")
TITLE = "MLP-Mixers"
FINDING = (
    "The layers of a Mixer are two groups with little alike, a small early one and a large later "
    "one, at any size; a Mixer is overall more like a ViT than like a ResNet."
)
TWO_GROUPS = Claim(
    "E19",
    "the layers of a Mixer are two groups: CKA across the best place to split them, as a share of "
    "CKA within",
    "<=",
    0.5,
)
THE_FIRST_IS_SMALL = Claim(
    "E19",
    "the first of the two groups of a Mixer's layers is the smaller: its share of the layers",
    "<=",
    1 / 3,
)
LIKE_A_TRANSFORMER = Claim(
    "E20",
    "a Mixer's layers are more like those of a transformer than those of a CNN: difference of the "
    "mean CKA of all layers",
    ">=",
    0.0,
)
CLAIMS = (TWO_GROUPS, THE_FIRST_IS_SMALL, LIKE_A_TRANSFORMER)


@dataclass(frozen=True)
class Config:
    """Nothing to choose: about four layers a block, two of a CNN's."""


def plan(config: Config, subjects: Subjects) -> list[Need]:
    mixers = subjects.own(MIXER)
    if not mixers:
        raise NotApplicable("needs a Mixer")
    others = subjects.own(TRANSFORMER, CNN)
    return [layers_alike(mixer, one) for mixer in mixers for one in (mixer, *others)]


def finish(config: Config, subjects: Subjects, measured: Mapping[Need, CKAResult]) -> Result:
    arrays, layers, splits, means, pairs, verdicts = {}, {}, {}, {}, [], []
    transformers, cnns = subjects.own(TRANSFORMER), subjects.own(CNN)
    for mixer in subjects.own(MIXER):
        for one in (mixer, *transformers, *cnns):
            result, pair = measured[layers_alike(mixer, one)], f"{mixer.name}, {one.name}"
            pairs.append([mixer.name, one.name])
            arrays[f"cka/{pair}"], arrays[f"stderr/{pair}"] = result.cka, result.stderr
            layers[mixer.name], layers[one.name] = list(result.layers_a), list(result.layers_b)
            seen = np.isfinite(result.cka)
            cells = [values[seen].mean() if seen.any() else np.nan for values in
                     (result.cka, result.stderr)]  # fmt: skip
            means[pair] = [float(value) for value in cells]
        cka = arrays[f"cka/{mixer.name}, {mixer.name}"]
        split = splits[mixer.name] = best_split(cka)
        why = "" if split else "it has fewer than four layers, or they have no CKA"
        across, share = (across_to_within(cka, split), split / len(cka)) if split else (None, None)
        none = (
            why if across is None or np.isfinite(across) else "CKA within the groups is not above 0"
        )
        verdicts.append(Verdict(TWO_GROUPS, mixer.name, across, why=none))
        verdicts.append(Verdict(THE_FIRST_IS_SMALL, mixer.name, share, why=why))
        for a in transformers:
            for b in cnns:
                (near, error_a), (far, error_b) = (
                    means[f"{mixer.name}, {one.name}"] for one in (a, b)
                )
                of = f"{mixer.name}, {a.name}, {b.name}"
                why = "" if np.isfinite(near - far) else "no layers of two of them have a CKA"
                # All are of the same images: errors of means are no more than means of errors.
                verdicts.append(Verdict(LIKE_A_TRANSFORMER, of, near - far, error_a + error_b, why))
        if not (transformers and cnns):
            why = "needs a transformer and a CNN beside the Mixer"
            verdicts.append(Verdict(LIKE_A_TRANSFORMER, mixer.name, None, why=why))
    facts = {"layers": layers, "splits": splits, "means": means, "pairs": pairs}
    return Result(arrays, facts, tuple(verdicts))


def plot(result: Result) -> dict:
    """Heat maps of each Mixer: with itself, a line where it is split, and with other networks."""
    layers, splits, figures = result.facts["layers"], result.facts["splits"], {}
    for mixer, other in result.facts["pairs"]:
        cka, names = result.arrays[f"cka/{mixer}, {other}"], layers[mixer]
        if other == mixer:
            split = splits[mixer]
            parts = {"first": names[:split], "second": names[split:]} if split else {mixer: names}
            figures[mixer] = heatmap(cka, parts, parts, title=mixer)
        else:
            figures[f"{mixer}, {other}"] = heatmap(cka, {mixer: names}, {other: layers[other]})
    return figures
