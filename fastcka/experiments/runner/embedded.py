"""The networks of a study that names none: those of the package, with the arms that are trained."""

from fastcka import models
from fastcka.experiments.runner.skip_cut import skip_cut
from fastcka.experiments.runner.subjects import (
    FINE_TUNED,
    LESS_DATA,
    NO_SKIP,
    OTHER_SEED,
    Subject,
    Subjects,
    Variant,
)
from fastcka.models import small
from fastcka.training import ARMS
from fastcka.training.recipe import Recipe

BASE = (
    "fastcka_vit_mini",
    "fastcka_vit_mini_gap",
    "fastcka_resnet_mini",
    "fastcka_mixer_mini",
)


def embedded() -> tuple[Subjects, list[str]]:
    """The networks that are there, and the names of the arms that are not trained yet.

    >>> subjects, _ = embedded()
    >>> [one.family for one in subjects.own()]
    ['transformer', 'transformer', 'CNN', 'mixer']
    """
    found = [Subject(name, models.load(name, pretrained=True)) for name in BASE]
    missing = []
    for name, arm in ARMS.items():
        variant = variant_of(arm.recipe, arm.start)
        if variant is None:
            continue
        network, _, tag = name.partition(".")
        if tag in small.trained(network):
            found.append(Subject(name, models.load(name, pretrained=True), variant))
        else:
            missing.append(name)
    by_name = {one.name: one for one in found}
    # Beside each that was trained without skip connections, one that loses the same post hoc.
    found += [
        skip_cut(by_name[one.variant.of], one.variant.value)
        for one in found
        if one.variant is not None and one.variant.kind == NO_SKIP
    ]
    return Subjects(found), missing


def variant_of(recipe: Recipe, start: str | None) -> Variant | None:
    """What a training arm is of the network that learned the plain task; None for other tasks."""
    network, _, block = recipe.model.partition("_noskip")
    if start is not None:
        return Variant(FINE_TUNED, start.partition(".")[0])
    if recipe.label != "shape" or recipe.correlation:
        return None
    if block:
        return Variant(NO_SKIP, network, int(block))
    if recipe.fraction < 1:
        return Variant(LESS_DATA, network, round(100 * recipe.fraction))
    if recipe.seed:
        return Variant(OTHER_SEED, network)
    return None
