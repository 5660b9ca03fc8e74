"""Figures as files that can be printed; equal figures are equal files."""

import os
from pathlib import Path

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
    import matplotlib

    # Text stays text in a PDF, and ids in an SVG are the same each time.
    with matplotlib.rc_context({"pdf.fonttype": 42, "svg.hashsalt": "fastcka"}):
        metadata = FORMATS[Path(path).suffix.lower()]
        figure.savefig(path, dpi=200, bbox_inches="tight", metadata=metadata)
