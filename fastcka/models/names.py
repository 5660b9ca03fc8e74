"""What a model may be called: MODEL or MODEL@CHECKPOINT."""

import difflib
from collections.abc import Sequence
from pathlib import Path

FOLDER, HUB = "local-dir:", "hf-hub:"
WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin")


def split(name: str) -> tuple[str, str | None]:
    """`resnet50@w.safetensors` -> ("resnet50", "w.safetensors")."""
    if not isinstance(name, str) or not name or name.endswith("@"):
        raise ValueError(f"`name` must be MODEL or MODEL@CHECKPOINT, but is {name!r}")
    model, _, checkpoint = name.partition("@")
    # In `hf-hub:owner/model@revision` and in the name of a folder the @ is not ours.
    if model.startswith((FOLDER, HUB)) and not checkpoint.endswith(WEIGHT_FILES):
        return name, None
    return model, checkpoint or None


def check_known(model: str) -> None:
    import timm

    from fastcka.models.study import why_missing  # puts the small networks among timm's

    names = timm.list_models() + timm.list_models(include_tags=True)
    if model not in names:
        raise ValueError(why_missing(model) or f"unknown model {model!r}{_near(model, names)}")


def is_model(name: str) -> bool:
    """Whether `load` would look for a model of this name.

    >>> is_model("resnet18"), is_model("resnet18@w.pth"), is_model("layer1")
    (True, True, False)
    """
    import timm

    model, checkpoint = split(name)
    return model.startswith((FOLDER, HUB)) or checkpoint is not None or timm.is_model(model)


def known(pattern: str = "*") -> list[str]:
    """The names of timm's models that match a pattern.

    Args:
        pattern: with the wildcards * and ?; `resnet50.*` gives the names with their tags.

    Returns:
        The names in natural order.

    Raises:
        ValueError: no name matches; the message has near names.

    >>> from fastcka import models
    >>> models.known("resnet1?")
    ['resnet18']
    """
    import timm

    from fastcka.models import small  # noqa: F401

    found = timm.list_models(pattern, include_tags="." in pattern)
    if not found:
        near = _near(pattern.strip("*"), timm.list_models())
        raise ValueError(f"no model matches {pattern!r}{near}")
    return found


def label(name: str) -> str:
    """The name without the folders of its files."""
    model, checkpoint = split(name)
    if model.startswith(FOLDER):
        model = FOLDER + Path(model.removeprefix(FOLDER)).name
    return f"{model}@{Path(checkpoint).name}" if checkpoint else model


def labels(names: Sequence[str]) -> list[str]:
    """Short labels for models, each different, in the order given.

    Args:
        names: as `load` takes them; a name may come twice.

    Returns:
        One label a name, without the folders of files.

    >>> from fastcka import models
    >>> models.labels(["resnet18", "resnet18", "resnet50@/data/w.safetensors"])
    ['resnet18', 'resnet18 (2)', 'resnet50@w.safetensors']
    """
    taken = []
    for name in names:
        candidate, count = label(name), 1
        while candidate in taken:
            count += 1
            candidate = f"{label(name)} ({count})"
        taken.append(candidate)
    return taken


def _near(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=3)
    return f": did you mean {', '.join(map(repr, near))}?" if near else "; see timm.list_models()"
