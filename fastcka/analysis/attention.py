"""Attention as a network uses it in its forward pass, in pieces that are never kept.

Scaled dot-product attention, and a softmax over the last axis of [images, heads, queries, keys],
are seen where they are called: after the norms, rotations, scales and biases of whatever network
calls them, which goes on with what it computed itself. Fused attention stays as it is.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fastcka.capture.matching import few, find
from fastcka.capture.modules import named, uncompiled, unwrap
from fastcka.capture.selection import Unusable
from fastcka.capture.tensors import tensors

SOFTMAX = (torch.softmax, torch.Tensor.softmax, functional.softmax, torch.special.softmax)
# What torch calls from nn.MultiheadAttention; the functions inside them are out of sight.
HIDDEN = (functional.multi_head_attention_forward,)
# Most of a network's modules, and in none of them is attention: hooks there would be for nothing.
PLAIN = (nn.Linear, nn.LayerNorm, nn.Dropout, nn.Identity)
# Weights in one piece: on a CPU they stay in the cache of a core, in memory that the allocator does
# not hand back to the system after each; on a GPU they keep all of it busy.
PIECE_CPU, PIECE_GPU = 2**18, 2**26


class Piece(NamedTuple):
    """Rows of the attention of some images; weights [images, heads, windows, queries, keys]."""

    images: slice
    queries: slice
    weights: torch.Tensor  # float32, or float64 of float64


class Attention:
    """The attention of one call of a module: A = softmax(scale QKᵀ + bias) by rows, or parts of it.

    Attributes:
        name: of the module, with `#2` and so on for its further calls.
        shape: (images, heads, windows, queries, keys); attention over all tokens is one window.
        around: the module, the one around it, and so on to the network.
        inputs: of modules that are running, what they were called with.
        image: height and width of the network's input in pixels, or None.
    """

    def __init__(self, name, shape, around, inputs, image, rows, piece: int):
        self.name: str = name
        self.shape: tuple[int, int, int, int, int] = shape
        self.around: tuple[nn.Module, ...] = around
        self.inputs: dict[nn.Module, tuple] = inputs
        self.image: tuple[int, int] | None = image
        self._rows: Callable[[slice, slice], torch.Tensor] = rows
        self._piece = piece

    def pieces(self) -> Iterator[Piece]:
        """All of it, queries outside and images inside; a piece is valid until the next one."""
        n, heads, windows, queries, keys = self.shape
        of_a_row = heads * windows * keys
        rows = max(1, min(queries, self._piece // of_a_row))
        images = max(1, min(n, self._piece // (of_a_row * rows)))
        for first in range(0, queries, rows):
            for one in range(0, n, images):
                where = slice(one, min(one + images, n)), slice(first, min(first + rows, queries))
                yield Piece(*where, self._rows(*where))


Sink = Callable[[Attention], None]


class AttentionCapture:
    """Hands over the attention of every module of a network while it runs.

    Which module it is: the innermost that is running, a softmax module aside. What has attention,
    but none that can be seen or read, is left out and named in `notices` after a pass.

    Args:
        model: any network; compiled and data-parallel ones are unwrapped.
        layers: names or globs of attention modules, or None for all.
        piece: weights computed at a time; None is 2^18 on a CPU (1 MB; two or three such tensors
            live at once), 2^26 on a GPU. A single row of all heads and windows may be more.
        label: what the network is called in messages.

    Raises:
        TypeError, ValueError: `layers` is something else, or names what the network does not have.

    Cost: beside the forward pass, the products of q and k and a softmax once more for fused
    attention; only what the sink does where the network itself computes the weights.

    >>> layer = nn.Module()
    >>> layer.forward = lambda x: functional.scaled_dot_product_attention(x, x, x)
    >>> def sink(attention):
    ...     for piece in attention.pieces():
    ...         print(attention.name, attention.shape, piece.weights.sum(-1).unique())
    >>> network = nn.Sequential(layer)
    >>> with AttentionCapture(network).watching(2, sink):
    ...     _ = network(torch.ones(2, 3, 5, 4))
    0 (2, 3, 1, 5, 5) tensor([1.])
    """

    def __init__(
        self,
        model: nn.Module,
        layers: str | Sequence[str] | None = None,
        piece: int | None = None,
        label: str = "a",
    ):
        if piece is not None and (not isinstance(piece, int) or piece < 1):
            raise ValueError(f"`piece` must be a number of weights, 1 or more, but is {piece!r}")
        items = [layers] if isinstance(layers, str) else layers
        if items is not None and not (
            isinstance(items, Sequence) and all(isinstance(item, str) for item in items)
        ):
            raise TypeError(
                "`layers` must be names or globs of attention modules, or None for all, "
                f"but is {layers!r}"
            )
        self.model, self.label, self._piece = unwrap(model), label, piece
        self._modules = named(self.model)
        wanted = [] if items is None else find(items, self._modules, label)
        self._names = None if items is None else {one.name for one in wanted}
        self._explicit = [one.name for one in wanted if one.explicit]
        self.taken: tuple[str, ...] = ()  # in the last pass: what came and could be used
        self.notices: tuple[str, ...] = ()

    @contextmanager
    def watching(self, n: int, sink: Sink) -> Iterator[None]:
        """Around one forward pass of n images: `sink(attention)` as each is computed.

        A sink that cannot use one raises `fastcka.capture.selection.Unusable`. The network is left
        as it was, also after an error.

        Raises:
            ValueError: a module asked for by name has no attention that can be used, or none has.
        """
        run = _Run(self, n, sink)
        handles = []
        try:
            for name, module in self._modules.items():
                if module in run.names or isinstance(module, PLAIN):
                    continue
                run.names[module] = name
                handles.append(
                    module.register_forward_pre_hook(run.enter, with_kwargs=True, prepend=True)
                )
                handles.append(module.register_forward_hook(run.leave, always_call=True))
            with uncompiled(), _Mode(run):
                yield
        finally:
            for handle in handles:
                handle.remove()
        self._settle(run)

    def _settle(self, run: "_Run") -> None:
        for name in self._explicit:
            if name not in run.taken:
                reason = run.rejected.get(name) or "a forward pass computes none in it"
                raise ValueError(
                    f"attention of {name!r} of model {self.label!r} cannot be used: {reason}"
                )
        self.taken = tuple(run.taken)
        reasons = dict.fromkeys(run.rejected.values())
        self.notices = tuple(
            f"{few([name for name, why in run.rejected.items() if why == reason])} of model "
            f"{self.label!r} left out: {reason}"
            for reason in reasons
        )
        if not run.taken:
            among = "" if self._names is None else f" among {few(sorted(self._names))}"
            reason = next(
                iter(self.notices),
                "a forward pass calls neither scaled dot-product attention nor a softmax over the "
                "last of the axes [images, heads, queries, keys]: Mixers, CNNs and linear "
                "attention have none",
            )
            raise ValueError(
                f"model {self.label!r} has no attention that can be used{among}: {reason}"
            )


class _Running(NamedTuple):
    """A module that is being called."""

    module: nn.Module
    inputs: tuple
    found: list[str]  # by which way attention came in this call, or one within it


class _Run:
    """One forward pass: knows which modules are running, and counts their calls."""

    def __init__(self, capture: AttentionCapture, n: int, sink: Sink):
        self.capture, self.n, self.sink = capture, n, sink
        self.names: dict[nn.Module, str] = {}
        self.stack: list[_Running] = []
        self.calls: Counter = Counter()
        self.image: tuple[int, int] | None = None
        self.taken: dict[str, None] = {}  # in the order in which they came
        self.rejected: dict[str, str] = {}

    def enter(self, module, args, kwargs) -> None:
        if self.image is None:
            maps = (x for x in tensors((args, kwargs)) if x.ndim == 4 and x.is_floating_point())
            self.image = next((tuple(x.shape[-2:]) for x in maps), None)
        self.stack.append(_Running(module, args, []))
        self.calls[module] += 1

    def leave(self, module, args, output) -> None:
        while self.stack[-1].module is not module:  # left by errors that the network caught
            self.stack.pop()
        gone = self.stack.pop()
        if self.stack:
            self.stack[-1].found.extend(gone.found[:1])
        kind = type(module).__name__.lower()
        if not gone.found and ("attention" in kind or "attn" in kind):
            self._reject(
                self.names[module],
                "it computes no softmax over keys that can be seen, as linear attention and "
                "kernels from outside torch do not",
            )

    def fused(self, *args, **options) -> None:
        self._found(lambda heads: _fused(self.n, heads, *args, **options))

    def explicit(self, weights: torch.Tensor) -> None:
        self._found(lambda heads: _explicit(self.n, heads, weights))

    def hidden(self) -> None:
        self._found(_refuse_hidden)

    def _found(self, read) -> None:
        """Hand over what is attention of the innermost module, or say why it is not."""
        running = [one for one in self.stack if not isinstance(one.module, nn.Softmax)]
        if not running:
            return
        module = running[-1].module
        running[-1].found.append("seen")
        name, names = self.names[module], self.capture._names
        if names is not None and name not in names:
            return
        call = self.calls[module]
        name += f"#{call}" if call > 1 else ""
        try:
            if len(running[-1].found) > 1:
                raise Unusable(
                    "it computes attention several times in one call, and what it makes of them "
                    "is not known"
                )
            if hasattr(module, "proj_w"):  # talking heads
                raise Unusable("it mixes the heads after the softmax")
            shape, device, rows = read(_declared_heads(module))
            size = self.capture._piece or (PIECE_CPU if device.type == "cpu" else PIECE_GPU)
            outwards = around(self.names[module], self.capture._modules)
            inputs = {one.module: one.inputs for one in self.stack}
            self.sink(Attention(name, shape, outwards, inputs, self.image, rows, size))
        except Unusable as unusable:
            self.taken.pop(name, None)
            self._reject(name, str(unusable))
            return
        self.taken[name] = None

    def _reject(self, name: str, reason: str) -> None:
        names = self.capture._names
        if names is None or name.partition("#")[0] in names:
            self.rejected.setdefault(name, reason)


class _Mode(TorchFunctionMode):
    """Sees every torch function that the network calls, and changes none."""

    def __init__(self, run: _Run):
        super().__init__()
        self.run = run

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is functional.scaled_dot_product_attention:
            self._watch(args[0] if args else kwargs["query"], self.run.fused, *args, **kwargs)
        elif func in SOFTMAX:
            axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
            if result.ndim > 3 and axis in (-1, result.ndim - 1):
                self._watch(result, self.run.explicit, result)
        elif func in HIDDEN:
            self.run.hidden()
        return result

    @staticmethod
    def _watch(x: torch.Tensor, see, *args, **kwargs) -> None:
        # What is computed in here is no part of the network that others watch, or autocast.
        unseen = torch._C.DisableTorchFunction()
        with unseen, torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            see(*args, **kwargs)


def around(name: str, modules: dict[str, nn.Module]) -> tuple[nn.Module, ...]:
    """A module, the one around it, and so on to the network."""
    found = [modules[name]]
    while name:
        name = name.rpartition(".")[0]
        found.append(modules[name])
    return tuple(found)


def _declared_heads(module: nn.Module) -> int | None:
    heads = getattr(module, "num_heads", getattr(module, "heads", None))
    return heads if isinstance(heads, int) else None


def _refuse_hidden(heads):
    raise Unusable(
        "nn.MultiheadAttention computes its attention out of sight; take a network whose attention "
        "calls scaled_dot_product_attention, as timm's do"
    )


def _by_windows(x: torch.Tensor, n: int, heads: int | None) -> torch.Tensor:
    """[images x windows, heads, a, b] or [images, heads, windows, a, b], as the latter; a view."""
    if x.ndim == 4 and x.shape[0] % n == 0 and heads in (None, x.shape[1]):
        return x.unflatten(0, (n, -1)).transpose(1, 2)
    if x.ndim == 5 and x.shape[0] == n and heads == x.shape[1]:
        return x
    has = "" if heads is None else f", with {heads} heads"
    raise Unusable(
        f"its axes {list(x.shape)} are not [images or windows, heads, tokens, …] of {n} images{has}"
    )


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _explicit(n: int, heads: int | None, weights: torch.Tensor):
    """Attention that the network computed itself."""
    whole = _by_windows(weights.detach(), n, heads)

    def rows(images: slice, queries: slice) -> torch.Tensor:
        return _wide(whole[images, :, :, queries])

    return tuple(whole.shape), weights.device, rows


def _fused(
    n: int,
    heads: int | None,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
):
    """Attention of the arguments of `scaled_dot_product_attention`, of which it is the softmax."""
    if enable_gqa and query.ndim == key.ndim == 4:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    q = _by_windows(query.detach(), n, heads)
    k = _by_windows(key.detach(), n, heads)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    shape = (*q.shape[:-1], k.shape[-2])
    mask = None
    if is_causal:
        mask = torch.ones(shape[-2:], dtype=torch.bool, device=q.device).tril()
        mask = mask.expand(shape)
    elif attn_mask is not None:
        of_call = (*query.shape[:-1], key.shape[-2])
        mask = _by_windows(attn_mask.detach().expand(of_call), n, heads)

    # Scores of a piece, none of which is larger than the first: memory that was freed may have gone
    # back to the system, and is then asked for page by page.
    room = None

    def rows(images: slice, queries: slice) -> torch.Tensor:
        nonlocal room
        left, right = _wide(q[images, :, :, queries]), _wide(k[images])
        of_piece = (*left.shape[:-1], right.shape[-2])
        left, right = left.flatten(0, 2), right.flatten(0, 2)
        room = left.new_empty(math.prod(of_piece)) if room is None else room
        scores = room[: math.prod(of_piece)].view(-1, *of_piece[-2:])
        torch.baddbmm(scores, left, right.mT, beta=0, alpha=scale, out=scores)
        scores = scores.view(of_piece)
        if mask is None:
            return torch.softmax(scores, -1)
        part = mask[images, :, :, queries]
        if part.dtype == torch.bool:
            scores.masked_fill_(~part, -math.inf)
        else:
            scores += part
        nothing = (scores == -math.inf).all(-1, keepdim=True)  # such a query attends to none
        return torch.softmax(scores, -1).masked_fill_(nothing, 0)

    return shape, q.device, rows
