"""What a network classifies by, class token or mean; and networks that differ in this alone."""

from fastcka.experiments.runner.subjects import TRANSFORMER, Subject, Subjects

CLASS_TOKEN, MEAN = "class token", "mean"
NO_TWINS = (
    "needs two transformers with equal blocks, one that classifies by its class token, one by the "
    "mean of its tokens"
)


def classifies_by(one: Subject) -> str | None:
    """ "class token" or "mean"; None is another way, as attention pooling, or it does not say.

    >>> from fastcka import models
    >>> classifies_by(Subject("gap", models.load("fastcka_vit_mini_gap")))
    'mean'
    """
    pool = getattr(one.network.module, "global_pool", None)
    if one.has_class_token and pool in (None, "token"):
        return CLASS_TOKEN
    # CNNs have a module for it, and where nothing is said there is nothing but the tokens' mean.
    return MEAN if one.family != TRANSFORMER or pool in (None, "avg") else None


def transformers(subjects: Subjects, by: str) -> list[Subject]:
    """Those in their own right that classify by the class token, or by the mean."""
    return [one for one in subjects.own(TRANSFORMER) if classifies_by(one) == by]


def twins(subjects: Subjects) -> list[tuple[Subject, Subject]]:
    """Transformers of equal images, patches and blocks: by the class token, and by the mean."""
    return [
        (one, other)
        for one in transformers(subjects, CLASS_TOKEN)
        for other in transformers(subjects, MEAN)
        if _built(one) == _built(other)
    ]


def _built(one: Subject) -> tuple:
    """What twins have in common: images, patches and blocks."""
    patches = getattr(one.modules.get("patch_embed.proj"), "weight", None)
    blocks = [
        [tuple(weight.shape) for weight in one.modules[block].parameters()] for block in one.blocks
    ]
    sides = tuple(one.network.data_config["input_size"])
    return sides, None if patches is None else tuple(patches.shape), blocks
