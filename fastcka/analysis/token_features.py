"""What probes need of each image: class token, mean, first or every single token of some layers."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import nn

from fastcka.analysis.observer import Taps
from fastcka.analysis.positions import positions
from fastcka.capture import Tap
from fastcka.capture.matching import find
from fastcka.capture.modules import named, unwrap
from fastcka.capture.selection import layout_of

TOKENS = ("cls", "gap", "first", "each")


def token_features(
    model: nn.Module, layers: str | Tap | Sequence[str | Tap] = "blocks", tokens: str = "each"
) -> Taps:
    """An observer that keeps tokens of each image, for probes.

    Args:
        model: the network that will be watched.
        layers: as `layers_a` of `fastcka.compare`; Taps that do not choose tokens or channels.
        tokens: "cls", the class token; "gap", the mean of the patches or positions; "first", the
            first of these; "each", all of them, row by row. What is not a patch, such as class,
            distillation and register tokens, is in none of the last three.

    Returns:
        `Taps`, whose values are copies [n, channels], or [n, positions, channels] for "each", under
        names like 'blocks.3[each]'.

    Raises:
        TypeError, ValueError: `layers` names what the network does not have; `tokens` is none of
            these. While watching: a layer has no such tokens.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 2, stride=2), nn.ReLU())
    >>> with token_features(net, "0").watching(net, 5) as values:
    ...     _ = net(torch.zeros(5, 3, 4, 6))
    >>> {name: list(x.shape) for name, x in values.items()}
    {'0[each]': [5, 6, 8]}
    """
    if tokens not in TOKENS:
        raise ValueError(f"`tokens` must be 'cls', 'gap', 'first' or 'each', but is {tokens!r}")
    modules = named(unwrap(model))
    taps = []
    for wanted in find(layers, modules, "a"):
        if wanted.tap.chooses:
            raise ValueError(
                f"`layers` holds {wanted.layer!r}, which chooses already; leave that to `tokens`"
            )
        chosen = {"tokens": tokens}
        if tokens in ("first", "each"):
            chosen = {"select": _selecting(tokens, layout_of(wanted.name, modules))}
        taps.append(replace(wanted.tap, pattern=wanted.name, **chosen))
    return Taps(taps)


def _selecting(tokens: str, layout) -> Callable[[torch.Tensor], torch.Tensor]:
    def select(x: torch.Tensor) -> torch.Tensor:
        found = positions(x, layout)
        return found[:, 0] if tokens == "first" else found

    select.__name__ = tokens  # of which the name of the layer is made
    return select
