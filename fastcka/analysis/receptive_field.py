"""Effective receptive fields: which pixels the centre of a layer depends on, and how much."""

import numbers
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from fastcka.analysis.centre_cell import Centre, centre_cell
from fastcka.analysis.field_maps import centre_share, mass_radius
from fastcka.capture import Tap
from fastcka.capture.matching import Wanted, find
from fastcka.capture.modules import evaluating, named, uncompiled, unwrap
from fastcka.capture.tensors import activation

METHODS = ("projection", "exact", "sum")
# Copies of each image that run side by side, each with a cotangent of its own.
COPIES = 16


@dataclass(frozen=True, eq=False)
class ReceptiveFields:
    """Effective receptive fields of the layers of a network.

    Attributes:
        layers: their names.
        maps: float64 [layers, height, width], means over images.
        centres: float64 [layers, 2], the middle (row, column) of each layer's centre cell, pixels.
        centre_shares: float64 [layers, images], of each image the share of its map that lies in
            the centre patch, 0 to 1. NaN where a layer does not depend on the image at all.
        radii: float64 [layers, images], pixels: of each image the distance from the centre of the
            cell within which half of its map lies.
        patch: side of the patches, pixels.
        method: "projection", "exact" or "sum".

    The spread over images of `centre_shares` and `radii`, over √images, is their standard error.
    """

    layers: tuple[str, ...]
    maps: torch.Tensor
    centres: torch.Tensor
    centre_shares: torch.Tensor
    radii: torch.Tensor
    patch: int
    method: str


def receptive_fields(
    model: nn.Module,
    images: torch.Tensor,
    layers: str | Tap | type | Sequence[str | Tap | type],
    *,
    method: str = "projection",
    projections: int = 16,
    seed: int = 0,
    patch: int | None = None,
    batch: int = 64,
) -> ReceptiveFields:
    """|∂ centre of a feature map / ∂ image|, the mean over channels, colours and images.

    Raghu et al. 2021, section 4 and Fig. 6; the field of Luo et al. 2016. With a_c the channels of
    the layer at its centre cell (rows // 2, columns // 2) and x the image,

        exact:       (1/C) Σ_c |∂a_c/∂x|, a backward pass for each channel;
        projection:  √((1/mC) Σ_k (Σ_c v_kc ∂a_c/∂x)²), v_kc ~ N(0, 1), a backward pass for each of
                     m projections: an estimate of √((1/C) Σ_c (∂a_c/∂x)²), the quadratic mean;
        sum:         (1/C) |Σ_c ∂a_c/∂x|, one backward pass; channels of either sign cancel, all of
                     them behind a LayerNorm of equal weights, whose sum is constant.

    Maps of different methods differ in scale; shares and radii do not depend on it. Each pixel of a
    projection has a standard error of up to √(1/2mn) of itself, n images: pixels of flat maps, as
    those of attention before the addition, are told apart by more projections alone.

    The network runs in evaluation mode, without gradients of its parameters, and is left as it
    was. Layers are read as they are inside a hook: what overwrites them afterwards does not matter,
    and fused attention may stay.

    Cost: of m cotangents, m forward passes of each image for all layers together, and m backward
    passes from each layer down to the image. Memory: the activations of `batch` images that a
    backward pass needs, and `batch` images in float64, whatever their number and that of layers.

    Args:
        model: any network; images are moved to where its parameters are.
        images: floating [n, channels, height, width], as the model takes them.
        layers: as for `fastcka.compare`, whole activations with positions: `after_residual(model)`,
            `before_residual(model)`, Taps, names. Of a module that is called several times the
            first call, or the one that the Tap says.
        method: as above.
        projections: m, of method "projection".
        seed: of the cotangents; each image and projection has its own, the same for every layer of
            equal width, whatever `batch` is.
        patch: side of the patch whose share is told, pixels; None takes that of the model.
        batch: how many images run at once, copies counted; at least 16 runs copies side by side.

    Raises:
        TypeError, ValueError: an argument is none of these; a layer has no positions, is not
            called, or does not depend on the images through gradients.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
    >>> fields = receptive_fields(net, torch.rand(2, 3, 12, 12), ["0", "1"], patch=4)
    >>> [int((one > 0).sum()) for one in fields.maps]
    [9, 25]
    """
    images = _checked(images, method, projections, batch)
    model = unwrap(model)
    modules = named(model)
    patch = _patch_of(modules) if patch is None else patch
    wanted = find(layers, modules, type(model).__name__)
    for one in wanted:
        if one.tap.chooses:
            raise ValueError(
                f"`layers` must be whole activations, but {one.layer!r} "
                "takes a part; leave out `tokens` and `select`"
            )
    names = [one.layer for one in wanted]
    count = {"exact": COPIES, "projection": projections, "sum": 1}[method]
    copies = min(count, COPIES, batch)
    at_once = min(len(images), batch // copies)
    parameter = next(model.parameters(), images)
    generators = {name: torch.Generator().manual_seed(seed) for name in names}
    maps = [torch.zeros(images.shape[-2:], dtype=torch.float64) for _ in names]
    shares, radii, centres = ([[] for _ in names] for _ in range(3))
    for part in images.split(at_once):
        x = part.to(parameter.device).repeat_interleave(copies, 0)
        with _gradients_of_inputs(model):
            x = x.detach().clone().requires_grad_()
            found = _centres(model, x, wanted, modules)
            for i, name in enumerate(names):
                centre = found.pop(name)
                directions = _directions(method, centre, len(part), projections, generators[name])
                field = _field(centre.values, x, directions, method, copies).cpu()
                place = centre.row, centre.column
                maps[i] = maps[i] + field.sum(0)
                shares[i].append(centre_share(field, patch))
                radii[i].append(mass_radius(field, place))
                centres[i] = place
        del found, centre, x  # before the next ones come
    return ReceptiveFields(
        tuple(names),
        torch.stack(maps) / len(images),
        torch.tensor(centres, dtype=torch.float64),
        torch.stack([torch.cat(one) for one in shares]),
        torch.stack([torch.cat(one) for one in radii]),
        patch,
        method,
    )


def _field(
    values: torch.Tensor, x: torch.Tensor, directions: torch.Tensor, method: str, copies: int
) -> torch.Tensor:
    """Of each image its map [height, width], float64; from cotangents [images, m, channels]."""
    images, count, channels = directions.shape
    total = torch.zeros(images, *x.shape[1:], dtype=torch.float64, device=x.device)
    for part in directions.split(copies, 1):
        missing = copies - part.shape[1]
        if missing:
            part = torch.cat([part, part.new_zeros(images, missing, channels)], 1)
        part = part.to(values).flatten(0, 1)
        (gradient,) = torch.autograd.grad(values, x, part, retain_graph=True)
        gradient = gradient.double().unflatten(0, (images, copies))
        total += (gradient.square() if method == "projection" else gradient.abs()).sum(1)
    if method == "projection":
        total = (total / (count * channels)).sqrt()
    else:
        total /= channels
    return total.mean(1)


def _directions(
    method: str, centre: Centre, images: int, projections: int, generator: torch.Generator
) -> torch.Tensor:
    """The cotangents, [images, m, channels]."""
    channels = centre.values.shape[1]
    if method == "sum":
        return torch.ones(images, 1, channels)
    if method == "exact":
        return torch.eye(channels).expand(images, -1, -1)
    # One image after the other: the numbers do not depend on how many come together.
    drawn = [torch.randn(projections, channels, generator=generator) for _ in range(images)]
    return torch.stack(drawn)


def _centres(
    model: nn.Module, x: torch.Tensor, wanted: list[Wanted], modules: dict[str, nn.Module]
) -> dict[str, Centre]:
    """Run the network and take the centre of every layer, by name."""
    run = _Pass(x, wanted, modules)
    handles = []
    try:
        for module, side in dict.fromkeys((modules[one.name], one.tap.side) for one in wanted):
            if side == "input":
                handle = module.register_forward_pre_hook(run.before, with_kwargs=True)
            else:
                handle = module.register_forward_hook(run.after, with_kwargs=True)
            handles.append(handle)
        with uncompiled():
            model(x.clone())  # it may write on its input, which a leaf of the graph forbids
    finally:
        for handle in handles:
            handle.remove()
    for one in wanted:
        name = one.layer
        if name not in run.found:
            raise ValueError(
                f"`layers` must be called in a forward pass, but {name!r} is not; tap the module "
                "around it"
            )
    return run.found


class _Pass:
    """One forward pass: counts the calls, and keeps the centres of what is wanted."""

    def __init__(self, x: torch.Tensor, wanted: list[Wanted], modules: dict[str, nn.Module]):
        self._x, self._modules = x, modules
        self._calls: Counter = Counter()
        self._wanted: dict[tuple, list[Wanted]] = {}
        for one in wanted:
            place = modules[one.name], one.tap.side, one.tap.call or 1
            self._wanted.setdefault(place, []).append(one)
        self.found: dict[str, Centre] = {}

    def before(self, module, args, kwargs):
        self._see(module, "input", (args, kwargs))

    def after(self, module, args, kwargs, output):
        self._see(module, "output", output)

    def _see(self, module: nn.Module, side: str, nested) -> None:
        self._calls[module, side] += 1
        call = self._calls[module, side]
        for one in self._wanted.get((module, side, call), []):
            centre = _centre(one, activation(nested), self._x, self._modules)
            self.found[one.layer] = centre


def _centre(one: Wanted, activation: torch.Tensor | None, x: torch.Tensor, modules) -> Centre:
    if activation is None or activation.shape[:1] != x.shape[:1]:
        came = "no floating tensor" if activation is None else list(activation.shape)
        raise ValueError(
            f"`layers` must be activations of the {len(x)} images that run at once, but "
            f"{one.name!r} is {came}; tap the module around it"
        )
    centre = centre_cell(activation, one.name, modules, tuple(x.shape[-2:]))
    if not centre.values.requires_grad:
        raise ValueError(
            f"`layers` must depend on the images through gradients, but {one.name!r} does not: "
            "the network detaches what comes before it; tap another layer"
        )
    return centre


@contextmanager
def _gradients_of_inputs(model: nn.Module) -> Iterator[None]:
    """Evaluation mode with gradients, but of no parameter."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        with evaluating(model), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _patch_of(modules: dict[str, nn.Module]) -> int:
    for part in ("patch_embed", "stem"):
        size = getattr(modules.get(part), "patch_size", None)
        sides = set(size) if isinstance(size, (tuple, list)) else {size}
        if len(sides) == 1 and isinstance(next(iter(sides)), int):
            return sides.pop()
    raise ValueError(
        "`patch` must be given, the side in pixels of the patch whose share is told: the network "
        "has no square patches of its own"
    )


def _checked(images: torch.Tensor, method: str, projections: int, batch: int) -> torch.Tensor:
    if not isinstance(images, torch.Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, torch.Tensor) else type(images).__name__
        raise TypeError(f"`images` must be a floating tensor, but is {kind}")
    if images.ndim != 4 or images.numel() == 0:
        raise ValueError(
            f"`images` must be [n, channels, height, width], but is {list(images.shape)}"
        )
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {', '.join(METHODS)}, but is {method!r}")
    for name, value in (("projections", projections), ("batch", batch)):
        if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(f"`{name}` must be a whole number from 1 on, but is {value!r}")
    return images.detach()
