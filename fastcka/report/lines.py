"""Lines with error bands that can be printed: one axis each, every line named where it ends."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np

from fastcka.report.heatmap import LARGE, LINE, SMALL, write_below
from fastcka.report.saving import check_format, save

# Told apart by who sees fewer colours, and in grey by their marks [Okabe & Ito 2008].
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKS = ("o", "s", "^", "D", "v", "P")  # fewer: no pair of both repeats soon
SCALE, LIGHTEST = "viridis", 0.72  # of colours in order, and how far it is used: no pale yellow
GREY = "0.45"
SIZE = (4.0, 2.7)  # inches, of the axes
MARKED = 40  # up to so many points have marks
BAND = 2  # standard errors


@dataclass(frozen=True)
class Line:
    """Values over an axis.

    Attributes:
        x, y: of equal length; NaN leaves a gap.
        stderr: of y; drawn as a band of 2 on either side.
        reference: what others are seen against: grey and dashed.

    >>> Line([0, 1], [0.9, 0.5]).reference
    False
    """

    x: Sequence[float]
    y: Sequence[float]
    stderr: Sequence[float] | None = None
    reference: bool = False


def line_plot(
    lines: Mapping[str, Line],
    *,
    x_label: str,
    y_label: str,
    title: str | None = None,
    note: str = "",
    x_limits: tuple[float | None, float | None] = (None, None),
    y_limits: tuple[float | None, float | None] = (None, None),
    whole: bool = False,
    ordered: bool = False,
    levels: Mapping[str, float] | None = None,
    path: str | os.PathLike | None = None,
    ax=None,
):
    """Draw lines; the name of each stands at its end.

    Args:
        lines: by name.
        x_label, y_label: with the unit, where there is one.
        note: a line below.
        x_limits, y_limits: of the axes; None is as far as the values go.
        whole: x counts something, as blocks: its ticks are whole numbers.
        ordered: the lines are in an order, as shares of the images: so are their colours.
        levels: values of y that mean something, by name; dotted lines across.
        path: where to save the figure, as .png, .pdf or .svg; None saves nothing.
        ax: matplotlib axes to draw in; None makes a figure.

    Returns:
        The matplotlib Figure.

    Raises:
        ValueError: the suffix of `path` is unknown, or there are no lines.

    >>> from fastcka.report.lines import Line, line_plot
    >>> lines = {"3 %": Line([0, 1], [0.8, 0.2])}
    >>> figure = line_plot(lines, x_label="block", y_label="CKA", whole=True)
    >>> figure.axes[0].get_xlabel()
    'block'
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    if path is not None:
        check_format(path)
    if not lines:
        raise ValueError("`lines` is empty: there is nothing to draw")
    if ax is None:
        figure = Figure(figsize=SIZE)
        ax = figure.add_axes((0, 0, 1, 1))
    colours = _colours(lines, ordered)
    marks = cycle(MARKS)
    for name, line in lines.items():
        _draw(ax, line, colours[name], "" if line.reference else next(marks))
    for value in (levels or {}).values():
        ax.axhline(value, color=GREY, linewidth=0.8, linestyle=":", zorder=1)
    ax.set(xlim=x_limits, ylim=y_limits)
    if whole:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.set_xlabel(x_label, fontsize=LARGE, parse_math=False)
    ax.set_ylabel(y_label, fontsize=LARGE, parse_math=False)
    ax.tick_params(labelsize=SMALL, length=2, width=0.5)
    ax.spines[["left", "bottom"]].set_linewidth(0.5)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_title(title or "", fontsize=LARGE, loc="left", parse_math=False)
    _name(ax, lines, colours, levels or {})
    if any(line.stderr is not None for line in lines.values()):
        note = f"{note}\nbands: ± {BAND} standard errors".strip()
    write_below(ax, note)
    if path is not None:
        save(ax.figure, path)
    return ax.figure


def _colours(lines: Mapping[str, Line], ordered: bool) -> dict[str, object]:
    from matplotlib import colormaps

    own = [name for name, line in lines.items() if not line.reference]
    if ordered:
        places = np.linspace(0, LIGHTEST, len(own)) if len(own) > 1 else [0.0]
        chosen = dict(zip(own, colormaps[SCALE](places), strict=True))
    else:
        chosen = dict(zip(own, cycle(COLOURS), strict=False))
    return {name: chosen.get(name, GREY) for name in lines}


def _draw(ax, line: Line, colour, mark: str) -> None:
    x, y = np.asarray(line.x, float), np.asarray(line.y, float)
    look = {"color": colour, "linewidth": 1.4}
    if line.reference:
        look |= {"linestyle": "--", "linewidth": 1.1}
    elif len(x) <= MARKED:
        look |= {"marker": mark, "markersize": 3.5, "markeredgewidth": 0}
    ax.plot(x, y, **look)
    if line.stderr is None:
        return
    reach = BAND * np.asarray(line.stderr, float)
    if len(x) == 1:
        ax.errorbar(x, y, reach, color=colour, linewidth=0.8, capsize=2)
    else:
        ax.fill_between(x, y - reach, y + reach, color=colour, alpha=0.18, linewidth=0)


def _name(ax, lines: Mapping[str, Line], colours: Mapping, levels: Mapping[str, float]) -> None:
    """Names right of the axes, at the heights of the ends of their lines, or moved apart."""
    right = ax.get_xlim()[1]
    ends = {name: (right, value, GREY) for name, value in levels.items()}
    for name, line in lines.items():
        x, y = np.asarray(line.x, float), np.asarray(line.y, float)
        seen = np.flatnonzero(np.isfinite(y))
        if len(seen):
            ends[name] = (x[seen[-1]], y[seen[-1]], colours[name])
    height = ax.get_window_extent().height * 72 / ax.figure.dpi
    low, high = ax.get_ylim()
    order = sorted(ends, key=lambda name: ends[name][1])
    places = [(ends[name][1] - low) / (high - low) * height for name in order]
    for name, place in zip(order, _apart(places, height), strict=True):
        x, y, colour = ends[name]
        ax.annotate(
            name,
            (x, y),
            xytext=(1.04, place / height),
            textcoords="axes fraction",
            fontsize=SMALL,
            color=colour,
            va="center",
            parse_math=False,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.5,
                "shrinkA": 1,
                "shrinkB": 3,
                "relpos": (0, 0.5),
            },
        )


def _apart(places: Sequence[float], height: float) -> list[float]:
    """Rising heights of names, moved as little as they need to be a line apart and within.

    >>> _apart([1.0, 1.0, 50.0], 100)
    [0.0, 8.5, 50.0]
    """
    # Names that touch are a group around the middle of their own heights.
    groups: list[list[float]] = []
    for place in places:
        groups.append([place])
        while len(groups) > 1 and _start(groups[-1], height) < (
            _start(groups[-2], height) + LINE * len(groups[-2])
        ):
            last = groups.pop()
            groups[-1] += last
    return [_start(group, height) + LINE * i for group in groups for i in range(len(group))]


def _start(group: Sequence[float], height: float) -> float:
    reach = LINE * (len(group) - 1)
    return max(0.0, min(float(np.mean(group)) - reach / 2, max(height - reach, 0.0)))
