"""What a user hands over as one batch, put in the order of the layers."""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral

import torch

from fastcka.gram_stack import check_examples


def layer_names(model: str, names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise TypeError(f"the layers of model {model!r} must be a list of names, but are {names!r}")
    names = tuple(names)
    strange = [name for name in names if not isinstance(name, str)]
    if strange:
        raise TypeError(
            f"the layers of model {model!r} must be named by strings, not by "
            f"{type(strange[0]).__name__}: fastcka is given activations and does not run the model"
        )
    if not names:
        raise ValueError(f"model {model!r} has no layers")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"model {model!r} names {twice[0]!r} twice; every layer needs its own name"
        )
    return names


def image_names(names: Iterable, n: int, argument: str = "images") -> list[str | int]:
    """What n images are called: whole numbers as they are, all else as text."""
    names = names.tolist() if isinstance(names, torch.Tensor) else list(names)
    if len(names) != n:
        raise ValueError(f"`{argument}` names {len(names)} images, but the batch holds {n}")
    return [int(name) if isinstance(name, Integral) else str(name) for name in names]


def in_order(model: str, names: tuple[str, ...], given) -> list[torch.Tensor]:
    if isinstance(given, Mapping):
        missing, unknown = set(names) - set(given), set(given) - set(names)
        if missing or unknown:
            raise ValueError(
                f"the layers of model {model!r} do not match: missing {sorted(missing)}, "
                f"unknown {sorted(unknown)}"
            )
        given = [given[name] for name in names]
    if isinstance(given, torch.Tensor):
        raise TypeError(
            f"give the activations of model {model!r} as a list with one tensor a layer, "
            "not as one tensor"
        )
    if not isinstance(given, Iterable):
        raise TypeError(
            f"the activations of model {model!r} must be a list of tensors, but are "
            f"{type(given).__name__}"
        )
    given = list(given)
    if len(given) != len(names):
        raise ValueError(f"model {model!r} has {len(names)} layers, but {len(given)} were given")
    return given


def examples(given: Mapping[str, Sequence[torch.Tensor]], layers: Mapping[str, tuple]) -> int:
    """The number of examples that all layers of all models share."""
    first = next(iter(given.values()))[0]
    n = first.shape[0] if isinstance(first, torch.Tensor) and first.ndim else 0
    for model, tensors in given.items():
        for name, x in zip(layers[model], tensors, strict=True):
            check_examples(name, x, n)
    return n
