"""How early does a network know the class? E15 and E16: Raghu et al. 2021, figures 13, F.1 and F.2.

Few-shot probes on the tokens of every block, averaged. Maps of a CNN are cut into patches first, so
that early blocks have about as many channels as the last, and pooled to the size of the last; the
plain average is beside. With more images to learn from the middle layers know more, and those of a
ViT more than those of a CNN at the same depth. In claims an accuracy counts from chance, 0, to
always right, 1. `fastcka study --experiments E15 E16`. Costs one pass of each network over the
images that probes are fitted to and one over those they are tested on; E15 also the training of a
network on fewer images: `fastcka train NAME --data-fraction 0.1`, or any two networks of which one
has seen less, `--variant less-data MODEL OF PERCENT`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import hypot

import numpy as np

from fastcka.experiments.runner.claims import Claim, Verdict
from fastcka.experiments.runner.needs import Need, NotApplicable, Probe
from fastcka.experiments.runner.probing import Accuracies
from fastcka.experiments.runner.result import Result
from fastcka.experiments.runner.subjects import CNN, LESS_DATA, TRANSFORMER, Subject, Subjects
from fastcka.experiments.shared.accuracy import above_chance, at, curve, depths, of_gain
from fastcka.experiments.shared.probes import MEAN, PATCHES, names_of, of_blocks, of_patches
from fastcka.experiments.shared.rehearsed import sort_out, why_not
from fastcka.report.lines import Line, line_plot

NUMBERS = ("E15", "E16")
TITLE = "Classes by depth"
FINDING = (
    "Trained on many more images, the middle layers of a ViT classify far better; large ViTs have "
    "much stronger features in the middle than ResNets."
)
MORE_IMAGES = Claim(
    "E15",
    "trained on more images, a network classifies at least as well at every block of the upper "
    "half: least gain in accuracy above chance",
    ">=",
    0.0,
)
TRANSFORMER_EARLIER = Claim(
    "E16",
    "at half its depth, the mean token of a transformer classifies better than the features of a "
    "CNN: gain in accuracy above chance",
    ">=",
    0.1,
)
CLAIMS = (MORE_IMAGES, TRANSFORMER_EARLIER)
HALF = 0.5
KEPT = ("accuracy", "stderr")


@dataclass(frozen=True)
class Config:
    """Nothing to choose: every block is probed."""


def plan(config: Config, subjects: Subjects) -> list[Need]:
    found, reasons = _probes(subjects)
    if not found:
        raise NotApplicable(why_not(reasons, *reasons))
    return [need for probes in found.values() for need in probes.values()]


def finish(config: Config, subjects: Subjects, measured: Mapping[Need, Accuracies]) -> Result:
    found, reasons = _probes(subjects)
    arrays, classes = {}, 0
    for name, probes in found.items():
        for tokens, need in probes.items():
            classes = measured[need].classes
            values = curve(measured[need], names_of(subjects[name], tokens))
            for what, value in zip(KEPT, values, strict=True):
                arrays[f"{tokens}/{what}/{name}"] = value
    bases = {one.variant.of for one in subjects.variants(LESS_DATA)}
    facts = {
        "own": [one.name for one in subjects.own() if one.name in found],
        "probes": {name: list(probes) for name, probes in found.items()},
        "shares": {
            base: {
                one.name: one.variant.value
                for one in subjects.variants(LESS_DATA, base)
                if one.name in found
            }
            for base in subjects
            if base in bases and base in found
        },
        "classes": classes,
        "left_out": reasons,
    }
    known = _Known(arrays, classes, found, reasons)
    return Result(arrays, facts, (*_more_images(subjects, known), *_earlier(subjects, known)))


def plot(result: Result) -> dict:
    """Accuracy by depth: of all networks, and of each by the share of images it was trained on."""
    facts, figures = result.facts, {}
    look = {
        "x_label": "depth (share of the blocks)",
        "y_label": "accuracy",
        "levels": {"chance": 1 / facts["classes"]},
        "x_limits": (0, 1.02),
        "y_limits": (0, 1),
    }
    lines = {}
    for name in facts["own"]:
        tokens = main(facts["probes"][name])
        lines[name] = _line(result, name, tokens)
        if tokens == PATCHES:
            lines[f"{name}, plain mean"] = _line(result, name, MEAN, reference=True)
    if lines:
        figures["networks"] = line_plot(lines, title="mean of the tokens", **look)
    for base, shares in facts["shares"].items():
        if shares:
            values = {f"{share:g} %": name for name, share in shares.items()} | {"all": base}
            lines = {
                told: _line(result, name, main(facts["probes"][name]))
                for told, name in values.items()
            }
            figures[base] = line_plot(lines, title=f"{base}: images", ordered=True, **look)
    return figures


def main(probes: Mapping | list[str]) -> str:
    """Which features of a network stand for it: patches, where it has maps."""
    return PATCHES if PATCHES in probes else MEAN


def _line(result: Result, name: str, tokens: str, reference: bool = False) -> Line:
    accuracy, stderr = (result.arrays[f"{tokens}/{what}/{name}"] for what in KEPT)
    return Line(depths(len(accuracy)), accuracy, stderr, reference)


def _probes(subjects: Subjects) -> tuple[dict[str, dict[str, Probe]], dict[str, str]]:
    """Of each network and of those trained on fewer images the probes, and why there are none."""

    def attempt(one: Subject) -> dict[str, Probe]:
        probes = {MEAN: of_blocks(one, MEAN)}
        if one.family == CNN:
            probes[PATCHES] = of_patches(one)
        return probes

    bases = {one.variant.of for one in subjects.variants(LESS_DATA)}
    wanted = [
        one
        for one in subjects.values()
        if one.variant is None or one.variant.kind == LESS_DATA or one.name in bases
    ]
    return sort_out(wanted, attempt)


@dataclass(frozen=True)
class _Known:
    """Accuracies from chance, 0, to always right, 1, with their errors."""

    arrays: Mapping[str, np.ndarray]
    classes: int
    probes: Mapping[str, Mapping[str, Probe]]
    reasons: Mapping[str, str]

    def curve(self, one: Subject) -> tuple[np.ndarray, np.ndarray]:
        tokens = main(self.probes[one.name])
        accuracy, stderr = (self.arrays[f"{tokens}/{what}/{one.name}"] for what in KEPT)
        return above_chance(accuracy, self.classes), of_gain(stderr, self.classes)


def _more_images(subjects: Subjects, known: _Known) -> list[Verdict]:
    rows = []
    for less in subjects.variants(LESS_DATA):
        more = subjects[less.variant.of]
        of, why = f"{more.name}, {less.name}", why_not(known.reasons, more.name, less.name)
        if why:
            rows.append(Verdict(MORE_IMAGES, of, None, why=why))
            continue
        (a, error_a), (b, error_b) = known.curve(more), known.curve(less)
        where = [depth for depth in depths(len(a)) if depth > HALF]
        gains = [at(depth, a) - at(depth, b) for depth in where]
        least = where[int(np.argmin(gains))]
        gain, error = min(gains), hypot(at(least, error_a), at(least, error_b))
        rows.append(Verdict(MORE_IMAGES, of, gain, error))
    why = "needs a network and the same one trained on a share of the images"
    return rows or [Verdict(MORE_IMAGES, "", None, why=why)]


def _earlier(subjects: Subjects, known: _Known) -> list[Verdict]:
    rows = []
    for one in subjects.own(TRANSFORMER):
        for cnn in subjects.own(CNN):
            of, why = f"{one.name}, {cnn.name}", why_not(known.reasons, one.name, cnn.name)
            if why:
                rows.append(Verdict(TRANSFORMER_EARLIER, of, None, why=why))
                continue
            (a, error_a), (b, error_b) = (
                [at(HALF, values) for values in known.curve(net)] for net in (one, cnn)
            )
            rows.append(Verdict(TRANSFORMER_EARLIER, of, a - b, hypot(error_a, error_b)))
    return rows or [Verdict(TRANSFORMER_EARLIER, "", None, why="needs a transformer and a CNN")]
