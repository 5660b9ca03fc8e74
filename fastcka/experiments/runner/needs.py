"""What experiments ask to be measured; equal needs of several experiments are measured once."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from fastcka.analysis.observer import Observer
from fastcka.capture import Tap


@dataclass(frozen=True)
class Side:
    """Layers of one network; with `pixels`, the patches of its images instead, by row and column.

    >>> Side("vit", ("blocks",)).subject
    'vit'
    """

    subject: str
    layers: tuple[str | Tap, ...] = ("blocks",)
    pixels: tuple[int, int] | None = None


@dataclass(frozen=True)
class Comparison:
    """CKA between the layers of two sides; measured, a `CKAResult`."""

    a: Side
    b: Side


@dataclass(frozen=True)
class Watch:
    """Values of single images, seen by an observer; measured, `Means`.

    Attributes:
        subject: the network.
        what: what is observed; equal names of one network are one observer.
        make: from the network's module to the observer.
    """

    subject: str
    what: str
    make: Callable[[nn.Module], Observer] = field(compare=False)


@dataclass(frozen=True)
class Probe:
    """Accuracy of few-shot probes on what an observer sees; measured, `Accuracies`.

    Attributes:
        subject, what, make: as for `Watch`. A value [n, d] is one probe, [n, tokens, d] a probe a
            token.
    """

    subject: str
    what: str
    make: Callable[[nn.Module], Observer] = field(compare=False)


@dataclass(frozen=True)
class Field:
    """Effective receptive fields of layers; measured, `ReceptiveFields`.

    Attributes:
        patch: pixels of a side of the patch around the centre; None is that of the network.
    """

    subject: str
    layers: tuple[Tap, ...]
    patch: int | None = None


Need = Comparison | Watch | Probe | Field


def in_words(need: Need) -> dict:
    """What is to be measured, ready for JSON; the same in every run.

    >>> in_words(Comparison(Side("vit"), Side("vit", (Tap("norm", tokens="cls"),))))["b"]
    {'subject': 'vit', 'layers': ['norm[cls]'], 'pixels': None}
    """
    if isinstance(need, Comparison):
        sides = {
            name: vars(side) | {"layers": _names(side.layers)} for name, side in vars(need).items()
        }
        return {"kind": "Comparison", **sides}
    if isinstance(need, Field):
        return {"kind": "Field", **vars(need), "layers": _names(need.layers)}
    return {"kind": type(need).__name__, "subject": need.subject, "what": need.what}


def _names(layers: tuple[str | Tap, ...]) -> list[str]:
    return [layer if isinstance(layer, str) else layer.pattern + layer.suffix for layer in layers]


class NotApplicable(Exception):
    """The networks of a study cannot answer the question of an experiment; says why."""
