"""Figures as files that can be printed; equal figures are equal files."""

import hashlib
import io
import os
from pathlib import Path
from typing import BinaryIO

# Known suffixes, and the metadata without which equal figures are equal files.
FORMATS = {".png": {}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}


def check_format(path: str | os.PathLike) -> None:
    """Refuse a suffix that is not known.

    >>> check_format("heatmap.pdf")
    """
    if Path(path).suffix.lower() not in FORMATS:
        raise ValueError(
            f"`path` must end in {', '.join(FORMATS)}, which chooses the format, but is "
            f"{os.fspath(path)!r}"
        )


def save(figure, path: str | os.PathLike) -> None:
    """Write a matplotlib figure in the format that the suffix of `path` names."""
    save_to(figure, path, Path(path).suffix.lower())


def save_new(figure, path: Path) -> None:
    """Write a PDF, unless the file that is there shows the same: its fonts take longest.

    It holds a digest of what it shows.
    """
    mark = hashlib.sha256(svg(figure)).hexdigest()
    if not path.is_file() or mark.encode() not in path.read_bytes():
        save_to(figure, path, ".pdf", Keywords=mark)


def svg(figure) -> bytes:
    """A matplotlib figure as SVG; drawn once."""
    if not hasattr(figure, "fastcka_svg"):
        file = io.BytesIO()
        save_to(figure, file, ".svg")
        figure.fastcka_svg = file.getvalue()
    return figure.fastcka_svg


def save_to(figure, target: str | os.PathLike | BinaryIO, suffix: str, **metadata: str) -> None:
    """Write a matplotlib figure to a path or an open file, in the format of a suffix."""
    import matplotlib

    # Text stays text in a PDF, and ids in an SVG are the same each time.
    with matplotlib.rc_context({"pdf.fonttype": 42, "svg.hashsalt": "fastcka"}):
        look = {"dpi": 200, "bbox_inches": "tight", "metadata": FORMATS[suffix] | metadata}
        figure.savefig(target, format=suffix[1:], **look)
