"""The probes that several experiments ask for: on the tokens of every block, taken together."""

import torch

from fastcka.analysis.observer import Taps
from fastcka.analysis.patch_features import patch_features
from fastcka.analysis.token_features import token_features
from fastcka.capture.selection import layout_of
from fastcka.experiments.runner.needs import Probe
from fastcka.experiments.runner.subjects import Subject
from fastcka.experiments.shared.rehearsed import probed, shapes

CLS, FIRST, MEAN, MEAN_OF_ALL = "cls", "first", "gap", "all"
PATCHES = "patches"


def of_blocks(one: Subject, tokens: str) -> Probe:
    """Probes on "cls", "first" or "gap" tokens of every block, or on the mean of "all", prefix too.

    Raises:
        ValueError: the network has no such tokens.
    """
    blocks = list(one.blocks)
    if tokens == MEAN_OF_ALL:
        need = Probe(one.name, "mean of all tokens", lambda module: Taps(blocks, _mean_of_all))
    else:
        need = Probe(
            one.name,
            f"{tokens} of blocks",
            lambda module: token_features(module, blocks, tokens),
        )
    probed(one, need)
    return need


def of_patches(one: Subject) -> Probe:
    """Probes on maps that were cut into patches as wide as the last, pooled and averaged.

    Raises:
        ValueError: its blocks are no maps.
    """
    last = one.blocks[-1]
    shape = shapes(one)[last]
    if len(shape) != 4:
        raise ValueError(f"{last} has no map of four axes, but {list(shape)}")
    in_order = {block: layout_of(block, one.modules).channels_last for block in one.blocks}
    channels, *sides = (shape[3], *shape[1:3]) if in_order[last] else shape[1:]

    def reduce(layer: str, maps: torch.Tensor) -> torch.Tensor:
        return patch_features(maps, channels, tuple(sides), in_order[layer])

    need = Probe(one.name, "patches of blocks", lambda module: Taps(list(one.blocks), reduce))
    probed(one, need)
    return need


def names_of(one: Subject, tokens: str) -> list[str]:
    """What the probes of its blocks are called, in order."""
    suffix = "" if tokens in (MEAN_OF_ALL, PATCHES) else f"[{tokens}]"
    return [block + suffix for block in one.blocks]


def _mean_of_all(layer: str, x: torch.Tensor) -> torch.Tensor:
    if x.ndim != 3:
        raise ValueError(f"{layer} has no tokens, but {list(x.shape)}")
    return x.mean(1)
