"""Small pictures side by side on one scale: what lies where in an image, or in a table."""

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fastcka.report.saving import check_format, save

COLOURS = "viridis"  # dark is little; told apart by who sees fewer colours, and in grey
MISSING = "0.85"
SMALL, LARGE = 7, 9  # points, as in heat maps
# Inches: a picture, the longer side of a table; between pictures, a title, the colour bar, numbers.
SIDE, TABLE = 1.15, 2.6
GAP, TOP, BAR, NUMBERS = 0.12, 0.22, 0.1, 0.35


def maps(
    rows: Mapping[str, Mapping[str, np.ndarray]],
    *,
    label: str,
    limits: tuple[float | None, float | None] = (0, None),
    power: float = 1.0,
    logarithmic: bool = False,
    marked: Mapping[str, Sequence[float]] | None = None,
    ticks: bool = False,
    x_label: str = "",
    y_label: str = "",
    title: str | None = None,
    note: str = "",
    path: str | os.PathLike | None = None,
):
    """Draw arrays as pictures: a row of them for each entry, each with its name above.

    Args:
        rows: arrays [height, width] by name, by the name of the row; NaN is grey.
        label: what the values are, with the unit, for the colour bar.
        limits: of the colours; None is as far as the values go.
        power: of the scale of colours; below 1, small values are told apart.
        logarithmic: a logarithmic scale instead; values must be above 0.
        marked: (left, bottom, width, height) of a frame in a picture, by "row/name".
        ticks: count rows upward from 0 and columns rightward, with ticks, as in a table; without,
            the first row is at the top, as in an image.
        x_label, y_label: of tables.
        note: a line below.
        path: where to save the figure, as .png, .pdf or .svg; None saves nothing.

    Returns:
        The matplotlib Figure.

    Raises:
        ValueError: the suffix of `path` is unknown, or there are no pictures.

    >>> figure = maps({"vit": {"block 0": np.eye(2)}}, label="share")
    >>> figure.axes[0].get_title()
    'block 0'
    """
    from matplotlib.figure import Figure

    if path is not None:
        check_format(path)
    if not any(rows.values()):
        raise ValueError("`rows` is empty: there is nothing to draw")
    norm = _norm(rows, limits, power, logarithmic)
    figure = Figure()
    grid = _Grid.of(rows, ticks)
    figure.set_size_inches(*grid.size)
    for line, (row_name, row) in enumerate(rows.items()):
        for column, (name, values) in enumerate(row.items()):
            ax = figure.add_axes(grid.box(line, column))
            _draw(ax, values, norm, ticks, (marked or {}).get(f"{row_name}/{name}"))
            ax.set_title(name, fontsize=SMALL, pad=2, parse_math=False)
            if column == 0:
                words = (row_name if not ticks or len(rows) > 1 else "", y_label)
                ax.set_ylabel("\n".join(filter(None, words)), fontsize=LARGE, parse_math=False)
            if line == len(rows) - 1:
                ax.set_xlabel(x_label, fontsize=LARGE, parse_math=False)
    _colour_bar(figure.add_axes(grid.bar()), rows, norm, label)
    height = grid.size[1]
    if title:
        place = (0, 1 + (0.05 - (NUMBERS if ticks else 0)) / height)
        figure.text(*place, title, fontsize=LARGE, va="bottom", parse_math=False)
    if note:
        place = (0, -(0.5 if ticks else 0.1) / height)
        figure.text(*place, note, fontsize=SMALL, color="0.3", va="top", parse_math=False)
    if path is not None:
        save(figure, path)
    return figure


class _Grid(NamedTuple):
    """Where the pictures stand; lengths in inches."""

    lines: int
    columns: int
    width: float  # of a picture
    height: float
    across: float  # from one picture to the next, without it
    down: float

    @classmethod
    def of(cls, rows: Mapping, ticks: bool) -> "_Grid":
        lines, columns = len(rows), max(map(len, rows.values()))
        if not ticks:
            return cls(lines, columns, SIDE, SIDE, GAP, TOP)
        shapes = [np.shape(values) for row in rows.values() for values in row.values()]
        high, wide = (max(sides) for sides in zip(*shapes, strict=True))
        width, height = (TABLE * max(side / max(high, wide), 0.5) for side in (wide, high))
        return cls(lines, columns, width, height, GAP + NUMBERS, TOP + NUMBERS)

    @property
    def size(self) -> tuple[float, float]:
        width = self.columns * (self.width + self.across) + BAR
        return width, self.lines * (self.height + self.down)

    def box(self, line: int, column: int) -> tuple[float, float, float, float]:
        """Of a picture, in shares of the figure."""
        left = column * (self.width + self.across)
        bottom = (self.lines - 1 - line) * (self.height + self.down)
        return self._shares(left, bottom, self.width, self.height)

    def bar(self) -> tuple[float, float, float, float]:
        """Of the colour bar: along all rows."""
        left = self.columns * (self.width + self.across) - self.across + GAP
        return self._shares(left, 0, BAR, self.size[1] - self.down)

    def _shares(self, *box: float) -> tuple[float, float, float, float]:
        return tuple(length / whole for length, whole in zip(box, 2 * self.size, strict=True))


def _colour_bar(ax, rows: Mapping, norm, label: str) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    bar = ax.figure.colorbar(ScalarMappable(norm, COLOURS), cax=ax, extend=_ends(rows, norm))
    bar.set_label(label, fontsize=SMALL)
    if isinstance(norm, LogNorm):
        _number(bar)
    ax.tick_params(labelsize=SMALL, length=2, width=0.5)
    bar.outline.set_linewidth(0.5)


def _norm(rows: Mapping, limits, power: float, logarithmic: bool):
    from matplotlib.colors import LogNorm, PowerNorm

    known = _known(rows)
    low, high = limits
    low = known.min() if low is None and len(known) else low
    high = known.max() if high is None and len(known) else high
    low, high = (low or 0.0), (1.0 if high is None else high)
    if logarithmic:
        return LogNorm(low or 1e-3, max(high, low * 1.01))
    return PowerNorm(power, low, high if high > low else low + 1)


def _number(bar) -> None:
    """Numbers as they are said, not as powers of ten, and few of them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    within_one = bar.norm.vmax < 10 * bar.norm.vmin
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if not within_one else range(1, 10)))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    bar.ax.yaxis.set_minor_locator(NullLocator())


def _known(rows: Mapping) -> np.ndarray:
    every = [np.ravel(values) for row in rows.values() for values in row.values()]
    every = np.concatenate(every)
    return every[np.isfinite(every)]


def _ends(rows: Mapping, norm) -> str:
    known = _known(rows)
    below, above = (known < norm.vmin).any(), (known > norm.vmax * (1 + 1e-9)).any()
    return {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[int(below), int(above)]


def _draw(ax, values: np.ndarray, norm, ticks: bool, frame) -> None:
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import MaxNLocator

    ax.set_facecolor(MISSING)
    look = {"origin": "lower" if ticks else "upper", "aspect": "auto" if ticks else "equal"}
    ax.imshow(
        np.ma.masked_invalid(values), norm=norm, cmap=COLOURS, interpolation="nearest", **look
    )
    ax.spines[:].set_linewidth(0.5)
    if ticks:
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.tick_params(labelsize=SMALL, length=2, width=0.5)
    else:
        ax.set(xticks=[], yticks=[])
    if frame is not None:
        left, bottom, width, height = frame
        box = Rectangle((left, bottom), width, height, fill=False, edgecolor="w", linewidth=0.8)
        ax.add_patch(box)
