"""What a blank image shows of a network before anything is measured: shapes, and what cannot be."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch

from fastcka.analysis.observer import Observer, Taps
from fastcka.analysis.token_grid import TokenGrid, token_grid
from fastcka.capture import Tap
from fastcka.capture.modules import evaluating
from fastcka.experiments.runner.needs import Probe
from fastcka.experiments.runner.subjects import Subject

T = TypeVar("T")
Shapes = dict[str, tuple[int, ...]]
IMAGES = 1
_seen: WeakKeyDictionary[Subject, dict] = WeakKeyDictionary()


def shapes(one: Subject) -> Shapes:
    """Of the activation of each block, [n, ...], the first axis the images.

    Raises:
        ValueError: a block has none.
    """
    return _known(one, "blocks", lambda: Taps([Tap(block) for block in one.blocks]))


def probed(one: Subject, need: Probe) -> Shapes:
    """Of what a probe would see of each image.

    Raises:
        ValueError: the network has nothing of the kind; says why.
    """
    return _known(one, need.what, lambda: need.make(one.network.module))


def taken(one: Subject, taps: Sequence[Tap]) -> None:
    """Make sure that taps find what they take.

    Raises:
        ValueError: they do not; says why.
    """
    _known(one, str(taps), lambda: Taps(taps))


def grid(one: Subject, layer: str) -> TokenGrid:
    """Where the tokens of a block lie in the image.

    Raises:
        ValueError: the network does not say, or they are no grid.
    """
    image = tuple(one.network.data_config["input_size"][1:])
    return token_grid(one.network.module, layer, shapes(one)[layer], image)


def sort_out(
    subjects: Iterable[Subject], attempt: Callable[[Subject], T]
) -> tuple[dict[str, T], dict[str, str]]:
    """What an attempt makes of each network, by name; of the others, why it does not.

    >>> sort_out([], len)
    ({}, {})
    """
    found, reasons = {}, {}
    for one in subjects:
        try:
            found[one.name] = attempt(one)
        except ValueError as error:
            reasons[one.name] = str(error)
    return found, reasons


def why_not(reasons: dict[str, str], *names: str) -> str:
    """Why some networks were left out, in a sentence.

    >>> why_not({"swin": "it has no class token"}, "vit", "swin")
    'swin is left out: it has no class token'
    """
    return "; ".join(f"{name} is left out: {reasons[name]}" for name in names if name in reasons)


def _known(one: Subject, what: str, make: Callable[[], Observer]) -> Shapes:
    known = _seen.setdefault(one, {})
    if what not in known:
        try:
            known[what] = _watched(one, make())
        except ValueError as error:
            known[what] = str(error)
    if isinstance(known[what], str):
        raise ValueError(known[what])
    return known[what]


def _watched(one: Subject, observer: Observer) -> Shapes:
    module = one.network.module
    device = next(module.parameters()).device
    blank = torch.zeros(IMAGES, *one.network.data_config["input_size"], device=device)
    try:
        with evaluating(module), observer.watching(module, IMAGES) as values:
            module(blank)
    except ValueError:
        raise
    except Exception as error:  # of the network itself, which is left out
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return {name: tuple(value.shape) for name, value in values.items()}
