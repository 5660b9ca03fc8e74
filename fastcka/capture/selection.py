"""What a tap takes of an activation: tokens, positions, channels, a head."""

import math
from typing import NamedTuple

import torch
from torch import nn

from fastcka.capture.tap import Tap


class Unusable(Exception):
    """An activation cannot be read as the tap wants it; says why."""

    def __init__(self, reason: str, shape: torch.Size | None = None):
        self.reason = reason  # layers that share it are told of together
        super().__init__(reason if shape is None else f"{reason}; its shape is {list(shape)}")


class Layout(NamedTuple):
    """How a network lays out its activations."""

    prefix_tokens: int  # class and register tokens, before the patches
    class_token: bool  # the first of them
    channels_last: bool  # maps are [n, height, width, channels]


def layout_of(model: nn.Module) -> Layout:
    prefix = getattr(model, "num_prefix_tokens", 0)
    return Layout(
        prefix,
        prefix > 0 and getattr(model, "cls_token", True) is not None,
        str(getattr(model, "output_fmt", "NCHW")).upper().endswith("NHWC"),
    )


def take(x: torch.Tensor, tap: Tap, layout: Layout, heads: "Heads | None") -> torch.Tensor:
    """Apply `select`, then `tokens`, of a tap to an activation [n, ...]."""
    if callable(tap.select):
        x = tap.select(x)
        if not isinstance(x, torch.Tensor):
            raise Unusable(f"`select` returned {type(x).__name__}, not a tensor")
    elif tap.select is not None:
        channels = _head(tap.head, x, heads) if isinstance(tap.select, str) else tap.select
        x = x[(slice(None),) * _channel_axis(x, layout) + (channels,)]
    if tap.tokens == "all":
        return x
    if x.ndim not in (3, 4):
        raise Unusable("it has no tokens or positions", x.shape)
    return (_tokens if x.ndim == 3 else _positions)(x, tap.tokens, layout)


class Heads(NamedTuple):
    """The attention heads of the module that a layer belongs to."""

    count: int
    width: int | None


def heads_of(name: str, modules: dict[str, nn.Module]) -> Heads | None:
    """From the nearest module above that says so."""
    while True:
        module = modules.get(name)
        count = getattr(module, "num_heads", None)
        if isinstance(count, int):
            width = getattr(module, "head_dim", None)
            return Heads(count, width if isinstance(width, int) else None)
        if not name:
            return None
        name = name.rpartition(".")[0]


def _head(number: int, x: torch.Tensor, heads: Heads | None) -> slice:
    if heads is None:
        raise Unusable("no module around it says how many attention heads there are")
    if number >= heads.count:
        raise Unusable(f"head {number} was asked for, and there are {heads.count}, from 0 on")
    channels = x.shape[-1]
    width = heads.width or channels // heads.count
    if x.ndim != 3 or channels != heads.count * width:
        raise Unusable(
            f"it is not [n, tokens, {heads.count} heads x {width}]: heads lie side by side in the "
            "input of the attention's projection, Tap('….attn.proj', side='input')",
            x.shape,
        )
    return slice(number * width, (number + 1) * width)


def _channel_axis(x: torch.Tensor, layout: Layout) -> int:
    return 1 if x.ndim == 4 and not layout.channels_last else x.ndim - 1


def _tokens(x: torch.Tensor, tokens, layout: Layout) -> torch.Tensor:
    """Of a sequence [n, tokens, channels]."""
    prefix, count = layout.prefix_tokens, x.shape[1]
    if tokens == "cls":
        if not layout.class_token:
            raise Unusable("the network names no class token; tokens=0 takes the first token")
        return x[:, 0]
    if tokens == "patches":
        return x[:, prefix:]
    if tokens == "gap":
        return x[:, prefix:].mean(1)
    if isinstance(tokens, tuple):
        side = math.isqrt(count - prefix)
        if side * side != count - prefix:
            raise Unusable("its patches are no square: give the number of the token", x.shape)
        return x[:, prefix + _inside(tokens[0], side) * side + _inside(tokens[1], side)]
    return x[:, _inside(tokens, count)]


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
        raise Unusable(f"{index} was asked for, and there are {size}, from 0 on")
    return index % size
