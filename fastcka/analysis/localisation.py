"""Where in the image a token's information is from: CKA between tokens and patches of pixels."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from fastcka.analysis.positions import positions
from fastcka.analysis.sublayers import moves_tokens
from fastcka.capture import Tap
from fastcka.capture.modules import named, unwrap
from fastcka.capture.selection import Layout, Unusable, layout_of

Grid = int | tuple[int, int]


class Localisation(NamedTuple):
    """How far tokens resemble their own patches: means over `tokens` tokens.

    Attributes:
        tokens: how many; of 0 the others are NaN.
        peaks: share of tokens that resemble their own patch more than any other, 0 to 1.
        own, others: CKA with the own patch, and with all others.
        contrast: own - others.
    """

    tokens: int
    peaks: float
    own: float
    others: float
    contrast: float


def localisation(table: np.ndarray, grid: Grid) -> dict[str, Localisation]:
    """Sum up a table of CKA between tokens and patches [Raghu et al. 2021, figures 9 and 10].

    Args:
        table: [tokens, patches], both row by row; NaN makes NaN of the means that it is part of.
        grid: rows and columns, or one number for both.

    Returns:
        `Localisation` of "all" tokens, those of the "border" and those of the "interior".

    Raises:
        ValueError: the table is not of the grid.

    >>> found = localisation(np.eye(9), 3)
    >>> found["interior"].tokens, found["border"].tokens, found["all"].contrast
    (1, 8, 1.0)
    """
    rows, columns = _sides(grid)
    count = rows * columns
    table = np.asarray(table, dtype=np.float64)
    if table.shape != (count, count) or count < 2:
        raise ValueError(
            f"`table` must be [tokens, patches] of a grid of {rows} x {columns}, at least 2, but "
            f"is {list(table.shape)}"
        )
    own = np.diagonal(table)
    rest = table[~np.eye(count, dtype=bool)].reshape(count, count - 1)
    peaks = np.where(np.isnan(table).any(1), np.nan, own > rest.max(1))
    row, column = np.divmod(np.arange(count), columns)
    border = (row == 0) | (row == rows - 1) | (column == 0) | (column == columns - 1)
    groups = {"all": np.full(count, True), "interior": ~border, "border": border}
    return {name: _mean(group, peaks, own, rest.mean(1)) for name, group in groups.items()}


def patches(images: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Cut images into the patches of a grid, row by row: [n, patches, channels·height·width].

    Args:
        images: [n, channels, H, W]. grid: rows and columns, which divide H and W.

    Raises:
        ValueError: the images have other axes, or the grid does not divide them.

    >>> patches(torch.arange(8).reshape(1, 1, 2, 4), (1, 2))[0]
    tensor([[0, 1, 4, 5],
            [2, 3, 6, 7]])
    """
    rows, columns = _sides(grid)
    if images.ndim != 4 or images.shape[2] % rows or images.shape[3] % columns:
        raise ValueError(
            f"`images` must be [n, channels, height, width] that a grid of {rows} x {columns} "
            f"divides, but is {list(images.shape)}"
        )
    n, channels, height, width = images.shape
    cut = images.reshape(n, channels, rows, height // rows, columns, width // columns)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(n, rows * columns, -1)


class PixelPatches(nn.Module):
    """A network whose layers are the patches of its input; it returns the images unchanged.

    Beside a network in `fastcka.compare_many` it measures which patch each token is like. Pixels
    are taken as that network sees them: normalised channel by channel, which changes CKA a little.

    Args:
        grid: rows and columns, or one number for both.

    Attributes:
        layers: names of the patches, row by row: 'cells.2.1' is row 2, column 1.

    Raises:
        ValueError: `grid` is not one or two numbers above 0; or, called, does not divide the
            images.

    >>> pixels = PixelPatches((1, 2))
    >>> pixels.layers, pixels(torch.zeros(4, 3, 8, 8)).shape
    (['cells.0.0', 'cells.0.1'], torch.Size([4, 3, 8, 8]))
    """

    def __init__(self, grid: Grid):
        super().__init__()
        self.grid = _sides(grid)
        rows, columns = self.grid
        self.cells = nn.ModuleList(
            nn.ModuleList(nn.Identity() for _ in range(columns)) for _ in range(rows)
        )
        self.layers = [f"cells.{r}.{c}" for r in range(rows) for c in range(columns)]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        cells = [cell for row in self.cells for cell in row]
        for cell, patch in zip(cells, patches(images, self.grid).unbind(1), strict=True):
            cell(patch)
        return images


def token_taps(model: nn.Module, layer: str, grid: Grid) -> list[Tap]:
    """Taps of every token or position of a layer, row by row, as `PixelPatches` has its patches.

    Unlike Tap(layer, tokens=(row, column)) also for grids that are not square, and an error where
    the layer is not of that grid.

    Args:
        model: the network. layer: the name of a module; its first call is taken.
        grid: rows and columns of its patches or positions, or one number for both.

    Raises:
        ValueError: the model has no such layer, or keeps its tokens in another order; in a forward
            pass, the layer has another number of tokens, or no tokens.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 2, stride=2), nn.ReLU())
    >>> [tap.pattern + tap.suffix for tap in token_taps(net, "0", (1, 2))]
    ['0[0,0]', '0[0,1]']
    """
    rows, columns = _sides(grid)
    model = unwrap(model)
    modules = named(model)
    if not layer or layer not in modules:
        raise ValueError(f"`layer` must be the name of a module of the network, but is {layer!r}")
    if moves_tokens(modules):
        raise ValueError(
            "`model` is a Hiera, whose tokens are in the order of its mask units, not row by row; "
            "their place in the image cannot be told by their number"
        )
    layout = layout_of(layer, modules)
    places = [(r, c) for r in range(rows) for c in range(columns)]
    return [Tap(layer, select=_Token(r, c, (rows, columns), layout), call=1) for r, c in places]


@dataclass(frozen=True)
class _Token:
    """From an activation to the token of one place; its name is that place."""

    row: int
    column: int
    grid: tuple[int, int]
    layout: Layout

    @property
    def __name__(self) -> str:
        return f"{self.row},{self.column}"

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        rows, columns = self.grid
        fits = x.ndim == 3
        if x.ndim == 4:
            fits = tuple(x.shape[1:3] if self.layout.channels_last else x.shape[2:]) == self.grid
        found = positions(x, self.layout)
        if not fits or found.shape[1] != rows * columns:
            raise Unusable(f"its tokens are no grid of {rows} x {columns}", x.shape)
        return found[:, self.row * columns + self.column]


def _sides(grid: Grid) -> tuple[int, int]:
    sides = tuple(grid) if isinstance(grid, (tuple, list)) else (grid, grid)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"`grid` must be rows and columns, numbers above 0, but is {grid!r}")
    return sides


def _mean(group, peaks, own, others) -> Localisation:
    if not group.any():
        return Localisation(0, *[float("nan")] * 4)
    means = [float(values[group].mean()) for values in (peaks, own, others, own - others)]
    return Localisation(int(group.sum()), *means)
