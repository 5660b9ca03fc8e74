"""A heat map of CKA that can be printed: layers upward and rightward, CKA from 0 to 1."""

import os
from collections.abc import Mapping, Sequence
from itertools import accumulate, chain

import numpy as np

from fastcka.report.figures import Heatmap, remember, scale
from fastcka.report.saving import check_format, save

# Up to so many layers on both sides, the values stand in the cells.
WRITTEN = 12
# Inches: a cell with and without its value, the shortest and longest side of the whole, the least
# extent of a row or column of cells, the gap between panels, the border.
CELL_WRITTEN, CELL, SHORTEST, LONGEST, STRIP, GAP, BORDER = 0.42, 0.3, 1.6, 7.5, 0.25, 0.3, 0.08
# Points: layer names and notes; model names and titles; what a line of layer names takes.
SMALL, LARGE, LINE = 7, 9, 8.5
# CKA of a layer with itself is 1 ± 0 but for rounding, which shall not be seen.
ROUNDING = 1e-6


def heatmap(
    cka: np.ndarray,
    layers_a: Mapping[str, Sequence[str]],
    layers_b: Mapping[str, Sequence[str]],
    *,
    stderr: np.ndarray | None = None,
    title: str | None = None,
    note: str = "",
    path: str | os.PathLike | None = None,
    ax=None,
):
    """Draw CKA of every layer with every other.

    The first layer of a is at the bottom, the first of b at the left [Raghu et al. 2021]. Colours
    go from 0 to 1 in every figure; values outside have the colour of the end, and an arrow at the
    colour bar tells. Up to 12 x 12 layers the values are written into the cells.

    Args:
        cka: [L, M]; NaN is drawn hatched, masked cells of a masked array stay blank.
        layers_a, layers_b: names of the rows and columns, by model; thin lines part the models.
        stderr: [L, M], written under the values, or drawn as a second panel.
        note: a line below.
        path: where to save the figure, as .png, .pdf or .svg; None saves nothing.
        ax: matplotlib axes to draw in, of the size they have now; None makes a figure as large as
            it needs to be.

    Returns:
        The matplotlib Figure.

    Raises:
        ValueError: the suffix is unknown, all of `stderr` is NaN, or two panels were asked for in
            one `ax`.

    >>> from fastcka.report.heatmap import heatmap
    >>> figure = heatmap(np.eye(2), {"vit": ["blocks.0", "blocks.1"]}, {"net": ["conv1", "conv2"]})
    >>> figure.axes[0].get_yticklabels()[0].get_text()  # at the bottom
    'blocks.0'
    """
    from matplotlib.figure import Figure

    panels = {"CKA": cka}
    if stderr is not None and not _is_written(cka):
        panels["standard error"] = stderr
    _check(path, stderr, panels, ax)
    if ax is None:
        figure = Figure()
        axes = [_new_axes(figure, cka) for _ in panels]
    else:
        figure, axes = ax.figure, [ax]
        ax.set_aspect("equal")
    for panel, (label, values) in zip(axes, panels.items(), strict=True):
        image = _draw(panel, values, label)
        _name_layers(panel, layers_a, layers_b)
        _name_models(panel, layers_a, vertical=True)
        _name_models(panel, layers_b, vertical=False)
        _colour_bar(panel, image, label)
        if _is_written(values):
            _write_values(panel, image, stderr)
    if any(_lacks_values(values) for values in panels.values()):
        note = f"{note}\nhatched: no value".strip()
    write_below(axes[0], note)
    axes[0].set_title(title or "", fontsize=LARGE, loc="left", parse_math=False)
    if ax is None:
        _fit(figure)
        remember(figure, Heatmap(cka, layers_a, layers_b, stderr))
    if path is not None:
        save(figure, path)
    return figure


def _check(path: str | os.PathLike | None, stderr: np.ndarray | None, panels: dict, ax) -> None:
    if path is not None:
        check_format(path)
    if stderr is not None and not np.isfinite(np.ma.filled(stderr, np.nan)).any():
        raise ValueError("`stderr` is NaN throughout: error bars need 2 batches or more")
    if ax is not None and len(panels) > 1:
        raise ValueError(
            f"`ax` has room for one panel, but beyond {WRITTEN} x {WRITTEN} layers the standard "
            "errors are a second: leave out one of the two"
        )


def _is_written(values: np.ndarray) -> bool:
    return max(values.shape) <= WRITTEN


def _lacks_values(values: np.ndarray) -> bool:
    return not np.isfinite(np.ma.compressed(values)).all()


def _new_axes(figure, values: np.ndarray):
    """Axes with square cells, somewhere: `_fit` moves them."""
    cells = max(values.shape)
    longest = np.clip((CELL_WRITTEN if _is_written(values) else CELL) * cells, SHORTEST, LONGEST)
    height, width = (max(count * longest / cells, STRIP) for count in values.shape)
    outer_width, outer_height = figure.get_size_inches()
    return figure.add_axes((0, 0, width / outer_width, height / outer_height))


def _draw(ax, values: np.ndarray, label: str):
    """The coloured cells."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Rectangle

    shown = np.ma.masked_invalid(values)
    colours, highest = scale(values, label)
    look = {"origin": "lower", "interpolation": "nearest", "aspect": ax.get_aspect()}
    if _lacks_values(values):
        # Below the image, and seen where it has no value; where it is blank, below a white one.
        hatched = {"facecolor": "0.9", "edgecolor": "0.6", "hatch": "//////", "linewidth": 0}
        ax.add_patch(Rectangle((0, 0), 1, 1, transform=ax.transAxes, zorder=-2, **hatched))
        blank = np.ma.getmaskarray(values)
        ax.imshow(np.ma.masked_where(~blank, blank), cmap=ListedColormap(["w"]), zorder=-1, **look)
    return ax.imshow(shown, vmin=0, vmax=highest, cmap=colours, **look)


def _size(ax) -> tuple[float, float]:
    """Width and height in points."""
    ax.apply_aspect()
    box = ax.get_window_extent()
    return box.width * 72 / ax.figure.dpi, box.height * 72 / ax.figure.dpi


def _name_layers(ax, layers_a, layers_b) -> None:
    """All names where they fit, else every second, third, … and the last."""
    width, height = _size(ax)
    for axis, layers, length in ((ax.yaxis, layers_a, height), (ax.xaxis, layers_b, width)):
        names = list(chain.from_iterable(layers.values()))
        apart = int(np.ceil(LINE * len(names) / length))
        last = len(names) - 1
        chosen = [*range(0, last - apart + 1, apart), last]
        axis.set_ticks(chosen, labels=[names[i] for i in chosen], parse_math=False)
    ax.tick_params(labelsize=SMALL, length=2, width=0.5, pad=2)
    ax.tick_params(axis="x", labelrotation=90)
    ax.spines[:].set_linewidth(0.5)


def _name_models(ax, layers: Mapping[str, Sequence[str]], *, vertical: bool) -> None:
    """Model names outside the layer names, along their layers or, where they are longer, across."""
    inner, outer, to_points = ax.get_window_extent(), ax.get_tightbbox(), 72 / ax.figure.dpi
    width, height = _size(ax)
    if vertical:
        line, where, length = ax.axhline, ax.get_yaxis_transform(), height
        outward, rotation, look = outer.x0 - inner.x0, 90, {"ha": "right", "va": "center"}
    else:
        line, where, length = ax.axvline, ax.get_xaxis_transform(), width
        outward, rotation, look = outer.y0 - inner.y0, 0, {"ha": "center", "va": "top"}

    def point(along, out):
        return (out, along) if vertical else (along, out)

    counts = [len(names) for names in layers.values()]
    ends = list(accumulate(counts))
    for end in ends[:-1]:
        line(end - 0.5, color="white", linewidth=0.7)
    cell, out = length / ends[-1], outward * to_points - 4
    middles = [end - count / 2 for count, end in zip(counts, ends, strict=True)]
    texts = [
        ax.annotate(
            name,
            point(middle - 0.5, 0),
            xycoords=where,
            xytext=point(0, out),
            textcoords="offset points",
            rotation=rotation,
            fontsize=LARGE,
            parse_math=False,
            **look,
        )
        for name, middle in zip(layers, middles, strict=True)
    ]
    boxes = [text.get_window_extent() for text in texts]
    long = [(box.height if vertical else box.width) * to_points for box in boxes]
    if all(one <= count * cell for one, count in zip(long, counts, strict=True)):
        return
    place = -np.inf
    for text, middle in zip(texts, middles, strict=True):
        # Names of models with few layers are moved apart as far as they need it.
        place = max(middle * cell, place + 1.3 * LARGE)
        text.set_rotation(90 - rotation)
        text.set_position(point(place - middle * cell, out))


def _colour_bar(ax, image, label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    values, (lowest, highest) = image.get_array(), image.get_clim()
    below, above = (values < lowest - ROUNDING).any(), (values > highest + ROUNDING).any()
    extend = {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}
    width, height = _size(ax)
    # Flat matrices have a bar higher than themselves, so that its numbers stay apart.
    high = max(1, 58 / height)
    inset = ax.inset_axes((1 + 9 / width, (1 - high) / 2, 9 / width, high))
    bar = ax.figure.colorbar(image, cax=inset, extend=extend[bool(below), bool(above)])
    bar.locator = MaxNLocator(5 if high * height > 100 else 2)
    bar.set_label(label, fontsize=LARGE)
    bar.ax.tick_params(labelsize=SMALL, length=2, width=0.5)
    bar.outline.set_linewidth(0.5)


def _write_values(ax, image, stderr: np.ndarray | None) -> None:
    values = np.ma.filled(image.get_array(), np.nan)
    texts = {}
    for place in zip(*np.nonzero(np.isfinite(values)), strict=True):
        texts[place] = f"{round(values[place], 2) + 0.0:.2f}"  # + 0: no minus before 0.00
        if stderr is not None and np.isfinite(stderr[place]):
            texts[place] += f"\n±{stderr[place]:.3f}"
    longest = max((len(line) for text in texts.values() for line in text.split("\n")), default=1)
    width, height = _size(ax)
    # 0.66: the width of a digit in heights, and a little.
    size = min(SMALL, min(width / values.shape[1], height / values.shape[0]) / (0.66 * longest))
    for (i, j), text in texts.items():
        red, green, blue, _ = image.to_rgba(values[i, j])
        dark = 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.5
        ax.text(j, i, text, ha="center", va="center", size=size, color="w" if dark else "k")


def write_below(ax, note: str) -> None:
    """A line below all that belongs to the axes."""
    if not note:
        return
    inner, outer, to_points = ax.get_window_extent(), ax.get_tightbbox(), 72 / ax.figure.dpi
    ax.annotate(
        note,
        (0, 0),
        xycoords="axes fraction",
        xytext=(0, (outer.y0 - inner.y0) * to_points - 6),
        textcoords="offset points",
        va="top",
        fontsize=SMALL,
        color="0.3",
        parse_math=False,
    )


def _fit(figure) -> None:
    """Put the panels side by side, and cut the figure to what was drawn."""
    # Frozen: the extent of axes follows them when the figure changes its size.
    inner = [ax.get_window_extent().frozen() for ax in figure.axes]
    outer = [ax.get_tightbbox() for ax in figure.axes]
    dpi = figure.dpi
    below = max(i.y0 - o.y0 for i, o in zip(inner, outer, strict=True)) / dpi + BORDER
    above = max(o.y1 - i.y1 for i, o in zip(inner, outer, strict=True)) / dpi + BORDER
    width = sum(box.width for box in outer) / dpi + GAP * (len(outer) - 1) + 2 * BORDER
    height = below + inner[0].height / dpi + above
    figure.set_size_inches(width, height)
    left = BORDER
    for ax, i, o in zip(figure.axes, inner, outer, strict=True):
        x = left + (i.x0 - o.x0) / dpi
        ax.set_position((x / width, below / height, i.width / dpi / width, i.height / dpi / height))
        left += o.width / dpi + GAP
