"""Figures as a page can hold them: pictures, and heat maps whose cells can be read out."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fastcka.report.saving import save_to, svg

SVG_LIMIT = 400_000  # bytes; larger vector pictures become pixels
POINTS = 72  # in an inch
PIXELS = 96  # of CSS, in an inch


@dataclass(frozen=True)
class Picture:
    """A figure as an image.

    Attributes:
        uri: `data:`, the image itself.
        width, height: in pixels of CSS, where a point of the figure is a point.
    """

    uri: str
    width: int
    height: int


@dataclass(frozen=True, eq=False)
class Heatmap:
    """A matrix of similarities with the names of its rows and columns.

    Attributes:
        values: [L, M]; NaN, and what a masked array masks, is no value.
        rows, columns: names of the layers, by model, the first at the bottom and at the left.
        stderr: [L, M], or None.
        label: what the values are.

    >>> Heatmap(np.eye(2), {"vit": ["0", "1"]}, {"cnn": ["a", "b"]}).names("columns")
    ['cnn a', 'cnn b']
    """

    values: np.ndarray
    rows: Mapping[str, Sequence[str]]
    columns: Mapping[str, Sequence[str]]
    stderr: np.ndarray | None = None
    label: str = "CKA"

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys([*self.rows, *self.columns]))

    def names(self, side: str) -> list[str]:
        """Of "rows" or "columns", with the model where there are several."""
        several = len(self.models) > 1
        return [
            f"{model} {layer}" if several else layer
            for model, layers in getattr(self, side).items()
            for layer in layers
        ]


def scale(values: np.ndarray, label: str) -> tuple[str, float]:
    """The colour map of a panel, and the value of its upper end; the lower is 0.

    >>> scale(np.array([0.1, np.nan]), "standard error")
    ('cividis', 0.1)
    """
    if label == "CKA":
        return "viridis", 1.0
    return "cividis", float(np.ma.masked_invalid(values).max()) or 1.0


def remember(figure, heatmap: Heatmap) -> None:
    """Keep with a matplotlib figure the matrix that is all it shows."""
    figure.fastcka_heatmap = heatmap


def shown(figure, stderr: np.ndarray | None = None) -> Picture | Heatmap:
    """A matplotlib figure for a page: the matrix where it is one, else an image.

    Args:
        stderr: of the matrix, where the figure does not say it.

    >>> from fastcka.report.heatmap import heatmap
    >>> shown(heatmap(np.eye(2), {"a": ["0", "1"]}, {"b": ["0", "1"]})).models
    ['a', 'b']
    """
    heatmap = getattr(figure, "fastcka_heatmap", None)
    if heatmap is None:
        return picture(figure)
    if heatmap.stderr is None and stderr is not None and stderr.shape == heatmap.values.shape:
        heatmap = replace(heatmap, stderr=stderr)
    return heatmap


def picture(figure) -> Picture:
    """A matplotlib figure as an image: lines that stay sharp, or pixels where these are less.

    >>> from fastcka.report.lines import Line, line_plot
    >>> figure = line_plot({"a": Line([0, 1], [0, 1])}, x_label="block", y_label="CKA")
    >>> picture(figure).uri[:18]
    'data:image/svg+xml'
    """
    kind, data = "svg+xml", svg(figure)
    points = re.search(rb'viewBox="0 0 ([\d.]+) ([\d.]+)"', data).groups()
    width, height = (round(float(side) * PIXELS / POINTS) for side in points)
    if len(data) > SVG_LIMIT:
        file = io.BytesIO()
        save_to(figure, file, ".png")
        kind, data = "png", file.getvalue()
    return Picture(data_uri(kind, data), width, height)


def data_uri(kind: str, data: bytes) -> str:
    """An image within a page.

    >>> data_uri("png", b"abc")
    'data:image/png;base64,YWJj'
    """
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def cells(heatmap: Heatmap) -> bytes:
    """A PNG with a pixel a cell, the first row at the bottom; NaN is transparent, masked white."""
    from matplotlib.cm import ScalarMappable
    from PIL import Image

    colours, highest = scale(heatmap.values, heatmap.label)
    mappable = ScalarMappable(cmap=colours)
    mappable.set_clim(0, highest)
    values = np.ma.masked_invalid(heatmap.values)
    pixels = mappable.to_rgba(values, bytes=True)
    pixels[np.ma.getmaskarray(values)] = 0
    pixels[np.ma.getmaskarray(heatmap.values)] = 255
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels[::-1])).save(file, "PNG", optimize=True)
    return file.getvalue()


def in_words(figure) -> str:
    """What a figure shows, for those who do not see it: its axes, and what is named in it.

    A figure that has a label of its own (`figure.set_label`) is described by it.

    >>> from fastcka.report.lines import Line, line_plot
    >>> lines = {"vit": Line([0, 1], [0, 1])}
    >>> in_words(line_plot(lines, x_label="block", y_label="CKA"))
    'CKA by block; vit'
    """
    if figure.get_label():
        return str(figure.get_label())
    heatmap = getattr(figure, "fastcka_heatmap", None)
    if heatmap is not None:
        return _matrix_in_words(heatmap)
    parts = []
    for ax in figure.axes:
        x, y = ax.get_xlabel(), ax.get_ylabel()
        legend = ax.get_legend()
        named = [text.get_text() for text in ax.texts]
        named += [text.get_text() for text in legend.get_texts()] if legend else []
        titles = [ax.get_title("left"), ax.get_title("center")]
        axes = f"{y} by {x}" if x and y else x or y
        series = ", ".join(dict.fromkeys(" ".join(name.split()) for name in named if name.strip()))
        parts.append("; ".join(part for part in (*titles, axes, series) if part))
    return ". ".join(dict.fromkeys(part for part in parts if part)) or "a figure"


def _matrix_in_words(heatmap: Heatmap) -> str:
    values = np.ma.masked_invalid(heatmap.values)
    known = values.compressed()
    rows, columns = values.shape
    of = {side: " and ".join(getattr(heatmap, side)) for side in ("rows", "columns")}
    told = f"Heat map of {heatmap.label}: {rows} layers of {of['rows']} upward, "
    if len(heatmap.models) == 1:
        told += "the same layers rightward"
    else:
        told += f"{columns} layers of {of['columns']} rightward"
    if len(known):
        told += f"; from {known.min():.2f} to {known.max():.2f}"
    lacking = values.size - len(known)
    if lacking:
        told += f"; {lacking} cell{'s have' if lacking > 1 else ' has'} no value"
    return told
