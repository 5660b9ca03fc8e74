"""What a branch adds to its skip connection: how much, and in which direction."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from fastcka.analysis.observer import Values
from fastcka.analysis.sublayers import Residual, residuals
from fastcka.capture import Capture, Tap
from fastcka.capture.modules import named, unwrap
from fastcka.capture.selection import layout_of

CACHED = 2**17  # numbers of float64
MEASURES = ("norm_ratio", "cos_skip_total", "cos_skip_branch", "cos_total_branch")


class SkipConnections:
    """An observer of ‖z‖ / ‖f(z)‖ and of the angles between z, f(z) and z + f(z), token by token.

    Raghu et al. 2021, section 5, Fig. 7, E.1 and E.2: z is the skip connection, f(z) its branch as
    it is added (attention or MLP with its LayerScale; the convolutions of a ResNet's block), both
    of one token, or one position of a map with its channels:

        norm_ratio        ‖z‖ / ‖f‖           0 to ∞; ∞ where the branch adds nothing
        cos_skip_total    cos(z, z + f)      -1 to 1, as the others; NaN where a norm is 0
        cos_skip_branch   cos(z, f)
        cos_total_branch  cos(z + f, f)

    Values are float64 [n, tokens] under the names "MEASURE/PLACE", as "norm_ratio/blocks.0.attn",
    PLACE as in `residuals(model)`: all tokens in their order, prefix tokens first, maps row by row.
    They are computed in float64 from z and f as they are when they come into being, so a cosine is
    right to 1e-15; of the two, whichever comes first is copied until the other comes, and nothing
    is kept beyond the pass. That z + f is what the network goes on with is checked by its norm
    in the first pass, where a module sees it: everywhere but in ResNets that activate after the
    addition.

    Cost: six operations for each entry of z, a copy of z, and 8 bytes for each value.

    Args:
        places: which additions, of `residuals(model)`; None takes all.
        measures: which of the four.

    Raises:
        TypeError, ValueError: an argument is none of these. When watching: the network has no
            places that are known (ValueError of `residuals`), or one does not add.

    >>> from timm.models.vision_transformer import VisionTransformer
    >>> vit = VisionTransformer(img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=2).eval()
    >>> with SkipConnections(measures=["norm_ratio"]).watching(vit, 3) as values:
    ...     _ = vit(torch.rand(3, 3, 16, 16))
    >>> {name: list(x.shape) for name, x in values.items()}
    {'norm_ratio/blocks.0.attn': [3, 5], 'norm_ratio/blocks.0.mlp': [3, 5]}
    """

    def __init__(
        self,
        places: Sequence[Residual] | None = None,
        measures: Sequence[str] = MEASURES,
    ):
        if places is not None:
            places = list(places)
            if not places or not all(isinstance(place, Residual) for place in places):
                raise TypeError(
                    "`places` must be some of `residuals(model)`, or None for all, but is "
                    f"{places!r}"
                )
        unknown = [one for one in measures if one not in MEASURES]
        if isinstance(measures, str) or unknown or not measures:
            raise ValueError(
                f"`measures` must be some of {', '.join(MEASURES)}, but is {measures!r}"
            )
        self._places, self._measures = places, tuple(measures)
        self._network: _Network | None = None  # the last one watched

    @contextmanager
    def watching(self, model: nn.Module, n: int) -> Iterator[Values]:
        """Around one forward pass of n images, as every observer."""
        if self._network is None or self._network.capture.model is not unwrap(model):
            self._network = _Network(model, self._places)
        run = _Run(self._network, self._measures)
        values: Values = {}
        with self._network.capture.watching(n, run.put):
            yield values
        values.update(run.values)


class _Network:
    """What all passes of a network have in common."""

    def __init__(self, model: nn.Module, places: Sequence[Residual] | None):
        self.modules = named(unwrap(model))
        self.parts: dict[str, list[tuple[Residual, str, Tap]]] = {}  # by the name of a layer
        for place in residuals(model) if places is None else places:
            for part in ("skip", "branch", "total"):
                tap = getattr(place, part)
                if tap is not None:
                    self.parts.setdefault(tap.layer, []).append((place, part, tap))
        taps = [uses[0][2] for uses in self.parts.values()]
        self.capture = Capture(model, taps, type(unwrap(model)).__name__)


class _Run:
    """One forward pass: puts together what belongs together as it comes."""

    def __init__(self, network: _Network, measures: tuple[str, ...]):
        self._network, self._measures = network, measures
        self._first = network.capture.layers is None
        self._held: dict[str, tuple[str, torch.Tensor, torch.dtype]] = {}  # by place
        self._totals: dict[str, tuple[torch.Tensor, torch.Tensor, float]] = {}
        self.values: Values = {}

    def put(self, layer: str, x: torch.Tensor) -> None:
        for place, part, tap in self._network.parts[layer]:
            if part == "total" and not self._first:
                continue
            last = x.ndim != 4 or layout_of(tap.pattern, self._network.modules).channels_last
            rows = (x if last else x.permute(0, 2, 3, 1)).flatten(1, -2)  # [n, tokens, channels]
            if part == "total":
                self._check(place, rows)
            elif place.name not in self._held:
                self._held[place.name] = part, rows.clone(), x.dtype
            else:
                self._combine(place, part, rows)

    def _combine(self, place: Residual, part: str, x: torch.Tensor) -> None:
        """Both are there, whichever came first."""
        _, other, _ = self._held.pop(place.name)
        z, f = (other, x) if part == "branch" else (x, other)
        if z.shape != f.shape:
            raise ValueError(
                f"`places` must be additions, but at {place.name!r} the skip connection has "
                f"{_said(z)} and the branch {_said(f)}; leave it out of `places`"
            )
        rounding = max(torch.finfo(z.dtype).eps, torch.finfo(f.dtype).eps)
        norm_z, norm_f, zf = _products(z, f)
        zz, ff = norm_z.square(), norm_f.square()
        norm_total = (zz + 2 * zf + ff).clamp(min=0).sqrt()
        self._totals[place.name] = norm_total, norm_z + norm_f, rounding
        for measure in self._measures:
            if measure == "norm_ratio":
                value = norm_z / norm_f
            elif measure == "cos_skip_total":
                value = (zz + zf) / (norm_z * norm_total)
            elif measure == "cos_skip_branch":
                value = zf / (norm_z * norm_f)
            else:
                value = (ff + zf) / (norm_total * norm_f)
            self.values[f"{measure}/{place.name}"] = value

    def _check(self, place: Residual, x: torch.Tensor) -> None:
        """Whether the network goes on with z + f, by the norms of its tokens."""
        expected, scale, rounding = self._totals.pop(place.name, (x.new_empty(0),) * 2 + (0.0,))
        rounding = max(rounding, torch.finfo(x.dtype).eps)
        found = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64)
        # A comparison with NaN is never true: a NaN of the network's is no reason.
        if found.shape != expected.shape or ((found - expected).abs() > 4 * rounding * scale).any():
            raise ValueError(
                f"`places` must be additions, but what follows {place.name!r} is not its skip "
                "connection plus its branch; leave it out of `places`"
            )


def _products(z: torch.Tensor, f: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """‖z‖, ‖f‖ and ⟨z, f⟩ of every token [n, tokens], in float64."""
    # Of so many images at once that what is converted stays in the cache.
    images = len(z) if z.is_cuda else max(1, CACHED // z[0].numel())
    norm, parts = torch.linalg.vector_norm, []
    for some_z, some_f in zip(z.split(images), f.split(images), strict=True):
        some_z, some_f = some_z.double(), some_f.double()
        product = torch.linalg.vecdot(some_z, some_f)
        parts.append([norm(some_z, dim=-1), norm(some_f, dim=-1), product])
    return tuple(torch.cat(some) for some in zip(*parts, strict=True))


def _said(x: torch.Tensor) -> str:
    return f"{x.shape[1]} tokens of {x.shape[2]} channels"
