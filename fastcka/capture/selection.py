"""What a tap takes of an activation: tokens, positions, channels, a head."""

import math
import numbers
from typing import NamedTuple

import torch
from torch import nn

from fastcka.capture.tap import Tap

# Of two dimensions. timm's LayerNorm2d is a LayerNorm, and has its channels first all the same.
CHANNELS_FIRST = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d)
CHANNELS_LAST = (nn.Linear, nn.LayerNorm)
# What attention is called with, head beside head.
PROJECTIONS = ("proj", "out_proj", "o_proj", "c_proj")


class Unusable(Exception):
    """An activation cannot be read as the tap wants it; says why."""

    def __init__(self, reason: str, shape: torch.Size | None = None):
        self.reason = reason  # layers that share it are told of together
        super().__init__(reason if shape is None else f"{reason}; its shape is {list(shape)}")


class Layout(NamedTuple):
    """How the activations of one module are laid out, as far as the network says."""

    prefix: int | None = 0  # class and register tokens before the patches; None is unknown
    class_token: bool = False  # the first of them
    patches: int | None = None
    channels_last: bool = False  # maps are [n, height, width, channels]
    heads: tuple[int, int | None] | None = None  # number and width of the attention heads


def layout_of(name: str, modules: dict[str, nn.Module]) -> Layout:
    """From the module and those around it, the nearest first."""
    around = [modules[outer] for outer in _outwards(name) if outer in modules]
    prefix, class_token, patches = 0, False, None
    for module in around:
        token = getattr(module, "cls_token", getattr(module, "class_token", None))
        if isinstance(getattr(module, "num_prefix_tokens", None), int):
            prefix = module.num_prefix_tokens
            class_token = prefix > 0 and getattr(module, "cls_token", True) is not None
            patches = getattr(getattr(module, "patch_embed", None), "num_patches", None)
            break
        if isinstance(token, torch.Tensor):
            prefix = None
            break
    heads = None
    if name.rpartition(".")[2] in PROJECTIONS and isinstance(
        getattr(around[1], "num_heads", None), int
    ):
        width = getattr(around[1], "head_dim", None)
        heads = around[1].num_heads, width if isinstance(width, int) else None
    return Layout(prefix, class_token, patches, _channels_last(around), heads)


def take(x: torch.Tensor, tap: Tap, layout: Layout) -> torch.Tensor:
    """Apply `select`, then `tokens`, of a tap to an activation [n, ...]."""
    if callable(tap.select):
        x = tap.select(x)
        if not isinstance(x, torch.Tensor):
            raise Unusable(f"`select` returned {type(x).__name__}, not a tensor")
    elif tap.select is not None:
        channels = _head(x, tap, layout) if isinstance(tap.select, str) else tap.select
        axis = 1 if x.ndim == 4 and not layout.channels_last else x.ndim - 1
        x = x[(slice(None),) * axis + (channels,)]
    if tap.tokens == "all":
        return x
    if x.ndim not in (3, 4):
        raise Unusable("it has no tokens or positions", x.shape)
    return (_tokens if x.ndim == 3 else _positions)(x, tap.tokens, layout)


def _outwards(name: str) -> list[str]:
    """`a.b.c` -> a.b.c, a.b, a, and the network itself."""
    names = [name]
    while name:
        name = name.rpartition(".")[0]
        names.append(name)
    return names


def _channels_last(around: list[nn.Module]) -> bool:
    """By what the nearest module says, or is made of."""
    for module in around:
        if hasattr(module, "output_fmt"):
            return str(module.output_fmt).upper().endswith("NHWC")
        parts = list(module.modules())
        if any(_is_channels_first(part) for part in parts):
            return False
        if any(isinstance(part, CHANNELS_LAST) for part in parts):
            return True
    return False


def _is_channels_first(module: nn.Module) -> bool:
    return isinstance(module, CHANNELS_FIRST) or type(module).__name__.endswith("Norm2d")


def _head(x: torch.Tensor, tap: Tap, layout: Layout) -> slice:
    if layout.heads is None or tap.side != "input":
        raise Unusable(
            "heads lie side by side only in the input of an attention's projection: "
            "Tap('….attn.proj', side='input')"
        )
    count, width = layout.heads
    width = width or x.shape[-1] // count
    if tap.head >= count:
        raise Unusable(f"head {tap.head} was asked for, and there are {count}, from 0 on")
    if x.shape[-1] != count * width:
        raise Unusable(f"its channels are not {count} heads of {width}", x.shape)
    return slice(tap.head * width, (tap.head + 1) * width)


def _tokens(x: torch.Tensor, tokens, layout: Layout) -> torch.Tensor:
    """Of a sequence [n, tokens, channels]."""
    if isinstance(tokens, numbers.Integral):
        return x[:, _inside(tokens, x.shape[1])]
    if layout.prefix is None:
        raise Unusable(
            "the network does not say how many tokens come before the patches: "
            "take them by number, or with `select`"
        )
    # Before the class token is put in front there are patches alone.
    prefix = 0 if x.shape[1] == layout.patches else layout.prefix
    if tokens == "cls":
        if not (layout.class_token and prefix):
            raise Unusable("it has no class token, or does not say so; tokens=0 takes the first")
        return x[:, 0]
    if tokens == "patches":
        return x[:, prefix:]
    if tokens == "gap":
        return x[:, prefix:].mean(1)
    side = math.isqrt(x.shape[1] - prefix)
    if side * side != x.shape[1] - prefix:
        raise Unusable("its patches are no square: give the number of the token", x.shape)
    return x[:, prefix + _inside(tokens[0], side) * side + _inside(tokens[1], side)]


def _positions(x: torch.Tensor, tokens, layout: Layout) -> torch.Tensor:
    """Of a map [n, channels, height, width], or with the channels last."""
    if tokens == "patches":
        return x
    maps = x if layout.channels_last else x.permute(0, 2, 3, 1)
    if tokens == "gap":
        return maps.mean((1, 2))
    if isinstance(tokens, tuple):
        return maps[:, _inside(tokens[0], maps.shape[1]), _inside(tokens[1], maps.shape[2])]
    if tokens == "cls":
        raise Unusable("it is a map, which has no class token")
    raise Unusable("it is a map: give the position as (row, column)")


def _inside(index: int, size: int) -> int:
    if not -size <= index < size:
        raise Unusable(f"{index} was asked for, and there are {size}")
    return index % size
