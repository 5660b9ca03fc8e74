"""How far attention heads look: the mean attention distance of every head, image by image."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby

import torch
from torch import nn

from fastcka.analysis.attention import Attention, AttentionCapture
from fastcka.analysis.observer import Values
from fastcka.analysis.token_grid import Places, places_of


class AttentionDistance:
    """An observer: mean distance in pixels from a patch to what each head attends to.

    d = mean over queries i of Σ_j A_ij ‖x_i − x_j‖, x the centres of the patches in the image, in
    pixels [Raghu et al. 2021, figure 3]. Tokens without a place (class, registers, padding) are
    left out as queries and as keys. What a query gives to them is not made up for, as in the
    authors' code, unless `renormalize` divides by what it gives to patches. The mean is over the
    queries of all windows.

    Args:
        layers: names or globs of attention modules, or None for all.
        renormalize: divide each row by its sum over keys that have a place; a query that attends
            to none of these is left out.
        piece: as in `AttentionCapture`.

    After a pass `notices` says which attention was left out and why, and `uniform` what is measured
    of uniform attention, to all patches of the image and to class and register tokens, for each
    module; of it `values[name]` is a fraction.

    Values: by module, [n, heads] float64 on the network's device, in pixels, from 0 to the
    diagonal of the image. Weights, and sums over a piece of them, in float32 (float64 of float64).

    Raises:
        TypeError, ValueError: as `AttentionCapture`; no attention of the network can be used.

    >>> class Net(nn.Module):
    ...     num_prefix_tokens = 0
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.patch_embed = nn.Module()
    ...         self.patch_embed.proj = nn.Conv2d(3, 2, 16, stride=16)
    ...     def forward(self, x):
    ...         x = self.patch_embed.proj(x).flatten(2).mT[:, None] * 0
    ...         return nn.functional.scaled_dot_product_attention(x, x, x)
    >>> observer, net = AttentionDistance(), Net()
    >>> with observer.watching(net, 1) as values:
    ...     _ = net(torch.ones(1, 3, 224, 224))
    >>> values[""], round(observer.uniform[""], 6)
    (tensor([[116.4922]], dtype=torch.float64), 116.492227)
    """

    def __init__(
        self,
        layers: str | Sequence[str] | None = None,
        *,
        renormalize: bool = False,
        piece: int | None = None,
    ):
        self.layers, self.renormalize, self.piece = layers, renormalize, piece
        self.notices: tuple[str, ...] = ()
        self.uniform: dict[str, float] = {}

    @contextmanager
    def watching(self, model: nn.Module, n: int) -> Iterator[Values]:
        values: Values = {}
        seen: Values = {}

        def put(attention: Attention) -> None:
            places = places_of(attention)
            seen[attention.name] = mean_distance(attention, places, self.renormalize)
            if attention.name not in self.uniform:
                uniform = _uniform_of(places)
                if not self.renormalize:  # it too gives some to the class token and registers
                    uniform *= _placed_share(places)
                self.uniform[attention.name] = uniform

        capture = AttentionCapture(model, self.layers, self.piece, type(model).__name__)
        with capture.watching(n, put):
            yield values
        self.notices = capture.notices
        values.update({name: seen[name] for name in capture.taken})


def mean_distance(attention: Attention, places: Places, renormalize: bool = False) -> torch.Tensor:
    """Mean attention distance of one attention, [images, heads] float64 (see AttentionDistance)."""
    shape = attention.shape[:2]
    total, count = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    for first, pieces in groupby(attention.pieces(), key=lambda piece: piece.queries.start):
        distances = None
        for images, queries, weights in pieces:
            if distances is None:
                total, count = total.to(weights.device), count.to(weights.device)
                distances, real = _distances(
                    places.queries[:, first : queries.stop].to(weights.device),
                    places.keys.to(weights.device),
                )
                distances = distances.to(weights.dtype)
                placed = real.any(-1).sum()
                real = real.to(weights.dtype)
            if renormalize:
                given = (weights * real).sum(-1)
                of_rows = torch.where(given > 0, (weights * distances).sum(-1) / given, 0)
                total[images] += of_rows.sum((2, 3), dtype=torch.float64)
                count[images] += (given > 0).sum((2, 3))
            else:
                total[images] += torch.linalg.vecdot(weights.flatten(2), distances.flatten())
                count[images] += placed
    return total / count


def uniform_distance(
    grid: tuple[int, int],
    patch: float | tuple[float, float],
    keys: tuple[int, int] | None = None,
) -> float:
    """Mean attention distance of attention that is equal everywhere, in pixels.

    1/(R C)² Σ_a Σ_b (R − |a|)(C − |b|) √((p a)² + (q b)²) over |a| < R, |b| < C for R x C cells of
    p x q pixels: 0.5214 of the side of a large square image.

    Args:
        grid: (rows, cols) of the queries.
        patch: side of a cell of theirs in pixels, or (height, width).
        keys: (rows, cols) of the keys where they are another grid over the same image.

    Raises:
        ValueError: a grid without cells, or cells without a side.

    Cost: of the order of rows x cols.

    >>> round(uniform_distance((14, 14), 16), 6), round(uniform_distance((7, 7), 32), 6)
    (116.492227, 115.502894)
    """
    high, wide = patch if isinstance(patch, Sequence) else (patch, patch)
    others = grid if keys is None else keys
    if min(*grid, *others) < 1 or not (high > 0 and wide > 0):
        raise ValueError(
            "`grid`, `keys` must have cells and `patch` a side above 0, but they are "
            f"{tuple(grid)}, {tuple(others)} and {patch!r}"
        )
    (rows, cols), (key_rows, key_cols) = grid, others
    return _uniform(
        _centres(rows, high),
        _centres(cols, wide),
        _centres(key_rows, high * rows / key_rows),
        _centres(key_cols, wide * cols / key_cols),
    )


def _centres(count: int, side: float) -> torch.Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) * side


def _uniform_of(places: Places) -> float:
    """Over all pairs of a query and a key in the image, also of those that share no window."""
    lines = []
    for some in places:
        some = some.flatten(0, 1)
        some = some[~some[:, 0].isnan()]
        lines += [some[:, 0].unique(), some[:, 1].unique()]
    return _uniform(*lines)


def _placed_share(places: Places) -> float:
    """Of the keys of all the image, the share that are patches; windows hold nothing else of it."""
    if len(places.keys) > 1:
        return 1.0
    return float((~places.keys[..., 0].isnan()).double().mean())


def _uniform(rows, cols, key_rows, key_cols) -> float:
    """Mean over all queries (row, col) and keys of their distance: equal differences counted."""
    high, times_high = (rows[:, None] - key_rows).abs().unique(return_counts=True)
    wide, times_wide = (cols[:, None] - key_cols).abs().unique(return_counts=True)
    distance = torch.hypot(high[:, None], wide)
    times = times_high[:, None] * times_wide
    return float((distance * times).sum() / times.sum())


def _distances(queries: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[windows, queries, keys]: distances, and where both ends have a place; 0 elsewhere."""
    apart = queries[:, :, None] - keys[:, None]
    distances = torch.hypot(apart[..., 0], apart[..., 1])
    return distances.nan_to_num(0), ~distances.isnan()
